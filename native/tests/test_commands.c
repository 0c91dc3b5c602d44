/* SPDX-License-Identifier: Apache-2.0
 *
 * The commands, called directly with parameters that a hostile client could
 * send. Buffers have exactly their size, so that sanitizers see every byte too
 * many. The program: four int8 inputs, y = 2x in slice 0, y = -x in slice 1.
 * All of it under every suite.
 */
#define _GNU_SOURCE
#include "../../vectors/sealed.h"
#include "beside.h"
#include "bytes.h"
#include "commands.h"
#include "device.h"
#include "platform.h"
#include "session.h"

#define N TEE_PARAM_TYPE_NONE
#define I TEE_PARAM_TYPE_MEMREF_INPUT
#define O TEE_PARAM_TYPE_MEMREF_OUTPUT
#define B TEE_PARAM_TYPE_MEMREF_INOUT
#define LOAD_TYPES TEE_PARAM_TYPES(I, I, O, N)
#define RUN_TYPES TEE_PARAM_TYPES(B, I, O, I)

/* One program as its client has it. */
typedef struct vector {
    const uint8_t *request, *program, *slice_0, *slice_1;
} vector;

#define VECTOR(kind)                                              \
    {sealed_##kind##request, sealed_##kind##program,              \
     sealed_##kind##slice_0, sealed_##kind##slice_1}

/* The same programs under every suite. */
static const struct vectors {
    vector streamed, resident, tight;
} suites[] = {
    {VECTOR(), VECTOR(resident_), VECTOR(tight_)},
    {VECTOR(chacha_), VECTOR(chacha_resident_), VECTOR(chacha_tight_)},
};
_Static_assert(sealed_program_bytes == sealed_chacha_resident_program_bytes,
               "one length for all programs");
#define N_SUITES (sizeof suites / sizeof suites[0])

static const struct vectors *v; /* of the suite under test */
static void *session;

/* ---- Calls ------------------------------------------------------------- */

/* A parameter over a copy of exactly n bytes. */
static TEE_Param param_of(const void *bytes, size_t n)
{
    TEE_Param param;
    memset(&param, 0, sizeof param);
    param.memref.buffer = malloc(n);
    param.memref.size = n;
    if (bytes != NULL && n != 0) {
        memcpy(param.memref.buffer, bytes, n);
    } else if (n != 0) {
        memset(param.memref.buffer, 0xAA, n);
    }
    return param;
}

static void free_params(void *const *buffers)
{
    for (int i = 0; i < 4; i++) {
        free(buffers[i]);
    }
}

static TEE_Result load_bytes(const uint8_t *request, size_t request_bytes,
                             const uint8_t *program, size_t program_bytes,
                             size_t out_bytes, uint32_t types)
{
    TEE_Param params[4] = {param_of(request, request_bytes),
                           param_of(program, program_bytes),
                           param_of(NULL, out_bytes), param_of(NULL, 0)};
    void *buffers[4];
    for (int i = 0; i < 4; i++) {
        buffers[i] = params[i].memref.buffer;
    }
    TEE_Result result = TA_InvokeCommandEntryPoint(session, CL_COMMAND_LOAD,
                                                   types, params);
    free_params(buffers);
    return result;
}

static TEE_Result load(const uint8_t *request, const uint8_t *program,
                       size_t program_bytes)
{
    return load_bytes(request, CL_LOAD_BYTES, program, program_bytes,
                      CL_LOADED_BYTES, LOAD_TYPES);
}

static TEE_Result load_vector(const vector *from)
{
    return load(from->request, from->program, sealed_program_bytes);
}

static void load_streamed(void)
{
    CHECK_EQ(load_vector(&v->streamed), TEE_SUCCESS);
}

/* A run request; changed by tests in one place each. */
typedef struct call {
    uint32_t block[16];
    const uint8_t *window;
    size_t window_bytes, block_bytes, in_bytes, out_bytes;
    uint32_t types;
    uint8_t out[64];
    size_t out_used;
} call;

static uint8_t both_slices[160], resident_slices[160];

static call good_call(uint32_t n_images)
{
    call c = {.block = {0, n_images, 0, 2},
              .window = both_slices,
              .window_bytes = sizeof both_slices,
              .block_bytes = CL_RUN_BYTES,
              .in_bytes = 4 * n_images,
              .out_bytes = 4 * n_images,
              .types = RUN_TYPES};
    return c;
}

static TEE_Result run(call *c)
{
    static const uint8_t images[64] = {1, 2, 3, 4, 5, 6, 7, 8};
    TEE_Param params[4] = {param_of(c->block, c->block_bytes),
                           param_of(images, c->in_bytes),
                           param_of(NULL, c->out_bytes),
                           param_of(c->window, c->window_bytes)};
    void *buffers[4];
    for (int i = 0; i < 4; i++) {
        buffers[i] = params[i].memref.buffer;
    }
    TEE_Result result =
        TA_InvokeCommandEntryPoint(session, CL_COMMAND_RUN, c->types, params);
    memcpy(c->block, buffers[0], c->block_bytes);
    memcpy(c->out, buffers[2], c->out_bytes);
    c->out_used = params[2].memref.size;
    free_params(buffers);
    return result;
}

/* Run a call that must fail: nothing comes out, and nothing is to resume. */
static void check_refused(call c, TEE_Result expected)
{
    CHECK_EQ(run(&c), expected);
    for (size_t i = 0; i < c.out_bytes; i++) {
        CHECK_EQ(c.out[i], 0);
    }
    call again = good_call(2);
    again.block[4] = 1;
    CHECK_EQ(run(&again), TEE_ERROR_BAD_STATE);
}

static void check_results(const uint8_t *out)
{
    static const int8_t expected[8] = {2, 4, -3, -4, 10, 12, -7, -8};
    CHECK(memcmp(out, expected, 8) == 0);
}

/* ---- info, stats ------------------------------------------------------- */

static TEE_Result ask(uint32_t command, uint32_t types, size_t n,
                      uint8_t *answer)
{
    TEE_Param params[4] = {param_of(NULL, n)};
    void *buffer = params[0].memref.buffer;
    TEE_Result result =
        TA_InvokeCommandEntryPoint(session, command, types, params);
    if (answer != NULL) {
        memcpy(answer, buffer, n);
    }
    free(buffer);
    return result;
}

static void test_info_and_stats(void)
{
    const uint32_t one = TEE_PARAM_TYPES(O, N, N, N);
    uint8_t info[CL_INFO_BYTES];
    CHECK_EQ(ask(CL_COMMAND_INFO, one, CL_INFO_BYTES, info), TEE_SUCCESS);
    CHECK_EQ(cl_load_u32(info), 1);
    CHECK_EQ(cl_load_u32(info + 4), 1);
    CHECK(memcmp(info + CL_INFO_PUBLIC_KEY, sealed_public_key, 32) == 0);
    CHECK(memcmp(info + CL_INFO_TEXT, "cloister ", 9) == 0);
    for (uint32_t at = CL_INFO_BOARD; at < CL_INFO_BYTES; at++) {
        CHECK_EQ(info[at], 0); /* a process is no board */
    }
    CHECK_EQ(ask(CL_COMMAND_INFO, one, 159, NULL), TEE_ERROR_SHORT_BUFFER);
    CHECK_EQ(ask(CL_COMMAND_STATS, one, 63, NULL), TEE_ERROR_SHORT_BUFFER);
    CHECK_EQ(ask(CL_COMMAND_STATS, one, 64, info), TEE_SUCCESS);
    for (uint32_t types = 0; types < 0x10000; types += 37) {
        CHECK_EQ(ask(CL_COMMAND_INFO, types, CL_INFO_BYTES, NULL),
                 TEE_ERROR_BAD_PARAMETERS);
        CHECK_EQ(ask(CL_COMMAND_STATS, types, 64, NULL),
                 TEE_ERROR_BAD_PARAMETERS);
        CHECK_EQ(load_bytes(v->streamed.request, CL_LOAD_BYTES,
                            v->streamed.program, sealed_program_bytes, 32,
                            types),
                 TEE_ERROR_BAD_PARAMETERS);
    }
    CHECK_EQ(ask(0, one, 160, NULL), TEE_ERROR_NOT_IMPLEMENTED);
    CHECK_EQ(ask(6, one, 160, NULL), TEE_ERROR_NOT_IMPLEMENTED);
}

/* ---- load -------------------------------------------------------------- */

static void test_load_sizes(void)
{
    const uint8_t *r = v->streamed.request, *p = v->streamed.program;
    const size_t n = sealed_program_bytes;
    CHECK_EQ(load_bytes(r, 135, p, n, 32, LOAD_TYPES),
             TEE_ERROR_BAD_PARAMETERS);
    CHECK_EQ(load_bytes(r, 0, p, n, 32, LOAD_TYPES), TEE_ERROR_BAD_PARAMETERS);
    CHECK_EQ(load_bytes(r, 136, p, 0, 32, LOAD_TYPES),
             TEE_ERROR_BAD_PARAMETERS);
    CHECK_EQ(load_bytes(r, 136, p, 79, 32, LOAD_TYPES),
             TEE_ERROR_BAD_PARAMETERS);
    CHECK_EQ(load_bytes(r, 136, p, n, 31, LOAD_TYPES), TEE_ERROR_SHORT_BUFFER);
    CHECK_EQ(load_bytes(r, 136, p, n - 1, 32, LOAD_TYPES),
             TEE_ERROR_MAC_INVALID);
    CHECK_EQ(load_bytes(r, 136, NULL, n, 32, LOAD_TYPES),
             TEE_ERROR_MAC_INVALID);
    CHECK_EQ(load_bytes(NULL, 136, p, n, 32, LOAD_TYPES),
             TEE_ERROR_BAD_PARAMETERS); /* the reserved word */
}

static TEE_Result load_with_word(uint32_t at, uint32_t word)
{
    uint8_t request[CL_LOAD_BYTES];
    memcpy(request, v->streamed.request, sizeof request);
    cl_store_u32(request + at, word);
    return load(request, v->streamed.program, sealed_program_bytes);
}

/* The content key is for one suite only. */
static void test_load_suites(void)
{
    const uint32_t own = cl_load_u32(v->streamed.request + CL_LOAD_SUITE);
    const uint32_t unknown[] = {0, 3, 0x100 + own, 0xFFFFFFFF};
    CHECK_EQ(load_with_word(CL_LOAD_SUITE, own), TEE_SUCCESS);
    CHECK_EQ(load_with_word(CL_LOAD_SUITE, 3 - own), TEE_ERROR_ACCESS_DENIED);
    for (uint32_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        CHECK_EQ(load_with_word(CL_LOAD_SUITE, unknown[i]),
                 TEE_ERROR_NOT_SUPPORTED);
        check_refused(good_call(2), TEE_ERROR_BAD_STATE);
    }
    load_streamed();
    CHECK_EQ(load_with_word(CL_LOAD_RESERVED, 1), TEE_ERROR_BAD_PARAMETERS);
    check_refused(good_call(2), TEE_ERROR_BAD_STATE);
}

/* Flipped bits: bundle id, enc and key are the key's; the manifest hash and
 * the program are the program's. */
static void test_load_changed(void)
{
    uint8_t request[CL_LOAD_BYTES], program[512];
    for (uint32_t at = 0; at < CL_LOAD_SUITE; at += 3) {
        bool hash = at >= CL_LOAD_MANIFEST_HASH && at < CL_LOAD_ENC;
        memcpy(request, v->streamed.request, sizeof request);
        request[at] ^= 4;
        CHECK_EQ(load(request, v->streamed.program, sealed_program_bytes),
                 hash ? TEE_ERROR_MAC_INVALID : TEE_ERROR_ACCESS_DENIED);
    }
    for (uint32_t at = 0; at < sealed_program_bytes; at += 7) {
        memcpy(program, v->streamed.program, sealed_program_bytes);
        program[at] ^= 128;
        CHECK_EQ(load(v->streamed.request, program, sealed_program_bytes),
                 TEE_ERROR_MAC_INVALID);
    }
    CHECK_EQ(load(v->resident.request, v->streamed.program,
                  sealed_program_bytes),
             TEE_ERROR_MAC_INVALID);
    check_refused(good_call(2), TEE_ERROR_BAD_STATE); /* nothing is loaded */
}

/* A load that fails half way leaves nothing of what was loaded before it; one
 * whose parameters are wrong changes nothing. */
static void test_failed_load_leaves_nothing(void)
{
    uint8_t program[512];
    memcpy(program, v->streamed.program, sealed_program_bytes);
    program[sealed_program_bytes - 1] ^= 1;
    load_streamed();
    CHECK_EQ(load_bytes(v->streamed.request, CL_LOAD_BYTES, v->streamed.program,
                        sealed_program_bytes, 31, LOAD_TYPES),
             TEE_ERROR_SHORT_BUFFER);
    call c = good_call(2);
    CHECK_EQ(run(&c), TEE_SUCCESS);
    CHECK_EQ(load(v->streamed.request, program, sealed_program_bytes),
             TEE_ERROR_MAC_INVALID);
    check_refused(good_call(2), TEE_ERROR_BAD_STATE);
}

static void test_load_memory(void)
{
    CHECK_EQ(load_vector(&v->tight), TEE_ERROR_OUT_OF_MEMORY);
    /* fill the heap until the program does not fit any more */
    void *rest = TEE_Malloc(cl_ta_heap.n_bytes - cl_ta_heap.live_bytes - 512,
                            TEE_MALLOC_FILL_ZERO);
    CHECK(rest != NULL);
    CHECK_EQ(load_vector(&v->streamed), TEE_ERROR_OUT_OF_MEMORY);
    TEE_Free(rest);
    load_streamed();
    size_t loaded = cl_ta_heap.live_bytes;
    load_streamed(); /* replaces; nothing is lost */
    CHECK_EQ(cl_ta_heap.live_bytes, loaded);
}

/* ---- run --------------------------------------------------------------- */

static void test_run(void)
{
    load_streamed();
    call c = good_call(2);
    CHECK_EQ(run(&c), TEE_SUCCESS);
    CHECK_EQ(c.block[5], 0);
    CHECK_EQ(c.block[7], 2);
    check_results(c.out);
    c = good_call(2); /* more room than needed */
    c.out_bytes = 20;
    CHECK_EQ(run(&c), TEE_SUCCESS);
    CHECK_EQ(c.out_used, 8);
    check_results(c.out);
}

static void test_run_in_windows(void)
{
    load_streamed();
    call c = good_call(2);
    c.window_bytes = 0;
    c.block[3] = 0;
    for (uint32_t asked = 0; asked < 4; asked++) {
        CHECK_EQ(run(&c), TEE_SUCCESS);
        CHECK_EQ(c.block[5], 1);
        CHECK_EQ(c.block[6], asked % 2);
        CHECK_EQ(c.block[7], asked / 2);
        c.window = both_slices + 80 * c.block[6];
        c.window_bytes = 80;
        c.block[2] = c.block[6];
        c.block[3] = 1;
        c.block[4] = 1;
    }
    uint8_t second[4];
    CHECK_EQ(run(&c), TEE_SUCCESS);
    CHECK_EQ(c.block[5], 0);
    memcpy(second, c.out + 4, 4); /* the first image went to another buffer */
    CHECK(memcmp(second, (const int8_t[]){10, 12, -7, -8}, 4) == 0);
}

static void load_resident(void)
{
    CHECK_EQ(load_vector(&v->resident), TEE_SUCCESS);
}

static void test_resident_slices_stay(void)
{
    load_resident();
    call c = good_call(2);
    c.window = resident_slices;
    CHECK_EQ(run(&c), TEE_SUCCESS);
    check_results(c.out);
    c = good_call(2);
    c.block[3] = 0;
    c.window_bytes = 0;
    CHECK_EQ(run(&c), TEE_SUCCESS);
    CHECK_EQ(c.block[5], 0);
    check_results(c.out);
}

/* Run without a window. Returns: the slice that is needed, or -1 if none. */
static int needed_slice(void)
{
    call c = good_call(2);
    c.block[3] = 0;
    c.window_bytes = 0;
    CHECK_EQ(run(&c), TEE_SUCCESS);
    if (c.block[5] == 0) {
        check_results(c.out);
        return -1;
    }
    return (int)c.block[6];
}

/* What is open belongs to one load: the next finds other bytes there. */
static void test_load_forgets_open_slices(void)
{
    test_resident_slices_stay();
    load_resident();
    CHECK_EQ(needed_slice(), 0);
    load_streamed();
    call c = good_call(2); /* leave slice 0 in the slot */
    c.block[3] = 1;
    c.window_bytes = 80;
    CHECK_EQ(run(&c), TEE_SUCCESS);
    CHECK_EQ(c.block[6], 1);
    load_streamed();
    CHECK_EQ(needed_slice(), 0);
}

static void test_run_refuses(void)
{
    load_streamed();
    call c = good_call(2);
    c.block[0] = 1;
    check_refused(c, TEE_ERROR_BAD_PARAMETERS); /* no such stage */
    c = good_call(0);
    check_refused(c, TEE_ERROR_BAD_PARAMETERS);
    c = good_call(2);
    c.block[1] = 0xFFFFFFFF;
    check_refused(c, TEE_ERROR_BAD_PARAMETERS);
    for (uint32_t i = 8; i < 16; i++) {
        c = good_call(2);
        c.block[i] = 1;
        check_refused(c, TEE_ERROR_BAD_PARAMETERS);
    }
    c = good_call(2);
    c.block[4] = 2;
    check_refused(c, TEE_ERROR_BAD_PARAMETERS);
    c.block[4] = 1;
    check_refused(c, TEE_ERROR_BAD_STATE); /* nothing to resume */
    c = good_call(2);
    c.block_bytes = 60;
    check_refused(c, TEE_ERROR_BAD_PARAMETERS);
    c = good_call(2);
    c.in_bytes = 7;
    check_refused(c, TEE_ERROR_BAD_PARAMETERS);
    c = good_call(2);
    c.out_bytes = 7;
    check_refused(c, TEE_ERROR_SHORT_BUFFER);
    for (uint32_t types = 0; types < 0x10000; types += 41) {
        c = good_call(2);
        c.types = types;
        CHECK_EQ(run(&c), TEE_ERROR_BAD_PARAMETERS);
    }
}

static void test_run_refuses_windows(void)
{
    static const uint32_t bad[][2] = {{0, 1}, {0, 3}, {1, 2}, {2, 1}, {3, 0},
                                      {0xFFFFFFFF, 2}, {1, 0xFFFFFFFF}};
    load_streamed();
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        call c = good_call(2);
        c.block[2] = bad[i][0];
        c.block[3] = bad[i][1];
        check_refused(c, TEE_ERROR_BAD_PARAMETERS);
    }
    call c = good_call(2);
    c.window_bytes = 79;
    check_refused(c, TEE_ERROR_BAD_PARAMETERS);
}

