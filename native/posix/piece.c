/* SPDX-License-Identifier: Apache-2.0 */
#include "piece.h"

#include <tee_internal_api.h>

#define PIECE_BYTES ((size_t)1536) /* what OpenSSL takes at once, and more */
#define LINE_BYTES 64

size_t cl_take_piece(const uint8_t **piece, const uint8_t *from,
                     size_t n_bytes)
{
    _Alignas(LINE_BYTES) static _Thread_local uint8_t copy[PIECE_BYTES];
    size_t n = n_bytes < PIECE_BYTES ? n_bytes : PIECE_BYTES;
    TEE_MemMove(copy, from, n);
    for (size_t i = n; i < 2 * n && i < n_bytes; i += LINE_BYTES) {
        __builtin_prefetch(from + i, 0, 2);
    }
    *piece = copy;
    return n;
}
