/* SPDX-License-Identifier: Apache-2.0
 *
 * Taking away from this process what it does not need.
 */
#ifndef CL_HARDEN_H
#define CL_HARDEN_H

#include <stdbool.h>
#include <stdint.h>

/* No dumps, no debugger, no core files, no new privileges. (The end of the
 * stream ends the process; a signal at the parent's death would come already
 * when the thread ends that started it.)
 * Returns: the flags of platform.h that hold from now on. */
uint32_t cl_harden_process(void);

/* Kill this process at any system call but the few that answering requests
 * takes. Returns: whether the filter is on. */
bool cl_harden_calls(void);

#endif