static void test_changed_slices(void)
{
    uint8_t window[160];
    load_streamed();
    for (uint32_t at = 0; at < 160; at++) {
        memcpy(window, both_slices, 160);
        window[at] ^= 1;
        call c = good_call(2);
        c.window = window;
        check_refused(c, TEE_ERROR_MAC_INVALID);
    }
    memcpy(window, both_slices + 80, 80); /* swapped */
    memcpy(window + 80, both_slices, 80);
    call c = good_call(2);
    c.window = window;
    check_refused(c, TEE_ERROR_MAC_INVALID);
    memcpy(window, v->resident.slice_0, 80); /* another bundle's */
    check_refused(c, TEE_ERROR_MAC_INVALID);
    c = good_call(2); /* and all is well again */
    CHECK_EQ(run(&c), TEE_SUCCESS);
    check_results(c.out);
}

/* A resume must be for the same run. */
static void test_resume_must_match(void)
{
    load_streamed();
    for (uint32_t word = 0; word < 2; word++) {
        call c = good_call(2);
        c.window_bytes = 0;
        c.block[3] = 0;
        CHECK_EQ(run(&c), TEE_SUCCESS);
        CHECK_EQ(c.block[5], 1);
        c = good_call(2);
        c.block[4] = 1;
        c.block[word]++;
        check_refused(c, TEE_ERROR_BAD_PARAMETERS);
    }
}

