/* SPDX-License-Identifier: Apache-2.0
 *
 * 64-bit Arm with SDOT: four taps of four units in one instruction.
 */
#include "int8.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include "int8_arm.h"

/* Sixteen taps of n positions times n_quads registers of units. */
CL_INLINE void add_16(int32x4_t (*sums)[CL_QUADS], const cl_tile *tile,
                      const int8_t *w, uint64_t x_at, uint32_t n,
                      uint32_t n_quads)
{
    uint64_t step = 4 * (uint64_t)tile->width;
    int8x16_t x[CL_TILE_ROWS];
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        x[i] = vld1q_s8((const int8_t *)tile->x[i] + x_at);
    }
    CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
        int8x16_t w0 = vld1q_s8(w + 16 * q);
        int8x16_t w1 = vld1q_s8(w + step + 16 * q);
        int8x16_t w2 = vld1q_s8(w + 2 * step + 16 * q);
        int8x16_t w3 = vld1q_s8(w + 3 * step + 16 * q);
        CL_UNROLL for (uint32_t i = 0; i < n; i++) {
            int32x4_t sum = sums[i][q];
            sum = vdotq_laneq_s32(sum, w0, x[i], 0);
            sum = vdotq_laneq_s32(sum, w1, x[i], 1);
            sum = vdotq_laneq_s32(sum, w2, x[i], 2);
            sums[i][q] = vdotq_laneq_s32(sum, w3, x[i], 3);
        }
    }
}

CL_INLINE void add_4(int32x4_t (*sums)[CL_QUADS], const cl_tile *tile,
                     const int8_t *w, uint64_t x_at, uint32_t n,
                     uint32_t n_quads)
{
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        const int8_t *at = (const int8_t *)tile->x[i] + x_at;
        int8x16_t x = vreinterpretq_s8_u32(
            vdupq_n_u32(cl_load_u32((const uint8_t *)at)));
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            sums[i][q] = vdotq_s32(sums[i][q], vld1q_s8(w + 16 * q), x);
        }
    }
}

CL_INLINE void add_taps(const cl_product *p, int32x4_t (*sums)[CL_QUADS],
                        const cl_tile *tile, const int8_t *w, uint32_t n,
                        uint32_t n_quads)
{
    uint64_t step = 4 * (uint64_t)tile->width;
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t at = r * p->run_step, end = at + p->run_bytes;
        for (; at + 16 <= end; at += 16, w += 4 * step) {
            add_16(sums, tile, w, at, n, n_quads);
        }
        for (; at < end; at += 4, w += step) {
            add_4(sums, tile, w, at, n, n_quads);
        }
    }
}

CL_INLINE void run(const cl_product *p, const cl_tile *tile, uint32_t n,
                   uint32_t first_quad, uint32_t n_quads)
{
    int32x4_t sums[CL_TILE_ROWS][CL_QUADS];
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            sums[i][q] = tile->start[first_quad + q];
        }
    }
    add_taps(p, sums, tile, tile->w + 16 * first_quad, n, n_quads);
    bool whole = n_quads == CL_QUADS && !p->to_float &&
                 p->n_units - tile->unit >= CL_BLOCK;
    CL_UNROLL for (uint32_t i = 0; i < n; i++) {
        if (whole) {
            cl_finish_16(p, tile->out[i], tile->unit, sums[i]);
            continue;
        }
        CL_UNROLL for (uint32_t q = 0; q < n_quads; q++) {
            cl_finish_4(p, tile->out[i], tile->unit + 4 * (first_quad + q),
                        sums[i][q]);
        }
    }
}

/* A function of its own: inlined, it would share its registers, and sums went
 * to memory. */
__attribute__((noinline)) static void run_whole(const cl_product *p,
                                                const cl_tile *tile)
{
    run(p, tile, CL_TILE_ROWS, 0, CL_QUADS);
}

CL_INLINE void run_tile(const cl_product *p, const cl_tile *tile, uint32_t n)
{
    if (tile->width == CL_BLOCK) {
        run(p, tile, n, 0, CL_QUADS);
        return;
    }
    for (uint32_t q = 0; q < tile->width / 4; q++) {
        run(p, tile, n, q, 1);
    }
}

void cl_dot_tile(const cl_product *p, const cl_tile *tile, uint32_t n)
{
    if (n < CL_TILE_ROWS) {
        run_tile(p, tile, 1);
    } else if (tile->width < CL_BLOCK) {
        run_tile(p, tile, CL_TILE_ROWS);
    } else {
        run_whole(p, tile);
    }
}

static void multiply(const cl_product *p)
{
    for (uint32_t unit = 0; unit < p->n_units; unit += CL_BLOCK) {
        cl_tile tile;
        cl_tile_start(p, &tile, unit);
        cl_each_tile(p, &tile, CL_TILE_ROWS, cl_dot_tile);
    }
}

const cl_kernel cl_kernel_dot = {
    .name = "dot",
    .multiply = multiply,
    .depthwise = cl_depthwise_neon,
};

#endif
