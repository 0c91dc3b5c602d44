/* SPDX-License-Identifier: Apache-2.0
 *
 * One unit for each channel: vectors run over channels, weights are
 * [taps][units].
 */
#include "conv.h"
#include "kernels.h"

#define CHANNELS 64u /* at a time */

CL_HOT static void add_tap(int32_t *sums, const int8_t *x, const int8_t *w,
                           uint32_t n, int16_t zero)
{
    for (uint32_t c = 0; c < n; c++) {
        int16_t value = (int16_t)(x[c] - zero);
        sums[c] += value * w[c];
    }
}

/* The sums of n channels from first_unit + column on, for one position. */
static void sum_taps(const cl_op *op, const cl_slice *slice, int32_t *sums,
                     const int8_t *in, const int8_t *weights, uint32_t position,
                     uint32_t column, uint32_t n)
{
    cl_patch patch = cl_patch_of(op, position);
    uint32_t channel = slice->first_unit + column;
    for (uint32_t ky = patch.rows.k0; ky < patch.rows.k1; ky++) {
        for (uint32_t kx = patch.cols.k0; kx < patch.cols.k1; kx++) {
            uint64_t tap = (uint64_t)ky * op->window.kw + kx;
            add_tap(sums, in + cl_tap_index(op, &patch, ky, kx, channel),
                    weights + tap * slice->n_units + column, n,
                    (int16_t)op->in.zero);
        }
    }
}

/* Results of n channels. In: numbers: multipliers, biases of the slice. */
CL_HOT static void finish_i8(const cl_op *op, int8_t *out, const int32_t *sums,
                             const uint8_t *multipliers, const uint8_t *biases,
                             uint32_t n)
{
    float lo = op->lo, hi = op->hi;
    int32_t zero = op->zero;
    for (uint32_t c = 0; c < n; c++) {
        uint32_t sum = (uint32_t)sums[c] + cl_load_u32(biases + 4 * c);
        float value = (float)cl_as_i32(sum) * cl_load_f32(multipliers + 4 * c);
        out[c] = cl_quantize(value, lo, hi, zero);
    }
}

CL_HOT static void finish_f32(const cl_op *op, float *out, const int32_t *sums,
                              const uint8_t *multipliers,
                              const uint8_t *biases, uint32_t n)
{
    for (uint32_t c = 0; c < n; c++) {
        uint32_t sum = (uint32_t)sums[c] + cl_load_u32(biases + 4 * c);
        float value = (float)cl_as_i32(sum) * cl_load_f32(multipliers + 4 * c);
        out[c] = cl_clamp(value, op->lo, op->hi);
    }
}

void cl_depthwise_int8(const cl_op *op, const cl_slice *slice,
                       const uint8_t *data, uint8_t *arena)
{
    uint64_t n_positions = cl_positions(&op->out);
    uint64_t n_taps = cl_conv_taps(op);
    const uint8_t *numbers = data + n_taps * slice->n_units;
    for (uint32_t c = 0; c < slice->n_units; c += CHANNELS) {
        uint32_t left = slice->n_units - c;
        uint32_t n = left < CHANNELS ? left : CHANNELS;
        const uint8_t *m = numbers + 4 * (uint64_t)c;
        const uint8_t *biases = m + 4 * (uint64_t)slice->n_units;
        for (uint64_t i = 0; i < n_positions; i++) {
            int32_t sums[CHANNELS] = {0};
            uint64_t at = i * op->out.c + slice->first_unit + c;
            sum_taps(op, slice, sums, cl_at_i8(arena, &op->in),
                     (const int8_t *)data, (uint32_t)i, c, n);
            if (op->out.dtype == CL_INT8) {
                finish_i8(op, cl_at_i8(arena, &op->out) + at, sums, m, biases,
                          n);
            } else {
                finish_f32(op, cl_at_f32(arena, &op->out) + at, sums, m,
                           biases, n);
            }
        }
    }
}