/* ---- open -------------------------------------------------------------- */

#define OPEN_TYPES TEE_PARAM_TYPES(I, I, N, N)

static TEE_Result open_bytes(const uint32_t *words, size_t words_bytes,
                             const uint8_t *window, size_t window_bytes,
                             uint32_t types)
{
    TEE_Param params[4] = {param_of(words, words_bytes),
                           param_of(window, window_bytes), param_of(NULL, 0),
                           param_of(NULL, 0)};
    void *buffers[4];
    for (int i = 0; i < 4; i++) {
        buffers[i] = params[i].memref.buffer;
    }
    TEE_Result result =
        TA_InvokeCommandEntryPoint(session, CL_COMMAND_OPEN, types, params);
    free_params(buffers);
    return result;
}

static TEE_Result open_slices(uint32_t first, uint32_t count,
                              const uint8_t *window)
{
    const uint32_t words[4] = {first, count, 0, 0};
    return open_bytes(words, sizeof words, window, 80 * (size_t)count,
                      OPEN_TYPES);
}

static uint64_t slices_opened(void)
{
    uint8_t stats[CL_STATS_BYTES];
    CHECK_EQ(ask(CL_COMMAND_STATS, TEE_PARAM_TYPES(O, N, N, N), sizeof stats,
                 stats),
             TEE_SUCCESS);
    return cl_load_u32(stats + 32);
}

