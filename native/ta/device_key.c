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

/* The points of small order: for them X25519 gives zero, and OP-TEE ends the
 * whole trusted application instead of saying so. Their highest bit does not
 * count. */
static const uint8_t small_order[][CL_KEY_BYTES] = {
    {0},
    {1},
    {0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3,
     0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32,
     0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00},
    {0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1,
     0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c,
     0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57},
};

/* p - 1, p and p + 1 for p = 2^255 - 19 are the rest of them. */
static bool is_near_p(const uint8_t *point)
{
    bool ones = (point[CL_KEY_BYTES - 1] | 0x80) == 0xff;
    for (size_t i = 1; i < CL_KEY_BYTES - 1; i++) {
        ones = ones && point[i] == 0xff;
    }
    return ones && point[0] >= 0xec && point[0] <= 0xee;
}

static bool has_small_order(const uint8_t *peer)
{
    uint8_t point[CL_KEY_BYTES];
    bool found = is_near_p(peer);
    TEE_MemMove(point, peer, sizeof point);
    point[CL_KEY_BYTES - 1] &= 0x7f;
    for (size_t i = 0; i < sizeof small_order / sizeof small_order[0]; i++) {
        found = found ||
                TEE_MemCompare(point, small_order[i], sizeof point) == 0;
    }
    return found;
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
    if (has_small_order(peer)) {
        return TEE_ERROR_ACCESS_DENIED;
    }
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
