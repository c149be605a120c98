/* paced.c: latency of a stream at a fixed rate, one way, two pinned processes: bench_paced instance=NAME rate=100000 ... (bench.h)
 *
 * Message i is due at start + i / rate, whatever happened before, and carries that time: its latency counts from when it was
 * due to when the consumer has it. A producer or consumer that was held up is late for every message that was due meanwhile,
 * and all of them show it: nothing is omitted (Tene, "How NOT to measure latency"). Both processes read CLOCK_MONOTONIC.
 *
 * rate=0 is silence: nothing is published in run_ms, and what counts is the processor time that the waiting consumer takes.
 */
#include "bench.h"

enum { SAMPLES_MAX = 4000000 };

typedef struct outcome {
    _Alignas(128) uint64_t ready;
    _Alignas(128) uint64_t from_ns; /* messages that were due before are warm-up */
    uint64_t last;                  /* messages; 0: not known yet */
    _Alignas(128) uint64_t samples;
    uint64_t wrong;
    uint64_t missed;
    uint64_t cpu_ns; /* of the consumer, in wall_ns */
    uint64_t wall_ns;
} outcome_t;

typedef struct due {
    uint64_t ns;
    uint64_t number;
} due_t;

static void run_producer(const bench_arguments_t *a, outcome_t *out, pid_t child)
{
    shmd_client *client = bench_connect(a->instance);
    shmd_producer *p = bench_producer(client, "paced", a);
    unsigned char *payload = bench_memory(a->bytes < sizeof(due_t) ? sizeof(due_t) : a->bytes);
    uint64_t start_ns = bench_now_ns() + 1000000, from_ns = start_ns + a->warm_ms * 1000000, end_ns = from_ns + a->run_ms * 1000000;
    double interval_ns = a->rate != 0 ? 1e9 / (double)a->rate : (double)(end_ns - start_ns);
    uint64_t due_count = 0;
    __atomic_store_n(&out->from_ns, from_ns, __ATOMIC_RELEASE);
    for (uint64_t i = a->rate != 0 ? 0 : 1;; i++) {
        due_t due = {start_ns + (uint64_t)((double)i * interval_ns), a->rate != 0 ? i : 0};
        if (due.ns >= end_ns && a->rate != 0)
            break;
        while (bench_now_ns() < due.ns) {
            struct timespec nap = {.tv_nsec = 1000000};
            if (a->rate == 0)
                (void)nanosleep(&nap, NULL);
            else
                shmd_pause();
        }
        memcpy(payload, &due, sizeof due);
        bench_publish(p, payload, a->bytes);
        due_count++;
        if (a->rate == 0)
            break;
    }
    __atomic_store_n(&out->last, a->rate != 0 ? due_count : 1, __ATOMIC_RELEASE);
    bench_join(child); /* an ungated reader needs the epoch until it has seen the last message */
    if (shmd_producer_close(p) != 0)
        bench_fail("close producer");
    (void)shmd_disconnect(client);
    free(payload);
}

static void run_consumer(const bench_arguments_t *a, outcome_t *out)
{
    shmd_client *client = bench_connect(a->instance);
    for (uint64_t k = 0; k < a->stalled; k++)
        (void)bench_consumer(client, "paced", a, SHMD_DELIVERY_LOSSY);
    shmd_consumer *c = bench_consumer(client, "paced", a, a->delivery);
    uint64_t *ns = bench_memory(SAMPLES_MAX * sizeof *ns), n = 0, next = 0, from_ns = 0, cpu_ns = 0, wall_ns = 0;
    __atomic_store_n(&out->ready, 1, __ATOMIC_RELEASE);
    for (;;) {
        shmd_message m;
        int rc = shmd_poll(c, &m);
        if (rc == 1) {
            due_t due;
            uint64_t now_ns = bench_now_ns();
            memcpy(&due, m.data, sizeof due);
            out->wrong += a->delivery == SHMD_DELIVERY_RELIABLE ? due.number != next : due.number < next;
            out->missed += due.number - next;
            next = due.number + 1;
            (void)shmd_advance(c);
            from_ns = from_ns != 0 ? from_ns : __atomic_load_n(&out->from_ns, __ATOMIC_ACQUIRE);
            if (due.ns >= from_ns && n < SAMPLES_MAX)
                ns[n++] = now_ns - due.ns;
            continue;
        }
        if (rc < 0 && rc != SHMD_E_END)
            bench_fail("poll");
        uint64_t last = __atomic_load_n(&out->last, __ATOMIC_ACQUIRE);
        if (rc == SHMD_E_END || (last != 0 && next >= last))
            break;
        if (cpu_ns == 0 && (from_ns = __atomic_load_n(&out->from_ns, __ATOMIC_ACQUIRE)) != 0) {
            cpu_ns = bench_cpu_ns();
            wall_ns = bench_now_ns();
        }
        bench_idle(c, a);
    }
    out->cpu_ns = bench_cpu_ns() - cpu_ns;
    out->wall_ns = bench_now_ns() - wall_ns;
    bench_save(a->samples, ns, n);
    bench_print_percentiles(ns, n);
    (void)fflush(stdout);
    (void)shmd_disconnect(client);
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    if (a.rate * (a.run_ms + 1) / 1000 > SAMPLES_MAX || a.bytes < sizeof(due_t)) {
        fprintf(stderr, "at most %d messages, of at least %d bytes\n", SAMPLES_MAX, (int)sizeof(due_t));
        return 2;
    }
    outcome_t *out = bench_shared(sizeof *out);
    printf("{");
    (void)fflush(stdout);
    pid_t child = bench_fork(&a);
    if (child == 0) {
        run_consumer(&a, out);
        _exit(0);
    }
    bench_await(&out->ready, child);
    run_producer(&a, out, child);
    printf(", \"cpu_share\": %.6f, \"missed\": %llu, \"wrong\": %llu}\n",
           (double)out->cpu_ns / (double)(out->wall_ns != 0 ? out->wall_ns : 1), (unsigned long long)out->missed,
           (unsigned long long)out->wrong);
    return out->wrong != 0;
}
