/* SPDX-License-Identifier: Apache-2.0
 *
 * One client's session: what it has loaded and how far its run is.
 */
#ifndef CL_SESSION_H
#define CL_SESSION_H

#include <tee_internal_api.h>

#include "aead.h"
#include "machine.h"
#include "platform.h"
#include "unseal.h"

/* The sealed slices that the client holds out during one call; shared. */
typedef struct cl_sealed_window {
    const uint8_t *bytes;
    uint32_t first;
    uint32_t count;
} cl_sealed_window;

struct cl_session;

/* A part of the slot: room for any slice that streams. */
typedef struct cl_place {
    cl_job job; /* opens the slice */
    struct cl_session *session;
    uint8_t *bytes;
    uint32_t slice; /* CL_STREAMED for none */
    TEE_Result result;
} cl_place;

typedef struct cl_counts {
    uint64_t runs;
    uint64_t images;
    uint64_t slices_opened;
    uint64_t bytes_opened;
    uint64_t opening_ns;
    uint64_t computing_ns;
} cl_counts;

typedef struct cl_session {
    TEE_ObjectHandle device_key;
    cl_aead opener; /* the content key; none while nothing is loaded */
    cl_aead beside; /* the same for the second thread, where there is one */
    uint8_t *block; /* as it was allocated */
    uint64_t block_bytes;
    uint8_t *base; /* the program, CL_STATE_BYTES into the layout */
    cl_layout layout;
    cl_machine machine;
    cl_slice_binding binding;
    cl_sealed_window window;
    cl_counts counts;
    cl_place places[CL_MOST_JOBS];
    uint32_t n_places;
    uint32_t current; /* the place in use; those behind it are next */
    uint32_t n_ahead; /* places behind it whose slices are being opened */
    uint32_t next;    /* the slice to be opened ahead next */
    TEE_Result failure;  /* why a slice did not open */
    uint8_t resident[CL_MAX_SLICES / 8]; /* one bit for each that is open */
} cl_session;

TEE_Result cl_session_open(cl_session **session);
void cl_session_close(cl_session *session);

/* The commands. In: types, params: as the client gave them. */
TEE_Result cl_session_info(cl_session *session, uint32_t types,
                           TEE_Param *params);
TEE_Result cl_session_load(cl_session *session, uint32_t types,
                           TEE_Param *params);
TEE_Result cl_session_run(cl_session *session, uint32_t types,
                          TEE_Param *params);
TEE_Result cl_session_stats(cl_session *session, uint32_t types,
                            TEE_Param *params);
TEE_Result cl_session_open_ahead(cl_session *session, uint32_t types,
                                 TEE_Param *params);

/* Shared by the commands. Returns: what a status of the core means outside. */
TEE_Result cl_result_of(cl_status status);

/* Forget what is loaded, wiping it. */
void cl_session_unload(cl_session *session);

/* Take the sealed slices that the client holds out for this call; something
 * must be loaded.
 * Returns: TEE_ERROR_BAD_PARAMETERS if there are no such slices, or they have
 *          another size. In: param: shared. */
TEE_Result cl_session_set_window(cl_session *session, uint32_t first,
                                 uint32_t count, const TEE_Param *param);

/* Returns: the same as cl_result_of, and why a slice did not open. */
TEE_Result cl_session_result_of(const cl_session *session, cl_status status);

/* Divide the slot into places; a program has been loaded. */
void cl_session_set_places(cl_session *session);

/* Nothing is opened ahead any more: what the window shows is let go. */
void cl_session_forget_ahead(cl_session *session);

/* For the machine: finds or opens a slice. In: context: the session. */
cl_status cl_session_open_slice(void *context, uint32_t index,
                                const uint8_t **data);

#endif
