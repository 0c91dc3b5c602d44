/* SPDX-License-Identifier: Apache-2.0
 *
 * Serving one client: hellos, requests, answers (docs/spec/wire.md, "Over a
 * byte stream").
 */
#ifndef CL_SERVE_H
#define CL_SERVE_H

#include "outside.h"
#include "stream.h"
#include "tee.h"

/* What a client has stored. */
typedef struct cl_store {
    uint8_t *bytes;
    uint64_t n_bytes;
} cl_store;

typedef struct cl_host {
    cl_stream stream;
    cl_tee tee;
    cl_store store;
    cl_outside outside;
    uint64_t most_bytes; /* for the store, and for an outside program */
    uint64_t ticks;      /* that the last request took */
    bool settled;        /* requests wait for cl_clock_wait */
} cl_host;

/* Returns: null if there is no memory. */
cl_host *cl_host_new(size_t shared_bytes);

/* Serve a client until it is gone; then nothing of it is left. */
void cl_host_serve(cl_host *host, cl_link link);

void cl_host_end(cl_host *host);

#endif
