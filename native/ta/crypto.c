/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto.h"

#include "commands.h"

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

TEE_Result cl_gcm_open(TEE_OperationHandle operation, uint8_t *bytes,
                       size_t n_bytes, const uint8_t *tag,
                       const uint8_t *nonce, const void *aad,
                       size_t aad_bytes)
{
    uint8_t expected[CL_TAG_BYTES];
    size_t opened = n_bytes;
    TEE_Result result = TEE_AEInit(operation, nonce, CL_NONCE_BYTES,
                                   8 * CL_TAG_BYTES, aad_bytes, n_bytes);
    if (result == TEE_SUCCESS) {
        if (aad_bytes != 0) {
            TEE_AEUpdateAAD(operation, aad, aad_bytes);
        }
        TEE_MemMove(expected, tag, sizeof expected);
        result = TEE_AEDecryptFinal(operation, bytes, n_bytes, bytes, &opened,
                                    expected, sizeof expected);
    }
    if (result == TEE_SUCCESS && opened != n_bytes) {
        result = TEE_ERROR_MAC_INVALID;
    }
    if (result != TEE_SUCCESS) {
        TEE_MemFill(bytes, 0, n_bytes);
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
