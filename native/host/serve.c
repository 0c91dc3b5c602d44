/* SPDX-License-Identifier: Apache-2.0
 *
 * Parameters in the payload are received where they stay for the call: side by
 * side in the shared memory, each from a page of its own. What a request says
 * of sizes is believed only as far as room is there for it; what follows a
 * request that is refused is read and dropped.
 */
#define _GNU_SOURCE
#include "serve.h"

#include <stdlib.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"

#define PAGE 4096u
#define MOST_STORE_BYTES ((uint64_t)1 << 32)

#define COMMAND_STORE 0x80000001u
#define COMMAND_OUTSIDE_LOAD 0x80000002u
#define COMMAND_OUTSIDE_RUN 0x80000003u
#define COMMAND_CLOCK 0x80000004u
#define COMMAND_SETTLE 0x80000005u
#define CLOCK_BYTES 16u

#define HELLO_ANSWER_BYTES 48u
#define ANSWER_NONCE 8u
#define ANSWER_RESULT 24u
#define ANSWER_ORIGIN 28u
#define ANSWER_SHARED 32u

/* A request on its way. */
typedef struct call {
    cl_frame frame;
    cl_argument arguments[CL_PARAMS];
    TEEC_Result result;
} call;

/* ---- Start and end ----------------------------------------------------- */

/* Half of the machine's memory. */
static uint64_t most_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    uint64_t half = (uint64_t)(pages / 2) * (uint64_t)page_bytes;
    return half < MOST_STORE_BYTES ? half : MOST_STORE_BYTES;
}

cl_host *cl_host_new(size_t shared_bytes)
{
    cl_host *host = calloc(1, sizeof *host);
    if (host != NULL) {
        host->most_bytes = most_bytes();
        cl_tee_init(&host->tee, shared_bytes);
    }
    return host;
}

static void forget(cl_host *host)
{
    cl_outside_forget(&host->outside);
    free(host->store.bytes);
    host->store = (cl_store){0};
    host->ticks = 0;
    host->settled = false;
}

void cl_host_end(cl_host *host)
{
    forget(host);
    cl_tee_end(&host->tee);
    free(host);
}

/* ---- Hello ------------------------------------------------------------- */

static bool answer_hello(cl_host *host)
{
    uint8_t answer[HELLO_ANSWER_BYTES] = {'C', 'L', 'H', 'O'};
    const uint8_t *hello = host->stream.hello;
    forget(host);
    if (cl_load_u32(hello + CL_HELLO_VERSION) == CL_STREAM_VERSION) {
        cl_tee_open(&host->tee);
    } else {
        cl_tee_close(&host->tee);
        host->tee.result = TEEC_ERROR_NOT_SUPPORTED;
        host->tee.origin = TEEC_ORIGIN_API;
    }
    cl_store_u32(answer + CL_HELLO_VERSION, CL_STREAM_VERSION);
    memcpy(answer + ANSWER_NONCE, hello + CL_HELLO_NONCE, CL_NONCE_BYTES);
    cl_store_u32(answer + ANSWER_RESULT, host->tee.result);
    cl_store_u32(answer + ANSWER_ORIGIN, host->tee.origin);
    cl_store_u64(answer + ANSWER_SHARED, host->tee.shared_bytes);
    return cl_link_write(&host->stream.link, answer, sizeof answer);
}

/* ---- Parameters -------------------------------------------------------- */

static bool travels(const cl_frame *frame, uint32_t i)
{
    const cl_frame_param *param = &frame->params[i];
    uint32_t region = frame->command == COMMAND_STORE
                          ? CL_REGION_STORE
                          : CL_REGION_PAYLOAD;
    return param->region == region &&
           (param->kind == CL_KIND_INPUT || param->kind == CL_KIND_BOTH);
}

static bool has_kinds(const call *c, uint32_t k0, uint32_t k1, uint32_t k2)
{
    const cl_argument *a = c->arguments;
    return a[0].kind == k0 && a[1].kind == k1 && a[2].kind == k2 &&
           a[3].kind == CL_KIND_NONE;
}

