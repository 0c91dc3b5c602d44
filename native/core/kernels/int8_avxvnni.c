/* SPDX-License-Identifier: Apache-2.0
 *
 * x86-64 with AVX-VNNI: four taps of eight units in one instruction.
 */
#include "int8.h"

#if defined(__x86_64__)

#include "int8_x86.h"

#define TARGET __attribute__((target("avx2,avxvnni")))
#define SIZE 6u
#define HALVES 2u /* of a block */

TARGET CL_INLINE void add_taps(const cl_product *p, __m256i (*sums)[HALVES],
                               const cl_rows *rows, uint32_t n,
                               uint32_t n_halves, const __m256i *masks)
{
    const int8_t *w = rows->w;
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t at = r * p->run_step, end = at + p->run_bytes;
        for (; at < end; at += 4, w += 4 * rows->width) {
            __m256i v[HALVES];
            CL_UNROLL for (uint32_t h = 0; h < n_halves; h++) {
                const int *from = (const int *)(const void *)(w + 32 * h);
                v[h] = _mm256_maskload_epi32(from, masks[h]);
            }
            CL_UNROLL for (uint32_t i = 0; i < n; i++) {
                uint32_t four = cl_load_u32(rows->x[i] + at);
                __m256i x = _mm256_set1_epi32(cl_as_i32(four));
                CL_UNROLL for (uint32_t h = 0; h < n_halves; h++) {
                    sums[i][h] =
                        _mm256_dpbusd_avx_epi32(sums[i][h], x, v[h]);
                }
            }
        }
    }
}

TARGET CL_INLINE void run_halves(const cl_product *p, const cl_rows *rows,
                                 uint32_t n, uint32_t n_halves)
{
    __m256i sums[SIZE][HALVES];
    const __m256i masks[HALVES] = {
        cl_mask_8(rows->width),
        cl_mask_8(rows->width > 8 ? rows->width - 8 : 0),
    };
    uint32_t left = p->n_units - rows->unit;
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        CL_UNROLL for (uint32_t h = 0; h < n_halves; h++) {
            sums[i][h] = _mm256_setzero_si256();
        }
    }
    add_taps(p, sums, rows, n, n_halves, masks);
    CL_UNROLL for (uint32_t h = 0; h < n_halves; h++) {
        if (left <= 8 * h) {
            return;
        }
        uint32_t n_units = left - 8 * h < 8 ? left - 8 * h : 8;
        CL_UNROLL for (uint32_t i = 0; i < n; i++) {
            cl_finish_8(p, rows->out[i], rows->unit + 8 * h, n_units,
                        sums[i][h]);
        }
    }
}

TARGET CL_INLINE void run(const cl_product *p, const cl_rows *rows, uint32_t n)
{
    if (rows->width > 8) {
        run_halves(p, rows, n, 2);
    } else {
        run_halves(p, rows, n, 1);
    }
}

TARGET static void multiply(const cl_product *p)
{
    for (uint32_t unit = 0; unit < p->n_units; unit += CL_BLOCK) {
        cl_each_rows(p, unit, SIZE, run);
    }
}

const cl_kernel cl_kernel_avxvnni = {
    .name = "avxvnni",
    .multiply = multiply,
    .depthwise = cl_depthwise_avx2,
    .moved = true,
};

#endif
