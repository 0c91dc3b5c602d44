/* SPDX-License-Identifier: Apache-2.0
 *
 * What the implementation of the GlobalPlatform API keeps to itself.
 */
#ifndef CL_GP_H
#define CL_GP_H

#include <tee_internal_api.h>

#include "heap.h"

#define CL_MAX_KEY_BYTES 64u
#define CL_X25519_BYTES 32u

struct __TEE_ObjectHandle {
    TEE_ObjectType type;
    uint32_t max_bits;
    size_t secret_bytes; /* 0: not initialized */
    uint8_t secret[CL_MAX_KEY_BYTES];
    uint8_t public_value[CL_X25519_BYTES];
};

/* The heap of TEE_Malloc. */
extern cl_heap cl_ta_heap;

/* Make OpenSSL ready: its memory in a heap of its own, no configuration file,
 * all algorithms fetched. To be called before anything else of OpenSSL.
 * Returns: false if something is missing. */
bool cl_crypto_open(void);

/* Fetch ChaCha20-Poly1305, as a part of cl_crypto_open.
 * Returns: false if OpenSSL does not have it. */
bool cl_chacha_open(void);

/* Returns: whether OpenSSL's memory is locked and hidden. */
const cl_heap *cl_crypto_heap(void);

/* X25519. Out: public_value: 32 bytes. Returns: false if OpenSSL fails. */
bool cl_x25519_public(uint8_t *public_value, const uint8_t *private_value);

/* Open the folder of persistent objects, making it if it is not there. In:
 * folder: stays where it is until cl_storage_close.
 * Returns: null, or what is wrong with it, for people. */
const char *cl_storage_open(const char *folder);

/* No more objects will be opened or made. */
void cl_storage_close(void);

#endif
