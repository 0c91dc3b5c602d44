/* SPDX-License-Identifier: Apache-2.0
 *
 * The command `open`: slices are opened ahead of the first run.
 */
#include "bytes.h"
#include "session.h"

#define OPEN_TYPES                                                          \
    TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_INPUT, TEE_PARAM_TYPE_MEMREF_INPUT, \
                    TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE)

/* The slices that the client holds out: parameter 1, as parameter 0 says. */
static TEE_Result read_window(cl_session *session, const TEE_Param *params)
{
    uint8_t bytes[CL_OPEN_BYTES];
    if (params[0].memref.size != sizeof bytes) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    TEE_MemMove(bytes, params[0].memref.buffer, sizeof bytes);
    if (cl_load_u32(bytes + CL_OPEN_RESERVED) != 0 ||
        cl_load_u32(bytes + CL_OPEN_RESERVED + 4) != 0) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    if (session->base == NULL) {
        return TEE_ERROR_BAD_STATE;
    }
    return cl_session_set_window(session, cl_load_u32(bytes + CL_OPEN_FIRST),
                                 cl_load_u32(bytes + CL_OPEN_COUNT),
                                 &params[1]);
}

static TEE_Result open_window(cl_session *session)
{
    cl_status status = CL_OK;
    for (uint32_t i = 0; i < session->window.count && status == CL_OK; i++) {
        const uint8_t *data = NULL;
        status =
            cl_session_open_slice(session, session->window.first + i, &data);
    }
    return cl_session_result_of(session, status);
}

TEE_Result cl_session_open_ahead(cl_session *session, uint32_t types,
                                 TEE_Param *params)
{
    if (types != OPEN_TYPES) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    cl_machine_reset(&session->machine);
    TEE_Result result = read_window(session, params);
    if (result == TEE_SUCCESS) {
        result = open_window(session);
    }
    cl_session_forget_ahead(session);
    session->window = (cl_sealed_window){0};
    return result;
}
