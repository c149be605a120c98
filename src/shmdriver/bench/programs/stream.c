/* stream.c: how much goes one way between two pinned processes: bench_stream instance=NAME mode=single ... (bench.h)
 *
 *     single   shmd_publish; shmd_poll, shmd_advance for each message
 *     batch    shmd_publish_records and shmd_poll_many, `batch` at a time
 *     claim    shmd_claim, a number written at both ends, shmd_commit; the reader looks at both ends
 *     copy     shmd_publish of the whole payload; the reader looks at both ends
 *
 * The producer publishes until the time is over, checks the clock every CHUNK messages, and says in shared memory where
 * the warm-up ended and what the last message is: both ends then measure the same part. Every message carries its number
 * and every reader checks each: all of them when it is reliable, increasing ones when it is not. Several consumers, or the
 * consumers of several streams, are polled in turn by one process, so that two cores show what they cost the producer.
 */
#include "bench.h"

#include <signal.h>

enum { CHUNK = 256, BURST = 64 };

typedef struct outcome {
    _Alignas(128) uint64_t ready;
    _Alignas(128) uint64_t from; /* messages of each stream that the warm-up took; 0: it is not over */
    uint64_t last;               /* messages of each stream; 0: not known yet */
    _Alignas(128) uint64_t ns;   /* the consumers' part */
    uint64_t received;
    uint64_t wrong;
    uint64_t missed;
} outcome_t;

typedef struct producing {
    const bench_arguments_t *a;
    shmd_producer *p[BENCH_STREAMS_MAX];
    unsigned char *payload;
    uint64_t sent; /* to each stream */
    uint64_t stalls;
} producing_t;

static void put_number(unsigned char *payload, uint64_t bytes, uint64_t number, int both_ends)
{
    memcpy(payload, &number, sizeof number);
    if (both_ends)
        memcpy(payload + bytes - sizeof number, &number, sizeof number);
}

static void produce_messages(producing_t *r, int both_ends)
{
    uint32_t bytes = (uint32_t)r->a->bytes;
    put_number(r->payload, bytes, r->sent, both_ends);
    for (uint64_t s = 0; s < r->a->streams; s++) {
        int rc = shmd_publish(r->p[s], r->payload, bytes, 1);
        if (__builtin_expect(rc == SHMD_BACK_PRESSURED, 0)) {
            r->stalls++;
            bench_publish(r->p[s], r->payload, bytes);
        } else if (rc != 0) {
            bench_fail("publish");
        }
    }
    r->sent++;
}

static void produce_batch(producing_t *r)
{
    uint64_t bytes = r->a->bytes, n = r->a->batch;
    for (uint64_t k = 0; k < n; k++)
        put_number(r->payload + k * bytes, bytes, r->sent + k, 0);
    for (uint64_t s = 0; s < r->a->streams; s++)
        if (shmd_publish_records(r->p[s], r->payload, (uint32_t)bytes, n, 10000000000u) != (int64_t)n)
            bench_fail("publish_records");
    r->sent += n;
}

static void produce_claim(producing_t *r)
{
    uint32_t bytes = (uint32_t)r->a->bytes;
    for (uint64_t s = 0; s < r->a->streams; s++) {
        void *place;
        int rc;
        while ((rc = shmd_claim(r->p[s], bytes, &place)) == SHMD_BACK_PRESSURED) {
            r->stalls++;
            shmd_pause();
        }
        if (rc != 0)
            bench_fail("claim");
        put_number(place, bytes, r->sent, 1);
        if (shmd_commit(r->p[s], bytes, 1) != 0)
            bench_fail("commit");
    }
    r->sent++;
}

static void produce_chunk(producing_t *r, char mode)
{
    uint64_t calls = r->a->bytes > 65536 ? 8 : mode == 'b' ? 16 * CHUNK : CHUNK;
    if (mode == 's')
        for (uint64_t i = 0; i < calls; i++)
            produce_messages(r, 0);
    else if (mode == 'b')
        for (uint64_t i = 0; i * r->a->batch < calls; i++)
            produce_batch(r);
    else if (mode == 'c')
        for (uint64_t i = 0; i < calls; i++)
            produce_claim(r);
    else
        for (uint64_t i = 0; i < calls; i++)
            produce_messages(r, 1);
}

