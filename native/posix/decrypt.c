/* SPDX-License-Identifier: Apache-2.0 */
#include "decrypt.h"

#include <limits.h>
#include <string.h>

#include "piece.h"

bool cl_decrypt_aad(EVP_CIPHER_CTX *cipher, const void *aad, size_t n_bytes)
{
    int written = 0;
    return n_bytes <= INT_MAX && EVP_DecryptUpdate(cipher, NULL, &written, aad,
                                                   (int)n_bytes) == 1;
}

bool cl_decrypt_part(EVP_CIPHER_CTX *cipher, uint8_t *to, const uint8_t *from,
                     size_t n_bytes)
{
    while (n_bytes != 0) {
        const uint8_t *piece = NULL;
        size_t n = cl_take_piece(&piece, from, n_bytes);
        int written = 0;
        if (EVP_DecryptUpdate(cipher, to, &written, piece, (int)n) != 1) {
            return false;
        }
        to += n;
        from += n;
        n_bytes -= n;
    }
    return true;
}

static bool set_tag(EVP_CIPHER_CTX *cipher, const uint8_t *tag)
{
    uint8_t expected[CL_DECRYPT_TAG_BYTES];
    memcpy(expected, tag, sizeof expected);
    return EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG,
                               CL_DECRYPT_TAG_BYTES, expected) == 1;
}

TEE_Result cl_decrypt_final(EVP_CIPHER_CTX *cipher, uint8_t *to,
                            const uint8_t *from, size_t n_bytes,
                            const uint8_t *tag)
{
    uint8_t rest[CL_DECRYPT_TAG_BYTES];
    int written = 0;
    TEE_Result result = TEE_SUCCESS;
    if (!cl_decrypt_part(cipher, to, from, n_bytes) || !set_tag(cipher, tag)) {
        result = TEE_ERROR_GENERIC;
    } else if (EVP_DecryptFinal_ex(cipher, rest, &written) != 1) {
        result = TEE_ERROR_MAC_INVALID;
    }
    if (result != TEE_SUCCESS) {
        TEE_MemFill(to, 0, n_bytes);
    }
    return result;
}
