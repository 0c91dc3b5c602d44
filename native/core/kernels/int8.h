/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of int8 rows with packed weights: what each instruction set
 * implements once, and conv_int8.c prepares. All give the same bits: sums are
 * exact modulo 2^32, and float32 operations are single ones in one order.
 */
#ifndef CL_INT8_H
#define CL_INT8_H

#include "depthwise.h"
#include "sets.h"

/* Positions in a grid times the units of one group in one slice.
 *
 * A position's taps are n_runs runs of run_bytes (a multiple of 4; what is
 * behind the window's own taps meets weights of 0). Kernels with `moved` get
 * unsigned taps: 128 more.
 *
 * Weights are blocks of CL_BLOCK units, [taps / 4][units][4]; the last block
 * has as many units as are left, rounded up to a multiple of 4. */
typedef struct cl_product {
    const uint8_t *x; /* first tap of the first position */
    uint32_t n_rows;
    uint32_t n_cols;
    uint64_t row_step; /* bytes in x */
    uint64_t col_step;
    uint32_t n_runs;
    uint32_t run_bytes;
    uint64_t run_step;
    const int8_t *weights;
    const uint8_t *multipliers; /* for each unit an f32 */
    const uint8_t *biases;      /* i32 */
    const uint8_t *sums;        /* i32, of its weights */
    uint32_t n_units;
    int32_t zero_in; /* what a tap of zero holds in x */
    bool to_float;
    uint8_t *out; /* first unit of the first position */
    uint64_t out_step; /* elements from one position to the next */
    /* Columns c with c % wrap >= valid are no positions of the output. */
    uint32_t wrap;
    uint32_t valid;
    float lo, hi;
    int32_t zero;
} cl_product;

/* One slice of a depthwise conv: weights are [taps][units]. */
typedef struct cl_depthwise_i8 {
    const cl_op *op;
    const int8_t *in; /* the slice's first channel */
    const int8_t *weights;
    const uint8_t *multipliers;
    const uint8_t *biases;
    uint32_t n_units;
    uint8_t *out; /* the slice's first unit of the first position */
} cl_depthwise_i8;

/* SMMLA, and SDOT for what it is too wide for. */
#if defined(__aarch64__) && defined(__ARM_FEATURE_MATMUL_INT8) && \
    defined(__ARM_FEATURE_DOTPROD)
#define CL_HAS_I8MM
#endif

/* One way to compute products. */
typedef struct cl_kernel {
    const char *name;
    void (*multiply)(const cl_product *p);
    /* Returns: false if it leaves this conv to plain C. May be null. */
    bool (*depthwise)(const cl_depthwise_i8 *d);
    bool moved; /* wants unsigned taps */
    bool even;  /* wants one long row of evenly spaced positions */
} cl_kernel;

/* Kernels for this machine that a caller may choose from, best first.
 * Returns: null for index >= their number. In: sets: that may be used. */
const cl_kernel *cl_kernel_at(uint32_t index, uint32_t sets);

bool cl_depthwise_avx512(const cl_depthwise_i8 *d);
bool cl_depthwise_avx2(const cl_depthwise_i8 *d);
bool cl_depthwise_neon(const cl_depthwise_i8 *d);

extern const cl_kernel cl_kernel_plain;
extern const cl_kernel cl_kernel_i8mm, cl_kernel_dot,
    cl_kernel_neon; /* 64-bit Arm */
extern const cl_kernel cl_kernel_amx, cl_kernel_avx512, cl_kernel_avxvnni,
    cl_kernel_avx2; /* x86-64 */

/* ---- For the kernels --------------------------------------------------- */

/* Before a loop over registers, whose number is a constant. */
#define CL_UNROLL _Pragma("GCC unroll 16")

CL_INLINE uint64_t cl_product_taps(const cl_product *p)
{
    return (uint64_t)p->n_runs * p->run_bytes;
}

/* Units of a block that begins at `unit`, rounded up as they are stored. */
CL_INLINE uint32_t cl_block_width(const cl_product *p, uint32_t unit)
{
    uint32_t left = p->n_units - unit;
    return left < CL_BLOCK ? (left + 3) & ~3u : CL_BLOCK;
}

CL_INLINE const int8_t *cl_block(const cl_product *p, uint32_t unit)
{
    return p->weights + unit * cl_product_taps(p);
}

CL_INLINE const uint8_t *cl_taps_at(const cl_product *p, uint32_t row,
                                    uint32_t col)
{
    return p->x + row * p->row_step + col * p->col_step;
}

/* Returns: where a position's results go, counted in elements from p->out;
 * CL_MAX_U64 for none. */
CL_INLINE uint64_t cl_out_at(const cl_product *p, uint32_t row, uint32_t col)
{
    if (p->wrap != p->n_cols) {
        row += col / p->wrap;
        col %= p->wrap;
        if (col >= p->valid) {
            return CL_MAX_U64;
        }
    }
    return ((uint64_t)row * p->valid + col) * p->out_step;
}

/* Sums start here: bias - zero * sum of weights, modulo 2^32. */
CL_INLINE uint32_t cl_start(const cl_product *p, uint32_t unit)
{
    uint64_t at = 4 * (uint64_t)unit;
    return cl_load_u32(p->biases + at) -
           (uint32_t)p->zero_in * cl_load_u32(p->sums + at);
}

/* One result from its sum. In: at: of unit 0. */
CL_INLINE void cl_finish(const cl_product *p, uint64_t at, uint32_t unit,
                         uint32_t sum)
{
    float m = cl_load_f32(p->multipliers + 4 * (uint64_t)unit);
    float value = (float)cl_as_i32(sum) * m;
    if (p->to_float) {
        cl_store_f32(p->out + 4 * (at + unit), cl_clamp(value, p->lo, p->hi));
    } else {
        p->out[at + unit] =
            (uint8_t)cl_quantize(value, p->lo, p->hi, p->zero);
    }
}

#endif
