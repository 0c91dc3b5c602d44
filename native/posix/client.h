/* SPDX-License-Identifier: Apache-2.0
 *
 * The client's side of a call to a process on this machine.
 */
#ifndef CL_CLIENT_H
#define CL_CLIENT_H

#include <stdint.h>

#define CL_EXPORT __attribute__((visibility("default")))

/* A peer and how far a call with it is. */
typedef struct cl_peer {
    int32_t socket; /* a stream */
    int32_t process;
    int32_t processor; /* where it runs; below 0: anywhere */
    uint32_t sequence; /* of the last request */
    uint32_t sent;     /* bytes of it */
    uint32_t received; /* bytes of the response */
    uint64_t last_ns;  /* what the last call took */
} cl_peer;

/* What else a call may give, besides values of errno. */
enum { CL_PEER_GOOD = 0, CL_PEER_OTHER = -1 };

/* Number a request, send it, and wait for its response. After EINTR call it
 * again: it goes on. Where calls are short both stay on the caller's processor:
 * waking one that sleeps takes longer than such a call.
 * Returns: CL_PEER_GOOD: it succeeded; CL_PEER_OTHER: the response says
 * something else; ECONNRESET at the end of the stream; or what errno says.
 * In/out: request: CL_REQUEST_BYTES. Out: response: CL_RESPONSE_BYTES. */
CL_EXPORT int32_t cl_peer_call(cl_peer *peer, uint8_t *request,
                               uint8_t *response);

#endif
