/* SPDX-License-Identifier: Apache-2.0
 *
 * Input lines for some rows of a conv's output, copied into the scratch with
 * the padding filled in: then every position's taps lie in kh runs, and
 * neighbours share them. Nothing is gathered position by position.
 */
#ifndef CL_STRIP_H
#define CL_STRIP_H

#include "arithmetic.h"

/* What strips of one group are made from. */
typedef struct cl_source {
    const cl_op *op;
    cl_strip strip;
    const uint8_t *in;   /* the first channel of the group */
    uint64_t tap_bytes;   /* of a pixel, the group's channels */
    uint64_t pixel_bytes; /* all channels */
    uint8_t flip;         /* 128 makes unsigned int8 */
    uint8_t fill;         /* the zero point, flipped */
    bool filled;          /* the scratch holds all lines already */
} cl_source;

/* Returns: the source for the group of an output unit.
 * In: further: the scratch is as another slice of the operation has left it. */
cl_source cl_source_of(const cl_op *op, uint32_t unit, const uint8_t *arena,
                       uint8_t flip, bool further);

/* The lines for n_rows rows of the output from first_row on; nothing happens
 * if they are there.
 * Out: to: as cl_strip_of lays it out. */
void cl_fill_strip(const cl_source *s, uint8_t *to, uint64_t first_row,
                   uint64_t n_rows);

#endif
