/* SPDX-License-Identifier: Apache-2.0
 *
 * 64-bit Arm without more than NEON: two products are added in 16 bits, which
 * hold them since no weight is -128 (2 * 128 * 127), then pairs in 32 bits.
 */
#include "int8.h"

#if defined(__aarch64__)

#include "int8_arm.h"

#define PAIRS 2u /* quads at a time: two registers of pairs for each */

/* Sums of four units, each in two parts side by side. */
typedef struct halves {
    int32x4_t low, high;
} halves;

/* Four taps at w0 and, with `both`, four more at w1. */
CL_INLINE void add_taps(halves *sum, int8x16_t w0, int8x16_t x0, int8x16_t w1,
                        int8x16_t x1, bool both)
{
    int16x8_t low = vmull_s8(vget_low_s8(w0), vget_low_s8(x0));
    int16x8_t high = vmull_high_s8(w0, x0);
    if (both) {
        low = vmlal_s8(low, vget_low_s8(w1), vget_low_s8(x1));
        high = vmlal_high_s8(high, w1, x1);
    }
    sum->low = vpadalq_s16(sum->low, low);
    sum->high = vpadalq_s16(sum->high, high);
}

CL_INLINE int8x16_t repeated(int32x4_t taps, int lane)
{
    int32x4_t four = lane == 0   ? vdupq_laneq_s32(taps, 0)
                     : lane == 1 ? vdupq_laneq_s32(taps, 1)
                     : lane == 2 ? vdupq_laneq_s32(taps, 2)
                                 : vdupq_laneq_s32(taps, 3);
    return vreinterpretq_s8_s32(four);
}

/* Sixteen taps. */
CL_INLINE void add_16(halves (*sums)[PAIRS], const cl_tile *tile,
                      const int8_t *w, uint64_t x_at, uint32_t n,
                      uint32_t n_quads)
{
    uint64_t step = 4 * (uint64_t)tile->width;
    CL_UNROLL for (int k = 0; k < 4; k += 2, w += 2 * step) {
        int8x16_t w0[PAIRS], w1[PAIRS];
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            w0[q] = vld1q_s8(w + 16 * q);
            w1[q] = vld1q_s8(w + step + 16 * q);
        }
        CL_UNROLL for (uint32_t i = 0; i < n; i++) {
            int32x4_t x = cl_load_i32x4(tile->x[i] + x_at);
            int8x16_t x0 = repeated(x, k), x1 = repeated(x, k + 1);
            CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
                add_taps(&sums[i][q], w0[q], x0, w1[q], x1, true);
            }
        }
    }
}

CL_INLINE void add_4(halves (*sums)[PAIRS], const cl_tile *tile,
                     const int8_t *w, uint64_t x_at, uint32_t n,
                     uint32_t n_quads)
{
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        int8x16_t x = vreinterpretq_s8_u32(
            vdupq_n_u32(cl_load_u32(tile->x[i] + x_at)));
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            int8x16_t v = vld1q_s8(w + 16 * q);
            add_taps(&sums[i][q], v, x, v, x, false);
        }
    }
}

CL_INLINE void add_runs(const cl_product *p, halves (*sums)[PAIRS],
                        const cl_tile *tile, const int8_t *w, uint32_t n,
                        uint32_t n_quads)
{
    uint64_t step = 4 * (uint64_t)tile->width;
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t at = r * p->run_step, end = at + p->run_bytes;
        for (; at + 16 <= end; at += 16, w += 4 * step) {
            add_16(sums, tile, w, at, n, n_quads);
        }
        for (; at < end; at += 4, w += step) {
            add_4(sums, tile, w, at, n, n_quads);
        }
    }
}

CL_INLINE void run(const cl_product *p, const cl_tile *tile, uint32_t n,
                   uint32_t first_quad, uint32_t n_quads,
                   int32x4_t (*all)[CL_QUADS])
{
    halves sums[CL_TILE_ROWS][PAIRS];
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            sums[i][q] = (halves){vdupq_n_s32(0), vdupq_n_s32(0)};
        }
    }
    add_runs(p, sums, tile, tile->w + 16 * first_quad, n, n_quads);
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            all[i][first_quad + q] =
                vaddq_s32(vpaddq_s32(sums[i][q].low, sums[i][q].high),
                          tile->start[first_quad + q]);
        }
    }
}

CL_INLINE void run_tile(const cl_product *p, const cl_tile *tile, uint32_t n)
{
    int32x4_t sums[CL_TILE_ROWS][CL_QUADS];
    uint32_t n_quads = tile->width / 4, q = 0;
    bool whole = !p->to_float && p->n_units - tile->unit >= CL_BLOCK;
    for (; q + PAIRS <= n_quads; q += PAIRS) {
        run(p, tile, n, q, PAIRS, sums);
    }
    for (; q < n_quads; q++) {
        run(p, tile, n, q, 1, sums);
    }
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        if (whole) {
            cl_finish_16(p, tile->out[i], tile->unit, sums[i]);
            continue;
        }
        for (q = 0; q < n_quads; q++) {
            cl_finish_4(p, tile->out[i], tile->unit + 4 * q, sums[i][q]);
        }
    }
}

static void multiply(const cl_product *p)
{
    for (uint32_t unit = 0; unit < p->n_units; unit += CL_BLOCK) {
        cl_tile tile;
        cl_tile_start(p, &tile, unit);
        cl_each_tile(p, &tile, run_tile);
    }
}

const cl_kernel cl_kernel_neon = {"neon", multiply, false, false};

#endif
