/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CL_BESIDE_H
#define CL_BESIDE_H

/* Start the second thread of platform.h, where the client may use more than
 * one processor. To be called before system calls are filtered. */
void cl_beside_open(void);

#endif
