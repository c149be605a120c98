/* floor.c: what this machine can do at best, measured in one run with the rest: two pinned threads bounce one cache line;
 * memcpy of 1 MiB; the clock. bench_floor first_core=0 second_core=1 run_ms=30 (bench.h) */
#include "bench.h"

#include <pthread.h>

enum { TRIPS_MAX = 200000, COPY_BYTES = 1 << 20, CLOCK_READS = 20000, CHUNK = 1024 };

static _Alignas(128) uint64_t there;
static _Alignas(128) uint64_t back;
static uint64_t trip_ns[TRIPS_MAX];

static void *echo(void *core)
{
    bench_pin(*(uint64_t *)core);
    for (uint64_t i = 1;; i++) {
        uint64_t seen;
        while ((seen = __atomic_load_n(&there, __ATOMIC_ACQUIRE)) != i && seen != UINT64_MAX)
            ;
        if (seen == UINT64_MAX)
            return NULL;
        __atomic_store_n(&back, i, __ATOMIC_RELEASE);
    }
}

static uint64_t bounce(uint64_t run_ns)
{
    uint64_t n = 0, begin_ns = bench_now_ns(), start_ns = begin_ns;
    for (; n < TRIPS_MAX && start_ns - begin_ns < run_ns; n++) {
        start_ns = bench_now_ns();
        __atomic_store_n(&there, n + 1, __ATOMIC_RELEASE);
        while (__atomic_load_n(&back, __ATOMIC_ACQUIRE) != n + 1)
            ;
        trip_ns[n] = bench_now_ns() - start_ns;
    }
    __atomic_store_n(&there, UINT64_MAX, __ATOMIC_RELEASE);
    return n;
}

static double copy_gb_s(uint64_t run_ns)
{
    unsigned char *from = bench_memory(COPY_BYTES), *to = bench_memory(COPY_BYTES);
    memset(from, 1, COPY_BYTES);
    memset(to, 2, COPY_BYTES);
    uint64_t begin_ns = bench_now_ns(), copies = 0, ns;
    do {
        memcpy(to, from, COPY_BYTES);
        __asm__ volatile("" : : "r"(to) : "memory");
        copies++;
        ns = bench_now_ns() - begin_ns;
    } while (ns < run_ns);
    free(from);
    free(to);
    return (double)copies * COPY_BYTES / (double)ns;
}

static double clock_ns(void)
{
    uint64_t begin_ns = bench_now_ns(), last_ns = begin_ns;
    for (int i = 0; i < CLOCK_READS; i++)
        last_ns = bench_now_ns();
    return (double)(last_ns - begin_ns) / CLOCK_READS;
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    pthread_t thread;
    bench_pin(a.first_core);
    if (pthread_create(&thread, NULL, echo, &a.second_core) != 0)
        return 2;
    uint64_t n = bounce(a.run_ms * 1000000);
    (void)pthread_join(thread, NULL);
    printf("{");
    bench_print_percentiles(trip_ns, n);
    printf(", \"memcpy_gb_s\": %.3f, \"clock_ns\": %.2f}\n", copy_gb_s(a.run_ms * 1000000), clock_ns());
    return 0;
}
