/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels against plain loops and hand-made numbers; runs that stop and go on;
 * the flat interface.
 */
#include <math.h>

#include "inprocess.h"
#include "kernels/float32.h"
#include "machine.h"
#include "test.h"

enum { MEMORY_BYTES = 1 << 20 };

/* Run one stage of an outside program. */
static void run(const assembly *a, const void *constants,
                uint64_t constants_bytes, const void *in, uint64_t in_bytes,
                void *out, uint64_t out_bytes, uint32_t n_images)
{
    uint8_t program[8192];
    uint64_t need = 0;
    uint32_t n = assemble(a, program);
    CHECK_EQ(cl_core_need(program, n, &need), CL_OK);
    void *memory = aligned_alloc(64, (need + 63) / 64 * 64);
    CHECK_EQ(cl_core_open(memory, need, program, n, constants,
                          constants_bytes, CL_ALL_SETS),
             CL_OK);
    CHECK_EQ(cl_core_run(memory, 0, n_images, in, in_bytes, out, out_bytes),
             CL_OK);
    free(memory);
}

/* ---- Conv -------------------------------------------------------------- */

typedef struct shape {
    uint32_t h, w, c, oh, ow, oc, k, s, p, d, groups;
} shape;

static uint32_t taps_of(const shape *s)
{
    return s->k * s->k * s->c / s->groups;
}

/* Index of the input element that tap k of an output reads; -1 outside. */
static long tap(const shape *s, uint32_t oy, uint32_t ox, uint32_t u,
                uint32_t k)
{
    uint32_t n = s->c / s->groups, channel = k % n;
    long y = (long)(oy * s->s + k / n / s->k * s->d) - (long)s->p;
    long x = (long)(ox * s->s + k / n % s->k * s->d) - (long)s->p;
    if (y < 0 || x < 0 || y >= (long)s->h || x >= (long)s->w) {
        return -1;
    }
    uint32_t group = u / (s->oc / s->groups);
    return (y * (long)s->w + x) * (long)s->c + (long)(group * n + channel);
}

static shape draw_shape(uint32_t *seed)
{
    shape s = {.groups = 1 + below(seed, 3)};
    s.c = s.groups * (1 + below(seed, 5));
    s.oc = s.groups * (1 + below(seed, s.groups == 1 ? 36 : 12));
    s.h = 1 + below(seed, 7);
    s.w = 1 + below(seed, 7);
    s.k = 1 + below(seed, 3);
    s.s = 1 + below(seed, 2);
    s.p = below(seed, 3);
    s.d = 1 + below(seed, 2);
    s.oh = 1 + below(seed, 6);
    s.ow = 1 + below(seed, below(seed, 4) == 0 ? 40 : 6);
    return s;
}

static uint32_t up4(uint32_t n)
{
    return (n + 3) / 4 * 4;
}

static int is_depthwise(const shape *s)
{
    return s->groups > 1 && s->groups == s->c && s->groups == s->oc;
}

/* The specification's K', and N of a slice. */
static uint32_t packed_taps(const shape *s)
{
    uint32_t n = s->c / s->groups;
    return is_depthwise(s) ? s->k * s->k : s->k * up4(s->k * n);
}

static uint32_t packed_units(const shape *s, uint32_t first, uint32_t n)
{
    uint32_t size = s->oc / s->groups, sum = 0;
    for (uint32_t u = first, end; u < first + n; u = end) {
        end = (u / size + 1) * size;
        end = end < first + n ? end : first + n;
        sum += is_depthwise(s) ? end - u : up4(end - u);
    }
    return sum;
}

static int is_read_in_place(const shape *s)
{
    return s->p == 0 && (s->oh - 1) * s->s + (s->k - 1) * s->d < s->h &&
           (s->ow - 1) * s->s + (s->k - 1) * s->d < s->w &&
           (s->k == 1 || (s->d == 1 && s->groups == 1));
}

