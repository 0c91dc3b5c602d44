/* SPDX-License-Identifier: Apache-2.0
 *
 * Each output is summed from left to right, as the specification says, so
 * vectors run over units: weights are stored with the units side by side.
 */
#include "conv.h"
#include "kernels.h"

/* ---- Gathering --------------------------------------------------------- */

static void clear(float *to, uint32_t n)
{
    memset(to, 0, (size_t)n * sizeof *to);
}

static void gather_row(const cl_op *op, const cl_conv_tile *tile,
                       const cl_patch *patch, uint32_t ky, const float *in,
                       float *to)
{
    uint32_t n = tile->n_channels;
    uint32_t step = cl_run_taps(op, patch);
    clear(to, patch->cols.k0 * n);
    for (uint32_t kx = patch->cols.k0; kx < patch->cols.k1; kx += step) {
        uint64_t from = cl_tap_index(op, patch, ky, kx, tile->first_channel);
        memcpy(to + (uint64_t)kx * n, in + from,
               (size_t)step * n * sizeof *to);
    }
    clear(to + (uint64_t)patch->cols.k1 * n,
          (op->window.kw - patch->cols.k1) * n);
}

static void gather_position(const cl_op *op, const cl_conv_tile *tile,
                            uint32_t position, const float *in, float *to)
{
    cl_patch patch = cl_patch_of(op, position);
    uint32_t row = op->window.kw * tile->n_channels;
    clear(to, patch.rows.k0 * row);
    for (uint32_t ky = patch.rows.k0; ky < patch.rows.k1; ky++) {
        gather_row(op, tile, &patch, ky, in, to + (uint64_t)ky * row);
    }
    clear(to + (uint64_t)patch.rows.k1 * row,
          (op->window.kh - patch.rows.k1) * row);
}

/* ---- Multiplying ------------------------------------------------------- */

#define UNITS 16u /* units whose sums are kept in registers */
#define ROWS 4u   /* positions likewise */

typedef struct product {
    const float *rows; /* n_positions x n_taps */
    const uint8_t *biases;
    const uint8_t *weights; /* n_taps x stride */
    uint32_t n_positions;
    uint32_t n_taps;
    uint32_t n_units;
    uint32_t stride; /* units of the whole slice */
    uint32_t out_stride;
    float *out;
    float lo, hi;
} product;

CL_INLINE void store(const product *p, uint32_t row, uint32_t unit,
                     const float *sums, uint32_t n)
{
    float *out = p->out + (uint64_t)row * p->out_stride + unit;
    for (uint32_t j = 0; j < n; j++) {
        out[j] = cl_clamp(sums[j], p->lo, p->hi);
    }
}

/* One position, up to UNITS units. */
CL_INLINE void multiply_1(const product *p, uint32_t row, uint32_t unit,
                          uint32_t n)
{
    float sums[UNITS];
    const float *x = p->rows + (uint64_t)row * p->n_taps;
    const uint8_t *w = p->weights + 4 * (uint64_t)unit;
    memcpy(sums, p->biases + 4 * (uint64_t)unit, n * sizeof *sums);
    for (uint32_t k = 0; k < p->n_taps; k++) {
        for (uint32_t j = 0; j < n; j++) {
            sums[j] += x[k] * cl_load_f32(w + 4 * j);
        }
        w += 4 * (uint64_t)p->stride;
    }
    store(p, row, unit, sums, n);
}

/* ROWS positions, UNITS units. */
CL_INLINE void multiply_4(const product *p, uint32_t row, uint32_t unit)
{
    float s0[UNITS], s1[UNITS], s2[UNITS], s3[UNITS];
    const float *x0 = p->rows + (uint64_t)row * p->n_taps;
    const float *x1 = x0 + p->n_taps, *x2 = x1 + p->n_taps;
    const float *x3 = x2 + p->n_taps;
    const uint8_t *w = p->weights + 4 * (uint64_t)unit;
    memcpy(s0, p->biases + 4 * (uint64_t)unit, sizeof s0);
    memcpy(s1, s0, sizeof s1);
    memcpy(s2, s0, sizeof s2);
    memcpy(s3, s0, sizeof s3);
    for (uint32_t k = 0; k < p->n_taps; k++) {
        for (uint32_t j = 0; j < UNITS; j++) {
            float v = cl_load_f32(w + 4 * j);
            s0[j] += x0[k] * v;
            s1[j] += x1[k] * v;
            s2[j] += x2[k] * v;
            s3[j] += x3[k] * v;
        }
        w += 4 * (uint64_t)p->stride;
    }
    store(p, row, unit, s0, UNITS);
    store(p, row + 1, unit, s1, UNITS);
    store(p, row + 2, unit, s2, UNITS);
    store(p, row + 3, unit, s3, UNITS);
}

CL_HOT static void multiply(const product *p)
{
    for (uint32_t u = 0; u < p->n_units; u += UNITS) {
        uint32_t left = p->n_units - u;
        uint32_t row = 0;
        for (; left >= UNITS && row + ROWS <= p->n_positions; row += ROWS) {
            multiply_4(p, row, u);
        }
        for (; left >= UNITS && row < p->n_positions; row++) {
            multiply_1(p, row, u, UNITS);
        }
        for (; row < p->n_positions; row++) {
            multiply_1(p, row, u, left);
        }
    }
}

/* A window of one tap with stride 1 and no padding reads its input in place. */
static bool is_direct(const cl_op *op)
{
    const cl_window *w = &op->window;
    return w->kh == 1 && w->kw == 1 && w->sh == 1 && w->sw == 1 &&
           w->pt == 0 && w->pl == 0 && op->groups == 1 &&
           op->out.h <= op->in.h && op->out.w == op->in.w;
}

static const float *gather(const cl_op *op, const cl_conv_tile *tile,
                           uint8_t *arena)
{
    const float *in = cl_at_f32(arena, &op->in);
    if (is_direct(op)) {
        return in + (uint64_t)tile->first_position * op->in.c;
    }
    float *rows = (float *)(void *)(arena + op->scratch);
    uint64_t n_taps = cl_conv_taps(op);
    for (uint32_t t = 0; t < tile->n_positions; t++) {
        gather_position(op, tile, tile->first_position + t, in,
                        rows + t * n_taps);
    }
    return rows;
}

static product product_of(const cl_op *op, const cl_slice *slice,
                          const cl_conv_tile *tile, const uint8_t *data,
                          uint8_t *arena)
{
    uint64_t first = 4 * (uint64_t)tile->first_column;
    uint64_t out = (uint64_t)tile->first_position * op->out.c +
                   tile->first_unit;
    return (product){
        .rows = gather(op, tile, arena),
        .biases = data + first,
        .weights = data + 4 * (uint64_t)slice->n_units + first,
        .n_positions = tile->n_positions,
        .n_taps = (uint32_t)cl_conv_taps(op),
        .n_units = tile->n_units,
        .stride = slice->n_units,
        .out_stride = op->out.c,
        .out = cl_at_f32(arena, &op->out) + out,
        .lo = op->lo,
        .hi = op->hi,
    };
}

void cl_conv_float32(const cl_op *op, const cl_slice *slice,
                     const uint8_t *data, uint8_t *arena)
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
            product p = product_of(op, slice, &tile, data, arena);
            multiply(&p);
        }
    }
}
