/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs that run in the host's own process, for comparison.
 */
#ifndef CL_OUTSIDE_H
#define CL_OUTSIDE_H

#include "tee.h"

typedef struct cl_outside {
    uint8_t *constants;
    void *memory; /* null while nothing is loaded */
} cl_outside;

/* Load a clear program; what was loaded is forgotten.
 * In: program, constants: copied; most_bytes: what it may take in all. */
TEEC_Result cl_outside_load(cl_outside *outside, const cl_argument *program,
                            const cl_argument *constants, uint64_t most_bytes);

/* Run a stage. Out: results: sized exactly. */
TEEC_Result cl_outside_run(cl_outside *outside, const cl_argument *results,
                           const cl_argument *request,
                           const cl_argument *images);

void cl_outside_forget(cl_outside *outside);

#endif
