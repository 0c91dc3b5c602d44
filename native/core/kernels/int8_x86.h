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

/* What results need beside their sums. */
typedef struct cl_scale {
    uint32_t unit;
    __mmask16 mask; /* units that there are */
    __m512 multiplier;
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
    return (cl_scale){unit, mask, _mm512_maskz_loadu_ps(mask, at)};
}

/* The results of one position and one block. The order of operands makes a
 * NaN and zeros clamp as cl_clamp does. */
CL_AVX512_TARGET CL_INLINE void cl_finish_512(const cl_product *p,
                                              const cl_scale *scale,
                                              uint64_t at, __m512i sums)
{
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale->multiplier);
    value = _mm512_max_ps(value, _mm512_set1_ps(p->lo));
    value = _mm512_min_ps(value, _mm512_set1_ps(p->hi));
    if (p->to_float) {
        _mm512_mask_storeu_ps(p->out + 4 * (at + scale->unit), scale->mask,
                              value);
        return;
    }
    __m512i whole = _mm512_cvt_roundps_epi32(
        value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    whole = _mm512_add_epi32(whole, _mm512_set1_epi32(p->zero));
    _mm512_mask_cvtepi32_storeu_epi8(p->out + at + scale->unit, scale->mask,
                                     whole);
}

#endif
