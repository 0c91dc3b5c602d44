/* SPDX-License-Identifier: Apache-2.0
 *
 * 64-bit Arm with SMMLA: eight taps of two positions and two units in one
 * instruction. Fewer than four positions, and narrow blocks, are left to SDOT,
 * which takes no more for them; what has SMMLA has it.
 */
#if !defined(__clang__)
/* Loads that are moved up take more registers than there are: sums went to
 * memory. Those that are moved down no longer stand in pairs. */
#pragma GCC optimize("no-schedule-insns", "no-tree-ter")
#endif

#include "int8.h"

#if defined(CL_HAS_I8MM)

#include "int8_arm.h"

#define PAIRS 2u /* of positions */

/* Sums of one pair: two units in a register, of one position and the other. */
typedef struct squares {
    int32x4_t low[CL_QUADS], high[CL_QUADS];
} squares;

/* Registers side by side, halves of 64 bits: the first of both; the second. */
CL_INLINE int8x16_t firsts(int8x16_t a, int8x16_t b)
{
    return vreinterpretq_s8_s64(
        vtrn1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

CL_INLINE int8x16_t seconds(int8x16_t a, int8x16_t b)
{
    return vreinterpretq_s8_s64(
        vtrn2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* Eight taps of the four units of quad q. In: a, b: four taps' weights each. */
CL_INLINE void add_quad(squares *sums, const int8x16_t *x, uint32_t q,
                        int8x16_t a, int8x16_t b)
{
    int32x4_t v = vreinterpretq_s32_s8(a), w = vreinterpretq_s32_s8(b);
    int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(v, w));
    int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(v, w));
    CL_UNROLL for (uint32_t i = 0; i < PAIRS; i++) {
        sums[i].low[q] = vmmlaq_s32(sums[i].low[q], x[i], low);
        sums[i].high[q] = vmmlaq_s32(sums[i].high[q], x[i], high);
    }
}

/* Eight taps. In: w0, w1: four of them each, of all units of the block. What
 * lies side by side is loaded side by side, which is one instruction. */
CL_INLINE void add_8(squares *sums, const int8x16_t *x, const int8_t *w0,
                     const int8_t *w1)
{
    CL_UNROLL for (uint32_t q = 0; q < CL_QUADS; q += 2) {
        int8x16_t a0 = vld1q_s8(w0 + 16 * q), a1 = vld1q_s8(w0 + 16 * q + 16);
        int8x16_t b0 = vld1q_s8(w1 + 16 * q), b1 = vld1q_s8(w1 + 16 * q + 16);
        add_quad(sums, x, q, a0, b0);
        add_quad(sums, x, q + 1, a1, b1);
    }
}

CL_INLINE const int8_t *taps(const cl_tile *tile, uint32_t i, uint64_t x_at)
{
    return (const int8_t *)tile->x[i] + x_at;
}

CL_INLINE void take_16(squares *sums, const cl_tile *tile, const int8_t *w,
                       uint64_t x_at)
{
    int8x16_t first[PAIRS], second[PAIRS];
    CL_UNROLL for (uint32_t i = 0; i < PAIRS; i++) {
        int8x16_t a = vld1q_s8(taps(tile, 2 * i, x_at));
        int8x16_t b = vld1q_s8(taps(tile, 2 * i + 1, x_at));
        first[i] = firsts(a, b);
        second[i] = seconds(a, b);
    }
    add_8(sums, first, w, w + 4 * CL_BLOCK);
    add_8(sums, second, w + 8 * CL_BLOCK, w + 12 * CL_BLOCK);
}

CL_INLINE void take_8(squares *sums, const cl_tile *tile, const int8_t *w,
                      uint64_t x_at)
{
    int8x16_t x[PAIRS];
    CL_UNROLL for (uint32_t i = 0; i < PAIRS; i++) {
        x[i] = vcombine_s8(vld1_s8(taps(tile, 2 * i, x_at)),
                           vld1_s8(taps(tile, 2 * i + 1, x_at)));
    }
    add_8(sums, x, w, w + 4 * CL_BLOCK);
}

/* Four taps and four that are 0, which meet the same weights again. */
CL_INLINE void take_4(squares *sums, const cl_tile *tile, const int8_t *w,
                      uint64_t x_at)
{
    int8x16_t x[PAIRS];
    CL_UNROLL for (uint32_t i = 0; i < PAIRS; i++) {
        uint64_t a = cl_load_u32(tile->x[2 * i] + x_at);
        uint64_t b = cl_load_u32(tile->x[2 * i + 1] + x_at);
        x[i] = vcombine_s8(vcreate_s8(a), vcreate_s8(b));
    }
    add_8(sums, x, w, w);
}

CL_INLINE void take_runs(const cl_product *p, squares *sums,
                         const cl_tile *tile)
{
    const int8_t *w = tile->w;
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t at = r * p->run_step, end = at + p->run_bytes;
        for (; at + 16 <= end; at += 16, w += 16 * CL_BLOCK) {
            take_16(sums, tile, w, at);
        }
        if (at + 8 <= end) {
            take_8(sums, tile, w, at);
            at += 8, w += 8 * CL_BLOCK;
        }
        if (at < end) {
            take_4(sums, tile, w, at);
            w += 4 * CL_BLOCK;
        }
    }
}

/* Results of one position from its half of the sums. */
CL_INLINE void finish(const cl_product *p, const cl_tile *tile, uint64_t out,
                      const int32x4_t *sums)
{
    if (!p->to_float && p->n_units - tile->unit >= CL_BLOCK) {
        cl_finish_16(p, out, tile->unit, sums);
        return;
    }
    for (uint32_t q = 0; q < CL_QUADS; q++) {
        cl_finish_4(p, out, tile->unit + 4 * q, sums[q]);
    }
}

/* Two positions twice, and a whole block. */
CL_INLINE void run(const cl_product *p, const cl_tile *tile)
{
    squares sums[PAIRS];
    CL_UNROLL for (uint32_t q = 0; q < CL_QUADS; q++) {
        int64x2_t start = vreinterpretq_s64_s32(tile->start[q]);
        CL_UNROLL for (uint32_t i = 0; i < PAIRS; i++) {
            sums[i].low[q] = vreinterpretq_s32_s64(vdupq_laneq_s64(start, 0));
            sums[i].high[q] = vreinterpretq_s32_s64(vdupq_laneq_s64(start, 1));
        }
    }
    take_runs(p, sums, tile);
    CL_UNROLL for (uint32_t i = 0; i < PAIRS; i++) {
        int32x4_t one[CL_QUADS], other[CL_QUADS];
        CL_UNROLL for (uint32_t q = 0; q < CL_QUADS; q++) {
            int64x2_t low = vreinterpretq_s64_s32(sums[i].low[q]);
            int64x2_t high = vreinterpretq_s64_s32(sums[i].high[q]);
            one[q] = vreinterpretq_s32_s64(vtrn1q_s64(low, high));
            other[q] = vreinterpretq_s32_s64(vtrn2q_s64(low, high));
        }
        finish(p, tile, tile->out[2 * i], one);
        finish(p, tile, tile->out[2 * i + 1], other);
    }
}

CL_INLINE void run_tile(const cl_product *p, const cl_tile *tile, uint32_t n)
{
    if (n == 2 * PAIRS && tile->width == CL_BLOCK) {
        run(p, tile);
    } else {
        cl_dot_tile(p, tile, n);
    }
}

static void multiply(const cl_product *p)
{
    for (uint32_t unit = 0; unit < p->n_units; unit += CL_BLOCK) {
        cl_tile tile;
        cl_tile_start(p, &tile, unit);
        cl_each_tile(p, &tile, 2 * PAIRS, run_tile);
    }
}

const cl_kernel cl_kernel_i8mm = {
    .name = "i8mm",
    .multiply = multiply,
    .depthwise = cl_depthwise_neon,
};

#endif
