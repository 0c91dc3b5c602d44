/* SPDX-License-Identifier: Apache-2.0
 *
 * What all kernels share: pointers into the arena, clamping and rounding.
 */
#ifndef CL_ARITHMETIC_H
#define CL_ARITHMETIC_H

#include <stdint.h>

#include "bytes.h"
#include "program.h"

/* Functions that take the time are compiled for several vector widths where
 * the build says that the loader can choose among them. All give the same
 * bits: integers are exact and float32 operations are never fused. */
#ifdef CL_VECTOR_CLONES
#define CL_HOT                                                          \
    __attribute__((target_clones("default", "avx2", "arch=skylake-avx512", \
                                 "arch=icelake-server")))
#else
#define CL_HOT
#endif

#define CL_INLINE static inline __attribute__((always_inline))

CL_INLINE int8_t *cl_at_i8(uint8_t *arena, const cl_tensor *tensor)
{
    return (int8_t *)(arena + tensor->offset);
}

/* Offsets of tensors are multiples of 16 and the arena is aligned to 64. */
CL_INLINE float *cl_at_f32(uint8_t *arena, const cl_tensor *tensor)
{
    return (float *)(void *)(arena + tensor->offset);
}

/* Returns: value clamped; a NaN gives lo. */
CL_INLINE float cl_clamp(float value, float lo, float hi)
{
    value = value > lo ? value : lo;
    return value < hi ? value : hi;
}

/* Returns: the nearest whole number, halves to even. In: |value| < 2^22.
 * Adding 1.5 * 2^23 leaves no bits for a fraction, so the addition rounds. */
CL_INLINE float cl_round(float value)
{
    return (value + 12582912.0f) - 12582912.0f;
}

/* Returns: value as an int8 output. In: lo, hi without the zero point. */
CL_INLINE int8_t cl_quantize(float value, float lo, float hi, int32_t zero)
{
    return (int8_t)((int32_t)cl_round(cl_clamp(value, lo, hi)) + zero);
}

CL_INLINE uint64_t cl_least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

CL_INLINE uint64_t cl_positions(const cl_tensor *tensor)
{
    return (uint64_t)tensor->h * tensor->w;
}

#endif
