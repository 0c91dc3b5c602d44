/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast int8 convs are with each kernel of this machine, measured in turns:
 * medians. bench_conv [KERNEL] measures one.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

typedef struct bench {
    cl_op op;
    cl_slice slice;
    uint8_t *data;
    uint8_t *arena;
} bench;

static void *aligned(uint64_t n)
{
    uint8_t *p = aligned_alloc(64, (n + 63) / 64 * 64);
    for (uint64_t i = 0; p != NULL && i < n; i++) {
        p[i] = (uint8_t)(i * 7 % 251);
    }
    return p;
}

static bench prepare(const layer *l)
{
    uint32_t in_side = l->side * l->stride, in_bytes, out_bytes;
    bench b = {.slice = {0, l->units, 0, 0, 0}};
    in_bytes = (in_side * in_side * l->c + 63) / 64 * 64;
    out_bytes = (l->side * l->side * l->units + 63) / 64 * 64;
    b.op = (cl_op){
        .code = CL_OP_CONV,
        .in = {0, CL_INT8, in_side, in_side, l->c, 3},
        .out = {in_bytes, CL_INT8, l->side, l->side, l->units, -7},
        .window = {l->k, l->k, l->stride, l->stride, l->k / 2, l->k / 2, 1, 1},
        .groups = l->groups,
        .scratch = in_bytes + out_bytes,
        .lo = -121,
        .hi = 134,
        .zero = -7,
    };
    b.arena = aligned(b.op.scratch + cl_strip_of(&b.op).bytes);
    b.data = aligned(cl_packed_units(&b.op, 0, l->units) *
                     (cl_packed_taps(&b.op) + 12));
    return b;
}

static double measure(bench *b, const cl_kernel *kernel, int repeats)
{
    double start = seconds();
    for (int i = 0; i < repeats; i++) {
        cl_conv_int8(&b->op, &b->slice, b->data, b->arena, kernel);
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

static uint32_t find_kernels(const cl_kernel **kernels, const char *name)
{
    uint32_t n = 0;
    bool amx = cl_amx_permit();
    const cl_kernel *kernel;
    for (uint32_t i = 0; (kernel = cl_kernel_at(i, amx)) != 0; i++) {
        if (n < MOST_KERNELS &&
            (name == NULL || strcmp(name, kernel->name) == 0)) {
            kernels[n++] = kernel;
        }
    }
    return n;
}

static void report(const layer *l, const cl_kernel **kernels, uint32_t n)
{
    double times[MOST_KERNELS][ROUNDS];
    bench b = prepare(l);
    double products = (double)l->side * l->side * l->units *
                      (double)cl_conv_taps(&b.op);
    int repeats = 1 + (int)(2e6 / products);
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < n; i++) {
            times[i][round] = measure(&b, kernels[i], repeats);
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
    const cl_kernel *kernels[MOST_KERNELS];
    uint32_t n = find_kernels(kernels, argc > 1 ? argv[1] : NULL);
    printf("%-20s", "us, GMAC/s");
    for (uint32_t i = 0; i < n; i++) {
        printf(" %18s", kernels[i]->name);
    }
    printf("\n");
    for (uint32_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        report(&layers[i], kernels, n);
    }
    return n == 0;
}
