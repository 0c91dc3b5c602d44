/* SPDX-License-Identifier: Apache-2.0
 *
 * Cryptographic operations of the API, done by OpenSSL.
 */
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <string.h>

#include "aes_gcm.h"
#include "gp.h"

#define OPENSSL_HEAP_BYTES ((size_t)2 << 20)

struct __TEE_OperationHandle {
    uint32_t algorithm;
    uint32_t mode;
    uint32_t max_bits;
    size_t key_bytes; /* 0: no key yet */
    uint8_t key[CL_MAX_KEY_BYTES];
    bool failed; /* a step failed that cannot say so; the last one does */
    bool active; /* decryption has begun */
    EVP_MD_CTX *digest;
    EVP_MAC_CTX *mac;
    cl_aes_gcm *gcm;
};

/* OpenSSL's own things, made once, before system calls are filtered. */
static struct {
    cl_heap heap;
    EVP_MD *sha256;
    EVP_MAC *hmac;
} crypto;

/* ---- OpenSSL's memory -------------------------------------------------- */

/* Both threads use OpenSSL. */
static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

static void *crypto_get(size_t n_bytes, const char *file, int line)
{
    (void)file;
    (void)line;
    (void)pthread_mutex_lock(&heap_lock);
    void *at = cl_heap_get(&crypto.heap, n_bytes);
    (void)pthread_mutex_unlock(&heap_lock);
    return at;
}

static void crypto_put(void *at, const char *file, int line)
{
    (void)file;
    (void)line;
    (void)pthread_mutex_lock(&heap_lock);
    cl_heap_put(&crypto.heap, at);
    (void)pthread_mutex_unlock(&heap_lock);
}

static void *crypto_resize(void *at, size_t n_bytes, const char *file,
                           int line)
{
    if (at != NULL && n_bytes != 0 && n_bytes <= cl_heap_size(at)) {
        return at;
    }
    void *fresh = n_bytes != 0 ? crypto_get(n_bytes, file, line) : NULL;
    if (fresh != NULL && at != NULL) {
        memcpy(fresh, at, cl_heap_size(at));
    }
    if (fresh != NULL || n_bytes == 0) {
        crypto_put(at, file, line);
    }
    return fresh;
}

const cl_heap *cl_crypto_heap(void)
{
    return &crypto.heap;
}

/* ---- X25519 ------------------------------------------------------------ */

static EVP_PKEY *private_key(const uint8_t *private_value)
{
    return EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, NULL, private_value,
                                        CL_X25519_BYTES);
}

bool cl_x25519_public(uint8_t *public_value, const uint8_t *private_value)
{
    size_t n_bytes = CL_X25519_BYTES;
    EVP_PKEY *key = private_key(private_value);
    bool good = key != NULL &&
                EVP_PKEY_get_raw_public_key(key, public_value, &n_bytes) == 1;
    EVP_PKEY_free(key);
    return good;
}

/* OpenSSL refuses points of small order: then shared is left alone. */
static bool agree(uint8_t *shared, const uint8_t *private_value,
                  const uint8_t *peer_value)
{
    size_t n_bytes = CL_X25519_BYTES;
    EVP_PKEY *key = private_key(private_value);
    EVP_PKEY *peer = EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL,
                                                 peer_value, CL_X25519_BYTES);
    EVP_PKEY_CTX *context = key != NULL ? EVP_PKEY_CTX_new(key, NULL) : NULL;
    bool good = context != NULL && peer != NULL &&
                EVP_PKEY_derive_init(context) == 1 &&
                EVP_PKEY_derive_set_peer(context, peer) == 1 &&
                EVP_PKEY_derive(context, shared, &n_bytes) == 1;
    EVP_PKEY_CTX_free(context);
    EVP_PKEY_free(peer);
    EVP_PKEY_free(key);
    return good;
}

/* ---- Start ------------------------------------------------------------- */

/* Use everything once, so that nothing has to be found or opened later. */
static bool rehearse(void)
{
    static const uint8_t one[CL_X25519_BYTES] = {1};
    static const uint8_t base_point[CL_X25519_BYTES] = {9};
    uint8_t out[CL_X25519_BYTES];
    size_t n_bytes = 0;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST,
                                         (char[]){"SHA256"}, 0),
        OSSL_PARAM_construct_end(),
    };
    EVP_MAC_CTX *mac = EVP_MAC_CTX_new(crypto.hmac);
    bool good = mac != NULL &&
                EVP_MAC_init(mac, one, sizeof one, params) == 1 &&
                EVP_MAC_final(mac, out, &n_bytes, sizeof out) == 1 &&
                agree(out, one, base_point);
    EVP_MAC_CTX_free(mac);
    return good;
}

