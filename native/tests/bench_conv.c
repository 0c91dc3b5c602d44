/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast a 3x3 conv of 64 to 64 channels on 32 x 32 positions is.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels.h"

enum { SIDE = 32, CHANNELS = 64, TAPS = 9 * CHANNELS, REPEATS = 40 };

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static cl_op make_op(uint32_t dtype, uint32_t side, uint32_t k)
{
    uint32_t size = SIDE * SIDE * CHANNELS * 4;
    return (cl_op){
        .code = CL_OP_CONV,
        .in = {0, dtype, side, side, CHANNELS, 0},
        .out = {size, dtype, side, side, CHANNELS, 0},
        .window = {k, k, 1, 1, k / 2, k / 2, 1, 1},
        .groups = 1,
        .scratch = 2 * size,
        .lo = -128,
        .hi = 127,
    };
}

static void measure(const char *name, uint32_t dtype, uint32_t side,
                    uint32_t k)
{
    size_t arena_bytes = 3u * SIDE * SIDE * CHANNELS * 4;
    uint8_t *arena = aligned_alloc(64, arena_bytes);
    uint8_t *data = calloc(1, 4 * CHANNELS * (TAPS + 2));
    cl_op op = make_op(dtype, side, k);
    cl_slice slice = {0, CHANNELS, 0, 0, 0};
    double best = 1e9;
    for (size_t i = 0; i < arena_bytes; i++) {
        arena[i] = dtype == CL_INT8 ? (uint8_t)(i * 7) : 0;
    }
    for (int i = 0; i < REPEATS; i++) {
        double start = seconds();
        if (dtype == CL_INT8) {
            cl_conv_int8(&op, &slice, data, arena);
        } else {
            cl_conv_float32(&op, &slice, data, arena);
        }
        double spent = seconds() - start;
        best = spent < best ? spent : best;
    }
    double products =
        (double)side * side * CHANNELS * (double)cl_conv_taps(&op);
    printf("%-22s %6.2f GMAC/s\n", name, products / best * 1e-9);
    free(arena);
    free(data);
}

int main(void)
{
    measure("int8 3x3 64-64 32x32", CL_INT8, SIDE, 3);
    measure("int8 1x1 64-64 32x32", CL_INT8, SIDE, 1);
    measure("int8 linear 64-64", CL_INT8, 1, 1);
    measure("float32 3x3 64-64 32x32", CL_FLOAT32, SIDE, 3);
    measure("float32 1x1 64-64 32x32", CL_FLOAT32, SIDE, 1);
    measure("float32 linear 64-64", CL_FLOAT32, 1, 1);
    return 0;
}
