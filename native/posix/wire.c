/* SPDX-License-Identifier: Apache-2.0 */
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <tee_internal_api.h>
#include <unistd.h>

#include "bytes.h"

#define REQUEST_BYTES 112u
#define RESPONSE_BYTES 48u
#define PARAM_BYTES 24u
#define N_PARAMS 4u

enum { KIND_NONE, KIND_INPUT, KIND_OUTPUT, KIND_BOTH };
enum { REGION_NONE, REGION_PAYLOAD, REGION_STORE };

static uint64_t load_u64(const uint8_t *at)
{
    return cl_load_u32(at) | (uint64_t)cl_load_u32(at + 4) << 32;
}

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

static bool is_request(const uint8_t *request)
{
    return memcmp(request, "CLRQ", 4) == 0 && cl_load_u32(request + 12) == 0;
}

/* ---- Parameters -------------------------------------------------------- */

/* Returns: the region that a parameter of this kind may lie in, or null. */
static const cl_region *region_of(const cl_wire *wire, uint32_t kind,
                                  uint32_t region)
{
    if (region == REGION_PAYLOAD) {
        return &wire->payload;
    }
    return region == REGION_STORE && kind == KIND_INPUT ? &wire->store : NULL;
}

static bool read_param(const cl_wire *wire, const uint8_t *from,
                       TEE_Param *param, uint32_t *type)
{
    static const uint8_t types[] = {
        TEE_PARAM_TYPE_NONE,
        TEE_PARAM_TYPE_MEMREF_INPUT,
        TEE_PARAM_TYPE_MEMREF_OUTPUT,
        TEE_PARAM_TYPE_MEMREF_INOUT,
    };
    uint32_t kind = cl_load_u32(from);
    uint32_t region_id = cl_load_u32(from + 4);
    uint64_t offset = load_u64(from + 8), size = load_u64(from + 16);
    if (kind == KIND_NONE) {
        return region_id == REGION_NONE && offset == 0 && size == 0;
    }
    if (kind > KIND_BOTH) {
        return false;
    }
    const cl_region *region = region_of(wire, kind, region_id);
    if (region == NULL || !cl_inside(offset, size, region->n_bytes)) {
        return false;
    }
    param->memref.buffer = region->start; /* null for an empty file */
    if (offset != 0) {
        param->memref.buffer = region->start + offset;
    }
    param->memref.size = (size_t)size;
    *type = types[kind];
    return true;
}

static TEE_Result invoke(const cl_wire *wire, const uint8_t *request,
                         TEE_Param *params)
{
    uint32_t types[N_PARAMS] = {0};
    for (uint32_t i = 0; i < N_PARAMS; i++) {
        const uint8_t *from = request + 16 + i * PARAM_BYTES;
        if (!read_param(wire, from, &params[i], &types[i])) {
            return TEE_ERROR_BAD_PARAMETERS;
        }
    }
    return TA_InvokeCommandEntryPoint(
        wire->session, cl_load_u32(request + 8),
        TEE_PARAM_TYPES(types[0], types[1], types[2], types[3]), params);
}

/* ---- Loop -------------------------------------------------------------- */

static bool answer(const cl_wire *wire, const uint8_t *request)
{
    uint8_t response[RESPONSE_BYTES] = {'C', 'L', 'R', 'S'};
    TEE_Param params[N_PARAMS];
    memset(params, 0, sizeof params);
    TEE_Result result = invoke(wire, request, params);
    cl_store_u32(response + 4, cl_load_u32(request + 4));
    cl_store_u32(response + 8, result);
    for (uint32_t i = 0; i < N_PARAMS; i++) {
        cl_store_u64(response + 16 + 8 * i, params[i].memref.size);
    }
    return write_whole(wire->socket, response, sizeof response);
}

cl_wire_end cl_wire_serve(const cl_wire *wire)
{
    uint8_t request[REQUEST_BYTES];
    while (read_whole(wire->socket, request, sizeof request)) {
        if (!is_request(request)) {
            return CL_WIRE_MALFORMED;
        }
        if (!answer(wire, request)) {
            break;
        }
    }
    return CL_WIRE_CLOSED;
}
