/* SPDX-License-Identifier: Apache-2.0
 *
 * ChaCha20-Poly1305 with Mbed TLS: the dev kit's library, or the same compiled
 * for speed (see the Makefile).
 */
#include "chacha.h"

#include <mbedtls/chachapoly.h>

TEE_Result cl_chacha20_poly1305_open(uint8_t *bytes, size_t n_bytes,
                                     const uint8_t *tag, const uint8_t *key,
                                     const uint8_t *nonce, const void *aad,
                                     size_t aad_bytes)
{
    mbedtls_chachapoly_context context;
    mbedtls_chachapoly_init(&context);
    int failed = mbedtls_chachapoly_setkey(&context, key);
    if (failed == 0) {
        failed = mbedtls_chachapoly_auth_decrypt(
            &context, n_bytes, nonce, aad, aad_bytes, tag, bytes, bytes);
    }
    mbedtls_chachapoly_free(&context);
    return failed == 0 ? TEE_SUCCESS : TEE_ERROR_MAC_INVALID;
}
