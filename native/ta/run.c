/* SPDX-License-Identifier: Apache-2.0
 *
 * The command `run`.
 */
#include "bytes.h"
#include "platform.h"
#include "session.h"

#define RUN_TYPES                                                          \
    TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_INOUT, TEE_PARAM_TYPE_MEMREF_INPUT, \
                    TEE_PARAM_TYPE_MEMREF_OUTPUT,                          \
                    TEE_PARAM_TYPE_MEMREF_INPUT)

/* The run block, copied in. */
typedef struct run_request {
    uint32_t stage;
    uint32_t n_images;
    uint32_t window_first;
    uint32_t window_count;
    uint32_t resume;
} run_request;

static TEE_Result read_request(run_request *request, const TEE_Param *param)
{
    uint8_t bytes[CL_RUN_BYTES];
    if (param->memref.size != sizeof bytes) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    TEE_MemMove(bytes, param->memref.buffer, sizeof bytes);
    request->stage = cl_load_u32(bytes + CL_RUN_STAGE);
    request->n_images = cl_load_u32(bytes + CL_RUN_IMAGES);
    request->window_first = cl_load_u32(bytes + CL_RUN_WINDOW_FIRST);
    request->window_count = cl_load_u32(bytes + CL_RUN_WINDOW_COUNT);
    request->resume = cl_load_u32(bytes + CL_RUN_RESUME);
    for (uint32_t i = CL_RUN_RESERVED; i < CL_RUN_BYTES; i++) {
        if (bytes[i] != 0) {
            return TEE_ERROR_BAD_PARAMETERS;
        }
    }
    return request->resume <= 1 ? TEE_SUCCESS : TEE_ERROR_BAD_PARAMETERS;
}

static TEE_Result start_or_resume(cl_session *session,
                                  const run_request *request)
{
    cl_machine *machine = &session->machine;
    if (!request->resume) {
        return cl_result_of(
            cl_machine_start(machine, request->stage, request->n_images));
    }
    if (!machine->running) {
        return TEE_ERROR_BAD_STATE;
    }
    bool same = machine->stage_index == request->stage &&
                machine->n_images == request->n_images;
    return same ? TEE_SUCCESS : TEE_ERROR_BAD_PARAMETERS;
}

static TEE_Result set_batch(const cl_machine *machine, cl_batch *batch,
                            TEE_Param *params)
{
    cl_machine_sizes(machine, batch);
    uint64_t in_bytes = cl_mul(batch->in_image_bytes, machine->n_images);
    uint64_t out_bytes = cl_mul(batch->out_image_bytes, machine->n_images);
    if (params[1].memref.size != in_bytes || out_bytes > SIZE_MAX) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    if (params[2].memref.size < out_bytes) {
        params[2].memref.size = (size_t)out_bytes;
        return TEE_ERROR_SHORT_BUFFER;
    }
    params[2].memref.size = (size_t)out_bytes;
    batch->in = params[1].memref.buffer;
    batch->out = params[2].memref.buffer;
    return TEE_SUCCESS;
}

/* ---- The run ----------------------------------------------------------- */

static void answer(const cl_session *session, bool done, TEE_Param *param)
{
    const cl_machine *machine = &session->machine;
    uint8_t *block = param->memref.buffer;
    cl_store_u32(block + CL_RUN_STATE, done ? 0 : 1);
    cl_store_u32(block + CL_RUN_NEEDED, done ? 0 : machine->needed_slice);
    cl_store_u32(block + CL_RUN_DONE, machine->image);
}

static TEE_Result compute(cl_session *session, const cl_batch *batch,
                          TEE_Param *params)
{
    uint64_t opening_ns = session->counts.opening_ns;
    uint64_t start_ns = cl_platform_now_ns();
    uint32_t images = session->machine.image;
    cl_status status = cl_machine_run(&session->machine, batch);
    uint64_t spent_ns = cl_platform_now_ns() - start_ns;
    session->counts.computing_ns +=
        spent_ns - (session->counts.opening_ns - opening_ns);
    session->counts.images += session->machine.image - images;
    session->counts.runs += status == CL_OK;
    if (status == CL_OK || status == CL_NEED_SLICE) {
        answer(session, status == CL_OK, &params[0]);
        return TEE_SUCCESS;
    }
    return cl_session_result_of(session, status);
}

static TEE_Result run(cl_session *session, TEE_Param *params)
{
    run_request request;
    cl_batch batch;
    TEE_Result result = read_request(&request, &params[0]);
    if (result == TEE_SUCCESS && session->base == NULL) {
        result = TEE_ERROR_BAD_STATE;
    }
    if (result == TEE_SUCCESS) {
        result = cl_session_set_window(session, request.window_first,
                                       request.window_count, &params[3]);
    }
    if (result == TEE_SUCCESS) {
        result = start_or_resume(session, &request);
    }
    if (result == TEE_SUCCESS) {
        result = set_batch(&session->machine, &batch, params);
    }
    if (result == TEE_SUCCESS) {
        result = compute(session, &batch, params);
    }
    return result;
}

TEE_Result cl_session_run(cl_session *session, uint32_t types,
                          TEE_Param *params)
{
    if (types != RUN_TYPES) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    size_t out_bytes = params[2].memref.size;
    TEE_Result result = run(session, params);
    cl_session_forget_ahead(session);
    session->window = (cl_sealed_window){0};
    if (result != TEE_SUCCESS) {
        cl_machine_reset(&session->machine);
        TEE_MemFill(params[2].memref.buffer, 0, out_bytes);
    }
    return result;
}
