/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <string.h>

#include "bytes.h"

#define CHUNK_HEADER_BYTES 8u

void cl_stream_init(cl_stream *stream, cl_link link)
{
    stream->link = link;
    stream->at = stream->filled = 0;
    cl_stream_lose(stream);
}

void cl_stream_lose(cl_stream *stream)
{
    stream->chunk_left = 0;
    stream->lost = true;
}

/* Returns: false at the end of the stream. Out: to: null to skip. */
static bool take(cl_stream *stream, uint8_t *to, size_t n)
{
    while (n != 0) {
        if (stream->at == stream->filled) {
            stream->at = 0;
            stream->filled = cl_link_read(&stream->link, stream->buffer,
                                          sizeof stream->buffer);
        }
        size_t left = stream->filled - stream->at;
        size_t now = n < left ? n : left;
        if (now == 0) {
            return false;
        }
        if (to != NULL) {
            memcpy(to, stream->buffer + stream->at, now);
            to += now;
        }
        stream->at += now;
        n -= now;
    }
    return true;
}

static bool is_hello(const uint8_t *bytes)
{
    static const uint8_t zero[CL_HELLO_BYTES - CL_HELLO_ZERO];
    return memcmp(bytes, "CLHI", 4) == 0 &&
           memcmp(bytes + CL_HELLO_ZERO, zero, sizeof zero) == 0;
}

/* In: n_read: bytes of it that stand in stream->hello already. */
static cl_stream_event find_hello(cl_stream *stream, size_t n_read)
{
    uint8_t *hello = stream->hello;
    stream->lost = true;
    if (!take(stream, hello + n_read, CL_HELLO_BYTES - n_read)) {
        return CL_STREAM_END;
    }
    while (!is_hello(hello)) {
        memmove(hello, hello + 1, CL_HELLO_BYTES - 1);
        if (!take(stream, hello + CL_HELLO_BYTES - 1, 1)) {
            return CL_STREAM_END;
        }
    }
    stream->lost = false;
    return CL_STREAM_HELLO;
}

static cl_stream_event next_chunk(cl_stream *stream)
{
    uint8_t *header = stream->hello;
    if (stream->lost) {
        return find_hello(stream, 0);
    }
    if (!take(stream, header, CHUNK_HEADER_BYTES)) {
        return CL_STREAM_END;
    }
    uint32_t n = cl_load_u32(header + 4);
    if (memcmp(header, "CLCK", 4) != 0 || n == 0 || n > CL_MAX_CHUNK_BYTES) {
        return find_hello(stream, CHUNK_HEADER_BYTES);
    }
    stream->chunk_left = n;
    return CL_STREAM_DATA;
}

cl_stream_event cl_stream_read(cl_stream *stream, uint8_t *to, uint64_t n)
{
    while (n != 0) {
        if (stream->chunk_left == 0) {
            cl_stream_event event = next_chunk(stream);
            if (event != CL_STREAM_DATA) {
                return event;
            }
        }
        uint32_t now = n < stream->chunk_left ? (uint32_t)n : stream->chunk_left;
        if (!take(stream, to, now)) {
            return CL_STREAM_END;
        }
        to = to == NULL ? NULL : to + now;
        stream->chunk_left -= now;
        n -= now;
    }
    return CL_STREAM_DATA;
}
