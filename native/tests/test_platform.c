/* SPDX-License-Identifier: Apache-2.0
 *
 * The GlobalPlatform API on POSIX, and what the trusted application builds on
 * it: heap, objects, storage, published vectors, HPKE.
 */
#define _GNU_SOURCE
#include "aead.h"
#include "crypto.h"
#include "device.h"
#include "device_key.h"
#include "hpke.h"
#include "../../vectors/hpke.h"
#include "../../vectors/rfc8439.h"

#include <openssl/evp.h>
#include <pthread.h>

static void from_hex(uint8_t *to, const char *hex)
{
    for (; *hex != 0; hex += 2) {
        unsigned value = 0;
        CHECK(sscanf(hex, "%2x", &value) == 1);
        *to++ = (uint8_t)value;
    }
}

/* ---- Heap -------------------------------------------------------------- */

static void test_heap_joins_and_limits(void)
{
    size_t before = cl_ta_heap.live_bytes;
    void *a = TEE_Malloc(100, 0), *b = TEE_Malloc(200, 0);
    void *c = TEE_Malloc(300, 0);
    CHECK(a != NULL && b != NULL && c != NULL);
    CHECK((uintptr_t)a % 16 == 0 && (uintptr_t)b % 16 == 0);
    CHECK(TEE_Malloc(cl_ta_heap.n_bytes, 0) == NULL);
    CHECK(TEE_Malloc(SIZE_MAX, 0) == NULL);
    TEE_Free(a);
    TEE_Free(b);
    void *joined = TEE_Malloc(310, 0);
    CHECK(joined == a);
    TEE_Free(c);
    TEE_Free(joined);
    TEE_Free(NULL);
    CHECK_EQ(cl_ta_heap.live_bytes, before);
}

static void test_heap_survives_random_use(void)
{
    uint8_t *held[32] = {0};
    size_t sizes[32] = {0};
    uint32_t seed = 7;
    size_t before = cl_ta_heap.live_bytes;
    for (int i = 0; i < 3000; i++) {
        uint32_t k = below(&seed, 32);
        for (size_t j = 0; held[k] != NULL && j < sizes[k]; j++) {
            CHECK_EQ(held[k][j], k);
        }
        TEE_Free(held[k]);
        sizes[k] = below(&seed, 2000);
        held[k] = TEE_Malloc(sizes[k], 0);
        if (held[k] != NULL) {
            memset(held[k], (int)k, sizes[k]);
        }
    }
    for (int k = 0; k < 32; k++) {
        TEE_Free(held[k]);
    }
    CHECK_EQ(cl_ta_heap.live_bytes, before);
    CHECK(cl_ta_heap.peak_bytes <= cl_ta_heap.n_bytes);
}

/* ---- Published vectors ------------------------------------------------- */

static void test_sha256_and_hmac(void)
{
    uint8_t got[32], expected[32], key[32] = {0};
    from_hex(expected, "ba7816bf8f01cfea414140de5dae2223"
                       "b00361a396177a9cb410ff61f20015ad");
    CHECK(cl_sha256(got, "abc", 3) == TEE_SUCCESS);
    CHECK(memcmp(got, expected, 32) == 0);
    /* RFC 4231, case 2: the key "Jefe" padded with zeros is the same key */
    memcpy(key, "Jefe", 4);
    cl_piece pieces[] = {{"what do ya want ", 16}, {NULL, 0},
                         {"for nothing?", 12}};
    from_hex(expected, "5bdcc146bf60754e6a042426089575c7"
                       "5a003f089d2739839dec58b964ec3843");
    CHECK(cl_hmac(got, key, pieces, 3) == TEE_SUCCESS);
    CHECK(memcmp(got, expected, 32) == 0);
}

