/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening slices from the window that the client holds out.
 */
#include "bytes.h"
#include "platform.h"
#include "session.h"

/* The window must be exactly the slices that it is said to be. */
TEE_Result cl_session_set_window(cl_session *session, uint32_t first,
                                 uint32_t count, const TEE_Param *param)
{
    const cl_program *program = &session->machine.program;
    if (!cl_inside(first, count, program->n_slices)) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    uint64_t bytes = cl_program_store_offset(program, first + count) -
                     cl_program_store_offset(program, first);
    if (param->memref.size != bytes) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    session->window = (cl_sealed_window){param->memref.buffer, first, count};
    return TEE_SUCCESS;
}

static bool is_open(const cl_session *session, uint32_t index,
                    const cl_slice *slice)
{
    if (slice->place == CL_STREAMED) {
        return session->slot_slice == index;
    }
    return (session->resident[index / 8] >> (index % 8)) & 1;
}

static void mark_open(cl_session *session, uint32_t index,
                      const cl_slice *slice)
{
    if (slice->place == CL_STREAMED) {
        session->slot_slice = index;
    } else {
        session->resident[index / 8] |= (uint8_t)(1u << (index % 8));
    }
    session->counts.slices_opened++;
    session->counts.bytes_opened += slice->bytes;
}

static uint8_t *place_of(const cl_session *session, const cl_slice *slice)
{
    uint64_t at = slice->place == CL_STREAMED
                      ? session->layout.slot
                      : session->layout.resident + slice->place;
    return session->base + (at - CL_STATE_BYTES);
}

static bool in_window(const cl_sealed_window *window, uint32_t index)
{
    return index >= window->first && index - window->first < window->count;
}

static cl_status open_from_window(cl_session *session, uint32_t index,
                                  const cl_slice *slice, uint8_t *place)
{
    const cl_program *program = &session->machine.program;
    uint64_t at = cl_program_store_offset(program, index) -
                  cl_program_store_offset(program, session->window.first);
    if (slice->place == CL_STREAMED) {
        session->slot_slice = CL_STREAMED;
    }
    session->failure =
        cl_unseal_slice(&session->opener, &session->binding, place, index,
                        session->window.bytes + at, slice->bytes);
    return session->failure == TEE_SUCCESS ? CL_OK : CL_NOT_OPENED;
}

cl_status cl_session_open_slice(void *context, uint32_t index,
                                const uint8_t **data)
{
    cl_session *session = context;
    cl_slice slice = cl_program_slice(&session->machine.program, index);
    uint8_t *place = place_of(session, &slice);
    *data = place;
    if (is_open(session, index, &slice)) {
        return CL_OK;
    }
    if (!in_window(&session->window, index)) {
        return CL_NEED_SLICE;
    }
    uint64_t start_ns = cl_platform_now_ns();
    cl_status status = open_from_window(session, index, &slice, place);
    session->counts.opening_ns += cl_platform_now_ns() - start_ns;
    if (status == CL_OK) {
        mark_open(session, index, &slice);
    }
    return status;
}

TEE_Result cl_session_result_of(const cl_session *session, cl_status status)
{
    return status == CL_NOT_OPENED ? session->failure : cl_result_of(status);
}
