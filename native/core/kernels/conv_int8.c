/* SPDX-License-Identifier: Apache-2.0
 *
 * Gathered rows hold int16 numbers without zero point, so that products of
 * pairs can be added in one instruction (pmaddwd, smlal) and stay exact.
 */
#include "conv.h"
#include "kernels.h"

/* ---- Gathering --------------------------------------------------------- */

static void widen(int16_t *to, const int8_t *from, uint32_t n, int16_t zero)
{
    for (uint32_t i = 0; i < n; i++) {
        to[i] = (int16_t)(from[i] - zero);
    }
}

static void clear(int16_t *to, uint32_t n)
{
    memset(to, 0, (size_t)n * sizeof *to);
}

/* One row of taps, kx from 0 to kw - 1. */
static void gather_row(const cl_op *op, const cl_conv_tile *tile,
                       const cl_patch *patch, uint32_t ky, const int8_t *in,
                       int16_t *to)
{
    uint32_t n = tile->n_channels;
    uint32_t step = cl_run_taps(op, patch);
    int16_t zero = (int16_t)op->in.zero;
    clear(to, patch->cols.k0 * n);
    for (uint32_t kx = patch->cols.k0; kx < patch->cols.k1; kx += step) {
        uint64_t from = cl_tap_index(op, patch, ky, kx, tile->first_channel);
        widen(to + kx * n, in + from, step * n, zero);
    }
    clear(to + patch->cols.k1 * n, (op->window.kw - patch->cols.k1) * n);
}

static void gather_position(const cl_op *op, const cl_conv_tile *tile,
                            uint32_t position, const int8_t *in, int16_t *to)
{
    cl_patch patch = cl_patch_of(op, position);
    uint32_t row = op->window.kw * tile->n_channels;
    clear(to, patch.rows.k0 * row);
    for (uint32_t ky = patch.rows.k0; ky < patch.rows.k1; ky++) {
        gather_row(op, tile, &patch, ky, in, to + ky * row);
    }
    clear(to + patch.rows.k1 * row, (op->window.kh - patch.rows.k1) * row);
}

/* ---- Multiplying ------------------------------------------------------- */

/* Rows times units: what one call of `multiply` works on. */
typedef struct product {
    const int16_t *rows; /* n_positions x n_taps */
    const int8_t *weights; /* n_units x n_taps */
    const uint8_t *multipliers;
    const uint8_t *biases;
    uint32_t n_positions;
    uint32_t n_taps;
    uint32_t n_units;
    uint32_t out_stride; /* elements from one position to the next */
    int8_t *out_i8; /* one of the two is null */
    float *out_f32;
    float lo, hi;
    int32_t zero;
} product;

CL_INLINE void dot_8(int32_t *sums, const int16_t *x, const int8_t *w,
                     uint32_t n)
{
    const int16_t *x1 = x + n, *x2 = x1 + n, *x3 = x2 + n, *x4 = x3 + n;
    const int16_t *x5 = x4 + n, *x6 = x5 + n, *x7 = x6 + n;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
    for (uint32_t k = 0; k < n; k++) {
        int16_t v = w[k];
        s0 += x[k] * v;
        s1 += x1[k] * v;
        s2 += x2[k] * v;
        s3 += x3[k] * v;
        s4 += x4[k] * v;
        s5 += x5[k] * v;
        s6 += x6[k] * v;
        s7 += x7[k] * v;
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    sums[4] = s4, sums[5] = s5, sums[6] = s6, sums[7] = s7;
}

CL_INLINE int32_t dot_1(const int16_t *x, const int8_t *w, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t k = 0; k < n; k++) {
        int16_t v = w[k];
        sum += x[k] * v;
    }
    return sum;
}

/* The dot products fit (65536 taps of 255 * 128). With a hostile bias the sum
 * may not; then it wraps. */
CL_INLINE float scaled(int32_t sum, int32_t bias, float multiplier)
{
    uint32_t wrapped = (uint32_t)sum + (uint32_t)bias;
    return (float)cl_as_i32(wrapped) * multiplier;
}

