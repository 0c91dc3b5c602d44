/* SPDX-License-Identifier: Apache-2.0
 *
 * The interpreter. It runs a stage for a number of images, in groups of the
 * program's lanes: each slice for the whole group, so that it is opened once.
 * It can stop wherever it needs a slice that is not there and go on later. It
 * allocates nothing.
 */
#ifndef CL_MACHINE_H
#define CL_MACHINE_H

#include <stdint.h>

#include "program.h"
#include "status.h"

/* Gives the open bytes of a slice.
 * Returns: CL_OK, CL_NEED_SLICE to stop here, or a failure.
 * Out: data: valid until the next call. In: context: the machine's. */
typedef cl_status (*cl_open_slice)(void *context, uint32_t index,
                                   const uint8_t **data);

struct cl_kernel;
struct cl_kernel_f32;

/* A run that may be stopped. `ready` means that nothing is to be resumed. */
typedef struct cl_machine {
    cl_program program;
    uint8_t *arena; /* of the first lane; aligned to 64 */
    uint64_t lane_bytes;
    cl_open_slice open_slice;
    void *context;
    const struct cl_kernel *kernel;         /* of int8 convs */
    const struct cl_kernel_f32 *kernel_f32; /* of float32 convs */
    cl_stage stage;
    uint32_t stage_index;
    uint32_t n_images;
    uint32_t image;   /* images done: whole groups */
    uint32_t n_group; /* images in the arenas, 0 before they are put there */
    uint32_t op_word; /* where to go on */
    uint32_t op_slice;
    uint32_t needed_slice; /* after CL_NEED_SLICE */
    uint32_t slices_end;   /* no slice of the stage comes after these */
    bool running;
} cl_machine;

/* What goes in and comes out of a run: n_images times the stage's payload. */
typedef struct cl_batch {
    const uint8_t *in;
    uint8_t *out;
    uint64_t in_image_bytes;
    uint64_t out_image_bytes;
} cl_batch;

/* Make a machine for a checked program; nothing runs yet. It uses the best
 * kernels of this machine; they may be changed before a run.
 * In: arena: the lanes' arenas, as in the program's layout; sets: instruction
 *     sets that may be used (kernels/sets.h). */
void cl_machine_init(cl_machine *machine, const cl_program *program,
                     uint8_t *arena, cl_open_slice open_slice, void *context,
                     uint32_t sets);

/* Begin a run; an unfinished one is forgotten.
 * Returns: CL_OK or CL_BAD_ARGUMENT (no such stage, or no image). */
cl_status cl_machine_start(cl_machine *machine, uint32_t stage,
                           uint32_t n_images) CL_CHECKED;

/* Sizes of the run that was begun. Out: batch's two sizes. */
void cl_machine_sizes(const cl_machine *machine, cl_batch *batch);

/* Go on with the run that was begun.
 * Returns: CL_OK when done, CL_NEED_SLICE to be called again with the same
 *          batch, CL_BAD_STATE if there is no run, or what open_slice gave;
 *          after a failure the run is forgotten.
 * Out: batch->out: the results of the images that are done. */
cl_status cl_machine_run(cl_machine *machine, const cl_batch *batch) CL_CHECKED;

/* Forget the run. */
void cl_machine_reset(cl_machine *machine);

#endif
