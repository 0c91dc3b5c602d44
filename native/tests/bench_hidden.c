/* SPDX-License-Identifier: Apache-2.0
 *
 * What hidden memory costs a reader: memory by memfd_secret, where the local
 * enclave keeps weights, against memory that is not hidden, with small and
 * with large pages. All three are read in turns, as much as a model's weights:
 * bench_hidden [MIB]. Prints medians of the rounds' ratios, and quartiles.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 41 };

static void *map(int fd, int flags, size_t n_bytes)
{
    void *at = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) {
        perror("bench_hidden: mmap");
        exit(3);
    }
    return at;
}

static uint64_t *hidden(size_t n_bytes)
{
    int fd = (int)syscall(SYS_memfd_secret, 0);
    if (fd < 0 || ftruncate(fd, (off_t)n_bytes) != 0) {
        perror("bench_hidden: memfd_secret");
        exit(3);
    }
    return map(fd, MAP_SHARED, n_bytes);
}

static uint64_t *not_hidden(size_t n_bytes, int advice)
{
    void *at = map(-1, MAP_PRIVATE | MAP_ANONYMOUS, n_bytes);
    (void)madvise(at, n_bytes, advice);
    return at;
}

/* Seconds to read all of it. */
static double read_all(const uint64_t *words, size_t n)
{
    struct timespec start, end;
    uint64_t sum = 0;
    (void)clock_gettime(CLOCK_MONOTONIC, &start);
    for (size_t i = 0; i < n; i++) {
        sum += words[i];
    }
    __asm__ volatile("" : : "r"(sum));
    (void)clock_gettime(CLOCK_MONOTONIC, &end);
    return (double)(end.tv_sec - start.tv_sec) +
           1e-9 * (double)(end.tv_nsec - start.tv_nsec);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void tell(const char *what, double *ratios)
{
    qsort(ratios, ROUNDS, sizeof *ratios, compare);
    printf("hidden / %s: %.2f (%.2f to %.2f)\n", what, ratios[ROUNDS / 2],
           ratios[ROUNDS / 4], ratios[3 * ROUNDS / 4]);
}

int main(int argc, char **argv)
{
    size_t mebibytes = argc > 1 ? strtoul(argv[1], NULL, 10) : 58;
    size_t n_bytes = mebibytes << 20, n = n_bytes / sizeof(uint64_t);
    uint64_t *areas[] = {hidden(n_bytes), not_hidden(n_bytes, MADV_NOHUGEPAGE),
                         not_hidden(n_bytes, MADV_HUGEPAGE)};
    double small[ROUNDS], large[ROUNDS];
    for (uint32_t i = 0; i < 3; i++) {
        memset(areas[i], 1, n_bytes);
    }
    for (uint32_t round = 0; round < ROUNDS; round++) {
        double took[3];
        for (uint32_t i = 0; i < 3; i++) {
            took[i] = read_all(areas[i], n);
        }
        small[round] = took[0] / took[1];
        large[round] = took[0] / took[2];
    }
    printf("reading %zu MiB, %d rounds\n", mebibytes, (int)ROUNDS);
    tell("not hidden, small pages", small);
    tell("not hidden, large pages", large);
    return 0;
}
