/* SPDX-License-Identifier: Apache-2.0 */
#include "outside.h"

#include <stdlib.h>

#include "bytes.h"
#include "inprocess.h"
#include "kernels/sets.h"
#include "status.h"

#define REQUEST_BYTES 8u

static TEEC_Result result_of(int32_t status)
{
    switch (status) {
    case CL_OK:
        return TEEC_SUCCESS;
    case CL_BAD_ARGUMENT:
    case CL_BAD_CONSTANTS:
        return TEEC_ERROR_BAD_PARAMETERS;
    case CL_SHORT_MEMORY:
    case CL_OVER_BUDGET:
        return TEEC_ERROR_OUT_OF_MEMORY;
    case CL_BAD_VERSION:
        return TEEC_ERROR_NOT_SUPPORTED;
    default:
        return TEEC_ERROR_BAD_FORMAT;
    }
}

void cl_outside_forget(cl_outside *outside)
{
    free(outside->constants);
    free(outside->memory);
    *outside = (cl_outside){0};
}

/* Returns: false if there is not that much. */
static bool allocate(cl_outside *outside, uint64_t memory_bytes,
                     uint64_t constants_bytes, uint64_t most_bytes)
{
    memory_bytes = cl_up(memory_bytes, 64);
    if (cl_add(memory_bytes, constants_bytes) > most_bytes) {
        return false;
    }
    outside->memory = aligned_alloc(64, (size_t)memory_bytes);
    outside->constants = malloc((size_t)constants_bytes + 1);
    return outside->memory != NULL && outside->constants != NULL;
}

static TEEC_Result load(cl_outside *outside, const cl_argument *program,
                        const cl_argument *constants, uint64_t most_bytes)
{
    uint64_t memory_bytes = 0;
    int32_t status =
        cl_core_need(program->at, program->n_bytes, &memory_bytes);
    if (status != CL_OK) {
        return result_of(status);
    }
    if (!allocate(outside, memory_bytes, constants->n_bytes, most_bytes)) {
        return TEEC_ERROR_OUT_OF_MEMORY;
    }
    if (constants->n_bytes != 0) {
        memcpy(outside->constants, constants->at, (size_t)constants->n_bytes);
    }
    return result_of(cl_core_open(outside->memory, memory_bytes, program->at,
                                  program->n_bytes, outside->constants,
                                  constants->n_bytes, CL_ALL_SETS));
}

TEEC_Result cl_outside_load(cl_outside *outside, const cl_argument *program,
                            const cl_argument *constants, uint64_t most_bytes)
{
    cl_outside_forget(outside);
    TEEC_Result result = load(outside, program, constants, most_bytes);
    if (result != TEEC_SUCCESS) {
        cl_outside_forget(outside);
    }
    return result;
}

TEEC_Result cl_outside_run(cl_outside *outside, const cl_argument *results,
                           const cl_argument *request,
                           const cl_argument *images)
{
    if (request->n_bytes != REQUEST_BYTES) {
        return TEEC_ERROR_BAD_PARAMETERS;
    }
    if (outside->memory == NULL) {
        return TEEC_ERROR_BAD_STATE;
    }
    return result_of(cl_core_run(
        outside->memory, cl_load_u32(request->at),
        cl_load_u32(request->at + 4), images->at, images->n_bytes,
        results->at, results->n_bytes));
}