/* Make room for what is to be stored. */
static TEEC_Result place_store(cl_host *host, call *c)
{
    cl_store *store = &host->store;
    const cl_frame_param *param = c->frame.params;
    if (!has_kinds(c, CL_KIND_INPUT, CL_KIND_NONE, CL_KIND_NONE) ||
        param->region != CL_REGION_STORE || param->offset > store->n_bytes) {
        return TEEC_ERROR_BAD_PARAMETERS;
    }
    uint64_t end = cl_add(param->offset, param->n_bytes);
    if (end > host->most_bytes) {
        return TEEC_ERROR_OUT_OF_MEMORY;
    }
    if (end > store->n_bytes) {
        uint8_t *bytes = realloc(store->bytes, (size_t)end);
        if (bytes == NULL) {
            return TEEC_ERROR_OUT_OF_MEMORY;
        }
        memset(bytes + store->n_bytes, 0, (size_t)(end - store->n_bytes));
        *store = (cl_store){bytes, end};
    }
    c->arguments[0].at = store->bytes + param->offset;
    return TEEC_SUCCESS;
}

static bool is_outside(const call *c)
{
    return c->frame.command == COMMAND_OUTSIDE_LOAD ||
           c->frame.command == COMMAND_OUTSIDE_RUN;
}

/* Find a place in the shared memory for each parameter; what an outside
 * program takes from the store stays there. */
static TEEC_Result place_arguments(cl_host *host, call *c)
{
    uint8_t *shared = host->tee.shared.buffer;
    uint64_t end = 0;
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        const cl_frame_param *param = &c->frame.params[i];
        bool stored = param->region == CL_REGION_STORE;
        if (!cl_frame_param_holds(param) ||
            (stored && !cl_inside(param->offset, param->n_bytes,
                                  host->store.n_bytes))) {
            return TEEC_ERROR_BAD_PARAMETERS;
        }
        if (param->n_bytes == 0) {
            c->arguments[i].at = shared;
        } else if (stored && is_outside(c)) {
            c->arguments[i].at = host->store.bytes + param->offset;
        } else {
            uint64_t at = end;
            end = cl_add(end, cl_up(param->n_bytes, PAGE));
            if (end > host->tee.shared_bytes) {
                return TEEC_ERROR_EXCESS_DATA;
            }
            c->arguments[i].at = shared + at;
        }
    }
    return TEEC_SUCCESS;
}

static TEEC_Result place(cl_host *host, call *c)
{
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        const cl_frame_param *param = &c->frame.params[i];
        c->arguments[i] = (cl_argument){param->kind, NULL, param->n_bytes};
    }
    if (host->tee.result != TEEC_SUCCESS) {
        return host->tee.result;
    }
    return c->frame.command == COMMAND_STORE
               ? place_store(host, c)
               : place_arguments(host, c);
}

/* Receive the bytes that follow the frame, or drop them. */
static cl_stream_event receive(cl_host *host, call *c)
{
    cl_stream_event event = CL_STREAM_DATA;
    for (uint32_t i = 0; i < CL_PARAMS && event == CL_STREAM_DATA; i++) {
        if (travels(&c->frame, i)) {
            uint8_t *to =
                c->result == TEEC_SUCCESS ? c->arguments[i].at : NULL;
            event = cl_stream_read(&host->stream, to,
                                   c->frame.params[i].n_bytes);
        }
    }
    return event;
}

/* ---- Commands ---------------------------------------------------------- */

static TEEC_Result outside_load(cl_host *host, const call *c)
{
    if (!has_kinds(c, CL_KIND_INPUT, CL_KIND_INPUT, CL_KIND_NONE)) {
        return TEEC_ERROR_BAD_PARAMETERS;
    }
    return cl_outside_load(&host->outside, &c->arguments[0], &c->arguments[1],
                           host->most_bytes);
}

static TEEC_Result outside_run(cl_host *host, const call *c)
{
    if (!has_kinds(c, CL_KIND_INPUT, CL_KIND_INPUT, CL_KIND_OUTPUT)) {
        return TEEC_ERROR_BAD_PARAMETERS;
    }
    return cl_outside_run(&host->outside, &c->arguments[2], &c->arguments[0],
                          &c->arguments[1]);
}

static TEEC_Result tell_clock(const cl_host *host, call *c)
{
    cl_argument *out = &c->arguments[0];
    if (!has_kinds(c, CL_KIND_OUTPUT, CL_KIND_NONE, CL_KIND_NONE)) {
        return TEEC_ERROR_BAD_PARAMETERS;
    }
    bool fits = out->n_bytes >= CLOCK_BYTES;
    out->n_bytes = CLOCK_BYTES;
    if (!fits) {
        return TEEC_ERROR_SHORT_BUFFER;
    }
    cl_store_u64(out->at, host->ticks);
    cl_store_u64(out->at + 8, cl_clock_ticks_in_second());
    return TEEC_SUCCESS;
}

