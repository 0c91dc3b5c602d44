/* SPDX-License-Identifier: Apache-2.0
 *
 * The client's side of a call, against a peer that answers as it is told.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bell.h"
#include "bytes.h"
#include "client.h"
#include "frame.h"
#include "test.h"

enum { GIVEN = 100, COMMAND_AT = 8, SIZE_AT = 16 + 16 };

/* What the peer does with a request, which it finds in the command's place. */
enum { GOOD, ERROR, NUMBER, MAGIC, ZERO, TOO_MUCH, SLOW, LATE, HALF, END };

typedef struct peer_side {
    int fd;
    cl_bell *bell;
    bool awake;
} peer_side;

static void write_all(int fd, const uint8_t *from, size_t n)
{
    CHECK_EQ(write(fd, from, n), (ssize_t)n);
}

/* As the enclave does it: by the bell if the client wants that. */
static void respond(peer_side *side, const cl_frame *frame)
{
    int fd = side->fd;
    uint8_t response[CL_RESPONSE_BYTES];
    uint64_t used[CL_PARAMS] = {GIVEN + (frame->command == TOO_MUCH)};
    cl_frame_answer(response, frame, frame->command == ERROR ? 7 : 0, used);
    response[0] ^= frame->command == MAGIC;
    response[4] ^= frame->command == NUMBER;
    response[12] ^= frame->command == ZERO;
    if (frame->command == LATE) {
        usleep(30000);
    }
    if (frame->command != HALF && cl_bell_give(side->bell, &side->awake,
                                               response)) {
        return;
    }
    if (frame->command == SLOW) {
        for (uint32_t i = 0; i < CL_RESPONSE_BYTES; i += 16) {
            usleep(30000);
            write_all(fd, response + i, 16);
        }
        return;
    }
    write_all(fd, response, frame->command == HALF ? 20 : sizeof response);
    if (frame->command == HALF) {
        _exit(0);
    }
}

static bool next_request(peer_side *side, uint8_t *request)
{
    if (side->awake && cl_bell_hear(side->bell, request)) {
        return true;
    }
    return recv(side->fd, request, CL_REQUEST_BYTES, MSG_WAITALL) ==
           (ssize_t)CL_REQUEST_BYTES;
}

static void serve(int fd, cl_bell *bell)
{
    peer_side side = {.fd = fd, .bell = bell};
    uint8_t request[CL_REQUEST_BYTES];
    cl_frame frame;
    while (next_request(&side, request)) {
        CHECK(cl_frame_read(&frame, request));
        if (frame.command == END) {
            break;
        }
        respond(&side, &frame);
    }
    _exit(0);
}

static cl_peer start(void)
{
    int ends[2];
    void *bell = mmap(NULL, sizeof(cl_bell), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(bell != MAP_FAILED);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    pid_t process = fork();
    CHECK(process >= 0);
    if (process == 0) {
        close(ends[0]);
        serve(ends[1], bell);
    }
    close(ends[1]);
    return (cl_peer){.bell = bell,
                     .socket = ends[0],
                     .process = process,
                     .processor = -1};
}

static void end(const cl_peer *peer)
{
    close(peer->socket);
    CHECK_EQ(munmap(peer->bell, sizeof(cl_bell)), 0);
    CHECK_EQ(waitpid(peer->process, NULL, 0), peer->process);
}

static int32_t call_so(cl_peer *peer, uint32_t what, bool may_look)
{
    uint8_t request[CL_REQUEST_BYTES] = "CLRQ", response[CL_RESPONSE_BYTES];
    cl_store_u32(request + COMMAND_AT, what);
    cl_store_u32(request + SIZE_AT, GIVEN);
    int32_t result = cl_peer_call(peer, request, response, may_look);
    while (result == EINTR) {
        result = cl_peer_call(peer, request, response, may_look);
    }
    return result;
}

/* By the socket, since nothing wakes the bell. */
static int32_t call(cl_peer *peer, uint32_t what)
{
    return call_so(peer, what, false);
}

static void test_answers(void)
{
    cl_peer peer = start();
    static const uint32_t others[] = {ERROR, NUMBER, MAGIC, ZERO, TOO_MUCH};
    CHECK_EQ(call(&peer, GOOD), CL_PEER_GOOD);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        CHECK_EQ(call(&peer, others[i]), CL_PEER_OTHER);
        CHECK_EQ(call(&peer, GOOD), CL_PEER_GOOD);
    }
    CHECK_EQ(peer.sequence, 11);
    end(&peer);
}

static void test_a_peer_that_ends(void)
{
    cl_peer peer = start();
    CHECK_EQ(call(&peer, HALF), ECONNRESET);
    CHECK(call(&peer, GOOD) != CL_PEER_GOOD); /* and no signal */
    end(&peer);
    peer = start();
    CHECK_EQ(call(&peer, END), ECONNRESET);
    end(&peer);
}

static void on_alarm(int number)
{
    (void)number;
}

/* Signals between any two bytes lose nothing. */
static void test_signals(void)
{
    cl_peer peer = start();
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval often = {{0, 7000}, {0, 7000}}, never = {{0, 0}, {0, 0}};
    CHECK_EQ(sigaction(SIGALRM, &action, NULL), 0);
    CHECK_EQ(setitimer(ITIMER_REAL, &often, NULL), 0);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(call(&peer, SLOW), CL_PEER_GOOD);
    }
    CHECK_EQ(setitimer(ITIMER_REAL, &never, NULL), 0);
    CHECK_EQ(peer.sequence, 3);
    CHECK_EQ(call(&peer, GOOD), CL_PEER_GOOD);
    end(&peer);
}

