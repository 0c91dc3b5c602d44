/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels for 64-bit Arm share: tiles of positions, and results from
 * sums, four units to a register.
 */
#ifndef CL_INT8_ARM_H
#define CL_INT8_ARM_H

#include <arm_neon.h>

#include "int8.h"

#define CL_TILE_ROWS 4u /* positions whose sums are kept in registers, at most */
#define CL_QUADS 4u     /* four units each, of a block */

/* Some positions and one block. */
typedef struct cl_tile {
    const uint8_t *x[CL_TILE_ROWS];
    uint64_t out[CL_TILE_ROWS]; /* elements from p->out */
    const int8_t *w;
    uint32_t unit;  /* first of the block */
    uint32_t width; /* of the block */
    int32x4_t start[CL_QUADS];
} cl_tile;

CL_INLINE int32x4_t cl_load_i32x4(const uint8_t *at)
{
    return vreinterpretq_s32_u8(vld1q_u8(at));
}

CL_INLINE float32x4_t cl_load_f32x4(const uint8_t *at)
{
    return vreinterpretq_f32_u8(vld1q_u8(at));
}

CL_INLINE void cl_tile_start(const cl_product *p, cl_tile *tile, uint32_t unit)
{
    tile->unit = unit;
    tile->width = cl_block_width(p, unit);
    tile->w = cl_block(p, unit);
    for (uint32_t q = 0; q < tile->width / 4; q++) {
        uint64_t at = 4 * (uint64_t)(unit + 4 * q);
        tile->start[q] = vmlsq_n_s32(cl_load_i32x4(p->biases + at),
                                     cl_load_i32x4(p->sums + at), p->zero_in);
    }
}

CL_INLINE float32x4_t cl_scaled(const cl_product *p, uint32_t unit,
                                int32x4_t sums)
{
    return vmulq_f32(vcvtq_f32_s32(sums),
                     cl_load_f32x4(p->multipliers + 4 * (uint64_t)unit));
}

/* Four results as int8 in 32 bits. A NaN gives lo. */
CL_INLINE int32x4_t cl_quantized(float32x4_t value, float lo, float hi,
                                 int32_t zero)
{
    value = vmaxnmq_f32(value, vdupq_n_f32(lo));
    value = vminnmq_f32(value, vdupq_n_f32(hi));
    return vaddq_s32(vcvtnq_s32_f32(value), vdupq_n_s32(zero));
}

/* As cl_clamp, zeros of either sign included. */
CL_INLINE float32x4_t cl_clamped(const cl_product *p, float32x4_t value)
{
    float32x4_t lo = vdupq_n_f32(p->lo), hi = vdupq_n_f32(p->hi);
    value = vbslq_f32(vcgtq_f32(value, lo), value, lo);
    return vbslq_f32(vcltq_f32(value, hi), value, hi);
}

/* Up to four results of one position, for units from `unit` on. */
CL_INLINE void cl_finish_4(const cl_product *p, uint64_t out, uint32_t unit,
                           int32x4_t sums)
{
    uint32_t left = p->n_units - unit, n = left < 4 ? left : 4;
    float32x4_t value = cl_scaled(p, unit, sums);
    if (p->to_float) {
        float results[4];
        vst1q_f32(results, cl_clamped(p, value));
        memcpy(p->out + 4 * (out + unit), results, 4 * n);
    } else {
        int32_t results[4];
        vst1q_s32(results, cl_quantized(value, p->lo, p->hi, p->zero));
        for (uint32_t i = 0; i < n; i++) {
            p->out[out + unit + i] = (uint8_t)results[i];
        }
    }
}

CL_INLINE int8x16_t cl_narrowed(const int32x4_t *q)
{
    int16x8_t low = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
    int16x8_t high = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
    return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

/* Sixteen int8 results of one position. */
CL_INLINE void cl_finish_16(const cl_product *p, uint64_t out, uint32_t unit,
                            const int32x4_t *sums)
{
    int32x4_t q[CL_QUADS];
    for (uint32_t i = 0; i < CL_QUADS; i++) {
        q[i] = cl_quantized(cl_scaled(p, unit + 4 * i, sums[i]), p->lo, p->hi,
                            p->zero);
    }
    vst1q_s8((int8_t *)p->out + out + unit, cl_narrowed(q));
}

/* The sums of n positions and a block, with SDOT. In: n: 1 or CL_TILE_ROWS. */
void cl_dot_tile(const cl_product *p, const cl_tile *tile, uint32_t n);

/* Take all positions for one block, in tiles of `size` and of one.
 * In: run: adds up n positions of the tile, a constant. */
CL_INLINE void
cl_each_tile(const cl_product *p, cl_tile *tile, uint32_t size,
             void (*run)(const cl_product *p, const cl_tile *tile, uint32_t n))
{
    uint64_t n_positions = (uint64_t)p->n_rows * p->n_cols;
    uint32_t row = 0, col = 0, n = 0;
    for (uint64_t i = 0; i < n_positions; i++) {
        tile->x[n] = cl_taps_at(p, row, col);
        tile->out[n] = i * p->out_step;
        n++;
        col++;
        if (col == p->n_cols) {
            col = 0;
            row++;
        }
        if (n == size) {
            run(p, tile, size);
            n = 0;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        tile->x[0] = tile->x[i];
        tile->out[0] = tile->out[i];
        run(p, tile, 1);
    }
}

#endif