static TEEC_Result invoke(cl_host *host, call *c)
{
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        const cl_frame_param *param = &c->frame.params[i];
        if (param->region == CL_REGION_STORE && param->n_bytes != 0) {
            memcpy(c->arguments[i].at, host->store.bytes + param->offset,
                   (size_t)param->n_bytes);
        }
    }
    return cl_tee_invoke(&host->tee, c->frame.command, c->arguments);
}

static TEEC_Result execute(cl_host *host, call *c)
{
    switch (c->frame.command) {
    case COMMAND_STORE:
        return TEEC_SUCCESS;
    case COMMAND_OUTSIDE_LOAD:
        return outside_load(host, c);
    case COMMAND_OUTSIDE_RUN:
        return outside_run(host, c);
    default:
        return invoke(host, c);
    }
}

static TEEC_Result settle(cl_host *host, const call *c)
{
    if (!has_kinds(c, CL_KIND_NONE, CL_KIND_NONE, CL_KIND_NONE)) {
        return TEEC_ERROR_BAD_PARAMETERS;
    }
    host->settled = true;
    return TEEC_SUCCESS;
}

static TEEC_Result execute_timed(cl_host *host, call *c)
{
    if (c->frame.command == COMMAND_CLOCK) {
        return tell_clock(host, c);
    }
    if (c->frame.command == COMMAND_SETTLE) {
        return settle(host, c);
    }
    if (host->settled) {
        cl_clock_wait();
    }
    uint64_t start = cl_clock_now();
    TEEC_Result result = execute(host, c);
    host->ticks = cl_clock_now() - start;
    return result;
}

/* ---- Answers ----------------------------------------------------------- */

static bool answer(cl_host *host, const call *c)
{
    const cl_link *link = &host->stream.link;
    uint8_t response[CL_RESPONSE_BYTES];
    uint64_t used[CL_PARAMS];
    for (uint32_t i = 0; i < CL_PARAMS; i++) {
        used[i] = c->arguments[i].n_bytes;
    }
    cl_frame_answer(response, &c->frame, c->result, used);
    bool sent = cl_link_write(link, response, sizeof response);
    for (uint32_t i = 0; i < CL_PARAMS && c->result == TEEC_SUCCESS; i++) {
        const cl_argument *a = &c->arguments[i];
        if (a->kind == CL_KIND_OUTPUT || a->kind == CL_KIND_BOTH) {
            sent = sent && cl_link_write(link, a->at, (size_t)a->n_bytes);
        }
    }
    return sent;
}

/* A TEE that says it used more than it was given is not believed. */
static void check_used(call *c)
{
    for (uint32_t i = 0; i < CL_PARAMS && c->result == TEEC_SUCCESS; i++) {
        if (c->arguments[i].n_bytes > c->frame.params[i].n_bytes) {
            c->result = TEEC_ERROR_GENERIC;
        }
    }
}

static cl_stream_event serve_request(cl_host *host)
{
    uint8_t bytes[CL_REQUEST_BYTES];
    call c;
    cl_stream_event event = cl_stream_read(&host->stream, bytes, sizeof bytes);
    if (event != CL_STREAM_DATA) {
        return event;
    }
    if (!cl_frame_read(&c.frame, bytes)) {
        cl_stream_lose(&host->stream);
        return CL_STREAM_DATA;
    }
    c.result = place(host, &c);
    event = receive(host, &c);
    if (event != CL_STREAM_DATA) {
        return event;
    }
    if (c.result == TEEC_SUCCESS) {
        c.result = execute_timed(host, &c);
        check_used(&c);
    }
    return answer(host, &c) ? CL_STREAM_DATA : CL_STREAM_END;
}

void cl_host_serve(cl_host *host, cl_link link)
{
    bool there = true;
    cl_stream_init(&host->stream, link);
    while (there) {
        cl_stream_event event = serve_request(host);
        there = event != CL_STREAM_END;
        if (event == CL_STREAM_HELLO) {
            there = answer_hello(host);
        }
    }
    forget(host);
    cl_tee_close(&host->tee);
}
