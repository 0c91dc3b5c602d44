/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of an instruction set, made of a few operations on its vectors.
 * Whoever includes this has defined before:
 *
 *   TARGET       attribute of functions that use the instructions
 *   LANES        numbers in a vector; divides CL_BLOCK
 *   TILE_ROWS    positions whose sums are kept in registers
 *   TILE_VECTORS vectors of each of them, at least CL_BLOCK / LANES
 *   AHEAD        bytes of weights to fetch ahead, 0 for none
 *   vec          the vector
 *   vec load(const void *from), vec load_some(const void *from, uint32_t n),
 *   void store(float *to, vec v), void store_some(float *to, vec v, uint32_t n)
 *                at any alignment; the first n lanes, 1 <= n <= LANES
 *   vec splat(float x), vec fuse(vec x, vec w, vec sum)
 *   vec clamped(vec v, vec lo, vec hi): as cl_clamp
 */
#include "float32.h"

#define BLOCK_VECTORS (CL_BLOCK / LANES)
#define MOST_VECTORS 8u /* of one position by itself */

/* Some positions, and units from `unit` on: whole blocks, or n_lanes units of
 * a narrow one. */
typedef struct tile {
    const float *x[TILE_ROWS];
    uint64_t out[TILE_ROWS]; /* numbers from p->out */
    const uint8_t *w;
    uint32_t unit;
    uint32_t width; /* of a narrow block */
    uint32_t n_lanes;
} tile;

/* What a tile is compiled for. */
typedef struct form {
    uint32_t n_rows;
    uint32_t n_vectors;
    bool narrow; /* one vector of a narrow block */
} form;

TARGET CL_INLINE vec load_lanes(const void *from, uint32_t n)
{
    return n == LANES ? load(from) : load_some(from, n);
}

TARGET CL_INLINE void store_lanes(float *to, vec v, uint32_t n)
{
    if (n == LANES) {
        store(to, v);
    } else {
        store_some(to, v, n);
    }
}

/* Vector j of one tap's weights. */
TARGET CL_INLINE vec weights_at(const tile *t, const uint8_t *w,
                                uint64_t block_bytes, uint32_t j, form f)
{
    if (f.narrow) {
        return load_lanes(w, t->n_lanes);
    }
    w += j / BLOCK_VECTORS * block_bytes + 4 * LANES * (j % BLOCK_VECTORS);
    if (AHEAD > 0 && f.n_vectors > 1) {
        __builtin_prefetch(w + AHEAD);
    }
    return load(w);
}

/* Adds all taps. */
TARGET CL_INLINE void add_taps(const cl_product_f32 *p, vec *sums,
                               const tile *t, form f)
{
    uint64_t block_bytes = 4 * CL_BLOCK * cl_f32_taps(p);
    uint64_t tap_bytes = f.narrow ? 4 * (uint64_t)t->width : 4 * CL_BLOCK;
    const uint8_t *w = t->w;
    const float *x[TILE_ROWS];
    CL_UNROLL for (uint32_t i = 0; i < f.n_rows; i++) {
        x[i] = t->x[i];
    }
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t at = r * p->run_step, end = at + p->run_taps;
        for (; at < end; at++, w += tap_bytes) {
            vec v[MOST_VECTORS];
            CL_UNROLL for (uint32_t j = 0; j < f.n_vectors; j++) {
                v[j] = weights_at(t, w, block_bytes, j, f);
            }
            CL_UNROLL for (uint32_t i = 0; i < f.n_rows; i++) {
                vec tap = splat(x[i][at]);
                CL_UNROLL for (uint32_t j = 0; j < f.n_vectors; j++) {
                    vec *sum = &sums[i * f.n_vectors + j];
                    *sum = fuse(tap, v[j], *sum);
                }
            }
        }
    }
}

TARGET CL_INLINE void run(const cl_product_f32 *p, const tile *t, form f)
{
    vec sums[TILE_ROWS * TILE_VECTORS + MOST_VECTORS];
    vec lo = splat(p->lo), hi = splat(p->hi);
    CL_UNROLL for (uint32_t j = 0; j < f.n_vectors; j++) {
        const uint8_t *from = p->biases + 4 * (uint64_t)(t->unit + LANES * j);
        vec start = load_lanes(from, f.narrow ? t->n_lanes : LANES);
        CL_UNROLL for (uint32_t i = 0; i < f.n_rows; i++) {
            sums[i * f.n_vectors + j] = start;
        }
    }
    add_taps(p, sums, t, f);
    CL_UNROLL for (uint32_t i = 0; i < f.n_rows; i++) {
        float *to = p->out + t->out[i] + t->unit;
        CL_UNROLL for (uint32_t j = 0; j < f.n_vectors; j++) {
            vec v = clamped(sums[i * f.n_vectors + j], lo, hi);
            store_lanes(to + LANES * j, v, f.narrow ? t->n_lanes : LANES);
        }
    }
}

/* Those of the n positions of a tile that are left from `first` on, f.n_rows
 * at a time. Returns: the first that is left then. */
TARGET CL_INLINE uint32_t run_part(const cl_product_f32 *p, tile *t,
                                   uint32_t first, uint32_t n, form f)
{
    while (n - first >= f.n_rows) {
        for (uint32_t i = 0; i < f.n_rows; i++) {
            t->x[i] = t->x[first + i];
            t->out[i] = t->out[first + i];
        }
        run(p, t, f);
        first += f.n_rows;
    }
    return first;
}

