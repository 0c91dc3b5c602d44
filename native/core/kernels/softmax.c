/* SPDX-License-Identifier: Apache-2.0
 *
 * exp is part of the specification, operation by operation, so that it gives
 * the same bits everywhere; a library's would not.
 */
#include "arithmetic.h"
#include "kernels.h"

/* Returns: 2^n. In: n whole, in [-126, 0]. */
static float power_of_2(float n)
{
    return cl_as_f32((uint32_t)((int32_t)n + 127) << 23);
}

/* Returns: exp(v). In: v <= 0 or a NaN, which counts as -88. */
static float exp_negative(float v)
{
    if (!(v >= -87.0f)) {
        return 0.0f;
    }
    float n = cl_round(v * 1.44269504f);
    float r = (v - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return ((p * (r * r) + r) + 1.0f) * power_of_2(n);
}

static void softmax_row(const float *x, float *out, uint32_t n)
{
    float largest = -__builtin_inff();
    float sum = 0.0f;
    for (uint32_t c = 0; c < n; c++) {
        largest = x[c] > largest ? x[c] : largest;
    }
    for (uint32_t c = 0; c < n; c++) {
        out[c] = exp_negative(x[c] - largest);
        sum += out[c];
    }
    for (uint32_t c = 0; c < n; c++) {
        out[c] = out[c] / sum;
    }
}

void cl_softmax(const cl_op *op, uint8_t *arena)
{
    uint64_t n_positions = cl_positions(&op->out);
    const float *in = cl_at_f32(arena, &op->in);
    float *out = cl_at_f32(arena, &op->out);
    for (uint64_t p = 0; p < n_positions; p++) {
        softmax_row(in + p * op->in.c, out + p * op->in.c, op->in.c);
    }
}
