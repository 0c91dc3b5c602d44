/* SPDX-License-Identifier: Apache-2.0
 *
 * The wire protocol (docs/spec/wire.md): requests come in, are handed to the
 * trusted application, and are answered.
 */
#ifndef CL_WIRE_H
#define CL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bell.h"

typedef struct cl_region {
    uint8_t *start;
    size_t n_bytes;
} cl_region;

typedef struct cl_wire {
    int socket;
    cl_region payload; /* shared, for both sides to read and write */
    cl_region store;   /* read-only */
    cl_bell *bell;
    void *session;     /* of the trusted application */
} cl_wire;

typedef enum cl_wire_end { CL_WIRE_CLOSED, CL_WIRE_MALFORMED } cl_wire_end;

/* Answer requests until the stream ends. Returns: how it ended. */
cl_wire_end cl_wire_serve(const cl_wire *wire);

#endif
