/* SPDX-License-Identifier: Apache-2.0
 *
 * For any machine. Where the compiler knows no instruction that multiplies and
 * adds at once, products are rounded, too.
 */
#include "depthwise.h"
#include "float32.h"

#if defined(__FP_FAST_FMAF)
#define FUSED true
#else
#define FUSED false
#endif

CL_INLINE float fuse(float x, float w, float sum)
{
#if defined(__FP_FAST_FMAF)
    return __builtin_fmaf(x, w, sum);
#else
    return sum + x * w;
#endif
}

/* One tap times n units side by side. */
CL_INLINE void add_tap(float *sums, float x, const uint8_t *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        sums[i] = fuse(x, cl_load_f32(w + 4 * i), sums[i]);
    }
}

/* One position times one block of n units. */
CL_INLINE void run(const cl_product_f32 *p, const float *x, const uint8_t *w,
                   uint32_t unit, uint32_t n, float *out)
{
    float sums[CL_BLOCK];
    memcpy(sums, p->biases + 4 * (uint64_t)unit, 4 * n);
    for (uint32_t r = 0; r < p->n_runs; r++, x += p->run_step) {
        for (uint32_t k = 0; k < p->run_taps; k++, w += 4 * n) {
            add_tap(sums, x[k], w, n);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        out[unit + i] = cl_clamp(sums[i], p->lo, p->hi);
    }
}

static void multiply(const cl_product_f32 *p)
{
    for (uint32_t unit = 0; unit < p->n_units; unit += CL_BLOCK) {
        const uint8_t *w = p->weights + 4 * (unit * cl_f32_taps(p));
        uint32_t width = (uint32_t)cl_least(p->n_units - unit, CL_BLOCK);
        float *out = p->out;
        for (uint32_t row = 0; row < p->n_rows; row++) {
            const float *x = p->x + row * p->row_step;
            for (uint32_t col = 0; col < p->n_cols; col++) {
                if (width == CL_BLOCK) {
                    run(p, x, w, unit, CL_BLOCK, out);
                } else {
                    run(p, x, w, unit, width, out);
                }
                x += p->col_step;
                out += p->out_step;
            }
        }
    }
}

/* n channels of one position from c on, at most a block. Taps outside the
 * input are zeros. */
CL_INLINE void run_channels(const cl_depthwise_f32 *d, const cl_patch *patch,
                            uint64_t position, uint32_t c, uint32_t n)
{
    const cl_window *window = &d->op->window;
    float sums[CL_BLOCK];
    const uint8_t *w = d->weights + 4 * (uint64_t)c;
    memcpy(sums, d->biases + 4 * (uint64_t)c, 4 * n);
    for (uint32_t ky = 0; ky < window->kh; ky++) {
        for (uint32_t kx = 0; kx < window->kw; kx++) {
            bool in = ky >= patch->rows.k0 && ky < patch->rows.k1 &&
                      kx >= patch->cols.k0 && kx < patch->cols.k1;
            const float *x =
                in ? d->in + cl_tap_index(d->op, patch, ky, kx, c) : 0;
            for (uint32_t i = 0; i < n; i++) {
                sums[i] = fuse(in ? x[i] : 0.0f, cl_load_f32(w + 4 * i),
                               sums[i]);
            }
            w += 4 * (uint64_t)d->n_units;
        }
    }
    float *to = d->out + position * d->op->out.c + c;
    for (uint32_t i = 0; i < n; i++) {
        to[i] = cl_clamp(sums[i], d->op->lo, d->op->hi);
    }
}

static void depthwise(const cl_depthwise_f32 *d)
{
    uint64_t n_positions = cl_positions(&d->op->out);
    for (uint64_t i = 0; i < n_positions; i++) {
        cl_patch patch = cl_patch_of(d->op, (uint32_t)i);
        for (uint32_t c = 0; c < d->n_units; c += CL_BLOCK) {
            run_channels(d, &patch, i, c,
                         (uint32_t)cl_least(d->n_units - c, CL_BLOCK));
        }
    }
}

const cl_kernel_f32 cl_float32_plain = {"plain", multiply, depthwise, FUSED};
