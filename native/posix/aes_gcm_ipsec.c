/* SPDX-License-Identifier: Apache-2.0 */
#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>
#include <string.h>

#include "aes_gcm.h"
#include "piece.h"

#define LINE_BYTES 64

struct cl_aes_gcm {
    struct gcm_key_data key;
    struct gcm_context_data message;
    uint8_t nonce[CL_AES_GCM_NONCE_BYTES];
    bool begun;
    void *block; /* that this lies in: the library wants whole lines */
};

static IMB_MGR *library;

bool cl_aes_gcm_open(void)
{
    if (library == NULL) {
        library = alloc_mb_mgr(0);
        if (library != NULL) {
            init_mb_mgr_auto(library, NULL);
        }
    }
    return library != NULL && imb_get_errno(library) == 0;
}

cl_aes_gcm *cl_aes_gcm_new(void)
{
    uint8_t *block = OPENSSL_zalloc(sizeof(cl_aes_gcm) + LINE_BYTES);
    if (block == NULL) {
        return NULL;
    }
    uint8_t *line = block + LINE_BYTES - (uintptr_t)block % LINE_BYTES;
    cl_aes_gcm *gcm = (cl_aes_gcm *)(void *)line;
    gcm->block = block;
    return gcm;
}

void cl_aes_gcm_free(cl_aes_gcm *gcm)
{
    if (gcm != NULL) {
        OPENSSL_clear_free(gcm->block, sizeof *gcm + LINE_BYTES);
    }
}

bool cl_aes_gcm_key(cl_aes_gcm *gcm, const uint8_t *key)
{
    IMB_AES256_GCM_PRE(library, key, &gcm->key);
    return true;
}

bool cl_aes_gcm_start(cl_aes_gcm *gcm, const uint8_t *nonce)
{
    memcpy(gcm->nonce, nonce, sizeof gcm->nonce);
    gcm->begun = false;
    return true;
}

bool cl_aes_gcm_aad(cl_aes_gcm *gcm, const void *aad, size_t n_bytes)
{
    if (gcm->begun) {
        return false;
    }
    IMB_AES256_GCM_INIT(library, &gcm->key, &gcm->message, gcm->nonce, aad,
                        n_bytes);
    gcm->begun = true;
    return true;
}

bool cl_aes_gcm_part(cl_aes_gcm *gcm, uint8_t *to, const uint8_t *from,
                     size_t n_bytes)
{
    if (!gcm->begun && !cl_aes_gcm_aad(gcm, gcm->nonce, 0)) {
        return false;
    }
    while (n_bytes != 0) {
        const uint8_t *piece = NULL;
        size_t n = cl_take_piece(&piece, from, n_bytes);
        IMB_AES256_GCM_DEC_UPDATE(library, &gcm->key, &gcm->message, to, piece,
                                  n);
        to += n;
        from += n;
        n_bytes -= n;
    }
    return true;
}

TEE_Result cl_aes_gcm_final(cl_aes_gcm *gcm, uint8_t *to, const uint8_t *from,
                            size_t n_bytes, const uint8_t *tag)
{
    uint8_t found[CL_AES_GCM_TAG_BYTES];
    TEE_Result result = TEE_ERROR_GENERIC;
    if (cl_aes_gcm_part(gcm, to, from, n_bytes)) {
        IMB_AES256_GCM_DEC_FINALIZE(library, &gcm->key, &gcm->message, found,
                                    sizeof found);
        result = CRYPTO_memcmp(found, tag, sizeof found) == 0
                     ? TEE_SUCCESS
                     : TEE_ERROR_MAC_INVALID;
    }
    if (result != TEE_SUCCESS) {
        TEE_MemFill(to, 0, n_bytes);
    }
    return result;
}
