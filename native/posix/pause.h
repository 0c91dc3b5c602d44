/* SPDX-License-Identifier: Apache-2.0
 *
 * Between two looks at memory that another thread will change.
 */
#ifndef CL_PAUSE_H
#define CL_PAUSE_H

static inline void cl_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
