/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of an instruction set, made of a few operations on its vectors.
 * Whoever includes this has defined before:
 *
 *   TARGET       attribute of functions that use the instructions
 *   LANES        numbers in a vector; divides CL_BLOCK
 *   TILE_ROWS    positions whose sums are kept in registers, at most 8
 *   TILE_VECTORS vectors of each of them, at least CL_BLOCK / LANES
 *   vec          the vector
 *   vec load(const void *from), vec load_some(const void *from, uint32_t n),
 *   void store(float *to, vec v), void store_some(float *to, vec v, uint32_t n)
 *                at any alignment; the first n lanes, 1 <= n <= LANES
 *   vec splat(const float *from), vec zeros(void)
 *   vec fuse(vec x, vec w, vec sum)
 *   vec clamped(vec v, vec lo, vec hi): as cl_clamp
 */
#include "depthwise.h"
#include "float32.h"

#define BLOCK_VECTORS (CL_BLOCK / LANES)

/* Some positions and vectors of units that lie in blocks side by side, or one
 * vector of a narrow block. */
typedef struct tile {
    const float *x[TILE_ROWS];
    uint64_t out[TILE_ROWS]; /* numbers from p->out */
    const uint8_t *w;
    uint32_t unit;
    uint32_t width;   /* units of a block */
    uint32_t n_lanes; /* of a vector */
} tile;

TARGET CL_INLINE vec load_lanes(const void *from, uint32_t n)
{
    return n == LANES ? load(from) : load_some(from, n);
}

/* Adds all taps. In: n, n_vectors: constants. */
TARGET CL_INLINE void add_taps(const cl_product_f32 *p,
                               vec (*sums)[TILE_VECTORS], const tile *t,
                               uint32_t n, uint32_t n_vectors)
{
    uint64_t block_bytes = 4 * CL_BLOCK * cl_f32_taps(p);
    uint64_t tap_bytes = 4 * (uint64_t)t->width;
    uint32_t n_lanes = n_vectors == 1 ? t->n_lanes : LANES;
    const uint8_t *w = t->w;
    const float *x[TILE_ROWS];
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        x[i] = t->x[i];
    }
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t at = r * p->run_step, end = at + p->run_taps;
        for (; at < end; at++, w += tap_bytes) {
            vec v[TILE_VECTORS];
            CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
                v[j] = load_lanes(w + j / BLOCK_VECTORS * block_bytes +
                                      4 * LANES * (j % BLOCK_VECTORS),
                                  n_lanes);
            }
            CL_UNROLL for (uint32_t i = 0; i < n; i++) {
                vec tap = splat(x[i] + at);
                CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
                    sums[i][j] = fuse(tap, v[j], sums[i][j]);
                }
            }
        }
    }
}

TARGET CL_INLINE void run(const cl_product_f32 *p, const tile *t, uint32_t n,
                          uint32_t n_vectors)
{
    vec sums[TILE_ROWS][TILE_VECTORS];
    uint32_t n_lanes = n_vectors == 1 ? t->n_lanes : LANES;
    CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
        const uint8_t *from = p->biases + 4 * (uint64_t)(t->unit + LANES * j);
        vec start = load_lanes(from, n_lanes);
        CL_UNROLL for (uint32_t i = 0; i < n; i++) {
            sums[i][j] = start;
        }
    }
    add_taps(p, sums, t, n, n_vectors);
    vec lo = splat(&p->lo), hi = splat(&p->hi);
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        float *to = p->out + t->out[i] + t->unit;
        CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
            vec v = clamped(sums[i][j], lo, hi);
            if (n_lanes == LANES) {
                store(to + LANES * j, v);
            } else {
                store_some(to, v, n_lanes);
            }
        }
    }
}

/* The last n positions of a tile, fewer than there is room for. */
TARGET CL_INLINE void run_rest(const cl_product_f32 *p, tile *t, uint32_t n,
                               uint32_t n_vectors)
{
    uint32_t first = 0;
    for (uint32_t size = 4; size > 0; size /= 2) {
        for (; n - first >= size; first += size) {
            for (uint32_t i = 0; i < size; i++) {
                t->x[i] = t->x[first + i];
                t->out[i] = t->out[first + i];
            }
            if (size == 4) {
                run(p, t, 4, n_vectors);
            } else if (size == 2) {
                run(p, t, 2, n_vectors);
            } else {
                run(p, t, 1, n_vectors);
            }
        }
    }
}

