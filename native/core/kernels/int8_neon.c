/* SPDX-License-Identifier: Apache-2.0
 *
 * 64-bit Arm without more than NEON: two products are added in 16 bits, which
 * hold them since no weight is -128 (2 * 128 * 127), then pairs in 32 bits.
 */
#if !defined(__clang__)
/* Moving loads up needs more registers than there are: sums went to memory. */
#pragma GCC optimize("no-schedule-insns")
#endif

#include "int8.h"

#if defined(__aarch64__)

#include "int8_arm.h"

#define SIZE 2u /* positions at a time: two registers for each of four quads */

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

/* Eight taps. In: step: from four taps' weights to the next four's. */
CL_INLINE void add_8(halves (*sums)[CL_QUADS], const uint8_t *const *x,
                     const int8_t *w, uint64_t step, uint64_t x_at, uint32_t n,
                     uint32_t n_quads)
{
    int8x16_t x0[SIZE], x1[SIZE];
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        int32x2_t taps = vreinterpret_s32_u8(vld1_u8(x[i] + x_at));
        x0[i] = vreinterpretq_s8_s32(vdupq_lane_s32(taps, 0));
        x1[i] = vreinterpretq_s8_s32(vdupq_lane_s32(taps, 1));
    }
    CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
        int8x16_t w0 = vld1q_s8(w + 16 * q);
        int8x16_t w1 = vld1q_s8(w + step + 16 * q);
        CL_UNROLL for (uint32_t i = 0; i < n; i++) {
            add_taps(&sums[i][q], w0, x0[i], w1, x1[i], true);
        }
    }
}

CL_INLINE void add_4(halves (*sums)[CL_QUADS], const uint8_t *const *x,
                     const int8_t *w, uint64_t x_at, uint32_t n,
                     uint32_t n_quads)
{
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        int8x16_t taps =
            vreinterpretq_s8_u32(vdupq_n_u32(cl_load_u32(x[i] + x_at)));
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            int8x16_t v = vld1q_s8(w + 16 * q);
            add_taps(&sums[i][q], v, taps, v, taps, false);
        }
    }
}

CL_INLINE void add_runs(const cl_product *p, halves (*sums)[CL_QUADS],
                        const cl_tile *tile, const int8_t *w, uint64_t step,
                        uint32_t n, uint32_t n_quads)
{
    const uint8_t *x[SIZE];
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        x[i] = tile->x[i];
    }
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t at = r * p->run_step, end = at + p->run_bytes;
        for (; at + 8 <= end; at += 8, w += 2 * step) {
            add_8(sums, x, w, step, at, n, n_quads);
        }
        if (at < end) {
            add_4(sums, x, w, at, n, n_quads);
            w += step;
        }
    }
}

/* Modulo 2^32; gcc's vaddq_s32 is a plain addition, which must not overflow. */
CL_INLINE int32x4_t wrapped_sum(int32x4_t a, int32x4_t b)
{
    return vreinterpretq_s32_u32(
        vaddq_u32(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b)));
}

/* Some quads of a block from `first` on: all four, or one of a narrow block. */
CL_INLINE void run(const cl_product *p, const cl_tile *tile, uint32_t n,
                   uint32_t first, uint32_t n_quads, uint64_t step)
{
    halves sums[SIZE][CL_QUADS];
    bool whole = n_quads == CL_QUADS && !p->to_float &&
                 p->n_units - tile->unit >= CL_BLOCK;
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            sums[i][q] = (halves){vdupq_n_s32(0), vdupq_n_s32(0)};
        }
    }
    add_runs(p, sums, tile, tile->w + 16 * first, step, n, n_quads);
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        int32x4_t all[CL_QUADS];
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            all[q] = wrapped_sum(vpaddq_s32(sums[i][q].low, sums[i][q].high),
                                 tile->start[first + q]);
        }
        if (whole) {
            cl_finish_16(p, tile->out[i], tile->unit, all);
            continue;
        }
        for (uint32_t q = 0; q < n_quads; q++) {
            cl_finish_4(p, tile->out[i], tile->unit + 4 * (first + q),
                        all[q]);
        }
    }
}

CL_INLINE void run_tile(const cl_product *p, const cl_tile *tile, uint32_t n)
{
    if (tile->width == CL_BLOCK) {
        run(p, tile, n, 0, CL_QUADS, 4 * CL_BLOCK);
        return;
    }
    for (uint32_t q = 0; q < tile->width / 4; q++) {
        run(p, tile, n, q, 1, 4 * (uint64_t)tile->width);
    }
}

static void multiply(const cl_product *p)
{
    for (uint32_t unit = 0; unit < p->n_units; unit += CL_BLOCK) {
        cl_tile tile;
        cl_tile_start(p, &tile, unit);
        cl_each_tile(p, &tile, SIZE, run_tile);
    }
}

const cl_kernel cl_kernel_neon = {
    .name = "neon",
    .multiply = multiply,
    .depthwise = cl_depthwise_neon,
};

#endif
