/* SPDX-License-Identifier: Apache-2.0
 *
 * An open content key, under whichever suite its bundle names.
 */
#ifndef CL_AEAD_H
#define CL_AEAD_H

#include <tee_internal_api.h>

#include "commands.h"

/* All zero while there is no key. */
typedef struct cl_aead {
    uint32_t suite;
    TEE_OperationHandle operation; /* CL_SUITE_AES_256_GCM */
    uint8_t key[CL_KEY_BYTES];     /* CL_SUITE_CHACHA20_POLY1305; SECRET */
} cl_aead;

/* Returns: whether there is such a suite. */
bool cl_aead_known(uint32_t suite);

/* Make a key ready for use.
 * Returns: TEE_ERROR_NOT_SUPPORTED if there is no such suite.
 * Out: aead: to be freed with cl_aead_free. In: key: 32 bytes. */
TEE_Result cl_aead_init(cl_aead *aead, uint32_t suite, const uint8_t *key);

/* Open n_bytes of ciphertext.
 * Returns: TEE_ERROR_MAC_INVALID if anything was changed; after any failure
 *          `to` is wiped.
 * Out: to: n_bytes of memory that only this side can write; may be `from`.
 * In: aead: has a key; from: may be shared memory; nonce: 12 bytes and tag: 16
 *     bytes of ours. */
TEE_Result cl_aead_open(const cl_aead *aead, uint8_t *to, const uint8_t *from,
                        size_t n_bytes, const uint8_t *tag,
                        const uint8_t *nonce, const void *aad,
                        size_t aad_bytes);

/* Wipe the key. In/Out: aead: then all zero. */
void cl_aead_free(cl_aead *aead);

#endif
