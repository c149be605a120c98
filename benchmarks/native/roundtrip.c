/* roundtrip.c: a message there and one back, two pinned processes that spin:
 * bench_roundtrip INSTANCE BYTES TRIPS FIRST_CORE SECOND_CORE */
#include "bench.h"

#include "shmdriver.h"

enum { TIMEOUT_S = 30, SLOTS = 64 };

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmd_last_error());
    exit(2);
}

struct ends {
    shmd_client *client;
    shmd_producer *out;
    shmd_consumer *in;
};

static struct ends attach(const char *instance, const char *in, const char *out, uint32_t bytes, uint64_t *ready)
{
    struct ends e;
    shmd_consumer_options reads = {.timeout_ns = 5000000000u, .delivery = SHMD_DELIVERY_RELIABLE, .start = SHMD_START_NEWEST,
                                   .wait = SHMD_WAIT_SPIN, .flags = SHMD_ATTACH_CREATE};
    shmd_producer_options writes = {.max_message = bytes, .arena_bytes = 0, .timeout_ns = 5000000000u, .slots = SLOTS,
                                    .slot_bytes = (24 + bytes + 63) / 64 * 64, .flags = SHMD_ATTACH_CREATE};
    if (shmd_connect(instance, 5000000000u, &e.client) != 0)
        fail("connect");
    if (shmd_consumer_attach(e.client, in, &reads, &e.in) != 0)
        fail("attach consumer");
    (void)__atomic_add_fetch(ready, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(ready, __ATOMIC_ACQUIRE) < 2) /* both consumers, before either producer */
        (void)sched_yield();
    if (shmd_producer_attach(e.client, out, &writes, &e.out) != 0)
        fail("attach producer");
    return e;
}

static void detach(struct ends *e)
{
    (void)shmd_producer_close(e->out);
    (void)shmd_consumer_close(e->in);
    (void)shmd_disconnect(e->client);
}

static void send_to(shmd_producer *out, const void *data, uint32_t bytes)
{
    int rc;
    while ((rc = shmd_publish(out, data, bytes, 1)) == SHMD_BACK_PRESSURED)
        shmd_pause();
    if (rc != 0)
        fail("publish");
}

static void wait_for(shmd_consumer *in, shmd_message *m)
{
    int rc;
    while ((rc = shmd_poll(in, m)) == 0)
        ;
    if (rc < 0)
        fail("poll");
}

static void echo(const char *instance, uint32_t bytes, uint64_t trips, uint64_t *ready)
{
    struct ends e = attach(instance, "there", "back", bytes, ready);
    for (uint64_t i = 0; i < trips; i++) {
        shmd_message m;
        wait_for(e.in, &m);
        send_to(e.out, m.data, m.length);
        (void)shmd_advance(e.in);
    }
    detach(&e);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: bench_roundtrip INSTANCE BYTES TRIPS FIRST_CORE SECOND_CORE\n");
        return 2;
    }
    uint32_t bytes = (uint32_t)strtoul(argv[2], NULL, 10);
    uint64_t n = strtoull(argv[3], NULL, 10), warm_up = n / 10, wrong = 0;
    uint64_t *ready = bench_shared(4096), *ns = malloc(n * sizeof *ns);
    unsigned char *payload = calloc(1, bytes);
    if (bytes < 8 || n == 0 || ns == NULL || payload == NULL)
        return 2;
    pid_t child = fork();
    alarm(TIMEOUT_S);
    if (child == 0) {
        bench_pin(atoi(argv[5]));
        echo(argv[1], bytes, n + warm_up, ready);
        _exit(0);
    }
    bench_pin(atoi(argv[4]));
    struct ends e = attach(argv[1], "back", "there", bytes, ready);
    for (uint64_t i = 0; i < n + warm_up; i++) {
        shmd_message m;
        uint64_t got, start_ns = bench_now_ns();
        memcpy(payload, &i, sizeof i);
        send_to(e.out, payload, bytes);
        wait_for(e.in, &m);
        memcpy(&got, m.data, sizeof got);
        wrong += got != i;
        (void)shmd_advance(e.in);
        if (i >= warm_up)
            ns[i - warm_up] = bench_now_ns() - start_ns;
    }
    detach(&e);
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        return 2;
    printf("{");
    bench_print_trips(ns, n);
    printf(", \"wrong\": %llu}\n", (unsigned long long)wrong);
    return wrong != 0;
}