/* Bytes of scratch by the specification. */
static uint32_t strip_bytes(const shape *s, uint32_t in_type)
{
    uint32_t rows = (128 + s->ow - 1) / s->ow;
    uint32_t step = s->d == 1 && s->s < s->k ? s->s : s->k;
    rows = rows < s->oh ? rows : s->oh;
    uint32_t lines = (rows - 1) * step + s->k;
    uint32_t taps = ((s->ow - 1) * step + s->k + step - 1) / step * step;
    uint32_t n = lines * taps * (s->c / s->groups);
    if (is_depthwise(s) || (in_type == 2 && is_read_in_place(s))) {
        return 0;
    }
    return in_type == 2 ? 4 * n : n + 3;
}

/* A program of one conv in n_slices slices; returns the constants' length. */
static uint32_t conv_program(assembly *a, const shape *s, uint32_t in_type,
                             uint32_t out_type, int32_t zin, int32_t zout,
                             uint32_t n_slices)
{
    uint32_t x = add_tensor(a, in_type, s->h, s->w, s->c, zin);
    uint32_t y = add_tensor(a, out_type, s->oh, s->ow, s->oc, zout);
    uint32_t scratch = add_scratch(a, strip_bytes(s, in_type));
    uint32_t end = 0;
    for (uint32_t i = 0; i < n_slices; i++) {
        uint32_t first = s->oc * i / n_slices;
        uint32_t n = s->oc * (i + 1) / n_slices - first;
        uint32_t bytes =
            in_type == 1 ? packed_units(s, first, n) * (12 + packed_taps(s))
                         : 4 * n * (1 + taps_of(s));
        uint32_t index = add_slice(a, first, n, bytes, 0);
        end = a->slices[index][4] + (bytes + 63) / 64 * 64;
    }
    uint32_t lo = out_type == 1 ? (uint32_t)-100 : float_word(-300.0f);
    uint32_t hi = out_type == 1 ? 90 : float_word(INFINITY);
    ADD_OP(a, 1, 18, x, y, 0, n_slices, s->k, s->k, s->s, s->s, s->p, s->p,
           s->d, s->d, s->groups, scratch, lo, hi);
    add_stage(a, 0, x, y);
    return end;
}

/* Where in a slice of n units (from first on) the specification puts unit
 * `unit`: its column, and the weight of tap k. */
static uint32_t column_of(const shape *s, uint32_t first, uint32_t unit)
{
    uint32_t size = s->oc / s->groups;
    uint32_t part = unit / size * size > first ? unit / size * size : first;
    return (part == first ? 0 : packed_units(s, first, part - first)) + unit -
           part;
}

static uint32_t weight_at(const shape *s, uint32_t first, uint32_t n,
                          uint32_t unit, uint32_t k)
{
    uint32_t size = s->oc / s->groups, row = s->k * (s->c / s->groups);
    uint32_t part = unit / size * size > first ? unit / size * size : first;
    uint32_t end = (unit / size + 1) * size;
    end = end < first + n ? end : first + n;
    if (is_depthwise(s)) {
        return k * n + unit - first;
    }
    uint32_t block = (unit - part) / 16 * 16, left = end - part - block;
    uint32_t width = left < 16 ? up4(left) : 16;
    uint32_t start = column_of(s, first, part + block) * packed_taps(s);
    uint32_t packed = k / row * up4(row) + k % row;
    return start + packed / 4 * 4 * width + (unit - part - block) * 4 +
           packed % 4;
}

static void pack_slice(const shape *s, const uint32_t *slice, uint8_t *at,
                       const int8_t *w, const float *m, const int32_t *bias)
{
    uint32_t first = slice[0], n = slice[1], k = taps_of(s);
    uint32_t n_columns = packed_units(s, first, n);
    uint8_t *numbers = at + n_columns * packed_taps(s);
    for (uint32_t u = first; u < first + n; u++) {
        uint8_t *to = numbers + 4 * column_of(s, first, u);
        int32_t sum = 0;
        for (uint32_t t = 0; t < k; t++) {
            at[weight_at(s, first, n, u, t)] = (uint8_t)w[u * k + t];
            sum += w[u * k + t];
        }
        memcpy(to, m + u, 4);
        memcpy(to + 4 * n_columns, bias + u, 4);
        memcpy(to + 8 * n_columns, &sum, 4);
    }
}

