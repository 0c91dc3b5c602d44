/* SPDX-License-Identifier: Apache-2.0
 *
 * The device's X25519 key: made inside at the first start, kept in the trusted
 * storage, never given out.
 */
#ifndef CL_DEVICE_KEY_H
#define CL_DEVICE_KEY_H

#include <tee_internal_api.h>

/* Open the key; make it first if there is none.
 * Out: key: to be closed with TEE_CloseObject; SECRET. */
TEE_Result cl_device_key_open(TEE_ObjectHandle *key);

/* Out: public_key: 32 bytes. */
TEE_Result cl_device_key_public(TEE_ObjectHandle key, uint8_t *public_key);

/* X25519 with a peer's public key.
 * Returns: TEE_ERROR_ACCESS_DENIED if the result is all zeros, that is, if the
 *          peer's point is of small order.
 * Out: shared: 32 bytes, SECRET. In: peer: 32 bytes. */
TEE_Result cl_device_key_agree(TEE_ObjectHandle key, uint8_t *shared,
                               const uint8_t *peer);

#endif
