/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CL_PLATFORM_POSIX_H
#define CL_PLATFORM_POSIX_H

#include <stdbool.h>
#include <stdint.h>

/* Say which protections of the process are on, for `info`. */
void cl_platform_set_flags(uint32_t flags);

/* Say which instruction sets this process may use (kernels/sets.h). */
void cl_platform_set_sets(uint32_t sets);

#endif
