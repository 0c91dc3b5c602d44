/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <sched.h>
#include <sys/socket.h>
#include <time.h>

#include "frame.h"

/* Longer calls than this gain nothing by staying on one processor, and could
 * lose by waiting there for somebody else's work. */
#define SHORT_NS 5000000u
#define ANYWHERE (-1)

static uint64_t now_ns(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void set_free(cl_peer *peer)
{
    cpu_set_t own;
    if (sched_getaffinity(0, sizeof own, &own) == 0) {
        (void)sched_setaffinity(peer->process, sizeof own, &own);
    }
    peer->processor = ANYWHERE;
}

static void set_one(pid_t thread, int processor)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)processor, &one);
    (void)sched_setaffinity(thread, sizeof one, &one);
}

/* Where it is not allowed, or there are more processors than a set holds, the
 * system goes on to choose. */
static void place(cl_peer *peer)
{
    int here = peer->last_ns < SHORT_NS ? sched_getcpu() : ANYWHERE;
    if (here == peer->processor) {
        return;
    }
    if (here < 0 || here >= CPU_SETSIZE) {
        set_free(peer);
        return;
    }
    set_one(peer->process, here);
    peer->processor = here;
}

/* The caller stays, too: the system wakes whoever waits for an answer on a
 * processor that is idle, however long that takes.
 * Returns: whether `own`, the caller's processors, are to be given back. */
static bool stay(const cl_peer *peer, cpu_set_t *own)
{
    if (peer->processor < 0 || sched_getaffinity(0, sizeof *own, own) != 0 ||
        CPU_COUNT(own) == 1) {
        return false;
    }
    set_one(0, peer->processor);
    return true;
}

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

int32_t cl_peer_call(cl_peer *peer, uint8_t *request, uint8_t *response)
{
    uint64_t start_ns = now_ns();
    cpu_set_t own;
    if (peer->sent == 0) {
        place(peer);
        peer->sequence++;
        cl_frame_number(request, peer->sequence);
    }
    bool stays = stay(peer, &own);
    int32_t result = send_request(peer, request);
    if (result == 0) {
        result = receive_response(peer, response);
    }
    if (stays) {
        (void)sched_setaffinity(0, sizeof own, &own);
    }
    if (result == EINTR) {
        return result;
    }
    peer->sent = peer->received = 0;
    peer->last_ns = now_ns() - start_ns;
    if (result == 0 && !cl_frame_succeeded(response, request)) {
        result = CL_PEER_OTHER;
    }
    return result;
}