/* Of float32 weights, counted in weights. */
static uint32_t float_weight_at(const shape *s, uint32_t first, uint32_t n,
                                uint32_t unit, uint32_t k)
{
    uint32_t size = s->oc / s->groups;
    uint32_t part = unit / size * size > first ? unit / size * size : first;
    uint32_t end = (unit / size + 1) * size;
    end = end < first + n ? end : first + n;
    if (is_depthwise(s)) {
        return k * n + unit - first;
    }
    uint32_t block = part + (unit - part) / 16 * 16;
    uint32_t width = end - block < 16 ? end - block : 16;
    return (block - first) * taps_of(s) + k * width + unit - block;
}

static float clamp(float v, float lo, float hi)
{
    return fminf(fmaxf(v, lo), hi);
}

static void test_conv_int8(uint32_t *seed, uint32_t out_type)
{
    shape s = draw_shape(seed);
    assembly a = {0};
    int32_t zin = (int32_t)below(seed, 256) - 128, zout = 7;
    uint32_t n_slices = 1 + below(seed, s.oc < 4 ? s.oc : 4);
    uint32_t k = taps_of(&s);
    int8_t x[7 * 7 * 15], w[36 * 9 * 15];
    float m[36], out[6 * 40 * 36];
    int32_t bias[36];
    uint32_t bytes = conv_program(&a, &s, 1, out_type, zin,
                                  out_type == 1 ? zout : 0, n_slices);
    uint8_t *constants = calloc(1, bytes);
    for (uint32_t i = 0; i < s.h * s.w * s.c; i++) {
        x[i] = (int8_t)draw(seed);
    }
    for (uint32_t i = 0; i < s.oc * k; i++) {
        w[i] = (int8_t)((int)below(seed, 255) - 127);
    }
    for (uint32_t u = 0; u < s.oc; u++) {
        m[u] = (float)(1 + below(seed, 1000)) * 1e-5f;
        bias[u] = (int32_t)below(seed, 20000) - 10000;
    }
    for (uint32_t i = 0; i < n_slices; i++) {
        pack_slice(&s, a.slices[i], constants + a.slices[i][4], w, m, bias);
    }
    uint32_t n_out = s.oh * s.ow * s.oc;
    run(&a, constants, bytes, x, s.h * s.w * s.c, out,
        n_out * (out_type == 1 ? 1 : 4), 1);
    for (uint32_t i = 0; i < n_out; i++) {
        uint32_t u = i % s.oc, ox = i / s.oc % s.ow, oy = i / s.oc / s.ow;
        int32_t acc = bias[u];
        for (uint32_t t = 0; t < k; t++) {
            long at = tap(&s, oy, ox, u, t);
            acc += at < 0 ? 0 : (x[at] - zin) * w[u * k + t];
        }
        float v = (float)acc * m[u];
        if (out_type == 1) {
            float q = clamp(rintf(v) + (float)zout, -100, 90);
            CHECK_EQ(((int8_t *)out)[i], (int)q);
        } else {
            CHECK(out[i] == clamp(v, -300.0f, INFINITY));
        }
    }
    free(constants);
}

static float multiply_add(float x, float w, float sum, bool fused)
{
    float product = x * w;
    return fused ? fmaf(x, w, sum) : sum + product;
}

