/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening the parts of a bundle under its content key (docs/spec/bundle.md).
 * Sealed bytes lie in shared memory and may change at any time: each is read
 * once, and what is opened is what was authenticated.
 */
#ifndef CL_UNSEAL_H
#define CL_UNSEAL_H

#include <tee_internal_api.h>

#include "aead.h"
#include "commands.h"

/* What binds the slices of one bundle, all but the index. */
typedef struct cl_slice_binding {
    uint8_t bytes[16 + CL_BUNDLE_ID_BYTES + CL_HASH_BYTES + 8];
} cl_slice_binding;

/* Open the content key.
 * Returns: TEE_ERROR_ACCESS_DENIED if it is not for this device, or changed;
 *          TEE_ERROR_NOT_SUPPORTED if there is no such suite.
 * Out: openers: n times the content key under the request's suite, each to be
 *      freed, also after a failure.
 * In:  request: the load request, CL_LOAD_BYTES, copied in. */
TEE_Result cl_unseal_key(cl_aead *openers, uint32_t n,
                         TEE_ObjectHandle device_key, const uint8_t *request);

/* Copy in and open the program.
 * Returns: TEE_ERROR_MAC_INVALID if it was changed.
 * Out: program: sealed_bytes - CL_TAG_BYTES.
 * In:  request: as above; sealed: shared, sealed_bytes >= CL_TAG_BYTES. */
TEE_Result cl_unseal_program(const cl_aead *opener, uint8_t *program,
                             const uint8_t *request, const uint8_t *sealed,
                             size_t sealed_bytes);

/* Out: binding. In: program_hash: SHA-256 of the open program. */
void cl_slice_binding_init(cl_slice_binding *binding, const uint8_t *request,
                           const uint8_t *program_hash, uint32_t n_slices);

/* Copy in and open one slice.
 * Returns: TEE_ERROR_MAC_INVALID if it was changed; then slice is wiped.
 * Out: slice: n_bytes; SECRET. In: sealed: shared, n_bytes + CL_TAG_BYTES. */
TEE_Result cl_unseal_slice(const cl_aead *opener,
                           const cl_slice_binding *binding, uint8_t *slice,
                           uint32_t index, const uint8_t *sealed,
                           size_t n_bytes);

#endif
