/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of a client and the local enclave for calls that do not go through
 * the system: while the enclave is awake it looks here for the next request
 * (docs/spec/wire.md, "The bell").
 */
#ifndef CL_BELL_H
#define CL_BELL_H

#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>

#include "frame.h"

/* The enclave looks for so long before it sleeps. */
#define CL_BELL_LISTEN_NS 1000000u

enum {
    CL_BELL_ASLEEP, /* the enclave waits for the socket */
    CL_BELL_AWAKE,  /* it looks for a request here */
    CL_BELL_ASKED,  /* there is one, and the client looks for the response */
    CL_BELL_WAITED, /* the client sleeps until the socket says so */
};

typedef struct cl_bell {
    alignas(64) uint32_t state;
    alignas(64) uint8_t request[CL_REQUEST_BYTES];
    alignas(64) uint8_t response[CL_RESPONSE_BYTES];
} cl_bell;

/* ---- The enclave ------------------------------------------------------- */

/* Look for a request, and fall asleep if none comes.
 * Returns: whether one came. Out: request: CL_REQUEST_BYTES. */
bool cl_bell_hear(cl_bell *bell, uint8_t *request);

/* Give a response. Returns: whether it is all the client needs; else it waits
 * for the socket. Out: awake: whether the next request may come by the bell. */
bool cl_bell_give(cl_bell *bell, bool *awake, const uint8_t *response);

/* ---- Both -------------------------------------------------------------- */

static inline uint32_t cl_bell_state(const cl_bell *bell)
{
    return __atomic_load_n(&bell->state, __ATOMIC_SEQ_CST);
}

/* Returns: whether it was `from`. */
static inline bool cl_bell_change(cl_bell *bell, uint32_t from, uint32_t to)
{
    return __atomic_compare_exchange_n(&bell->state, &from, to, false,
                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Returns: what it was. */
static inline uint32_t cl_bell_set(cl_bell *bell, uint32_t to)
{
    return __atomic_exchange_n(&bell->state, to, __ATOMIC_SEQ_CST);
}

#endif
