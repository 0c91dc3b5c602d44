/* SPDX-License-Identifier: Apache-2.0
 *
 * x86-64 with AVX-512: a block is one vector.
 */
#include "float32.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f")))
#define LANES 16u
#define TILE_ROWS 8u
#define TILE_VECTORS 2u
#define AHEAD 2048

typedef __m512 vec;

TARGET CL_INLINE __mmask16 mask_of(uint32_t n)
{
    return (__mmask16)((1u << n) - 1);
}

TARGET CL_INLINE vec load(const void *from)
{
    return _mm512_loadu_ps(from);
}

TARGET CL_INLINE vec load_some(const void *from, uint32_t n)
{
    return _mm512_maskz_loadu_ps(mask_of(n), from);
}

TARGET CL_INLINE void store(float *to, vec v)
{
    _mm512_storeu_ps(to, v);
}

TARGET CL_INLINE void store_some(float *to, vec v, uint32_t n)
{
    _mm512_mask_storeu_ps(to, mask_of(n), v);
}

TARGET CL_INLINE vec splat(float x)
{
    return _mm512_set1_ps(x);
}

TARGET CL_INLINE vec fuse(vec x, vec w, vec sum)
{
    return _mm512_fmadd_ps(x, w, sum);
}

TARGET CL_INLINE vec clamped(vec v, vec lo, vec hi)
{
    return _mm512_min_ps(_mm512_max_ps(v, lo), hi);
}

#include "float32_vectors.h"

const cl_kernel_f32 cl_float32_avx512 = {"avx512", multiply, depthwise, true};

#endif
