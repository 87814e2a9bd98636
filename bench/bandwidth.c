/*
 * What one machine's memory gives: threads read disjoint parts of a buffer that no cache holds. Usage: bandwidth [THREADS [MIB]]. Prints GB/s of each of seven
 * passes and their median.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/clock.h"

enum { PASSES = 7 };

struct part {
    const uint8_t *data;
    size_t bytes;
    uint64_t sum;
    pthread_t thread;
};

/* Sums words so that every line must arrive; eight sums keep the adds from being the limit. */
__attribute__((target("avx2"))) static uint64_t read_avx2(const uint8_t *data, size_t bytes)
{
    typedef uint64_t vec __attribute__((vector_size(32), aligned(32)));
    vec s[8] = { { 0 } };
    const vec *v = (const vec *)(const void *)data;
    for (size_t i = 0; i + 8 <= bytes / sizeof(vec); i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += v[i + (size_t)k];
    uint64_t sum = 0;
    for (int k = 0; k < 8; k++)
        sum += s[k][0] + s[k][1] + s[k][2] + s[k][3];
    return sum;
}

static uint64_t read_plain(const uint8_t *data, size_t bytes)
{
    const uint64_t *v = (const uint64_t *)(const void *)data;
    uint64_t s[8] = { 0 }, sum = 0;
    for (size_t i = 0; i + 8 <= bytes / 8; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += v[i + (size_t)k];
    for (int k = 0; k < 8; k++)
        sum += s[k];
    return sum;
}

static void *read_part(void *arg)
{
    struct part *p = arg;
    p->sum = __builtin_cpu_supports("avx2") ? read_avx2(p->data, p->bytes) : read_plain(p->data, p->bytes);
    return NULL;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    const long n = argc > 1 ? strtol(argv[1], NULL, 10) : 2, mib = argc > 2 ? strtol(argv[2], NULL, 10) : 1024;
    if (n < 1 || n > 256 || mib < 1 || mib > 1 << 20) {
        fprintf(stderr, "usage: bandwidth [THREADS [MIB]]\n");
        return 2;
    }
    const size_t bytes = (size_t)mib << 20, share = bytes / (size_t)n / 4096 * 4096;
    uint8_t *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct part *parts = calloc((size_t)n, sizeof *parts);
    double rate[PASSES];
    if (data == MAP_FAILED || !parts)
        return 1;
    madvise(data, bytes, MADV_HUGEPAGE);
    memset(data, 1, bytes);
    for (int pass = 0; pass < PASSES; pass++) {
        const int64_t start = clock_ns();
        for (long i = 0; i < n; i++) {
            parts[i].data = data + (size_t)i * share;
            parts[i].bytes = share;
            if (pthread_create(&parts[i].thread, NULL, read_part, &parts[i]))
                return 1;
        }
        for (long i = 0; i < n; i++)
            pthread_join(parts[i].thread, NULL);
        rate[pass] = (double)share * (double)n / (double)(clock_ns() - start);
        printf("%.2f ", rate[pass]);
    }
    qsort(rate, PASSES, sizeof *rate, compare);
    printf("\nmedian %.2f GB/s, %ld threads, %ld MiB\n", rate[PASSES / 2], n, mib);
    free(parts);
    munmap(data, bytes);
    return 0;
}
