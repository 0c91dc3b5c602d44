/* SPDX-License-Identifier: Apache-2.0 */
#include "program.h"

#include "bytes.h"

#define TENSOR_BYTES 24u
#define SLICE_BYTES 20u
#define MAX_GEOMETRY 65535u
#define MAX_INT8_TAPS 65536u
#define MAX_POOL_TAPS (1u << 23) /* so that a sum of int8 fits in int32 */

/* Length of each operation in words, by opcode. */
static const uint8_t op_words[CL_OP_END] = {0, 18, 14, 15, 7, 9, 8, 11, 6, 4};

/* ---- Accessors --------------------------------------------------------- */

static uint32_t element_bytes(const cl_tensor *tensor)
{
    return tensor->dtype == CL_FLOAT32 ? 4u : 1u;
}

static uint64_t elements(const cl_tensor *tensor)
{
    return cl_mul(cl_mul(tensor->h, tensor->w), tensor->c);
}

uint64_t cl_tensor_bytes(const cl_tensor *tensor)
{
    return cl_mul(elements(tensor), element_bytes(tensor));
}

cl_tensor cl_program_tensor(const cl_program *program, uint32_t id)
{
    const uint8_t *at = program->tensors + (uint64_t)TENSOR_BYTES * id;
    return (cl_tensor){
        .offset = cl_load_u32(at),
        .dtype = cl_load_u32(at + 4),
        .h = cl_load_u32(at + 8),
        .w = cl_load_u32(at + 12),
        .c = cl_load_u32(at + 16),
        .zero = cl_load_i32(at + 20),
    };
}

cl_slice cl_program_slice(const cl_program *program, uint32_t index)
{
    const uint8_t *at = program->slices + (uint64_t)SLICE_BYTES * index;
    return (cl_slice){
        .first_unit = cl_load_u32(at),
        .n_units = cl_load_u32(at + 4),
        .bytes = cl_load_u32(at + 8),
        .place = cl_load_u32(at + 12),
        .store_offset = cl_load_u32(at + 16),
    };
}

static cl_stage next_stage(cl_cursor *cursor)
{
    cl_stage stage = {0};
    stage.first_op_word = cl_next(cursor);
    stage.n_op_words = cl_next(cursor);
    stage.n_inputs = cl_next(cursor);
    stage.n_outputs = cl_next(cursor);
    stage.inputs = cursor->at;
    cl_skip(cursor, stage.n_inputs);
    stage.outputs = cursor->at;
    cl_skip(cursor, stage.n_outputs);
    return stage;
}

cl_status cl_program_stage(const cl_program *program, cl_stage *stage,
                           uint32_t index)
{
    CL_REQUIRE(index < program->n_stages, CL_BAD_ARGUMENT);
    cl_cursor cursor = cl_cursor_of(program->stages, program->n_stage_words);
    *stage = next_stage(&cursor);
    for (uint32_t i = 0; i < index; i++) {
        *stage = next_stage(&cursor);
    }
    return CL_OK;
}

static uint64_t ids_bytes(const cl_program *program, const uint8_t *ids,
                          uint32_t n)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        cl_tensor tensor =
            cl_program_tensor(program, cl_load_u32(ids + 4 * (uint64_t)i));
        sum = cl_add(sum, cl_tensor_bytes(&tensor));
    }
    return sum;
}

uint64_t cl_stage_in_bytes(const cl_program *program, const cl_stage *stage)
{
    return ids_bytes(program, stage->inputs, stage->n_inputs);
}

uint64_t cl_stage_out_bytes(const cl_program *program, const cl_stage *stage)
{
    return ids_bytes(program, stage->outputs, stage->n_outputs);
}

uint64_t cl_slice_store_bytes(cl_side side, const cl_slice *slice)
{
    if (side == CL_INSIDE) {
        return (uint64_t)slice->bytes + CL_SEAL_BYTES;
    }
    return cl_up(slice->bytes, 64);
}

uint64_t cl_program_store_offset(const cl_program *program, uint32_t index)
{
    if (index == 0) {
        return 0;
    }
    cl_slice last = cl_program_slice(program, index - 1);
    return last.store_offset + cl_slice_store_bytes(program->side, &last);
}

