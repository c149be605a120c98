/* Manual heartbeats: what a beat costs, what shmd_keepalive answers, and that calls which wait beat meanwhile.
 * fault: 65 (waits that are longer than the lease's timeout, without a heartbeat thread) */
#include "rig.h"

enum { INTERVAL_NS = 1000000, BEATS = 5, SLOTS = 64 }; /* nothing beats more often than once in a millisecond */

typedef struct manual {
    rig_t rig;
    shmd_heartbeat_t *line;
} manual_t;

/* There another start time proves that the driver of a rig, this very process, is dead. */
#ifdef SHMD_EMULATED
enum { IS_EMULATED = 1 };
#else
enum { IS_EMULATED = 0 };
#endif

static void begin(manual_t *m)
{
    memset(m, 0, sizeof *m);
    rig_start(&m->rig, SLOTS, 64, 0, 0);
    m->rig.client.client_id = 5;
    m->rig.client.is_manual = 1;
    CHECK_EQ(shmd_heartbeat_init(&m->rig.client), SHMD_OK);
    shmd_client_record_t *record = shmd_authority_client(m->rig.authority, 0);
    record->client_id = 5;
    shmd_word_store(&record->word, 0x200 | SHMD_CLIENT_ALIVE);
    m->rig.authority->heartbeat_interval_ns = INTERVAL_NS;
    m->line = &m->rig.control->heartbeat;
}

static void finish(manual_t *m)
{
    shmd_heartbeat_free(&m->rig.client);
    rig_stop(&m->rig);
}

static void await_beats(const manual_t *m)
{
    uint64_t before = shmd_word_load(&m->line->beat);
    while (shmd_word_load(&m->line->beat) < before + BEATS)
        (void)sched_yield();
}

/* ---- shmd_keepalive */

static void test_a_confirmation_stands_in_the_segment_until_a_later_lease_has_the_entry(void)
{
    manual_t m;
    begin(&m);
    shmd_client_confirm(&m.rig.client, 3, 103);
    CHECK_EQ(shmd_client_ring_look(m.rig.control, 3, 103), SHMD_ENTRY_CONFIRMED);
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_OK);
    CHECK_EQ(shmd_client_ring_look(m.rig.control, 3, 103), SHMD_ENTRY_CONFIRMED);
    shmd_client_confirm(&m.rig.client, 3, 104);
    CHECK_EQ(shmd_client_ring_look(m.rig.control, 3, 103), SHMD_ENTRY_NONE);
    finish(&m);
}

static void test_an_abandoned_lease_ends_by_a_note_that_needs_no_driver(void)
{
    manual_t m;
    begin(&m);
    shmd_request_t request = {.kind = SHMD_REQUEST_ADMIN, .client_id = 5};
    while (shmd_client_ring_send(&m.rig.client.ring, &request) == SHMD_OK) /* a full ring */
        ;
    (void)shmd_fail(SHMD_E_TIMEOUT, "what failed before");
    shmd_client_note_end(&m.rig.client, 7, 107, 1);
    CHECK_TEXT("what failed before"); /* a finaliser may run between a failure and the look at its text */
    CHECK_EQ(shmd_client_ring_look(m.rig.control, 7, 107), SHMD_ENTRY_ABORTED);
    shmd_client_note_end(&m.rig.client, 7, 106, 0); /* an earlier lease of that entry: too late to say anything */
    CHECK_EQ(shmd_client_ring_look(m.rig.control, 7, 107), SHMD_ENTRY_ABORTED);
    finish(&m);
}

static void test_a_silent_client_beats_no_more(void)
{
    manual_t m;
    begin(&m);
    shmd_client_beat(&m.rig.client);
    uint64_t beat = m.line->beat;
    m.rig.client.is_silent = 1; /* its goodbye is said */
    shmd_client_beat(&m.rig.client);
    CHECK_EQ(m.line->beat, beat);
    finish(&m);
}

