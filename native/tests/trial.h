/* SPDX-License-Identifier: Apache-2.0
 *
 * For tests of kernels: memory between guards, and shapes of convs.
 */
#ifndef CL_TRIAL_H
#define CL_TRIAL_H

#include "program.h"
#include "test.h"

enum { GUARD = 256 };

/* Memory between guards; its start is aligned to 64. */
typedef struct guarded {
    uint8_t *bytes;
    uint64_t n;
} guarded;

static inline guarded guard(uint64_t n)
{
    uint8_t *all = aligned_alloc(64, (n + 2 * GUARD + 63) / 64 * 64);
    CHECK(all != NULL);
    memset(all, 0xA5, n + 2 * GUARD);
    return (guarded){all + GUARD, n};
}

static inline void check_guards(const guarded *g)
{
    for (int i = 1; i <= GUARD; i++) {
        CHECK_EQ(g->bytes[-i], 0xA5);
        CHECK_EQ(g->bytes[g->n + (uint64_t)i - 1], 0xA5);
    }
}

static inline void release(guarded *g)
{
    free(g->bytes - GUARD);
}

static inline uint32_t pick(uint32_t *seed, const uint32_t *from, uint32_t n)
{
    return from[below(seed, n)];
}

#define PICK(seed, ...)                              \
    pick(seed, (const uint32_t[]){__VA_ARGS__},      \
         sizeof((const uint32_t[]){__VA_ARGS__}) / 4)

static inline cl_window draw_window(uint32_t *seed)
{
    return (cl_window){
        .kh = PICK(seed, 1, 1, 2, 3, 3, 5),
        .kw = PICK(seed, 1, 1, 2, 3, 3, 5),
        .sh = PICK(seed, 1, 1, 1, 2, 3),
        .sw = PICK(seed, 1, 1, 1, 2, 3),
        .pt = below(seed, 3),
        .pl = below(seed, 3),
        .dh = PICK(seed, 1, 1, 1, 2),
        .dw = PICK(seed, 1, 1, 1, 2),
    };
}

/* An output of the size that leaves no tap outside the input, if there is one. */
static inline void fit_output(cl_op *op)
{
    cl_window *w = &op->window;
    uint32_t high = (w->kh - 1) * w->dh, wide = (w->kw - 1) * w->dw;
    if (high < op->in.h && wide < op->in.w) {
        w->pt = w->pl = 0;
        op->out.h = (op->in.h - high - 1) / w->sh + 1;
        op->out.w = (op->in.w - wide - 1) / w->sw + 1;
    }
}

#endif
