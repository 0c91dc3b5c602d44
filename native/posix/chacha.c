/* SPDX-License-Identifier: Apache-2.0 */
#include "chacha.h"

#include "decrypt.h"
#include "gp.h"

static EVP_CIPHER *chacha; /* fetched once, before system calls are filtered */

bool cl_chacha_open(void)
{
    chacha = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", NULL);
    return chacha != NULL;
}

TEE_Result cl_chacha20_poly1305_open(uint8_t *bytes, size_t n_bytes,
                                     const uint8_t *tag, const uint8_t *key,
                                     const uint8_t *nonce, const void *aad,
                                     size_t aad_bytes)
{
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    TEE_Result result = TEE_ERROR_OUT_OF_MEMORY;
    if (cipher != NULL) {
        bool ready =
            EVP_DecryptInit_ex2(cipher, chacha, key, nonce, NULL) == 1 &&
            cl_decrypt_aad(cipher, aad, aad_bytes);
        result = ready ? cl_decrypt_final(cipher, bytes, bytes, n_bytes, tag)
                       : TEE_ERROR_GENERIC;
    }
    EVP_CIPHER_CTX_free(cipher);
    return result;
}
