/* SPDX-License-Identifier: Apache-2.0
 *
 * For any machine: vectors as the compiler has them. Where it knows no
 * instruction that multiplies and adds at once, products are rounded, too.
 */
#include "float32.h"

#define TARGET
#define LANES 4u
#define TILE_ROWS 2u
#define TILE_VECTORS 4u
#define AHEAD 0

typedef float vec __attribute__((vector_size(16)));
typedef int32_t mask __attribute__((vector_size(16)));

CL_INLINE vec load(const void *from)
{
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

CL_INLINE vec load_some(const void *from, uint32_t n)
{
    vec v = {0};
    memcpy(&v, from, 4 * n);
    return v;
}

CL_INLINE void store(float *to, vec v)
{
    memcpy(to, &v, sizeof v);
}

CL_INLINE void store_some(float *to, vec v, uint32_t n)
{
    memcpy(to, &v, 4 * n);
}

CL_INLINE vec splat(float x)
{
    return (vec){x, x, x, x};
}

#if defined(__FP_FAST_FMAF)
#define FUSED true

CL_INLINE vec fuse(vec x, vec w, vec sum)
{
    for (uint32_t i = 0; i < LANES; i++) {
        sum[i] = __builtin_fmaf(x[i], w[i], sum[i]);
    }
    return sum;
}

#else
#define FUSED false

CL_INLINE vec fuse(vec x, vec w, vec sum)
{
    return sum + x * w;
}

#endif

CL_INLINE vec chosen(mask m, vec a, vec b)
{
    return (vec)((m & (mask)a) | (~m & (mask)b));
}

CL_INLINE vec clamped(vec v, vec lo, vec hi)
{
    v = chosen(v > lo, v, lo);
    return chosen(v < hi, v, hi);
}

#include "float32_vectors.h"

const cl_kernel_f32 cl_float32_plain = {"plain", multiply, depthwise, FUSED};
