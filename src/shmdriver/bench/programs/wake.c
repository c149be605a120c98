/* wake.c: how long the kernel takes to wake a process from a futex: bench_wake rate=200 run_ms=500 ... (bench.h)
 *
 * The limit under the wake-up latencies. Two pinned processes: the first stores a number and the time at which that was due,
 * and wakes; the second sleeps on the number. No ring, no lease, nobody else to look after.
 */
#include "bench.h"

enum { NAP_NS = 100000000 };

typedef struct bell {
    _Alignas(128) uint32_t rung; /* futex */
    uint64_t due_ns;
    _Alignas(128) uint64_t ready;
    _Alignas(128) uint64_t last; /* 0: not known yet */
} bell_t;

static void listen(const bench_arguments_t *a, bell_t *bell)
{
    uint64_t *ns = bench_memory((a->rate * (a->warm_ms + a->run_ms) / 1000 + 2) * sizeof *ns), n = 0;
    uint32_t heard = 0;
    __atomic_store_n(&bell->ready, 1, __ATOMIC_RELEASE);
    for (;;) {
        uint32_t rung = shmd_futex_load(&bell->rung);
        if (rung != heard) {
            ns[n++] = bench_now_ns() - bell->due_ns;
            heard = rung;
        }
        if (heard == __atomic_load_n(&bell->last, __ATOMIC_ACQUIRE) && heard != 0)
            break;
        if (shmd_futex_load(&bell->rung) == heard)
            (void)shmd_futex_wait(&bell->rung, heard, NAP_NS);
    }
    uint64_t warm = a->rate * a->warm_ms / 1000;
    bench_save(a->samples, ns + (warm < n ? warm : 0), n - (warm < n ? warm : 0));
    bench_print_percentiles(ns + (warm < n ? warm : 0), n - (warm < n ? warm : 0));
    (void)fflush(stdout);
}

static void ring(const bench_arguments_t *a, bell_t *bell)
{
    uint64_t start_ns = bench_now_ns() + 1000000, count = a->rate * (a->warm_ms + a->run_ms) / 1000 + 1;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t due_ns = start_ns + i * 1000000000 / a->rate;
        while (bench_now_ns() < due_ns)
            shmd_pause();
        bell->due_ns = due_ns;
        if (i + 1 == count)
            __atomic_store_n(&bell->last, count, __ATOMIC_RELEASE);
        __atomic_store_n(&bell->rung, (uint32_t)(i + 1), __ATOMIC_RELEASE);
        shmd_futex_wake(&bell->rung);
    }
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    a.rate = a.rate != 0 ? a.rate : 200;
    bell_t *bell = bench_shared(sizeof *bell);
    printf("{");
    (void)fflush(stdout);
    pid_t child = bench_fork(&a);
    if (child == 0) {
        listen(&a, bell);
        _exit(0);
    }
    bench_await(&bell->ready, child);
    ring(&a, bell);
    bench_join(child);
    printf("}\n");
    return 0;
}
