/* SPDX-License-Identifier: Apache-2.0
 *
 * One unit for each channel: vectors run over channels, weights are
 * [taps][units]. Plain C, for what the kernels leave.
 */
#include "int8.h"
#include "kernels.h"

#define CHANNELS 32u /* at a time: their sums fit in registers */

/* Sums of n channels from c on. */
CL_INLINE void add_taps(const cl_depthwise_i8 *d, int32_t *sums,
                        const cl_patch *patch, uint32_t c, uint32_t n)
{
    const cl_op *op = d->op;
    int16_t zero = (int16_t)op->in.zero;
    for (uint32_t ky = patch->rows.k0; ky < patch->rows.k1; ky++) {
        for (uint32_t kx = patch->cols.k0; kx < patch->cols.k1; kx++) {
            uint64_t tap = (uint64_t)ky * op->window.kw + kx;
            const int8_t *w = d->weights + tap * d->n_units + c;
            const int8_t *x = d->in + cl_tap_index(op, patch, ky, kx, c);
            for (uint32_t i = 0; i < n; i++) {
                int16_t value = (int16_t)(x[i] - zero);
                sums[i] += value * w[i];
            }
        }
    }
}

CL_INLINE float value_of(const cl_depthwise_i8 *d, int32_t sum, uint64_t unit)
{
    uint32_t wrapped = (uint32_t)sum + cl_load_u32(d->biases + 4 * unit);
    return (float)cl_as_i32(wrapped) *
           cl_load_f32(d->multipliers + 4 * unit);
}

/* Results of n channels from c on. */
CL_INLINE void finish(const cl_depthwise_i8 *d, const int32_t *sums,
                      uint64_t position, uint32_t c, uint32_t n)
{
    uint64_t at = position * d->op->out.c + c;
    float lo = d->op->lo, hi = d->op->hi;
    int32_t zero = d->op->zero;
    if (d->op->out.dtype == CL_FLOAT32) {
        for (uint32_t i = 0; i < n; i++) {
            float value = value_of(d, sums[i], c + i);
            cl_store_f32(d->out + 4 * (at + i), cl_clamp(value, lo, hi));
        }
        return;
    }
    int8_t results[CHANNELS];
    for (uint32_t i = 0; i < n; i++) {
        results[i] = cl_quantize(value_of(d, sums[i], c + i), lo, hi, zero);
    }
    memcpy(d->out + at, results, n);
}

CL_INLINE void block(const cl_depthwise_i8 *d, const cl_patch *patch, uint32_t c,
                     uint32_t n)
{
    int32_t sums[CHANNELS] = {0};
    add_taps(d, sums, patch, c, n);
    finish(d, sums, patch->position, c, n);
}

CL_HOT static void run_position(const cl_depthwise_i8 *d, const cl_patch *patch)
{
    uint32_t c = 0;
    for (; d->n_units - c >= CHANNELS; c += CHANNELS) {
        block(d, patch, c, CHANNELS);
    }
    if (c < d->n_units) {
        block(d, patch, c, d->n_units - c);
    }
}

static void run_plain(const cl_depthwise_i8 *d)
{
    const cl_op *op = d->op;
    cl_patch patch = {.position = 0};
    for (uint32_t oy = 0; oy < op->out.h; oy++) {
        patch.rows = cl_patch_rows(op, oy);
        for (uint32_t ox = 0; ox < op->out.w; ox++, patch.position++) {
            patch.cols = cl_patch_cols(op, ox);
            run_position(d, &patch);
        }
    }
}

void cl_depthwise_int8(const cl_op *op, const cl_slice *slice,
                       const uint8_t *data, uint8_t *arena,
                       const cl_kernel *kernel)
{
    uint64_t item = op->out.dtype == CL_FLOAT32 ? 4 : 1;
    uint64_t n = slice->n_units;
    const uint8_t *numbers = data + cl_conv_taps(op) * n;
    const cl_depthwise_i8 d = {
        .op = op,
        .in = cl_at_i8(arena, &op->in) + slice->first_unit,
        .weights = (const int8_t *)data,
        .multipliers = numbers,
        .biases = numbers + 4 * n,
        .n_units = slice->n_units,
        .out = arena + op->out.offset + item * slice->first_unit,
    };
    if (kernel->depthwise == 0 || !kernel->depthwise(&d)) {
        run_plain(&d);
    }
}
