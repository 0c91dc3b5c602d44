/* SPDX-License-Identifier: Apache-2.0 */
#include "inprocess.h"

#include "bytes.h"
#include "kernels/float32.h"
#include "kernels/int8.h"
#include "kernels/sets.h"
#include "machine.h"

/* At the start of the caller's memory. */
typedef struct core {
    cl_machine machine;
    const uint8_t *constants;
} core;

_Static_assert(sizeof(core) <= CL_STATE_BYTES, "the state has its own room");

static cl_status open_constant(void *context, uint32_t index,
                               const uint8_t **data)
{
    const core *self = context;
    *data = self->constants +
            cl_program_slice(&self->machine.program, index).store_offset;
    return CL_OK;
}

int32_t cl_core_need(const uint8_t *program, uint64_t program_bytes,
                     uint64_t *memory_bytes_out)
{
    cl_program read;
    CL_TRY(cl_program_read(&read, program, program_bytes, CL_OUTSIDE));
    *memory_bytes_out = cl_program_layout(&read).total;
    return CL_OK;
}

int32_t cl_core_open(void *memory, uint64_t memory_bytes,
                     const uint8_t *program, uint64_t program_bytes,
                     const uint8_t *constants, uint64_t constants_bytes,
                     uint32_t sets)
{
    core *self = memory;
    uint8_t *base = memory;
    cl_program read;
    CL_REQUIRE((uintptr_t)memory % 64 == 0, CL_BAD_ARGUMENT);
    CL_REQUIRE(memory_bytes >= CL_STATE_BYTES &&
                   program_bytes <= memory_bytes - CL_STATE_BYTES,
               CL_SHORT_MEMORY);
    memset(self, 0, sizeof *self);
    memcpy(base + CL_STATE_BYTES, program, program_bytes);
    CL_TRY(cl_program_read(&read, base + CL_STATE_BYTES, program_bytes,
                           CL_OUTSIDE));
    cl_layout layout = cl_program_layout(&read);
    CL_REQUIRE(layout.total <= memory_bytes, CL_SHORT_MEMORY);
    CL_REQUIRE(cl_program_store_offset(&read, read.n_slices) ==
                   constants_bytes,
               CL_BAD_CONSTANTS);
    memset(base + layout.arena, 0, layout.total - layout.arena);
    cl_machine_init(&self->machine, &read, base + layout.arena, open_constant,
                    self, sets & cl_sets_permit());
    self->constants = constants;
    return CL_OK;
}

const char *cl_core_kernel(uint32_t bits, uint32_t sets)
{
    sets &= cl_sets_permit();
    return bits == 8 ? cl_kernel_at(0, sets)->name
                     : cl_kernel_f32_at(0, sets)->name;
}

int32_t cl_core_run(void *memory, uint32_t stage, uint32_t n_images,
                    const uint8_t *in, uint64_t in_bytes, uint8_t *out,
                    uint64_t out_bytes)
{
    core *self = memory;
    cl_batch batch = {.in = in, .out = out};
    CL_REQUIRE(self->machine.arena != 0, CL_BAD_STATE);
    CL_TRY(cl_machine_start(&self->machine, stage, n_images));
    cl_machine_sizes(&self->machine, &batch);
    CL_REQUIRE(cl_mul(batch.in_image_bytes, n_images) == in_bytes,
               CL_BAD_ARGUMENT);
    CL_REQUIRE(cl_mul(batch.out_image_bytes, n_images) == out_bytes,
               CL_BAD_ARGUMENT);
    return cl_machine_run(&self->machine, &batch);
}

const char *cl_core_status_text(int32_t status)
{
    switch (status) {
    case CL_OK:
        return "ok";
    case CL_NEED_SLICE:
        return "a slice is needed";
    case CL_BAD_ARGUMENT:
        return "no such stage, no image, a wrong size, or memory that is not "
               "aligned to 64 bytes";
    case CL_BAD_STATE:
        return "no program is open";
    case CL_BAD_CONSTANTS:
        return "the constants have another length than the program's slices";
    case CL_SHORT_MEMORY:
        return "the program needs more memory than was given";
    case CL_OVER_BUDGET:
        return "the program needs more memory than its own budget";
    case CL_BAD_MAGIC:
        return "this is no program";
    case CL_BAD_VERSION:
        return "the program has another format version";
    case CL_BAD_LENGTH:
        return "the program's sections do not add up to its length";
    case CL_BAD_HEADER:
        return "the program's header breaks a rule";
    case CL_BAD_TENSOR:
        return "a tensor breaks a rule";
    case CL_BAD_SLICE:
        return "a slice breaks a rule";
    case CL_BAD_STAGE:
        return "a stage breaks a rule";
    case CL_BAD_OPERATION:
        return "an operation breaks a rule";
    case CL_BAD_OVERLAP:
        return "tensors of one operation overlap in memory";
    case CL_NOT_OPENED:
        return "a slice was changed";
    default:
        return "unknown status";
    }
}
