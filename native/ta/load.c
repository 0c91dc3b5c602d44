/* SPDX-License-Identifier: Apache-2.0
 *
 * The command `load`. How much memory a program needs stands in the program,
 * and the program may be believed only when all of it has been opened. So it
 * is opened twice: once by itself, to learn its size and hash, and once where
 * it stays. This way never more is allocated than the program asks for.
 */
#include "bytes.h"
#include "crypto.h"
#include "platform.h"
#include "session.h"

/* What the first look at a program tells. */
typedef struct measure {
    uint64_t inside_bytes;
    uint8_t hash[CL_HASH_BYTES];
} measure;

static TEE_Result measure_program(uint8_t *program, size_t n_bytes,
                                  measure *found)
{
    cl_program read;
    cl_status status = cl_program_read(&read, program, n_bytes, CL_INSIDE);
    if (status != CL_OK) {
        return cl_result_of(status);
    }
    found->inside_bytes = cl_program_layout(&read).total;
    return cl_sha256(found->hash, program, n_bytes);
}

static TEE_Result first_look(cl_session *session, const uint8_t *request,
                             const TEE_Param *sealed, measure *found)
{
    size_t n_bytes = sealed->memref.size - CL_TAG_BYTES;
    uint8_t *program = TEE_Malloc(n_bytes, TEE_MALLOC_FILL_ZERO);
    if (program == NULL) {
        return TEE_ERROR_OUT_OF_MEMORY;
    }
    TEE_Result result =
        cl_unseal_program(&session->opener, program, request,
                          sealed->memref.buffer, sealed->memref.size);
    if (result == TEE_SUCCESS) {
        result = measure_program(program, n_bytes, found);
    }
    TEE_MemFill(program, 0, n_bytes);
    TEE_Free(program);
    return result;
}

/* The block for all that a program needs. The session itself is the state for
 * which the layout leaves room in front, so that room is not allocated. */
static TEE_Result allocate_block(cl_session *session, uint64_t inside_bytes)
{
    uint64_t bytes = inside_bytes - CL_STATE_BYTES + 64;
    if (bytes > SIZE_MAX) {
        return TEE_ERROR_OUT_OF_MEMORY;
    }
    session->block = TEE_Malloc((size_t)bytes, TEE_MALLOC_FILL_ZERO);
    if (session->block == NULL) {
        return TEE_ERROR_OUT_OF_MEMORY;
    }
    session->block_bytes = bytes;
    session->base = session->block + (64 - (uintptr_t)session->block % 64) % 64;
    return TEE_SUCCESS;
}

/* The second look: the shared memory may hold something else by now. */
static TEE_Result place_program(cl_session *session, const uint8_t *request,
                                const TEE_Param *sealed, const measure *found)
{
    size_t n_bytes = sealed->memref.size - CL_TAG_BYTES;
    measure again = {0};
    TEE_Result result =
        cl_unseal_program(&session->opener, session->base, request,
                          sealed->memref.buffer, sealed->memref.size);
    if (result == TEE_SUCCESS) {
        result = measure_program(session->base, n_bytes, &again);
    }
    if (result == TEE_SUCCESS &&
        TEE_MemCompare(again.hash, found->hash, CL_HASH_BYTES) != 0) {
        result = TEE_ERROR_MAC_INVALID;
    }
    return result;
}

static TEE_Result ready_machine(cl_session *session, const uint8_t *request,
                                size_t n_bytes, const measure *found)
{
    cl_program program;
    cl_status status =
        cl_program_read(&program, session->base, n_bytes, CL_INSIDE);
    if (status != CL_OK) {
        return cl_result_of(status);
    }
    session->layout = cl_program_layout(&program);
    cl_slice_binding_init(&session->binding, request, found->hash,
                          program.n_slices);
    cl_machine_init(&session->machine, &program,
                    session->base + (session->layout.arena - CL_STATE_BYTES),
                    cl_session_open_slice, session, cl_platform_sets());
    cl_session_set_places(session);
    return TEE_SUCCESS;
}

static TEE_Result load(cl_session *session, const uint8_t *request,
                       const TEE_Param *sealed)
{
    measure found = {0};
    size_t n_bytes = sealed->memref.size - CL_TAG_BYTES;
    cl_aead openers[2] = {{0}};
    TEE_Result result = cl_unseal_key(openers, cl_platform_beside() ? 2 : 1,
                                      session->device_key, request);
    session->opener = openers[0];
    session->beside = openers[1];
    TEE_MemFill(openers, 0, sizeof openers);
    if (result == TEE_SUCCESS) {
        result = first_look(session, request, sealed, &found);
    }
    if (result == TEE_SUCCESS) {
        result = allocate_block(session, found.inside_bytes);
    }
    if (result == TEE_SUCCESS) {
        result = place_program(session, request, sealed, &found);
    }
    if (result == TEE_SUCCESS) {
        result = ready_machine(session, request, n_bytes, &found);
    }
    return result;
}

static void answer(const cl_session *session, TEE_Param *param)
{
    uint8_t loaded[CL_LOADED_BYTES] = {0};
    const cl_program *program = &session->machine.program;
    cl_store_u32(loaded + CL_LOADED_STAGES, program->n_stages);
    cl_store_u32(loaded + CL_LOADED_SLICES, program->n_slices);
    cl_store_u64(loaded + CL_LOADED_INSIDE, session->layout.total);
    cl_store_u64(loaded + CL_LOADED_ARENA, program->arena_bytes);
    TEE_MemMove(param->memref.buffer, loaded, sizeof loaded);
    param->memref.size = sizeof loaded;
}

static TEE_Result check_params(uint32_t types, TEE_Param *params)
{
    if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_INPUT,
                                 TEE_PARAM_TYPE_MEMREF_INPUT,
                                 TEE_PARAM_TYPE_MEMREF_OUTPUT,
                                 TEE_PARAM_TYPE_NONE)) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    if (params[0].memref.size != CL_LOAD_BYTES ||
        params[1].memref.size < CL_HEADER_BYTES + CL_TAG_BYTES) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    if (params[2].memref.size < CL_LOADED_BYTES) {
        params[2].memref.size = CL_LOADED_BYTES;
        return TEE_ERROR_SHORT_BUFFER;
    }
    return TEE_SUCCESS;
}

TEE_Result cl_session_load(cl_session *session, uint32_t types,
                           TEE_Param *params)
{
    uint8_t request[CL_LOAD_BYTES];
    TEE_Result result = check_params(types, params);
    if (result != TEE_SUCCESS) {
        return result;
    }
    TEE_MemMove(request, params[0].memref.buffer, sizeof request);
    cl_session_unload(session);
    result = cl_load_u32(request + CL_LOAD_RESERVED) == 0
                 ? load(session, request, &params[1])
                 : TEE_ERROR_BAD_PARAMETERS;
    if (result == TEE_SUCCESS) {
        answer(session, &params[2]);
    } else {
        cl_session_unload(session);
    }
    return result;
}
