/* roundtrip.c: a message there and one back, flat out, two pinned processes: bench_roundtrip instance=NAME bytes=40 ... (bench.h)
 *
 * One message is in flight at a time, so nothing queues up and nothing is omitted: what is measured is the way itself. What a
 * stream of messages at a given rate feels is paced.c. */
#include "bench.h"

enum { SLOTS = 64, TRIPS_MAX = 4000000, SMALL = 4096 };

typedef struct ends {
    shmd_client *client;
    shmd_producer *out;
    shmd_consumer *in;
} ends_t;

typedef struct together {
    _Alignas(128) uint64_t ready;
    _Alignas(128) uint64_t over;
} together_t;

static ends_t attach(const bench_arguments_t *a, const char *in, const char *out, together_t *both)
{
    bench_arguments_t mine = *a;
    ends_t e = {.client = bench_connect(a->instance)};
    if (mine.slots == 0 && mine.bytes <= SMALL)
        mine.slots = SLOTS;
    e.in = bench_consumer(e.client, in, a, SHMD_DELIVERY_RELIABLE);
    (void)__atomic_add_fetch(&both->ready, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&both->ready, __ATOMIC_ACQUIRE) < 2) /* both consumers, before either producer */
        (void)sched_yield();
    e.out = bench_producer(e.client, out, &mine);
    return e;
}

static void detach(ends_t *e)
{
    (void)shmd_producer_close(e->out);
    (void)shmd_consumer_close(e->in);
    (void)shmd_disconnect(e->client);
}

static inline int wait_for(const bench_arguments_t *a, ends_t *e, shmd_message *m)
{
    int rc;
    while ((rc = shmd_poll(e->in, m)) == 0)
        if (a->wait != SHMD_WAIT_SPIN)
            bench_idle(e->in, a);
    if (rc < 0 && rc != SHMD_E_END)
        bench_fail("poll");
    return rc;
}

static void echo(const bench_arguments_t *a, together_t *both)
{
    ends_t e = attach(a, "there", "back", both);
    shmd_message m;
    while (wait_for(a, &e, &m) == 1) {
        bench_publish(e.out, m.data, m.length);
        (void)shmd_advance(e.in);
    }
    detach(&e);
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    together_t *both = bench_shared(sizeof *both);
    uint64_t *ns = bench_memory(TRIPS_MAX * sizeof *ns), n = 0, wrong = 0;
    unsigned char *payload = bench_memory(a.bytes);
    pid_t child = bench_fork(&a);
    if (child == 0) {
        echo(&a, both);
        _exit(0);
    }
    ends_t e = attach(&a, "back", "there", both);
    uint64_t warm_ns = bench_now_ns() + a.warm_ms * 1000000, end_ns = warm_ns + a.run_ms * 1000000, start_ns = 0;
    for (uint64_t i = 0; start_ns < end_ns && n < TRIPS_MAX; i++) {
        shmd_message m;
        uint64_t got;
        start_ns = bench_now_ns();
        memcpy(payload, &i, sizeof i);
        bench_publish(e.out, payload, a.bytes);
        if (wait_for(&a, &e, &m) != 1)
            bench_fail("the other end has gone");
        memcpy(&got, m.data, sizeof got);
        wrong += got != i || m.length != a.bytes;
        (void)shmd_advance(e.in);
        if (start_ns >= warm_ns)
            ns[n++] = bench_now_ns() - start_ns;
    }
    detach(&e);
    bench_join(child);
    bench_save(a.samples, ns, n);
    printf("{");
    bench_print_percentiles(ns, n);
    printf(", \"wrong\": %llu}\n", (unsigned long long)wrong);
    return wrong != 0;
}