static void test_conv_float32(uint32_t *seed)
{
    shape s = draw_shape(seed);
    assembly a = {0};
    uint32_t n_slices = 1 + below(seed, s.oc < 4 ? s.oc : 4);
    uint32_t k = taps_of(&s);
    bool fused = cl_kernel_f32_at(0, CL_ALL_SETS)->fused;
    float x[7 * 7 * 15], w[36 * 9 * 15], bias[36], out[6 * 40 * 36];
    uint32_t bytes = conv_program(&a, &s, 2, 2, 0, 0, n_slices);
    uint8_t *constants = calloc(1, bytes);
    for (uint32_t i = 0; i < s.h * s.w * s.c; i++) {
        x[i] = (float)(int32_t)draw(seed) * 1e-8f;
    }
    for (uint32_t i = 0; i < s.oc * k; i++) {
        w[i] = (float)(int32_t)draw(seed) * 1e-9f;
    }
    for (uint32_t u = 0; u < s.oc; u++) {
        bias[u] = (float)(int32_t)draw(seed) * 1e-9f;
    }
    for (uint32_t i = 0; i < n_slices; i++) {
        uint32_t first = a.slices[i][0], n = a.slices[i][1];
        uint8_t *at = constants + a.slices[i][4];
        for (uint32_t t = 0; t < n * k; t++) {
            uint32_t u = first + t / k;
            memcpy(at + 4 * float_weight_at(&s, first, n, u, t % k),
                   &w[u * k + t % k], 4);
        }
        memcpy(at + 4 * n * k, bias + first, 4 * n);
    }
    uint32_t n_out = s.oh * s.ow * s.oc;
    run(&a, constants, bytes, x, 4 * s.h * s.w * s.c, out, 4 * n_out, 1);
    for (uint32_t i = 0; i < n_out; i++) {
        uint32_t u = i % s.oc, ox = i / s.oc % s.ow, oy = i / s.oc / s.ow;
        float sum = bias[u];
        for (uint32_t t = 0; t < k; t++) {
            long at = tap(&s, oy, ox, u, t);
            if (at < 0 && is_depthwise(&s)) {
                continue;
            }
            sum = multiply_add(at < 0 ? 0.0f : x[at], w[u * k + t], sum, fused);
        }
        CHECK(out[i] == clamp(sum, -300.0f, INFINITY));
    }
    free(constants);
}

/* Sums that do not fit wrap around and reach no undefined behaviour. */
static void test_conv_hostile_bias(void)
{
    shape s = {1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1};
    assembly a = {0};
    uint8_t constants[64] = {0};
    const float m = NAN;
    const int32_t bias = INT32_MAX;
    const int8_t x = 127;
    int8_t out = 0;
    CHECK_EQ(conv_program(&a, &s, 1, 1, -128, 0, 1), 64);
    memcpy(constants + 16, &m, 4);
    memcpy(constants + 32, &bias, 4);
    constants[0] = 127;
    run(&a, constants, 64, &x, 1, &out, 1, 1);
    CHECK_EQ(out, -100); /* a NaN gives lo */
}

/* ---- Hand-made numbers ------------------------------------------------- */

static void test_max_pool(void)
{
    assembly a = {0};
    uint32_t x = add_tensor(&a, 1, 3, 3, 1, 5);
    uint32_t y = add_tensor(&a, 1, 2, 2, 1, 5);
    ADD_OP(&a, 2, 14, x, y, 2, 2, 2, 2, 1, 1, 1, 1, (uint32_t)-3, 7);
    add_stage(&a, 0, x, y);
    const int8_t in[9] = {-9, 2, 3, 4, 5, 6, 9, 8, -7};
    int8_t out[4];
    run(&a, NULL, 0, in, 9, out, 4, 1);
    CHECK_EQ(out[0], -3); /* only the corner, clamped */
    CHECK_EQ(out[1], 3);
    CHECK_EQ(out[2], 7);
    CHECK_EQ(out[3], 7);
}

static void average(uint32_t count_padding, uint32_t divisor, float m,
                    int8_t *out)
{
    assembly a = {0};
    uint32_t x = add_tensor(&a, 1, 2, 2, 1, 10);
    uint32_t y = add_tensor(&a, 1, 2, 2, 1, -1);
    ADD_OP(&a, 3, 15, x, y, 2, 2, 1, 1, 1, 1, count_padding, divisor,
           float_word(m), INT8_CLAMP);
    add_stage(&a, 0, x, y);
    const int8_t in[4] = {14, 20, 30, 43};
    run(&a, NULL, 0, in, 4, out, 4, 1);
}

static void test_avg_pool(void)
{
    int8_t out[4];
    average(0, 0, 1.0f, out); /* sums 4, 14, 24, 67 over 1, 2, 2, 4 taps */
    CHECK_EQ(out[0], 3);
    CHECK_EQ(out[1], 6);
    CHECK_EQ(out[2], 11);
    CHECK_EQ(out[3], 16); /* 16.75 */
    average(1, 0, 1.0f, out); /* over 4 */
    CHECK_EQ(out[0], 0);
    CHECK_EQ(out[1], 3); /* 3.5, to even: 4 */
    CHECK_EQ(out[2], 5);
    average(1, 8, 2.0f, out);
    CHECK_EQ(out[0], 0);
    CHECK_EQ(out[1], 3);
    CHECK_EQ(out[3], 16); /* 16.75 */
}

