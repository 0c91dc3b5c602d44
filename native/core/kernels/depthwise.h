/* SPDX-License-Identifier: Apache-2.0
 *
 * Which taps of a depthwise conv lie in the input: only they count.
 */
#ifndef CL_DEPTHWISE_H
#define CL_DEPTHWISE_H

#include "arithmetic.h"

/* The taps of one output position: rows of the input and columns. */
typedef struct cl_patch {
    cl_span rows;
    cl_span cols;
    uint64_t position;
} cl_patch;

CL_INLINE cl_span cl_patch_rows(const cl_op *op, uint32_t oy)
{
    const cl_window *w = &op->window;
    return cl_span_of(oy, w->sh, w->pt, w->dh, w->kh, op->in.h);
}

CL_INLINE cl_span cl_patch_cols(const cl_op *op, uint32_t ox)
{
    const cl_window *w = &op->window;
    return cl_span_of(ox, w->sw, w->pl, w->dw, w->kw, op->in.w);
}

/* Returns: index of an input element, for a tap that lies inside. */
CL_INLINE uint64_t cl_tap_index(const cl_op *op, const cl_patch *patch,
                                uint32_t ky, uint32_t kx, uint32_t channel)
{
    int64_t y = patch->rows.start + (int64_t)ky * op->window.dh;
    int64_t x = patch->cols.start + (int64_t)kx * op->window.dw;
    return ((uint64_t)y * op->in.w + (uint64_t)x) * op->in.c + channel;
}

#endif
