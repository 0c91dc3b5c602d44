/* SPDX-License-Identifier: Apache-2.0
 *
 * Every float32 kernel of this machine against the formula of the
 * specification: random shapes and values, not-numbers and infinities among
 * them, with guard bytes around everything.
 */
#include <math.h>

#include "float32.h"
#include "kernels.h"
#include "trial.h"

enum { ROUNDS = 2000 };

/* A conv, one slice of it, and its weights [units][taps] as they are packed. */
typedef struct trial {
    cl_op op;
    cl_slice slice;
    uint32_t n_taps;
    float *weights;
    float *biases;
    guarded arena, data;
} trial;

static cl_op draw_op(uint32_t *seed)
{
    uint32_t groups = PICK(seed, 1, 1, 1, 1, 2, 3);
    uint32_t c = groups * PICK(seed, 1, 2, 3, 4, 7, 16, 17, 40);
    uint32_t units = groups * (1 + below(seed, groups == 1 ? 70 : 20));
    cl_op op = {
        .code = CL_OP_CONV,
        .in = {0, CL_FLOAT32, 1 + below(seed, 7), PICK(seed, 1, 2, 5, 8, 18), c,
               0},
        .out = {0, CL_FLOAT32, 1 + below(seed, 7),
                PICK(seed, 1, 2, 4, 7, 8, 16, 17), units, 0},
        .window = draw_window(seed),
        .groups = groups,
        .lo = below(seed, 2) == 0 ? 0.0f : -1e30f,
        .hi = below(seed, 2) == 0 ? 6.0f : INFINITY,
    };
    if (below(seed, 6) == 0) {
        op.in.c = op.groups = op.out.c = PICK(seed, 2, 3, 16, 17, 33, 64, 100);
    }
    if (below(seed, 3) == 0) {
        fit_output(&op);
    }
    return op;
}

/* Mostly of size 1, now and then what is none. */
static float draw_number(uint32_t *seed)
{
    static const float special[] = {0.0f,     -0.0f, 1e-40f, -1e-45f,
                                    INFINITY, NAN,   3e38f,  -3e38f};
    if (below(seed, 500) == 0) {
        return special[below(seed, 8)];
    }
    return (float)(int32_t)draw(seed) * 1e-9f;
}

static float *draw_numbers(uint32_t *seed, uint64_t n)
{
    float *numbers = malloc(4 * n);
    CHECK(numbers != NULL);
    for (uint64_t i = 0; i < n; i++) {
        numbers[i] = draw_number(seed);
    }
    return numbers;
}

/* Units up to the end of a block, from unit i of the slice on. */
static uint32_t block_width(const trial *t, uint32_t i)
{
    uint32_t size = t->op.out.c / t->op.groups, left = t->slice.n_units - i;
    uint32_t unit = t->slice.first_unit + i, most = size - unit % size;
    if (cl_is_depthwise(&t->op)) {
        return left;
    }
    most = most < 16 ? most : 16;
    return left < most ? left : most;
}

static void pack(trial *t)
{
    uint8_t *to = t->data.bytes;
    for (uint32_t i = 0, n; i < t->slice.n_units; i += n) {
        n = block_width(t, i);
        for (uint32_t k = 0; k < t->n_taps; k++) {
            for (uint32_t u = i; u < i + n; u++, to += 4) {
                cl_store_f32(to, t->weights[u * t->n_taps + k]);
            }
        }
    }
    memcpy(to, t->biases, 4 * t->slice.n_units);
}

static trial draw_trial(uint32_t *seed)
{
    trial t = {.op = draw_op(seed)};
    cl_op *op = &t.op;
    bool bare = cl_is_depthwise(op) || cl_reads_in_place(op);
    t.slice.n_units = 1 + below(seed, op->out.c);
    t.slice.first_unit = below(seed, op->out.c - t.slice.n_units + 1);
    t.n_taps = (uint32_t)cl_conv_taps(op);
    t.weights = draw_numbers(seed, (uint64_t)t.n_taps * t.slice.n_units);
    t.biases = draw_numbers(seed, t.slice.n_units);
    op->out.offset = (uint32_t)cl_up(cl_tensor_bytes(&op->in), 16);
    op->scratch =
        op->out.offset + (uint32_t)cl_up(cl_tensor_bytes(&op->out), 16);
    t.arena = guard(op->scratch + (bare ? 0 : cl_strip_of(op).bytes));
    t.data = guard(4 * (uint64_t)t.slice.n_units * (t.n_taps + 1));
    pack(&t);
    return t;
}

static void release_trial(trial *t)
{
    free(t->weights);
    free(t->biases);
    release(&t->arena);
    release(&t->data);
}

