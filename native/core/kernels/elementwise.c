/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations that take each element by itself.
 */
#include "arithmetic.h"
#include "kernels.h"

static uint64_t elements(const cl_tensor *tensor)
{
    return cl_positions(tensor) * tensor->c;
}

/* ---- Addition ---------------------------------------------------------- */

CL_HOT static void add_i8(const cl_op *op, const int8_t *a, const int8_t *b,
                          int8_t *out)
{
    uint64_t n = elements(&op->out);
    int32_t za = op->in.zero, zb = op->b.zero, zero = op->zero;
    float ma = op->m, mb = op->mb, lo = op->lo, hi = op->hi;
    for (uint64_t i = 0; i < n; i++) {
        float value = (float)(a[i] - za) * ma + (float)(b[i] - zb) * mb;
        out[i] = cl_quantize(value, lo, hi, zero);
    }
}

CL_HOT static void add_f32(const cl_op *op, const float *a, const float *b,
                           float *out)
{
    uint64_t n = elements(&op->out);
    float ma = op->m, mb = op->mb, lo = op->lo, hi = op->hi;
    for (uint64_t i = 0; i < n; i++) {
        out[i] = cl_clamp(a[i] * ma + b[i] * mb, lo, hi);
    }
}

void cl_add_tensors(const cl_op *op, uint8_t *arena)
{
    if (op->out.dtype == CL_INT8) {
        add_i8(op, cl_at_i8(arena, &op->in), cl_at_i8(arena, &op->b),
               cl_at_i8(arena, &op->out));
    } else {
        add_f32(op, cl_at_f32(arena, &op->in), cl_at_f32(arena, &op->b),
                cl_at_f32(arena, &op->out));
    }
}

/* ---- Affine ------------------------------------------------------------ */

CL_HOT static void affine_i8(const cl_op *op, const uint8_t *slopes,
                             const uint8_t *shifts, uint32_t n,
                             const int8_t *x, int8_t *out)
{
    int32_t zx = op->in.zero, zero = op->zero;
    float lo = op->lo, hi = op->hi;
    for (uint32_t c = 0; c < n; c++) {
        uint64_t at = 4 * (uint64_t)c;
        float value = (float)(x[c] - zx) * cl_load_f32(slopes + at) +
                      cl_load_f32(shifts + at);
        out[c] = cl_quantize(value, lo, hi, zero);
    }
}

CL_HOT static void affine_f32(const cl_op *op, const uint8_t *slopes,
                              const uint8_t *shifts, uint32_t n,
                              const float *x, float *out)
{
    float lo = op->lo, hi = op->hi;
    for (uint32_t c = 0; c < n; c++) {
        uint64_t at = 4 * (uint64_t)c;
        float value =
            x[c] * cl_load_f32(slopes + at) + cl_load_f32(shifts + at);
        out[c] = cl_clamp(value, lo, hi);
    }
}

void cl_affine(const cl_op *op, const cl_slice *slice, const uint8_t *data,
               uint8_t *arena)
{
    const uint8_t *shifts = data + 4 * (uint64_t)slice->n_units;
    uint64_t n_positions = cl_positions(&op->out);
    for (uint64_t p = 0; p < n_positions; p++) {
        uint64_t at = p * op->out.c + slice->first_unit;
        if (op->out.dtype == CL_INT8) {
            affine_i8(op, data, shifts, slice->n_units,
                      cl_at_i8(arena, &op->in) + at,
                      cl_at_i8(arena, &op->out) + at);
        } else {
            affine_f32(op, data, shifts, slice->n_units,
                       cl_at_f32(arena, &op->in) + at,
                       cl_at_f32(arena, &op->out) + at);
        }
    }
}

/* ---- Copy -------------------------------------------------------------- */

CL_HOT static void copy_i8_i8(const cl_op *op, const int8_t *x, int8_t *out)
{
    uint32_t n = op->inner;
    int32_t zx = op->in.zero, zero = op->zero;
    float m = op->m, lo = op->lo, hi = op->hi;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = cl_quantize((float)(x[i] - zx) * m, lo, hi, zero);
    }
}

CL_HOT static void copy_i8_f32(const cl_op *op, const int8_t *x, float *out)
{
    uint32_t n = op->inner;
    int32_t zx = op->in.zero;
    float m = op->m, lo = op->lo, hi = op->hi;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = cl_clamp((float)(x[i] - zx) * m, lo, hi);
    }
}

CL_HOT static void copy_f32_i8(const cl_op *op, const float *x, int8_t *out)
{
    uint32_t n = op->inner;
    int32_t zero = op->zero;
    float m = op->m, lo = op->lo, hi = op->hi;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = cl_quantize(x[i] * m, lo, hi, zero);
    }
}

CL_HOT static void copy_f32_f32(const cl_op *op, const float *x, float *out)
{
    uint32_t n = op->inner;
    float m = op->m, lo = op->lo, hi = op->hi;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = cl_clamp(x[i] * m, lo, hi);
    }
}

void cl_copy(const cl_op *op, uint8_t *arena)
{
    const int8_t *in_i8 = cl_at_i8(arena, &op->in);
    const float *in_f32 = cl_at_f32(arena, &op->in);
    int8_t *out_i8 = cl_at_i8(arena, &op->out);
    float *out_f32 = cl_at_f32(arena, &op->out);
    bool from_i8 = op->in.dtype == CL_INT8, to_i8 = op->out.dtype == CL_INT8;
    for (uint64_t o = 0; o < op->outer; o++) {
        uint64_t from = o * op->inner;
        uint64_t to = o * op->out_stride + op->out_offset;
        if (from_i8 && to_i8) {
            copy_i8_i8(op, in_i8 + from, out_i8 + to);
        } else if (from_i8) {
            copy_i8_f32(op, in_i8 + from, out_f32 + to);
        } else if (to_i8) {
            copy_f32_i8(op, in_f32 + from, out_i8 + to);
        } else {
            copy_f32_f32(op, in_f32 + from, out_f32 + to);
        }
    }
}

/* ---- Permute ----------------------------------------------------------- */

static void permute_i8(const cl_op *op, const int8_t *in, int8_t *out)
{
    for (uint64_t c = 0; c < op->cols; c++) {
        for (uint64_t r = 0; r < op->rows; r++) {
            out[c * op->rows + r] = in[r * op->cols + c];
        }
    }
}

static void permute_f32(const cl_op *op, const float *in, float *out)
{
    for (uint64_t c = 0; c < op->cols; c++) {
        for (uint64_t r = 0; r < op->rows; r++) {
            out[c * op->rows + r] = in[r * op->cols + c];
        }
    }
}

void cl_permute(const cl_op *op, uint8_t *arena)
{
    if (op->in.dtype == CL_INT8) {
        permute_i8(op, cl_at_i8(arena, &op->in), cl_at_i8(arena, &op->out));
    } else {
        permute_f32(op, cl_at_f32(arena, &op->in), cl_at_f32(arena, &op->out));
    }
}
