/* stream.c: one way, two pinned processes: bench_stream INSTANCE MODE BYTES N CONSUMERS PRODUCER_CORE CONSUMER_CORE
 *
 *     single   shmd_publish; shmd_poll, shmd_advance for each message
 *     batch    shmd_publish_records and shmd_poll_many, 64 at a time
 *     claim    shmd_claim, shmd_commit with nothing written but a number; the reader looks at both ends
 *     copy     shmd_publish of the whole payload; the reader looks at both ends
 *
 * Every message carries its number, and every consumer checks each. Several consumers are polled in turn by one process,
 * so that two cores show what they cost the producer.
 */
#include "bench.h"

#include "shmdriver.h"

enum { BATCH = 64, CONSUMERS_MAX = 4, TIMEOUT_S = 30 };

struct outcome {
    uint64_t ns; /* from the first message to the last */
    uint64_t wrong;
    uint64_t ready;
};

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmd_last_error());
    exit(2);
}

static shmd_client *connect_to(const char *instance)
{
    shmd_client *client = NULL;
    if (shmd_connect(instance, 5000000000u, &client) != 0)
        fail("connect");
    return client;
}

static void produce_single(shmd_producer *p, uint32_t bytes, uint64_t n)
{
    unsigned char *payload = calloc(1, bytes);
    if (payload == NULL)
        fail("memory");
    for (uint64_t i = 0; i < n; i++) {
        int rc;
        memcpy(payload, &i, sizeof i);
        while ((rc = shmd_publish(p, payload, bytes, 1)) == SHMD_BACK_PRESSURED)
            shmd_pause();
        if (rc != 0)
            fail("publish");
    }
    free(payload);
}

static void produce_batches(shmd_producer *p, uint32_t bytes, uint64_t n)
{
    unsigned char *records = calloc(BATCH, bytes);
    if (records == NULL)
        fail("memory");
    for (uint64_t i = 0; i < n; i += BATCH) {
        for (uint64_t k = 0; k < BATCH; k++) {
            uint64_t number = i + k;
            memcpy(records + k * bytes, &number, sizeof number);
        }
        if (shmd_publish_records(p, records, bytes, BATCH, 10000000000u) != BATCH)
            fail("publish_records");
    }
    free(records);
}

static void produce_claims(shmd_producer *p, uint32_t bytes, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        void *place;
        int rc;
        while ((rc = shmd_claim(p, bytes, &place)) == SHMD_BACK_PRESSURED)
            shmd_pause();
        if (rc != 0)
            fail("claim");
        memcpy(place, &i, sizeof i);
        memcpy((unsigned char *)place + bytes - sizeof i, &i, sizeof i);
        if (shmd_commit(p, bytes, 1) != 0)
            fail("commit");
    }
}

static void produce_copies(shmd_producer *p, uint32_t bytes, uint64_t n)
{
    unsigned char *payload = calloc(1, bytes);
    if (payload == NULL)
        fail("memory");
    for (uint64_t i = 0; i < n; i++) {
        int rc;
        memcpy(payload, &i, sizeof i);
        memcpy(payload + bytes - sizeof i, &i, sizeof i);
        while ((rc = shmd_publish(p, payload, bytes, 1)) == SHMD_BACK_PRESSURED)
            shmd_pause();
        if (rc != 0)
            fail("publish");
    }
    free(payload);
}

static void run_producer(const char *instance, const char *mode, uint32_t bytes, uint64_t n, uint32_t consumers)
{
    int large = bytes > 4096;
    shmd_client *client = connect_to(instance);
    shmd_producer_options options = {.max_message = bytes, .arena_bytes = UINT64_MAX, .timeout_ns = 5000000000u,
                                     .slots = large ? 16 : 16384, .min_consumers = consumers, .flags = SHMD_ATTACH_CREATE};
    shmd_producer *p = NULL;
    if (!large) {
        options.slot_bytes = (24 + bytes + 63) / 64 * 64;
        options.arena_bytes = 0;
        options.slots = bytes > 512 ? 4096 : 16384;
    }
    if (shmd_producer_attach(client, "bench", &options, &p) != 0)
        fail("attach producer");
    if (strcmp(mode, "single") == 0)
        produce_single(p, bytes, n);
    else if (strcmp(mode, "batch") == 0)
        produce_batches(p, bytes, n);
    else if (strcmp(mode, "claim") == 0)
        produce_claims(p, bytes, n);
    else
        produce_copies(p, bytes, n);
    if (shmd_producer_close(p) != 0)
        fail("close producer");
    (void)shmd_disconnect(client);
}

static uint64_t is_wrong(const shmd_message *m, uint64_t expected, uint32_t bytes, int both_ends)
{
    uint64_t head, tail = expected;
    memcpy(&head, m->data, sizeof head);
    if (both_ends)
        memcpy(&tail, (const unsigned char *)m->data + bytes - sizeof tail, sizeof tail);
    return head != expected || tail != expected || m->length != bytes;
}

