/* SPDX-License-Identifier: Apache-2.0
 *
 * A stand-in for libteec: the trusted application in the same process. What it
 * takes and what shall fail stand in the environment:
 *   TEEC_STATE            folder of the device key
 *   TEEC_FAIL_CONTEXT     InitializeContext fails
 *   TEEC_MOST_SHARED      AllocateSharedMemory fails for more bytes than this
 *   TEEC_FAIL_SESSION     OpenSession fails with this number, from the TEE
 *   TEEC_LIES             a result is said to be larger than its buffer
 */
#define _GNU_SOURCE
#include "tee_client_api.h"

#include <stdlib.h>
#include <string.h>

#include "gp.h"
#include "uuid.h"

#define HEAP_BYTES (1u << 20)
#define ORIGIN_TEE 3u

TEEC_Result TEEC_InitializeContext(const char *name, TEEC_Context *context)
{
    (void)name;
    context->imp = 0;
    if (getenv("TEEC_FAIL_CONTEXT") != NULL) {
        return TEEC_ERROR_ITEM_NOT_FOUND;
    }
    const char *state = getenv("TEEC_STATE");
    bool good = state != NULL && cl_heap_open(&cl_ta_heap, HEAP_BYTES) &&
                cl_crypto_open() && cl_storage_open(state) == NULL &&
                TA_CreateEntryPoint() == TEE_SUCCESS;
    return good ? TEEC_SUCCESS : TEEC_ERROR_GENERIC;
}

void TEEC_FinalizeContext(TEEC_Context *context)
{
    (void)context;
    TA_DestroyEntryPoint();
    cl_storage_close();
}

TEEC_Result TEEC_AllocateSharedMemory(TEEC_Context *context,
                                      TEEC_SharedMemory *sharedMem)
{
    (void)context;
    const char *most = getenv("TEEC_MOST_SHARED");
    if (most != NULL && sharedMem->size > strtoul(most, NULL, 10)) {
        return TEEC_ERROR_OUT_OF_MEMORY;
    }
    sharedMem->buffer = malloc(sharedMem->size);
    return sharedMem->buffer != NULL ? TEEC_SUCCESS
                                     : TEEC_ERROR_OUT_OF_MEMORY;
}

void TEEC_ReleaseSharedMemory(TEEC_SharedMemory *sharedMemory)
{
    free(sharedMemory->buffer);
}

TEEC_Result TEEC_OpenSession(TEEC_Context *context, TEEC_Session *session,
                             const TEEC_UUID *destination,
                             uint32_t connectionMethod,
                             const void *connectionData,
                             TEEC_Operation *operation, uint32_t *returnOrigin)
{
    static const TEEC_UUID uuid = CL_UUID;
    TEE_Param params[4];
    const char *fail = getenv("TEEC_FAIL_SESSION");
    (void)context;
    (void)connectionMethod;
    (void)connectionData;
    (void)operation;
    memset(params, 0, sizeof params);
    *returnOrigin = ORIGIN_TEE;
    if (memcmp(destination, &uuid, sizeof uuid) != 0) {
        return TEEC_ERROR_ITEM_NOT_FOUND;
    }
    if (fail != NULL) {
        return (TEEC_Result)strtoul(fail, NULL, 16);
    }
    *returnOrigin = TEEC_ORIGIN_TRUSTED_APP;
    return TA_OpenSessionEntryPoint(0, params, &session->imp);
}

void TEEC_CloseSession(TEEC_Session *session)
{
    TA_CloseSessionEntryPoint(session->imp);
}

/* Each parameter is a block of its own: so that one byte too far is noticed. */
static void copy_in(const TEEC_Parameter *from, uint32_t type, TEE_Param *to)
{
    const TEEC_RegisteredMemoryReference *ref = &from->memref;
    if (type == TEEC_NONE) {
        return;
    }
    if (ref->offset > ref->parent->size ||
        ref->size > ref->parent->size - ref->offset) {
        abort();
    }
    to->memref.size = ref->size;
    to->memref.buffer = malloc(ref->size ? ref->size : 1);
    if (to->memref.buffer != NULL && type != TEEC_MEMREF_PARTIAL_OUTPUT) {
        memcpy(to->memref.buffer, (uint8_t *)ref->parent->buffer + ref->offset,
               ref->size);
    }
}

static void copy_out(TEEC_Parameter *to, uint32_t type, const TEE_Param *from)
{
    TEEC_RegisteredMemoryReference *ref = &to->memref;
    size_t used = from->memref.size;
    if (type == TEEC_NONE) {
        return;
    }
    if (type != TEEC_MEMREF_PARTIAL_INPUT) {
        memcpy((uint8_t *)ref->parent->buffer + ref->offset,
               from->memref.buffer, used < ref->size ? used : ref->size);
    }
    ref->size = getenv("TEEC_LIES") != NULL ? SIZE_MAX : used;
    free(from->memref.buffer);
}

TEEC_Result TEEC_InvokeCommand(TEEC_Session *session, uint32_t commandID,
                               TEEC_Operation *operation,
                               uint32_t *returnOrigin)
{
    static const uint32_t meant[16] = {
        [TEEC_MEMREF_PARTIAL_INPUT] = TEE_PARAM_TYPE_MEMREF_INPUT,
        [TEEC_MEMREF_PARTIAL_OUTPUT] = TEE_PARAM_TYPE_MEMREF_OUTPUT,
        [TEEC_MEMREF_PARTIAL_INOUT] = TEE_PARAM_TYPE_MEMREF_INOUT,
    };
    uint32_t types[4];
    TEE_Param params[4];
    memset(params, 0, sizeof params);
    for (uint32_t i = 0; i < 4; i++) {
        types[i] = (operation->paramTypes >> (4 * i)) & 15;
        copy_in(&operation->params[i], types[i], &params[i]);
    }
    *returnOrigin = TEEC_ORIGIN_TRUSTED_APP;
    TEEC_Result result = TA_InvokeCommandEntryPoint(
        session->imp, commandID,
        TEE_PARAM_TYPES(meant[types[0]], meant[types[1]], meant[types[2]],
                        meant[types[3]]),
        params);
    for (uint32_t i = 0; i < 4; i++) {
        copy_out(&operation->params[i], types[i], &params[i]);
    }
    return result;
}
