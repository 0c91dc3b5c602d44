/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#include "bytes.h"
#include "kernels/float32.h"
#include "kernels/int8.h"
#include "kernels/kernels.h"

void cl_machine_init(cl_machine *machine, const cl_program *program,
                     uint8_t *arena, cl_open_slice open_slice, void *context,
                     uint32_t sets)
{
    *machine = (cl_machine){
        .program = *program,
        .arena = arena,
        .lane_bytes = cl_program_layout(program).lane_bytes,
        .open_slice = open_slice,
        .context = context,
        .kernel = cl_kernel_at(0, sets),
        .kernel_f32 = cl_kernel_f32_at(0, sets),
    };
}

void cl_machine_reset(cl_machine *machine)
{
    machine->running = false;
    machine->n_group = 0;
    machine->image = 0;
    machine->op_slice = 0;
}

static bool takes_slices(const cl_op *op)
{
    return op->code == CL_OP_CONV || op->code == CL_OP_AFFINE;
}

static cl_status find_slices_end(cl_machine *machine)
{
    uint32_t at = machine->stage.first_op_word;
    uint32_t end = at + machine->stage.n_op_words;
    machine->slices_end = 0;
    while (at < end) {
        cl_op op;
        CL_TRY(cl_program_op(&machine->program, &op, at, end));
        uint32_t last = op.first_slice + op.n_slices;
        if (takes_slices(&op) && last > machine->slices_end) {
            machine->slices_end = last;
        }
        at += op.n_words;
    }
    return CL_OK;
}

cl_status cl_machine_start(cl_machine *machine, uint32_t stage,
                           uint32_t n_images)
{
    cl_machine_reset(machine);
    CL_REQUIRE(n_images >= 1, CL_BAD_ARGUMENT);
    CL_TRY(cl_program_stage(&machine->program, &machine->stage, stage));
    CL_TRY(find_slices_end(machine));
    machine->stage_index = stage;
    machine->n_images = n_images;
    machine->running = true;
    return CL_OK;
}

void cl_machine_sizes(const cl_machine *machine, cl_batch *batch)
{
    batch->in_image_bytes =
        cl_stage_in_bytes(&machine->program, &machine->stage);
    batch->out_image_bytes =
        cl_stage_out_bytes(&machine->program, &machine->stage);
}

static cl_tensor tensor_at(const cl_machine *machine, const uint8_t *ids,
                           uint32_t i)
{
    return cl_program_tensor(&machine->program,
                             cl_load_u32(ids + 4 * (uint64_t)i));
}

static uint8_t *arena_of(const cl_machine *machine, uint32_t lane)
{
    return machine->arena + lane * machine->lane_bytes;
}

static void enter_image(const cl_machine *machine, uint8_t *arena,
                        const uint8_t *in)
{
    const cl_stage *stage = &machine->stage;
    for (uint32_t i = 0; i < stage->n_inputs; i++) {
        cl_tensor tensor = tensor_at(machine, stage->inputs, i);
        uint64_t bytes = cl_tensor_bytes(&tensor);
        memcpy(arena + tensor.offset, in, bytes);
        in += bytes;
    }
}

static void leave_image(const cl_machine *machine, const uint8_t *arena,
                        uint8_t *out)
{
    const cl_stage *stage = &machine->stage;
    for (uint32_t i = 0; i < stage->n_outputs; i++) {
        cl_tensor tensor = tensor_at(machine, stage->outputs, i);
        uint64_t bytes = cl_tensor_bytes(&tensor);
        memcpy(out, arena + tensor.offset, bytes);
        out += bytes;
    }
}

/* The next images, as many as there are lanes or images left. */
static void enter_group(cl_machine *machine, const cl_batch *batch)
{
    uint32_t n_left = machine->n_images - machine->image;
    uint32_t n_lanes = machine->program.lanes;
    machine->n_group = n_left < n_lanes ? n_left : n_lanes;
    for (uint32_t lane = 0; lane < machine->n_group; lane++) {
        uint64_t image = (uint64_t)machine->image + lane;
        enter_image(machine, arena_of(machine, lane),
                    batch->in + image * batch->in_image_bytes);
    }
    machine->op_word = machine->stage.first_op_word;
    machine->op_slice = 0;
}

