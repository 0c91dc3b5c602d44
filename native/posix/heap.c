/* SPDX-License-Identifier: Apache-2.0
 *
 * Blocks lie side by side, each with a header in front; adjacent free blocks
 * are joined while looking for room. The search starts at the first block that
 * may be free, so many small blocks one after the other cost little.
 */
#define _GNU_SOURCE
#include "heap.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ALIGN 16u

typedef struct block {
    size_t n_bytes; /* with this header */
    size_t used;
} block;

_Static_assert(sizeof(block) == ALIGN, "blocks keep the alignment");

/* ---- The region -------------------------------------------------------- */

static void *map_hidden(size_t n_bytes)
{
#ifdef SYS_memfd_secret
    int fd = (int)syscall(SYS_memfd_secret, 0);
    if (fd < 0) {
        return MAP_FAILED;
    }
    void *at = MAP_FAILED;
    if (ftruncate(fd, (off_t)n_bytes) == 0) {
        at = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    close(fd);
    return at;
#else
    (void)n_bytes;
    return MAP_FAILED;
#endif
}

bool cl_heap_open(cl_heap *heap, size_t n_bytes)
{
    *heap = (cl_heap){.n_bytes = n_bytes & ~(size_t)(ALIGN - 1)};
    void *at = map_hidden(n_bytes);
    heap->hidden = at != MAP_FAILED;
    if (!heap->hidden) {
        at = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    if (at == MAP_FAILED) {
        return false;
    }
    heap->locked =
        heap->hidden || mlock2(at, n_bytes, MLOCK_ONFAULT) == 0;
    (void)madvise(at, n_bytes, MADV_DONTDUMP);
    if (!heap->hidden) {
        /* Hidden memory has small pages only. */
        (void)madvise(at, n_bytes, MADV_HUGEPAGE);
    }
    heap->start = at;
    heap->first_free = at;
    *(block *)at = (block){heap->n_bytes, 0};
    return true;
}

/* ---- Blocks ------------------------------------------------------------ */

static block *next_of(const cl_heap *heap, block *b)
{
    uint8_t *next = (uint8_t *)b + b->n_bytes;
    return next < heap->start + heap->n_bytes ? (block *)(void *)next : NULL;
}

static void join_free(const cl_heap *heap, block *b)
{
    block *next = next_of(heap, b);
    while (next != NULL && !next->used) {
        b->n_bytes += next->n_bytes;
        next = next_of(heap, b);
    }
}

static void split(block *b, size_t n_bytes)
{
    if (b->n_bytes - n_bytes >= 2 * sizeof(block)) {
        block *rest = (block *)(void *)((uint8_t *)b + n_bytes);
        *rest = (block){b->n_bytes - n_bytes, 0};
        b->n_bytes = n_bytes;
    }
}

/* Returns: the first free block of at least `whole` bytes, or null. */
static block *find_free(cl_heap *heap, size_t whole)
{
    bool first = true;
    for (block *b = heap->first_free; b != NULL; b = next_of(heap, b)) {
        if (b->used) {
            continue;
        }
        if (first) {
            heap->first_free = b;
            first = false;
        }
        join_free(heap, b);
        if (b->n_bytes >= whole) {
            return b;
        }
    }
    return NULL;
}

void *cl_heap_get(cl_heap *heap, size_t n_bytes)
{
    if (heap->start == NULL || n_bytes > heap->n_bytes) {
        return NULL;
    }
    size_t whole =
        sizeof(block) + ((n_bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1));
    block *b = find_free(heap, whole);
    if (b == NULL) {
        return NULL;
    }
    split(b, whole);
    b->used = 1;
    heap->live_bytes += b->n_bytes;
    if (heap->live_bytes > heap->peak_bytes) {
        heap->peak_bytes = heap->live_bytes;
    }
    return b + 1;
}

size_t cl_heap_size(const void *at)
{
    return ((const block *)at - 1)->n_bytes - sizeof(block);
}

void cl_heap_put(cl_heap *heap, void *at)
{
    if (at != NULL) {
        block *b = (block *)at - 1;
        explicit_bzero(at, cl_heap_size(at));
        heap->live_bytes -= b->n_bytes;
        b->used = 0;
        if ((uint8_t *)b < (uint8_t *)heap->first_free) {
            heap->first_free = b;
        }
    }
}
