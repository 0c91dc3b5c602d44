/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise int8 convs on 64-bit Arm: two products of a channel are added in 16
 * bits, which hold them since no weight is -128, then in 32 bits.
 */
#include "depthwise_int8.h"

#if defined(__aarch64__)

#include "int8_arm.h"

#define CHANNELS 16u

typedef struct cl_depth_block {
    const cl_op *op;
    const int8_t *weights;
    uint64_t step; /* from a tap's weights to the next one's */
    uint32_t n_taps;
    int8_t *out;
    int32x4_t start[CL_QUADS];
    float32x4_t multiplier[CL_QUADS];
} block;

/* Where sums start: bias - zero * sum of the weights. */
static block block_of(const cl_depthwise_i8 *d, uint32_t c)
{
    block b = {.op = d->op, .weights = d->weights + c, .step = d->n_units};
    int16x8_t low = vdupq_n_s16(0), high = low;
    b.n_taps = cl_depth_n_taps(d->op);
    b.out = (int8_t *)d->out + c;
    for (uint32_t k = 0; k < b.n_taps; k++) {
        int8x16_t w = vld1q_s8(b.weights + k * b.step);
        low = vaddw_s8(low, vget_low_s8(w));
        high = vaddw_high_s8(high, w);
    }
    const int32x4_t sums[CL_QUADS] = {
        vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low),
        vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)};
    for (uint32_t q = 0; q < CL_QUADS; q++) {
        uint64_t at = 4 * ((uint64_t)c + 4 * q);
        b.start[q] = vmlsq_n_s32(cl_load_i32x4(d->biases + at), sums[q],
                                 d->op->in.zero);
        b.multiplier[q] = cl_load_f32x4(d->multipliers + at);
    }
    return b;
}

/* Tap k and, with `both`, the next one. */
CL_INLINE void add_taps(const block *b, int32x4_t *sums, cl_depth_taps taps,
                        uint32_t k, bool both)
{
    int8x16_t x = vld1q_s8(cl_depth_tap(taps, k));
    int8x16_t w = vld1q_s8(b->weights + k * b->step);
    int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
    int16x8_t high = vmull_high_s8(x, w);
    if (both) {
        x = vld1q_s8(cl_depth_tap(taps, k + 1));
        w = vld1q_s8(b->weights + (k + 1) * b->step);
        low = vmlal_s8(low, vget_low_s8(x), vget_low_s8(w));
        high = vmlal_high_s8(high, x, w);
    }
    sums[0] = vaddw_s16(sums[0], vget_low_s16(low));
    sums[1] = vaddw_high_s16(sums[1], low);
    sums[2] = vaddw_s16(sums[2], vget_low_s16(high));
    sums[3] = vaddw_high_s16(sums[3], high);
}

/* One position. In: n_taps: a constant for the most usual window. */
CL_INLINE void run(const block *b, cl_depth_taps taps, uint64_t position,
                   uint32_t n_taps)
{
    const cl_op *op = b->op;
    int32x4_t sums[CL_QUADS];
    CL_UNROLL for (uint32_t q = 0; q < CL_QUADS; q++) {
        sums[q] = b->start[q];
    }
    CL_UNROLL for (uint32_t k = 0; k + 1 < n_taps; k += 2) {
        add_taps(b, sums, taps, k, true);
    }
    if (n_taps % 2 != 0) {
        add_taps(b, sums, taps, n_taps - 1, false);
    }
    CL_UNROLL for (uint32_t q = 0; q < CL_QUADS; q++) {
        float32x4_t value = vcvtq_f32_s32(sums[q]);
        sums[q] = cl_quantized(vmulq_f32(value, b->multiplier[q]), op->lo,
                               op->hi, op->zero);
    }
    vst1q_s8(b->out + position * op->out.c, cl_narrowed(sums));
}

CL_INLINE void run_9(const block *b, cl_depth_taps taps, uint64_t position)
{
    run(b, taps, position, 9);
}

CL_INLINE void run_any(const block *b, cl_depth_taps taps, uint64_t position)
{
    run(b, taps, position, b->n_taps);
}

bool cl_depthwise_neon(const cl_depthwise_i8 *d)
{
    cl_depth_window window;
    if (!cl_depth_suits(d, CHANNELS)) {
        return false;
    }
    cl_depth_start(&window, d->op);
    for (uint32_t c = 0; c < d->n_units; c += CHANNELS) {
        /* The last block takes channels anew that the one before had. */
        uint32_t first = (uint32_t)cl_least(c, d->n_units - CHANNELS);
        block b = block_of(d, first);
        window.in = d->in + first;
        if (b.n_taps == 9) {
            cl_depth_each(&window, &b, run_9);
        } else {
            cl_depth_each(&window, &b, run_any);
        }
    }
    return true;
}

#endif