static void test_adaptive_avg_pool(void)
{
    assembly a = {0};
    uint32_t x = add_tensor(&a, 2, 1, 5, 1, 0);
    uint32_t y = add_tensor(&a, 2, 1, 3, 1, 0);
    ADD_OP(&a, 4, 7, x, y, ONE, FLOAT_CLAMP);
    add_stage(&a, 0, x, y);
    const float in[5] = {1, 2, 3, 4, 5};
    float out[3];
    run(&a, NULL, 0, in, 20, out, 12, 1);
    CHECK(out[0] == 1.5f); /* columns 0-1, 1-3, 3-4 */
    CHECK(out[1] == 3.0f);
    CHECK(out[2] == 4.5f);
}

static void test_add_rounds_to_even(void)
{
    assembly a = {0};
    uint32_t x = add_tensor(&a, 1, 1, 1, 4, 0);
    uint32_t y = add_tensor(&a, 1, 1, 1, 4, 0);
    ADD_OP(&a, 5, 9, x, x, y, float_word(0.25f), float_word(0.25f),
           INT8_CLAMP);
    add_stage(&a, 0, x, y);
    const int8_t in[4] = {1, 3, -1, -3}; /* halves: 0.5, 1.5, -0.5, -1.5 */
    int8_t out[4];
    run(&a, NULL, 0, in, 4, out, 4, 1);
    CHECK_EQ(out[0], 0);
    CHECK_EQ(out[1], 2);
    CHECK_EQ(out[2], 0);
    CHECK_EQ(out[3], -2);
}

static void test_affine_permute_copy(void)
{
    assembly a = {0};
    uint32_t x = add_tensor(&a, 2, 1, 2, 3, 0);
    uint32_t y = add_tensor(&a, 2, 1, 2, 3, 0);
    uint32_t z = add_tensor(&a, 2, 1, 3, 2, 0);
    uint32_t q = add_tensor(&a, 1, 1, 3, 4, 1);
    add_slice(&a, 0, 2, 16, 0);
    add_slice(&a, 2, 1, 8, 0);
    ADD_OP(&a, 6, 8, x, y, 0, 2, FLOAT_CLAMP);
    ADD_OP(&a, 8, 6, y, z, 2, 3);
    ADD_OP(&a, 7, 11, z, q, 3, 2, 4, 2, float_word(2.0f), (uint32_t)-9, 50);
    add_stage(&a, 0, x, q);
    float constants[32] = {1, 2, 0, 0.5f, [16] = 3, -1};
    const float in[6] = {1, 2, 3, 4, 5, NAN};
    int8_t out[12] = {0};
    run(&a, constants, 128, in, 24, out, 12, 1);
    CHECK_EQ(out[2], 3); /* (1 * 1 + 0) * 2 + 1 */
    CHECK_EQ(out[3], 9);
    CHECK_EQ(out[6], 10); /* (2 * 2 + 0.5) * 2 + 1 */
    CHECK_EQ(out[7], 22);
    CHECK_EQ(out[10], 17); /* (3 * 3 - 1) * 2 + 1 */
    CHECK_EQ(out[11], -9); /* a NaN gives lo, both times */
    CHECK_EQ(out[0], 0);   /* left alone */
}

static void test_softmax(void)
{
    assembly a = {0};
    uint32_t x = add_tensor(&a, 2, 1, 2, 3, 0);
    uint32_t y = add_tensor(&a, 2, 1, 2, 3, 0);
    ADD_OP(&a, 9, 4, x, y);
    add_stage(&a, 0, x, y);
    const float in[6] = {1, 2, 3, 0, -200, -80};
    float out[6];
    run(&a, NULL, 0, in, 24, out, 24, 1);
    CHECK(fabsf(out[0] - 0.09003057f) < 1e-7f);
    CHECK(fabsf(out[1] - 0.24472847f) < 1e-7f);
    CHECK(fabsf(out[2] - 0.66524096f) < 1e-7f);
    CHECK(out[3] == 1.0f && out[4] == 0.0f);
    CHECK(fabsf(out[5] / expf(-80.0f) - 1.0f) < 1e-6f);
}