static uint64_t consume_single(shmd_consumer *c, uint32_t bytes, uint64_t n, uint64_t *first_ns)
{
    uint64_t wrong = 0;
    int both_ends = bytes > 4096;
    for (uint64_t i = 0; i < n; i++) {
        shmd_message m;
        int rc;
        while ((rc = shmd_poll(c, &m)) == 0)
            shmd_pause();
        if (rc < 0)
            fail("poll");
        if (i == 0)
            *first_ns = bench_now_ns();
        wrong += is_wrong(&m, i, bytes, both_ends);
        (void)shmd_advance(c);
    }
    return wrong;
}

static uint64_t consume_batches(shmd_consumer *c, uint32_t bytes, uint64_t n, uint64_t *first_ns)
{
    shmd_message m[BATCH];
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < n;) {
        int64_t count;
        while ((count = shmd_poll_many(c, m, BATCH)) == 0)
            shmd_pause();
        if (count < 0)
            fail("poll_many");
        if (i == 0)
            *first_ns = bench_now_ns();
        for (int64_t k = 0; k < count; k++)
            wrong += is_wrong(&m[k], i++, bytes, 0);
        (void)shmd_advance(c);
    }
    return wrong;
}

static uint64_t consume_in_turn(shmd_consumer **c, uint32_t count, uint32_t bytes, uint64_t n, uint64_t *first_ns)
{
    uint64_t wrong = 0, got[CONSUMERS_MAX] = {0}, done = 0;
    while (done < count) {
        for (uint32_t k = 0; k < count; k++) {
            shmd_message m;
            for (int burst = 0; burst < BATCH && got[k] < n && shmd_poll(c[k], &m) == 1; burst++) {
                if (*first_ns == 0)
                    *first_ns = bench_now_ns();
                wrong += is_wrong(&m, got[k]++, bytes, 0);
                (void)shmd_advance(c[k]);
                done += got[k] == n;
            }
        }
    }
    return wrong;
}

static void run_consumers(const char *instance, const char *mode, uint32_t bytes, uint64_t n, uint32_t consumers, struct outcome *out)
{
    shmd_client *client = connect_to(instance);
    shmd_consumer *c[CONSUMERS_MAX];
    shmd_consumer_options options = {.timeout_ns = 5000000000u, .delivery = SHMD_DELIVERY_RELIABLE, .start = SHMD_START_NEWEST,
                                     .wait = SHMD_WAIT_SPIN, .flags = SHMD_ATTACH_CREATE};
    for (uint32_t k = 0; k < consumers; k++)
        if (shmd_consumer_attach(client, "bench", &options, &c[k]) != 0)
            fail("attach consumer");
    __atomic_store_n(&out->ready, 1, __ATOMIC_RELEASE);
    uint64_t first_ns = 0;
    if (consumers > 1)
        out->wrong = consume_in_turn(c, consumers, bytes, n, &first_ns);
    else if (strcmp(mode, "batch") == 0)
        out->wrong = consume_batches(c[0], bytes, n, &first_ns);
    else
        out->wrong = consume_single(c[0], bytes, n, &first_ns);
    out->ns = bench_now_ns() - first_ns;
    for (uint32_t k = 0; k < consumers; k++)
        (void)shmd_consumer_close(c[k]);
    (void)shmd_disconnect(client);
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fprintf(stderr, "usage: bench_stream INSTANCE single|batch|claim|copy BYTES N CONSUMERS PRODUCER_CORE CONSUMER_CORE\n");
        return 2;
    }
    uint32_t bytes = (uint32_t)strtoul(argv[3], NULL, 10), consumers = (uint32_t)strtoul(argv[5], NULL, 10);
    uint64_t n = strtoull(argv[4], NULL, 10) / BATCH * BATCH;
    if (bytes < 8 || n == 0 || consumers < 1 || consumers > CONSUMERS_MAX)
        return 2;
    struct outcome *out = bench_shared(sizeof *out);
    pid_t child = fork();
    if (child == 0) {
        bench_pin(atoi(argv[7]));
        alarm(TIMEOUT_S);
        run_consumers(argv[1], argv[2], bytes, n, consumers, out);
        _exit(0);
    }
    bench_pin(atoi(argv[6]));
    alarm(TIMEOUT_S);
    int status;
    while (__atomic_load_n(&out->ready, __ATOMIC_ACQUIRE) == 0) {
        if (waitpid(child, &status, WNOHANG) == child)
            return 2;
        (void)sched_yield();
    }
    run_producer(argv[1], argv[2], bytes, n, consumers);
    if (waitpid(child, &status, 0) != child || status != 0)
        return 2;
    printf("{\"messages_s\": %.1f, \"gb_s\": %.4f, \"wrong\": %llu}\n", (double)n * 1e9 / (double)out->ns,
           (double)n * bytes / (double)out->ns, (unsigned long long)out->wrong);
    return out->wrong != 0;
}
