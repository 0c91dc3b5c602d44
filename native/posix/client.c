/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "pause.h"

/* Longer calls than this gain nothing by where they run or how they come
 * back, and could lose by waiting for somebody else's work. */
#define SHORT_NS 5000000u
/* A call that is so much later than the one before waits for a processor that
 * others want. Then this side does not look for a while. */
#define LATE_NS 1000000u
#define REST_NS 100000000u
#define ANYWHERE (-1)

static uint64_t now_ns(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- Where the peer runs ----------------------------------------------- */

static void set_one(pid_t thread, int processor)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)processor, &one);
    (void)sched_setaffinity(thread, sizeof one, &one);
}

/* On the caller's processors, but for this one. */
static void set_apart(pid_t process, int processor)
{
    cpu_set_t own;
    if (sched_getaffinity(0, sizeof own, &own) == 0) {
        if (processor != ANYWHERE) {
            CPU_CLR((size_t)processor, &own);
        }
        (void)sched_setaffinity(process, sizeof own, &own);
    }
}

static cl_place place_for(const cl_peer *peer, int here)
{
    if (peer->last_ns >= SHORT_NS || here < 0 || here >= CPU_SETSIZE) {
        return CL_PLACE_ANYWHERE;
    }
    return peer->looks ? CL_PLACE_APART : CL_PLACE_BESIDE;
}

/* Where it is not allowed, or there are more processors than a set holds, the
 * system goes on to choose. */
static void place(cl_peer *peer)
{
    int here = sched_getcpu();
    cl_place now = place_for(peer, here);
    if (now == CL_PLACE_ANYWHERE) {
        here = ANYWHERE;
    }
    if (now == peer->place && here == peer->processor) {
        return;
    }
    if (now == CL_PLACE_BESIDE) {
        set_one(peer->process, here);
    } else {
        set_apart(peer->process, here);
    }
    peer->place = now;
    peer->processor = here;
}

/* The caller stays, too: the system wakes whoever waits for an answer on a
 * processor that is idle, however long that takes.
 * Returns: whether `own`, the caller's processors, are to be given back. */
static bool stay(const cl_peer *peer, cpu_set_t *own)
{
    if (peer->place != CL_PLACE_BESIDE ||
        sched_getaffinity(0, sizeof *own, own) != 0 || CPU_COUNT(own) == 1) {
        return false;
    }
    set_one(0, peer->processor);
    return true;
}

/* ---- By the socket ----------------------------------------------------- */

static int32_t send_request(cl_peer *peer, const uint8_t *request)
{
    while (peer->sent < CL_REQUEST_BYTES) {
        /* No signal: an end of the peer must come back as an error. */
        ssize_t n = send(peer->socket, request + peer->sent,
                         CL_REQUEST_BYTES - peer->sent, MSG_NOSIGNAL);
        if (n < 0) {
            return errno;
        }
        peer->sent += (uint32_t)n;
    }
    return 0;
}

static int32_t receive_response(cl_peer *peer, uint8_t *response)
{
    while (peer->received < CL_RESPONSE_BYTES) {
        ssize_t n = recv(peer->socket, response + peer->received,
                         CL_RESPONSE_BYTES - peer->received, 0);
        if (n <= 0) {
            return n < 0 ? errno : ECONNRESET;
        }
        peer->received += (uint32_t)n;
    }
    return 0;
}

/* ---- By the bell ------------------------------------------------------- */

enum { LOOKS = 64 }; /* between two looks at the clock */

/* It pays where calls are short and follow one another soon, and each side has
 * a processor of its own. */
static bool pays_to_look(const cl_peer *peer)
{
    cpu_set_t own;
    return peer->last_ns < SHORT_NS &&
           peer->start_ns - peer->end_ns < CL_BELL_LISTEN_NS &&
           peer->start_ns >= peer->rest_until_ns &&
           (peer->place == CL_PLACE_APART ||
            (sched_getaffinity(0, sizeof own, &own) == 0 &&
             CPU_COUNT(&own) > 1));
}

/* Ask by the bell if the peer is awake. If not, the socket wakes it, and it
 * stays awake if it is to answer by the bell. */
static void ring(cl_peer *peer, const uint8_t *request)
{
    cl_bell *bell = peer->bell;
    memcpy(bell->request, request, CL_REQUEST_BYTES);
    peer->by_bell = cl_bell_change(bell, CL_BELL_AWAKE, CL_BELL_ASKED);
    if (peer->by_bell) {
        peer->sent = CL_REQUEST_BYTES;
    } else if (peer->looks) {
        (void)cl_bell_set(bell, CL_BELL_ASKED);
        peer->by_bell = true;
    }
}

static void look(cl_peer *peer)
{
    while (cl_bell_state(peer->bell) == CL_BELL_ASKED) {
        for (uint32_t i = 0; i < LOOKS; i++) {
            if (cl_bell_state(peer->bell) != CL_BELL_ASKED) {
                return;
            }
            cl_pause();
        }
        uint64_t at_ns = now_ns();
        if (at_ns - peer->start_ns > LATE_NS + 2 * peer->last_ns) {
            peer->rest_until_ns = at_ns + REST_NS;
            return;
        }
    }
}

/* Returns: whether the response is there; else it comes by the socket. */
static bool heard(cl_peer *peer, uint8_t *response)
{
    if (!peer->by_bell) {
        return false;
    }
    if (peer->looks) {
        look(peer);
    }
    peer->by_bell = false; /* from here on, also after EINTR */
    if (cl_bell_change(peer->bell, CL_BELL_ASKED, CL_BELL_WAITED)) {
        return false;
    }
    memcpy(response, peer->bell->response, CL_RESPONSE_BYTES);
    return true;
}

/* ---- Calls ------------------------------------------------------------- */

static void begin(cl_peer *peer, uint8_t *request, bool may_look)
{
    peer->start_ns = now_ns();
    peer->looks = may_look && pays_to_look(peer);
    place(peer);
    peer->sequence++;
    cl_frame_number(request, peer->sequence);
    ring(peer, request);
}

static int32_t exchange(cl_peer *peer, const uint8_t *request,
                        uint8_t *response)
{
    int32_t result = send_request(peer, request);
    if (result == 0 && !heard(peer, response)) {
        result = receive_response(peer, response);
    }
    return result;
}

int32_t cl_peer_call(cl_peer *peer, uint8_t *request, uint8_t *response,
                     bool may_look)
{
    cpu_set_t own;
    if (peer->start_ns == 0) {
        begin(peer, request, may_look);
    }
    bool stays = stay(peer, &own);
    int32_t result = exchange(peer, request, response);
    if (stays) {
        (void)sched_setaffinity(0, sizeof own, &own);
    }
    if (result == EINTR) {
        return result;
    }
    peer->end_ns = now_ns();
    peer->last_ns = peer->end_ns - peer->start_ns;
    peer->start_ns = 0;
    peer->sent = peer->received = 0;
    if (result == 0 && !cl_frame_succeeded(response, request)) {
        result = CL_PEER_OTHER;
    }
    return result;
}
