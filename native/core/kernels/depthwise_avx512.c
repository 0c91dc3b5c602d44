/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise int8 convs on x86-64 with AVX-512 VNNI: four taps of a channel side
 * by side, which one instruction multiplies and adds.
 */
#include "depthwise_int8.h"

#if defined(__x86_64__)

#include "int8_x86.h"

#define TARGET CL_AVX512_TARGET
#define CHANNELS 64u
#define QUARTERS 4u

/* Four taps of each of 64 channels. Register q has channels 4q..4q+3 of every
 * sixteen, as interleaving leaves them. */
typedef struct four {
    __m512i q[QUARTERS];
} four;

typedef struct cl_depth_block {
    const cl_op *op;
    four weights[CL_MOST_TAPS / 4];
    uint32_t n_fours;
    int8_t *out;
    __mmask64 mask; /* channels that there are */
    __m512i start[QUARTERS];
    __m512 multiplier[QUARTERS];
} block;

TARGET CL_INLINE four four_of(const __m512i *x)
{
    __m512i low01 = _mm512_unpacklo_epi8(x[0], x[1]);
    __m512i low23 = _mm512_unpacklo_epi8(x[2], x[3]);
    __m512i high01 = _mm512_unpackhi_epi8(x[0], x[1]);
    __m512i high23 = _mm512_unpackhi_epi8(x[2], x[3]);
    return (four){{_mm512_unpacklo_epi16(low01, low23),
                   _mm512_unpackhi_epi16(low01, low23),
                   _mm512_unpacklo_epi16(high01, high23),
                   _mm512_unpackhi_epi16(high01, high23)}};
}

/* Numbers of 32 bits of n channels, as register q has them; 0 for others. */
TARGET CL_INLINE __m512i quarter(const uint8_t *from, uint32_t n, uint32_t q)
{
    uint32_t words[16] = {0};
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t channel = i / 4 * 16 + 4 * q + i % 4;
        if (channel < n) {
            words[i] = cl_load_u32(from + 4 * channel);
        }
    }
    return _mm512_loadu_si512(words);
}

/* Weights, and where sums start: taps are 128 more than they are, so bias -
 * (zero + 128) * sum of the weights. */
TARGET static void spread(block *b, const cl_depthwise_i8 *d, uint32_t c)
{
    uint32_t n_taps = cl_depth_n_taps(d->op), n = d->n_units - c;
    const int8_t *w = d->weights + c;
    __m512i zero = _mm512_set1_epi32(d->op->in.zero + 128);
    __m512i ones = _mm512_set1_epi8(1), sums[QUARTERS] = {{0}};
    n = n < CHANNELS ? n : CHANNELS;
    b->op = d->op;
    b->n_fours = (n_taps + 3) / 4;
    b->out = (int8_t *)d->out + c;
    b->mask = n < CHANNELS ? ((__mmask64)1 << n) - 1 : ~(__mmask64)0;
    for (uint32_t i = 0; i < b->n_fours; i++) {
        __m512i x[4];
        for (uint32_t k = 0; k < 4; k++, w += d->n_units) {
            __mmask64 mask = 4 * i + k < n_taps ? b->mask : 0;
            x[k] = _mm512_maskz_loadu_epi8(mask, mask != 0 ? w : d->weights);
        }
        b->weights[i] = four_of(x);
        CL_UNROLL for (uint32_t q = 0; q < QUARTERS; q++) {
            sums[q] = _mm512_dpbusd_epi32(sums[q], ones, b->weights[i].q[q]);
        }
    }
    CL_UNROLL for (uint32_t q = 0; q < QUARTERS; q++) {
        __m512i bias = quarter(d->biases + 4 * (uint64_t)c, n, q);
        __m512i shift = _mm512_mullo_epi32(zero, sums[q]);
        b->start[q] = _mm512_sub_epi32(bias, shift);
        b->multiplier[q] = _mm512_castsi512_ps(
            quarter(d->multipliers + 4 * (uint64_t)c, n, q));
    }
}

/* Sixteen results in 32 bits. */
TARGET CL_INLINE __m512i results_of(const cl_op *op, __m512i sums,
                                    __m512 multiplier)
{
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), multiplier);
    value = _mm512_max_ps(value, _mm512_set1_ps(op->lo));
    value = _mm512_min_ps(value, _mm512_set1_ps(op->hi));
    __m512i whole = _mm512_cvt_roundps_epi32(
        value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_add_epi32(whole, _mm512_set1_epi32(op->zero));
}

/* One position. In: whole: whether there are all 64 channels, a constant. */
TARGET CL_INLINE void run(const block *b, cl_depth_taps taps,
                          uint64_t position, bool whole)
{
    __m512i sums[QUARTERS], flip = _mm512_set1_epi8((char)-128);
    CL_UNROLL for (uint32_t q = 0; q < QUARTERS; q++) {
        sums[q] = b->start[q];
    }
    for (uint32_t i = 0; i < b->n_fours; i++) {
        __m512i x[4];
        CL_UNROLL for (uint32_t k = 0; k < 4; k++) {
            const void *from = cl_depth_tap(taps, 4 * i + k);
            x[k] = whole ? _mm512_loadu_si512(from)
                         : _mm512_maskz_loadu_epi8(b->mask, from);
            x[k] = _mm512_xor_si512(x[k], flip);
        }
        four fours = four_of(x);
        CL_UNROLL for (uint32_t q = 0; q < QUARTERS; q++) {
            sums[q] = _mm512_dpbusd_epi32(sums[q], fours.q[q],
                                          b->weights[i].q[q]);
        }
    }
    CL_UNROLL for (uint32_t q = 0; q < QUARTERS; q++) {
        sums[q] = results_of(b->op, sums[q], b->multiplier[q]);
    }
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(sums[0], sums[1]),
                                       _mm512_packs_epi32(sums[2], sums[3]));
    _mm512_mask_storeu_epi8(b->out + position * b->op->out.c, b->mask, bytes);
}

TARGET CL_INLINE void run_whole(const block *b, cl_depth_taps taps,
                                uint64_t position)
{
    run(b, taps, position, true);
}

TARGET CL_INLINE void run_part(const block *b, cl_depth_taps taps,
                               uint64_t position)
{
    run(b, taps, position, false);
}

TARGET bool cl_depthwise_avx512(const cl_depthwise_i8 *d)
{
    cl_depth_window window;
    block b;
    if (!cl_depth_suits(d, 1)) {
        return false;
    }
    cl_depth_start(&window, d->op);
    for (uint32_t c = 0; c < d->n_units; c += CHANNELS) {
        spread(&b, d, c);
        window.in = d->in + c;
        if (d->n_units - c >= CHANNELS) {
            cl_depth_each(&window, &b, run_whole);
        } else {
            cl_depth_each(&window, &b, run_part);
        }
    }
    return true;
}

#endif