/* All positions for the units of a tile. */
TARGET CL_INLINE void each_position(const cl_product_f32 *p, tile *t,
                                    uint32_t n_vectors)
{
    uint32_t n = 0;
    uint64_t out = 0;
    for (uint32_t row = 0; row < p->n_rows; row++) {
        const float *x = p->x + row * p->row_step;
        for (uint32_t col = 0; col < p->n_cols; col++) {
            t->x[n] = x;
            t->out[n] = out;
            x += p->col_step;
            out += p->out_step;
            if (++n == TILE_ROWS) {
                run(p, t, TILE_ROWS, n_vectors);
                n = 0;
            }
        }
    }
    run_rest(p, t, n, n_vectors);
}

TARGET static void take_wide(const cl_product_f32 *p, tile *t)
{
    each_position(p, t, TILE_VECTORS);
}

TARGET static void take_block(const cl_product_f32 *p, tile *t)
{
    each_position(p, t, BLOCK_VECTORS);
}

TARGET static void take_vector(const cl_product_f32 *p, tile *t)
{
    each_position(p, t, 1);
}

/* The last block, one vector after the other. */
TARGET static void take_narrow(const cl_product_f32 *p, tile *t)
{
    const uint8_t *w = t->w;
    t->width = p->n_units - t->unit;
    for (uint32_t left = t->width; left > 0; left -= t->n_lanes) {
        t->n_lanes = left < LANES ? left : LANES;
        t->w = w;
        take_vector(p, t);
        t->unit += t->n_lanes;
        w += 4 * t->n_lanes;
    }
}

TARGET static void multiply(const cl_product_f32 *p)
{
    uint32_t whole = p->n_units / CL_BLOCK * CL_BLOCK;
    tile t = {.width = CL_BLOCK, .n_lanes = LANES, .w = p->weights};
    while (t.unit < whole) {
        uint32_t left = whole - t.unit, wide = LANES * TILE_VECTORS;
        uint32_t n = left >= wide ? wide : CL_BLOCK;
        if (n == wide) {
            take_wide(p, &t);
        } else {
            take_block(p, &t);
        }
        t.unit += n;
        t.w += 4 * n * cl_f32_taps(p);
    }
    take_narrow(p, &t);
}

/* ---- Depthwise --------------------------------------------------------- */

/* n_vectors vectors from channel c on of one position, a constant. Taps
 * outside the input are zeros. */
TARGET CL_INLINE void run_channels(const cl_depthwise_f32 *d,
                                   const cl_patch *patch, uint64_t position,
                                   uint32_t c, uint32_t n_vectors,
                                   uint32_t n_lanes)
{
    const cl_window *window = &d->op->window;
    const uint8_t *w = d->weights + 4 * (uint64_t)c;
    vec sums[TILE_VECTORS];
    CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
        sums[j] = load_lanes(d->biases + 4 * (uint64_t)(c + LANES * j),
                             n_lanes);
    }
    for (uint32_t ky = 0; ky < window->kh; ky++) {
        bool row_in = ky >= patch->rows.k0 && ky < patch->rows.k1;
        for (uint32_t kx = 0; kx < window->kw; kx++) {
            bool in = row_in && kx >= patch->cols.k0 && kx < patch->cols.k1;
            const float *x =
                in ? d->in + cl_tap_index(d->op, patch, ky, kx, c) : 0;
            CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
                vec tap = in ? load_lanes(x + LANES * j, n_lanes) : zeros();
                vec v = load_lanes(w + 4 * LANES * j, n_lanes);
                sums[j] = fuse(tap, v, sums[j]);
            }
            w += 4 * (uint64_t)d->n_units;
        }
    }
    float *to = d->out + position * d->op->out.c + c;
    vec lo = splat(&d->op->lo), hi = splat(&d->op->hi);
    CL_UNROLL for (uint32_t j = 0; j < n_vectors; j++) {
        store_some(to + LANES * j, clamped(sums[j], lo, hi), n_lanes);
    }
}

TARGET static void depthwise(const cl_depthwise_f32 *d)
{
    uint64_t n_positions = cl_positions(&d->op->out);
    for (uint64_t i = 0; i < n_positions; i++) {
        cl_patch patch = cl_patch_of(d->op, (uint32_t)i);
        uint32_t c = 0;
        for (; d->n_units - c >= LANES * TILE_VECTORS;
             c += LANES * TILE_VECTORS) {
            run_channels(d, &patch, i, c, TILE_VECTORS, LANES);
        }
        for (; c < d->n_units; c += LANES) {
            uint32_t left = d->n_units - c;
            run_channels(d, &patch, i, c, 1, left < LANES ? left : LANES);
        }
    }
}
