/* SPDX-License-Identifier: Apache-2.0
 *
 * Pools work on blocks of channels: taps outside, channels inside, so that
 * neighbouring channels are handled together.
 */
#include "arithmetic.h"
#include "kernels.h"

#define BLOCK 64u /* channels at a time */

/* The taps of one output position. */
typedef struct taps {
    int64_t y0, y1; /* input rows y0, y0 + dy, ... < y1 */
    int64_t x0, x1;
    uint32_t dy, dx;
} taps;

static taps taps_of(const cl_op *op, uint32_t oy, uint32_t ox)
{
    const cl_window *w = &op->window;
    cl_span rows = cl_span_of(oy, w->sh, w->pt, w->dh, w->kh, op->in.h);
    cl_span cols = cl_span_of(ox, w->sw, w->pl, w->dw, w->kw, op->in.w);
    return (taps){
        .y0 = rows.start + (int64_t)rows.k0 * w->dh,
        .y1 = rows.start + (int64_t)rows.k1 * w->dh,
        .x0 = cols.start + (int64_t)cols.k0 * w->dw,
        .x1 = cols.start + (int64_t)cols.k1 * w->dw,
        .dy = w->dh,
        .dx = w->dw,
    };
}

static uint64_t index_of(const cl_op *op, int64_t y, int64_t x)
{
    return ((uint64_t)y * op->in.w + (uint64_t)x) * op->in.c;
}

/* ---- Maximum ----------------------------------------------------------- */

CL_HOT static void raise_i8(int8_t *restrict best, const int8_t *restrict x,
                            uint32_t n)
{
    for (uint32_t c = 0; c < n; c++) {
        best[c] = x[c] > best[c] ? x[c] : best[c];
    }
}

CL_HOT static void lower_i8(int8_t *out, uint32_t n, int8_t hi)
{
    for (uint32_t c = 0; c < n; c++) {
        out[c] = out[c] < hi ? out[c] : hi;
    }
}

CL_HOT static void raise_f32(float *restrict best, const float *restrict x,
                             uint32_t n)
{
    for (uint32_t c = 0; c < n; c++) {
        best[c] = x[c] > best[c] ? x[c] : best[c];
    }
}

static void max_i8(const cl_op *op, const taps *t, const int8_t *in,
                   int8_t *out)
{
    int8_t lo = (int8_t)cl_as_i32(op->lo_word);
    int8_t hi = (int8_t)cl_as_i32(op->hi_word);
    memset(out, (uint8_t)lo, op->out.c);
    for (int64_t y = t->y0; y < t->y1; y += t->dy) {
        for (int64_t x = t->x0; x < t->x1; x += t->dx) {
            raise_i8(out, in + index_of(op, y, x), op->out.c);
        }
    }
    lower_i8(out, op->out.c, hi);
}

static void max_f32(const cl_op *op, const taps *t, const float *in,
                    float *out)
{
    for (uint32_t c = 0; c < op->out.c; c++) {
        out[c] = op->lo;
    }
    for (int64_t y = t->y0; y < t->y1; y += t->dy) {
        for (int64_t x = t->x0; x < t->x1; x += t->dx) {
            raise_f32(out, in + index_of(op, y, x), op->out.c);
        }
    }
    for (uint32_t c = 0; c < op->out.c; c++) {
        out[c] = out[c] < op->hi ? out[c] : op->hi;
    }
}

void cl_max_pool(const cl_op *op, uint8_t *arena)
{
    uint64_t at = 0;
    for (uint32_t oy = 0; oy < op->out.h; oy++) {
        for (uint32_t ox = 0; ox < op->out.w; ox++, at += op->out.c) {
            taps t = taps_of(op, oy, ox);
            if (op->in.dtype == CL_INT8) {
                max_i8(op, &t, cl_at_i8(arena, &op->in),
                       cl_at_i8(arena, &op->out) + at);
            } else {
                max_f32(op, &t, cl_at_f32(arena, &op->in),
                        cl_at_f32(arena, &op->out) + at);
            }
        }
    }
}

/* ---- Average ----------------------------------------------------------- */

CL_HOT static void sum_i8(int32_t *restrict sums, const int8_t *restrict x,
                          uint32_t n, int32_t zero)
{
    for (uint32_t c = 0; c < n; c++) {
        sums[c] += x[c] - zero;
    }
}

CL_HOT static void sum_f32(float *restrict sums, const float *restrict x,
                           uint32_t n)
{
    for (uint32_t c = 0; c < n; c++) {
        sums[c] += x[c];
    }
}