static void test_open_before_and_after_runs(void)
{
    uint64_t before = slices_opened();
    load_resident();
    CHECK_EQ(open_slices(0, 0, NULL), TEE_SUCCESS);
    CHECK_EQ(needed_slice(), 0);
    CHECK_EQ(open_slices(0, 2, resident_slices), TEE_SUCCESS);
    CHECK_EQ(needed_slice(), -1);
    CHECK_EQ(open_slices(1, 1, resident_slices + 80), TEE_SUCCESS);
    CHECK_EQ(needed_slice(), -1);
    CHECK_EQ(slices_opened() - before, 2); /* what is open stays as it is */
    load_resident();
    CHECK_EQ(needed_slice(), 0); /* a load closes them */
    CHECK_EQ(open_slices(0, 1, resident_slices), TEE_SUCCESS);
    CHECK_EQ(needed_slice(), 1);
}

/* Slices that stream are checked; the last one is in the slot. */
static void test_open_streamed(void)
{
    load_streamed();
    CHECK_EQ(open_slices(0, 2, both_slices), TEE_SUCCESS);
    CHECK_EQ(needed_slice(), 0);
    CHECK_EQ(open_slices(0, 1, both_slices), TEE_SUCCESS);
    CHECK_EQ(needed_slice(), 1);
    call c = good_call(2);
    CHECK_EQ(run(&c), TEE_SUCCESS);
    check_results(c.out);
}