bool cl_crypto_open(void)
{
    if (crypto.heap.start != NULL) {
        return true;
    }
    if (!cl_heap_open(&crypto.heap, OPENSSL_HEAP_BYTES) ||
        CRYPTO_set_mem_functions(crypto_get, crypto_resize, crypto_put) != 1 ||
        OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL) != 1) {
        return false;
    }
    crypto.sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    crypto.hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    return crypto.sha256 != NULL && crypto.hmac != NULL &&
           cl_aes_gcm_open() && cl_chacha_open() && rehearse();
}

/* ---- Operations -------------------------------------------------------- */

/* Whether an algorithm is known and goes with the mode and key size. */
static bool is_known(uint32_t algorithm, uint32_t mode, uint32_t bits)
{
    switch (algorithm) {
    case TEE_ALG_SHA256:
        return mode == TEE_MODE_DIGEST && bits == 0;
    case TEE_ALG_HMAC_SHA256:
        return mode == TEE_MODE_MAC && bits >= 192 && bits <= 512;
    case TEE_ALG_AES_GCM:
        return mode == TEE_MODE_DECRYPT && bits == 256;
    case TEE_ALG_X25519:
        return mode == TEE_MODE_DERIVE && bits == 256;
    default:
        return false;
    }
}

static bool make_context(TEE_OperationHandle operation)
{
    switch (operation->algorithm) {
    case TEE_ALG_SHA256:
        operation->digest = EVP_MD_CTX_new();
        return operation->digest != NULL &&
               EVP_DigestInit_ex2(operation->digest, crypto.sha256, NULL) == 1;
    case TEE_ALG_HMAC_SHA256:
        operation->mac = EVP_MAC_CTX_new(crypto.hmac);
        return operation->mac != NULL;
    case TEE_ALG_AES_GCM:
        operation->gcm = cl_aes_gcm_new();
        return operation->gcm != NULL;
    default:
        return true;
    }
}

TEE_Result TEE_AllocateOperation(TEE_OperationHandle *operation,
                                 uint32_t algorithm, uint32_t mode,
                                 uint32_t maxKeySize)
{
    *operation = TEE_HANDLE_NULL;
    if (!is_known(algorithm, mode, maxKeySize)) {
        return TEE_ERROR_NOT_SUPPORTED;
    }
    TEE_OperationHandle fresh = TEE_Malloc(sizeof *fresh, TEE_MALLOC_FILL_ZERO);
    if (fresh == NULL) {
        return TEE_ERROR_OUT_OF_MEMORY;
    }
    fresh->algorithm = algorithm;
    fresh->mode = mode;
    fresh->max_bits = maxKeySize;
    if (!make_context(fresh)) {
        TEE_FreeOperation(fresh);
        return TEE_ERROR_OUT_OF_MEMORY;
    }
    *operation = fresh;
    return TEE_SUCCESS;
}

void TEE_FreeOperation(TEE_OperationHandle operation)
{
    if (operation != TEE_HANDLE_NULL) {
        EVP_MD_CTX_free(operation->digest);
        EVP_MAC_CTX_free(operation->mac);
        cl_aes_gcm_free(operation->gcm);
        TEE_Free(operation);
    }
}

static bool key_fits(uint32_t algorithm, TEE_ObjectType type)
{
    return (algorithm == TEE_ALG_AES_GCM && type == TEE_TYPE_AES) ||
           (algorithm == TEE_ALG_HMAC_SHA256 &&
            type == TEE_TYPE_HMAC_SHA256) ||
           (algorithm == TEE_ALG_X25519 && type == TEE_TYPE_X25519_KEYPAIR);
}

TEE_Result TEE_SetOperationKey(TEE_OperationHandle operation,
                               TEE_ObjectHandle key)
{
    if (!key_fits(operation->algorithm, key->type) ||
        key->secret_bytes == 0 ||
        8 * key->secret_bytes > operation->max_bits) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    memcpy(operation->key, key->secret, key->secret_bytes);
    operation->key_bytes = key->secret_bytes;
    if (operation->gcm != NULL &&
        !cl_aes_gcm_key(operation->gcm, operation->key)) {
        return TEE_ERROR_GENERIC;
    }
    return TEE_SUCCESS;
}

/* ---- Digest, MAC ------------------------------------------------------- */

void TEE_DigestUpdate(TEE_OperationHandle operation, const void *chunk,
                      size_t chunkSize)
{
    if (EVP_DigestUpdate(operation->digest, chunk, chunkSize) != 1) {
        operation->failed = true;
    }
}

TEE_Result TEE_DigestDoFinal(TEE_OperationHandle operation, const void *chunk,
                             size_t chunkLen, void *hash, size_t *hashLen)
{
    unsigned written = 0;
    if (*hashLen < 32) {
        *hashLen = 32;
        return TEE_ERROR_SHORT_BUFFER;
    }
    TEE_DigestUpdate(operation, chunk, chunkLen);
    if (operation->failed ||
        EVP_DigestFinal_ex(operation->digest, hash, &written) != 1) {
        return TEE_ERROR_GENERIC;
    }
    *hashLen = written;
    operation->failed =
        EVP_DigestInit_ex2(operation->digest, crypto.sha256, NULL) != 1;
    return TEE_SUCCESS;
}

