/* bench.h: what the native benchmarks share: cores, clock, percentiles, two processes, one JSON line a run. */
#ifndef BENCH_H
#define BENCH_H

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static inline void bench_pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    (void)sched_setaffinity(0, sizeof set, &set);
}

static inline uint64_t bench_now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline int bench_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Sorts and prints the percentiles of n round trips as JSON fields. */
static inline void bench_print_trips(uint64_t *ns, uint64_t n)
{
    qsort(ns, n, sizeof *ns, bench_compare);
    printf("\"p50_ns\": %llu, \"p99_ns\": %llu, \"p999_ns\": %llu", (unsigned long long)ns[n / 2],
           (unsigned long long)ns[n - n / 100 - 1], (unsigned long long)ns[n - n / 1000 - 1]);
}

static inline void *bench_shared(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return p;
}

#endif
