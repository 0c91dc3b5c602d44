/* SPDX-License-Identifier: Apache-2.0
 *
 * The trusted application, through libteec.
 */
#ifndef CL_TEE_H
#define CL_TEE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tee_client_api.h>

#include "frame.h"

/* A parameter of a call. */
typedef struct cl_argument {
    uint32_t kind; /* CL_KIND_... */
    uint8_t *at;
    uint64_t n_bytes; /* afterwards: used */
} cl_argument;

typedef struct cl_tee {
    size_t shared_bytes;
    TEEC_Context context;
    TEEC_SharedMemory shared;
    TEEC_Session session;
    bool ready;         /* context and shared memory are there */
    bool open;          /* so is the session */
    TEEC_Result result; /* of opening the session */
    uint32_t origin;
} cl_tee;

void cl_tee_init(cl_tee *tee, size_t shared_bytes);

/* Open a session, closing one that is open; the shared memory is zeroed.
 * How it went is in result and origin. */
void cl_tee_open(cl_tee *tee);

void cl_tee_close(cl_tee *tee);

/* Give everything back. */
void cl_tee_end(cl_tee *tee);

/* Invoke a command in the open session.
 * In/Out: arguments: CL_PARAMS of them, all in the shared memory. */
TEEC_Result cl_tee_invoke(cl_tee *tee, uint32_t command,
                          cl_argument *arguments);

#endif
