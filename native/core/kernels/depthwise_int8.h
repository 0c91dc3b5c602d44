/* SPDX-License-Identifier: Apache-2.0
 *
 * What int8 depthwise kernels share: where the taps of a position lie. Their
 * weights are spread for some channels at a time, whose positions follow.
 */
#ifndef CL_DEPTHWISE_INT8_H
#define CL_DEPTHWISE_INT8_H

#include "int8.h"

#define CL_MOST_TAPS 28u /* of a window; larger ones are left to plain C */

/* The taps of one position lie at base + at[k]. Behind the last tap there are
 * some that meet weights of 0. */
typedef struct cl_depth_taps {
    uintptr_t base;
    const uintptr_t *at;
} cl_depth_taps;

/* The taps of all positions, for the channels from `in` on. */
typedef struct cl_depth_window {
    const cl_op *op;
    const int8_t *in; /* of the first pixel */
    uintptr_t offsets[CL_MOST_TAPS]; /* where all lie inside: from the first */
    uintptr_t edge[CL_MOST_TAPS];    /* where some do not */
    int8_t outside[64];              /* what these hold: the zero point */
} cl_depth_window;

/* The channels whose weights are spread, as a kernel has them. */
struct cl_depth_block;

CL_INLINE uint32_t cl_depth_n_taps(const cl_op *op)
{
    return op->window.kh * op->window.kw;
}

/* Returns: whether the kernels take it. In: n_channels: that they need. */
CL_INLINE bool cl_depth_suits(const cl_depthwise_i8 *d, uint32_t n_channels)
{
    const cl_window *w = &d->op->window;
    return d->n_units >= n_channels && d->op->out.dtype == CL_INT8 &&
           (uint64_t)w->kh * w->kw <= CL_MOST_TAPS;
}

CL_INLINE void cl_depth_start(cl_depth_window *t, const cl_op *op)
{
    const cl_window *w = &op->window;
    t->op = op;
    memset(t->outside, (uint8_t)op->in.zero, sizeof t->outside);
    for (uint32_t k = 0; k < CL_MOST_TAPS; k++) {
        t->offsets[k] = 0;
        t->edge[k] = (uintptr_t)t->outside;
    }
    for (uint32_t k = 0; k < cl_depth_n_taps(op); k++) {
        uint64_t y = (uint64_t)(k / w->kw) * w->dh;
        uint64_t x = (uint64_t)(k % w->kw) * w->dw;
        t->offsets[k] = (uintptr_t)((y * op->in.w + x) * op->in.c);
    }
}

CL_INLINE cl_depth_taps cl_depth_inside(const cl_depth_window *t, uint64_t y,
                                        uint64_t x)
{
    const int8_t *first = t->in + (y * t->op->in.w + x) * t->op->in.c;
    return (cl_depth_taps){(uintptr_t)first, t->offsets};
}

CL_INLINE cl_depth_taps cl_depth_edge(cl_depth_window *t, const cl_patch *patch)
{
    const cl_window *w = &t->op->window;
    uintptr_t *to = t->edge;
    for (uint32_t ky = 0; ky < w->kh; ky++) {
        bool row_in = ky >= patch->rows.k0 && ky < patch->rows.k1;
        for (uint32_t kx = 0; kx < w->kw; kx++) {
            bool in = row_in && kx >= patch->cols.k0 && kx < patch->cols.k1;
            uint64_t index = in ? cl_tap_index(t->op, patch, ky, kx, 0) : 0;
            *to++ = (uintptr_t)(in ? t->in + index : t->outside);
        }
    }
    return (cl_depth_taps){0, t->edge};
}

CL_INLINE const void *cl_depth_tap(cl_depth_taps taps, uint32_t k)
{
    return (const void *)(taps.base + taps.at[k]);
}

/* All positions of a block. */
CL_INLINE void
cl_depth_each(cl_depth_window *t, const struct cl_depth_block *block,
              void (*run)(const struct cl_depth_block *block,
                          cl_depth_taps taps, uint64_t position))
{
    const cl_op *op = t->op;
    const cl_window *w = &op->window;
    int64_t last = (int64_t)op->in.w - 1 - (int64_t)(w->kw - 1) * w->dw;
    cl_patch patch = {.position = 0};
    for (uint32_t oy = 0; oy < op->out.h; oy++) {
        patch.rows = cl_patch_rows(op, oy);
        bool rows_in = patch.rows.k1 - patch.rows.k0 == w->kh;
        for (uint32_t ox = 0; ox < op->out.w; ox++, patch.position++) {
            int64_t x = (int64_t)ox * w->sw - w->pl;
            if (rows_in && x >= 0 && x <= last) {
                uint64_t y = (uint64_t)patch.rows.start;
                run(block, cl_depth_inside(t, y, (uint64_t)x), patch.position);
            } else {
                patch.cols = cl_patch_cols(op, ox);
                run(block, cl_depth_edge(t, &patch), patch.position);
            }
        }
    }
}

#endif
