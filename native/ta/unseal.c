/* SPDX-License-Identifier: Apache-2.0 */
#include "unseal.h"

#include "bytes.h"
#include "hpke.h"

#define PROGRAM_NONCE 0xFFFFFFFFu

static const char info_text[] = "cloister-bundle-1";
static const char program_text[] = "cloister-program-1";
static const char slice_text[] = "cloister-slice-1";

#define TEXT_BYTES(text) (sizeof(text) - 1)
#define INFO_BYTES \
    (TEXT_BYTES(info_text) + CL_BUNDLE_ID_BYTES + CL_SUITE_BYTES)
#define INDEX_AT (sizeof((cl_slice_binding *)0)->bytes - 8)

_Static_assert(TEXT_BYTES(slice_text) == 16, "as cl_slice_binding has it");

/* What the content key is bound to. Out: info: INFO_BYTES. */
static void bind_key(uint8_t *info, const uint8_t *request)
{
    TEE_MemMove(info, info_text, TEXT_BYTES(info_text));
    info += TEXT_BYTES(info_text);
    TEE_MemMove(info, request + CL_LOAD_BUNDLE_ID, CL_BUNDLE_ID_BYTES);
    info += CL_BUNDLE_ID_BYTES;
    TEE_MemMove(info, request + CL_LOAD_SUITE, CL_SUITE_BYTES);
}

TEE_Result cl_unseal_key(cl_aead *openers, uint32_t n,
                         TEE_ObjectHandle device_key, const uint8_t *request)
{
    uint8_t info[INFO_BYTES];
    uint8_t key[CL_KEY_BYTES];
    const uint8_t *sealed = request + CL_LOAD_SEALED_KEY;
    uint32_t suite = cl_load_u32(request + CL_LOAD_SUITE);
    if (!cl_aead_known(suite)) {
        return TEE_ERROR_NOT_SUPPORTED;
    }
    bind_key(info, request);
    TEE_MemMove(key, sealed, sizeof key);
    TEE_Result result =
        cl_hpke_open(device_key, key, sizeof key, sealed + CL_KEY_BYTES,
                     request + CL_LOAD_ENC, info, sizeof info);
    for (uint32_t i = 0; i < n && result == TEE_SUCCESS; i++) {
        result = cl_aead_init(&openers[i], suite, key);
    }
    TEE_MemFill(key, 0, sizeof key);
    return result;
}

/* Open under nonce `number`. */
static TEE_Result open_part(const cl_aead *opener, uint8_t *to,
                            uint32_t number, const uint8_t *sealed,
                            size_t n_bytes, const void *aad, size_t aad_bytes)
{
    uint8_t nonce[CL_NONCE_BYTES] = {0};
    uint8_t tag[CL_TAG_BYTES];
    cl_store_u32(nonce, number);
    TEE_MemMove(tag, sealed + n_bytes, sizeof tag);
    return cl_aead_open(opener, to, sealed, n_bytes, tag, nonce, aad,
                        aad_bytes);
}

TEE_Result cl_unseal_program(const cl_aead *opener, uint8_t *program,
                             const uint8_t *request, const uint8_t *sealed,
                             size_t sealed_bytes)
{
    /* Bundle id and manifest hash lie side by side in the request. */
    enum { BOUND = CL_BUNDLE_ID_BYTES + CL_HASH_BYTES };
    uint8_t aad[TEXT_BYTES(program_text) + BOUND];
    TEE_MemMove(aad, program_text, TEXT_BYTES(program_text));
    TEE_MemMove(aad + TEXT_BYTES(program_text), request + CL_LOAD_BUNDLE_ID,
                BOUND);
    return open_part(opener, program, PROGRAM_NONCE, sealed,
                     sealed_bytes - CL_TAG_BYTES, aad, sizeof aad);
}

void cl_slice_binding_init(cl_slice_binding *binding, const uint8_t *request,
                           const uint8_t *program_hash, uint32_t n_slices)
{
    uint8_t *at = binding->bytes;
    TEE_MemMove(at, slice_text, TEXT_BYTES(slice_text));
    at += TEXT_BYTES(slice_text);
    TEE_MemMove(at, request + CL_LOAD_BUNDLE_ID, CL_BUNDLE_ID_BYTES);
    at += CL_BUNDLE_ID_BYTES;
    TEE_MemMove(at, program_hash, CL_HASH_BYTES);
    cl_store_u32(binding->bytes + INDEX_AT, 0);
    cl_store_u32(binding->bytes + INDEX_AT + 4, n_slices);
}

TEE_Result cl_unseal_slice(const cl_aead *opener,
                           const cl_slice_binding *binding, uint8_t *slice,
                           uint32_t index, const uint8_t *sealed,
                           size_t n_bytes)
{
    cl_slice_binding bound = *binding;
    cl_store_u32(bound.bytes + INDEX_AT, index);
    return open_part(opener, slice, index, sealed, n_bytes, bound.bytes,
                     sizeof bound.bytes);
}
