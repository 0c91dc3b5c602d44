/* SPDX-License-Identifier: Apache-2.0 */
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <tee_internal_api.h>
#include <unistd.h>

#include "bell.h"
#include "bytes.h"
#include "frame.h"

/* ---- Frames ------------------------------------------------------------ */

/* Returns: false at the end of the stream, also in the middle of a frame. */
static bool read_whole(int fd, uint8_t *to, size_t n_bytes)
{
    while (n_bytes != 0) {
        ssize_t got = read(fd, to, n_bytes);
        if (got <= 0) {
            if (got < 0 && errno == EINTR) {
                continue;
            }
            return false;
        }
        to += got;
        n_bytes -= (size_t)got;
    }
    return true;
}

static bool write_whole(int fd, const uint8_t *from, size_t n_bytes)
{
    while (n_bytes != 0) {
        ssize_t put = write(fd, from, n_bytes);
        if (put < 0) {
            if (errno == EINTR) {
                continue;
            }
            return false;
        }
        from += put;
        n_bytes -= (size_t)put;
    }
    return true;
}

/* ---- Parameters -------------------------------------------------------- */

static bool set_param(const cl_wire *wire, const cl_frame_param *from,
                      TEE_Param *param)
{
    const cl_region *region =
        from->region == CL_REGION_STORE ? &wire->store : &wire->payload;
    if (!cl_frame_param_holds(from)) {
        return false;
    }
    if (from->kind == CL_KIND_NONE) {
        return true;
    }
    if (!cl_inside(from->offset, from->n_bytes, region->n_bytes)) {
        return false;
    }
    param->memref.buffer = region->start; /* null for an empty file */
    if (from->offset != 0) {
        param->memref.buffer = region->start + from->offset;
    }
    param->memref.size = (size_t)from->n_bytes;
    return true;
}

static TEE_Result invoke(const cl_wire *wire, const cl_frame *frame,
                         TEE_Param *params)
{
    static const uint32_t types[] = {
        TEE_PARAM_TYPE_NONE,
        TEE_PARAM_TYPE_MEMREF_INPUT,
        TEE_PARAM_TYPE_MEMREF_OUTPUT,
        TEE_PARAM_TYPE_MEMREF_INOUT,
    };
    const cl_frame_param *from = frame->params;
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        if (!set_param(wire, &from[i], &params[i])) {
            return TEE_ERROR_BAD_PARAMETERS;
        }
    }
    return TA_InvokeCommandEntryPoint(
        wire->session, frame->command,
        TEE_PARAM_TYPES(types[from[0].kind], types[from[1].kind],
                        types[from[2].kind], types[from[3].kind]),
        params);
}

/* ---- Loop -------------------------------------------------------------- */

/* Returns: false at the end of the stream. In/out: awake: whether the bell may
 * bring it. */
static bool next_request(const cl_wire *wire, bool *awake, uint8_t *request)
{
    if (*awake && cl_bell_hear(wire->bell, request)) {
        return true;
    }
    *awake = false;
    return read_whole(wire->socket, request, CL_REQUEST_BYTES);
}

/* Returns: false if the stream has ended. Out: awake. */
static bool answer(const cl_wire *wire, bool *awake, const cl_frame *frame)
{
    uint8_t response[CL_RESPONSE_BYTES];
    uint64_t used[CL_PARAMS];
    TEE_Param params[CL_PARAMS];
    memset(params, 0, sizeof params);
    TEE_Result result = invoke(wire, frame, params);
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        used[i] = params[i].memref.size;
    }
    cl_frame_answer(response, frame, result, used);
    return cl_bell_give(wire->bell, awake, response) ||
           write_whole(wire->socket, response, sizeof response);
}

cl_wire_end cl_wire_serve(const cl_wire *wire)
{
    uint8_t request[CL_REQUEST_BYTES];
    cl_frame frame;
    bool awake = false;
    while (next_request(wire, &awake, request)) {
        if (!cl_frame_read(&frame, request)) {
            return CL_WIRE_MALFORMED;
        }
        if (!answer(wire, &awake, &frame)) {
            break;
        }
    }
    return CL_WIRE_CLOSED;
}
