/* SPDX-License-Identifier: Apache-2.0
 *
 * The operations of a program (docs/spec/program.md, "Operations"). Every
 * kernel works on one image in the arena; tensors are [h][w][c], c fastest.
 * The reader has checked the operation, so kernels check nothing, and all
 * sizes and indices come from the program, never from values.
 */
#ifndef CL_KERNELS_H
#define CL_KERNELS_H

#include <stdint.h>

#include "program.h"

struct cl_kernel;
struct cl_kernel_f32;

/* One slice of a conv: units slice->first_unit onwards of every position.
 * Out: arena: the output tensor's channels of these units, and the scratch.
 * In:  data: slice->bytes bytes, any alignment; SECRET inside. further: the
 *      scratch is as another slice of the operation has left it. */
void cl_conv_int8(const cl_op *op, const cl_slice *slice, const uint8_t *data,
                  uint8_t *arena, const struct cl_kernel *kernel,
                  bool further);
void cl_depthwise_int8(const cl_op *op, const cl_slice *slice,
                       const uint8_t *data, uint8_t *arena,
                       const struct cl_kernel *kernel);
void cl_conv_float32(const cl_op *op, const cl_slice *slice,
                     const uint8_t *data, uint8_t *arena,
                     const struct cl_kernel_f32 *kernel, bool further);

/* One slice of an affine: its channels of every position. */
void cl_affine(const cl_op *op, const cl_slice *slice, const uint8_t *data,
               uint8_t *arena);

void cl_max_pool(const cl_op *op, uint8_t *arena);
void cl_avg_pool(const cl_op *op, uint8_t *arena);
void cl_adaptive_avg_pool(const cl_op *op, uint8_t *arena);
void cl_add_tensors(const cl_op *op, uint8_t *arena);
void cl_copy(const cl_op *op, uint8_t *arena);
void cl_permute(const cl_op *op, uint8_t *arena);
void cl_softmax(const cl_op *op, uint8_t *arena);

#endif
