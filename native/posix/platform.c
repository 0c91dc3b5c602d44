/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "platform.h"

#include <time.h>

#include "gp.h"
#include "platform_posix.h"

static uint32_t process_flags;
static uint32_t permitted_sets;

void cl_platform_set_flags(uint32_t flags)
{
    process_flags = flags;
}

void cl_platform_set_sets(uint32_t sets)
{
    permitted_sets = sets;
}

uint32_t cl_platform_sets(void)
{
    return permitted_sets;
}

cl_platform cl_platform_describe(void)
{
    cl_platform platform = {
        .kind = CL_KIND_LOCAL,
        .flags = process_flags,
        .heap_bytes = cl_ta_heap.n_bytes,
        .board = "",
    };
    if (cl_ta_heap.locked && cl_crypto_heap()->locked) {
        platform.flags |= CL_FLAG_MEMORY_LOCKED;
    }
    if (cl_ta_heap.hidden && cl_crypto_heap()->hidden) {
        platform.flags |= CL_FLAG_MEMORY_HIDDEN;
    }
    return platform;
}

/* As decrypt.c does it. */
bool cl_platform_reads_once(void)
{
    return true;
}

cl_heap_use cl_platform_heap_use(void)
{
    return (cl_heap_use){cl_ta_heap.peak_bytes, cl_ta_heap.live_bytes};
}

uint64_t cl_platform_now_ns(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