/* ---- Stopping and going on --------------------------------------------- */

/* Holds out one slice at a time. */
typedef struct one_slice {
    const assembly *assembly;
    const uint8_t *constants;
    uint32_t held;
    uint32_t n_asked;
} one_slice;

static cl_status open_held(void *context, uint32_t index,
                           const uint8_t **data)
{
    one_slice *o = context;
    *data = o->constants + o->assembly->slices[index][4];
    return index == o->held ? CL_OK : CL_NEED_SLICE;
}

enum { IMAGES = 7, STORE = 4096 };

/* The answers of an outside program for the same constants and images. */
static void run_outside(const uint8_t *constants, const uint8_t *in,
                        uint8_t *out)
{
    assembly a = everything(0);
    const uint32_t *last = a.slices[a.n_slices - 1];
    run(&a, constants, last[4] + (last[2] + 63) / 64 * 64, in, IMAGES * 80,
        out, IMAGES * 480, IMAGES);
}

/* Stopped at every slice: the same answers in groups of any size, each slice
 * asked for once for a group, and finished groups are out at every stop. */
static void check_lanes(uint32_t lanes)
{
    assembly outside = everything(0), a = everything(1);
    uint8_t program_bytes[8192], constants[STORE], in[IMAGES * 80];
    uint8_t whole[IMAGES * 480], parts[IMAGES * 480];
    uint32_t seed = 5;
    for (uint32_t i = 0; i < STORE; i++) {
        constants[i] = (uint8_t)below(&seed, 64);
    }
    for (uint32_t i = 0; i < sizeof in; i++) {
        in[i] = (uint8_t)draw(&seed);
    }
    run_outside(constants, in, whole);

    cl_program program;
    cl_machine machine;
    one_slice o = {&outside, constants, 0xFFFF, 0};
    cl_batch batch = {.in = in, .out = parts};
    a.lanes = lanes;
    a.slot_bytes = 4 * 6 * 55;
    uint32_t n = assemble(&a, program_bytes);
    CHECK_EQ(cl_program_read(&program, program_bytes, n, CL_INSIDE), CL_OK);
    uint64_t lane_bytes = cl_program_layout(&program).lane_bytes;
    uint8_t *arenas = aligned_alloc(64, lanes * lane_bytes);
    cl_machine_init(&machine, &program, arenas, open_held, &o, 0);
    CHECK_EQ(cl_machine_run(&machine, &batch), CL_BAD_STATE);
    CHECK_EQ(cl_machine_start(&machine, 0, IMAGES), CL_OK);
    cl_machine_sizes(&machine, &batch);
    cl_status status = CL_NEED_SLICE;
    while ((status = cl_machine_run(&machine, &batch)) == CL_NEED_SLICE) {
        CHECK_EQ(machine.image, o.n_asked / 3 * lanes);
        CHECK(memcmp(whole, parts, machine.image * 480) == 0);
        o.held = machine.needed_slice;
        o.n_asked++;
        CHECK(o.n_asked < 100);
    }
    CHECK_EQ(status, CL_OK);
    CHECK_EQ(o.n_asked, 3 * ((IMAGES + lanes - 1) / lanes));
    CHECK_EQ(machine.image, IMAGES);
    CHECK(memcmp(whole, parts, sizeof whole) == 0);
    CHECK_EQ(cl_machine_run(&machine, &batch), CL_BAD_STATE);
    free(arenas);
}

static void test_resume_gives_the_same(void)
{
    for (uint32_t lanes = 1; lanes <= IMAGES + 1; lanes++) {
        check_lanes(lanes);
    }
}

