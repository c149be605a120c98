/* aeron.c: Aeron over IPC, by its C client: exclusive publications that claim, terms of 4 MiB.
 *
 * Its media driver moves the producer's window; here it is a process of its own (unpinned: it is started before
 * the two ends are pinned), that ends when the process that made it does. SHARED: one thread does all of its work, as
 * there are but the cores of the two ends. */
#include <aeronc.h>
#include <aeronmd.h>

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "peer.h"

#define CHANNEL "aeron:ipc?term-length=4m"
/* It never spins nor yields (0-0) but sleeps between two looks: a driver that yields on the core of an end gets it back only
 * after the scheduler's slice, which costs nine tenths of the rate. The window of 2 MiB lasts for longer than the first
 * sleep; up to 1 ms, when there is nothing to do, so that it does not disturb a round trip. */
#define DRIVER_IDLE "backoff"
#define DRIVER_SLEEP "0-0-100us-1ms"
enum { STREAM = 1001, POLL = 64 };

typedef struct end {
    aeron_t *client;
    aeron_exclusive_publication_t *publication;
    aeron_subscription_t *subscription;
    peer_message_t *to; /* of the poll that runs */
    uint64_t next, held; /* of messages: what was polled and not yet asked for */
    peer_message_t messages[POLL];
} end_t;

static pid_t driver_pid;
static int driver_alive[2]; /* a pipe; the driver ends when its writing end is closed */

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, aeron_errmsg());
    exit(2);
}

static int must(int rc, const char *what)
{
    if (rc < 0)
        fail(what);
    return rc;
}

static const char *folder(int owner)
{
    static char path[64];
    (void)snprintf(path, sizeof path, "/dev/shm/shmdriver-bench-%d.aeron", owner);
    return path;
}

static void drive(int owner)
{
    char byte;
    aeron_driver_context_t *context = NULL;
    aeron_driver_t *driver = NULL;
    (void)prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
    must(aeron_driver_context_init(&context), "driver context");
    must(aeron_driver_context_set_dir(context, folder(owner)), "driver folder");
    must(aeron_driver_context_set_dir_delete_on_start(context, true), "driver folder");
    must(aeron_driver_context_set_dir_delete_on_shutdown(context, true), "driver folder");
    must(aeron_driver_context_set_threading_mode(context, AERON_THREADING_MODE_SHARED), "threading mode");
    must(aeron_driver_context_set_shared_idle_strategy_init_args(context, DRIVER_SLEEP), "idle strategy");
    must(aeron_driver_context_set_shared_idle_strategy(context, DRIVER_IDLE), "idle strategy");
    must(aeron_driver_init(&driver, context), "driver");
    must(aeron_driver_start(driver, false), "driver start");
    while (read(driver_alive[0], &byte, 1) > 0)
        continue;
    (void)aeron_driver_close(driver);
    (void)aeron_driver_context_close(context);
}

size_t peer_shared_bytes(void) { return sizeof(int); }

void peer_make(void *shared)
{
    int owner = *(int *)shared = (int)getpid();
    if (driver_pid != 0)
        return;
    if (pipe(driver_alive) != 0 || (driver_pid = fork()) < 0) {
        perror("driver");
        exit(2);
    }
    (void)close(driver_alive[driver_pid == 0]);
    if (driver_pid == 0) {
        drive(owner);
        _exit(0);
    }
}

static aeron_t *connected(int owner)
{
    aeron_context_t *context = NULL;
    aeron_t *client = NULL;
    must(aeron_context_init(&context), "client context");
    must(aeron_context_set_dir(context, folder(owner)), "client folder");
    must(aeron_init(&client, context), "client"); /* waits for the driver */
    must(aeron_start(client), "client start");
    return client;
}

static void publish_to(end_t *end, int stream)
{
    aeron_async_add_exclusive_publication_t *adding = NULL;
    must(aeron_async_add_exclusive_publication(&adding, end->client, CHANNEL, stream), "publication");
    while (must(aeron_async_add_exclusive_publication_poll(&end->publication, adding), "publication") == 0)
        (void)sched_yield();
    while (!aeron_exclusive_publication_is_connected(end->publication))
        (void)sched_yield();
}

static void subscribe_to(end_t *end, int stream)
{
    aeron_async_add_subscription_t *adding = NULL;
    must(aeron_async_add_subscription(&adding, end->client, CHANNEL, stream, NULL, NULL, NULL, NULL), "subscription");
    while (must(aeron_async_add_subscription_poll(&end->subscription, adding), "subscription") == 0)
        (void)sched_yield();
    while (!aeron_subscription_is_connected(end->subscription))
        (void)sched_yield();
}

void *peer_open(void *shared, int which, int is_producer)
{
    static aeron_t *client; /* one a process */
    end_t *end = calloc(1, sizeof *end);
    if (client == NULL)
        client = connected(*(int *)shared);
    end->client = client;
    if (is_producer)
        publish_to(end, STREAM + which);
    else
        subscribe_to(end, STREAM + which);
    return end;
}

uint64_t peer_push(void *queue, const peer_message_t *from, uint64_t n)
{
    end_t *end = queue;
    aeron_buffer_claim_t claim;
    for (uint64_t done = 0; done < n; done++) {
        int64_t position = aeron_exclusive_publication_try_claim(end->publication, sizeof *from, &claim);
        if (position == AERON_PUBLICATION_BACK_PRESSURED || position == AERON_PUBLICATION_ADMIN_ACTION)
            return done;
        if (position < 0)
            fail("claim");
        memcpy(claim.data, from + done, sizeof *from);
        must(aeron_buffer_claim_commit(&claim), "commit");
    }
    return n;
}

static void copy(void *arg, const uint8_t *buffer, size_t length, aeron_header_t *header)
{
    end_t *end = arg;
    (void)header, (void)length;
    memcpy(end->to++, buffer, sizeof *end->to);
}

static uint64_t poll(end_t *end, peer_message_t *to, uint64_t n)
{
    end->to = to;
    return (uint64_t)must(aeron_subscription_poll(end->subscription, copy, end, (size_t)n), "poll");
}

/* Aeron has no call that takes one message: who wants one gets it from a poll of many, which is faster than polls of one. */
uint64_t peer_pop(void *queue, peer_message_t *to, uint64_t n)
{
    end_t *end = queue;
    if (n > 1)
        return poll(end, to, n);
    if (end->next == end->held) {
        end->next = 0;
        end->held = poll(end, end->messages, POLL);
        if (end->held == 0)
            return 0;
    }
    *to = end->messages[end->next++];
    return 1;
}

/* The driver takes its folder along when all of its clients, and then the process that made it, have left. */
void peer_close(void *queue)
{
    end_t *end = queue;
    static int closed;
    if (closed++ == 0)
        return;
    (void)aeron_close(end->client);
    (void)close(driver_alive[1]);
    if (driver_pid != 0)
        (void)waitpid(driver_pid, NULL, 0);
}
