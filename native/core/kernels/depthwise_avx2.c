/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise int8 convs on x86-64 with AVX2: two taps of a channel side by side
 * in 16 bits, which one instruction multiplies and adds.
 */
#include "depthwise_int8.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))
#define CHANNELS 16u

/* Two taps of each of sixteen channels. */
typedef struct pair {
    __m256i low, high; /* eight channels */
} pair;

typedef struct cl_depth_block {
    const cl_op *op;
    pair weights[CL_MOST_TAPS / 2];
    uint32_t n_pairs;
    int8_t *out;
    __m256i start[2];
    __m256 multiplier[2];
} block;

TARGET CL_INLINE pair pair_of(const void *a, const void *b)
{
    __m128i x = _mm_loadu_si128(a);
    __m128i y = _mm_loadu_si128(b);
    return (pair){_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y)),
                  _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y))};
}

/* Weights, and where sums start: bias - zero * sum of the weights. */
TARGET static void spread(block *b, const cl_depthwise_i8 *d, uint32_t c)
{
    static const int8_t none[CHANNELS] = {0};
    uint32_t n_taps = cl_depth_n_taps(d->op);
    const int8_t *w = d->weights + c;
    __m256i ones = _mm256_set1_epi16(1), zero = _mm256_set1_epi32(d->op->in.zero);
    __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    *b = (block){.op = d->op, .n_pairs = (n_taps + 1) / 2};
    b->out = (int8_t *)d->out + c;
    for (uint32_t k = 0; k < n_taps; k += 2, w += 2 * (uint64_t)d->n_units) {
        pair p = pair_of(w, k + 1 < n_taps ? w + d->n_units : none);
        b->weights[k / 2] = p;
        sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(p.low, ones));
        sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(p.high, ones));
    }
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t at = 4 * ((uint64_t)c + 8 * i);
        __m256i bias = _mm256_loadu_si256((const void *)(d->biases + at));
        __m256i shift = _mm256_mullo_epi32(zero, sums[i]);
        b->start[i] = _mm256_sub_epi32(bias, shift);
        b->multiplier[i] = _mm256_loadu_ps((const void *)(d->multipliers + at));
    }
}

/* Eight results in 32 bits. */
TARGET CL_INLINE __m256i results_of(const cl_op *op, __m256i sums,
                                    __m256 multiplier)
{
    __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), multiplier);
    value = _mm256_max_ps(value, _mm256_set1_ps(op->lo));
    value = _mm256_min_ps(value, _mm256_set1_ps(op->hi));
    value = _mm256_round_ps(value,
                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_add_epi32(_mm256_cvttps_epi32(value),
                            _mm256_set1_epi32(op->zero));
}

TARGET CL_INLINE void run(const block *b, cl_depth_taps taps,
                          uint64_t position)
{
    __m256i low = b->start[0], high = b->start[1];
    for (uint32_t i = 0; i < b->n_pairs; i++) {
        pair w = b->weights[i], x = pair_of(cl_depth_tap(taps, 2 * i),
                                            cl_depth_tap(taps, 2 * i + 1));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(x.low, w.low));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(x.high, w.high));
    }
    __m256i words = _mm256_packs_epi32(
        results_of(b->op, low, b->multiplier[0]),
        results_of(b->op, high, b->multiplier[1]));
    words = _mm256_permute4x64_epi64(words, 0xD8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words),
                                    _mm256_extracti128_si256(words, 1));
    int8_t *to = b->out + position * b->op->out.c;
    _mm_storeu_si128((void *)to, bytes);
}

TARGET bool cl_depthwise_avx2(const cl_depthwise_i8 *d)
{
    cl_depth_window window;
    block b;
    if (!cl_depth_suits(d, CHANNELS)) {
        return false;
    }
    cl_depth_start(&window, d->op);
    for (uint32_t c = 0; c < d->n_units; c += CHANNELS) {
        /* The last block takes channels anew that the one before had. */
        uint32_t first = (uint32_t)cl_least(c, d->n_units - CHANNELS);
        spread(&b, d, first);
        window.in = d->in + first;
        cl_depth_each(&window, &b, run);
    }
    return true;
}

#endif