cl_layout cl_program_layout(const cl_program *program)
{
    cl_layout layout = {.program = CL_STATE_BYTES};
    layout.arena = layout.program + cl_up(program->total_bytes, 64);
    layout.lane_bytes = cl_up(program->arena_bytes, 64);
    layout.resident = layout.arena + program->lanes * layout.lane_bytes;
    layout.slot = layout.resident + cl_up(program->resident_bytes, 64);
    layout.total = layout.slot + cl_up(program->slot_bytes, 64);
    return layout;
}

uint64_t cl_conv_taps(const cl_op *op)
{
    return cl_mul(cl_mul(op->window.kh, op->window.kw),
                  op->in.c / op->groups);
}

bool cl_is_depthwise(const cl_op *op)
{
    return op->groups > 1 && op->groups == op->in.c && op->groups == op->out.c;
}

uint64_t cl_packed_taps(const cl_op *op)
{
    if (cl_is_depthwise(op)) {
        return cl_conv_taps(op);
    }
    uint64_t row = cl_mul(op->window.kw, op->in.c / op->groups);
    return cl_mul(op->window.kh, cl_up(row, 4));
}

uint64_t cl_packed_units(const cl_op *op, uint32_t first, uint32_t n)
{
    uint64_t size = op->out.c / op->groups;
    uint64_t end = (uint64_t)first + n;
    uint64_t n_ends = end / size - first / size; /* ends of groups in it */
    if (cl_is_depthwise(op)) {
        return n;
    }
    if (n_ends == 0) {
        return cl_up(n, 4);
    }
    return cl_up(size - first % size, 4) + (n_ends - 1) * cl_up(size, 4) +
           cl_up(end % size, 4);
}

/* Whether the last window along one axis ends in the input. */
static bool axis_inside(uint32_t n_out, uint32_t n_in, uint32_t n_taps,
                        uint32_t stride, uint32_t padding, uint32_t dilation)
{
    uint64_t start = cl_mul(n_out - 1, stride);
    return padding == 0 &&
           cl_add(start, (uint64_t)(n_taps - 1) * dilation) < n_in;
}

bool cl_reads_in_place(const cl_op *op)
{
    const cl_window *w = &op->window;
    bool joined = w->kw == 1 || (w->dw == 1 && op->groups == 1);
    return joined &&
           axis_inside(op->out.h, op->in.h, w->kh, w->sh, w->pt, w->dh) &&
           axis_inside(op->out.w, op->in.w, w->kw, w->sw, w->pl, w->dw);
}

cl_strip cl_strip_of(const cl_op *op)
{
    const cl_window *w = &op->window;
    bool rows_shared = w->dh == 1 && w->sh < w->kh;
    bool cols_shared = w->dw == 1 && w->sw < w->kw;
    uint64_t n_rows = (CL_POSITIONS + (uint64_t)op->out.w - 1) / op->out.w;
    uint64_t item = element_bytes(&op->in), behind = item == 1 ? 3 : 0;
    cl_strip s = {
        .n_rows = n_rows < op->out.h ? n_rows : op->out.h,
        .row_lines = rows_shared ? w->sh : w->kh,
        .col_taps = cols_shared ? w->sw : w->kw,
    };
    s.n_lines = (s.n_rows - 1) * s.row_lines + w->kh;
    /* Whole steps, so that the next row's positions go on at the same steps. */
    uint64_t taps = cl_add(cl_mul(op->out.w - 1, s.col_taps), w->kw);
    uint64_t steps = taps / s.col_taps + (taps % s.col_taps != 0);
    s.line_taps = cl_mul(steps, s.col_taps);
    s.line_bytes = cl_mul(s.line_taps, item * (op->in.c / op->groups));
    s.bytes = cl_up(cl_add(cl_mul(s.n_lines, s.line_bytes), behind), 16);
    return s;
}

cl_span cl_span_of(uint32_t position, uint32_t stride, uint32_t padding,
                   uint32_t dilation, uint32_t n_taps, uint32_t n_in)
{
    int64_t d = dilation;
    int64_t start = (int64_t)position * stride - padding;
    int64_t first = start < 0 ? (-start + d - 1) / d : 0;
    int64_t last = start < n_in ? ((int64_t)n_in - 1 - start) / d + 1 : 0;
    first = first < n_taps ? first : n_taps;
    last = last < n_taps ? last : n_taps;
    last = last > first ? last : first;
    return (cl_span){(uint32_t)first, (uint32_t)last, start};
}

/* ---- Reading one operation --------------------------------------------- */

