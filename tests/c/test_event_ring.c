/* The driver's news: one writer, readers without a gate, a successor that resumes. */
#include "rig.h"

static void event_of(uint64_t number, shmd_event_t *event)
{
    memset(event, 0, sizeof *event);
    event->kind = SHMD_EVENT_STREAM_ANNOUNCE;
    event->correlation_id = number;
    event->value = ~number;
    rig_fill(event->text, sizeof event->text - 1, number);
}

static uint64_t publish(shmd_event_writer *writer, uint64_t number)
{
    shmd_event_t event;
    event_of(number, &event);
    return shmd_event_publish(writer, &event);
}

static void check(const shmd_event_t *event, uint64_t number)
{
    CHECK_EQ(event->correlation_id, number);
    CHECK_EQ(event->value, ~number);
    CHECK(rig_matches(event->text, sizeof event->text - 1, number));
}

static void test_events_are_read_once_in_order(void)
{
    rig_t rig = {0};
    rig_authority(&rig);
    shmd_event_writer *writer = shmd_event_writer_new(rig.authority);
    uint64_t cursor = 0, lost = 0;
    shmd_event_t event;
    for (uint64_t i = 0; i < 100; i++) {
        CHECK_EQ(shmd_event_poll(rig.authority, &cursor, &event, &lost), 0);
        uint32_t word = rig.authority->event_word;
        CHECK_EQ(publish(writer, i), i);
        CHECK(rig.authority->event_word != word);
        CHECK_EQ(shmd_event_poll(rig.authority, &cursor, &event, &lost), 1);
        check(&event, i);
    }
    CHECK_EQ(lost, 0);
    CHECK_EQ(shmd_counter_get(rig.authority, SHMD_COUNTER_EVENTS), 100);
    shmd_event_writer_free(writer);
    free(rig.authority);
    free(rig.control);
}

static void test_an_overrun_reader_is_told_how_many_it_lost(void)
{
    rig_t rig = {0};
    rig_authority(&rig);
    shmd_event_writer *writer = shmd_event_writer_new(rig.authority);
    uint64_t cursor = 0, lost = 0, got = 0;
    shmd_event_t event;
    for (uint64_t i = 0; i < 1000; i++) {
        (void)publish(writer, i);
        if (i % 37 != 0)
            continue;
        while (shmd_event_poll(rig.authority, &cursor, &event, &lost)) {
            got++;
            CHECK_EQ(event.correlation_id, got + lost - 1);
        }
    }
    while (shmd_event_poll(rig.authority, &cursor, &event, &lost))
        got++;
    CHECK_EQ(got + lost, 1000);
    CHECK(lost > 0);
    shmd_event_writer_free(writer);
    free(rig.authority);
    free(rig.control);
}

static void test_a_successor_resumes_behind_what_was_committed(void)
{
    rig_t rig = {0};
    rig_authority(&rig);
    shmd_event_writer *writer = shmd_event_writer_new(rig.authority);
    for (uint64_t i = 0; i < 50; i++)
        (void)publish(writer, i);
    shmd_event_writer_free(writer);
    rig.authority->event_head = 48; /* killed between commit and head */
    writer = shmd_event_writer_new(rig.authority);
    CHECK_EQ(rig.authority->event_head, 50);
    CHECK_EQ(publish(writer, 50), 50);
    shmd_event_writer_free(writer);
    free(rig.authority);
    free(rig.control);
}

typedef struct listener {
    const shmd_authority_t *authority;
    uint64_t end, got, lost;
} listener_t;

static void *listen_all(void *argument)
{
    listener_t *l = argument;
    shmd_event_t event;
    uint64_t cursor = 0;
    while (cursor < l->end) {
        uint32_t seen = shmd_futex_load(&l->authority->event_word);
        uint64_t lost = 0;
        if (!shmd_event_poll(l->authority, &cursor, &event, &lost)) {
            l->lost += lost;
            (void)shmd_futex_wait(&l->authority->event_word, seen, 20000000);
            continue;
        }
        l->lost += lost;
        check(&event, cursor - 1);
        l->got++;
    }
    return NULL;
}

static void test_listeners_in_threads_see_no_torn_event(void)
{
    enum { LISTENERS = 3 };
    rig_t rig = {0};
    rig_authority(&rig);
    uint64_t n = test_scale(20000);
    shmd_event_writer *writer = shmd_event_writer_new(rig.authority);
    listener_t listeners[LISTENERS];
    pthread_t threads[LISTENERS];
    for (int i = 0; i < LISTENERS; i++) {
        listeners[i] = (listener_t){.authority = rig.authority, .end = n};
        threads[i] = test_thread(listen_all, &listeners[i]);
    }
    for (uint64_t i = 0; i < n; i++)
        (void)publish(writer, i);
    for (int i = 0; i < LISTENERS; i++) {
        test_join(threads[i]);
        CHECK_EQ(listeners[i].got + listeners[i].lost, n);
    }
    shmd_event_writer_free(writer);
    free(rig.authority);
    free(rig.control);
}

int main(void)
{
    RUN(test_events_are_read_once_in_order);
    RUN(test_an_overrun_reader_is_told_how_many_it_lost);
    RUN(test_a_successor_resumes_behind_what_was_committed);
    RUN(test_listeners_in_threads_see_no_torn_event);
    return test_report();
}
