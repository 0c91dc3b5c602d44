/* SPDX-License-Identifier: Apache-2.0
 *
 * What cannot be asked through the GlobalPlatform API, in OP-TEE. What the
 * board is like is known to whoever builds for it: the Makefile says it.
 */
#include "kernels/sets.h"
#include "platform.h"

#include <pta_stats.h>
#include <tee_internal_api.h>

/* In the kit's libutils if OP-TEE was built with CFG_WITH_STATS, whatever its
 * header says. */
void malloc_get_stats(struct pta_stats_alloc *stats) __attribute__((weak));

cl_platform cl_platform_describe(void)
{
    return (cl_platform){
        .kind = CL_KIND_OPTEE,
        .flags = CL_BOARD_FLAGS,
        .heap_bytes = CL_HEAP_BYTES,
        .board = CL_BOARD,
    };
}

uint32_t cl_platform_sets(void)
{
    return CL_ALL_SETS & ~CL_SET_AMX;
}

/* OP-TEE authenticates the source, then decrypts it. */
bool cl_platform_reads_once(void)
{
    return false;
}

/* A trusted application has one thread. */
bool cl_platform_beside(void)
{
    return false;
}

bool cl_platform_beside_now(void)
{
    return false;
}

void cl_platform_give(cl_job *job)
{
    job->run(job, false);
}

void cl_platform_finish(cl_job *job)
{
    (void)job;
}

cl_heap_use cl_platform_heap_use(void)
{
    struct pta_stats_alloc stats;
    TEE_MemFill(&stats, 0, sizeof stats);
    if (malloc_get_stats != NULL) {
        malloc_get_stats(&stats);
    }
    return (cl_heap_use){stats.max_allocated, stats.allocated};
}

/* OP-TEE's clock has steps of a millisecond. */
uint64_t cl_platform_now_ns(void)
{
    TEE_Time now = {0};
    TEE_GetSystemTime(&now);
    return (uint64_t)now.seconds * 1000000000u +
           (uint64_t)now.millis * 1000000u;
}
