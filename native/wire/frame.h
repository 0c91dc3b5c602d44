/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests and responses of the wire protocol (docs/spec/wire.md) as bytes.
 */
#ifndef CL_FRAME_H
#define CL_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#define CL_REQUEST_BYTES 112u
#define CL_RESPONSE_BYTES 48u
#define CL_PARAMS 4u

enum { CL_KIND_NONE, CL_KIND_INPUT, CL_KIND_OUTPUT, CL_KIND_BOTH };
enum { CL_REGION_NONE, CL_REGION_PAYLOAD, CL_REGION_STORE };

typedef struct cl_frame_param {
    uint32_t kind;
    uint32_t region;
    uint64_t offset;
    uint64_t n_bytes;
} cl_frame_param;

typedef struct cl_frame {
    uint32_t sequence;
    uint32_t command;
    cl_frame_param params[CL_PARAMS];
} cl_frame;

/* Returns: false if the frame is malformed. In: bytes: CL_REQUEST_BYTES. */
bool cl_frame_read(cl_frame *frame, const uint8_t *bytes);

/* Returns: whether the kind exists and may lie in the region. */
bool cl_frame_param_holds(const cl_frame_param *param);

/* Out: bytes: CL_RESPONSE_BYTES. In: used: what each parameter took. */
void cl_frame_answer(uint8_t *bytes, const cl_frame *frame, uint32_t result,
                     const uint64_t *used);

/* Give a request its number. In/out: request: CL_REQUEST_BYTES. */
void cl_frame_number(uint8_t *request, uint32_t sequence);

/* Returns: whether a response is one to this request, with success, that used
 * no more of a parameter than there is. In: response: CL_RESPONSE_BYTES. */
bool cl_frame_succeeded(const uint8_t *response, const uint8_t *request);

#endif
