/* SPDX-License-Identifier: Apache-2.0
 *
 * Transient objects: keys in the heap.
 */
#include <openssl/rand.h>
#include <string.h>

#include "gp.h"

static uint32_t size_limit(TEE_ObjectType type)
{
    switch (type) {
    case TEE_TYPE_AES:
    case TEE_TYPE_X25519_KEYPAIR:
        return 256;
    case TEE_TYPE_HMAC_SHA256:
    case TEE_TYPE_GENERIC_SECRET:
        return 8 * CL_MAX_KEY_BYTES;
    default:
        return 0;
    }
}

TEE_Result TEE_AllocateTransientObject(TEE_ObjectType objectType,
                                       uint32_t maxObjectSize,
                                       TEE_ObjectHandle *object)
{
    if (maxObjectSize == 0 || maxObjectSize > size_limit(objectType)) {
        return TEE_ERROR_NOT_SUPPORTED;
    }
    *object = TEE_Malloc(sizeof **object, TEE_MALLOC_FILL_ZERO);
    if (*object == NULL) {
        return TEE_ERROR_OUT_OF_MEMORY;
    }
    (*object)->type = objectType;
    (*object)->max_bits = maxObjectSize;
    return TEE_SUCCESS;
}

void TEE_FreeTransientObject(TEE_ObjectHandle object)
{
    TEE_Free(object); /* wipes */
}

void TEE_CloseObject(TEE_ObjectHandle object)
{
    TEE_Free(object);
}

void TEE_InitRefAttribute(TEE_Attribute *attr, uint32_t attributeID,
                          const void *buffer, size_t length)
{
    attr->attributeID = attributeID;
    memcpy(&attr->content.ref.buffer, &buffer, sizeof buffer);
    attr->content.ref.length = length;
}

TEE_Result TEE_PopulateTransientObject(TEE_ObjectHandle object,
                                       const TEE_Attribute *attrs,
                                       uint32_t attrCount)
{
    if (object->secret_bytes != 0) {
        return TEE_ERROR_BAD_STATE;
    }
    if (attrCount != 1 || attrs[0].attributeID != TEE_ATTR_SECRET_VALUE ||
        object->type == TEE_TYPE_X25519_KEYPAIR ||
        attrs[0].content.ref.length == 0 ||
        attrs[0].content.ref.length > object->max_bits / 8) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    object->secret_bytes = attrs[0].content.ref.length;
    memcpy(object->secret, attrs[0].content.ref.buffer, object->secret_bytes);
    return TEE_SUCCESS;
}

TEE_Result TEE_GenerateKey(TEE_ObjectHandle object, uint32_t keySize,
                           const TEE_Attribute *params, uint32_t paramCount)
{
    (void)params;
    if (object->type != TEE_TYPE_X25519_KEYPAIR || keySize != 256 ||
        paramCount != 0 || object->secret_bytes != 0) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    if (RAND_priv_bytes(object->secret, CL_X25519_BYTES) != 1 ||
        !cl_x25519_public(object->public_value, object->secret)) {
        return TEE_ERROR_GENERIC;
    }
    object->secret_bytes = CL_X25519_BYTES;
    return TEE_SUCCESS;
}

TEE_Result TEE_GetObjectBufferAttribute(TEE_ObjectHandle object,
                                        uint32_t attributeID, void *buffer,
                                        size_t *size)
{
    const uint8_t *from = object->secret;
    size_t n_bytes = object->secret_bytes;
    if (object->type == TEE_TYPE_X25519_KEYPAIR &&
        attributeID == TEE_ATTR_X25519_PUBLIC_VALUE) {
        from = object->public_value;
    } else if (object->type != TEE_TYPE_GENERIC_SECRET ||
               attributeID != TEE_ATTR_SECRET_VALUE) {
        return TEE_ERROR_ACCESS_DENIED; /* no other part is for giving out */
    }
    if (n_bytes == 0) {
        return TEE_ERROR_ITEM_NOT_FOUND;
    }
    if (*size < n_bytes) {
        *size = n_bytes;
        return TEE_ERROR_SHORT_BUFFER;
    }
    memcpy(buffer, from, n_bytes);
    *size = n_bytes;
    return TEE_SUCCESS;
}
