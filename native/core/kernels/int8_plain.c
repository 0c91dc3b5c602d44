/* SPDX-License-Identifier: Apache-2.0
 *
 * The reference, for any machine.
 */
#include "int8.h"

/* The taps of one position times one block. */
CL_INLINE void dot(const cl_product *p, uint32_t *sums, const uint8_t *x,
                   const int8_t *w, uint32_t width)
{
    for (uint32_t r = 0; r < p->n_runs; r++, x += p->run_step) {
        const int8_t *t = (const int8_t *)x;
        for (uint32_t k = 0; k < p->run_bytes; k += 4, w += 4 * width) {
            for (uint32_t u = 0; u < width; u++) {
                const int8_t *v = w + 4 * u;
                sums[u] += (uint32_t)(t[k] * v[0] + t[k + 1] * v[1] +
                                      t[k + 2] * v[2] + t[k + 3] * v[3]);
            }
        }
    }
}

CL_INLINE void multiply_block(const cl_product *p, uint32_t unit,
                              uint32_t width, uint32_t row, uint32_t col)
{
    uint64_t at = cl_out_at(p, row, col);
    uint32_t sums[CL_BLOCK] = {0};
    if (at == CL_MAX_U64) {
        return;
    }
    dot(p, sums, cl_taps_at(p, row, col), cl_block(p, unit), width);
    for (uint32_t u = 0; u < width && unit + u < p->n_units; u++) {
        cl_finish(p, at, unit + u, sums[u] + cl_start(p, unit + u));
    }
}

CL_HOT static void multiply(const cl_product *p)
{
    for (uint32_t unit = 0; unit < p->n_units; unit += CL_BLOCK) {
        uint32_t width = cl_block_width(p, unit);
        for (uint32_t row = 0; row < p->n_rows; row++) {
            for (uint32_t col = 0; col < p->n_cols; col++) {
                if (width == CL_BLOCK) {
                    multiply_block(p, unit, CL_BLOCK, row, col);
                } else {
                    multiply_block(p, unit, width, row, col);
                }
            }
        }
    }
}

const cl_kernel cl_kernel_plain = {
    .name = "plain",
    .multiply = multiply,
};