void TEE_MACInit(TEE_OperationHandle operation, const void *IV, size_t IVLen)
{
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST,
                                         (char[]){"SHA256"}, 0),
        OSSL_PARAM_construct_end(),
    };
    (void)IV;
    operation->failed =
        IVLen != 0 || operation->key_bytes == 0 ||
        EVP_MAC_init(operation->mac, operation->key, operation->key_bytes,
                     params) != 1;
}

void TEE_MACUpdate(TEE_OperationHandle operation, const void *chunk,
                   size_t chunkSize)
{
    if (EVP_MAC_update(operation->mac, chunk, chunkSize) != 1) {
        operation->failed = true;
    }
}

TEE_Result TEE_MACComputeFinal(TEE_OperationHandle operation,
                               const void *message, size_t messageLen,
                               void *mac, size_t *macLen)
{
    if (messageLen != 0) {
        TEE_MACUpdate(operation, message, messageLen);
    }
    if (operation->failed) {
        return TEE_ERROR_GENERIC;
    }
    return EVP_MAC_final(operation->mac, mac, macLen, *macLen) == 1
               ? TEE_SUCCESS
               : TEE_ERROR_GENERIC;
}

/* ---- Authenticated decryption ------------------------------------------ */

void TEE_ResetOperation(TEE_OperationHandle operation)
{
    operation->active = false;
}

TEE_Result TEE_AEInit(TEE_OperationHandle operation, const void *nonce,
                      size_t nonceLen, uint32_t tagLen, size_t AADLen,
                      size_t payloadLen)
{
    (void)AADLen;
    (void)payloadLen;
    if (operation->key_bytes == 0 || operation->active) {
        return TEE_ERROR_BAD_STATE;
    }
    if (nonceLen != CL_AES_GCM_NONCE_BYTES || tagLen != 8 * CL_AES_GCM_TAG_BYTES) {
        return TEE_ERROR_NOT_SUPPORTED;
    }
    operation->failed = !cl_aes_gcm_start(operation->gcm, nonce);
    return operation->failed ? TEE_ERROR_GENERIC : TEE_SUCCESS;
}

void TEE_AEUpdateAAD(TEE_OperationHandle operation, const void *AADdata,
                     size_t AADdataLen)
{
    if (!cl_aes_gcm_aad(operation->gcm, AADdata, AADdataLen)) {
        operation->failed = true;
    }
}

TEE_Result TEE_AEUpdate(TEE_OperationHandle operation, const void *srcData,
                        size_t srcLen, void *destData, size_t *destLen)
{
    if (*destLen < srcLen) {
        *destLen = srcLen;
        return TEE_ERROR_SHORT_BUFFER;
    }
    *destLen = srcLen;
    operation->active = true;
    if (operation->failed ||
        !cl_aes_gcm_part(operation->gcm, destData, srcData, srcLen)) {
        operation->failed = true;
        return TEE_ERROR_GENERIC;
    }
    return TEE_SUCCESS;
}

TEE_Result TEE_AEDecryptFinal(TEE_OperationHandle operation,
                              const void *srcData, size_t srcLen,
                              void *destData, size_t *destLen, void *tag,
                              size_t tagLen)
{
    if (*destLen < srcLen) {
        *destLen = srcLen;
        return TEE_ERROR_SHORT_BUFFER;
    }
    *destLen = srcLen;
    if (operation->failed || tagLen != CL_AES_GCM_TAG_BYTES) {
        TEE_MemFill(destData, 0, srcLen);
        return TEE_ERROR_GENERIC;
    }
    TEE_Result result =
        cl_aes_gcm_final(operation->gcm, destData, srcData, srcLen, tag);
    operation->active = result != TEE_SUCCESS;
    return result;
}

/* ---- Agreement --------------------------------------------------------- */

void TEE_DeriveKey(TEE_OperationHandle operation, const TEE_Attribute *params,
                   uint32_t paramCount, TEE_ObjectHandle derivedKey)
{
    if (operation->algorithm != TEE_ALG_X25519 || operation->key_bytes == 0 ||
        paramCount != 1 ||
        params[0].attributeID != TEE_ATTR_X25519_PUBLIC_VALUE ||
        params[0].content.ref.length != CL_X25519_BYTES ||
        derivedKey->type != TEE_TYPE_GENERIC_SECRET) {
        TEE_Panic(TEE_ERROR_BAD_PARAMETERS);
    }
    if (!agree(derivedKey->secret, operation->key,
               params[0].content.ref.buffer)) {
        TEE_Panic(TEE_ERROR_GENERIC); /* a point of small order, in OP-TEE too */
    }
    derivedKey->secret_bytes = CL_X25519_BYTES;
}
