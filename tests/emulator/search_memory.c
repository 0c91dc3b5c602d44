/* SPDX-License-Identifier: Apache-2.0
 *
 * search-memory ADDRESS BYTES HEX: where physical memory holds these bytes, a
 * line for each place. As root; memory that Linux does not use for itself.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int main(int n, char **words)
{
    if (n != 4) {
        return 2;
    }
    unsigned long address = strtoul(words[1], NULL, 0);
    size_t n_bytes = strtoul(words[2], NULL, 0), n_wanted = strlen(words[3]) / 2;
    uint8_t wanted[256];
    if (n_wanted == 0 || n_wanted > sizeof wanted) {
        return 2;
    }
    for (size_t i = 0; i < n_wanted; i++) {
        char digits[] = {words[3][2 * i], words[3][2 * i + 1], 0};
        wanted[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    int memory = open("/dev/mem", O_RDONLY | O_SYNC);
    const uint8_t *at = mmap(NULL, n_bytes, PROT_READ, MAP_SHARED, memory,
                             (off_t)address);
    uint8_t *copy = malloc(n_bytes);
    if (memory < 0 || at == MAP_FAILED || copy == NULL) {
        perror("search-memory");
        return 1;
    }
    /* Of device memory only aligned words may be read. */
    for (size_t i = 0; i < n_bytes / 8; i++) {
        ((uint64_t *)copy)[i] = ((const volatile uint64_t *)at)[i];
    }
    const uint8_t *found = copy, *end = copy + n_bytes;
    while ((found = memmem(found, (size_t)(end - found), wanted, n_wanted))) {
        printf("%#lx\n", address + (unsigned long)(found - copy));
        found++;
    }
    return 0;
}
