/* SPDX-License-Identifier: Apache-2.0
 *
 * x86-64 with AVX2 and FMA: a block is two vectors.
 */
#include "float32.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8u
#define TILE_ROWS 6u
#define TILE_VECTORS 2u
#define AHEAD 1024

typedef __m256 vec;

TARGET CL_INLINE __m256i mask_of(uint32_t n)
{
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)n), lanes);
}

TARGET CL_INLINE vec load(const void *from)
{
    return _mm256_loadu_ps(from);
}

TARGET CL_INLINE vec load_some(const void *from, uint32_t n)
{
    return _mm256_maskload_ps(from, mask_of(n));
}

TARGET CL_INLINE void store(float *to, vec v)
{
    _mm256_storeu_ps(to, v);
}

TARGET CL_INLINE void store_some(float *to, vec v, uint32_t n)
{
    _mm256_maskstore_ps(to, mask_of(n), v);
}

TARGET CL_INLINE vec splat(float x)
{
    return _mm256_set1_ps(x);
}

TARGET CL_INLINE vec fuse(vec x, vec w, vec sum)
{
    return _mm256_fmadd_ps(x, w, sum);
}

TARGET CL_INLINE vec clamped(vec v, vec lo, vec hi)
{
    return _mm256_min_ps(_mm256_max_ps(v, lo), hi);
}

#include "float32_vectors.h"

const cl_kernel_f32 cl_float32_avx2 = {"avx2", multiply, depthwise, true};

#endif
