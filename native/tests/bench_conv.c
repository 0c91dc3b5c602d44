/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast convs are with each kernel of this machine, measured in turns:
 * medians. bench_conv int8|float32 [KERNEL] measures one.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "float32.h"
#include "int8.h"
#include "kernels.h"

enum { ROUNDS = 31, MOST_KERNELS = 8 };

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

typedef struct layer {
    const char *name;
    uint32_t side, c, units, k, stride, groups;
} layer;

static const layer layers[] = {
    {"3x3   3-64  32x32", 32, 3, 64, 3, 1, 1},
    {"3x3  64-64  32x32", 32, 64, 64, 3, 1, 1},
    {"3x3 128-128 16x16", 16, 128, 128, 3, 1, 1},
    {"3x3 256-256  8x8", 8, 256, 256, 3, 1, 1},
    {"3x3 512-512  4x4", 4, 512, 512, 3, 1, 1},
    {"3x3 512-512  2x2", 2, 512, 512, 3, 1, 1},
    {"3x3  16-16  32x32", 32, 16, 16, 3, 1, 1},
    {"3x3  32-32  16x16", 16, 32, 32, 3, 1, 1},
    {"3x3  64-64   8x8", 8, 64, 64, 3, 1, 1},
    {"3x3  16-32/2 16x16", 16, 16, 32, 3, 2, 1},
    {"1x1  96-24  56x56", 56, 96, 24, 1, 1, 1},
    {"depthwise 96 56x56", 56, 96, 96, 3, 1, 96},
    {"linear 512-512", 1, 512, 512, 1, 1, 1},
    {"linear 512-10", 1, 512, 10, 1, 1, 1},
};

/* A kernel of one of the two. */
typedef struct choice {
    const char *name;
    const cl_kernel *int8;
    const cl_kernel_f32 *float32;
} choice;

typedef struct bench {
    cl_op op;
    cl_slice slice;
    uint8_t *data;
    uint8_t *arena;
} bench;

/* Read as float32, it has no subnormal numbers, which are slow. */
static void *aligned(uint64_t n)
{
    uint8_t *p = aligned_alloc(64, (n + 63) / 64 * 64);
    for (uint64_t i = 0; p != NULL && i < n; i++) {
        p[i] = i % 4 == 3 ? 60 : (uint8_t)(i * 7 % 251);
    }
    return p;
}

static bench prepare(const layer *l, uint32_t dtype)
{
    uint32_t in_side = l->side * l->stride, in_bytes, out_bytes;
    uint32_t item = dtype == CL_FLOAT32 ? 4 : 1;
    bench b = {.slice = {0, l->units, 0, 0, 0}};
    in_bytes = (in_side * in_side * l->c * item + 63) / 64 * 64;
    out_bytes = (l->side * l->side * l->units * item + 63) / 64 * 64;
    b.op = (cl_op){
        .code = CL_OP_CONV,
        .in = {0, dtype, in_side, in_side, l->c, item == 1 ? 3 : 0},
        .out = {in_bytes, dtype, l->side, l->side, l->units, 0},
        .window = {l->k, l->k, l->stride, l->stride, l->k / 2, l->k / 2, 1, 1},
        .groups = l->groups,
        .scratch = in_bytes + out_bytes,
        .lo = -121,
        .hi = 134,
        .zero = item == 1 ? -7 : 0,
    };
    b.arena = aligned(b.op.scratch + cl_strip_of(&b.op).bytes);
    b.data = aligned(item == 1 ? cl_packed_units(&b.op, 0, l->units) *
                                     (cl_packed_taps(&b.op) + 12)
                               : 4 * l->units * (cl_conv_taps(&b.op) + 1));
    return b;
}

static double measure(bench *b, const choice *kernel, int repeats)
{
    double start = seconds();
    for (int i = 0; i < repeats; i++) {
        if (kernel->int8 != NULL) {
            cl_conv_int8(&b->op, &b->slice, b->data, b->arena, kernel->int8,
                         false);
        } else {
            cl_conv_float32(&b->op, &b->slice, b->data, b->arena,
                            kernel->float32, false);
        }
    }
    return (seconds() - start) / repeats;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times)
{
    qsort(times, ROUNDS, sizeof *times, compare);
    return times[ROUNDS / 2];
}

static choice choice_at(uint32_t dtype, uint32_t index, uint32_t sets)
{
    const cl_kernel *int8 = cl_kernel_at(index, sets);
    const cl_kernel_f32 *float32 = cl_kernel_f32_at(index, sets);
    if (dtype == CL_INT8) {
        return (choice){int8 != NULL ? int8->name : NULL, int8, NULL};
    }
    return (choice){float32 != NULL ? float32->name : NULL, NULL, float32};
}

static uint32_t find_kernels(choice *kernels, uint32_t dtype, const char *name)
{
    uint32_t n = 0;
    uint32_t sets = cl_sets_permit();
    choice kernel;
    for (uint32_t i = 0; (kernel = choice_at(dtype, i, sets)).name != NULL;
         i++) {
        if (n < MOST_KERNELS &&
            (name == NULL || strcmp(name, kernel.name) == 0)) {
            kernels[n++] = kernel;
        }
    }
    return n;
}

static void report(const layer *l, uint32_t dtype, const choice *kernels,
                   uint32_t n)
{
    double times[MOST_KERNELS][ROUNDS];
    bench b = prepare(l, dtype);
    double products = (double)l->side * l->side * l->units *
                      (double)cl_conv_taps(&b.op);
    int repeats = 1 + (int)(2e6 / products);
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < n; i++) {
            times[i][round] = measure(&b, &kernels[i], repeats);
        }
    }
    printf("%-20s", l->name);
    for (uint32_t i = 0; i < n; i++) {
        double time = median(times[i]);
        printf(" %8.1f us %6.1f", time * 1e6, products / time * 1e-9);
    }
    printf("\n");
    free(b.arena);
    free(b.data);
}

int main(int argc, char **argv)
{
    bool is_float = argc > 1 && strcmp(argv[1], "float32") == 0;
    uint32_t dtype = is_float ? CL_FLOAT32 : CL_INT8;
    choice kernels[MOST_KERNELS];
    uint32_t n = find_kernels(kernels, dtype, argc > 2 ? argv[2] : NULL);
    printf("%-20s", "us, GMAC/s");
    for (uint32_t i = 0; i < n; i++) {
        printf(" %18s", kernels[i].name);
    }
    printf("\n");
    for (uint32_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        report(&layers[i], dtype, kernels, n);
    }
    return n == 0;
}
