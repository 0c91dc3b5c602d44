/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of float32 rows with packed weights: what each instruction set
 * implements once, and conv_float32.c prepares. A result is one chain of
 * multiply-adds over the taps in order, so vectors run over units.
 */
#ifndef CL_FLOAT32_H
#define CL_FLOAT32_H

#include "depthwise.h"
#include "sets.h"

/* Positions in a grid times the units of one group in one slice.
 *
 * A position's taps are n_runs runs of run_taps numbers. Weights are blocks of
 * CL_BLOCK units, [taps][units]; the last block has as many units as are
 * left. */
typedef struct cl_product_f32 {
    const float *x; /* first tap of the first position */
    uint32_t n_rows;
    uint32_t n_cols;
    uint64_t row_step; /* numbers in x */
    uint64_t col_step;
    uint32_t n_runs;
    uint32_t run_taps;
    uint64_t run_step;
    const uint8_t *weights;
    const uint8_t *biases;
    uint32_t n_units;
    float *out; /* first unit of the first position */
    uint64_t out_step; /* numbers from one position to the next */
    float lo, hi;
} cl_product_f32;

/* One slice of a depthwise conv: weights are [taps][units]. */
typedef struct cl_depthwise_f32 {
    const cl_op *op;
    const float *in; /* the slice's first channel */
    const uint8_t *weights;
    const uint8_t *biases;
    uint32_t n_units;
    float *out; /* the slice's first unit of the first position */
} cl_depthwise_f32;

/* One way to compute them. All that fuse give the same bits. */
typedef struct cl_kernel_f32 {
    const char *name;
    void (*multiply)(const cl_product_f32 *p);
    void (*depthwise)(const cl_depthwise_f32 *d, const cl_patch *patch);
    bool fused; /* a multiply-add rounds once */
} cl_kernel_f32;

/* Kernels for this machine that a caller may choose from, best first.
 * Returns: null for index >= their number. In: sets: that may be used. */
const cl_kernel_f32 *cl_kernel_f32_at(uint32_t index, uint32_t sets);

extern const cl_kernel_f32 cl_float32_plain;
extern const cl_kernel_f32 cl_float32_neon; /* 64-bit Arm */
extern const cl_kernel_f32 cl_float32_avx512, cl_float32_avx2; /* x86-64 */

/* ---- For the kernels --------------------------------------------------- */

/* Before a loop over registers, whose number is a constant. */
#define CL_UNROLL _Pragma("GCC unroll 16")

CL_INLINE uint64_t cl_f32_taps(const cl_product_f32 *p)
{
    return (uint64_t)p->n_runs * p->run_taps;
}

#endif
