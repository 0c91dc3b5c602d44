/* SPDX-License-Identifier: Apache-2.0
 *
 * A heap in one region of memory that is kept from being swapped, dumped and,
 * where the kernel can, from being read by anybody but this process.
 */
#ifndef CL_HEAP_H
#define CL_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cl_heap {
    uint8_t *start;
    void *first_free; /* no block before this one is free */
    size_t n_bytes;
    size_t live_bytes; /* with the heap's own overhead */
    size_t peak_bytes;
    bool locked;
    bool hidden;
} cl_heap;

/* Map the region. Returns: false if there is no memory for it. */
bool cl_heap_open(cl_heap *heap, size_t n_bytes);

/* Returns: n_bytes aligned to 16, or null if they do not fit. */
void *cl_heap_get(cl_heap *heap, size_t n_bytes);

/* Give back, wiping. In: at: from cl_heap_get, or null. */
void cl_heap_put(cl_heap *heap, void *at);

/* Returns: usable bytes of what cl_heap_get gave. */
size_t cl_heap_size(const void *at);

#endif
