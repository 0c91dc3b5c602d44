/* SPDX-License-Identifier: Apache-2.0
 *
 * Instruction sets that kernels need, one bit each; without any there is
 * plain C.
 */
#ifndef CL_SETS_H
#define CL_SETS_H

#include <stdint.h>

#define CL_SET_AMX 0x01u
#define CL_SET_AVX512 0x02u
#define CL_SET_AVXVNNI 0x04u
#define CL_SET_AVX2 0x08u
#define CL_SET_I8MM 0x10u
#define CL_SET_DOT 0x20u
#define CL_SET_NEON 0x40u
#define CL_ALL_SETS 0x7Fu

/* Ask the operating system for AMX, once for each thread at least, and before
 * system calls are filtered.
 * Returns: the sets that this thread and those it starts may use, as far as
 * the system has a say; whether the processor has them is another matter. */
uint32_t cl_sets_permit(void);

#endif
