/* SPDX-License-Identifier: Apache-2.0
 *
 * Every int8 kernel of this machine against plain C, which test_machine
 * compares with the formulas of the specification: random shapes and extreme
 * values, with guard bytes around everything.
 */
#include "int8.h"
#include "kernels.h"
#include "trial.h"

enum { ROUNDS = 4000 };

/* A conv in an arena of its own, one slice of it. */
typedef struct trial {
    cl_op op;
    cl_slice slice;
    guarded arena, data;
} trial;

static int32_t draw_zero(uint32_t *seed)
{
    return (int32_t)PICK(seed, 0, (uint32_t)-128, 127, below(seed, 256) - 128);
}

static cl_op draw_op(uint32_t *seed)
{
    uint32_t groups = PICK(seed, 1, 1, 1, 1, 2, 3);
    uint32_t c = groups * PICK(seed, 1, 2, 3, 4, 7, 16, 17, 32, 48, 64, 80);
    uint32_t units = groups * (1 + below(seed, groups == 1 ? 90 : 20));
    bool depthwise = below(seed, 6) == 0;
    uint32_t dtype = below(seed, 4) == 0 ? CL_FLOAT32 : CL_INT8;
    cl_op op = {
        .code = CL_OP_CONV,
        .in = {0, CL_INT8, 1 + below(seed, 9), PICK(seed, 1, 2, 5, 8, 18, 35),
               c, draw_zero(seed)},
        .out = {0, dtype, 1 + below(seed, 9),
                PICK(seed, 1, 2, 4, 7, 8, 16, 17, 33), units, 0},
        .window = draw_window(seed),
        .groups = groups,
        .lo = -300,
        .hi = 1e9f,
    };
    if (depthwise) {
        op.groups = op.out.c = c;
    }
    if (dtype == CL_INT8) {
        op.out.zero = op.zero = draw_zero(seed);
        op.lo = (float)(-128 - op.zero);
        op.hi = (float)(100 - op.zero);
    }
    return op;
}

static void place(trial *t)
{
    cl_op *op = &t->op;
    op->out.offset = (uint32_t)cl_up(cl_tensor_bytes(&op->in), 16);
    op->scratch =
        op->out.offset + (uint32_t)cl_up(cl_tensor_bytes(&op->out), 16);
    uint64_t bytes = cl_is_depthwise(op) ? 0 : cl_strip_of(op).bytes;
    t->arena = guard(op->scratch + bytes);
}

/* Random, or all at one end. */
static void fill(uint32_t *seed, uint8_t *to, uint64_t n, int least)
{
    int how = (int)below(seed, 4);
    for (uint64_t i = 0; i < n; i++) {
        int value = (int)below(seed, (uint32_t)(128 - least)) + least;
        value = how == 0 ? least : how == 1 ? 127 : value;
        to[i] = (uint8_t)value;
    }
}

/* Weights, padding units included; multipliers and biases: such that sums
 * overflow and results are clamped, or neither. */
static void fill_slice(uint32_t *seed, trial *t)
{
    uint64_t n = cl_packed_units(&t->op, t->slice.first_unit, t->slice.n_units);
    uint64_t taps = cl_packed_taps(&t->op);
    t->data = guard(n * (taps + 12));
    fill(seed, t->data.bytes, n * taps, -127);
    uint8_t *numbers = t->data.bytes + n * taps;
    uint32_t shift = PICK(seed, 0, 15, 20);
    for (uint64_t u = 0; u < n; u++) {
        cl_store_f32(numbers + 4 * u, (float)(below(seed, 2000)) * 2e-6f);
        cl_store_u32(numbers + 4 * (n + u),
                     (uint32_t)(cl_as_i32(draw(seed)) >> shift));
    }
}

/* As the compiler does it: zeros behind each row of a window, and the sum of
 * each unit's weights. */
