/* SPDX-License-Identifier: Apache-2.0
 *
 * The finest clock that a process may read.
 */
#ifndef CL_CLOCK_H
#define CL_CLOCK_H

#include <stdint.h>
#include <time.h>

#ifdef __aarch64__
static inline uint64_t cl_clock_now(void)
{
    uint64_t ticks;
    __asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(ticks) : : "memory");
    return ticks;
}

static inline uint64_t cl_clock_ticks_in_second(void)
{
    uint64_t ticks;
    __asm__("mrs %0, cntfrq_el0" : "=r"(ticks));
    return ticks;
}
#else
static inline uint64_t cl_clock_now(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t cl_clock_ticks_in_second(void)
{
    return 1000000000u;
}
#endif

#endif
