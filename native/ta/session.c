/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include "bytes.h"
#include "device_key.h"
#include "platform.h"

#ifndef CL_VERSION
#define CL_VERSION "unknown"
#endif

static const char version_text[] = "cloister " CL_VERSION;

_Static_assert(sizeof(cl_session) < 2048, "the session is small");
_Static_assert(sizeof version_text <= CL_INFO_TEXT_BYTES, "it fits");

TEE_Result cl_result_of(cl_status status)
{
    switch (status) {
    case CL_OK:
        return TEE_SUCCESS;
    case CL_BAD_ARGUMENT:
        return TEE_ERROR_BAD_PARAMETERS;
    case CL_BAD_STATE:
        return TEE_ERROR_BAD_STATE;
    case CL_SHORT_MEMORY:
    case CL_OVER_BUDGET:
        return TEE_ERROR_OUT_OF_MEMORY;
    case CL_BAD_VERSION:
        return TEE_ERROR_NOT_SUPPORTED;
    case CL_NOT_OPENED:
        return TEE_ERROR_MAC_INVALID;
    default:
        return TEE_ERROR_BAD_FORMAT;
    }
}

TEE_Result cl_session_open(cl_session **session)
{
    cl_session *fresh = TEE_Malloc(sizeof *fresh, TEE_MALLOC_FILL_ZERO);
    if (fresh == NULL) {
        return TEE_ERROR_OUT_OF_MEMORY;
    }
    TEE_Result result = cl_device_key_open(&fresh->device_key);
    if (result != TEE_SUCCESS) {
        TEE_Free(fresh);
        return result;
    }
    *session = fresh;
    return TEE_SUCCESS;
}

void cl_session_unload(cl_session *session)
{
    cl_aead_free(&session->opener);
    cl_aead_free(&session->beside);
    if (session->block != NULL) {
        TEE_MemFill(session->block, 0, session->block_bytes);
        TEE_Free(session->block);
        session->block = NULL;
    }
    session->base = NULL;
    session->n_places = 0;
    TEE_MemFill(&session->machine, 0, sizeof session->machine);
    TEE_MemFill(session->resident, 0, sizeof session->resident);
}

void cl_session_close(cl_session *session)
{
    cl_session_unload(session);
    TEE_CloseObject(session->device_key);
    TEE_MemFill(session, 0, sizeof *session);
    TEE_Free(session);
}

/* ---- info, stats ------------------------------------------------------- */

/* One output of at least n bytes and nothing else. */
static TEE_Result check_output(uint32_t types, TEE_Param *params, size_t n)
{
    if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_OUTPUT,
                                 TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE,
                                 TEE_PARAM_TYPE_NONE)) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    size_t given = params[0].memref.size;
    params[0].memref.size = n;
    return given < n ? TEE_ERROR_SHORT_BUFFER : TEE_SUCCESS;
}

/* The board's name, zero-padded; the last byte stays zero. */
static void put_board(uint8_t *at, const char *board)
{
    for (uint32_t i = 0; i + 1 < CL_INFO_BOARD_BYTES && board[i] != 0; i++) {
        at[i] = (uint8_t)board[i];
    }
}

TEE_Result cl_session_info(cl_session *session, uint32_t types,
                           TEE_Param *params)
{
    uint8_t info[CL_INFO_BYTES] = {0};
    cl_platform platform = cl_platform_describe();
    TEE_Result result = check_output(types, params, sizeof info);
    if (result != TEE_SUCCESS) {
        return result;
    }
    cl_store_u32(info + CL_INFO_VERSION, CL_PROTOCOL_VERSION);
    cl_store_u32(info + CL_INFO_KIND, platform.kind);
    cl_store_u32(info + CL_INFO_FLAGS, platform.flags);
    cl_store_u64(info + CL_INFO_HEAP, platform.heap_bytes);
    put_board(info + CL_INFO_BOARD, platform.board);
    result =
        cl_device_key_public(session->device_key, info + CL_INFO_PUBLIC_KEY);
    if (result == TEE_SUCCESS) {
        TEE_MemMove(info + CL_INFO_TEXT, version_text, sizeof version_text);
        TEE_MemMove(params[0].memref.buffer, info, sizeof info);
    }
    return result;
}

TEE_Result cl_session_stats(cl_session *session, uint32_t types,
                            TEE_Param *params)
{
    uint8_t stats[CL_STATS_BYTES] = {0};
    const cl_counts *counts = &session->counts;
    cl_heap_use use = cl_platform_heap_use();
    TEE_Result result = check_output(types, params, sizeof stats);
    if (result != TEE_SUCCESS) {
        return result;
    }
    cl_store_u64(stats, use.peak_bytes);
    cl_store_u64(stats + 8, use.now_bytes);
    cl_store_u64(stats + 16, counts->runs);
    cl_store_u64(stats + 24, counts->images);
    cl_store_u64(stats + 32, counts->slices_opened);
    cl_store_u64(stats + 40, counts->bytes_opened);
    cl_store_u64(stats + 48, counts->opening_ns);
    cl_store_u64(stats + 56, counts->computing_ns);
    TEE_MemMove(params[0].memref.buffer, stats, sizeof stats);
    return TEE_SUCCESS;
}