/* All positions for the units of a tile. */
TARGET CL_INLINE void each_position(const cl_product_f32 *p, tile *t,
                                    uint32_t n_vectors, bool narrow)
{
    uint32_t n = 0, first = 0;
    uint64_t out = 0;
    for (uint32_t row = 0; row < p->n_rows; row++) {
        const float *x = p->x + row * p->row_step;
        for (uint32_t col = 0; col < p->n_cols; col++) {
            t->x[n] = x;
            t->out[n] = out;
            x += p->col_step;
            out += p->out_step;
            if (++n == TILE_ROWS) {
                run(p, t, (form){TILE_ROWS, n_vectors, narrow});
                n = 0;
            }
        }
    }
    if (TILE_ROWS > 4) {
        first = run_part(p, t, first, n, (form){4, n_vectors, narrow});
    }
    if (TILE_ROWS > 2) {
        first = run_part(p, t, first, n, (form){2, n_vectors, narrow});
    }
    (void)run_part(p, t, first, n, (form){1, n_vectors, narrow});
}

TARGET static void take_wide(const cl_product_f32 *p, tile *t)
{
    each_position(p, t, TILE_VECTORS, false);
}

TARGET static void take_block(const cl_product_f32 *p, tile *t)
{
    each_position(p, t, BLOCK_VECTORS, false);
}

TARGET static void take_narrow(const cl_product_f32 *p, tile *t)
{
    each_position(p, t, 1, true);
}

/* One position by itself: reading weights is all there is to do. */
TARGET static void take_one(const cl_product_f32 *p, tile *t)
{
    t->x[0] = p->x;
    t->out[0] = 0;
    run(p, t, (form){1, MOST_VECTORS, false});
}

/* Whole blocks, n_units units at a time as long as there are so many. */
TARGET CL_INLINE void take_blocks(const cl_product_f32 *p, tile *t,
                                  uint32_t n_units,
                                  void (*take)(const cl_product_f32 *p,
                                               tile *t))
{
    uint32_t whole = p->n_units / CL_BLOCK * CL_BLOCK;
    while (whole - t->unit >= n_units) {
        take(p, t);
        t->unit += n_units;
        t->w += 4 * n_units * cl_f32_taps(p);
    }
}

/* The narrow block, vector by vector. The last takes units anew that the one
 * before had, if that makes it a whole one. */
TARGET CL_INLINE void take_rest(const cl_product_f32 *p, tile *t)
{
    t->width = p->n_units - t->unit;
    while (t->unit < p->n_units) {
        uint32_t left = p->n_units - t->unit;
        uint32_t back = left < LANES && LANES <= t->width ? LANES - left : 0;
        t->unit -= back;
        t->w -= 4 * back;
        t->n_lanes = (uint32_t)cl_least(left + back, LANES);
        take_narrow(p, t);
        t->unit += t->n_lanes;
        t->w += 4 * t->n_lanes;
    }
}

TARGET static void multiply(const cl_product_f32 *p)
{
    tile t = {.w = p->weights};
    if (p->n_rows == 1 && p->n_cols == 1) {
        take_blocks(p, &t, LANES * MOST_VECTORS, take_one);
    }
    take_blocks(p, &t, LANES * TILE_VECTORS, take_wide);
    take_blocks(p, &t, CL_BLOCK, take_block);
    take_rest(p, &t);
}

/* ---- Depthwise --------------------------------------------------------- */

#define DEPTH_VECTORS 4u

/* The tap at x and w of n_vectors vectors of channels. */
TARGET CL_INLINE void add_tap(vec *sums, const float *x, const uint8_t *w,
                              uint32_t n_vectors, uint32_t n_lanes)
{
    CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
        vec v = load_lanes(w + 4 * LANES * j, n_lanes);
        sums[j] = fuse(load_lanes(x + LANES * j, n_lanes), v, sums[j]);
    }
}

/* One position's channels from c on: n_vectors vectors, a constant, or n_lanes
 * of one. */
TARGET CL_INLINE void run_channels(const cl_depthwise_f32 *d,
                                   const cl_patch *patch, uint32_t c,
                                   uint32_t n_vectors, uint32_t n_lanes)
{
    const cl_op *op = d->op;
    vec sums[DEPTH_VECTORS], lo = splat(op->lo), hi = splat(op->hi);
    const uint8_t *biases = d->biases + 4 * (uint64_t)c;
    CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
        sums[j] = load_lanes(biases + 4 * LANES * j, n_lanes);
    }
    for (uint32_t ky = patch->rows.k0; ky < patch->rows.k1; ky++) {
        uint32_t kx = patch->cols.k0, end = patch->cols.k1;
        uint64_t tap = (uint64_t)ky * op->window.kw + kx;
        const float *x = d->in + cl_tap_index(op, patch, ky, kx, c);
        const uint8_t *w = d->weights + 4 * (tap * d->n_units + c);
        for (; kx < end; kx++) {
            add_tap(sums, x, w, n_vectors, n_lanes);
            x += (uint64_t)op->window.dw * op->in.c;
            w += 4 * (uint64_t)d->n_units;
        }
    }
    float *to = d->out + patch->position * op->out.c + c;
    CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
        store_lanes(to + LANES * j, clamped(sums[j], lo, hi), n_lanes);
    }
}

TARGET static void depthwise(const cl_depthwise_f32 *d, const cl_patch *patch)
{
    uint32_t c = 0, wide = LANES * DEPTH_VECTORS;
    for (; d->n_units - c >= wide; c += wide) {
        run_channels(d, patch, c, DEPTH_VECTORS, LANES);
    }
    for (; d->n_units - c >= LANES; c += LANES) {
        run_channels(d, patch, c, 1, LANES);
    }
    if (c < d->n_units) {
        run_channels(d, patch, c, 1, d->n_units - c);
    }
}