static bool next_tensor(const cl_program *program, cl_cursor *cursor,
                        cl_tensor *tensor)
{
    uint32_t id = cl_next(cursor);
    if (id >= program->n_tensors) {
        return false;
    }
    *tensor = cl_program_tensor(program, id);
    return true;
}

static void next_window(cl_cursor *cursor, cl_window *window, bool dilated)
{
    window->kh = cl_next(cursor);
    window->kw = cl_next(cursor);
    window->sh = cl_next(cursor);
    window->sw = cl_next(cursor);
    window->pt = cl_next(cursor);
    window->pl = cl_next(cursor);
    window->dh = dilated ? cl_next(cursor) : 1;
    window->dw = dilated ? cl_next(cursor) : 1;
}

static void next_slices(cl_cursor *cursor, cl_op *op)
{
    op->first_slice = cl_next(cursor);
    op->n_slices = cl_next(cursor);
}

static float next_f32(cl_cursor *cursor)
{
    return cl_as_f32(cl_next(cursor));
}

/* The operands between the tensors and the clamp. */
static void next_operands(cl_cursor *cursor, cl_op *op)
{
    switch (op->code) {
    case CL_OP_CONV:
        next_slices(cursor, op);
        next_window(cursor, &op->window, true);
        op->groups = cl_next(cursor);
        op->scratch = cl_next(cursor);
        break;
    case CL_OP_MAX_POOL:
        next_window(cursor, &op->window, true);
        break;
    case CL_OP_AVG_POOL:
        next_window(cursor, &op->window, false);
        op->count_padding = cl_next(cursor);
        op->divisor = cl_next(cursor);
        op->m = next_f32(cursor);
        break;
    case CL_OP_ADAPTIVE_AVG_POOL:
        op->m = next_f32(cursor);
        break;
    case CL_OP_ADD:
        op->m = next_f32(cursor);
        op->mb = next_f32(cursor);
        break;
    case CL_OP_AFFINE:
        next_slices(cursor, op);
        break;
    case CL_OP_COPY:
        op->outer = cl_next(cursor);
        op->inner = cl_next(cursor);
        op->out_stride = cl_next(cursor);
        op->out_offset = cl_next(cursor);
        op->m = next_f32(cursor);
        break;
    case CL_OP_PERMUTE:
        op->rows = cl_next(cursor);
        op->cols = cl_next(cursor);
        break;
    default:
        break;
    }
}

/* The kernels clamp before they round: with whole bounds that gives the same,
 * and keeps the number small enough to convert. */
static void next_clamp(cl_cursor *cursor, cl_op *op)
{
    op->lo_word = cl_next(cursor);
    op->hi_word = cl_next(cursor);
    if (op->out.dtype == CL_FLOAT32) {
        op->lo = cl_as_f32(op->lo_word);
        op->hi = cl_as_f32(op->hi_word);
    } else {
        op->lo = (float)cl_as_i32(op->lo_word) - (float)op->out.zero;
        op->hi = (float)cl_as_i32(op->hi_word) - (float)op->out.zero;
    }
}

cl_status cl_program_op(const cl_program *program, cl_op *op, uint32_t at,
                        uint32_t end)
{
    cl_cursor cursor = cl_cursor_of(program->ops + 4 * (uint64_t)at, end - at);
    *op = (cl_op){.code = cl_next(&cursor), .n_words = cl_next(&cursor)};
    CL_REQUIRE(op->code > 0 && op->code < CL_OP_END, CL_BAD_OPERATION);
    CL_REQUIRE(op->n_words == op_words[op->code], CL_BAD_OPERATION);
    CL_REQUIRE(next_tensor(program, &cursor, &op->in), CL_BAD_OPERATION);
    if (op->code == CL_OP_ADD) {
        CL_REQUIRE(next_tensor(program, &cursor, &op->b), CL_BAD_OPERATION);
    }
    CL_REQUIRE(next_tensor(program, &cursor, &op->out), CL_BAD_OPERATION);
    op->zero = op->out.zero;
    next_operands(&cursor, op);
    if (op->code != CL_OP_PERMUTE && op->code != CL_OP_SOFTMAX) {
        next_clamp(&cursor, op);
    }
    CL_REQUIRE(!cursor.failed, CL_BAD_OPERATION);
    return CL_OK;
}

/* ---- Rules of one operation -------------------------------------------- */

static bool finite(float value)
{
    return value >= -FLT_MAX && value <= FLT_MAX; /* false for a NaN */
}

