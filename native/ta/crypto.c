/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto.h"

#include "commands.h"
#include "platform.h"

/* An operation with a 256-bit secret as its key. */
static TEE_Result keyed(TEE_OperationHandle *operation, uint32_t algorithm,
                        uint32_t mode, TEE_ObjectType type,
                        const uint8_t *key)
{
    TEE_ObjectHandle object = TEE_HANDLE_NULL;
    TEE_Attribute attribute;
    TEE_Result result =
        TEE_AllocateTransientObject(type, 8 * CL_KEY_BYTES, &object);
    if (result != TEE_SUCCESS) {
        return result;
    }
    TEE_InitRefAttribute(&attribute, TEE_ATTR_SECRET_VALUE, key, CL_KEY_BYTES);
    result = TEE_PopulateTransientObject(object, &attribute, 1);
    if (result == TEE_SUCCESS) {
        result = TEE_AllocateOperation(operation, algorithm, mode,
                                       8 * CL_KEY_BYTES);
    }
    if (result == TEE_SUCCESS) {
        result = TEE_SetOperationKey(*operation, object);
        if (result != TEE_SUCCESS) {
            TEE_FreeOperation(*operation);
            *operation = TEE_HANDLE_NULL;
        }
    }
    TEE_FreeTransientObject(object);
    return result;
}

TEE_Result cl_gcm_key(TEE_OperationHandle *operation, const uint8_t *key)
{
    return keyed(operation, TEE_ALG_AES_GCM, TEE_MODE_DECRYPT, TEE_TYPE_AES,
                 key);
}

/* The last, incomplete block of 16 bytes is opened beside its place: OP-TEE 4.5
 * authenticates the wrong bytes of such a block when it is opened in place. */
static TEE_Result decrypt(TEE_OperationHandle operation, uint8_t *to,
                          const uint8_t *from, size_t n_bytes,
                          const uint8_t *tag)
{
    uint8_t expected[CL_TAG_BYTES], rest[16];
    size_t n_rest = n_bytes % sizeof rest, n_whole = n_bytes - n_rest;
    size_t opened = n_whole, opened_rest = n_rest;
    TEE_Result result = TEE_SUCCESS;
    TEE_MemMove(expected, tag, sizeof expected);
    TEE_MemMove(rest, from + n_whole, n_rest);
    if (n_whole != 0) {
        result = TEE_AEUpdate(operation, from, n_whole, to, &opened);
    }
    if (result == TEE_SUCCESS) {
        result = TEE_AEDecryptFinal(operation, rest, n_rest, to + n_whole,
                                    &opened_rest, expected, sizeof expected);
    }
    if (result == TEE_SUCCESS && opened + opened_rest != n_bytes) {
        result = TEE_ERROR_MAC_INVALID;
    }
    return result;
}

TEE_Result cl_gcm_open(TEE_OperationHandle operation, uint8_t *to,
                       const uint8_t *from, size_t n_bytes, const uint8_t *tag,
                       const uint8_t *nonce, const void *aad,
                       size_t aad_bytes)
{
    if (from != to && !cl_platform_reads_once()) {
        TEE_MemMove(to, from, n_bytes);
        from = to;
    }
    TEE_ResetOperation(operation); /* it may have been left by a failure */
    TEE_Result result = TEE_AEInit(operation, nonce, CL_NONCE_BYTES,
                                   8 * CL_TAG_BYTES, aad_bytes, n_bytes);
    if (result == TEE_SUCCESS) {
        if (aad_bytes != 0) {
            TEE_AEUpdateAAD(operation, aad, aad_bytes);
        }
        result = decrypt(operation, to, from, n_bytes, tag);
    }
    if (result != TEE_SUCCESS) {
        TEE_MemFill(to, 0, n_bytes);
    }
    return result;
}

TEE_Result cl_sha256(uint8_t *hash, const void *bytes, size_t n_bytes)
{
    TEE_OperationHandle operation = TEE_HANDLE_NULL;
    size_t size = CL_HASH_BYTES;
    TEE_Result result =
        TEE_AllocateOperation(&operation, TEE_ALG_SHA256, TEE_MODE_DIGEST, 0);
    if (result == TEE_SUCCESS) {
        result = TEE_DigestDoFinal(operation, bytes, n_bytes, hash, &size);
        TEE_FreeOperation(operation);
    }
    return result;
}

TEE_Result cl_hmac(uint8_t *mac, const uint8_t *key, const cl_piece *pieces,
                   size_t n_pieces)
{
    TEE_OperationHandle operation = TEE_HANDLE_NULL;
    size_t size = CL_HASH_BYTES;
    TEE_Result result = keyed(&operation, TEE_ALG_HMAC_SHA256, TEE_MODE_MAC,
                              TEE_TYPE_HMAC_SHA256, key);
    if (result != TEE_SUCCESS) {
        return result;
    }
    TEE_MACInit(operation, NULL, 0);
    for (size_t i = 0; i < n_pieces; i++) {
        if (pieces[i].n_bytes != 0) {
            TEE_MACUpdate(operation, pieces[i].at, pieces[i].n_bytes);
        }
    }
    result = TEE_MACComputeFinal(operation, NULL, 0, mac, &size);
    TEE_FreeOperation(operation);
    return result;
}
