/* fds of consumers: readable when there is something, not readable when there is not, for any number of streams, without a
 * lost wake-up: between threads the notifier's look at everything is put off for minutes, so that a lost one fails its poll. */
#include "rig.h"

#include <poll.h>
#include <sys/eventfd.h>

static int is_readable(int fd, int timeout_ms)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    int rc = poll(&one, 1, timeout_ms);
    CHECK(rc >= 0);
    return rc == 1;
}

static int watched(shmd_consumer *c)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(fd >= 0);
    CHECK_EQ(shmd_consumer_watch(c, fd), SHMD_OK);
    return fd;
}

static void end(shmd_consumer *c, int fd)
{
    shmd_watch_end(c);
    CHECK(is_readable(fd, 0)); /* whoever still waits for it is told */
    (void)close(fd);
    rig_consumer_free(c);
}

static void stop(rig_t *rig)
{
    shmd_notifier_stop(&rig->client.notifier);
    rig_stop(rig);
}

/* Reads one message that must be there. */
static uint64_t take(shmd_consumer *c)
{
    shmd_message m;
    uint64_t value = 0;
    CHECK_EQ(shmd_poll(c, &m), 1);
    memcpy(&value, m.data, m.length);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    return value;
}

static void test_an_fd_says_what_a_poll_would(void)
{
    static const uint32_t deliveries[] = {SHMD_DELIVERY_RELIABLE, SHMD_DELIVERY_LOSSY, SHMD_DELIVERY_LATEST};
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t wait = SHMD_WAIT_ADAPTIVE; wait <= SHMD_WAIT_SLEEP; wait++) { /* a spinning one is looked at */
            shmd_consumer *c = rig_consumer(&rig, 0, deliveries[i], wait, 0, 0);
            shmd_message m;
            while (shmd_poll(c, &m) == 1) /* latest begins with the newest that there is */
                CHECK_EQ(shmd_advance(c), SHMD_OK);
            int fd = watched(c);
            for (uint64_t n = 0; n < 20; n++) {
                CHECK(!is_readable(fd, 0));
                CHECK_EQ(shmd_publish(p, &n, sizeof n, 0), SHMD_OK);
                CHECK(is_readable(fd, 10000));
                CHECK_EQ(shmd_consumer_settle(c), 1);
                CHECK(is_readable(fd, 0));
                CHECK_EQ(take(c), n);
                CHECK_EQ(shmd_consumer_settle(c), 0);
            }
            CHECK_EQ(shmd_publish(p, "a", 1, 0), SHMD_OK);
            CHECK_EQ(take(c), 'a'); /* read without looking at the fd, before or after the notifier saw it */
            CHECK_EQ(shmd_consumer_settle(c), 0);
            CHECK(!is_readable(fd, 0));
            shmd_epoch_leave(rig.hot, 0);
            end(c, fd);
        }
    }
    rig_producer_free(p);
    stop(&rig);
}

static void seal(rig_t *rig)
{
    (void)shmd_epoch_seal(rig->hot, rig->data, rig->ring, &rig->geometry, 1, 1);
    shmd_event_writer *w = shmd_event_writer_new(rig->authority);
    shmd_event_t event = {.kind = SHMD_EVENT_STREAM_ANNOUNCE};
    (void)shmd_event_publish(w, &event);
    shmd_event_writer_free(w);
}

