/* SPDX-License-Identifier: Apache-2.0
 *
 * Entry points of the trusted application; they only dispatch.
 */
#include "session.h"

TEE_Result TA_CreateEntryPoint(void)
{
    return TEE_SUCCESS;
}

void TA_DestroyEntryPoint(void)
{
}

TEE_Result TA_OpenSessionEntryPoint(uint32_t paramTypes, TEE_Param params[4],
                                    void **sessionContext)
{
    cl_session *session = NULL;
    (void)params;
    if (paramTypes != TEE_PARAM_TYPES(TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE,
                                      TEE_PARAM_TYPE_NONE,
                                      TEE_PARAM_TYPE_NONE)) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    TEE_Result result = cl_session_open(&session);
    *sessionContext = session;
    return result;
}

void TA_CloseSessionEntryPoint(void *sessionContext)
{
    cl_session_close(sessionContext);
}

TEE_Result TA_InvokeCommandEntryPoint(void *sessionContext, uint32_t commandID,
                                      uint32_t paramTypes, TEE_Param params[4])
{
    switch (commandID) {
    case CL_COMMAND_INFO:
        return cl_session_info(sessionContext, paramTypes, params);
    case CL_COMMAND_LOAD:
        return cl_session_load(sessionContext, paramTypes, params);
    case CL_COMMAND_RUN:
        return cl_session_run(sessionContext, paramTypes, params);
    case CL_COMMAND_STATS:
        return cl_session_stats(sessionContext, paramTypes, params);
    case CL_COMMAND_OPEN:
        return cl_session_open_ahead(sessionContext, paramTypes, params);
    default:
        return TEE_ERROR_NOT_IMPLEMENTED;
    }
}
