/* SPDX-License-Identifier: Apache-2.0 */
#include "frame.h"

#include "bytes.h"

#define PARAMS_AT 16u
#define PARAM_BYTES 24u

static uint64_t load_u64(const uint8_t *at)
{
    return cl_load_u32(at) | (uint64_t)cl_load_u32(at + 4) << 32;
}

bool cl_frame_read(cl_frame *frame, const uint8_t *bytes)
{
    if (memcmp(bytes, "CLRQ", 4) != 0 || cl_load_u32(bytes + 12) != 0) {
        return false;
    }
    frame->sequence = cl_load_u32(bytes + 4);
    frame->command = cl_load_u32(bytes + 8);
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        const uint8_t *from = bytes + PARAMS_AT + i * PARAM_BYTES;
        frame->params[i] = (cl_frame_param){
            .kind = cl_load_u32(from),
            .region = cl_load_u32(from + 4),
            .offset = load_u64(from + 8),
            .n_bytes = load_u64(from + 16),
        };
    }
    return true;
}

bool cl_frame_param_holds(const cl_frame_param *param)
{
    if (param->kind == CL_KIND_NONE) {
        return param->region == CL_REGION_NONE && param->offset == 0 &&
               param->n_bytes == 0;
    }
    return param->kind <= CL_KIND_BOTH &&
           (param->region == CL_REGION_PAYLOAD ||
            (param->region == CL_REGION_STORE &&
             param->kind == CL_KIND_INPUT));
}

void cl_frame_answer(uint8_t *bytes, const cl_frame *frame, uint32_t result,
                     const uint64_t *used)
{
    memcpy(bytes, "CLRS", 4);
    cl_store_u32(bytes + 4, frame->sequence);
    cl_store_u32(bytes + 8, result);
    cl_store_u32(bytes + 12, 0);
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        cl_store_u64(bytes + 16 + 8 * i, used[i]);
    }
}

void cl_frame_number(uint8_t *request, uint32_t sequence)
{
    cl_store_u32(request + 4, sequence);
}

bool cl_frame_succeeded(const uint8_t *response, const uint8_t *request)
{
    if (memcmp(response, "CLRS", 4) != 0 ||
        cl_load_u32(response + 4) != cl_load_u32(request + 4) ||
        load_u64(response + 8) != 0) {
        return false;
    }
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        const uint8_t *given = request + PARAMS_AT + i * PARAM_BYTES + 16;
        if (load_u64(response + 16 + 8 * i) > load_u64(given)) {
            return false;
        }
    }
    return true;
}