static bool clamp_good(const cl_op *op)
{
    if (op->out.dtype == CL_FLOAT32) {
        return op->lo <= op->hi; /* false for a NaN */
    }
    int32_t lo = cl_as_i32(op->lo_word);
    int32_t hi = cl_as_i32(op->hi_word);
    return lo >= -128 && lo <= hi && hi <= 127;
}

static bool same_dtype(const cl_tensor *a, const cl_tensor *b)
{
    return a->dtype == b->dtype;
}

static bool same_shape(const cl_tensor *a, const cl_tensor *b)
{
    return a->h == b->h && a->w == b->w && a->c == b->c;
}

static bool apart(const cl_tensor *a, const cl_tensor *b)
{
    return !cl_overlap(a->offset, cl_tensor_bytes(a), b->offset,
                       cl_tensor_bytes(b));
}

static bool in_range(uint32_t value)
{
    return value >= 1 && value <= MAX_GEOMETRY;
}

static bool window_good(const cl_window *w)
{
    return in_range(w->kh) && in_range(w->kw) && in_range(w->sh) &&
           in_range(w->sw) && in_range(w->dh) && in_range(w->dw) &&
           w->pt <= MAX_GEOMETRY && w->pl <= MAX_GEOMETRY;
}

static uint64_t slice_bytes(const cl_op *op, const cl_slice *slice)
{
    if (op->code == CL_OP_AFFINE) {
        return cl_mul(slice->n_units, 8);
    }
    if (op->in.dtype == CL_INT8) {
        return cl_mul(cl_packed_units(op, slice->first_unit, slice->n_units),
                      cl_add(cl_packed_taps(op), 12));
    }
    return cl_mul(cl_mul(slice->n_units, 4), cl_add(cl_conv_taps(op), 1));
}

/* The operation's slices must cover its units in order, with right sizes. */
static cl_status check_slices(const cl_program *program, const cl_op *op)
{
    uint64_t end = (uint64_t)op->first_slice + op->n_slices;
    uint64_t unit = 0;
    CL_REQUIRE(op->n_slices >= 1 && end <= program->n_slices, CL_BAD_SLICE);
    for (uint32_t i = op->first_slice; i < end; i++) {
        cl_slice slice = cl_program_slice(program, i);
        CL_REQUIRE(slice.n_units >= 1 && slice.first_unit == unit,
                   CL_BAD_SLICE);
        CL_REQUIRE(slice.bytes == slice_bytes(op, &slice), CL_BAD_SLICE);
        unit += slice.n_units;
    }
    CL_REQUIRE(unit == op->out.c, CL_BAD_SLICE);
    return CL_OK;
}

/* Returns: bytes of scratch that a conv needs. */
static uint64_t scratch_bytes(const cl_op *op)
{
    bool in_place = op->in.dtype == CL_FLOAT32 && cl_reads_in_place(op);
    return cl_is_depthwise(op) || in_place ? 0 : cl_strip_of(op).bytes;
}

static cl_status check_scratch(const cl_program *program, const cl_op *op)
{
    uint64_t bytes = scratch_bytes(op);
    CL_REQUIRE(op->scratch % 16 == 0, CL_BAD_OPERATION);
    CL_REQUIRE(cl_inside(op->scratch, bytes, program->arena_bytes),
               CL_BAD_OPERATION);
    if (bytes == 0) {
        return CL_OK;
    }
    CL_REQUIRE(!cl_overlap(op->scratch, bytes, op->in.offset,
                           cl_tensor_bytes(&op->in)),
               CL_BAD_OVERLAP);
    CL_REQUIRE(!cl_overlap(op->scratch, bytes, op->out.offset,
                           cl_tensor_bytes(&op->out)),
               CL_BAD_OVERLAP);
    return CL_OK;
}

static cl_status check_conv(const cl_program *program, const cl_op *op)
{
    CL_REQUIRE(op->in.dtype == CL_INT8 || op->out.dtype == CL_FLOAT32,
               CL_BAD_OPERATION);
    CL_REQUIRE(window_good(&op->window), CL_BAD_OPERATION);
    CL_REQUIRE(op->groups >= 1 && op->in.c % op->groups == 0 &&
                   op->out.c % op->groups == 0,
               CL_BAD_OPERATION);
    CL_REQUIRE(op->in.dtype == CL_FLOAT32 ||
                   cl_conv_taps(op) <= MAX_INT8_TAPS,
               CL_BAD_OPERATION);
    CL_TRY(check_slices(program, op));
    return check_scratch(program, op);
}

