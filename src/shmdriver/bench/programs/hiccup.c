/* hiccup.c: what two busy cores are held up without any stream: bench_hiccup rate=100000 run_ms=400 ... (bench.h)
 *
 * The limit under the paced latencies. Two pinned processes watch the clock as a paced producer and a spinning consumer do;
 * each notes how late it is for each moment at which a message would be due, and the later of the two counts: a message
 * needs both. Nothing is sent. What it shows are timer interrupts, the hypervisor and whoever else gets the core (Tene's
 * jHiccup measures the same of a Java process).
 */
#include "bench.h"

static uint64_t watch(const bench_arguments_t *a, uint64_t start_ns, uint64_t *ns)
{
    uint64_t from_ns = start_ns + a->warm_ms * 1000000, end_ns = from_ns + a->run_ms * 1000000, n = 0;
    double interval_ns = 1e9 / (double)a->rate;
    for (uint64_t i = 0;; i++) {
        uint64_t due_ns = start_ns + (uint64_t)((double)i * interval_ns), now_ns = bench_now_ns();
        if (due_ns >= end_ns)
            return n;
        for (; now_ns < due_ns; now_ns = bench_now_ns())
            shmd_pause();
        if (due_ns >= from_ns)
            ns[n++] = now_ns - due_ns;
    }
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    if (a.rate == 0)
        a.rate = 100000;
    uint64_t size = a.rate * a.run_ms / 1000 + 2, start_ns = bench_now_ns() + 5000000;
    uint64_t *ns = bench_shared(2 * size * sizeof *ns), *theirs = ns + size;
    memset(ns, 1, 2 * size * sizeof *ns); /* no page of it is touched for the first time while it counts */
    pid_t child = bench_fork(&a);
    uint64_t n = watch(&a, start_ns, child == 0 ? theirs : ns);
    if (child == 0)
        _exit(0);
    bench_join(child);
    for (uint64_t i = 0; i < n; i++)
        ns[i] = theirs[i] > ns[i] ? theirs[i] : ns[i];
    bench_save(a.samples, ns, n);
    printf("{");
    bench_print_percentiles(ns, n);
    printf("}\n");
    return 0;
}