/* What tap k reads; null outside. */
static const float *tap(const cl_op *op, const float *in, uint32_t position,
                        uint32_t group, uint32_t k)
{
    const cl_window *w = &op->window;
    uint32_t n = op->in.c / op->groups;
    int64_t y = (int64_t)(position / op->out.w * w->sh + k / n / w->kw * w->dh);
    int64_t x = (int64_t)(position % op->out.w * w->sw + k / n % w->kw * w->dw);
    y -= w->pt, x -= w->pl;
    if (y < 0 || x < 0 || y >= op->in.h || x >= op->in.w) {
        return NULL;
    }
    return &in[(y * op->in.w + x) * op->in.c + group * n + k % n];
}

static float expected(const trial *t, const float *in, uint32_t position,
                      uint32_t i, bool fused)
{
    uint32_t unit = t->slice.first_unit + i;
    uint32_t group = unit / (t->op.out.c / t->op.groups);
    float sum = t->biases[i];
    for (uint32_t k = 0; k < t->n_taps; k++) {
        const float *from = tap(&t->op, in, position, group, k);
        float x = from != NULL ? *from : 0, w = t->weights[i * t->n_taps + k];
        float product = x * w;
        if (from == NULL && cl_is_depthwise(&t->op)) {
            continue;
        }
        sum = fused ? fmaf(x, w, sum) : sum + product;
    }
    return cl_clamp(sum, t->op.lo, t->op.hi);
}

/* The whole output tensor; units of other slices stay as they are. */
static void expect(const trial *t, const float *in, float *out, bool fused)
{
    uint32_t n_positions = t->op.out.h * t->op.out.w;
    for (uint32_t p = 0; p < n_positions; p++) {
        for (uint32_t i = 0; i < t->slice.n_units; i++) {
            out[p * t->op.out.c + t->slice.first_unit + i] =
                expected(t, in, p, i, fused);
        }
    }
}

static void check_kernel(const trial *t, const float *in, const float *wanted,
                         const cl_kernel_f32 *kernel)
{
    uint64_t n_out = cl_tensor_bytes(&t->op.out);
    uint8_t *got = t->arena.bytes + t->op.out.offset;
    memset(t->arena.bytes, 0x5A, t->arena.n);
    memcpy(t->arena.bytes, in, cl_tensor_bytes(&t->op.in));
    for (int further = 0; further < 2; further++) {
        memset(got, 0x5A, n_out);
        cl_conv_float32(&t->op, &t->slice, t->data.bytes, t->arena.bytes,
                        kernel, further);
        CHECK(further == 0 || memcmp(got, wanted, n_out) == 0);
    }
    check_guards(&t->arena);
    check_guards(&t->data);
    if (memcmp(t->arena.bytes + t->op.out.offset, wanted, n_out) != 0) {
        printf("kernel %s: in %ux%ux%u, out %ux%ux%u, window %ux%u, groups "
               "%u\n",
               kernel->name, t->op.in.h, t->op.in.w, t->op.in.c, t->op.out.h,
               t->op.out.w, t->op.out.c, t->op.window.kh, t->op.window.kw,
               t->op.groups);
    }
    CHECK(memcmp(t->arena.bytes + t->op.out.offset, wanted, n_out) == 0);
}

static void check_trial(uint32_t *seed)
{
    trial t = draw_trial(seed);
    uint64_t n_in = cl_tensor_bytes(&t.op.in) / 4;
    uint64_t n_out = cl_tensor_bytes(&t.op.out);
    float *in = draw_numbers(seed, n_in), *out[2];
    for (int fused = 0; fused < 2; fused++) {
        out[fused] = malloc(n_out);
        CHECK(out[fused] != NULL);
        memset(out[fused], 0x5A, n_out);
        expect(&t, in, out[fused], fused);
    }
    const cl_kernel_f32 *kernel;
    for (uint32_t i = 0; (kernel = cl_kernel_f32_at(i, CL_ALL_SETS)) != NULL; i++) {
        check_kernel(&t, in, out[kernel->fused], kernel);
    }
    release_trial(&t);
    free(in);
    free(out[0]);
    free(out[1]);
}

static void name_kernels(void)
{
    const cl_kernel_f32 *kernel;
    printf("kernels:");
    for (uint32_t i = 0; (kernel = cl_kernel_f32_at(i, CL_ALL_SETS)) != NULL; i++) {
        printf(" %s%s", kernel->name, kernel->fused ? "" : " (not fused)");
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    uint32_t seed = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 20261122;
    uint32_t rounds =
        argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : ROUNDS;
    printf("seed %u\n", seed);
    name_kernels();
    for (uint32_t i = 0; i < rounds; i++) {
        check_trial(&seed);
    }
    return 0;
}
