/* SPDX-License-Identifier: Apache-2.0
 *
 * The finest clock that a process may read, and the system's timer.
 */
#ifndef CL_CLOCK_H
#define CL_CLOCK_H

#include <errno.h>
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

/* Sleep until a time that is a multiple of 20 ms, and so of the period of the
 * system's timer (100, 250 or 1000 Hz): how many of its interrupts fall into
 * what follows does not depend on when it was asked for. */
static inline void cl_clock_wait(void)
{
    const long period = 20000000;
    struct timespec until = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += period - until.tv_nsec % period;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec += 1;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) ==
           EINTR) {
    }
}

#endif
