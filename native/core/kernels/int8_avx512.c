/* SPDX-License-Identifier: Apache-2.0
 *
 * x86-64 with AVX-512 VNNI: four taps of sixteen units, a whole block, in one
 * instruction.
 */
#include "int8.h"

#if defined(__x86_64__)

#include "int8_x86.h"

#define TARGET CL_AVX512_TARGET
#define MOST_BLOCKS 4u
#define MOST_ROWS 12u

/* Some positions in a row times some blocks; a last block may be narrow. */
typedef struct tile {
    const uint8_t *x;
    const int8_t *w;
    uint64_t block_bytes; /* from one block to the next */
    uint32_t width;       /* of the last block */
    uint32_t unit;
    uint32_t row, col;
} tile;

/* Adds up. In: n, n_blocks: constants. */
TARGET CL_INLINE void add_taps(const cl_product *p,
                               __m512i (*sums)[MOST_BLOCKS], const tile *t,
                               uint32_t n, uint32_t n_blocks)
{
    __mmask16 mask = (__mmask16)((1u << t->width) - 1);
    uint64_t step = p->col_step;
    const int8_t *w = t->w;
    for (uint32_t r = 0; r < p->n_runs; r++) {
        const uint8_t *x0 = t->x + r * p->run_step;
        const uint8_t *x4 = x0 + 4 * step, *x8 = x4 + 4 * step;
        for (uint32_t k = 0; k < p->run_bytes; k += 4) {
            __m512i v[MOST_BLOCKS];
            CL_UNROLL for (uint32_t b = 0; b < n_blocks; b++) {
                const int8_t *at = w + b * t->block_bytes;
                v[b] = b + 1 < n_blocks ? _mm512_loadu_si512(at)
                                        : _mm512_maskz_loadu_epi32(mask, at);
            }
            CL_UNROLL for (uint32_t i = 0; i < n; i++) {
                const uint8_t *at = (i < 4 ? x0 : i < 8 ? x4 : x8) + k;
                uint32_t four = cl_load_u32(at + i % 4 * step);
                __m512i x = _mm512_set1_epi32(cl_as_i32(four));
                CL_UNROLL for (uint32_t b = 0; b < n_blocks; b++) {
                    sums[i][b] = _mm512_dpbusd_epi32(sums[i][b], x, v[b]);
                }
            }
            w += 4 * t->width;
        }
    }
}

TARGET CL_INLINE void run(const cl_product *p, const tile *t, uint32_t n,
                          uint32_t n_blocks)
{
    __m512i sums[MOST_ROWS][MOST_BLOCKS];
    CL_UNROLL for (uint32_t b = 0; b < n_blocks; b++) {
        __m512i start = cl_start_16(p, t->unit + CL_BLOCK * b);
        CL_UNROLL for (uint32_t i = 0; i < n; i++) {
            sums[i][b] = start;
        }
    }
    add_taps(p, sums, t, n, n_blocks);
    CL_UNROLL for (uint32_t b = 0; b < n_blocks; b++) {
        cl_scale scale = cl_scale_16(p, t->unit + CL_BLOCK * b);
        CL_UNROLL for (uint32_t i = 0; i < n; i++) {
            uint64_t at = cl_out_at(p, t->row, t->col + i);
            if (at != CL_MAX_U64) {
                cl_finish_512(&scale, at, sums[i][b]);
            }
        }
    }
}

/* One row of positions, in tiles of a constant size as long as they fit. */
#define TAKE(size, n_blocks)                                              \
    for (; p->n_cols - t.col >= (size); t.col += (size)) {                \
        t.x = cl_taps_at(p, row, t.col);                                  \
        run(p, &t, size, n_blocks);                                       \
    }

TARGET static void take_4(const cl_product *p, tile t, uint32_t row)
{
    t.row = row;
    TAKE(6, 4)
    TAKE(4, 4)
    TAKE(2, 4)
    TAKE(1, 4)
}

TARGET static void take_2(const cl_product *p, tile t, uint32_t row)
{
    t.row = row;
    TAKE(12, 2)
    TAKE(4, 2)
    TAKE(1, 2)
}

TARGET static void take_1(const cl_product *p, tile t, uint32_t row)
{
    t.row = row;
    TAKE(12, 1)
    TAKE(4, 1)
    TAKE(1, 1)
}

/* All positions times n_blocks blocks. */
TARGET static void multiply_blocks(const cl_product *p, uint32_t unit,
                                   uint32_t n_blocks)
{
    tile t = {
        .w = cl_block(p, unit),
        .block_bytes = CL_BLOCK * cl_product_taps(p),
        .width = cl_block_width(p, unit + CL_BLOCK * (n_blocks - 1)),
        .unit = unit,
    };
    for (uint32_t row = 0; row < p->n_rows; row++) {
        if (n_blocks == 4) {
            take_4(p, t, row);
        } else if (n_blocks == 2) {
            take_2(p, t, row);
        } else {
            take_1(p, t, row);
        }
    }
}

void cl_avx512_units(const cl_product *p, uint32_t unit)
{
    uint32_t whole = p->n_units / CL_BLOCK * CL_BLOCK;
    for (; whole - unit >= 4 * CL_BLOCK && whole > unit; unit += 4 * CL_BLOCK) {
        multiply_blocks(p, unit, 4);
    }
    for (; whole - unit >= 2 * CL_BLOCK && whole > unit; unit += 2 * CL_BLOCK) {
        multiply_blocks(p, unit, 2);
    }
    for (; unit < p->n_units; unit += CL_BLOCK) {
        multiply_blocks(p, unit, 1);
    }
}

static void multiply(const cl_product *p)
{
    cl_avx512_units(p, 0);
}

const cl_kernel cl_kernel_avx512 = {
    .name = "avx512",
    .multiply = multiply,
    .depthwise = cl_depthwise_avx512,
    .moved = true,
    .even = true,
};

#endif
