/* SPDX-License-Identifier: Apache-2.0 */
#include "tee.h"

#include <string.h>

#include "uuid.h"

void cl_tee_init(cl_tee *tee, size_t shared_bytes)
{
    memset(tee, 0, sizeof *tee);
    tee->shared_bytes = shared_bytes;
    tee->result = TEEC_ERROR_BAD_STATE;
}

/* Half as much, and half of that, where the TEE driver has no more: with static
 * shared memory, all of it may be less than what is asked for. */
static TEEC_Result allocate_shared(cl_tee *tee)
{
    TEEC_Result result = TEEC_ERROR_OUT_OF_MEMORY;
    size_t n_bytes = tee->shared_bytes;
    do {
        memset(&tee->shared, 0, sizeof tee->shared);
        tee->shared.size = n_bytes;
        tee->shared.flags = TEEC_MEM_INPUT | TEEC_MEM_OUTPUT;
        result = TEEC_AllocateSharedMemory(&tee->context, &tee->shared);
        if (result == TEEC_SUCCESS) {
            tee->shared_bytes = n_bytes;
        }
        n_bytes = n_bytes / 2 & ~(size_t)4095;
    } while (result == TEEC_ERROR_OUT_OF_MEMORY && n_bytes != 0);
    return result;
}

/* Without a TEE, libteec says that something was not found, which is what it
 * says when the trusted application is not installed. */
static TEEC_Result make_ready(cl_tee *tee)
{
    if (tee->ready) {
        return TEEC_SUCCESS;
    }
    if (TEEC_InitializeContext(NULL, &tee->context) != TEEC_SUCCESS) {
        return TEEC_ERROR_COMMUNICATION;
    }
    TEEC_Result result = allocate_shared(tee);
    if (result != TEEC_SUCCESS) {
        TEEC_FinalizeContext(&tee->context);
    }
    tee->ready = result == TEEC_SUCCESS;
    return result;
}

void cl_tee_open(cl_tee *tee)
{
    static const TEEC_UUID uuid = CL_UUID;
    cl_tee_close(tee);
    tee->origin = TEEC_ORIGIN_API;
    tee->result = make_ready(tee);
    if (tee->result == TEEC_SUCCESS) {
        memset(tee->shared.buffer, 0, tee->shared_bytes);
        tee->result =
            TEEC_OpenSession(&tee->context, &tee->session, &uuid,
                             TEEC_LOGIN_PUBLIC, NULL, NULL, &tee->origin);
    }
    tee->open = tee->result == TEEC_SUCCESS;
}

void cl_tee_close(cl_tee *tee)
{
    if (tee->open) {
        TEEC_CloseSession(&tee->session);
    }
    tee->open = false;
    tee->result = TEEC_ERROR_BAD_STATE;
}

void cl_tee_end(cl_tee *tee)
{
    cl_tee_close(tee);
    if (tee->ready) {
        TEEC_ReleaseSharedMemory(&tee->shared);
        TEEC_FinalizeContext(&tee->context);
    }
    tee->ready = false;
}

TEEC_Result cl_tee_invoke(cl_tee *tee, uint32_t command,
                          cl_argument *arguments)
{
    static const uint32_t types[] = {
        TEEC_NONE,
        TEEC_MEMREF_PARTIAL_INPUT,
        TEEC_MEMREF_PARTIAL_OUTPUT,
        TEEC_MEMREF_PARTIAL_INOUT,
    };
    TEEC_Operation operation;
    memset(&operation, 0, sizeof operation);
    operation.paramTypes = TEEC_PARAM_TYPES(
        types[arguments[0].kind], types[arguments[1].kind],
        types[arguments[2].kind], types[arguments[3].kind]);
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        if (arguments[i].kind != CL_KIND_NONE) {
            TEEC_RegisteredMemoryReference *ref = &operation.params[i].memref;
            ref->parent = &tee->shared;
            ref->offset =
                (size_t)(arguments[i].at - (uint8_t *)tee->shared.buffer);
            ref->size = (size_t)arguments[i].n_bytes;
        }
    }
    uint32_t origin = 0;
    TEEC_Result result =
        TEEC_InvokeCommand(&tee->session, command, &operation, &origin);
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        if (arguments[i].kind != CL_KIND_NONE) {
            arguments[i].n_bytes = operation.params[i].memref.size;
        }
    }
    return result;
}
