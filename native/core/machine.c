/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#include "bytes.h"
#include "kernels/kernels.h"

void cl_machine_init(cl_machine *machine, const cl_program *program,
                     uint8_t *arena, cl_open_slice open_slice, void *context)
{
    *machine = (cl_machine){
        .program = *program,
        .arena = arena,
        .open_slice = open_slice,
        .context = context,
    };
}

void cl_machine_reset(cl_machine *machine)
{
    machine->running = false;
    machine->entered = false;
    machine->image = 0;
    machine->op_slice = 0;
}

cl_status cl_machine_start(cl_machine *machine, uint32_t stage,
                           uint32_t n_images)
{
    cl_machine_reset(machine);
    CL_REQUIRE(n_images >= 1, CL_BAD_ARGUMENT);
    CL_TRY(cl_program_stage(&machine->program, &machine->stage, stage));
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

static void enter_image(cl_machine *machine, const uint8_t *in)
{
    const cl_stage *stage = &machine->stage;
    for (uint32_t i = 0; i < stage->n_inputs; i++) {
        cl_tensor tensor = tensor_at(machine, stage->inputs, i);
        uint64_t bytes = cl_tensor_bytes(&tensor);
        memcpy(machine->arena + tensor.offset, in, bytes);
        in += bytes;
    }
    machine->op_word = stage->first_op_word;
    machine->op_slice = 0;
    machine->entered = true;
}

static void leave_image(cl_machine *machine, uint8_t *out)
{
    const cl_stage *stage = &machine->stage;
    for (uint32_t i = 0; i < stage->n_outputs; i++) {
        cl_tensor tensor = tensor_at(machine, stage->outputs, i);
        uint64_t bytes = cl_tensor_bytes(&tensor);
        memcpy(out, machine->arena + tensor.offset, bytes);
        out += bytes;
    }
    machine->image++;
    machine->entered = false;
}

static void run_slice(const cl_machine *machine, const cl_op *op,
                      const cl_slice *slice, const uint8_t *data)
{
    if (op->code == CL_OP_AFFINE) {
        cl_affine(op, slice, data, machine->arena);
    } else if (op->in.dtype == CL_INT8) {
        cl_conv_int8(op, slice, data, machine->arena);
    } else {
        cl_conv_float32(op, slice, data, machine->arena);
    }
}

/* All slices of an operation, from op_slice on. A slice writes only its own
 * units, so an operation that was stopped goes on where it was. */
static cl_status run_slices(cl_machine *machine, const cl_op *op)
{
    while (machine->op_slice < op->n_slices) {
        uint32_t index = op->first_slice + machine->op_slice;
        const uint8_t *data = 0;
        machine->needed_slice = index;
        CL_TRY(machine->open_slice(machine->context, index, &data));
        cl_slice slice = cl_program_slice(&machine->program, index);
        run_slice(machine, op, &slice, data);
        machine->op_slice++;
    }
    machine->op_slice = 0;
    return CL_OK;
}

static cl_status run_op(cl_machine *machine, const cl_op *op)
{
    switch (op->code) {
    case CL_OP_MAX_POOL:
        cl_max_pool(op, machine->arena);
        break;
    case CL_OP_AVG_POOL:
        cl_avg_pool(op, machine->arena);
        break;
    case CL_OP_ADAPTIVE_AVG_POOL:
        cl_adaptive_avg_pool(op, machine->arena);
        break;
    case CL_OP_ADD:
        cl_add_tensors(op, machine->arena);
        break;
    case CL_OP_COPY:
        cl_copy(op, machine->arena);
        break;
    case CL_OP_PERMUTE:
        cl_permute(op, machine->arena);
        break;
    case CL_OP_SOFTMAX:
        cl_softmax(op, machine->arena);
        break;
    default:
        return run_slices(machine, op);
    }
    return CL_OK;
}

static cl_status run_image(cl_machine *machine)
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
        if (!machine->entered) {
            enter_image(machine,
                        batch->in + machine->image * batch->in_image_bytes);
        }
        cl_status status = run_image(machine);
        if (status != CL_OK) {
            machine->running = status == CL_NEED_SLICE;
            return status;
        }
        leave_image(machine,
                    batch->out + machine->image * batch->out_image_bytes);
    }
    machine->running = false;
    return CL_OK;
}