static void test_open_changed(void)
{
    uint8_t window[160];
    for (uint32_t at = 0; at < 160; at += 3) {
        load_resident();
        memcpy(window, resident_slices, 160);
        window[at] ^= 8;
        CHECK_EQ(open_slices(0, 2, window), TEE_ERROR_MAC_INVALID);
        CHECK_EQ(needed_slice(), at < 80 ? 0 : 1); /* those before stay open */
    }
    CHECK_EQ(open_slices(0, 2, resident_slices), TEE_SUCCESS); /* mended */
    CHECK_EQ(needed_slice(), -1);
    load_resident();
    CHECK_EQ(open_slices(1, 1, resident_slices), TEE_ERROR_MAC_INVALID);
    CHECK_EQ(open_slices(0, 2, both_slices), TEE_ERROR_MAC_INVALID);
    load_streamed();
    CHECK_EQ(open_slices(0, 1, both_slices), TEE_SUCCESS);
    CHECK_EQ(open_slices(1, 1, both_slices), TEE_ERROR_MAC_INVALID);
    CHECK_EQ(needed_slice(), 0); /* nothing is in the slot */
}

static void test_open_refuses(void)
{
    static const uint32_t bad[][4] = {
        {0, 1, 0, 0}, {0, 3, 0, 0}, {1, 2, 0, 0}, {2, 1, 0, 0}, {3, 0, 0, 0},
        {0xFFFFFFFF, 2, 0, 0}, {1, 0xFFFFFFFF, 0, 0}, {0, 2, 1, 0},
        {0, 2, 0, 1}};
    const uint32_t good[4] = {0, 2, 0, 0};
    load_resident();
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK_EQ(open_bytes(bad[i], 16, resident_slices, 160, OPEN_TYPES),
                 TEE_ERROR_BAD_PARAMETERS);
    }
    CHECK_EQ(open_bytes(good, 12, resident_slices, 160, OPEN_TYPES),
             TEE_ERROR_BAD_PARAMETERS);
    CHECK_EQ(open_bytes(good, 16, resident_slices, 79, OPEN_TYPES),
             TEE_ERROR_BAD_PARAMETERS);
    CHECK_EQ(open_bytes(good, 16, resident_slices, 0, OPEN_TYPES),
             TEE_ERROR_BAD_PARAMETERS);
    for (uint32_t types = 0; types < 0x10000; types += 43) {
        CHECK_EQ(open_bytes(good, 16, resident_slices, 160, types),
                 TEE_ERROR_BAD_PARAMETERS);
    }
    CHECK_EQ(needed_slice(), 0);
    CHECK_EQ(load_with_word(CL_LOAD_SUITE, 0), TEE_ERROR_NOT_SUPPORTED);
    CHECK_EQ(open_slices(0, 2, resident_slices), TEE_ERROR_BAD_STATE);
}