static void average_i8(const cl_op *op, const taps *t, float count,
                       uint32_t c0, uint32_t n, uint8_t *arena, uint64_t at)
{
    const int8_t *in = cl_at_i8(arena, &op->in) + c0;
    int8_t *out = cl_at_i8(arena, &op->out) + at + c0;
    int32_t sums[BLOCK] = {0};
    for (int64_t y = t->y0; y < t->y1; y += t->dy) {
        for (int64_t x = t->x0; x < t->x1; x += t->dx) {
            sum_i8(sums, in + index_of(op, y, x), n, op->in.zero);
        }
    }
    for (uint32_t c = 0; c < n; c++) {
        out[c] = cl_quantize((float)sums[c] / count * op->m, op->lo, op->hi,
                             op->zero);
    }
}

static void average_f32(const cl_op *op, const taps *t, float count,
                        uint32_t c0, uint32_t n, uint8_t *arena, uint64_t at)
{
    const float *in = cl_at_f32(arena, &op->in) + c0;
    float *out = cl_at_f32(arena, &op->out) + at + c0;
    float sums[BLOCK] = {0};
    for (int64_t y = t->y0; y < t->y1; y += t->dy) {
        for (int64_t x = t->x0; x < t->x1; x += t->dx) {
            sum_f32(sums, in + index_of(op, y, x), n);
        }
    }
    for (uint32_t c = 0; c < n; c++) {
        out[c] = cl_clamp(sums[c] / count * op->m, op->lo, op->hi);
    }
}

static void average(const cl_op *op, const taps *t, float count,
                    uint8_t *arena, uint64_t at)
{
    for (uint32_t c = 0; c < op->out.c; c += BLOCK) {
        uint32_t n = op->out.c - c < BLOCK ? op->out.c - c : BLOCK;
        if (op->in.dtype == CL_INT8) {
            average_i8(op, t, count, c, n, arena, at);
        } else {
            average_f32(op, t, count, c, n, arena, at);
        }
    }
}

static int64_t count_taps(int64_t first, int64_t end, uint32_t step)
{
    return (end - first + step - 1) / step;
}

/* Length of a window with the padding on both sides, but no more. */
static int64_t padded_length(uint32_t position, uint32_t stride,
                             uint32_t padding, uint32_t n_taps, uint32_t n_in)
{
    int64_t start = (int64_t)position * stride - padding;
    int64_t end = start + n_taps;
    int64_t limit = (int64_t)n_in + padding;
    return (end < limit ? end : limit) - start;
}

static float count_of(const cl_op *op, const taps *t, uint32_t oy, uint32_t ox)
{
    const cl_window *w = &op->window;
    if (op->divisor != 0) {
        return (float)op->divisor;
    }
    if (op->count_padding) {
        return (float)(padded_length(oy, w->sh, w->pt, w->kh, op->in.h) *
                       padded_length(ox, w->sw, w->pl, w->kw, op->in.w));
    }
    return (float)(count_taps(t->y0, t->y1, t->dy) *
                   count_taps(t->x0, t->x1, t->dx));
}

void cl_avg_pool(const cl_op *op, uint8_t *arena)
{
    uint64_t at = 0;
    for (uint32_t oy = 0; oy < op->out.h; oy++) {
        for (uint32_t ox = 0; ox < op->out.w; ox++, at += op->out.c) {
            taps t = taps_of(op, oy, ox);
            average(op, &t, count_of(op, &t, oy, ox), arena, at);
        }
    }
}

static int64_t part_start(uint32_t i, uint32_t n_in, uint32_t n_out)
{
    return (int64_t)((uint64_t)i * n_in / n_out);
}

static int64_t part_end(uint32_t i, uint32_t n_in, uint32_t n_out)
{
    return (int64_t)((((uint64_t)i + 1) * n_in + n_out - 1) / n_out);
}

void cl_adaptive_avg_pool(const cl_op *op, uint8_t *arena)
{
    uint64_t at = 0;
    for (uint32_t oy = 0; oy < op->out.h; oy++) {
        for (uint32_t ox = 0; ox < op->out.w; ox++, at += op->out.c) {
            taps t = {
                .y0 = part_start(oy, op->in.h, op->out.h),
                .y1 = part_end(oy, op->in.h, op->out.h),
                .x0 = part_start(ox, op->in.w, op->out.w),
                .x1 = part_end(ox, op->in.w, op->out.w),
                .dy = 1,
                .dx = 1,
            };
            float count = (float)((t.y1 - t.y0) * (t.x1 - t.x0));
            average(op, &t, count, arena, at);
        }
    }
}
