/* SPDX-License-Identifier: Apache-2.0
 *
 * Status codes of the core. Groups: 0x1x the caller's arguments, 0x2x memory,
 * 0x3x the program, 0x5x the source of slices.
 */
#ifndef CL_STATUS_H
#define CL_STATUS_H

#include <stdint.h>

typedef enum cl_status {
    CL_OK = 0x00,
    CL_NEED_SLICE = 0x01, /* not a failure: go on when the slice is there */
    CL_BAD_ARGUMENT = 0x10,
    CL_BAD_STATE = 0x11,
    CL_BAD_CONSTANTS = 0x12,
    CL_SHORT_MEMORY = 0x20,
    CL_OVER_BUDGET = 0x21,
    CL_BAD_MAGIC = 0x30,
    CL_BAD_VERSION = 0x31,
    CL_BAD_LENGTH = 0x32,
    CL_BAD_HEADER = 0x33,
    CL_BAD_TENSOR = 0x34,
    CL_BAD_SLICE = 0x35,
    CL_BAD_STAGE = 0x36,
    CL_BAD_OPERATION = 0x37,
    CL_BAD_OVERLAP = 0x38,
    CL_NOT_OPENED = 0x50
} cl_status;

#define CL_CHECKED __attribute__((warn_unused_result))

/* Hand a failure on to the caller. */
#define CL_TRY(call)                      \
    do {                                  \
        cl_status cl_status_ = (call);    \
        if (cl_status_ != CL_OK) {        \
            return cl_status_;            \
        }                                 \
    } while (0)

/* Refuse with `status` unless `rule` holds. */
#define CL_REQUIRE(rule, status) \
    do {                         \
        if (!(rule)) {           \
            return (status);     \
        }                        \
    } while (0)

#endif