/* Every window along one axis must have a tap inside the input. */
static bool axis_filled(uint32_t n_out, uint32_t n_in, uint32_t n_taps,
                        uint32_t stride, uint32_t padding, uint32_t dilation)
{
    for (uint32_t i = 0; i < n_out; i++) {
        cl_span span = cl_span_of(i, stride, padding, dilation, n_taps, n_in);
        if (span.k0 == span.k1) {
            return false;
        }
    }
    return true;
}

static bool windows_filled(const cl_op *op)
{
    const cl_window *w = &op->window;
    return axis_filled(op->out.h, op->in.h, w->kh, w->sh, w->pt, w->dh) &&
           axis_filled(op->out.w, op->in.w, w->kw, w->sw, w->pl, w->dw);
}

static cl_status check_max_pool(const cl_op *op)
{
    CL_REQUIRE(same_dtype(&op->in, &op->out) && op->in.c == op->out.c &&
                   op->in.zero == op->out.zero,
               CL_BAD_OPERATION);
    CL_REQUIRE(window_good(&op->window), CL_BAD_OPERATION);
    CL_REQUIRE(windows_filled(op), CL_BAD_OPERATION);
    return CL_OK;
}

/* Windows begin before the end of input and padding: then counting the
 * padding gives at least 1. The last window begins last. */
static bool windows_begin(const cl_op *op)
{
    const cl_window *w = &op->window;
    return (uint64_t)(op->out.h - 1) * w->sh <
               (uint64_t)op->in.h + 2 * (uint64_t)w->pt &&
           (uint64_t)(op->out.w - 1) * w->sw <
               (uint64_t)op->in.w + 2 * (uint64_t)w->pl;
}

static cl_status check_avg_pool(const cl_op *op)
{
    CL_REQUIRE(same_dtype(&op->in, &op->out) && op->in.c == op->out.c,
               CL_BAD_OPERATION);
    CL_REQUIRE(window_good(&op->window), CL_BAD_OPERATION);
    CL_REQUIRE(cl_mul(op->window.kh, op->window.kw) <= MAX_POOL_TAPS,
               CL_BAD_OPERATION);
    CL_REQUIRE(op->count_padding <= 1 && op->divisor <= INT32_MAX,
               CL_BAD_OPERATION);
    CL_REQUIRE(op->divisor != 0 || (op->count_padding ? windows_begin(op)
                                                      : windows_filled(op)),
               CL_BAD_OPERATION);
    return CL_OK;
}

static cl_status check_adaptive_avg_pool(const cl_op *op)
{
    CL_REQUIRE(same_dtype(&op->in, &op->out) && op->in.c == op->out.c,
               CL_BAD_OPERATION);
    CL_REQUIRE(cl_mul(op->in.h, op->in.w) <= MAX_POOL_TAPS, CL_BAD_OPERATION);
    return CL_OK;
}

static cl_status check_add(const cl_op *op)
{
    CL_REQUIRE(same_dtype(&op->in, &op->out) && same_dtype(&op->b, &op->out) &&
                   same_shape(&op->in, &op->out) &&
                   same_shape(&op->b, &op->out) && finite(op->mb),
               CL_BAD_OPERATION);
    CL_REQUIRE(apart(&op->b, &op->out), CL_BAD_OVERLAP);
    return CL_OK;
}

static cl_status check_affine(const cl_program *program, const cl_op *op)
{
    CL_REQUIRE(same_dtype(&op->in, &op->out) && same_shape(&op->in, &op->out),
               CL_BAD_OPERATION);
    return check_slices(program, op);
}

static cl_status check_copy(const cl_op *op)
{
    CL_REQUIRE(cl_mul(op->outer, op->inner) == elements(&op->in),
               CL_BAD_OPERATION);
    CL_REQUIRE(op->outer == 1 || op->inner <= op->out_stride,
               CL_BAD_OPERATION);
    /* outer and inner are at least 1, since in has elements. */
    uint64_t last = cl_add(cl_mul(op->outer - 1, op->out_stride),
                           (uint64_t)op->out_offset + op->inner);
    CL_REQUIRE(last <= elements(&op->out), CL_BAD_OPERATION);
    return CL_OK;
}