static void run_producer(const bench_arguments_t *a, outcome_t *out, pid_t child)
{
    static producing_t r;
    char mode = strcmp(a->mode, "copy") == 0 ? 'w' : a->mode[0], name[32];
    shmd_client *client = bench_connect(a->instance);
    r.a = a;
    r.payload = bench_memory(a->bytes * (mode == 'b' ? a->batch : 1));
    for (uint64_t s = 0; s < a->streams; s++) {
        (void)snprintf(name, sizeof name, "bench-%llu", (unsigned long long)s);
        r.p[s] = bench_producer(client, name, a);
    }
    uint64_t warm_ns = bench_now_ns() + a->warm_ms * 1000000, end_ns = warm_ns + a->run_ms * 1000000, now_ns, begin_ns = 0;
    uint64_t from = 0;
    do {
        produce_chunk(&r, mode);
        now_ns = bench_now_ns();
        if (begin_ns == 0 && now_ns >= warm_ns) {
            begin_ns = now_ns;
            from = r.sent;
            r.stalls = 0;
            if (a->kill != 0 && kill((pid_t)a->kill, SIGKILL) != 0)
                bench_fail("kill");
            __atomic_store_n(&out->from, from, __ATOMIC_RELEASE);
        }
    } while (now_ns < end_ns || r.sent == from);
    __atomic_store_n(&out->last, r.sent, __ATOMIC_RELEASE);
    double ns = (double)(now_ns - begin_ns), n = (double)((r.sent - from) * a->streams);
    printf("{\"produced_s\": %.1f, \"produced_ns\": %.3f, \"produced\": %.0f, \"stalls\": %llu, ", n * 1e9 / ns, ns / n, n,
           (unsigned long long)r.stalls);
    bench_join(child); /* an ungated reader needs the epoch until it has seen the last message */
    for (uint64_t s = 0; s < a->streams && a->kill == 0; s++) /* there is nobody to detach from any more */
        if (shmd_producer_close(r.p[s]) != 0)
            bench_fail("close producer");
    (void)shmd_disconnect(client);
    free(r.payload);
}

typedef struct reading {
    const bench_arguments_t *a;
    outcome_t *out;
    shmd_consumer *c[BENCH_STREAMS_MAX];
    uint64_t next[BENCH_STREAMS_MAX]; /* the seq that each wants */
    uint64_t count;                   /* of readers */
    uint64_t received, wrong, missed;
    uint64_t begin_ns, begin_received, last;
    int both_ends;
} reading_t;

static inline void take(reading_t *r, uint64_t k, const shmd_message *m)
{
    uint64_t head, tail, expected = r->next[k];
    memcpy(&head, m->data, sizeof head);
    tail = head;
    if (r->both_ends)
        memcpy(&tail, (const unsigned char *)m->data + r->a->bytes - sizeof tail, sizeof tail);
    if (r->a->delivery == SHMD_DELIVERY_RELIABLE)
        r->wrong += head != expected;
    else
        r->wrong += head < expected;
    r->wrong += tail != head || m->seq != head || m->length != r->a->bytes;
    r->missed += head - expected;
    r->next[k] = head + 1;
    r->received++;
}

/* As take, for n of reader k: what it counts stays in registers meanwhile, as in the readers of peer.c. */
static inline void take_run(reading_t *r, uint64_t k, const shmd_message *m, uint64_t n)
{
    uint64_t wrong = 0, missed = 0, expected = r->next[k], bytes = r->a->bytes, gaps = r->a->delivery != SHMD_DELIVERY_RELIABLE;
    for (uint64_t i = 0; i < n; i++, m++) {
        uint64_t number;
        memcpy(&number, m->data, sizeof number);
        if (r->both_ends) {
            uint64_t tail;
            memcpy(&tail, (const unsigned char *)m->data + bytes - sizeof tail, sizeof tail);
            wrong += tail != number;
        }
        wrong += gaps ? number < expected : number != expected;
        wrong += m->seq != number || m->length != bytes;
        missed += number - expected;
        expected = number + 1;
    }
    r->wrong += wrong;
    r->missed += missed;
    r->next[k] = expected;
    r->received += n;
}

