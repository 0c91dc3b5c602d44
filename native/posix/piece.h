/* SPDX-License-Identifier: Apache-2.0
 *
 * Ciphers read a byte twice, to authenticate and to decrypt it. In shared
 * memory it may have changed in between. So they get copies, piece by piece.
 */
#ifndef CL_PIECE_H
#define CL_PIECE_H

#include <stddef.h>
#include <stdint.h>

/* A copy of the next piece, this thread's until its next one. It stays in the
 * first cache, and what comes behind it is on its way there.
 * Returns: its bytes, at least 1. Out: piece. In: from: n_bytes, at least 1;
 * shared. */
size_t cl_take_piece(const uint8_t **piece, const uint8_t *from,
                     size_t n_bytes);

#endif