static void test_keepalive_says_that_its_client_was_expelled(void)
{
    manual_t m;
    begin(&m);
    shmd_client_record_t *record = shmd_authority_client(m.rig.authority, 0);
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_OK);
    shmd_word_store(&record->word, 0x200 | SHMD_CLIENT_STALLED); /* late, not expelled */
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_OK);
    shmd_word_store(&record->word, 0x200 | SHMD_CLIENT_GONE);
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_E_REVOKED);
    CHECK_TEXT("connect anew");
    shmd_word_store(&record->word, 0x200 | SHMD_CLIENT_FREE);
    uint64_t beat = m.line->beat;
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_E_REVOKED);
    record->client_id = 6;
    shmd_word_store(&record->word, 0x400 | SHMD_CLIENT_ALIVE);
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_E_REVOKED);
    CHECK_EQ(m.line->beat, beat); /* that line is another client's */
    finish(&m);
}

static void test_keepalive_says_that_its_driver_was_stopped(void)
{
    manual_t m;
    begin(&m);
    shmd_word_store(&m.rig.authority->exit_kind, SHMD_EXIT_HANDOVER); /* its successor comes */
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_OK);
    shmd_word_store(&m.rig.authority->exit_kind, SHMD_EXIT_CLEAN);
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_E_DRIVER_UNAVAILABLE);
    CHECK_TEXT("was stopped");
    finish(&m);
}

static void test_keepalive_is_not_for_a_client_with_a_thread(void)
{
    manual_t m;
    begin(&m);
    m.rig.client.is_manual = 0;
    CHECK_EQ(shmd_keepalive(&m.rig.client), SHMD_E_INVALID);
    CHECK_TEXT("SHMD_HEARTBEAT_MANUAL");
    finish(&m);
}

/* ---- calls that wait */

typedef struct waiter {
    manual_t m;
    shmd_producer *producer;
    shmd_consumer *consumer;
    int answer;
} waiter_t;

static void wait_is_beaten_through(waiter_t *w, void *(*call)(void *), void (*end)(waiter_t *))
{
    pthread_t thread = test_thread(call, w);
    await_beats(&w->m);
    end(w);
    test_join(thread);
    rig_consumer_free(w->consumer);
    rig_producer_free(w->producer);
    finish(&w->m);
}

static void begin_to_wait(waiter_t *w, uint32_t wait, int is_full)
{
    begin(&w->m);
    w->producer = rig_producer(&w->m.rig);
    w->consumer = rig_consumer(&w->m.rig, 0, SHMD_DELIVERY_RELIABLE, wait, 0, 0);
    for (uint64_t i = 0; is_full && i < SLOTS; i++)
        CHECK_EQ(shmd_publish(w->producer, &i, sizeof i, 0), SHMD_OK);
}

static void publish_one(waiter_t *w) { CHECK_EQ(shmd_publish(w->producer, "x", 1, 0), SHMD_OK); }

static void read_one(waiter_t *w)
{
    shmd_message message;
    CHECK_EQ(shmd_poll(w->consumer, &message), 1);
    CHECK_EQ(shmd_advance(w->consumer), SHMD_OK);
}

static void *wait_for_a_message(void *argument)
{
    waiter_t *w = argument;
    CHECK_EQ(shmd_wait(w->consumer, UINT64_MAX), 1);
    return NULL;
}

static void *wait_for_several(void *argument)
{
    waiter_t *w = argument;
    CHECK_EQ(shmd_wait_many(&w->consumer, 1, UINT64_MAX), 1);
    return NULL;
}

static void *fetch(void *argument)
{
    waiter_t *w = argument;
    unsigned char out[256];
    shmd_batch_t batch;
    CHECK_EQ(shmd_guarded_fetch(w->consumer, UINT64_MAX, 1, UINT64_MAX, out, sizeof out, &batch), 1);
    return NULL;
}

static void *wait_for_room(void *argument)
{
    waiter_t *w = argument;
    CHECK_EQ(shmd_publish_wait(w->producer, "y", 1, 0, UINT64_MAX), SHMD_OK);
    return NULL;
}

static void *publish_records(void *argument)
{
    waiter_t *w = argument;
    CHECK_EQ(shmd_publish_records(w->producer, "y", 1, 1, UINT64_MAX), 1);
    return NULL;
}

static void test_a_consumer_that_waits_beats(void)
{
    for (uint32_t wait = SHMD_WAIT_ADAPTIVE; wait <= SHMD_WAIT_SLEEP; wait++) {
        waiter_t w;
        begin_to_wait(&w, wait, 0);
        wait_is_beaten_through(&w, wait_for_a_message, publish_one);
    }
}

