/* floor.c: what this machine can do at best: two threads bounce one cache line; memcpy of 1 MiB. In one run with the rest,
 * before and after, because two virtual cores may be one physical core at one moment and not at the next. */
#include "bench.h"

#include <pthread.h>
#include <stdatomic.h>

enum { TRIPS = 100000, COPY_BYTES = 1 << 20, COPIES = 2000 };

static _Alignas(128) _Atomic uint64_t there;
static _Alignas(128) _Atomic uint64_t back;
static uint64_t trip_ns[TRIPS];

static void *echo(void *core)
{
    bench_pin(*(int *)core);
    for (uint64_t i = 1; i <= TRIPS; i++) {
        while (atomic_load_explicit(&there, memory_order_acquire) != i)
            ;
        atomic_store_explicit(&back, i, memory_order_release);
    }
    return NULL;
}

static double copy_gb_s(void)
{
    unsigned char *from = malloc(COPY_BYTES), *to = malloc(COPY_BYTES);
    if (from == NULL || to == NULL)
        exit(2);
    memset(from, 1, COPY_BYTES);
    memset(to, 2, COPY_BYTES);
    uint64_t start_ns = bench_now_ns();
    for (int i = 0; i < COPIES; i++) {
        memcpy(to, from, COPY_BYTES);
        __asm__ volatile("" : : "r"(to) : "memory");
    }
    double ns = (double)(bench_now_ns() - start_ns);
    free(from);
    free(to);
    return (double)COPIES * COPY_BYTES / ns;
}

int main(int argc, char **argv)
{
    int first = argc > 1 ? atoi(argv[1]) : 0, second = argc > 2 ? atoi(argv[2]) : 1;
    pthread_t thread;
    bench_pin(first);
    if (pthread_create(&thread, NULL, echo, &second) != 0)
        return 2;
    for (uint64_t i = 1; i <= TRIPS; i++) {
        uint64_t start_ns = bench_now_ns();
        atomic_store_explicit(&there, i, memory_order_release);
        while (atomic_load_explicit(&back, memory_order_acquire) != i)
            ;
        trip_ns[i - 1] = bench_now_ns() - start_ns;
    }
    (void)pthread_join(thread, NULL);
    printf("{");
    bench_print_trips(trip_ns, TRIPS);
    printf(", \"memcpy_gb_s\": %.3f}\n", copy_gb_s());
    return 0;
}
