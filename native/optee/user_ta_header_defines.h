/* SPDX-License-Identifier: Apache-2.0
 *
 * What the dev kit puts into the trusted application's header. CL_HEAP_BYTES,
 * CL_STACK_BYTES and CL_VERSION come from the Makefile.
 */
#ifndef USER_TA_HEADER_DEFINES_H
#define USER_TA_HEADER_DEFINES_H

#include "uuid.h"

#define TA_UUID CL_UUID
/* One instance for all sessions: memory is short, and the heap is its bound. It
 * ends with its last session, so that its memory goes back to others. */
#define TA_FLAGS (TA_FLAG_SINGLE_INSTANCE | TA_FLAG_MULTI_SESSION)
#define TA_DATA_SIZE CL_HEAP_BYTES
#define TA_STACK_SIZE CL_STACK_BYTES
#define TA_VERSION CL_VERSION
#define TA_DESCRIPTION "Cloister: protected parts of neural networks"

#endif