CL_INLINE void finish(const product *p, uint32_t unit, const int32_t *sums,
                      uint32_t n)
{
    float multiplier = cl_load_f32(p->multipliers + 4 * (uint64_t)unit);
    int32_t bias = cl_load_i32(p->biases + 4 * (uint64_t)unit);
    for (uint32_t t = 0; t < n; t++) {
        float value = scaled(sums[t], bias, multiplier);
        uint64_t at = (uint64_t)t * p->out_stride + unit;
        if (p->out_i8) {
            p->out_i8[at] = cl_quantize(value, p->lo, p->hi, p->zero);
        } else {
            p->out_f32[at] = cl_clamp(value, p->lo, p->hi);
        }
    }
}

CL_HOT static void multiply(const product *p)
{
    int32_t sums[CL_TILE];
    uint32_t n = p->n_taps;
    for (uint32_t u = 0; u < p->n_units; u++) {
        const int8_t *w = p->weights + (uint64_t)u * n;
        if (p->n_positions == CL_TILE) {
            dot_8(sums, p->rows, w, n);
            finish(p, u, sums, CL_TILE);
        } else {
            for (uint32_t t = 0; t < p->n_positions; t++) {
                sums[t] = dot_1(p->rows + (uint64_t)t * n, w, n);
            }
            finish(p, u, sums, p->n_positions);
        }
    }
}

static product product_of(const cl_op *op, const cl_slice *slice,
                          const cl_conv_tile *tile, const uint8_t *data,
                          uint8_t *arena)
{
    uint32_t n_taps = (uint32_t)cl_conv_taps(op);
    uint64_t first = 4 * (uint64_t)tile->first_column;
    uint64_t weights = 8 * (uint64_t)slice->n_units +
                       (uint64_t)tile->first_column * n_taps;
    uint64_t out = (uint64_t)tile->first_position * op->out.c +
                   tile->first_unit;
    bool to_f32 = op->out.dtype == CL_FLOAT32;
    return (product){
        .rows = (const int16_t *)(void *)(arena + op->scratch),
        .weights = (const int8_t *)data + weights,
        .multipliers = data + first,
        .biases = data + 4 * (uint64_t)slice->n_units + first,
        .n_positions = tile->n_positions,
        .n_taps = n_taps,
        .n_units = tile->n_units,
        .out_stride = op->out.c,
        .out_i8 = to_f32 ? 0 : cl_at_i8(arena, &op->out) + out,
        .out_f32 = to_f32 ? cl_at_f32(arena, &op->out) + out : 0,
        .lo = op->lo,
        .hi = op->hi,
        .zero = op->zero,
    };
}

static void gather(const cl_op *op, const cl_conv_tile *tile, uint8_t *arena)
{
    int16_t *rows = (int16_t *)(void *)(arena + op->scratch);
    uint64_t n_taps = cl_conv_taps(op);
    for (uint32_t t = 0; t < tile->n_positions; t++) {
        gather_position(op, tile, tile->first_position + t,
                        cl_at_i8(arena, &op->in), rows + t * n_taps);
    }
}

void cl_conv_int8(const cl_op *op, const cl_slice *slice, const uint8_t *data,
                  uint8_t *arena)
{
    uint64_t n_positions = cl_positions(&op->out);
    uint32_t end = slice->first_unit + slice->n_units;
    cl_conv_tile tile = {0};
    for (uint64_t first = 0; first < n_positions; first += CL_TILE) {
        uint64_t left = n_positions - first;
        tile.first_position = (uint32_t)first;
        tile.n_positions = left < CL_TILE ? (uint32_t)left : CL_TILE;
        for (uint32_t u = slice->first_unit; u < end; u += tile.n_units) {
            cl_conv_group(op, slice, u, &tile);
            gather(op, &tile, arena);
            product p = product_of(op, slice, &tile, data, arena);
            multiply(&p);
        }
    }
}
