/* SPDX-License-Identifier: Apache-2.0
 *
 * 64-bit Arm: a block is four vectors.
 */
#include "float32.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET
#define LANES 4u
#define TILE_ROWS 4u
#define TILE_VECTORS 4u
#define AHEAD 0

typedef float32x4_t vec;

CL_INLINE vec load(const void *from)
{
    return vreinterpretq_f32_u8(vld1q_u8(from));
}

CL_INLINE vec load_some(const void *from, uint32_t n)
{
    float lanes[LANES] = {0};
    memcpy(lanes, from, 4 * n);
    return vld1q_f32(lanes);
}

CL_INLINE void store(float *to, vec v)
{
    vst1q_f32(to, v);
}

CL_INLINE void store_some(float *to, vec v, uint32_t n)
{
    float lanes[LANES];
    vst1q_f32(lanes, v);
    memcpy(to, lanes, 4 * n);
}

CL_INLINE vec splat(float x)
{
    return vdupq_n_f32(x);
}

CL_INLINE vec fuse(vec x, vec w, vec sum)
{
    return vfmaq_f32(sum, w, x);
}

CL_INLINE vec clamped(vec v, vec lo, vec hi)
{
    v = vbslq_f32(vcgtq_f32(v, lo), v, lo);
    return vbslq_f32(vcltq_f32(v, hi), v, hi);
}

#include "float32_vectors.h"

const cl_kernel_f32 cl_float32_neon = {"neon", multiply, depthwise, true};

#endif
