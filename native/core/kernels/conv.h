/* SPDX-License-Identifier: Apache-2.0
 *
 * How a float32 conv is cut, and which taps lie in the input.
 *
 * Output positions are taken in tiles of up to CL_TILE. For each tile the taps
 * are gathered into rows of K numbers (the scratch), and each row is
 * multiplied with the weights. Units of one slice may belong to several
 * groups; each group gathers its own rows.
 */
#ifndef CL_CONV_H
#define CL_CONV_H

#include "arithmetic.h"

/* One tile of positions and the units of one group in one slice. */
typedef struct cl_conv_tile {
    uint32_t first_position;
    uint32_t n_positions;
    uint32_t first_channel; /* of the input, of this group */
    uint32_t n_channels;
    uint32_t first_unit; /* of the output tensor */
    uint32_t first_column; /* the same unit, counted from the slice's first */
    uint32_t n_units;
} cl_conv_tile;

/* The next group's part of a slice: from unit `unit` to the end of the unit's
 * group or of the slice. */
CL_INLINE void cl_conv_group(const cl_op *op, const cl_slice *slice,
                             uint32_t unit, cl_conv_tile *tile)
{
    uint32_t group_units = op->out.c / op->groups;
    uint32_t group = unit / group_units;
    uint32_t group_end = (group + 1) * group_units;
    uint32_t slice_end = slice->first_unit + slice->n_units;
    tile->n_channels = op->in.c / op->groups;
    tile->first_channel = group * tile->n_channels;
    tile->first_unit = unit;
    tile->first_column = unit - slice->first_unit;
    tile->n_units = (group_end < slice_end ? group_end : slice_end) - unit;
}

/* The taps of one output position: rows of the input and runs within a row. */
typedef struct cl_patch {
    cl_span rows;
    cl_span cols;
} cl_patch;

CL_INLINE cl_patch cl_patch_of(const cl_op *op, uint32_t position)
{
    const cl_window *w = &op->window;
    return (cl_patch){
        cl_span_of(position / op->out.w, w->sh, w->pt, w->dh, w->kh, op->in.h),
        cl_span_of(position % op->out.w, w->sw, w->pl, w->dw, w->kw, op->in.w),
    };
}

/* Returns: index of an input element, for a tap that lies inside. */
CL_INLINE uint64_t cl_tap_index(const cl_op *op, const cl_patch *patch,
                                uint32_t ky, uint32_t kx, uint32_t channel)
{
    int64_t y = patch->rows.start + (int64_t)ky * op->window.dh;
    int64_t x = patch->cols.start + (int64_t)kx * op->window.dw;
    return ((uint64_t)y * op->in.w + (uint64_t)x) * op->in.c + channel;
}

/* Taps of one row that lie side by side in memory can be taken at once. */
CL_INLINE uint32_t cl_run_taps(const cl_op *op, const cl_patch *patch)
{
    bool joined = op->window.dw == 1 && op->groups == 1;
    return joined ? patch->cols.k1 - patch->cols.k0 : 1;
}

#endif
