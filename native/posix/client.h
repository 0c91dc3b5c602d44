/* SPDX-License-Identifier: Apache-2.0
 *
 * The client's side of a call to a process on this machine.
 */
#ifndef CL_CLIENT_H
#define CL_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "bell.h"

#define CL_EXPORT __attribute__((visibility("default")))

typedef enum cl_place {
    CL_PLACE_ANYWHERE,
    CL_PLACE_BESIDE, /* on the caller's processor */
    CL_PLACE_APART,  /* not there */
} cl_place;

/* A peer and how far a call with it is. */
typedef struct cl_peer {
    cl_bell *bell;
    int32_t socket; /* a stream */
    int32_t process;
    cl_place place;
    int32_t processor; /* the caller's, when it was placed; below 0: any */
    uint32_t sequence; /* of the last request */
    uint32_t sent;     /* bytes of it by the socket */
    uint32_t received; /* bytes of the response by the socket */
    bool looks;        /* for the response, and keeps the peer awake */
    bool by_bell;      /* the response comes by the bell */
    uint64_t start_ns; /* of the call that is under way; 0 for none */
    uint64_t end_ns;   /* of the last call */
    uint64_t last_ns;  /* what it took */
    uint64_t rest_until_ns; /* no looking before */
} cl_peer;

/* What else a call may give, besides values of errno. */
enum { CL_PEER_GOOD = 0, CL_PEER_OTHER = -1 };

/* Number a request, ask, and wait for the response. After EINTR call it again:
 * it goes on. A sleeping peer takes longer to wake than a short call, so both
 * stay on the caller's processor; where calls come often, the peer stays awake
 * on another one, and each side looks for the other's answer in memory.
 * Returns: CL_PEER_GOOD: it succeeded; CL_PEER_OTHER: the response says
 * something else; ECONNRESET at the end of the stream; or what errno says.
 * In/out: request: CL_REQUEST_BYTES. Out: response: CL_RESPONSE_BYTES.
 * In: may_look: nobody else needs the processors during this call. */
CL_EXPORT int32_t cl_peer_call(cl_peer *peer, uint8_t *request,
                               uint8_t *response, bool may_look);

#endif
