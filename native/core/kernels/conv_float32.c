/* SPDX-License-Identifier: Apache-2.0
 *
 * A float32 conv as products: of the input where it lies, if all taps of a
 * position lie there in kh runs, or a strip of it at a time.
 */
#include "float32.h"
#include "kernels.h"
#include "strip.h"

/* The units of one group, from first_unit on. */
static cl_product_f32 product_of(const cl_op *op, const cl_slice *slice,
                                 uint32_t first_unit, uint32_t n_units,
                                 const uint8_t *data)
{
    uint64_t before = first_unit - slice->first_unit, taps = cl_conv_taps(op);
    return (cl_product_f32){
        .n_cols = op->out.w,
        .n_runs = op->window.kh,
        .run_taps = (uint32_t)(taps / op->window.kh),
        .weights = data + 4 * before * taps,
        .biases = data + 4 * (slice->n_units * taps + before),
        .n_units = n_units,
        .out_step = op->out.c,
        .lo = op->lo,
        .hi = op->hi,
    };
}

static void run_in_place(const cl_source *s, cl_product_f32 *p, float *out,
                         const cl_kernel_f32 *kernel)
{
    const cl_window *w = &s->op->window;
    uint64_t pixel = s->op->in.c, line = s->op->in.w * pixel;
    p->x = (const float *)(const void *)s->in;
    p->n_rows = s->op->out.h;
    p->row_step = w->sh * line;
    p->col_step = w->sw * pixel;
    p->run_step = w->dh * line;
    p->out = out;
    kernel->multiply(p);
}

static void run_strips(const cl_source *s, cl_product_f32 *p, float *out,
                       uint8_t *scratch, const cl_kernel_f32 *kernel)
{
    const cl_op *op = s->op;
    uint64_t line = s->strip.line_bytes / 4;
    p->x = (const float *)(void *)scratch;
    p->row_step = s->strip.row_lines * line;
    p->col_step = s->strip.col_taps * s->tap_bytes / 4;
    p->run_step = line;
    for (uint64_t row = 0; row < op->out.h; row += s->strip.n_rows) {
        p->n_rows = (uint32_t)cl_least(s->strip.n_rows, op->out.h - row);
        p->out = out + row * op->out.w * op->out.c;
        cl_fill_strip(s, scratch, row, p->n_rows);
        kernel->multiply(p);
    }
}

static void run_depthwise(const cl_op *op, const cl_slice *slice,
                          const uint8_t *data, uint8_t *arena,
                          const cl_kernel_f32 *kernel)
{
    const cl_depthwise_f32 d = {
        .op = op,
        .in = cl_at_f32(arena, &op->in) + slice->first_unit,
        .weights = data,
        .biases = data + 4 * (slice->n_units * cl_conv_taps(op)),
        .n_units = slice->n_units,
        .out = cl_at_f32(arena, &op->out) + slice->first_unit,
    };
    cl_patch patch = {.position = 0};
    for (uint32_t oy = 0; oy < op->out.h; oy++) {
        patch.rows = cl_patch_rows(op, oy);
        for (uint32_t ox = 0; ox < op->out.w; ox++, patch.position++) {
            patch.cols = cl_patch_cols(op, ox);
            kernel->depthwise(&d, &patch);
        }
    }
}

void cl_conv_float32(const cl_op *op, const cl_slice *slice,
                     const uint8_t *data, uint8_t *arena,
                     const cl_kernel_f32 *kernel, bool further)
{
    uint32_t size = op->out.c / op->groups;
    uint32_t end = slice->first_unit + slice->n_units, n;
    if (cl_is_depthwise(op)) {
        run_depthwise(op, slice, data, arena, kernel);
        return;
    }
    for (uint32_t unit = slice->first_unit; unit < end; unit += n) {
        n = (uint32_t)cl_least(size - unit % size, end - unit);
        cl_source s = cl_source_of(op, unit, arena, 0, further);
        cl_product_f32 p = product_of(op, slice, unit, n, data);
        float *out = cl_at_f32(arena, &op->out) + unit;
        if (cl_reads_in_place(op)) {
            run_in_place(&s, &p, out, kernel);
        } else {
            run_strips(&s, &p, out, arena + op->scratch, kernel);
        }
    }
}
