/* SPDX-License-Identifier: Apache-2.0
 *
 * For tests: checks that end the program, repeatable numbers, and an
 * assembler of programs.
 */
#ifndef CL_TEST_H
#define CL_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                               \
    do {                                                               \
        if (!(condition)) {                                            \
            (void)fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__,   \
                          #condition);                                 \
            exit(1);                                                   \
        }                                                              \
    } while (0)

#define CHECK_EQ(got, expected)                                            \
    do {                                                                   \
        long long got_ = (long long)(got), exp_ = (long long)(expected);   \
        if (got_ != exp_) {                                                \
            (void)fprintf(stderr, "%s:%d: %s: got %lld, expected %lld\n",  \
                          __FILE__, __LINE__, #got, got_, exp_);           \
            exit(1);                                                       \
        }                                                                  \
    } while (0)

/* A small generator with a known sequence (xorshift). */
static inline uint32_t draw(uint32_t *seed)
{
    uint32_t x = *seed;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    *seed = x;
    return x;
}

static inline uint32_t below(uint32_t *seed, uint32_t n)
{
    return draw(seed) % n;
}

static inline uint32_t float_word(float value)
{
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    return word;
}

/* A program in the making. */
typedef struct assembly {
    uint32_t arena_bytes, resident_bytes, slot_bytes, budget_bytes;
    uint32_t lanes; /* 0 counts as 1 */
    uint32_t n_tensors, n_slices, n_op_words, n_stages, n_stage_words;
    uint32_t tensors[32][6];
    uint32_t slices[32][5];
    uint32_t ops[512];
    uint32_t stages[64];
} assembly;

/* A tensor at the end of the arena. Returns: its id. */
static inline uint32_t add_tensor(assembly *a, uint32_t dtype, uint32_t h,
                                  uint32_t w, uint32_t c, int32_t zero)
{
    uint32_t element = dtype == 2 ? 4 : 1;
    uint32_t record[6] = {a->arena_bytes, dtype, h, w, c, (uint32_t)zero};
    memcpy(a->tensors[a->n_tensors], record, sizeof record);
    a->arena_bytes += (h * w * c * element + 15) / 16 * 16;
    return a->n_tensors++;
}

/* Room in the arena. Returns: its offset. */
static inline uint32_t add_scratch(assembly *a, uint32_t n_bytes)
{
    uint32_t at = a->arena_bytes;
    a->arena_bytes += (n_bytes + 15) / 16 * 16;
    return at;
}

/* A slice behind the others. Returns: its index. */
static inline uint32_t add_slice(assembly *a, uint32_t first, uint32_t n,
                                 uint32_t bytes, int sealed)
{
    uint32_t at = 0;
    if (a->n_slices > 0) {
        const uint32_t *last = a->slices[a->n_slices - 1];
        at = last[4] + (sealed ? last[2] + 16 : (last[2] + 63) / 64 * 64);
    }
    uint32_t record[5] = {first, n, bytes, 0xFFFFFFFFu, at};
    memcpy(a->slices[a->n_slices], record, sizeof record);
    return a->n_slices++;
}

static inline void add_words(uint32_t *to, uint32_t *n_words,
                             const uint32_t *words, uint32_t n)
{
    memcpy(to + *n_words, words, n * sizeof *words);
    *n_words += n;
}

#define ADD_OP(a, ...)                                                   \
    add_words((a)->ops, &(a)->n_op_words, (const uint32_t[]){__VA_ARGS__}, \
              sizeof((const uint32_t[]){__VA_ARGS__}) / 4)

/* A stage of all operations since the last one. */
static inline void add_stage(assembly *a, uint32_t first_op_word,
                             uint32_t input, uint32_t output)
{
    const uint32_t words[] = {
        first_op_word, a->n_op_words - first_op_word, 1, 1, input, output};
    add_words(a->stages, &a->n_stage_words, words, 6);
    a->n_stages++;
}

/* Returns: the program's length. Out: bytes: at least 8 KiB. */
static inline uint32_t assemble(const assembly *a, uint8_t *bytes)
{
    uint32_t tensors = 24 * a->n_tensors, slices = 20 * a->n_slices;
    uint32_t ops = 4 * a->n_op_words, stages = 4 * a->n_stage_words;
    uint32_t total = 64 + tensors + slices + ops + stages;
    const uint32_t header[16] = {
        0x52504C43, 1, total, a->arena_bytes, a->n_tensors, a->n_slices,
        a->n_op_words, a->n_stages, a->n_stage_words, a->resident_bytes,
        a->slot_bytes, a->budget_bytes, a->lanes != 0 ? a->lanes : 1, 0, 0, 0};
    memcpy(bytes, header, 64);
    memcpy(bytes + 64, a->tensors, tensors);
    memcpy(bytes + 64 + tensors, a->slices, slices);
    memcpy(bytes + 64 + tensors + slices, a->ops, ops);
    memcpy(bytes + 64 + tensors + slices + ops, a->stages, stages);
    return total;
}

#define INT8_CLAMP (uint32_t)-128, 127
#define FLOAT_CLAMP float_word(-1e30f), float_word(1e30f)
#define ONE float_word(1.0f)

/* Every operation once, in both number formats where there are two. */
static inline assembly everything(int sealed)
{
    assembly a = {0};
    uint32_t x = add_tensor(&a, 1, 5, 4, 4, 3);
    uint32_t y = add_tensor(&a, 1, 5, 4, 6, -5);
    uint32_t f = add_tensor(&a, 2, 5, 4, 6, 0);
    uint32_t g = add_tensor(&a, 2, 5, 4, 6, 0);
    uint32_t p = add_tensor(&a, 1, 2, 2, 6, -5);
    uint32_t q = add_tensor(&a, 2, 2, 2, 6, 0);
    uint32_t r = add_tensor(&a, 1, 5, 4, 6, -5);
    uint32_t cat = add_tensor(&a, 2, 1, 20, 12, 0);
    uint32_t scratch = add_scratch(&a, 8 * 54 * 4);
    uint32_t first = add_slice(&a, 0, 4, 8 * (3 * 8 + 12), sealed);
    add_slice(&a, 4, 2, 4 * (3 * 8 + 12), sealed);
    uint32_t fconv = add_slice(&a, 0, 6, 4 * 6 * (1 + 54), sealed);
    uint32_t affine = add_slice(&a, 0, 6, 48, sealed);
    ADD_OP(&a, 1, 18, x, y, first, 2, 3, 3, 1, 1, 1, 1, 1, 1, 2, scratch,
           INT8_CLAMP);
    ADD_OP(&a, 2, 14, y, p, 3, 2, 2, 2, 1, 0, 1, 1, INT8_CLAMP);
    ADD_OP(&a, 3, 15, y, p, 3, 2, 2, 2, 1, 0, 1, 0, ONE, INT8_CLAMP);
    ADD_OP(&a, 4, 7, y, p, ONE, INT8_CLAMP);
    ADD_OP(&a, 5, 9, y, y, r, ONE, ONE, INT8_CLAMP);
    ADD_OP(&a, 6, 8, r, y, affine, 1, INT8_CLAMP);
    ADD_OP(&a, 7, 11, y, f, 20, 6, 6, 0, ONE, FLOAT_CLAMP);
    uint32_t second = a.n_op_words;
    add_stage(&a, 0, x, f);
    ADD_OP(&a, 1, 18, f, g, fconv, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1, scratch,
           FLOAT_CLAMP);
    ADD_OP(&a, 2, 14, g, q, 3, 2, 2, 2, 1, 0, 1, 1, FLOAT_CLAMP);
    ADD_OP(&a, 3, 15, g, q, 3, 2, 2, 2, 1, 0, 0, 0, ONE, FLOAT_CLAMP);
    ADD_OP(&a, 4, 7, g, q, ONE, FLOAT_CLAMP);
    ADD_OP(&a, 5, 9, f, f, g, ONE, ONE, FLOAT_CLAMP);
    ADD_OP(&a, 6, 8, g, f, affine, 1, FLOAT_CLAMP);
    ADD_OP(&a, 7, 11, f, cat, 20, 6, 12, 6, ONE, FLOAT_CLAMP);
    ADD_OP(&a, 7, 11, f, r, 20, 6, 6, 0, ONE, INT8_CLAMP);
    ADD_OP(&a, 7, 11, r, y, 20, 6, 6, 0, ONE, INT8_CLAMP);
    ADD_OP(&a, 8, 6, y, r, 20, 6);
    ADD_OP(&a, 8, 6, f, g, 6, 20);
    ADD_OP(&a, 9, 4, g, f);
    add_stage(&a, second, f, f);
    return a;
}

#endif
