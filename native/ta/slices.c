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

static bool in_window(const cl_sealed_window *window, uint32_t index)
{
    return index >= window->first && index - window->first < window->count;
}

/* In: opener: of the thread that this is. */
static TEE_Result open_from_window(const cl_session *session,
                                   const cl_aead *opener, uint8_t *to,
                                   uint32_t index)
{
    const cl_program *program = &session->machine.program;
    cl_slice slice = cl_program_slice(program, index);
    uint64_t at = cl_program_store_offset(program, index) -
                  cl_program_store_offset(program, session->window.first);
    return cl_unseal_slice(opener, &session->binding, to, index,
                           session->window.bytes + at, slice.bytes);
}

/* ---- Slices that stay -------------------------------------------------- */

static uint8_t *stay_at(const cl_session *session, const cl_slice *slice)
{
    return session->base + (session->layout.resident - CL_STATE_BYTES) +
           slice->place;
}

static bool stays_open(const cl_session *session, uint32_t index)
{
    return (session->resident[index / 8] >> (index % 8)) & 1;
}

static TEE_Result open_to_stay(cl_session *session, uint32_t index,
                               const cl_slice *slice)
{
    TEE_Result result = open_from_window(session, &session->opener,
                                         stay_at(session, slice), index);
    if (result == TEE_SUCCESS) {
        session->resident[index / 8] |= (uint8_t)(1u << (index % 8));
    }
    return result;
}

/* ---- Slices that stream ------------------------------------------------ */

/* The slot is a ring of places, as many as it has room for. One is in use; in
 * those behind it the next slices are opened meanwhile, if there is a second
 * thread to do it. */

static void open_into_place(cl_job *job, bool beside)
{
    cl_place *place = (cl_place *)(void *)job; /* its first member */
    const cl_session *session = place->session;
    place->result = open_from_window(
        session, beside ? &session->beside : &session->opener, place->bytes,
        place->slice);
}

void cl_session_set_places(cl_session *session)
{
    const cl_program *program = &session->machine.program;
    uint64_t largest = 1;
    for (uint32_t i = 0; i < program->n_slices; i++) {
        cl_slice slice = cl_program_slice(program, i);
        if (slice.place == CL_STREAMED && slice.bytes > largest) {
            largest = slice.bytes;
        }
    }
    uint64_t step = cl_up(largest, 64), n = program->slot_bytes / step;
    n = n < 1 ? 1 : n;
    session->n_places = n < CL_MOST_JOBS ? (uint32_t)n : CL_MOST_JOBS;
    session->current = session->n_ahead = 0;
    for (uint32_t i = 0; i < session->n_places; i++) {
        session->places[i] = (cl_place){
            .job = {.run = open_into_place},
            .session = session,
            .bytes = session->base +
                     (session->layout.slot - CL_STATE_BYTES) + i * step,
            .slice = CL_STREAMED,
        };
    }
}

/* The place n behind the one in use. */
static cl_place *place_behind(cl_session *session, uint32_t n)
{
    return &session->places[(session->current + n) % session->n_places];
}


void cl_session_forget_ahead(cl_session *session)
{
    for (; session->n_ahead != 0; session->n_ahead--) {
        cl_place *place = place_behind(session, session->n_ahead);
        cl_platform_finish(&place->job);
        place->slice = CL_STREAMED;
    }
}

/* What most likely comes next: slices of this stage in the order of their
 * index. A wrong guess costs time and nothing else. */
static void open_ahead(cl_session *session)
{
    const cl_machine *machine = &session->machine;
    while (session->n_ahead + 1 < session->n_places &&
           session->next < machine->slices_end &&
           in_window(&session->window, session->next)) {
        uint32_t index = session->next++;
        if (cl_program_slice(&machine->program, index).place == CL_STREAMED) {
            cl_place *place = place_behind(session, ++session->n_ahead);
            place->slice = index;
            cl_platform_give(&place->job);
        }
    }
}

/* The next place becomes the one in use, with this slice in it. */
static TEE_Result enter_place(cl_session *session, uint32_t index)
{
    cl_place *place = place_behind(session, 1);
    bool given = session->n_ahead != 0 && place->slice == index;
    if (given) {
        session->n_ahead--;
    } else {
        cl_session_forget_ahead(session);
        place->slice = index;
        session->next = index + 1;
    }
    session->current = (session->current + 1) % session->n_places;
    if (cl_platform_beside_now()) {
        open_ahead(session);
    }
    if (given) {
        cl_platform_finish(&place->job);
    } else {
        open_into_place(&place->job, false);
    }
    if (place->result != TEE_SUCCESS) {
        place->slice = CL_STREAMED;
    }
    return place->result;
}

/* ---- Both -------------------------------------------------------------- */

/* Where a slice lies open. Returns: null if it does not. */
static const uint8_t *find_open(cl_session *session, uint32_t index,
                                const cl_slice *slice)
{
    if (slice->place != CL_STREAMED) {
        return stays_open(session, index) ? stay_at(session, slice) : NULL;
    }
    const cl_place *place = place_behind(session, 0);
    return place->slice == index ? place->bytes : NULL;
}

static TEE_Result open_slice(cl_session *session, uint32_t index,
                             const cl_slice *slice)
{
    uint64_t start_ns = cl_platform_now_ns();
    TEE_Result result = slice->place == CL_STREAMED
                            ? enter_place(session, index)
                            : open_to_stay(session, index, slice);
    session->counts.opening_ns += cl_platform_now_ns() - start_ns;
    if (result == TEE_SUCCESS) {
        session->counts.slices_opened++;
        session->counts.bytes_opened += slice->bytes;
    }
    return result;
}

cl_status cl_session_open_slice(void *context, uint32_t index,
                                const uint8_t **data)
{
    cl_session *session = context;
    cl_slice slice = cl_program_slice(&session->machine.program, index);
    *data = find_open(session, index, &slice);
    if (*data != NULL) {
        return CL_OK;
    }
    if (!in_window(&session->window, index)) {
        return CL_NEED_SLICE;
    }
    session->failure = open_slice(session, index, &slice);
    *data = find_open(session, index, &slice);
    return session->failure == TEE_SUCCESS ? CL_OK : CL_NOT_OPENED;
}

TEE_Result cl_session_result_of(const cl_session *session, cl_status status)
{
    return status == CL_NOT_OPENED ? session->failure : cl_result_of(status);
}
