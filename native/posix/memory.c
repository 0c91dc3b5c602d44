/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory functions of the API.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gp.h"

cl_heap cl_ta_heap;

void *TEE_Malloc(size_t size, uint32_t hint)
{
    void *at = hint == TEE_MALLOC_FILL_ZERO ? cl_heap_get(&cl_ta_heap, size)
                                            : NULL;
    if (at != NULL) {
        memset(at, 0, size);
    }
    return at;
}

void TEE_Free(void *buffer)
{
    cl_heap_put(&cl_ta_heap, buffer);
}

void TEE_MemMove(void *dest, const void *src, size_t size)
{
    if (size != 0) {
        memmove(dest, src, size);
    }
}

int32_t TEE_MemCompare(const void *buffer1, const void *buffer2, size_t size)
{
    const volatile uint8_t *a = buffer1, *b = buffer2;
    uint8_t different = 0;
    for (size_t i = 0; i < size; i++) {
        different |= a[i] ^ b[i];
    }
    return different; /* in constant time; the order is of no use here */
}

void TEE_MemFill(void *buffer, uint8_t x, size_t size)
{
    if (size != 0) {
        memset(buffer, x, size);
        /* The compiler must believe that somebody looks. */
        __asm__ volatile("" : : "r"(buffer) : "memory");
    }
}

void TEE_Panic(TEE_Result panicCode)
{
    (void)dprintf(STDERR_FILENO, "cloister-enclave: panic 0x%08x\n",
                  (unsigned)panicCode);
    _exit(3);
}
