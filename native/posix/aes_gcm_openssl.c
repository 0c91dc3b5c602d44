/* SPDX-License-Identifier: Apache-2.0 */
#include <openssl/crypto.h>

#include "aes_gcm.h"
#include "decrypt.h"

struct cl_aes_gcm {
    EVP_CIPHER_CTX *context;
};

static EVP_CIPHER *cipher;

bool cl_aes_gcm_open(void)
{
    cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    return cipher != NULL;
}

cl_aes_gcm *cl_aes_gcm_new(void)
{
    cl_aes_gcm *gcm = OPENSSL_zalloc(sizeof *gcm);
    if (gcm != NULL) {
        gcm->context = EVP_CIPHER_CTX_new();
    }
    if (gcm != NULL && gcm->context == NULL) {
        OPENSSL_free(gcm);
        return NULL;
    }
    return gcm;
}

void cl_aes_gcm_free(cl_aes_gcm *gcm)
{
    if (gcm != NULL) {
        EVP_CIPHER_CTX_free(gcm->context);
        OPENSSL_free(gcm);
    }
}

bool cl_aes_gcm_key(cl_aes_gcm *gcm, const uint8_t *key)
{
    return EVP_DecryptInit_ex2(gcm->context, cipher, key, NULL, NULL) == 1;
}

bool cl_aes_gcm_start(cl_aes_gcm *gcm, const uint8_t *nonce)
{
    return EVP_DecryptInit_ex2(gcm->context, NULL, NULL, nonce, NULL) == 1;
}

bool cl_aes_gcm_aad(cl_aes_gcm *gcm, const void *aad, size_t n_bytes)
{
    return cl_decrypt_aad(gcm->context, aad, n_bytes);
}

bool cl_aes_gcm_part(cl_aes_gcm *gcm, uint8_t *to, const uint8_t *from,
                     size_t n_bytes)
{
    return cl_decrypt_part(gcm->context, to, from, n_bytes);
}

TEE_Result cl_aes_gcm_final(cl_aes_gcm *gcm, uint8_t *to, const uint8_t *from,
                            size_t n_bytes, const uint8_t *tag)
{
    return cl_decrypt_final(gcm->context, to, from, n_bytes, tag);
}
