/* SPDX-License-Identifier: Apache-2.0 */
#include "strip.h"

CL_HOT static void copy_flipped(uint8_t *to, const uint8_t *from, uint64_t n,
                                uint8_t flip)
{
    for (uint64_t i = 0; i < n; i++) {
        to[i] = from[i] ^ flip;
    }
}

static void copy_pixels(const cl_source *s, uint8_t *to, const uint8_t *from,
                        uint64_t n)
{
    if (s->flip == 0) {
        memcpy(to, from, n);
    } else {
        copy_flipped(to, from, n, s->flip);
    }
}

/* Columns of a line, one tap at a time: of any dilation, stride and group. */
static void copy_taps(const cl_source *s, uint8_t *to, const uint8_t *line)
{
    const cl_window *w = &s->op->window;
    uint64_t last = s->op->out.w - 1;
    for (uint64_t i = 0; i < s->strip.line_taps; i++, to += s->tap_bytes) {
        uint64_t col = i / s->strip.col_taps;
        col = col < last ? col : last;
        uint64_t kx = i - col * s->strip.col_taps;
        uint64_t x = col * w->sw + kx * w->dw - w->pl; /* wraps below 0 */
        if (x < s->op->in.w) {
            copy_pixels(s, to, line + x * s->pixel_bytes, s->tap_bytes);
        } else {
            memset(to, s->fill, s->tap_bytes);
        }
    }
}

/* Columns of a line that lie in the input side by side. */
static void copy_line(const cl_source *s, uint8_t *to, const uint8_t *line)
{
    uint64_t n = s->tap_bytes, total = s->strip.line_taps;
    uint64_t left = cl_least(s->op->window.pl, total);
    uint64_t inside = cl_least(s->op->in.w, total - left);
    memset(to, s->fill, left * n);
    copy_pixels(s, to + left * n, line, inside * n);
    memset(to + (left + inside) * n, s->fill, (total - left - inside) * n);
}

static bool lines_match(const cl_source *s)
{
    const cl_window *w = &s->op->window;
    return s->op->groups == 1 && w->dw == 1 && s->strip.col_taps == w->sw;
}

void cl_fill_strip(const cl_source *s, uint8_t *to, uint64_t first_row,
                   uint64_t n_rows)
{
    const cl_window *w = &s->op->window;
    bool match = lines_match(s);
    if (s->filled) {
        return;
    }
    uint64_t n_lines = (n_rows - 1) * s->strip.row_lines + w->kh;
    for (uint64_t i = 0; i < n_lines; i++, to += s->strip.line_bytes) {
        uint64_t row = cl_least(i / s->strip.row_lines, n_rows - 1);
        uint64_t ky = i - row * s->strip.row_lines;
        uint64_t y = (first_row + row) * w->sh + ky * w->dh - w->pt;
        if (y >= s->op->in.h) { /* also what wrapped below 0 */
            memset(to, s->fill, s->strip.line_bytes);
            continue;
        }
        const uint8_t *line = s->in + y * s->op->in.w * s->pixel_bytes;
        if (match) {
            copy_line(s, to, line);
        } else {
            copy_taps(s, to, line);
        }
    }
}

cl_source cl_source_of(const cl_op *op, uint32_t unit, const uint8_t *arena,
                       uint8_t flip, bool further)
{
    uint64_t group = unit / (op->out.c / op->groups);
    uint64_t item = op->in.dtype == CL_FLOAT32 ? 4 : 1;
    uint64_t tap_bytes = op->in.c / op->groups * item;
    cl_strip strip = cl_strip_of(op);
    return (cl_source){
        .op = op,
        .strip = strip,
        .in = arena + op->in.offset + group * tap_bytes,
        .tap_bytes = tap_bytes,
        .pixel_bytes = op->in.c * item,
        .flip = flip,
        .fill = (uint8_t)op->in.zero ^ flip,
        .filled = further && op->groups == 1 && strip.n_rows >= op->out.h,
    };
}