/* Whether everything was read; looks where the producer is. Called when there is nothing, and now and then. */
static inline int is_through(reading_t *r)
{
    if (r->begin_ns == 0 && __atomic_load_n(&r->out->from, __ATOMIC_ACQUIRE) != 0) {
        r->begin_ns = bench_now_ns();
        r->begin_received = r->received;
    }
    if (r->last == 0)
        r->last = __atomic_load_n(&r->out->last, __ATOMIC_ACQUIRE);
    if (r->last == 0)
        return 0;
    for (uint64_t k = 0; k < r->count; k++)
        if (r->next[k] < r->last)
            return 0;
    return 1;
}

static void consume_single(reading_t *r)
{
    shmd_consumer *c = r->c[0];
    for (;;) {
        shmd_message m;
        int rc;
        while ((rc = shmd_poll(c, &m)) == 0) {
            if (is_through(r))
                return;
            bench_idle(c, r->a);
        }
        if (rc < 0)
            bench_fail("poll");
        take(r, 0, &m);
        (void)shmd_advance(c);
        if (r->received % CHUNK == 0 && is_through(r))
            return;
    }
}

static void consume_batches(reading_t *r)
{
    static shmd_message m[BENCH_BATCH_MAX];
    shmd_consumer *c = r->c[0];
    while (!is_through(r)) {
        int64_t count = shmd_poll_many(c, m, r->a->batch);
        if (count < 0)
            bench_fail("poll_many");
        take_run(r, 0, m, (uint64_t)count);
        if (count == 0)
            bench_idle(c, r->a);
        else
            (void)shmd_advance(c);
    }
}

static void consume_in_turn(reading_t *r)
{
    static shmd_message m[BURST];
    while (!is_through(r)) {
        for (uint64_t k = 0; k < r->count; k++) {
            int64_t n = shmd_poll_many(r->c[k], m, BURST);
            if (n < 0 && n != SHMD_E_END)
                bench_fail("poll_many");
            if (n <= 0)
                continue;
            take_run(r, k, m, (uint64_t)n);
            (void)shmd_advance(r->c[k]);
        }
    }
}

static void run_consumers(const bench_arguments_t *a, outcome_t *out)
{
    static reading_t r;
    shmd_client *client = bench_connect(a->instance);
    char name[32];
    r.a = a;
    r.out = out;
    r.both_ends = a->mode[0] == 'c';
    for (uint64_t s = 0; s < a->streams; s++) {
        (void)snprintf(name, sizeof name, "bench-%llu", (unsigned long long)s);
        for (uint64_t k = 0; k < a->stalled; k++)
            (void)bench_consumer(client, name, a, SHMD_DELIVERY_LOSSY);
        for (uint64_t k = 0; k < a->consumers; k++)
            r.c[r.count++] = bench_consumer(client, name, a, a->delivery);
    }
    __atomic_store_n(&out->ready, 1, __ATOMIC_RELEASE);
    if (r.count > 1)
        consume_in_turn(&r);
    else if (a->mode[0] == 'b')
        consume_batches(&r);
    else
        consume_single(&r);
    out->ns = bench_now_ns() - r.begin_ns;
    out->received = r.received - r.begin_received;
    out->wrong = r.wrong;
    out->missed = r.missed;
    (void)shmd_disconnect(client);
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    static const char *const modes[] = {"single", "batch", "claim", "copy"};
    (void)bench_choice(a.mode, modes, 4);
    if (a.consumers == 0 || a.streams * a.consumers > BENCH_STREAMS_MAX || (a.mode[0] == 'b' && a.streams * a.consumers > 1)) {
        fprintf(stderr, "1 to %d consumers in all, and one in mode batch\n", BENCH_STREAMS_MAX);
        return 2;
    }
    outcome_t *out = bench_shared(sizeof *out);
    pid_t child = bench_fork(&a);
    if (child == 0) {
        run_consumers(&a, out);
        _exit(0);
    }
    bench_await(&out->ready, child);
    run_producer(&a, out, child);
    double received = (double)out->received, ns = (double)out->ns;
    printf("\"messages_s\": %.1f, \"deliveries_s\": %.1f, \"gb_s\": %.4f, \"missed\": %llu, \"wrong\": %llu}\n",
           received * 1e9 / ns / (double)a.consumers, received * 1e9 / ns, received * (double)a.bytes / ns / (double)a.consumers,
           (unsigned long long)out->missed, (unsigned long long)out->wrong);
    return out->wrong != 0;
}
