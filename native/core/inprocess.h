/* SPDX-License-Identifier: Apache-2.0
 *
 * Running an outside program in this process: the flat interface of
 * libcloister_core. Statuses are cl_status; 0 is success.
 */
#ifndef CL_INPROCESS_H
#define CL_INPROCESS_H

#include <stdint.h>

#define CL_EXPORT __attribute__((visibility("default")))

/* Check a program and tell how much memory it needs.
 * Out: memory_bytes_out: bytes for cl_core_open.
 * In:  program: any alignment. */
CL_EXPORT int32_t cl_core_need(const uint8_t *program, uint64_t program_bytes,
                               uint64_t *memory_bytes_out);

/* Copy a program into memory, check it there, and tie it to its constants.
 * Out: memory: aligned to 64.
 * In:  constants: the clear slices in store layout, exactly that long; they
 *      must outlive memory; sets: instruction sets that may be used
 *      (kernels/sets.h). */
CL_EXPORT int32_t cl_core_open(void *memory, uint64_t memory_bytes,
                               const uint8_t *program, uint64_t program_bytes,
                               const uint8_t *constants,
                               uint64_t constants_bytes, uint32_t sets);

/* Returns: the name of the best kernel that needs no other sets.
 * In: bits: 8 or 32. */
CL_EXPORT const char *cl_core_kernel(uint32_t bits, uint32_t sets);

/* Run a stage. One call at a time for one memory.
 * Out: out: out_bytes, exactly n_images times the stage's output payload.
 * In:  in: in_bytes, exactly n_images times its input payload. */
CL_EXPORT int32_t cl_core_run(void *memory, uint32_t stage, uint32_t n_images,
                              const uint8_t *in, uint64_t in_bytes,
                              uint8_t *out, uint64_t out_bytes);

/* Returns: what a status means, for people; never null. */
CL_EXPORT const char *cl_core_status_text(int32_t status);

#endif