/* Whether it succeeds or not. */
static void test_open_forgets_an_unfinished_run(void)
{
    for (uint32_t broken = 0; broken < 2; broken++) {
        load_streamed();
        CHECK_EQ(needed_slice(), 0);
        CHECK_EQ(open_slices(broken, 1, both_slices),
                 broken ? TEE_ERROR_MAC_INVALID : TEE_SUCCESS);
        call c = good_call(2);
        c.block[4] = 1;
        check_refused(c, TEE_ERROR_BAD_STATE);
    }
}

/* ---- The second thread ------------------------------------------------- */

/* So long on the second thread that the first one waits in vain for a while. */
static void run_slowly(cl_job *job, bool beside)
{
    (void)job;
    if (beside) {
        usleep(5000);
    }
}

/* Returns: false if there is no second thread. */
static bool make_it_rest(void)
{
    cl_job job = {.run = run_slowly};
    while (cl_platform_beside_now()) {
        cl_platform_give(&job);
        usleep(1000); /* for it to begin the job */
        cl_platform_finish(&job);
    }
    return cl_platform_beside();
}

/* It is back for the runs that follow, and needs the key then. */
static void test_load_while_it_rests(void)
{
    const cl_session *loaded = session;
    if (!make_it_rest()) {
        return;
    }
    load_streamed();
    while (cl_platform_beside_now()) { /* it took too long */
        (void)make_it_rest();
        load_streamed();
    }
    CHECK_EQ(loaded->opener.suite, v - suites + 1);
    CHECK_EQ(loaded->beside.suite, loaded->opener.suite);
}

