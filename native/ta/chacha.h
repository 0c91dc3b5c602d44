/* SPDX-License-Identifier: Apache-2.0
 *
 * ChaCha20-Poly1305 (RFC 8439). The GlobalPlatform API does not have it, so
 * each build brings its own implementation.
 */
#ifndef CL_CHACHA_H
#define CL_CHACHA_H

#include <tee_internal_api.h>

/* Open in place: n_bytes of ciphertext become plaintext. Nothing of
 * the key stays behind.
 * Returns: TEE_ERROR_MAC_INVALID if anything was changed, or another failure;
 *          then bytes may hold anything, and the caller wipes them.
 * In/Out: bytes: n_bytes, which may be 0, at any alignment.
 * In: tag: 16 bytes; key: 32 bytes; nonce: 12 bytes; aad: may be null if
 *     aad_bytes is 0. All of it is memory that only this side can write. */
TEE_Result cl_chacha20_poly1305_open(uint8_t *bytes, size_t n_bytes,
                                     const uint8_t *tag, const uint8_t *key,
                                     const uint8_t *nonce, const void *aad,
                                     size_t aad_bytes);

#endif
