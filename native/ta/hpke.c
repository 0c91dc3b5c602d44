/* SPDX-License-Identifier: Apache-2.0 */
#include "hpke.h"

#include "commands.h"
#include "crypto.h"
#include "device_key.h"

/* "KEM", DHKEM(X25519, HKDF-SHA256) */
static const uint8_t kem_suite[] = {'K', 'E', 'M', 0x00, 0x20};
/* "HPKE", the same, HKDF-SHA256, AES-256-GCM */
static const uint8_t suite[] = {'H',  'P',  'K',  'E',  0x00,
                                0x20, 0x00, 0x01, 0x00, 0x02};
/* An empty salt: HMAC pads its key with zeros to the block size. */
static const uint8_t no_salt[CL_HASH_BYTES];

#define PIECE(array) ((cl_piece){(array), sizeof(array)})
#define TEXT(string) ((cl_piece){(string), sizeof(string) - 1})
#define NOTHING ((cl_piece){NULL, 0})

/* Everything that must not stay behind. */
typedef struct schedule {
    uint8_t dh[CL_KEY_BYTES];
    uint8_t prk[CL_HASH_BYTES];
    uint8_t shared[CL_HASH_BYTES];
    uint8_t secret[CL_HASH_BYTES];
    uint8_t context[1 + 2 * CL_HASH_BYTES]; /* mode, psk_id_hash, info_hash */
    uint8_t key[CL_HASH_BYTES];
    uint8_t nonce[CL_HASH_BYTES]; /* the first 12 bytes count */
} schedule;

/* LabeledExtract. Out: prk: 32 bytes. In: salt: 32 bytes. */
static TEE_Result extract(uint8_t *prk, const uint8_t *salt, cl_piece id,
                          cl_piece label, cl_piece material)
{
    cl_piece pieces[] = {TEXT("HPKE-v1"), id, label, material};
    return cl_hmac(prk, salt, pieces, 4);
}

/* LabeledExpand for at most one hash length. Out: okm: 32 bytes, of which the
 * first `length` are the result. */
static TEE_Result expand(uint8_t *okm, uint8_t length, const uint8_t *prk,
                         cl_piece id, cl_piece label, cl_piece info_1,
                         cl_piece info_2)
{
    const uint8_t l[2] = {0, length};
    const uint8_t counter[1] = {1};
    cl_piece pieces[] = {PIECE(l), TEXT("HPKE-v1"), id,
                         label,    info_1,          info_2,
                         PIECE(counter)};
    return cl_hmac(okm, prk, pieces, 7);
}

/* Decap. Out: s->shared. */
static TEE_Result decapsulate(schedule *s, TEE_ObjectHandle key,
                              const uint8_t *enc)
{
    uint8_t public_key[CL_KEY_BYTES];
    TEE_Result result = cl_device_key_agree(key, s->dh, enc);
    if (result == TEE_SUCCESS) {
        result = cl_device_key_public(key, public_key);
    }
    if (result == TEE_SUCCESS) {
        result = extract(s->prk, no_salt, PIECE(kem_suite), TEXT("eae_prk"),
                         PIECE(s->dh));
    }
    if (result == TEE_SUCCESS) {
        result = expand(s->shared, CL_HASH_BYTES, s->prk, PIECE(kem_suite),
                        TEXT("shared_secret"), (cl_piece){enc, CL_KEY_BYTES},
                        PIECE(public_key));
    }
    return result;
}

/* The part of KeySchedule that depends on info only. */
static TEE_Result make_context(schedule *s, cl_piece info)
{
    s->context[0] = 0; /* base mode */
    TEE_Result result = extract(s->context + 1, no_salt, PIECE(suite),
                                TEXT("psk_id_hash"), NOTHING);
    if (result == TEE_SUCCESS) {
        result = extract(s->context + 1 + CL_HASH_BYTES, no_salt, PIECE(suite),
                         TEXT("info_hash"), info);
    }
    return result;
}

/* KeySchedule. Out: s->key, s->nonce. */
static TEE_Result make_keys(schedule *s, cl_piece info)
{
    TEE_Result result = make_context(s, info);
    if (result == TEE_SUCCESS) {
        result = extract(s->secret, s->shared, PIECE(suite), TEXT("secret"),
                         NOTHING);
    }
    if (result == TEE_SUCCESS) {
        result = expand(s->key, CL_KEY_BYTES, s->secret, PIECE(suite),
                        TEXT("key"), PIECE(s->context), NOTHING);
    }
    if (result == TEE_SUCCESS) {
        result = expand(s->nonce, CL_NONCE_BYTES, s->secret, PIECE(suite),
                        TEXT("base_nonce"), PIECE(s->context), NOTHING);
    }
    return result;
}

static TEE_Result open_message(const schedule *s, uint8_t *bytes,
                               size_t n_bytes, const uint8_t *tag)
{
    TEE_OperationHandle operation = TEE_HANDLE_NULL;
    TEE_Result result = cl_gcm_key(&operation, s->key);
    if (result == TEE_SUCCESS) {
        result = cl_gcm_open(operation, bytes, bytes, n_bytes, tag, s->nonce,
                             NULL, 0);
        TEE_FreeOperation(operation);
    }
    return result == TEE_ERROR_MAC_INVALID ? TEE_ERROR_ACCESS_DENIED : result;
}

TEE_Result cl_hpke_open(TEE_ObjectHandle key, uint8_t *bytes, size_t n_bytes,
                        const uint8_t *tag, const uint8_t *enc,
                        const void *info, size_t info_bytes)
{
    schedule s;
    TEE_Result result = decapsulate(&s, key, enc);
    if (result == TEE_SUCCESS) {
        result = make_keys(&s, (cl_piece){info, info_bytes});
    }
    if (result == TEE_SUCCESS) {
        result = open_message(&s, bytes, n_bytes, tag);
    }
    if (result != TEE_SUCCESS) {
        TEE_MemFill(bytes, 0, n_bytes);
    }
    TEE_MemFill(&s, 0, sizeof s);
    return result;
}