static cl_status check_permute(const cl_op *op)
{
    uint64_t n = cl_mul(op->rows, op->cols);
    CL_REQUIRE(same_dtype(&op->in, &op->out) && n == elements(&op->in) &&
                   n == elements(&op->out),
               CL_BAD_OPERATION);
    return CL_OK;
}

static cl_status check_softmax(const cl_op *op)
{
    CL_REQUIRE(op->in.dtype == CL_FLOAT32 && op->out.dtype == CL_FLOAT32 &&
                   same_shape(&op->in, &op->out),
               CL_BAD_OPERATION);
    return CL_OK;
}

static cl_status check_op(const cl_program *program, const cl_op *op)
{
    CL_REQUIRE(apart(&op->in, &op->out), CL_BAD_OVERLAP);
    CL_REQUIRE(finite(op->m), CL_BAD_OPERATION);
    CL_REQUIRE(op->code == CL_OP_PERMUTE || op->code == CL_OP_SOFTMAX ||
                   clamp_good(op),
               CL_BAD_OPERATION);
    switch (op->code) {
    case CL_OP_CONV:
        return check_conv(program, op);
    case CL_OP_MAX_POOL:
        return check_max_pool(op);
    case CL_OP_AVG_POOL:
        return check_avg_pool(op);
    case CL_OP_ADAPTIVE_AVG_POOL:
        return check_adaptive_avg_pool(op);
    case CL_OP_ADD:
        return check_add(op);
    case CL_OP_AFFINE:
        return check_affine(program, op);
    case CL_OP_COPY:
        return check_copy(op);
    case CL_OP_PERMUTE:
        return check_permute(op);
    default:
        return check_softmax(op);
    }
}

/* ---- Rules of the sections --------------------------------------------- */

static cl_status read_header(cl_program *program, const uint8_t *bytes,
                             uint64_t n_bytes)
{
    CL_REQUIRE(n_bytes >= CL_HEADER_BYTES, CL_BAD_LENGTH);
    CL_REQUIRE(memcmp(bytes, "CLPR", 4) == 0, CL_BAD_MAGIC);
    cl_cursor cursor = cl_cursor_of(bytes + 4, 15);
    CL_REQUIRE(cl_next(&cursor) == 1, CL_BAD_VERSION);
    program->bytes = bytes;
    program->total_bytes = cl_next(&cursor);
    program->arena_bytes = cl_next(&cursor);
    program->n_tensors = cl_next(&cursor);
    program->n_slices = cl_next(&cursor);
    program->n_op_words = cl_next(&cursor);
    program->n_stages = cl_next(&cursor);
    program->n_stage_words = cl_next(&cursor);
    program->resident_bytes = cl_next(&cursor);
    program->slot_bytes = cl_next(&cursor);
    program->budget_bytes = cl_next(&cursor);
    program->lanes = cl_next(&cursor);
    for (int i = 0; i < 3; i++) {
        CL_REQUIRE(cl_next(&cursor) == 0, CL_BAD_HEADER);
    }
    CL_REQUIRE(program->n_stages >= 1, CL_BAD_HEADER);
    CL_REQUIRE(program->n_slices <= CL_MAX_SLICES, CL_BAD_HEADER);
    CL_REQUIRE(program->lanes >= 1 && program->lanes <= CL_MAX_LANES,
               CL_BAD_HEADER);
    CL_REQUIRE(program->side == CL_INSIDE ||
                   (program->resident_bytes == 0 && program->slot_bytes == 0 &&
                    program->lanes == 1),
               CL_BAD_HEADER);
    return CL_OK;
}

/* The sections must fill the program exactly. */
static cl_status place_sections(cl_program *program, uint64_t n_bytes)
{
    uint64_t tensors = (uint64_t)TENSOR_BYTES * program->n_tensors;
    uint64_t slices = (uint64_t)SLICE_BYTES * program->n_slices;
    uint64_t ops = (uint64_t)4 * program->n_op_words;
    uint64_t stages = (uint64_t)4 * program->n_stage_words;
    CL_REQUIRE(program->total_bytes == n_bytes, CL_BAD_LENGTH);
    CL_REQUIRE(CL_HEADER_BYTES + tensors + slices + ops + stages == n_bytes,
               CL_BAD_LENGTH);
    program->tensors = program->bytes + CL_HEADER_BYTES;
    program->slices = program->tensors + tensors;
    program->ops = program->slices + slices;
    program->stages = program->ops + ops;
    return CL_OK;
}

