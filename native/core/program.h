/* SPDX-License-Identifier: Apache-2.0
 *
 * Reader of the program format (docs/spec/program.md). It checks every rule
 * once, keeps the bytes as they are, and hands out small structs by value.
 */
#ifndef CL_PROGRAM_H
#define CL_PROGRAM_H

#include <stdbool.h>
#include <stdint.h>

#include "status.h"

#define CL_HEADER_BYTES 64u
#define CL_STATE_BYTES 4096u
#define CL_MAX_SLICES 8192u
#define CL_MAX_LANES 64u
#define CL_STREAMED 0xFFFFFFFFu
#define CL_SEAL_BYTES 16u
#define CL_POSITIONS 128u /* positions that a conv wants at a time */
#define CL_BLOCK 16u      /* units side by side in packed weights */

typedef enum cl_side { CL_INSIDE, CL_OUTSIDE } cl_side;

enum { CL_INT8 = 1, CL_FLOAT32 = 2 };

enum {
    CL_OP_CONV = 1,
    CL_OP_MAX_POOL,
    CL_OP_AVG_POOL,
    CL_OP_ADAPTIVE_AVG_POOL,
    CL_OP_ADD,
    CL_OP_AFFINE,
    CL_OP_COPY,
    CL_OP_PERMUTE,
    CL_OP_SOFTMAX,
    CL_OP_END
};

/* A checked program. `bytes` is borrowed: it must stay where and as it is. */
typedef struct cl_program {
    const uint8_t *bytes;
    const uint8_t *tensors;
    const uint8_t *slices;
    const uint8_t *ops;
    const uint8_t *stages;
    uint32_t total_bytes;
    uint32_t arena_bytes;
    uint32_t n_tensors;
    uint32_t n_slices;
    uint32_t n_op_words;
    uint32_t n_stages;
    uint32_t n_stage_words;
    uint32_t resident_bytes;
    uint32_t slot_bytes;
    uint32_t budget_bytes;
    uint32_t lanes; /* images side by side, each with its own arena */
    cl_side side;
} cl_program;

typedef struct cl_tensor {
    uint32_t offset; /* in the arena */
    uint32_t dtype;
    uint32_t h;
    uint32_t w;
    uint32_t c;
    int32_t zero;
} cl_tensor;

typedef struct cl_slice {
    uint32_t first_unit;
    uint32_t n_units;
    uint32_t bytes;
    uint32_t place; /* in the resident region, or CL_STREAMED */
    uint32_t store_offset;
} cl_slice;

typedef struct cl_stage {
    uint32_t first_op_word;
    uint32_t n_op_words;
    uint32_t n_inputs;
    uint32_t n_outputs;
    const uint8_t *inputs; /* tensor ids, words */
    const uint8_t *outputs;
} cl_stage;

/* Geometry of a conv or pool; strides, dilations and taps in 1..65535,
 * padding in 0..65535. */
typedef struct cl_window {
    uint32_t kh, kw;
    uint32_t sh, sw;
    uint32_t pt, pl;
    uint32_t dh, dw;
} cl_window;

/* One operation, its tensors looked up; only its own fields are set. */
typedef struct cl_op {
    uint32_t code;
    uint32_t n_words;
    cl_tensor in; /* also `a` of add */
    cl_tensor b;
    cl_tensor out;
    uint32_t first_slice;
    uint32_t n_slices;
    cl_window window;
    uint32_t groups;
    uint32_t scratch;
    uint32_t count_padding;
    uint32_t divisor;
    uint32_t outer, inner, out_stride, out_offset;
    uint32_t rows, cols;
    float m; /* also `ma` of add */
    float mb;
    int32_t zero;      /* of the output */
    float lo, hi;      /* clamp; for an int8 output without the zero point */
    uint32_t lo_word, hi_word;
} cl_op;