static void test_a_wait_for_several_and_a_fetch_beat(void)
{
    waiter_t w;
    begin_to_wait(&w, SHMD_WAIT_ADAPTIVE, 0);
    wait_is_beaten_through(&w, wait_for_several, publish_one);
    begin_to_wait(&w, SHMD_WAIT_ADAPTIVE, 0);
    wait_is_beaten_through(&w, fetch, publish_one);
}

static void test_a_producer_that_waits_for_room_beats(void)
{
    waiter_t w;
    begin_to_wait(&w, SHMD_WAIT_ADAPTIVE, 1);
    wait_is_beaten_through(&w, wait_for_room, read_one);
    begin_to_wait(&w, SHMD_WAIT_ADAPTIVE, 1);
    wait_is_beaten_through(&w, publish_records, read_one);
}

static void *ask(void *argument)
{
    manual_t *m = argument;
    shmd_request_t request = {.kind = SHMD_REQUEST_ADMIN};
    shmd_event_t answer;
    CHECK_EQ(shmd_client_request(&m->rig.client, &request, &answer, UINT64_MAX), SHMD_E_DRIVER_UNAVAILABLE);
    CHECK_TEXT("was stopped");
    return NULL;
}

/* Nobody answers, until the driver says that it has ended; what a detach would wait for likewise. */
static void test_a_client_that_waits_for_the_driver_beats(void)
{
    manual_t m;
    begin(&m);
    shmd_process_t self;
    shmd_process_self(&self); /* a driver that lives */
    m.rig.authority->driver_pid = self.pid;
    m.rig.authority->driver_start_time = self.start_time;
    m.rig.authority->driver_pid_namespace = self.pid_namespace;
    m.rig.authority->driver_time_namespace = self.time_namespace;
    m.rig.client.authority_fd = -1;
    pthread_t thread = test_thread(ask, &m);
    await_beats(&m);
    shmd_word_store(&m.rig.authority->exit_kind, SHMD_EXIT_CLEAN);
    test_join(thread);
    finish(&m);
}

static void test_a_client_with_a_thread_leaves_the_beats_to_it(void)
{
    manual_t m;
    begin(&m);
    m.rig.client.is_manual = 0;
    CHECK_EQ(shmd_client_waits(&m.rig.client, UINT64_MAX, 77), 77);
    CHECK_EQ(m.line->beat, 0);
    finish(&m);
}

static void test_a_wait_sleeps_no_longer_than_until_the_next_beat(void)
{
    manual_t m;
    begin(&m);
    CHECK_EQ(shmd_client_waits(&m.rig.client, 1000, UINT64_MAX), INTERVAL_NS);
    CHECK_EQ(m.line->beat, 1);
    CHECK_EQ(shmd_client_waits(&m.rig.client, 1000 + INTERVAL_NS / 4, UINT64_MAX), INTERVAL_NS - INTERVAL_NS / 4);
    CHECK_EQ(shmd_client_waits(&m.rig.client, 1000 + INTERVAL_NS / 4, 9), 9);
    CHECK_EQ(m.line->beat, 1);
    CHECK_EQ(shmd_client_waits(&m.rig.client, 1000 + INTERVAL_NS, 9), 9);
    CHECK_EQ(m.line->beat, 2);
    finish(&m);
}

int main(void)
{
    RUN(test_a_confirmation_stands_in_the_segment_until_a_later_lease_has_the_entry);
    RUN(test_an_abandoned_lease_ends_by_a_note_that_needs_no_driver);
    RUN(test_a_silent_client_beats_no_more);
    RUN(test_keepalive_says_that_its_client_was_expelled);
    RUN(test_keepalive_says_that_its_driver_was_stopped);
    RUN(test_keepalive_is_not_for_a_client_with_a_thread);
    RUN(test_a_consumer_that_waits_beats);
    RUN(test_a_wait_for_several_and_a_fetch_beat);
    RUN(test_a_producer_that_waits_for_room_beats);
    if (!IS_EMULATED)
        RUN(test_a_client_that_waits_for_the_driver_beats);
    RUN(test_a_client_with_a_thread_leaves_the_beats_to_it);
    RUN(test_a_wait_sleeps_no_longer_than_until_the_next_beat);
    return test_report();
}
