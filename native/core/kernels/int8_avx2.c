/* SPDX-License-Identifier: Apache-2.0
 *
 * x86-64 with AVX2: products of 16 bits, added in pairs, which is exact (the
 * instruction for bytes saturates).
 */
#include "int8.h"

#if defined(__x86_64__)

#include "int8_x86.h"

#define TARGET CL_AVX2_TARGET
#define SIZE 3u
#define QUADS 4u /* of a block; a register has two sums for each unit */

TARGET CL_INLINE void add_taps(const cl_product *p, __m256i (*sums)[QUADS],
                               const cl_rows *rows, uint32_t first, uint32_t n,
                               uint32_t n_quads)
{
    const int8_t *w = rows->w + 16 * first;
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t at = r * p->run_step, end = at + p->run_bytes;
        for (; at < end; at += 4, w += 4 * rows->width) {
            __m256i x[SIZE];
            CL_UNROLL for (uint32_t i = 0; i < n; i++) {
                uint32_t four = cl_load_u32(rows->x[i] + at);
                x[i] = _mm256_cvtepi8_epi16(_mm_set1_epi32(cl_as_i32(four)));
            }
            CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
                const void *from = w + 16 * q;
                __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128(from));
                CL_UNROLL for (uint32_t i = 0; i < n; i++) {
                    sums[i][q] = _mm256_add_epi32(sums[i][q],
                                                  _mm256_madd_epi16(x[i], v));
                }
            }
        }
    }
}

/* The sums of eight units from the pairs of two quads. */
TARGET CL_INLINE __m256i joined(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xD8);
}

/* Some quads from `first` on: four, or one of a narrow block. */
TARGET CL_INLINE void run_quads(const cl_product *p, const cl_rows *rows,
                                uint32_t first, uint32_t n, uint32_t n_quads)
{
    __m256i sums[SIZE][QUADS];
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        CL_UNROLL for (uint32_t q = 0; q < QUADS; q++) {
            sums[i][q] = _mm256_setzero_si256();
        }
    }
    add_taps(p, sums, rows, first, n, n_quads);
    CL_UNROLL for (uint32_t q = 0; q < n_quads; q += 2) {
        uint32_t unit = rows->unit + 4 * (first + q), most = n_quads > 1 ? 8 : 4;
        if (unit >= p->n_units) {
            return;
        }
        uint32_t left = p->n_units - unit;
        CL_UNROLL for (uint32_t i = 0; i < n; i++) {
            cl_finish_8(p, rows->out[i], unit, left < most ? left : most,
                        joined(sums[i][q], sums[i][q + 1]));
        }
    }
}

TARGET CL_INLINE void run(const cl_product *p, const cl_rows *rows, uint32_t n)
{
    if (rows->width == CL_BLOCK) {
        run_quads(p, rows, 0, n, QUADS);
        return;
    }
    for (uint32_t q = 0; q < rows->width / 4; q++) {
        run_quads(p, rows, q, n, 1);
    }
}

TARGET static void multiply(const cl_product *p)
{
    for (uint32_t unit = 0; unit < p->n_units; unit += CL_BLOCK) {
        cl_each_rows(p, unit, SIZE, run);
    }
}

const cl_kernel cl_kernel_avx2 = {
    .name = "avx2",
    .multiply = multiply,
    .depthwise = cl_depthwise_avx2,
};

#endif
