/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels for x86-64 share: sixteen results from their sums. Files
 * are compiled for any x86-64; functions say what they need.
 */
#ifndef CL_INT8_X86_H
#define CL_INT8_X86_H

#include <immintrin.h>

#include "int8.h"

#define CL_AVX512_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

/* All positions, for the units from `unit` on, a multiple of CL_BLOCK. */
void cl_avx512_units(const cl_product *p, uint32_t unit);

/* What results of a block need beside their sums; kept in registers, since a
 * store of bytes could change anything in memory. */
typedef struct cl_scale {
    uint8_t *out; /* the block's first unit of the first position */
    bool to_float;
    __mmask16 mask; /* units that there are */
    __m512 multiplier, lo, hi;
    __m512i zero;
} cl_scale;

CL_AVX512_TARGET CL_INLINE __mmask16 cl_mask_16(uint32_t n)
{
    return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xFFFF);
}

/* Where the sums of a block start. */
CL_AVX512_TARGET CL_INLINE __m512i cl_start_16(const cl_product *p,
                                               uint32_t unit)
{
    __mmask16 mask = cl_mask_16(p->n_units - unit);
    uint64_t at = 4 * (uint64_t)unit;
    __m512i bias = _mm512_maskz_loadu_epi32(mask, p->biases + at);
    __m512i sum = _mm512_maskz_loadu_epi32(mask, p->sums + at);
    __m512i zero = _mm512_set1_epi32(p->zero_in);
    return _mm512_sub_epi32(bias, _mm512_mullo_epi32(zero, sum));
}

CL_AVX512_TARGET CL_INLINE cl_scale cl_scale_16(const cl_product *p,
                                                uint32_t unit)
{
    __mmask16 mask = cl_mask_16(p->n_units - unit);
    const uint8_t *at = p->multipliers + 4 * (uint64_t)unit;
    return (cl_scale){
        .out = p->out + (p->to_float ? 4 * (uint64_t)unit : unit),
        .to_float = p->to_float,
        .mask = mask,
        .multiplier = _mm512_maskz_loadu_ps(mask, at),
        .lo = _mm512_set1_ps(p->lo),
        .hi = _mm512_set1_ps(p->hi),
        .zero = _mm512_set1_epi32(p->zero),
    };
}

/* The results of one position and one block. The order of operands makes a
 * NaN and zeros clamp as cl_clamp does. */
CL_AVX512_TARGET CL_INLINE void cl_finish_512(const cl_scale *s, uint64_t at,
                                              __m512i sums)
{
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), s->multiplier);
    value = _mm512_min_ps(_mm512_max_ps(value, s->lo), s->hi);
    if (s->to_float) {
        _mm512_mask_storeu_ps(s->out + 4 * at, s->mask, value);
        return;
    }
    __m512i whole = _mm512_cvt_roundps_epi32(
        value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    whole = _mm512_add_epi32(whole, s->zero);
    if (s->mask == 0xFFFF) {
        _mm_storeu_si128((__m128i *)(void *)(s->out + at),
                         _mm512_cvtepi32_epi8(whole));
    } else {
        _mm512_mask_cvtepi32_storeu_epi8(s->out + at, s->mask, whole);
    }
}

/* ---- Eight units at a time --------------------------------------------- */

#define CL_AVX2_TARGET __attribute__((target("avx2")))
#define CL_MOST_ROWS 6u

/* Some positions and one block. */
typedef struct cl_rows {
    const uint8_t *x[CL_MOST_ROWS];
    uint64_t out[CL_MOST_ROWS]; /* elements from p->out */
    const int8_t *w;
    uint32_t unit;
    uint32_t width;
} cl_rows;

/* The first n of eight lanes. */
CL_AVX2_TARGET CL_INLINE __m256i cl_mask_8(uint32_t n)
{
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)n), lanes);
}

/* Results of one position for n units from `unit` on, n from 1 to 8. In: sums:
 * without their start. */
CL_AVX2_TARGET CL_INLINE void cl_finish_8(const cl_product *p, uint64_t at,
                                          uint32_t unit, uint32_t n,
                                          __m256i sums)
{
    __m256i mask = cl_mask_8(n);
    const int *biases = (const int *)(const void *)p->biases + unit;
    const int *totals = (const int *)(const void *)p->sums + unit;
    const float *m = (const float *)(const void *)p->multipliers + unit;
    __m256i start = _mm256_mullo_epi32(_mm256_set1_epi32(p->zero_in),
                                       _mm256_maskload_epi32(totals, mask));
    start = _mm256_sub_epi32(_mm256_maskload_epi32(biases, mask), start);
    __m256 value = _mm256_cvtepi32_ps(_mm256_add_epi32(sums, start));
    value = _mm256_mul_ps(value, _mm256_maskload_ps(m, mask));
    value = _mm256_max_ps(value, _mm256_set1_ps(p->lo));
    value = _mm256_min_ps(value, _mm256_set1_ps(p->hi));
    if (p->to_float) {
        float *out = (float *)(void *)p->out + at + unit;
        _mm256_maskstore_ps(out, mask, value);
        return;
    }
    value = _mm256_round_ps(value,
                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256i whole = _mm256_add_epi32(_mm256_cvttps_epi32(value),
                                     _mm256_set1_epi32(p->zero));
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                    _mm256_extracti128_si256(whole, 1));
    uint64_t bytes = (uint64_t)_mm_cvtsi128_si64(_mm_packs_epi16(words, words));
    memcpy(p->out + at + unit, &bytes, n);
}

/* Take all positions for one block, in tiles of `size` and of one.
 * In: run: adds up n positions, a constant. */
CL_INLINE void cl_each_rows(const cl_product *p, uint32_t unit, uint32_t size,
                            void (*run)(const cl_product *p,
                                        const cl_rows *rows, uint32_t n))
{
    uint64_t n_positions = (uint64_t)p->n_rows * p->n_cols;
    uint32_t row = 0, col = 0, n = 0;
    cl_rows rows = {.unit = unit, .width = cl_block_width(p, unit)};
    rows.w = cl_block(p, unit);
    for (uint64_t i = 0; i < n_positions; i++) {
        rows.x[n] = cl_taps_at(p, row, col);
        rows.out[n] = i * p->out_step;
        n++;
        col++;
        if (col == p->n_cols) {
            col = 0;
            row++;
        }
        if (n == size) {
            run(p, &rows, size);
            n = 0;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        rows.x[0] = rows.x[i];
        rows.out[0] = rows.out[i];
        run(p, &rows, 1);
    }
}

#endif