static void leave_group(cl_machine *machine, const cl_batch *batch)
{
    for (uint32_t lane = 0; lane < machine->n_group; lane++) {
        uint64_t image = (uint64_t)machine->image + lane;
        leave_image(machine, arena_of(machine, lane),
                    batch->out + image * batch->out_image_bytes);
    }
    machine->image += machine->n_group;
    machine->n_group = 0;
}

static void run_slice(const cl_machine *machine, const cl_op *op,
                      const cl_slice *slice, const uint8_t *data,
                      uint8_t *arena)
{
    bool further = machine->op_slice != 0;
    if (op->code == CL_OP_AFFINE) {
        cl_affine(op, slice, data, arena);
    } else if (op->in.dtype == CL_INT8) {
        cl_conv_int8(op, slice, data, arena, machine->kernel, further);
    } else {
        cl_conv_float32(op, slice, data, arena, machine->kernel_f32, further);
    }
}

/* All slices of an operation, from op_slice on, each for the whole group. A
 * slice writes only its own units, so an operation that was stopped goes on
 * where it was. */
static cl_status run_slices(cl_machine *machine, const cl_op *op)
{
    while (machine->op_slice < op->n_slices) {
        uint32_t index = op->first_slice + machine->op_slice;
        const uint8_t *data = 0;
        machine->needed_slice = index;
        CL_TRY(machine->open_slice(machine->context, index, &data));
        cl_slice slice = cl_program_slice(&machine->program, index);
        for (uint32_t lane = 0; lane < machine->n_group; lane++) {
            run_slice(machine, op, &slice, data, arena_of(machine, lane));
        }
        machine->op_slice++;
    }
    machine->op_slice = 0;
    return CL_OK;
}

static void run_whole(const cl_op *op, uint8_t *arena)
{
    switch (op->code) {
    case CL_OP_MAX_POOL:
        cl_max_pool(op, arena);
        break;
    case CL_OP_AVG_POOL:
        cl_avg_pool(op, arena);
        break;
    case CL_OP_ADAPTIVE_AVG_POOL:
        cl_adaptive_avg_pool(op, arena);
        break;
    case CL_OP_ADD:
        cl_add_tensors(op, arena);
        break;
    case CL_OP_COPY:
        cl_copy(op, arena);
        break;
    case CL_OP_PERMUTE:
        cl_permute(op, arena);
        break;
    default:
        cl_softmax(op, arena);
        break;
    }
}

static cl_status run_op(cl_machine *machine, const cl_op *op)
{
    if (takes_slices(op)) {
        return run_slices(machine, op);
    }
    for (uint32_t lane = 0; lane < machine->n_group; lane++) {
        run_whole(op, arena_of(machine, lane));
    }
    return CL_OK;
}

static cl_status run_group(cl_machine *machine)
{
    uint32_t end = machine->stage.first_op_word + machine->stage.n_op_words;
    while (machine->op_word < end) {
        cl_op op;
        CL_TRY(cl_program_op(&machine->program, &op, machine->op_word, end));
        CL_TRY(run_op(machine, &op));
        machine->op_word += op.n_words;
    }
    return CL_OK;
}

cl_status cl_machine_run(cl_machine *machine, const cl_batch *batch)
{
    CL_REQUIRE(machine->running, CL_BAD_STATE);
    while (machine->image < machine->n_images) {
        if (machine->n_group == 0) {
            enter_group(machine, batch);
        }
        cl_status status = run_group(machine);
        if (status != CL_OK) {
            machine->running = status == CL_NEED_SLICE;
            return status;
        }
        leave_group(machine, batch);
    }
    machine->running = false;
    return CL_OK;
}
