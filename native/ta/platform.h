/* SPDX-License-Identifier: Apache-2.0
 *
 * What the trusted application asks of the place where it runs and the
 * GlobalPlatform API cannot say. Each build brings its own implementation.
 */
#ifndef CL_PLATFORM_H
#define CL_PLATFORM_H

#include <stdbool.h>
#include <stdint.h>

enum { CL_KIND_LOCAL = 1, CL_KIND_OPTEE = 2 };

enum {
    CL_FLAG_NOT_DUMPABLE = 1,
    CL_FLAG_NO_CORE_FILES = 2,
    CL_FLAG_NO_NEW_PRIVILEGES = 4,
    CL_FLAG_MEMORY_LOCKED = 8,
    CL_FLAG_MEMORY_HIDDEN = 16,
    CL_FLAG_CALL_FILTER = 32,
    CL_FLAG_HARDWARE = 64,      /* the normal world cannot read the memory */
    CL_FLAG_DEMONSTRATION = 128 /* who has the board can read or replace it */
};

typedef struct cl_platform {
    uint32_t kind;
    uint32_t flags;
    uint64_t heap_bytes; /* the most that TEE_Malloc gives */
    const char *board;   /* ASCII, less than CL_INFO_BOARD_BYTES; "" for none */
} cl_platform;

typedef struct cl_heap_use {
    uint64_t peak_bytes;
    uint64_t now_bytes;
} cl_heap_use;

cl_platform cl_platform_describe(void);
cl_heap_use cl_platform_heap_use(void);

/* Returns: the instruction sets that kernels may use (kernels/sets.h). */
uint32_t cl_platform_sets(void);

/* Something to do that a second thread may do beside this one. */
typedef struct cl_job {
    /* In/Out: job: this; beside: whether it is the second thread. */
    void (*run)(struct cl_job *job, bool beside);
    uint32_t done; /* the platform's */
} cl_job;

#define CL_MOST_JOBS 8u

/* Returns: whether there is a second thread. It does not run without jobs. */
bool cl_platform_beside(void);

/* Returns: whether it is there and does not rest: it does for a while when
 * others took its processor away. */
bool cl_platform_beside_now(void);

/* Give a job; jobs are begun in the order in which they are given.
 * In/Out: job: stays where it is until it is finished. At most CL_MOST_JOBS
 *         may be given and not finished. */
void cl_platform_give(cl_job *job);

/* Returns when a given job is done; until then this thread runs what nobody
 * has begun. */
void cl_platform_finish(cl_job *job);

/* Returns: whether TEE_AEUpdate reads each byte of its source once, so that
 * the source may change meanwhile. */
bool cl_platform_reads_once(void);

/* Returns: nanoseconds since some fixed moment; never goes back. */
uint64_t cl_platform_now_ns(void);

#endif
