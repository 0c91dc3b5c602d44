/* SPDX-License-Identifier: Apache-2.0
 *
 * Decryption with AES-256-GCM, by one of two libraries: Intel's Multi-Buffer
 * Crypto for IPsec where the build found it, OpenSSL otherwise. Before 3.1 the
 * latter knows no vectors of AES instructions, and takes over twice as long.
 *
 * The order of calls: key once; then for each message start, aad at most once,
 * part any number of times, final.
 */
#ifndef CL_AES_GCM_H
#define CL_AES_GCM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tee_internal_api.h>

#define CL_AES_GCM_NONCE_BYTES 12
#define CL_AES_GCM_TAG_BYTES 16

typedef struct cl_aes_gcm cl_aes_gcm;

/* Get ready, before system calls are filtered. Returns: false if it fails. */
bool cl_aes_gcm_open(void);

/* Returns: null without memory. */
cl_aes_gcm *cl_aes_gcm_new(void);

/* Wipes the key. In/out: gcm: may be null. */
void cl_aes_gcm_free(cl_aes_gcm *gcm);

/* These return false if the library fails. In: key: 32 bytes; nonce: 12. */
bool cl_aes_gcm_key(cl_aes_gcm *gcm, const uint8_t *key);
bool cl_aes_gcm_start(cl_aes_gcm *gcm, const uint8_t *nonce);
bool cl_aes_gcm_aad(cl_aes_gcm *gcm, const void *aad, size_t n_bytes);

/* Decrypt some. Each byte of `from` is read once.
 * Out: to: n_bytes; may be `from`. */
bool cl_aes_gcm_part(cl_aes_gcm *gcm, uint8_t *to, const uint8_t *from,
                     size_t n_bytes);

/* Decrypt what is left and check the tag.
 * Returns: TEE_ERROR_MAC_INVALID if anything was changed; after any failure
 *          `to` is wiped.
 * Out: to: n_bytes; may be `from`. In: tag: 16 bytes. */
TEE_Result cl_aes_gcm_final(cl_aes_gcm *gcm, uint8_t *to, const uint8_t *from,
                            size_t n_bytes, const uint8_t *tag);

#endif
