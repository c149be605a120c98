/* first_lap.c: the page faults of a stream's first lap, with a real driver: first_lap INSTANCE.
 *
 * No test_*.c, because it needs a driver: tests/integration/test_prefault.py builds and runs it. A producer fills its ring and its
 * arena once; a reliable and a lossy consumer read along. It prints how many page faults this thread met meanwhile. */
#include "shmdriver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { SLOTS = 131072, SLOT_BYTES = 256, ARENA_BYTES = 32 << 20, SMALL = 200, LARGE = 64 << 10, PAGE = 4096 };

static const uint64_t timeout_ns = 60000000000u;

static void must(int holds, const char *what)
{
    if (!holds) {
        (void)fprintf(stderr, "%s: %s\n", what, shmd_last_error());
        exit(1);
    }
}

static uint64_t faults(void)
{
    struct rusage usage;
    must(getrusage(RUSAGE_THREAD, &usage) == 0, "getrusage");
    return (uint64_t)usage.ru_minflt;
}

static void read_one(shmd_consumer *c)
{
    shmd_message m;
    must(shmd_poll(c, &m) == 1, "poll");
    volatile const unsigned char *byte = m.data;
    for (uint32_t at = 0; at < m.length; at += PAGE)
        (void)byte[at];
    must(shmd_advance(c) == SHMD_OK, "advance");
}

static void flow(shmd_producer *p, shmd_consumer *reliable, shmd_consumer *lossy, uint32_t n, uint32_t length)
{
    static unsigned char payload[LARGE];
    memset(payload, 'x', sizeof payload);
    for (uint32_t i = 0; i < n; i++) {
        must(shmd_publish(p, payload, length, 1) == SHMD_OK, "publish");
        read_one(reliable);
        read_one(lossy);
    }
}

int main(int argc, char **argv)
{
    shmd_client *client;
    shmd_producer *producer;
    shmd_consumer *reliable, *lossy;
    shmd_consumer_options copies;
    shmd_producer_options sizes;
    must(argc == 2, "usage: first_lap INSTANCE");
    must(shmd_connect(argv[1], timeout_ns, &client) == SHMD_OK, "connect");
    shmd_consumer_options_init(&copies);
    copies.delivery = SHMD_DELIVERY_LOSSY;
    shmd_producer_options_init(&sizes);
    sizes.slots = SLOTS;
    sizes.slot_bytes = SLOT_BYTES;
    sizes.arena_bytes = ARENA_BYTES;
    must(shmd_consumer_attach(client, "s", NULL, &reliable) == SHMD_OK, "attach");
    must(shmd_consumer_attach(client, "s", &copies, &lossy) == SHMD_OK, "attach");
    must(shmd_producer_attach(client, "s", &sizes, &producer) == SHMD_OK, "attach");
    flow(producer, reliable, lossy, 1, SMALL); /* the program's own pages, those of the lossy reader's copies; both map the epoch */
    flow(producer, reliable, lossy, 1, LARGE);
    uint64_t before = faults();
    flow(producer, reliable, lossy, ARENA_BYTES / LARGE, LARGE);
    flow(producer, reliable, lossy, SLOTS, SMALL);
    printf("%llu\n", (unsigned long long)(faults() - before));
    must(shmd_producer_close(producer) == SHMD_OK && shmd_consumer_close(reliable) == SHMD_OK && shmd_consumer_close(lossy) == SHMD_OK, "close");
    must(shmd_disconnect(client) == SHMD_OK, "disconnect");
    return 0;
}