/* Test case 16 of the GCM specification. */
static void test_gcm(void)
{
    uint8_t key[32], nonce[12], text[60], expected[60], aad[20], tag[16];
    TEE_OperationHandle operation = NULL;
    from_hex(key, "feffe9928665731c6d6a8f9467308308"
                  "feffe9928665731c6d6a8f9467308308");
    from_hex(nonce, "cafebabefacedbaddecaf888");
    from_hex(aad, "feedfacedeadbeeffeedfacedeadbeefabaddad2");
    from_hex(tag, "76fc6ece0f4e1768cddf8853bb2d551b");
    from_hex(text, "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd"
                   "2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0a"
                   "bcc9f662");
    from_hex(expected, "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c"
                       "303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5"
                       "aa0de657ba637b39");
    CHECK(cl_gcm_key(&operation, key) == TEE_SUCCESS);
    CHECK(cl_gcm_open(operation, text, text, 60, tag, nonce, aad, 20) ==
          TEE_SUCCESS);
    CHECK(memcmp(text, expected, 60) == 0);
    tag[0] ^= 1;
    CHECK(cl_gcm_open(operation, text, text, 60, tag, nonce, aad, 20) ==
          TEE_ERROR_MAC_INVALID);
    for (int i = 0; i < 60; i++) {
        CHECK_EQ(text[i], 0);
    }
    /* a failure leaves the operation in a state that must be reset */
    CHECK(TEE_AEInit(operation, nonce, 12, 128, 20, 60) ==
          TEE_ERROR_BAD_STATE);
    CHECK(cl_gcm_open(operation, text, text, 60, tag, nonce, aad, 20) ==
          TEE_ERROR_MAC_INVALID);
    TEE_FreeOperation(operation);
}

/* A sealed message of n zeros, and its tag, under keys of zeros. */
static void seal_zeros(uint8_t *sealed, size_t n, uint8_t *tag)
{
    const uint8_t zeros[32] = {0};
    int written = 0;
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    EVP_CIPHER *gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    memset(sealed, 0, n);
    CHECK(EVP_EncryptInit_ex2(cipher, gcm, zeros, zeros, NULL) == 1);
    CHECK(EVP_EncryptUpdate(cipher, sealed, &written, sealed, (int)n) == 1);
    CHECK(EVP_EncryptFinal_ex(cipher, sealed + n, &written) == 1);
    CHECK(EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1);
    EVP_CIPHER_free(gcm);
    EVP_CIPHER_CTX_free(cipher);
}

static void check_zeros(const uint8_t *bytes, size_t n)
{
    CHECK(n == 0 || bytes[0] == 0);
    CHECK(n < 2 || memcmp(bytes, bytes + 1, n - 1) == 0);
}

/* Every length around the pieces in which it is done, in place and not. */
static void test_gcm_lengths(void)
{
    static const size_t lengths[] = {0,    1,    15,   16,   17,   1535,
                                     1536, 1537, 3071, 3072, 3073, 75269};
    uint8_t key[32] = {0}, nonce[12] = {0}, tag[16];
    cl_aead aead = {0};
    CHECK(cl_aead_init(&aead, CL_SUITE_AES_256_GCM, key) == TEE_SUCCESS);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        size_t n = lengths[i];
        uint8_t *from = malloc(n), *to = malloc(n);
        seal_zeros(from, n, tag);
        memset(to, 0xAA, n);
        CHECK(cl_aead_open(&aead, to, from, n, tag, nonce, NULL, 0) ==
              TEE_SUCCESS);
        check_zeros(to, n);
        CHECK(cl_aead_open(&aead, from, from, n, tag, nonce, NULL, 0) ==
              TEE_SUCCESS);
        check_zeros(from, n);
        free(from);
        free(to);
    }
    cl_aead_free(&aead);
}

enum { CHANGED = 4000 };
static volatile uint8_t shared_bytes[8192];
static uint32_t enough;

static void *keep_changing(void *unused)
{
    while (__atomic_load_n(&enough, __ATOMIC_SEQ_CST) == 0) {
        shared_bytes[CHANGED] ^= 1;
    }
    return unused;
}

/* Somebody changes the source all the time: what is opened is still what was
 * sealed, or nothing is. */