static void test_ends_revocations_and_new_epochs_make_an_fd_readable(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *followed = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, SHMD_ATTACH_FOLLOW);
    shmd_consumer *ended = rig_consumer(&rig, 1, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    shmd_consumer *evicted = rig_consumer(&rig, 2, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    int fds[3] = {watched(followed), watched(ended), watched(evicted)};
    shmd_message m;
    shmd_epoch_leave(rig.hot, 2);
    (void)rig_lease(&rig, 3, SHMD_LEASE_REVOKED);
    CHECK(is_readable(fds[2], 10000));
    CHECK_EQ(shmd_poll(evicted, &m), SHMD_E_REVOKED);
    CHECK_EQ(shmd_consumer_settle(evicted), 1); /* for ever: every further read says it again */
    CHECK(is_readable(fds[2], 0));
    CHECK(!is_readable(fds[0], 0) && !is_readable(fds[1], 0));
    seal(&rig);
    CHECK(is_readable(fds[0], 10000) && is_readable(fds[1], 10000));
    rig.stream->epochs[0].end_reason = SHMD_REASON_CLOSED;
    CHECK_EQ(shmd_poll(ended, &m), SHMD_E_END);
    CHECK_EQ(shmd_poll(followed, &m), 0);
    CHECK_EQ(shmd_consumer_settle(followed), 0); /* between two epochs: it waits for the driver's news */
    CHECK(!is_readable(fds[0], 0));
    rig_epoch_unmap(&rig);
    rig_epoch(&rig, 1, RIG_EPOCH + 1, 0);
    uint64_t cursor = 0;
    (void)shmd_epoch_join(rig.hot, rig.data, rig.gates, &rig.geometry, 0, 1, 1, followed->lease_id, 0, 0, &cursor);
    CHECK(is_readable(fds[0], 10000));
    CHECK_EQ(shmd_poll(followed, &m), 0);
    CHECK_EQ(shmd_consumer_settle(followed), 0);
    rig_producer_free(p);
    p = rig_producer(&rig);
    CHECK_EQ(shmd_publish(p, "b", 1, 0), SHMD_OK);
    CHECK(is_readable(fds[0], 10000));
    CHECK_EQ(take(followed), 'b');
    end(followed, fds[0]);
    end(ended, fds[1]);
    end(evicted, fds[2]);
    rig_producer_free(p);
    stop(&rig);
}

/* A full ring, and the fd of its consumer. */
typedef struct full {
    rig_t rig;
    shmd_producer *producer;
    shmd_consumer *consumer;
    int fd;
} full_t;

static void full_start(full_t *f)
{
    rig_start(&f->rig, 64, 64, 0, 0);
    f->producer = rig_producer(&f->rig);
    f->consumer = rig_consumer(&f->rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    f->fd = watched(f->consumer);
    for (uint64_t i = 0; i < 64; i++)
        CHECK_EQ(shmd_publish(f->producer, &i, sizeof i, 0), SHMD_OK);
}

static void full_stop(full_t *f)
{
    end(f->consumer, f->fd);
    rig_producer_free(f->producer);
    stop(&f->rig);
}

/* Views are held from that seq on. */
static int64_t fetch(full_t *f, uint64_t hold_seq, uint64_t timeout_ns)
{
    unsigned char out[8192];
    shmd_batch_t batch;
    return shmd_guarded_fetch(f->consumer, hold_seq, 64, timeout_ns, out, sizeof out, &batch);
}

/* As a view that Python lets go of: the gate is behind what was read, and nothing is left to read. */
static void test_a_producer_held_back_by_views_that_are_gone_makes_the_fd_readable(void)
{
    full_t f;
    full_start(&f);
    CHECK_EQ(fetch(&f, 0, 0), 64); /* seq 0 is held, and so are all */
    CHECK(is_readable(f.fd, 0)); /* the run is not used up */
    CHECK_EQ(shmd_guarded_settle(f.consumer), 0);
    CHECK(!is_readable(f.fd, 0));
    CHECK_EQ(shmd_publish(f.producer, "x", 1, 0), SHMD_BACK_PRESSURED);
    CHECK(is_readable(f.fd, 10000));
    for (int tries = 0; tries < 3; tries++) { /* still held: told again, less and less often */
        CHECK_EQ(fetch(&f, 0, 0), 0);
        CHECK(is_readable(f.fd, 10000));
    }
    CHECK_EQ(fetch(&f, 0, 1), SHMD_E_VIEWS_HELD);
    CHECK_EQ(fetch(&f, UINT64_MAX, 0), 0);
    CHECK_EQ(shmd_publish(f.producer, "x", 1, 0), SHMD_OK);
    CHECK(is_readable(f.fd, 10000));
    CHECK_EQ(fetch(&f, UINT64_MAX, 0), 1);
    CHECK(!is_readable(f.fd, 0));
    full_stop(&f);
}

/* The producer comes to wait while nobody sleeps for the fd, and the thread sleeps for minutes. */
static void test_a_producer_held_back_before_the_fd_is_armed_makes_it_readable(void)
{
    full_t f;
    full_start(&f);
    CHECK(is_readable(f.fd, 10000));
    CHECK_EQ(fetch(&f, 0, 0), 64); /* all are held */
    CHECK_EQ(shmd_publish(f.producer, "x", 1, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(shmd_guarded_settle(f.consumer), 0);
    CHECK(is_readable(f.fd, 10000));
    full_stop(&f);
}

/* ---- between threads ----------------------------------------------------------------------- */

typedef struct feed {
    rig_t rig;
    shmd_producer *producer;
    shmd_consumer *consumer;
    uint64_t next;
    int fd;
} feed_t;

static shmd_client shared;      /* one client of all feeds: one thread for them */

static void feed_start(feed_t *f, uint32_t wait)
{
    rig_start(&f->rig, 64, 64, 0, 0);
    f->producer = rig_producer(&f->rig);
    f->consumer = rig_consumer(&f->rig, 0, SHMD_DELIVERY_RELIABLE, wait, 0, 0);
    if (shared.authority == NULL) {
        shared = f->rig.client;
        shmd_notifier_init(&shared.notifier);
    }
    f->consumer->client = &shared;
    f->next = 0;
    f->fd = watched(f->consumer);
}

static void feeds_stop(feed_t *feeds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        end(feeds[i].consumer, feeds[i].fd);
    shmd_notifier_stop(&shared.notifier);
    for (uint32_t i = 0; i < count; i++) {
        rig_producer_free(feeds[i].producer);
        rig_stop(&feeds[i].rig);
    }
    memset(&shared, 0, sizeof shared);
}

typedef struct load {
    feed_t *feeds;
    uint32_t count;
    uint64_t n;
} load_t;

static void *publish_here_and_there(void *argument)
{
    load_t *load = argument;
    uint64_t state = 42;
    uint64_t *next = calloc(load->count, sizeof *next);
    CHECK(next != NULL);
    for (uint64_t i = 0; i < load->n; i++) {
        uint32_t which = (uint32_t)(test_random(&state) % load->count);
        CHECK_EQ(shmd_publish_wait(load->feeds[which].producer, &next[which], 8, 0, 20000000000u), SHMD_OK);
        next[which]++;
        if (i % 7 == 0)
            for (int k = 0; k < 200; k++)
                shmd_pause(); /* now and then the reader is faster, and sleeps */
    }
    free(next);
    return NULL;
}

/* Everything that is published on any of the streams arrives by way of poll(2), in order, and no wake-up is lost. */
static void run_feeds(uint32_t count, uint32_t wait, uint64_t n)
{
    feed_t *feeds = calloc(count, sizeof *feeds);
    struct pollfd *polled = calloc(count, sizeof *polled);
    CHECK(feeds != NULL && polled != NULL);
    for (uint32_t i = 0; i < count; i++) {
        feed_start(&feeds[i], wait);
        polled[i] = (struct pollfd){.fd = feeds[i].fd, .events = POLLIN};
    }
    load_t load = {.feeds = feeds, .count = count, .n = n};
    uint64_t began_ns = shmd_now_ns(), sleeps = 0;
    pthread_t thread = test_thread(publish_here_and_there, &load);
    for (uint64_t got = 0; got < n; sleeps++) {
        CHECK(poll(polled, count, 20000) > 0);
        for (uint32_t i = 0; i < count; i++) {
            shmd_message m;
            if ((polled[i].revents & POLLIN) == 0)
                continue;
            for (int rc; (rc = shmd_poll(feeds[i].consumer, &m)) != 0; got++) {
                uint64_t value;
                CHECK_EQ(rc, 1);
                memcpy(&value, m.data, sizeof value);
                CHECK_EQ(value, feeds[i].next++);
                CHECK_EQ(shmd_advance(feeds[i].consumer), SHMD_OK);
            }
            CHECK(shmd_consumer_settle(feeds[i].consumer) >= 0);
        }
    }
    test_join(thread);
    uint64_t took_ns = shmd_now_ns() - began_ns;
    (void)fprintf(stderr, "  %" PRIu64 " messages on %u streams, %" PRIu64 " sleeps, %" PRIu64 " ms\n", n, count, sleeps, took_ns / 1000000);
    feeds_stop(feeds, count);
    free(feeds);
    free(polled);
}

static void test_one_stream(void) { run_feeds(1, SHMD_WAIT_SLEEP, test_scale(30000)); }
static void test_a_hundred_streams_share_one_thread(void) { run_feeds(100, SHMD_WAIT_ADAPTIVE, test_scale(30000)); }
static void test_more_streams_than_the_kernel_waits_for(void) { run_feeds(200, SHMD_WAIT_ADAPTIVE, test_scale(10000)); }
static void test_streams_that_nobody_wakes_are_looked_at(void) { run_feeds(3, SHMD_WAIT_SPIN, test_scale(5000)); }

static void test_without_futex_waitv(void)
{
    shmd_store32_relaxed(&shmd_waitv_missing, 1);
    run_feeds(3, SHMD_WAIT_SLEEP, test_scale(5000));
    shmd_store32_relaxed(&shmd_waitv_missing, 0);
}

typedef struct bounce {
    feed_t *there;
    feed_t *back;
    uint64_t n;
} bounce_t;

static uint64_t take_by_fd(feed_t *f)
{
    CHECK(is_readable(f->fd, 20000));
    uint64_t value = take(f->consumer);
    CHECK_EQ(shmd_consumer_settle(f->consumer), 0);
    return value;
}

static void *answer(void *argument)
{
    bounce_t *b = argument;
    for (uint64_t i = 0; i < b->n; i++) {
        CHECK_EQ(take_by_fd(b->there), i);
        CHECK_EQ(shmd_publish(b->back->producer, &i, sizeof i, 0), SHMD_OK);
    }
    return NULL;
}

/* One message at a time: every one must wake the thread, and every fd must be armed again. */
static void test_no_wake_up_is_lost_when_every_message_is_waited_for(void)
{
    static feed_t feeds[2];
    memset(feeds, 0, sizeof feeds);
    feed_start(&feeds[0], SHMD_WAIT_SLEEP);
    feed_start(&feeds[1], SHMD_WAIT_SLEEP);
    bounce_t b = {.there = &feeds[0], .back = &feeds[1], .n = test_scale(10000)};
    uint64_t began_ns = shmd_now_ns();
    pthread_t thread = test_thread(answer, &b);
    for (uint64_t i = 0; i < b.n; i++) {
        CHECK_EQ(shmd_publish(b.there->producer, &i, sizeof i, 0), SHMD_OK);
        CHECK_EQ(take_by_fd(b.back), i);
    }
    test_join(thread);
    uint64_t took_ns = shmd_now_ns() - began_ns;
    (void)fprintf(stderr, "  %" PRIu64 " round trips by fd, %" PRIu64 " ns each\n", b.n, took_ns / b.n);
    feeds_stop(feeds, 2);
}

typedef struct waiting {
    feed_t *feeds;
    uint64_t n;
} waiting_t;

/* The owner waits in calls of its own, in between by its fd, while the notifier looks on. */
static void test_waits_of_the_owner_and_its_fd_take_turns(void)
{
    feed_t feed;
    unsigned char out[4096];
    shmd_batch_t batch;
    memset(&feed, 0, sizeof feed);
    feed_start(&feed, SHMD_WAIT_SLEEP);
    load_t load = {.feeds = &feed, .count = 1, .n = test_scale(10000)};
    pthread_t thread = test_thread(publish_here_and_there, &load);
    for (uint64_t got = 0; got < load.n;) {
        if (got % 3 == 0)
            CHECK(is_readable(feed.fd, 20000));
        int64_t rc = shmd_guarded_fetch(feed.consumer, UINT64_MAX, 16, got % 3 == 0 ? 0 : 20000000000u, out, sizeof out, &batch);
        CHECK(rc >= 0);
        if (rc > 1) {
            CHECK(is_readable(feed.fd, 0));
            CHECK(shmd_guarded_settle(feed.consumer) >= 0);
        }
        got += (uint64_t)rc;
    }
    test_join(thread);
    CHECK(!is_readable(feed.fd, 0));
    feeds_stop(&feed, 1);
}

static void *wait_for_many(void *argument)
{
    waiting_t *w = argument;
    shmd_consumer *all[150];
    for (uint32_t i = 0; i < 150; i++)
        all[i] = w->feeds[i].consumer;
    for (uint64_t got = 0; got < w->n;) {
        CHECK(shmd_wait_many(all, 150, 20000000000u) > 0);
        for (uint32_t i = 0; i < 150; i++) {
            shmd_message m;
            for (; shmd_poll(all[i], &m) == 1; got++)
                CHECK_EQ(shmd_advance(all[i]), SHMD_OK);
        }
    }
    return NULL;
}

static void test_wait_many_sleeps_and_is_woken(void)
{
    static feed_t feeds[150];
    for (uint32_t i = 0; i < 150; i++)
        feed_start(&feeds[i], SHMD_WAIT_SLEEP);
    waiting_t waiting = {.feeds = feeds, .n = test_scale(5000)};
    load_t load = {.feeds = feeds, .count = 150, .n = waiting.n};
    for (uint32_t i = 0; i < 150; i++)
        CHECK_EQ(shmd_consumer_watch(feeds[i].consumer, -1), SHMD_OK); /* two threads of one consumer's would be one too many */
    pthread_t thread = test_thread(wait_for_many, &waiting);
    (void)publish_here_and_there(&load);
    test_join(thread);
    shmd_consumer *all[150];
    for (uint32_t i = 0; i < 150; i++)
        all[i] = feeds[i].consumer;
    uint64_t began_ns = shmd_now_ns();
    CHECK_EQ(shmd_wait_many(all, 150, 30000000), 0);
    CHECK(shmd_now_ns() - began_ns >= 30000000);
    feeds_stop(feeds, 150);
}

static void test_fds_of_a_client_that_disconnects_stay_readable(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    int fd = watched(c);
    CHECK(!is_readable(fd, 0));
    shmd_notifier_stop(&rig.client.notifier);
    CHECK(is_readable(fd, 0));
    CHECK_EQ(shmd_consumer_settle(c), 0); /* nothing to read, and nobody left who would say when there is */
    CHECK(is_readable(fd, 0));
    shmd_consumer *late = rig_consumer(&rig, 1, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    CHECK_EQ(shmd_consumer_watch(late, fd), SHMD_E_CLOSED);
    CHECK_TEXT("disconnected");
    rig_consumer_free(late);
    end(c, fd);
    rig_stop(&rig);
}

int main(void)
{
    RUN(test_an_fd_says_what_a_poll_would);
    RUN(test_ends_revocations_and_new_epochs_make_an_fd_readable);
    RUN(test_a_producer_held_back_by_views_that_are_gone_makes_the_fd_readable);
    shmd_store_relaxed(&shmd_notifier_slice_ns, 600000000000u);
    RUN(test_a_producer_held_back_before_the_fd_is_armed_makes_it_readable);
    RUN(test_no_wake_up_is_lost_when_every_message_is_waited_for);
    RUN(test_one_stream);
    RUN(test_a_hundred_streams_share_one_thread);
    RUN(test_more_streams_than_the_kernel_waits_for);
    RUN(test_streams_that_nobody_wakes_are_looked_at);
    RUN(test_without_futex_waitv);
    RUN(test_waits_of_the_owner_and_its_fd_take_turns);
    RUN(test_wait_many_sleeps_and_is_woken);
    RUN(test_fds_of_a_client_that_disconnects_stay_readable);
    return test_report();
}