static int processors_of(pid_t process)
{
    cpu_set_t set;
    CHECK_EQ(sched_getaffinity(process, sizeof set, &set), 0);
    return CPU_COUNT(&set);
}

/* A call may be a long one on a busy machine: until one was short. */
static void call_until_beside(cl_peer *peer)
{
    for (uint32_t i = 0; i < 1000; i++) {
        CHECK_EQ(call(peer, GOOD), CL_PEER_GOOD);
        if (processors_of(peer->process) == 1) {
            return;
        }
    }
    CHECK(false);
}

/* Beside the caller where calls are short, anywhere where they are not. */
static void test_placement(void)
{
    cl_peer peer = start();
    int all = processors_of(peer.process);
    call_until_beside(&peer);
    CHECK_EQ(call(&peer, SLOW), CL_PEER_GOOD);
    CHECK_EQ(call(&peer, GOOD), CL_PEER_GOOD);
    CHECK_EQ(processors_of(peer.process), all);
    call_until_beside(&peer);
    CHECK_EQ(processors_of(0), all); /* the caller's are its own again */
    end(&peer);
}

/* ---- The bell ---------------------------------------------------------- */

/* What a call leaves behind if the bell brought the response. */
static bool came_by_bell(const cl_peer *peer)
{
    return peer->looks && cl_bell_state(peer->bell) != CL_BELL_WAITED &&
           peer->rest_until_ns < peer->end_ns;
}

enum { PATIENCE_S = 60 }; /* on a busy machine both sides sleep mostly */

/* Returns: false where there is one processor only. */
static bool call_until_heard(cl_peer *peer)
{
    if (processors_of(0) == 1) {
        return false;
    }
    for (time_t end = time(NULL) + PATIENCE_S; time(NULL) < end;) {
        CHECK_EQ(call_so(peer, GOOD, true), CL_PEER_GOOD);
        if (came_by_bell(peer)) {
            return true;
        }
    }
    CHECK(false);
    return false;
}

static void test_bell(void)
{
    cl_peer peer = start();
    static const uint32_t others[] = {ERROR, NUMBER, MAGIC, ZERO, TOO_MUCH};
    int all = processors_of(0);
    if (call_until_heard(&peer)) {
        CHECK_EQ(processors_of(peer.process), all - 1);
        CHECK_EQ(processors_of(0), all);
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        CHECK_EQ(call_so(&peer, others[i], true), CL_PEER_OTHER);
        CHECK_EQ(call_so(&peer, GOOD, true), CL_PEER_GOOD);
    }
    end(&peer);
}

/* Calls of both kinds, soon after one another and not: each finds its own
 * response, whether the peer is awake, falls asleep just now, or sleeps. */
static void test_bell_and_socket(void)
{
    cl_peer peer = start();
    uint32_t random = 1;
    for (uint32_t i = 0; i < 4000; i++) {
        random = random * 1664525u + 1013904223u;
        uint32_t what = random >> 16 & 1 ? GOOD : ERROR;
        if (i % 16 == 0) {
            usleep(CL_BELL_LISTEN_NS / 1000 - 200 + (random >> 20) % 400);
        }
        CHECK_EQ(call_so(&peer, what, random >> 17 & 3),
                 what == GOOD ? CL_PEER_GOOD : CL_PEER_OTHER);
    }
    CHECK_EQ(peer.sequence, 4000);
    end(&peer);
}

/* Who looks in vain waits for the socket, also through signals, and does not
 * look for a while. */
static void test_a_late_response(void)
{
    cl_peer peer = start();
    struct itimerval often = {{0, 7000}, {0, 7000}}, never = {{0, 0}, {0, 0}};
    uint64_t before, rest;
    do {
        if (!call_until_heard(&peer)) {
            end(&peer);
            return;
        }
        before = peer.rest_until_ns;
        CHECK_EQ(setitimer(ITIMER_REAL, &often, NULL), 0);
        CHECK_EQ(call_so(&peer, LATE, true), CL_PEER_GOOD);
        CHECK_EQ(setitimer(ITIMER_REAL, &never, NULL), 0);
    } while (!peer.looks); /* it came too long after the one before */
    rest = peer.rest_until_ns;
    CHECK(rest > before);
    CHECK_EQ(call_so(&peer, GOOD, true), CL_PEER_GOOD);
    CHECK(!peer.looks || peer.end_ns > rest);
    call_until_heard(&peer);
    end(&peer);
}

static void test_a_peer_that_ends_while_looked_at(void)
{
    cl_peer peer = start();
    call_until_heard(&peer);
    CHECK_EQ(call_so(&peer, END, true), ECONNRESET);
    CHECK(call_so(&peer, GOOD, true) != CL_PEER_GOOD);
    end(&peer);
}

int main(void)
{
    test_answers();
    test_a_peer_that_ends();
    test_signals();
    test_placement();
    test_bell();
    test_bell_and_socket();
    test_a_late_response();
    test_a_peer_that_ends_while_looked_at();
    return 0;
}