static bool zero_good(const cl_tensor *tensor)
{
    if (tensor->dtype == CL_FLOAT32) {
        return tensor->zero == 0;
    }
    return tensor->zero >= -128 && tensor->zero <= 127;
}

static cl_status check_tensors(const cl_program *program)
{
    for (uint32_t i = 0; i < program->n_tensors; i++) {
        cl_tensor t = cl_program_tensor(program, i);
        CL_REQUIRE(t.dtype == CL_INT8 || t.dtype == CL_FLOAT32, CL_BAD_TENSOR);
        CL_REQUIRE(t.h >= 1 && t.w >= 1 && t.c >= 1, CL_BAD_TENSOR);
        CL_REQUIRE(t.offset % 16 == 0 && zero_good(&t), CL_BAD_TENSOR);
        CL_REQUIRE(cl_inside(t.offset, cl_tensor_bytes(&t),
                             program->arena_bytes),
                   CL_BAD_TENSOR);
    }
    return CL_OK;
}

/* Resident slices follow each other in index order, so none covers another;
 * `end` is where the last one ended. */
static bool place_good(const cl_program *program, const cl_slice *slice,
                       uint64_t *end)
{
    if (slice->place == CL_STREAMED) {
        return program->side == CL_OUTSIDE ||
               slice->bytes <= program->slot_bytes;
    }
    bool good = program->side == CL_INSIDE && slice->place % 64 == 0 &&
                slice->place >= *end &&
                cl_inside(slice->place, slice->bytes, program->resident_bytes);
    *end = (uint64_t)slice->place + slice->bytes;
    return good;
}

static cl_status check_all_slices(const cl_program *program)
{
    uint64_t store_offset = 0;
    uint64_t resident_end = 0;
    for (uint32_t i = 0; i < program->n_slices; i++) {
        cl_slice slice = cl_program_slice(program, i);
        CL_REQUIRE(slice.store_offset == store_offset, CL_BAD_SLICE);
        CL_REQUIRE(place_good(program, &slice, &resident_end), CL_BAD_SLICE);
        store_offset += cl_slice_store_bytes(program->side, &slice);
    }
    return CL_OK;
}

static cl_status check_ops(const cl_program *program, const cl_stage *stage)
{
    uint32_t at = stage->first_op_word;
    uint32_t end = at + stage->n_op_words;
    while (at < end) {
        cl_op op;
        CL_TRY(cl_program_op(program, &op, at, end));
        CL_TRY(check_op(program, &op));
        at += op.n_words;
    }
    return CL_OK;
}

static bool ids_good(const cl_program *program, const uint8_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (cl_load_u32(ids + 4 * (uint64_t)i) >= program->n_tensors) {
            return false;
        }
    }
    return n >= 1;
}

static cl_status check_stages(const cl_program *program)
{
    cl_cursor cursor = cl_cursor_of(program->stages, program->n_stage_words);
    uint64_t op_word = 0;
    for (uint32_t i = 0; i < program->n_stages; i++) {
        cl_stage stage = next_stage(&cursor);
        CL_REQUIRE(!cursor.failed, CL_BAD_STAGE);
        CL_REQUIRE(ids_good(program, stage.inputs, stage.n_inputs) &&
                       ids_good(program, stage.outputs, stage.n_outputs),
                   CL_BAD_STAGE);
        CL_REQUIRE(stage.first_op_word == op_word, CL_BAD_STAGE);
        op_word += stage.n_op_words;
        CL_REQUIRE(op_word <= program->n_op_words, CL_BAD_STAGE);
        CL_TRY(check_ops(program, &stage));
    }
    CL_REQUIRE(op_word == program->n_op_words && cursor.n_left == 0,
               CL_BAD_STAGE);
    return CL_OK;
}

cl_status cl_program_read(cl_program *program, const uint8_t *bytes,
                          uint64_t n_bytes, cl_side side)
{
    *program = (cl_program){.side = side};
    CL_TRY(read_header(program, bytes, n_bytes));
    CL_TRY(place_sections(program, n_bytes));
    CL_TRY(check_tensors(program));
    CL_TRY(check_all_slices(program));
    CL_TRY(check_stages(program));
    CL_REQUIRE(program->budget_bytes == 0 ||
                   cl_program_layout(program).total <= program->budget_bytes,
               CL_OVER_BUDGET);
    return CL_OK;
}
