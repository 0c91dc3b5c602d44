/* SPDX-License-Identifier: Apache-2.0
 *
 * The byte stream from a client (docs/spec/wire.md): chunks whose contents are
 * requests, and hellos, by which a client gets through whatever lies there.
 */
#ifndef CL_STREAM_H
#define CL_STREAM_H

#include "link.h"

#define CL_STREAM_VERSION 1u
#define CL_HELLO_BYTES 32u
#define CL_HELLO_VERSION 4u
#define CL_HELLO_NONCE 8u
#define CL_HELLO_ZERO 24u
#define CL_NONCE_BYTES 16u
#define CL_MAX_CHUNK_BYTES 65536u

typedef enum cl_stream_event {
    CL_STREAM_DATA,  /* what was asked for is there */
    CL_STREAM_HELLO, /* a hello came instead */
    CL_STREAM_END    /* the client is gone */
} cl_stream_event;

typedef struct cl_stream {
    cl_link link;
    uint32_t chunk_left;
    bool lost; /* everything is skipped up to the next hello */
    uint8_t hello[CL_HELLO_BYTES]; /* the last one */
    size_t at; /* in the buffer */
    size_t filled;
    uint8_t buffer[CL_MAX_CHUNK_BYTES];
} cl_stream;

/* Begin with what comes from a link; it must be a hello. */
void cl_stream_init(cl_stream *stream, cl_link link);

/* Read n bytes out of chunks. Out: to: null if they are not wanted. */
cl_stream_event cl_stream_read(cl_stream *stream, uint8_t *to, uint64_t n);

/* Skip everything up to the next hello. */
void cl_stream_lose(cl_stream *stream);

#endif
