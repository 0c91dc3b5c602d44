/* SPDX-License-Identifier: Apache-2.0 */
#include "device_key.h"

#include "commands.h"

#define KEY_BITS 256
/* Several sessions may hold the key open at the same time. */
#define KEY_FLAGS (TEE_DATA_FLAG_ACCESS_READ | TEE_DATA_FLAG_SHARE_READ)

static const char key_name[] = "cloister-device-key-1";

static TEE_Result open_key(TEE_ObjectHandle *key)
{
    return TEE_OpenPersistentObject(TEE_STORAGE_PRIVATE, key_name,
                                    sizeof key_name - 1, KEY_FLAGS, key);
}

static TEE_Result make_key(TEE_ObjectHandle *key)
{
    TEE_ObjectHandle fresh = TEE_HANDLE_NULL;
    TEE_Result result = TEE_AllocateTransientObject(TEE_TYPE_X25519_KEYPAIR,
                                                    KEY_BITS, &fresh);
    if (result != TEE_SUCCESS) {
        return result;
    }
    result = TEE_GenerateKey(fresh, KEY_BITS, NULL, 0);
    if (result == TEE_SUCCESS) {
        result = TEE_CreatePersistentObject(TEE_STORAGE_PRIVATE, key_name,
                                            sizeof key_name - 1, KEY_FLAGS,
                                            fresh, NULL, 0, key);
    }
    TEE_FreeTransientObject(fresh);
    return result;
}

TEE_Result cl_device_key_open(TEE_ObjectHandle *key)
{
    TEE_Result result = open_key(key);
    if (result != TEE_ERROR_ITEM_NOT_FOUND) {
        return result;
    }
    result = make_key(key);
    if (result == TEE_ERROR_ACCESS_CONFLICT) {
        return open_key(key); /* somebody else was faster */
    }
    return result;
}

TEE_Result cl_device_key_public(TEE_ObjectHandle key, uint8_t *public_key)
{
    size_t size = CL_KEY_BYTES;
    return TEE_GetObjectBufferAttribute(key, TEE_ATTR_X25519_PUBLIC_VALUE,
                                        public_key, &size);
}

static TEE_Result derive(TEE_ObjectHandle key, TEE_ObjectHandle derived,
                         const uint8_t *peer)
{
    TEE_OperationHandle operation = TEE_HANDLE_NULL;
    TEE_Attribute attribute;
    TEE_Result result = TEE_AllocateOperation(&operation, TEE_ALG_X25519,
                                              TEE_MODE_DERIVE, KEY_BITS);
    if (result != TEE_SUCCESS) {
        return result;
    }
    result = TEE_SetOperationKey(operation, key);
    if (result == TEE_SUCCESS) {
        TEE_InitRefAttribute(&attribute, TEE_ATTR_X25519_PUBLIC_VALUE, peer,
                             CL_KEY_BYTES);
        TEE_DeriveKey(operation, &attribute, 1, derived);
    }
    TEE_FreeOperation(operation);
    return result;
}

static bool all_zero(const uint8_t *bytes, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++) {
        any |= bytes[i];
    }
    return any == 0;
}

TEE_Result cl_device_key_agree(TEE_ObjectHandle key, uint8_t *shared,
                               const uint8_t *peer)
{
    TEE_ObjectHandle derived = TEE_HANDLE_NULL;
    size_t size = CL_KEY_BYTES;
    TEE_Result result = TEE_AllocateTransientObject(TEE_TYPE_GENERIC_SECRET,
                                                    KEY_BITS, &derived);
    if (result != TEE_SUCCESS) {
        return result;
    }
    result = derive(key, derived, peer);
    if (result == TEE_SUCCESS) {
        result = TEE_GetObjectBufferAttribute(derived, TEE_ATTR_SECRET_VALUE,
                                              shared, &size);
    }
    if (result == TEE_SUCCESS && all_zero(shared, CL_KEY_BYTES)) {
        result = TEE_ERROR_ACCESS_DENIED;
    }
    TEE_FreeTransientObject(derived);
    return result;
}