static void test_gcm_changing_source(void)
{
    uint8_t key[32] = {0}, nonce[12] = {0}, tag[16], to[sizeof shared_bytes];
    uint8_t *from = (uint8_t *)(uintptr_t)shared_bytes;
    cl_aead aead = {0};
    pthread_t thread;
    int opened = 0;
    seal_zeros(from, sizeof to, tag);
    CHECK(cl_aead_init(&aead, CL_SUITE_AES_256_GCM, key) == TEE_SUCCESS);
    CHECK(pthread_create(&thread, NULL, keep_changing, NULL) == 0);
    for (int i = 0; i < 3000; i++) {
        memset(to, 0xAA, sizeof to);
        opened += cl_aead_open(&aead, to, from, sizeof to, tag, nonce, NULL,
                               0) == TEE_SUCCESS;
        check_zeros(to, sizeof to);
    }
    __atomic_store_n(&enough, 1, __ATOMIC_SEQ_CST);
    CHECK(pthread_join(thread, NULL) == 0);
    printf("opened %d of 3000 while the source was changed\n", opened);
    cl_aead_free(&aead);
}

/* Opens the vector with bit `bit` of its parts flipped, none for -1.
 * Returns: whether all that is left is zero after a failure, and the plaintext
 * after none. */
static TEE_Result open_rfc8439(int bit)
{
    struct {
        uint8_t key[32], nonce[12], aad[12], tag[16], text[114];
    } p;
    cl_aead aead = {0};
    memcpy(p.key, rfc8439_key, sizeof p.key);
    memcpy(p.nonce, rfc8439_nonce, sizeof p.nonce);
    memcpy(p.aad, rfc8439_aad, sizeof p.aad);
    memcpy(p.tag, rfc8439_tag, sizeof p.tag);
    memcpy(p.text, rfc8439_ciphertext, sizeof p.text);
    if (bit >= 0) {
        ((uint8_t *)&p)[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    CHECK(cl_aead_init(&aead, CL_SUITE_CHACHA20_POLY1305, p.key) ==
          TEE_SUCCESS);
    TEE_Result result = cl_aead_open(&aead, p.text, p.text, sizeof p.text, p.tag,
                                     p.nonce, p.aad, sizeof p.aad);
    for (size_t i = 0; i < sizeof p.text; i++) {
        CHECK_EQ(p.text[i], result == TEE_SUCCESS ? rfc8439_plaintext[i] : 0);
    }
    cl_aead_free(&aead);
    CHECK(memcmp(&aead, &(cl_aead){0}, sizeof aead) == 0);
    return result;
}

/* RFC 8439, section 2.8.2; then each byte changed. */
static void test_chacha(void)
{
    CHECK_EQ(rfc8439_ciphertext_bytes, 114);
    CHECK_EQ(rfc8439_plaintext_bytes, 114);
    CHECK(open_rfc8439(-1) == TEE_SUCCESS);
    for (int bit = 0; bit < 8 * (32 + 12 + 12 + 16 + 114); bit += 7) {
        CHECK(open_rfc8439(bit) == TEE_ERROR_MAC_INVALID);
    }
}

/* Both ciphers open nothing but a tag, and no other suite has a key. */
static void test_suites(void)
{
    uint8_t key[32] = {0}, nonce[12] = {0}, tag[16] = {0};
    cl_aead aead = {0};
    for (uint32_t suite = 0; suite < 5; suite++) {
        bool known = suite == 1 || suite == 2;
        CHECK_EQ(cl_aead_known(suite), known);
        CHECK(cl_aead_init(&aead, suite, key) ==
              (known ? TEE_SUCCESS : TEE_ERROR_NOT_SUPPORTED));
        if (known) {
            CHECK(cl_aead_open(&aead, NULL, NULL, 0, tag, nonce, NULL, 0) ==
                  TEE_ERROR_MAC_INVALID);
        }
        cl_aead_free(&aead);
    }
    from_hex(tag, "530f8afbc74536b9a963b4f1c4cb738b"); /* GCM, test case 13 */
    CHECK(cl_aead_init(&aead, CL_SUITE_AES_256_GCM, key) == TEE_SUCCESS);
    CHECK(cl_aead_open(&aead, NULL, NULL, 0, tag, nonce, NULL, 0) == TEE_SUCCESS);
    cl_aead_free(&aead);
}

/* RFC 7748, section 6.1. */
static void test_x25519(void)
{
    uint8_t alice[32], alice_public[32], bob_public[32], shared[32];
    uint8_t expected[32];
    TEE_ObjectHandle key = NULL;
    from_hex(alice, "77076d0a7318a57d3c16c17251b26645"
                    "df4c2f87ebc0992ab177fba51db92c2a");
    from_hex(alice_public, "8520f0098930a754748b7ddcb43ef75a"
                           "0dbf3a0d26381af4eba4a98eaa9b4e6a");
    from_hex(bob_public, "de9edb7d7b7dc1b4d35b61c2ece43537"
                         "3f8343c85b78674dadfc7e146f882b4f");
    from_hex(expected, "4a5d9d5ba4ce2de1728e3bf480350f25"
                       "e07e21c947d19e3376f09b3c1e161742");
    put_device_key(alice, alice_public, 0600);
    CHECK(cl_device_key_open(&key) == TEE_SUCCESS);
    CHECK(cl_device_key_public(key, shared) == TEE_SUCCESS);
    CHECK(memcmp(shared, alice_public, 32) == 0);
    CHECK(cl_device_key_agree(key, shared, bob_public) == TEE_SUCCESS);
    CHECK(memcmp(shared, expected, 32) == 0);
    TEE_CloseObject(key);
}

/* All that there are, with and without the highest bit, and what is close. */
static void test_small_order_points_are_refused(void)
{
    static const char *const points[] = {
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    };
    uint8_t point[32], shared[32];
    TEE_ObjectHandle key = NULL;
    CHECK(cl_device_key_open(&key) == TEE_SUCCESS);
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        from_hex(point, points[i]);
        CHECK(cl_device_key_agree(key, shared, point) ==
              TEE_ERROR_ACCESS_DENIED);
        point[31] ^= 0x80;
        CHECK(cl_device_key_agree(key, shared, point) ==
              TEE_ERROR_ACCESS_DENIED);
        point[15] ^= 0x04;
        CHECK(cl_device_key_agree(key, shared, point) == TEE_SUCCESS);
    }
    TEE_CloseObject(key);
}

/* ---- HPKE -------------------------------------------------------------- */

static TEE_Result open_vector(uint8_t *plaintext, const uint8_t *enc,
                              const uint8_t *ciphertext, const uint8_t *info)
{
    TEE_ObjectHandle key = NULL;
    CHECK(cl_device_key_open(&key) == TEE_SUCCESS);
    memcpy(plaintext, ciphertext, 32);
    TEE_Result result = cl_hpke_open(key, plaintext, 32, ciphertext + 32, enc,
                                     info, hpke_info_bytes);
    TEE_CloseObject(key);
    return result;
}

/* Flip one bit of one part at a time: nothing opens, nothing is left. */
static void test_hpke(void)
{
    uint8_t plaintext[32], enc[32], ciphertext[48], info[64];
    put_device_key(hpke_private_key, hpke_public_key, 0600);
    CHECK(open_vector(plaintext, hpke_enc, hpke_ciphertext, hpke_info) ==
          TEE_SUCCESS);
    CHECK(memcmp(plaintext, hpke_plaintext, 32) == 0);
    memcpy(enc, hpke_enc, 32);
    memcpy(ciphertext, hpke_ciphertext, 48);
    memcpy(info, hpke_info, hpke_info_bytes);
    for (uint32_t bit = 0; bit < 8 * (80 + hpke_info_bytes); bit += 5) {
        uint32_t at = bit / 8;
        uint8_t *byte = at < 48   ? &ciphertext[at]
                        : at < 80 ? &enc[at - 48]
                                  : &info[at - 80];
        *byte ^= (uint8_t)(1u << bit % 8);
        CHECK(open_vector(plaintext, enc, ciphertext, info) ==
              TEE_ERROR_ACCESS_DENIED);
        for (int i = 0; i < 32; i++) {
            CHECK_EQ(plaintext[i], 0);
        }
        *byte ^= (uint8_t)(1u << bit % 8);
    }
}

/* ---- Storage ----------------------------------------------------------- */

static void test_key_is_made_once(void)
{
    char path[128];
    uint8_t first[32], second[32];
    TEE_ObjectHandle key = NULL;
    state_path(path, sizeof path, KEY_FILE);
    CHECK(unlink(path) == 0);
    CHECK(cl_device_key_open(&key) == TEE_SUCCESS);
    CHECK(cl_device_key_public(key, first) == TEE_SUCCESS);
    TEE_CloseObject(key);
    CHECK(cl_device_key_open(&key) == TEE_SUCCESS);
    CHECK(cl_device_key_public(key, second) == TEE_SUCCESS);
    TEE_CloseObject(key);
    CHECK(memcmp(first, second, 32) == 0);
    struct stat about;
    CHECK(stat(path, &about) == 0);
    CHECK_EQ(about.st_mode & 0777, 0600);
}

static void test_bad_key_files_are_refused(void)
{
    TEE_ObjectHandle key = NULL;
    char path[128];
    state_path(path, sizeof path, KEY_FILE);
    put_device_key(hpke_private_key, hpke_public_key, 0644);
    CHECK(cl_device_key_open(&key) == TEE_ERROR_ACCESS_DENIED);
    put_device_key(hpke_private_key, hpke_private_key, 0600);
    CHECK(cl_device_key_open(&key) == TEE_ERROR_CORRUPT_OBJECT);
    put_device_key(hpke_private_key, hpke_public_key, 0600);
    CHECK(truncate(path, 71) == 0);
    CHECK(cl_device_key_open(&key) == TEE_ERROR_CORRUPT_OBJECT);
    CHECK(unlink(path) == 0 && symlink("/dev/null", path) == 0);
    CHECK(cl_device_key_open(&key) == TEE_ERROR_STORAGE_NOT_AVAILABLE);
    CHECK(unlink(path) == 0);
}

static void test_open_folders_are_refused(void)
{
    cl_storage_close();
    CHECK(chmod(state_folder, 0750) == 0);
    CHECK(cl_storage_open(state_folder) != NULL);
    cl_storage_close();
    CHECK(chmod(state_folder, 0700) == 0);
    CHECK(cl_storage_open("/nonexistent/state") != NULL);
    CHECK(cl_storage_open("/dev/null") != NULL);
    CHECK(cl_storage_open(state_folder) == NULL);
}

/* ---- Refusals of the API ----------------------------------------------- */

static void test_unused_algorithms_are_refused(void)
{
    TEE_OperationHandle operation = NULL;
    TEE_ObjectHandle object = NULL;
    CHECK(TEE_AllocateOperation(&operation, 0x10000010, 1, 256) ==
          TEE_ERROR_NOT_SUPPORTED);
    CHECK(TEE_AllocateOperation(&operation, TEE_ALG_AES_GCM,
                                TEE_MODE_DECRYPT, 128) ==
          TEE_ERROR_NOT_SUPPORTED);
    CHECK(TEE_AllocateTransientObject(0xA0000011, 64, &object) ==
          TEE_ERROR_NOT_SUPPORTED);
    CHECK(TEE_AllocateOperation(&operation, TEE_ALG_AES_GCM,
                                TEE_MODE_DECRYPT, 256) == TEE_SUCCESS);
    CHECK(TEE_AEInit(operation, "123456789012", 12, 128, 0, 0) ==
          TEE_ERROR_BAD_STATE);
    CHECK(TEE_AllocateTransientObject(TEE_TYPE_X25519_KEYPAIR, 256, &object) ==
          TEE_SUCCESS);
    CHECK(TEE_SetOperationKey(operation, object) == TEE_ERROR_BAD_PARAMETERS);
    CHECK(TEE_GenerateKey(object, 128, NULL, 0) == TEE_ERROR_BAD_PARAMETERS);
    uint8_t buffer[32];
    size_t size = sizeof buffer;
    CHECK(TEE_GetObjectBufferAttribute(object, TEE_ATTR_X25519_PRIVATE_VALUE,
                                       buffer, &size) ==
          TEE_ERROR_ACCESS_DENIED);
    TEE_FreeTransientObject(object);
    TEE_FreeOperation(operation);
}

int main(void)
{
    start_platform(1 << 16);
    size_t before = cl_ta_heap.live_bytes;
    test_heap_joins_and_limits();
    test_heap_survives_random_use();
    test_sha256_and_hmac();
    test_gcm();
    test_gcm_lengths();
    test_gcm_changing_source();
    test_chacha();
    test_suites();
    test_x25519();
    test_small_order_points_are_refused();
    test_hpke();
    test_key_is_made_once();
    test_bad_key_files_are_refused();
    test_open_folders_are_refused();
    test_unused_algorithms_are_refused();
    CHECK_EQ(cl_ta_heap.live_bytes, before); /* nothing is left behind */
    end_platform();
    return 0;
}