/* ---- All of it, under one suite ---------------------------------------- */

static void test_suite(const struct vectors *vectors)
{
    v = vectors;
    memcpy(both_slices, v->streamed.slice_0, 80);
    memcpy(both_slices + 80, v->streamed.slice_1, 80);
    memcpy(resident_slices, v->resident.slice_0, 80);
    memcpy(resident_slices + 80, v->resident.slice_1, 80);
    test_info_and_stats();
    test_load_sizes();
    test_load_suites();
    test_load_changed();
    test_failed_load_leaves_nothing();
    test_load_memory();
    test_run();
    test_run_in_windows();
    test_resident_slices_stay();
    test_load_forgets_open_slices();
    test_run_refuses();
    test_run_refuses_windows();
    test_changed_slices();
    test_resume_must_match();
    test_open_before_and_after_runs();
    test_open_streamed();
    test_open_changed();
    test_open_refuses();
    test_open_forgets_an_unfinished_run();
    test_load_while_it_rests();
}

int main(void)
{
    TEE_Param none[4];
    memset(none, 0, sizeof none);
    start_platform(1 << 16);
    cl_beside_open();
    put_device_key(sealed_private_key, sealed_public_key, 0600);
    CHECK_EQ(TA_CreateEntryPoint(), TEE_SUCCESS);
    CHECK_EQ(TA_OpenSessionEntryPoint(1, none, &session),
             TEE_ERROR_BAD_PARAMETERS);
    CHECK_EQ(TA_OpenSessionEntryPoint(0, none, &session), TEE_SUCCESS);
    check_refused(good_call(2), TEE_ERROR_BAD_STATE);
    CHECK_EQ(open_slices(0, 0, NULL), TEE_ERROR_BAD_STATE);
    for (uint32_t i = 0; i < N_SUITES; i++) {
        test_suite(&suites[i]);
    }
    TA_CloseSessionEntryPoint(session);
    TA_DestroyEntryPoint();
    CHECK_EQ(cl_ta_heap.live_bytes, 0);
    end_platform();
    return 0;
}