static void finish_slice(trial *t)
{
    const cl_op *op = &t->op;
    uint32_t size = op->out.c / op->groups, end;
    uint32_t last = t->slice.first_unit + t->slice.n_units;
    uint64_t n = cl_packed_units(op, t->slice.first_unit, t->slice.n_units);
    uint64_t taps = cl_packed_taps(op), column = 0;
    uint64_t row = (uint64_t)op->window.kw * (op->in.c / op->groups);
    uint8_t *sums = t->data.bytes + n * taps + 8 * n;
    for (uint32_t u = t->slice.first_unit; u < last; u = end) {
        end = (u / size + 1) * size < last ? (u / size + 1) * size : last;
        uint32_t padded = (uint32_t)cl_up(end - u, 4);
        for (uint32_t i = 0; i < padded; i++) {
            uint32_t block = i / 16 * 16;
            uint32_t width = padded - block < 16 ? padded - block : 16;
            int8_t *w = (int8_t *)t->data.bytes + (column + block) * taps;
            int32_t sum = 0;
            for (uint64_t k = 0; k < taps; k++) {
                int8_t *at = w + k / 4 * 4 * width + (i - block) * 4 + k % 4;
                *at = k % cl_up(row, 4) < row ? *at : 0;
                sum += *at;
            }
            cl_store_u32(sums + 4 * (column + i), (uint32_t)sum);
        }
        column += padded;
    }
}

static trial draw_trial(uint32_t *seed)
{
    trial t = {.op = draw_op(seed)};
    t.slice.n_units = 1 + below(seed, t.op.out.c);
    t.slice.first_unit = below(seed, t.op.out.c - t.slice.n_units + 1);
    place(&t);
    fill_slice(seed, &t);
    if (!cl_is_depthwise(&t.op)) {
        finish_slice(&t);
    }
    return t;
}

static void run(const trial *t, const uint8_t *in, guarded *out,
                const cl_kernel *kernel)
{
    memset(t->arena.bytes, 0x5A, t->arena.n);
    memcpy(t->arena.bytes, in, cl_tensor_bytes(&t->op.in));
    uint8_t *at = t->arena.bytes + t->op.out.offset;
    cl_conv_int8(&t->op, &t->slice, t->data.bytes, t->arena.bytes, kernel,
                 false);
    memcpy(out->bytes, at, out->n);
    memset(at, 0x5A, out->n);
    cl_conv_int8(&t->op, &t->slice, t->data.bytes, t->arena.bytes, kernel,
                 true);
    CHECK(memcmp(out->bytes, at, out->n) == 0);
    check_guards(&t->arena);
    check_guards(&t->data);
}

static void check_trial(uint32_t *seed, uint32_t sets)
{
    trial t = draw_trial(seed);
    uint64_t n_in = cl_tensor_bytes(&t.op.in);
    guarded in = guard(n_in), expected = guard(cl_tensor_bytes(&t.op.out));
    guarded got = guard(expected.n);
    const cl_kernel *kernel;
    fill(seed, in.bytes, n_in, -128);
    run(&t, in.bytes, &expected, &cl_kernel_plain);
    for (uint32_t i = 0; (kernel = cl_kernel_at(i, sets)) != NULL; i++) {
        run(&t, in.bytes, &got, kernel);
        if (memcmp(got.bytes, expected.bytes, got.n) != 0) {
            printf("kernel %s: in %ux%ux%u, out %ux%ux%u, window %ux%u\n",
                   kernel->name, t.op.in.h, t.op.in.w, t.op.in.c, t.op.out.h,
                   t.op.out.w, t.op.out.c, t.op.window.kh, t.op.window.kw);
        }
        CHECK(memcmp(got.bytes, expected.bytes, got.n) == 0);
    }
    release(&in);
    release(&expected);
    release(&got);
    release(&t.arena);
    release(&t.data);
}

static void name_kernels(uint32_t sets)
{
    const cl_kernel *kernel;
    printf("kernels:");
    for (uint32_t i = 0; (kernel = cl_kernel_at(i, sets)) != NULL; i++) {
        printf(" %s", kernel->name);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    uint32_t seed = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 20261122;
    uint32_t rounds =
        argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : ROUNDS;
    uint32_t sets = cl_sets_permit();
    printf("seed %u\n", seed);
    name_kernels(sets);
    for (uint32_t i = 0; i < rounds; i++) {
        check_trial(&seed, sets);
    }
    return 0;
}
