/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening what was sealed with HPKE (RFC 9180), base mode, suite
 * DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, one message.
 */
#ifndef CL_HPKE_H
#define CL_HPKE_H

#include <tee_internal_api.h>

/* Open in place.
 * Returns: TEE_ERROR_ACCESS_DENIED if it does not open; bytes are then wiped.
 * In/Out: bytes: n_bytes of ciphertext, then plaintext (SECRET).
 * In: key: the device's; enc: 32 bytes; tag: 16 bytes. `aad` is empty. */
TEE_Result cl_hpke_open(TEE_ObjectHandle key, uint8_t *bytes, size_t n_bytes,
                        const uint8_t *tag, const uint8_t *enc,
                        const void *info, size_t info_bytes);

#endif
