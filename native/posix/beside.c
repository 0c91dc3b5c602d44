/* SPDX-License-Identifier: Apache-2.0
 *
 * The second thread. Jobs wait in a queue, and both threads take the next one
 * when they have nothing else to do. Where there is one processor only, there
 * is no second thread.
 */
#define _GNU_SOURCE
#include "beside.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pause.h"
#include "platform.h"

/* Looks at an empty queue before the thread sleeps, some 30 microseconds: the
 * next job of a run comes sooner, and waking takes longer. */
#define LOOKS 600u
/* The longest wait for a job that has been begun; it takes far less, unless
 * others take the processor away. Then nothing is given for a while. */
#define WAIT_NS 200000u
#define REST_NS 100000000u

static struct {
    bool there;
    uint64_t rest_until_ns;
    cl_job *queue[CL_MOST_JOBS];
    uint32_t given; /* jobs so far; the last ones are in the queue */
    uint32_t begun;
    uint32_t asleep;
} beside;

static uint32_t get(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static void set(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

/* Run the next job, if there is one and the other thread is not faster. */
static bool run_next(bool second)
{
    uint32_t at = get(&beside.begun);
    if (at == get(&beside.given)) {
        return false;
    }
    /* It may be another's by now: then the exchange fails. */
    cl_job *job = __atomic_load_n(&beside.queue[at % CL_MOST_JOBS],
                                  __ATOMIC_SEQ_CST);
    if (!__atomic_compare_exchange_n(&beside.begun, &at, at + 1, false,
                                     __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        return false;
    }
    job->run(job, second);
    set(&job->done, 1);
    return true;
}

/* ---- The second thread ------------------------------------------------- */

static void sleep_until_given(void)
{
    set(&beside.asleep, 1);
    while (get(&beside.asleep) == 1 && get(&beside.given) == get(&beside.begun)) {
        (void)syscall(SYS_futex, &beside.asleep, FUTEX_WAIT_PRIVATE, 1, NULL,
                      NULL, 0);
    }
    set(&beside.asleep, 0);
}

__attribute__((noreturn)) static void *serve(void *unused)
{
    (void)unused;
    for (;;) {
        for (uint32_t looks = 0; looks < LOOKS; looks++) {
            if (run_next(true)) {
                looks = 0;
            }
            cl_pause();
        }
        sleep_until_given();
    }
}

/* Start it where the client may run: the client may have put this process on
 * one processor by now. */
static bool start(void)
{
    pthread_t thread;
    pthread_attr_t attributes;
    cpu_set_t processors;
    if (sched_getaffinity(getppid(), sizeof processors, &processors) != 0 ||
        CPU_COUNT(&processors) < 2 || pthread_attr_init(&attributes) != 0) {
        return false;
    }
    bool good = pthread_attr_setaffinity_np(&attributes, sizeof processors,
                                            &processors) == 0 &&
                pthread_create(&thread, &attributes, serve, NULL) == 0;
    (void)pthread_attr_destroy(&attributes);
    return good;
}

void cl_beside_open(void)
{
    beside.there = start();
    /* What a thread asks of the system at its start is not allowed later. */
    while (beside.there && get(&beside.asleep) == 0) {
        (void)sched_yield();
    }
}

/* ---- Jobs -------------------------------------------------------------- */

bool cl_platform_beside(void)
{
    return beside.there;
}

bool cl_platform_beside_now(void)
{
    return beside.there && (beside.rest_until_ns == 0 ||
                            cl_platform_now_ns() > beside.rest_until_ns);
}

void cl_platform_give(cl_job *job)
{
    set(&job->done, 0);
    __atomic_store_n(&beside.queue[beside.given % CL_MOST_JOBS], job,
                     __ATOMIC_SEQ_CST);
    set(&beside.given, beside.given + 1);
    if (get(&beside.asleep) == 1) {
        set(&beside.asleep, 0);
        (void)syscall(SYS_futex, &beside.asleep, FUTEX_WAKE_PRIVATE, 1, NULL,
                      NULL, 0);
    }
}

/* Wait for the other thread. */
static void wait_for(const cl_job *job)
{
    uint64_t start_ns = cl_platform_now_ns(), now_ns = start_ns;
    beside.rest_until_ns = 0;
    while (get(&job->done) == 0) {
        cl_pause();
        now_ns = cl_platform_now_ns();
        if (now_ns - start_ns > WAIT_NS) {
            beside.rest_until_ns = now_ns + REST_NS;
            (void)sched_yield(); /* it may wait for this processor */
        }
    }
}

void cl_platform_finish(cl_job *job)
{
    while (get(&job->done) == 0) {
        if (!run_next(false)) {
            wait_for(job);
        }
    }
}
