/* SPDX-License-Identifier: Apache-2.0
 *
 * An int8 conv as products. For some rows of the output at a time, the lines
 * of the input that they read are copied into the scratch, with the padding
 * filled in: then every position's taps lie in kh runs, and neighbours share
 * them. Nothing is gathered position by position.
 */
#include "int8.h"
#include "kernels.h"

/* ---- The strip --------------------------------------------------------- */

/* What one strip is made from. */
typedef struct source {
    const cl_op *op;
    cl_strip strip;
    const uint8_t *in; /* the first channel of the group */
    uint32_t n_channels;
    uint8_t flip; /* 128 makes unsigned taps */
    uint8_t fill; /* the zero point, flipped */
} source;

CL_HOT static void copy_flipped(uint8_t *to, const uint8_t *from, uint64_t n,
                                uint8_t flip)
{
    for (uint64_t i = 0; i < n; i++) {
        to[i] = from[i] ^ flip;
    }
}

/* Columns of a line, one tap at a time: of any dilation, stride and group. */
static void copy_taps(const source *s, uint8_t *to, const uint8_t *line)
{
    const cl_window *w = &s->op->window;
    uint64_t last = s->op->out.w - 1;
    for (uint64_t i = 0; i < s->strip.line_taps; i++, to += s->n_channels) {
        uint64_t col = i / s->strip.col_taps;
        col = col < last ? col : last;
        uint64_t kx = i - col * s->strip.col_taps;
        uint64_t x = col * w->sw + kx * w->dw - w->pl; /* wraps below 0 */
        if (x < s->op->in.w) {
            copy_flipped(to, line + x * s->op->in.c, s->n_channels, s->flip);
        } else {
            memset(to, s->fill, s->n_channels);
        }
    }
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Columns of a line that lie in the input side by side. */
static void copy_line(const source *s, uint8_t *to, const uint8_t *line)
{
    uint64_t n = s->n_channels, total = s->strip.line_taps;
    uint64_t left = least(s->op->window.pl, total);
    uint64_t inside = least(s->op->in.w, total - left);
    memset(to, s->fill, left * n);
    copy_flipped(to + left * n, line, inside * n, s->flip);
    memset(to + (left + inside) * n, s->fill, (total - left - inside) * n);
}

static bool lines_match(const source *s)
{
    const cl_window *w = &s->op->window;
    return s->op->groups == 1 && w->dw == 1 && s->strip.col_taps == w->sw;
}

/* The lines for n_rows rows of the output from first_row on. */
static void fill_strip(const source *s, uint8_t *to, uint64_t first_row,
                       uint64_t n_rows)
{
    const cl_window *w = &s->op->window;
    bool match = lines_match(s);
    uint64_t n_lines = (n_rows - 1) * s->strip.row_lines + w->kh;
    for (uint64_t i = 0; i < n_lines; i++, to += s->strip.line_bytes) {
        uint64_t row = least(i / s->strip.row_lines, n_rows - 1);
        uint64_t ky = i - row * s->strip.row_lines;
        uint64_t y = (first_row + row) * w->sh + ky * w->dh - w->pt;
        if (y >= s->op->in.h) { /* also what wrapped below 0 */
            memset(to, s->fill, s->strip.line_bytes);
            continue;
        }
        const uint8_t *line = s->in + y * s->op->in.w * s->op->in.c;
        if (match) {
            copy_line(s, to, line);
        } else {
            copy_taps(s, to, line);
        }
    }
}

/* ---- Products ---------------------------------------------------------- */

/* Parts of a slice: the units of one group. */
typedef struct group_part {
    uint32_t first_unit; /* of the output */
    uint32_t n_units;
    uint64_t column; /* of packed units in the slice */
} group_part;

static cl_product product_of(const source *s, const cl_slice *slice,
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
        .col_step = s->strip.col_taps * s->n_channels,
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

static void run_part(const source *s, const cl_slice *slice,
                     const group_part *part,
                     const uint8_t *data, uint8_t *arena,
                     const cl_kernel *kernel)
{
    const cl_op *op = s->op;
    uint64_t item = op->out.dtype == CL_FLOAT32 ? 4 : 1;
    uint8_t *out = arena + op->out.offset;
    for (uint64_t row = 0; row < op->out.h; row += s->strip.n_rows) {
        uint64_t n_rows = least(s->strip.n_rows, op->out.h - row);
        cl_product p = product_of(s, slice, part, data, arena);
        p.n_rows = (uint32_t)n_rows;
        p.out = out + item * (row * op->out.w * op->out.c + part->first_unit);
        fill_strip(s, arena + op->scratch, row, n_rows);
        if (kernel->even) {
            join_rows(&p);
        }
        kernel->multiply(&p);
    }
}

static source source_of(const cl_op *op, uint32_t unit, uint8_t *arena,
                        const cl_kernel *kernel)
{
    uint32_t group = unit / (op->out.c / op->groups);
    uint8_t flip = kernel->moved ? 128 : 0;
    source s = {
        .op = op,
        .strip = cl_strip_of(op),
        .n_channels = op->in.c / op->groups,
        .flip = flip,
        .fill = (uint8_t)op->in.zero ^ flip,
    };
    s.in = arena + op->in.offset + (uint64_t)group * s.n_channels;
    return s;
}

void cl_conv_int8(const cl_op *op, const cl_slice *slice, const uint8_t *data,
                  uint8_t *arena, const cl_kernel *kernel)
{
    uint32_t size = op->out.c / op->groups;
    uint32_t end = slice->first_unit + slice->n_units;
    group_part part = {.first_unit = slice->first_unit};
    if (cl_is_depthwise(op)) {
        cl_depthwise_int8(op, slice, data, arena);
        return;
    }
    while (part.first_unit < end) {
        uint32_t left = size - part.first_unit % size;
        part.n_units = (uint32_t)least(left, end - part.first_unit);
        source s = source_of(op, part.first_unit, arena, kernel);
        run_part(&s, slice, &part, data, arena, kernel);
        part.first_unit += part.n_units;
        part.column += cl_up(part.n_units, 4);
    }
}
