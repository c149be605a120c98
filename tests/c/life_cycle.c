/* life_cycle.c: the whole life of C clients of a real driver, for memory checkers: life_cycle INSTANCE ROUNDS.
 *
 * No test_*.c, because it needs a driver: tests/integration/test_c_client.py builds and runs it. Every handle is given back, some
 * in an unusual order, some after a refusal. */
#include "shmdriver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_S = 60, MESSAGES = 200, FEW = 20, LARGE = 3000 };

static const uint64_t timeout_ns = (uint64_t)TIMEOUT_S * 1000000000u;

static void must(int holds, const char *what)
{
    if (!holds) {
        (void)fprintf(stderr, "%s: %s\n", what, shmd_last_error());
        exit(1);
    }
}

static void flow(shmd_producer *producer, shmd_consumer *consumer, uint32_t messages)
{
    unsigned char payload[LARGE];
    shmd_message message;
    void *room;
    memset(payload, 'x', sizeof payload);
    for (uint32_t i = 0; i < messages; i++) {
        uint32_t length = i % 3 == 0 ? LARGE : i % 60;
        if (i % 5 == 0) {
            must(shmd_claim(producer, length, &room) == SHMD_OK, "claim");
            memcpy(room, payload, length);
            must((i % 10 == 0 ? shmd_abort(producer) : shmd_commit(producer, length, 1)) == SHMD_OK, "commit");
            if (i % 10 == 0)
                continue;
        } else {
            must(shmd_publish_wait(producer, payload, length, 1, timeout_ns) == SHMD_OK, "publish");
        }
        must(shmd_wait(consumer, timeout_ns) == 1, "wait");
        must(shmd_poll(consumer, &message) == 1, "poll");
        must(message.length == length && memcmp(message.data, payload, length) == 0, "payload");
        must(shmd_advance(consumer) == SHMD_OK, "advance");
    }
}

static void live(const char *instance)
{
    shmd_client *client;
    shmd_producer *producer, *second;
    shmd_consumer *consumer, *lossy, *other;
    unsigned char copy[LARGE];
    shmd_message message;
    shmd_producer_options how = {.slots = 64, .max_message = LARGE, .arena_bytes = UINT64_MAX, .timeout_ns = timeout_ns, .flags = SHMD_ATTACH_CREATE};
    shmd_consumer_options reliable = {.delivery = SHMD_DELIVERY_RELIABLE, .start = SHMD_START_NEWEST, .wait = SHMD_WAIT_ADAPTIVE,
                                      .flags = SHMD_ATTACH_CREATE, .timeout_ns = timeout_ns};
    shmd_consumer_options ungated = reliable;
    ungated.delivery = SHMD_DELIVERY_LOSSY;
    must(shmd_connect(instance, timeout_ns, &client) == SHMD_OK, "connect");
    must(shmd_producer_attach(client, "life", &how, &producer) == SHMD_OK, "producer");
    must(shmd_producer_attach(client, "life", &how, &second) == SHMD_E_REJECTED, "a second producer is refused");
    must(shmd_producer_attach(client, "no name!", &how, &second) == SHMD_E_INVALID, "a bad name is refused");
    must(shmd_consumer_attach(client, "life", &reliable, &consumer) == SHMD_OK, "consumer");
    must(shmd_consumer_attach(client, "life", &ungated, &lossy) == SHMD_OK, "lossy consumer");
    flow(producer, consumer, MESSAGES);
    while (shmd_copy(lossy, copy, sizeof copy, &message) == 1)
        must(shmd_advance(lossy) == SHMD_OK, "advance");
    must(shmd_consumer_close(lossy) == SHMD_OK, "close");
    must(shmd_producer_close(producer) == SHMD_OK, "close");
    must(shmd_poll(consumer, &message) == SHMD_E_END, "the end");
    must(shmd_producer_attach(client, "life", &how, &producer) == SHMD_OK, "the next producer");
    must(shmd_claim(producer, LARGE, &(void *){NULL}) == SHMD_OK, "claim");
    must(shmd_producer_abort(producer) == SHMD_OK, "abort with an open claim");
    must(shmd_consumer_close(consumer) == SHMD_OK, "close");
    must(shmd_producer_attach(client, "life", &how, &producer) == SHMD_OK, "one more producer");
    must(shmd_consumer_attach(client, "life", &reliable, &consumer) == SHMD_OK, "one more consumer");
    must(shmd_disconnect(client) == SHMD_OK, "disconnect before the last handle is closed");
    must(shmd_connect(instance, timeout_ns, &client) == SHMD_OK, "connect");
    must(shmd_consumer_attach(client, "life", &reliable, &other) == SHMD_OK, "a consumer of another client, with a gate of its own");
    flow(producer, consumer, FEW);
    must(shmd_poll(other, &message) == 1 && message.seq == 0, "what is open keeps to its own gate");
    must(shmd_producer_close(producer) == SHMD_OK, "close");
    must(shmd_poll(consumer, &message) == SHMD_E_END, "the end");
    must(shmd_consumer_close(consumer) == SHMD_OK && shmd_consumer_close(other) == SHMD_OK, "close");
    must(shmd_disconnect(client) == SHMD_OK, "disconnect");
}

int main(int argc, char **argv)
{
    shmd_client *client;
    if (argc != 3)
        return 2;
    must(shmd_connect("no-such-instance", 1000000, &client) == SHMD_E_DRIVER_UNAVAILABLE, "nobody there");
    for (long round = strtol(argv[2], NULL, 10); round > 0; round--)
        live(argv[1]);
    (void)printf("done\n");
    return 0;
}
