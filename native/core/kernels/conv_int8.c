/* SPDX-License-Identifier: Apache-2.0
 *
 * An int8 conv as products: a strip of the input for some rows of the output
 * at a time.
 */
#include "int8.h"
#include "kernels.h"
#include "strip.h"

/* Parts of a slice: the units of one group. */
typedef struct group_part {
    uint32_t first_unit; /* of the output */
    uint32_t n_units;
    uint64_t column; /* of packed units in the slice */
} group_part;

static cl_product product_of(const cl_source *s, const cl_slice *slice,
                             const group_part *part, const uint8_t *data,
                             uint8_t *arena)
{
    const cl_op *op = s->op;
    uint64_t n_columns =
        cl_packed_units(op, slice->first_unit, slice->n_units);
    uint64_t taps = cl_packed_taps(op);
    const uint8_t *numbers = data + n_columns * taps + 4 * part->column;
    return (cl_product){
        .x = arena + op->scratch,
        .n_cols = op->out.w,
        .row_step = s->strip.row_lines * s->strip.line_bytes,
        .col_step = s->strip.col_taps * s->tap_bytes,
        .n_runs = op->window.kh,
        .run_bytes = (uint32_t)(taps / op->window.kh),
        .run_step = s->strip.line_bytes,
        .weights = (const int8_t *)data + part->column * taps,
        .multipliers = numbers,
        .biases = numbers + 4 * n_columns,
        .sums = numbers + 8 * n_columns,
        .n_units = part->n_units,
        .zero_in = op->in.zero + s->flip,
        .to_float = op->out.dtype == CL_FLOAT32,
        .out_step = op->out.c,
        .wrap = op->out.w,
        .valid = op->out.w,
        .lo = op->lo,
        .hi = op->hi,
        .zero = op->zero,
    };
}

#define SHORT_ROW 8u

/* Short rows become one: what lies between them is computed for nothing, but
 * the weights are read once. */
static void join_rows(cl_product *p)
{
    if (p->n_rows > 1 && p->n_cols < SHORT_ROW) {
        p->wrap = (uint32_t)(p->row_step / p->col_step);
        p->n_cols += (p->n_rows - 1) * p->wrap;
        p->n_rows = 1;
    }
}

static void run_part(const cl_source *s, const cl_slice *slice,
                     const group_part *part,
                     const uint8_t *data, uint8_t *arena,
                     const cl_kernel *kernel)
{
    const cl_op *op = s->op;
    uint64_t item = op->out.dtype == CL_FLOAT32 ? 4 : 1;
    uint8_t *out = arena + op->out.offset;
    for (uint64_t row = 0; row < op->out.h; row += s->strip.n_rows) {
        uint64_t n_rows = cl_least(s->strip.n_rows, op->out.h - row);
        cl_product p = product_of(s, slice, part, data, arena);
        p.n_rows = (uint32_t)n_rows;
        p.out = out + item * (row * op->out.w * op->out.c + part->first_unit);
        cl_fill_strip(s, arena + op->scratch, row, n_rows);
        if (kernel->even) {
            join_rows(&p);
        }
        kernel->multiply(&p);
    }
}

void cl_conv_int8(const cl_op *op, const cl_slice *slice, const uint8_t *data,
                  uint8_t *arena, const cl_kernel *kernel, bool further)
{
    uint32_t size = op->out.c / op->groups;
    uint32_t end = slice->first_unit + slice->n_units;
    group_part part = {.first_unit = slice->first_unit};
    uint8_t flip = kernel->moved ? 128 : 0;
    if (cl_is_depthwise(op)) {
        cl_depthwise_int8(op, slice, data, arena, kernel);
        return;
    }
    while (part.first_unit < end) {
        uint32_t left = size - part.first_unit % size;
        part.n_units = (uint32_t)cl_least(left, end - part.first_unit);
        cl_source s = cl_source_of(op, part.first_unit, arena, flip, further);
        run_part(&s, slice, &part, data, arena, kernel);
        part.first_unit += part.n_units;
        part.column += cl_up(part.n_units, 4);
    }
}
