/* count.c: the same work `messages` times in one process, for a tool that counts instructions (benchmarks/instructions.py):
 * bench_count instance=NAME mode=single messages=20000 consumers=1 (bench.h)
 *
 * With consumers=0 it only publishes; else each message, or batch, is read by a consumer in the same process at once. */
#include "bench.h"

static inline void read_all(shmd_consumer *c, uint64_t n)
{
    static shmd_message m[BENCH_BATCH_MAX];
    if (n == 1) {
        if (shmd_poll(c, m) != 1)
            bench_fail("poll");
        (void)shmd_advance(c);
        return;
    }
    for (uint64_t got = 0; got < n;) {
        int64_t count = shmd_poll_many(c, m, n - got);
        if (count <= 0)
            bench_fail("poll_many");
        got += (uint64_t)count;
        (void)shmd_advance(c);
    }
}

static inline void put(shmd_producer *p, const bench_arguments_t *a, const unsigned char *payload)
{
    if (*a->mode == 'b') {
        if (shmd_publish_records(p, payload, (uint32_t)a->bytes, a->batch, 0) != (int64_t)a->batch)
            bench_fail("publish_records");
    } else if (*a->mode == 'c') {
        void *place;
        if (shmd_claim(p, (uint32_t)a->bytes, &place) != 0 || shmd_commit(p, (uint32_t)a->bytes, 1) != 0)
            bench_fail("claim and commit");
    } else if (shmd_publish(p, payload, (uint32_t)a->bytes, 1) != 0) {
        bench_fail("publish");
    }
}

/* What is counted: callgrind collects inside this function only (--toggle-collect), so that it must stay one. */
__attribute__((noipa)) void bench_work(shmd_producer *p, shmd_consumer *c, const bench_arguments_t *a, const unsigned char *payload);
void bench_work(shmd_producer *p, shmd_consumer *c, const bench_arguments_t *a, const unsigned char *payload)
{
    uint64_t step = *a->mode == 'b' ? a->batch : 1;
    for (uint64_t i = 0; i < a->messages; i += step) {
        put(p, a, payload);
        if (c != NULL)
            read_all(c, step);
    }
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    shmd_client *client = bench_connect(a.instance);
    shmd_consumer *c = a.consumers != 0 ? bench_consumer(client, "count", &a, a.delivery) : NULL;
    shmd_producer *p = bench_producer(client, "count", &a);
    unsigned char *payload = bench_memory(a.bytes * BENCH_BATCH_MAX);
    bench_work(p, c, &a, payload);
    (void)shmd_producer_close(p);
    (void)shmd_disconnect(client);
    printf("{\"messages\": %llu}\n", (unsigned long long)a.messages);
    free(payload);
    return 0;
}
