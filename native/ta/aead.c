/* SPDX-License-Identifier: Apache-2.0 */
#include "aead.h"

#include "chacha.h"
#include "crypto.h"

bool cl_aead_known(uint32_t suite)
{
    return suite == CL_SUITE_AES_256_GCM ||
           suite == CL_SUITE_CHACHA20_POLY1305;
}

TEE_Result cl_aead_init(cl_aead *aead, uint32_t suite, const uint8_t *key)
{
    TEE_Result result = TEE_SUCCESS;
    *aead = (cl_aead){.suite = suite};
    switch (suite) {
    case CL_SUITE_AES_256_GCM:
        result = cl_gcm_key(&aead->operation, key);
        break;
    case CL_SUITE_CHACHA20_POLY1305:
        TEE_MemMove(aead->key, key, sizeof aead->key);
        break;
    default:
        result = TEE_ERROR_NOT_SUPPORTED;
    }
    if (result != TEE_SUCCESS) {
        *aead = (cl_aead){0};
    }
    return result;
}

TEE_Result cl_aead_open(const cl_aead *aead, uint8_t *to, const uint8_t *from,
                        size_t n_bytes, const uint8_t *tag,
                        const uint8_t *nonce, const void *aad,
                        size_t aad_bytes)
{
    if (aead->suite == CL_SUITE_AES_256_GCM) {
        return cl_gcm_open(aead->operation, to, from, n_bytes, tag, nonce, aad,
                           aad_bytes);
    }
    TEE_MemMove(to, from, n_bytes);
    TEE_Result result = cl_chacha20_poly1305_open(to, n_bytes, tag, aead->key,
                                                  nonce, aad, aad_bytes);
    if (result != TEE_SUCCESS) {
        TEE_MemFill(to, 0, n_bytes);
    }
    return result;
}

void cl_aead_free(cl_aead *aead)
{
    if (aead->operation != TEE_HANDLE_NULL) {
        TEE_FreeOperation(aead->operation);
    }
    TEE_MemFill(aead, 0, sizeof *aead);
}
