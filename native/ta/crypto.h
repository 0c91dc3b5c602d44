/* SPDX-License-Identifier: Apache-2.0
 *
 * Short forms of the GlobalPlatform operations that are needed here.
 */
#ifndef CL_CRYPTO_H
#define CL_CRYPTO_H

#include <tee_internal_api.h>

/* A part of a message. */
typedef struct cl_piece {
    const void *at;
    size_t n_bytes;
} cl_piece;

/* An AES-256-GCM key ready for use.
 * Out: operation: to be freed with TEE_FreeOperation. In: key: 32 bytes. */
TEE_Result cl_gcm_key(TEE_OperationHandle *operation, const uint8_t *key);

/* Open n_bytes of ciphertext.
 * Returns: TEE_ERROR_MAC_INVALID if anything was changed; then `to` is wiped.
 * Out: to: n_bytes of memory that only this side can write; may be `from`.
 * In: from: may be shared memory; nonce: 12 bytes and tag: 16 bytes of ours. */
TEE_Result cl_gcm_open(TEE_OperationHandle operation, uint8_t *to,
                       const uint8_t *from, size_t n_bytes, const uint8_t *tag,
                       const uint8_t *nonce, const void *aad,
                       size_t aad_bytes);

/* Out: hash: 32 bytes. */
TEE_Result cl_sha256(uint8_t *hash, const void *bytes, size_t n_bytes);

/* HMAC-SHA256 over pieces, one behind the other.
 * Out: mac: 32 bytes. In: key: 32 bytes. */
TEE_Result cl_hmac(uint8_t *mac, const uint8_t *key, const cl_piece *pieces,
                   size_t n_pieces);

#endif
