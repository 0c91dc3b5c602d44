/* SPDX-License-Identifier: Apache-2.0
 *
 * Authenticated decryption with OpenSSL, whichever the cipher.
 */
#ifndef CL_DECRYPT_H
#define CL_DECRYPT_H

#include <openssl/evp.h>
#include <tee_internal_api.h>

#define CL_DECRYPT_TAG_BYTES 16

/* Give additional data. In/Out: cipher: has key and nonce, nothing else yet.
 * Returns: false if OpenSSL fails. */
bool cl_decrypt_aad(EVP_CIPHER_CTX *cipher, const void *aad, size_t n_bytes);

/* Decrypt some. Each byte of `from` is read once.
 * Out: to: n_bytes; may be `from`.
 * Returns: false if OpenSSL fails. */
bool cl_decrypt_part(EVP_CIPHER_CTX *cipher, uint8_t *to, const uint8_t *from,
                     size_t n_bytes);

/* Decrypt what is left and check the tag.
 * Returns: TEE_ERROR_MAC_INVALID if anything was changed; after any failure
 *          `to` is wiped.
 * Out: to: n_bytes; may be `from`. In: tag: 16 bytes. */
TEE_Result cl_decrypt_final(EVP_CIPHER_CTX *cipher, uint8_t *to,
                            const uint8_t *from, size_t n_bytes,
                            const uint8_t *tag);

#endif