/* A run that is begun anew in the middle of a group forgets that group. */
static void test_start_forgets_a_group(void)
{
    assembly outside = everything(0), a = everything(1);
    uint8_t program_bytes[8192], constants[STORE] = {0};
    uint8_t in[IMAGES * 80] = {0}, out[IMAGES * 480];
    cl_program program;
    cl_machine machine;
    one_slice o = {&outside, constants, 0, 0};
    cl_batch batch = {.in = in, .out = out};
    a.lanes = 4;
    a.slot_bytes = 4 * 6 * 55;
    uint32_t n = assemble(&a, program_bytes);
    CHECK_EQ(cl_program_read(&program, program_bytes, n, CL_INSIDE), CL_OK);
    uint8_t *arenas =
        aligned_alloc(64, 4 * cl_program_layout(&program).lane_bytes);
    cl_machine_init(&machine, &program, arenas, open_held, &o, 0);
    CHECK_EQ(cl_machine_start(&machine, 0, IMAGES), CL_OK);
    cl_machine_sizes(&machine, &batch);
    CHECK_EQ(cl_machine_run(&machine, &batch), CL_NEED_SLICE);
    CHECK_EQ(machine.needed_slice, 1);
    CHECK_EQ(cl_machine_start(&machine, 0, 1), CL_OK);
    o.held = 0xFFFF;
    CHECK_EQ(cl_machine_run(&machine, &batch), CL_NEED_SLICE);
    CHECK_EQ(machine.needed_slice, 0);
    CHECK_EQ(machine.n_group, 1);
    free(arenas);
}

/* ---- The flat interface ------------------------------------------------ */

static void test_interface_refuses(void)
{
    assembly a = everything(0);
    uint8_t program[8192], constants[4096] = {0}, in[80] = {0}, out[480];
    uint64_t need = 0;
    uint32_t n = assemble(&a, program);
    const uint32_t *last = a.slices[a.n_slices - 1];
    uint32_t store = last[4] + (last[2] + 63) / 64 * 64;
    uint8_t *m = aligned_alloc(64, MEMORY_BYTES);
    memset(m, 0, MEMORY_BYTES);
    CHECK_EQ(cl_core_run(m, 0, 1, in, 80, out, 480), CL_BAD_STATE);
    CHECK_EQ(cl_core_need(program, n, &need), CL_OK);
    CHECK_EQ(cl_core_need(program, n - 1, &need), CL_BAD_LENGTH);
    CHECK_EQ(cl_core_open(m + 8, need, program, n, constants, store, 0),
             CL_BAD_ARGUMENT);
    CHECK_EQ(cl_core_open(m, need - 1, program, n, constants, store, 0),
             CL_SHORT_MEMORY);
    CHECK_EQ(cl_core_open(m, 100, program, n, constants, store, 0),
             CL_SHORT_MEMORY);
    CHECK_EQ(cl_core_open(m, need, program, n, constants, store - 1, 0),
             CL_BAD_CONSTANTS);
    CHECK_EQ(cl_core_open(m, need, program, n, constants, store, 0), CL_OK);
    CHECK_EQ(cl_core_run(m, 2, 1, in, 80, out, 480), CL_BAD_ARGUMENT);
    CHECK_EQ(cl_core_run(m, 0, 0, in, 0, out, 0), CL_BAD_ARGUMENT);
    CHECK_EQ(cl_core_run(m, 0, 1, in, 79, out, 480), CL_BAD_ARGUMENT);
    CHECK_EQ(cl_core_run(m, 0, 1, in, 80, out, 481), CL_BAD_ARGUMENT);
    for (int32_t status = -1; status < 0x60; status++) {
        CHECK(cl_core_status_text(status)[0] != 0);
    }
    free(m);
}

int main(int argc, char **argv)
{
    uint32_t seed = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 20260802;
    printf("seed %u\n", seed);
    for (int i = 0; i < 1500; i++) {
        test_conv_int8(&seed, 1);
        test_conv_int8(&seed, 2);
        test_conv_float32(&seed);
    }
    test_conv_hostile_bias();
    test_max_pool();
    test_avg_pool();
    test_adaptive_avg_pool();
    test_add_rounds_to_even();
    test_affine_permute_copy();
    test_softmax();
    test_resume_gives_the_same();
    test_start_forgets_a_group();
    test_interface_refuses();
    return 0;
}
