/* SPDX-License-Identifier: Apache-2.0
 *
 * x86-64 with AMX: 16 positions times 16 units times up to 64 taps in one
 * instruction. Few positions are left to AVX-512.
 */
#include "int8.h"

#if defined(__x86_64__)

#include "int8_x86.h"

#define TARGET                                                             \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,amx-tile," \
                          "amx-int8")))
#define LEAST_CHUNK 32u
#define LEAST_ROWS 4u

/* How a product is cut: rows of positions into tiles as equal as can be, runs
 * into chunks. */
typedef struct cut {
    uint32_t n_tiles; /* in a row of positions */
    uint32_t n_rows;  /* positions in a tile */
    uint32_t chunk;   /* bytes of taps */
    uint32_t width;   /* units of a block, as they are stored */
} cut;

/* Tiles: 0-3 sums, 4-5 positions, 6-7 weights. */
TARGET static void configure(const cut *c)
{
    _Alignas(64) uint8_t palette[64] = {1};
    for (int i = 0; i < 8; i++) {
        bool taps = i == 4 || i == 5, weights = i > 5;
        palette[16 + 2 * i] = (uint8_t)(taps ? c->chunk : 4 * c->width);
        palette[48 + i] =
            (uint8_t)(weights ? c->chunk / 4 : c->n_rows);
    }
    _tile_loadconfig(palette);
}

/* The largest chunk that divides the runs. */
static uint32_t chunk_of(uint32_t run_bytes)
{
    for (uint32_t n = (run_bytes + 63) / 64; n <= run_bytes / LEAST_CHUNK;
         n++) {
        if (run_bytes % n == 0 && run_bytes / n % 4 == 0) {
            return run_bytes / n;
        }
    }
    return 0;
}

static cut cut_of(const cl_product *p)
{
    uint32_t n_tiles = (p->n_cols + 15) / 16;
    return (cut){
        .n_tiles = n_tiles,
        .n_rows = (p->n_cols + n_tiles - 1) / n_tiles,
        .chunk = chunk_of(p->run_bytes),
        .width = p->n_units < CL_BLOCK ? cl_block_width(p, 0) : CL_BLOCK,
    };
}

/* The last tile of a row begins earlier, so that it ends with the row. */
static uint32_t tile_col(const cl_product *p, const cut *c, uint32_t tile)
{
    uint32_t col = tile * c->n_rows, last = p->n_cols - c->n_rows;
    return col < last ? col : last;
}

/* Sums of two tiles of positions, at x0 and x1, times two blocks. `pair` and
 * `wide` say whether there is a second one; they are constants. */
TARGET CL_INLINE void add_taps(const cl_product *p, const cut *c,
                               const uint8_t *x0, const uint8_t *x1,
                               const int8_t *w, bool pair, bool wide)
{
    uint64_t block = CL_BLOCK * cl_product_taps(p);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (uint32_t r = 0; r < p->n_runs; r++) {
        uint64_t from = r * p->run_step;
        for (uint32_t k = 0; k < p->run_bytes; k += c->chunk) {
            _tile_loadd(6, w, 4 * c->width);
            _tile_loadd(4, x0 + from + k, p->col_step);
            _tile_dpbusd(0, 4, 6);
            if (wide) {
                _tile_loadd(7, w + block, 4 * c->width);
                _tile_dpbusd(1, 4, 7);
            }
            if (pair) {
                _tile_loadd(5, x1 + from + k, p->col_step);
                _tile_dpbusd(2, 5, 6);
            }
            if (pair && wide) {
                _tile_dpbusd(3, 5, 7);
            }
            w += c->width * c->chunk;
        }
    }
}

/* Results of a tile of sums. */
TARGET CL_INLINE void finish(const cl_product *p, const cut *c,
                             const int32_t *sums, uint32_t unit, uint32_t row,
                             uint32_t col)
{
    const cl_scale scale = cl_scale_16(p, unit);
    const __m512i start = cl_start_16(p, unit);
    uint64_t next = cl_out_at(p, row, col), step = p->out_step;
    uint32_t n = c->n_rows;
    bool joined = p->wrap != p->n_cols;
    for (uint32_t i = 0; i < n; i++, next += step) {
        uint64_t at = joined ? cl_out_at(p, row, col + i) : next;
        if (at != CL_MAX_U64) {
            __m512i sum = _mm512_loadu_si512(sums + CL_BLOCK * i);
            cl_finish_512(&scale, at, _mm512_add_epi32(sum, start));
        }
    }
}

TARGET CL_INLINE void run(const cl_product *p, const cut *c, uint32_t unit,
                          const uint32_t *rows, const uint32_t *cols,
                          bool pair, bool wide)
{
    _Alignas(64) int32_t sums[16 * CL_BLOCK];
    uint32_t other = pair ? 1 : 0;
    add_taps(p, c, cl_taps_at(p, rows[0], cols[0]),
             cl_taps_at(p, rows[other], cols[other]), cl_block(p, unit), pair,
             wide);
    _tile_stored(0, sums, 64);
    finish(p, c, sums, unit, rows[0], cols[0]);
    if (wide) {
        _tile_stored(1, sums, 64);
        finish(p, c, sums, unit + CL_BLOCK, rows[0], cols[0]);
    }
    if (pair) {
        _tile_stored(2, sums, 64);
        finish(p, c, sums, unit, rows[1], cols[1]);
    }
    if (pair && wide) {
        _tile_stored(3, sums, 64);
        finish(p, c, sums, unit + CL_BLOCK, rows[1], cols[1]);
    }
}

/* All tiles of positions, two by two. */
TARGET CL_INLINE void take_blocks(const cl_product *p, const cut *c,
                                  uint32_t unit, bool wide)
{
    uint32_t n = p->n_rows * c->n_tiles;
    uint32_t rows[2], cols[2];
    for (uint32_t i = 0; i < n; i += 2) {
        for (uint32_t j = 0; j < 2; j++) {
            rows[j] = (i + j) / c->n_tiles;
            cols[j] = tile_col(p, c, (i + j) % c->n_tiles);
        }
        if (i + 1 < n) {
            run(p, c, unit, rows, cols, true, wide);
        } else {
            run(p, c, unit, rows, cols, false, wide);
        }
    }
}

TARGET static void multiply(const cl_product *p)
{
    cut c = cut_of(p);
    uint32_t unit = 0;
    if (c.chunk != 0 && c.n_rows >= LEAST_ROWS) {
        configure(&c);
        for (; p->n_units - unit >= 2 * CL_BLOCK; unit += 2 * CL_BLOCK) {
            take_blocks(p, &c, unit, true);
        }
        for (; p->n_units - unit >= CL_BLOCK; unit += CL_BLOCK) {
            take_blocks(p, &c, unit, false);
        }
        if (unit < p->n_units) {
            c.width = cl_block_width(p, unit);
            configure(&c);
            take_blocks(p, &c, unit, false);
            unit = p->n_units;
        }
        _tile_release();
    }
    cl_avx512_units(p, unit);
}

const cl_kernel cl_kernel_amx = {
    .name = "amx",
    .multiply = multiply,
    .depthwise = cl_depthwise_avx512,
    .moved = true,
    .even = true,
};

#endif
