/* SPDX-License-Identifier: Apache-2.0
 *
 * Little-endian loads and stores, checked arithmetic, and a bounded cursor
 * over words. Nothing here needs aligned pointers.
 */
#ifndef CL_BYTES_H
#define CL_BYTES_H

#include <float.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Weights and tensors are used where they lie, so their byte order must be the
 * machine's; and float32 must be rounded after every operation. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the formats are little-endian");
_Static_assert(FLT_EVAL_METHOD == 0, "float32 must not have excess precision");

#define CL_MAX_U64 UINT64_MAX

static inline uint32_t cl_load_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline int32_t cl_load_i32(const uint8_t *at)
{
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline float cl_load_f32(const uint8_t *at)
{
    float value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void cl_store_u32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof value);
}

static inline void cl_store_u64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof value);
}

static inline void cl_store_f32(uint8_t *at, float value)
{
    memcpy(at, &value, sizeof value);
}

static inline int32_t cl_as_i32(uint32_t word)
{
    int32_t value;
    memcpy(&value, &word, sizeof value);
    return value;
}

static inline float cl_as_f32(uint32_t word)
{
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Sum and product that stick at CL_MAX_U64 when they do not fit, so that one
 * comparison with a bound at the end is enough. */
static inline uint64_t cl_add(uint64_t a, uint64_t b)
{
    return a > CL_MAX_U64 - b ? CL_MAX_U64 : a + b;
}

static inline uint64_t cl_mul(uint64_t a, uint64_t b)
{
    return b != 0 && a > CL_MAX_U64 / b ? CL_MAX_U64 : a * b;
}

/* `n` rounded up to a multiple of `step`, a power of two; sticks likewise. */
static inline uint64_t cl_up(uint64_t n, uint64_t step)
{
    uint64_t sum = cl_add(n, step - 1);
    return sum == CL_MAX_U64 ? sum : sum & ~(step - 1);
}

/* Whether [offset, offset + size) lies inside [0, total). */
static inline bool cl_inside(uint64_t offset, uint64_t size, uint64_t total)
{
    return offset <= total && size <= total - offset;
}

/* Whether two non-empty ranges of bytes share one. */
static inline bool cl_overlap(uint64_t a, uint64_t a_bytes, uint64_t b,
                              uint64_t b_bytes)
{
    return a < cl_add(b, b_bytes) && b < cl_add(a, a_bytes);
}

/* Words read one after the other; past the end it gives 0 and remembers. */
typedef struct cl_cursor {
    const uint8_t *at;
    uint64_t n_left;
    bool failed;
} cl_cursor;

static inline cl_cursor cl_cursor_of(const uint8_t *at, uint64_t n_words)
{
    return (cl_cursor){at, n_words, false};
}

static inline uint32_t cl_next(cl_cursor *cursor)
{
    if (cursor->n_left == 0) {
        cursor->failed = true;
        return 0;
    }
    uint32_t word = cl_load_u32(cursor->at);
    cursor->at += 4;
    cursor->n_left--;
    return word;
}

static inline void cl_skip(cl_cursor *cursor, uint64_t n_words)
{
    if (n_words > cursor->n_left) {
        cursor->failed = true;
        n_words = cursor->n_left;
    }
    cursor->at += 4 * n_words;
    cursor->n_left -= n_words;
}

#endif