/* Where a program's parts lie in one block of inside memory. */
typedef struct cl_layout {
    uint64_t program; /* always CL_STATE_BYTES */
    uint64_t arena; /* of the first lane */
    uint64_t lane_bytes; /* from one lane's arena to the next one's */
    uint64_t resident;
    uint64_t slot;
    uint64_t total; /* `inside_bytes` of the specification */
} cl_layout;

/* Check a whole program.
 * Returns: CL_OK, CL_OVER_BUDGET if it breaks its own budget, CL_BAD_... for
 *          any other broken rule.
 * Out: program: valid only after CL_OK.
 * In:  bytes: n_bytes of them, any alignment; side: which rules for slices. */
cl_status cl_program_read(cl_program *program, const uint8_t *bytes,
                          uint64_t n_bytes, cl_side side) CL_CHECKED;

/* Returns: where the parts lie; no member overflows for a header's words. */
cl_layout cl_program_layout(const cl_program *program);

/* Returns: the record. In: id < n_tensors, index < n_slices. */
cl_tensor cl_program_tensor(const cl_program *program, uint32_t id);
cl_slice cl_program_slice(const cl_program *program, uint32_t index);

/* Returns: CL_OK, or CL_BAD_ARGUMENT if there is no such stage. */
cl_status cl_program_stage(const cl_program *program, cl_stage *stage,
                           uint32_t index) CL_CHECKED;

/* Read the operation at word `at`; checks its length, ids, and numbers, not
 * yet the rules that tie them together.
 * In: at < end <= n_op_words. */
cl_status cl_program_op(const cl_program *program, cl_op *op, uint32_t at,
                        uint32_t end) CL_CHECKED;

/* Returns: bytes of all input (output) tensors of a stage, for one image. */
uint64_t cl_stage_in_bytes(const cl_program *program, const cl_stage *stage);
uint64_t cl_stage_out_bytes(const cl_program *program, const cl_stage *stage);

/* Returns: bytes that a slice takes in its store. */
uint64_t cl_slice_store_bytes(cl_side side, const cl_slice *slice);

/* Returns: where slice `index` starts in the store; the whole store's size for
 * index == n_slices. */
uint64_t cl_program_store_offset(const cl_program *program, uint32_t index);

/* Returns: bytes of a tensor in the arena, at most CL_MAX_U64 (sticking). */
uint64_t cl_tensor_bytes(const cl_tensor *tensor);

/* Returns: taps of one unit of a conv, `K` of the specification (sticking). */
uint64_t cl_conv_taps(const cl_op *op);

/* Returns: whether each channel has one unit of its own. */
bool cl_is_depthwise(const cl_op *op);

/* Returns: taps of one unit in packed int8 weights: each row of the window
 * rounded up to a multiple of 4 (sticking). */
uint64_t cl_packed_taps(const cl_op *op);

/* Returns: units that a slice of packed int8 weights has room for: those of
 * one group rounded up to a multiple of 4. In: first, n: units, n >= 1. */
uint64_t cl_packed_units(const cl_op *op, uint32_t first, uint32_t n);

/* Returns: whether all taps of each position lie in the input, in kh runs: then
 * a float32 conv reads them there. */
bool cl_reads_in_place(const cl_op *op);

/* How a conv lays out input lines for some rows of its output, so that a
 * position's taps lie in kh runs, one in each of kh lines (sticking). */
typedef struct cl_strip {
    uint64_t n_rows;    /* of the output, at a time */
    uint64_t row_lines; /* lines from one output row to the next */
    uint64_t col_taps;  /* taps from one position to the next */
    uint64_t n_lines;
    uint64_t line_taps;
    uint64_t line_bytes;
    uint64_t bytes; /* of scratch */
} cl_strip;

cl_strip cl_strip_of(const cl_op *op);

/* The taps k0 <= k < k1 of a window that lie inside the input, along one axis;
 * tap k reads start + k * dilation. */
typedef struct cl_span {
    uint32_t k0;
    uint32_t k1;
    int64_t start;
} cl_span;

cl_span cl_span_of(uint32_t position, uint32_t stride, uint32_t padding,
                   uint32_t dilation, uint32_t n_taps, uint32_t n_in);

#endif
