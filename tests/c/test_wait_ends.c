/* What ends a wait, how long its sleeps are, and that nothing yields. This program is linked
 * (Makefile) with its own shmd_futex_wait_any: its sleeps have no time limit, so a wake-up that
 * is lost hangs, and make ends it; or they return at once, and are noted.
 * fault: 41, 76 (all that ends a wait: endless sleeps) */
#include "rig.h"

#include <sys/eventfd.h>

enum { SLEEPS_NOTED = 8, NOTED_MAX = 16 };
static const uint64_t MS = 1000000;
static uint32_t sleeps, yields, is_noting, noted, interrupted_at;
static uint64_t slices[NOTED_MAX];
static void (*at_last)(void); /* what is done in the last sleep that is noted */

int __real_shmd_futex_wait_any(const shmd_word_t *words, uint32_t n, uint64_t timeout_ns,
                               uint64_t look_ns);
int __wrap_shmd_futex_wait_any(const shmd_word_t *words, uint32_t n, uint64_t timeout_ns,
                               uint64_t look_ns);
int __real_sched_yield(void);
int __wrap_sched_yield(void);
int __real_shmd_poll_slow(shmd_consumer *consumer, shmd_message *out);
int __wrap_shmd_poll_slow(shmd_consumer *consumer, shmd_message *out);

int __wrap_sched_yield(void)
{
    (void)shmd_add32(&yields, 1);
    return __real_sched_yield();
}

int __wrap_shmd_futex_wait_any(const shmd_word_t *words, uint32_t n, uint64_t timeout_ns,
                               uint64_t look_ns)
{
    uint32_t is_noted = shmd_load32_acquire(&is_noting); /* before others hear of this sleep */
    (void)shmd_add32(&sleeps, 1);
    if (!is_noted)
        return __real_shmd_futex_wait_any(words, n, UINT64_MAX, look_ns);
    CHECK(noted < NOTED_MAX);
    slices[noted++] = timeout_ns;
    if (noted == SLEEPS_NOTED)
        at_last();
    return noted == interrupted_at ? SHMD_E_INTERRUPTED : SHMD_E_TIMEOUT;
}

static void (*before_slow_poll)(void);

int __wrap_shmd_poll_slow(shmd_consumer *consumer, shmd_message *out)
{
    if (before_slow_poll != NULL)
        before_slow_poll();
    return __real_shmd_poll_slow(consumer, out);
}

static rig_t rig;
static shmd_producer *producer;
static shmd_consumer *consumer;

static void start(uint32_t wait)
{
    rig_start(&rig, 64, 64, 0, 0);
    producer = rig_producer(&rig);
    consumer = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, wait, 0, 0);
    sleeps = yields = noted = is_noting = interrupted_at = 0;
}

static void stop(void)
{
    rig_consumer_free(consumer);
    rig_producer_free(producer);
    rig_stop(&rig);
}

static void publish_one(void) { CHECK_EQ(shmd_publish(producer, "x", 1, 0), SHMD_OK); }

static void take_one(void)
{
    shmd_message m;
    CHECK_EQ(shmd_poll(consumer, &m), 1);
    CHECK_EQ(shmd_advance(consumer), SHMD_OK);
}

static void fill(void)
{
    while (shmd_publish(producer, "x", 1, 0) == SHMD_OK)
        ;
}

static void check_slices(uint64_t first_ns)
{
    uint64_t expected = first_ns;
    for (uint32_t i = 0; i < SLEEPS_NOTED; i++, expected = shmd_min(expected * 2, 1000 * MS))
        CHECK_EQ(slices[i], expected);
}

/* ---- how long sleeps are ------------------------------------------------------------------ */

static void test_a_readers_sleeps_grow_while_nothing_comes(void)
{
    for (uint32_t wait = SHMD_WAIT_ADAPTIVE; wait <= SHMD_WAIT_SLEEP; wait++) {
        if (wait == SHMD_WAIT_SPIN)
            continue;
        start(wait);
        is_noting = 1;
        at_last = publish_one;
        CHECK_EQ(shmd_wait(consumer, UINT64_MAX), 1);
        check_slices(20 * MS);
        take_one();
        noted = 0;
        CHECK_EQ(shmd_wait(consumer, UINT64_MAX), 1); /* they begin anew after a message */
        check_slices(20 * MS);
        CHECK_EQ(yields, 0);
        stop();
    }
}

static void test_a_wait_that_is_called_again_sleeps_on(void)
{
    start(SHMD_WAIT_SLEEP);
    is_noting = 1;
    interrupted_at = 3;
    at_last = publish_one;
    CHECK_EQ(shmd_wait(consumer, UINT64_MAX), SHMD_E_INTERRUPTED);
    CHECK_EQ(slices[2], 80 * MS);
    noted = interrupted_at = 0;
    CHECK_EQ(shmd_wait(consumer, UINT64_MAX), 1);
    check_slices(80 * MS);
    stop();
}

static void test_sleeps_of_a_wait_for_several_grow_while_nothing_comes(void)
{
    start(SHMD_WAIT_ADAPTIVE);
    shmd_consumer *other = rig_consumer(&rig, 1, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SLEEP, 0, 0);
    shmd_consumer *both[] = {consumer, other};
    is_noting = 1;
    at_last = publish_one;
    CHECK_EQ(shmd_wait_many(both, 2, UINT64_MAX), 2);
    check_slices(20 * MS);
    CHECK_EQ(yields, 0);
    rig_consumer_free(other);
    stop();
}

static uint32_t waiting_seen;

static void take_one_and_look(void)
{
    CHECK_EQ(shmd_load32_relaxed(&rig.data->room_waiting), waiting_seen); /* what was announced stands */
    take_one();
}

static void test_a_producers_sleeps_grow_while_there_is_no_room(void)
{
    start(SHMD_WAIT_SPIN);
    fill();
    waiting_seen = 1u << 8 | 1;
    is_noting = 1;
    at_last = take_one_and_look;
    CHECK_EQ(shmd_publish_wait(producer, "x", 1, 0, UINT64_MAX), SHMD_OK);
    check_slices(2 * MS);
    CHECK_EQ(yields, 0);
    CHECK_EQ(rig.data->room_waiting, 0);
    stop();
}

/* Its reader's gate is at the head, and only its cursor moves: nobody looks for a sleeper. */
static void test_sleeps_are_short_while_a_reader_of_kept_messages_catches_up(void)
{
    start(SHMD_WAIT_SPIN);
    shmd_epoch_leave(rig.hot, 0);
    CHECK_EQ(shmd_producer_keep(producer, 8), SHMD_OK);
    fill();
    shmd_consumer *first = consumer;
    consumer = rig_consumer(&rig, 1, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 1, 0);
    CHECK_EQ(consumer->gated_from, 8);
    is_noting = 1;
    at_last = take_one;
    CHECK_EQ(shmd_publish_wait(producer, "x", 1, 0, UINT64_MAX), SHMD_OK);
    for (uint32_t i = 0; i < SLEEPS_NOTED; i++)
        CHECK_EQ(slices[i], 2 * MS);
    rig_consumer_free(first);
    stop();
}

static uint32_t is_over;

static void note_no_more(void)
{
    shmd_store32_release(&is_noting, 0);
    shmd_store32_release(&is_over, 1);
}

static void wait_for_sleep(uint32_t before)
{
    while (shmd_load32_acquire(&sleeps) == before)
        (void)__real_sched_yield();
}

static void test_a_notifiers_sleeps_grow_while_nothing_comes(void)
{
    start(SHMD_WAIT_SLEEP);
    at_last = note_no_more;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK_EQ(shmd_consumer_watch(consumer, fd), SHMD_OK);
    wait_for_sleep(0);
    shmd_store32_release(&is_noting, 1);
    shmd_authority_changed(rig.authority); /* nothing has changed for this reader */
    while (!shmd_load32_acquire(&is_over))
        (void)__real_sched_yield();
    for (uint32_t i = 1; i < SLEEPS_NOTED; i++)
        CHECK(slices[i] == shmd_longer(slices[i - 1]) || slices[i] == 20 * MS); /* anew: a word was added */
    CHECK_EQ(slices[SLEEPS_NOTED - 1], 1000 * MS);
    shmd_notifier_stop(&rig.client.notifier);
    shmd_watch_end(consumer);
    (void)close(fd);
    stop();
}

/* ---- what ends them ----------------------------------------------------------------------- */

static void *read_on(void *argument)
{
    unsigned char out[512];
    shmd_batch_t batch;
    uint64_t hold_seq = *(uint64_t *)argument;
    *(int64_t *)argument =
        shmd_guarded_fetch(consumer, hold_seq, 16, UINT64_MAX, out, sizeof out, &batch);
    return NULL;
}

static void *write_on(void *argument)
{
    *(int *)argument = shmd_guarded_wait_room(producer, 1, UINT64_MAX);
    return NULL;
}

static void test_an_eviction_ends_its_readers_sleep(void)
{
    start(SHMD_WAIT_SLEEP);
    int64_t result = -1; /* holds nothing */
    pthread_t thread = test_thread(read_on, &result);
    wait_for_sleep(0);
    (void)rig_lease(&rig, consumer->lease_index, SHMD_LEASE_REVOKED);
    shmd_epoch_leave(rig.hot, 0);
    shmd_authority_changed(rig.authority);
    test_join(thread);
    CHECK_EQ(result, SHMD_E_REVOKED);
    stop();
}

static void test_a_seal_ends_its_readers_sleep(void)
{
    start(SHMD_WAIT_SLEEP);
    int64_t result = -1;
    pthread_t thread = test_thread(read_on, &result);
    wait_for_sleep(0);
    rig.stream->epochs[0].end_reason = SHMD_REASON_CLOSED;
    (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 1);
    shmd_authority_changed(rig.authority);
    test_join(thread);
    CHECK_EQ(result, SHMD_E_END);
    stop();
}

static void test_a_close_ends_its_readers_sleep(void)
{
    start(SHMD_WAIT_SLEEP);
    int64_t result = -1;
    pthread_t thread = test_thread(read_on, &result);
    wait_for_sleep(0);
    CHECK_EQ(shmd_guarded_consumer_abandon(consumer), SHMD_E_CONCURRENT);
    test_join(thread);
    CHECK_EQ(result, SHMD_E_CLOSED);
    stop();
}

typedef struct pair {
    shmd_consumer *consumers[2];
    int result;
} pair_t;

static void *wait_for_either(void *argument)
{
    pair_t *pair = argument;
    pair->result = shmd_guarded_wait_many(pair->consumers, 2, UINT64_MAX, NULL, 0);
    return NULL;
}

static void test_a_close_and_a_change_at_any_driver_end_a_wait_for_several(void)
{
    for (int closes = 0; closes < 2; closes++) {
        static rig_t far;
        start(SHMD_WAIT_SLEEP);
        rig_start(&far, 64, 64, 0, 0);
        shmd_consumer *c = rig_consumer(&far, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
        pair_t pair = {.consumers = {consumer, c}};
        pthread_t thread = test_thread(wait_for_either, &pair);
        wait_for_sleep(0);
        if (closes) {
            CHECK_EQ(shmd_guarded_consumer_abandon(c), SHMD_E_CONCURRENT);
        } else {
            shmd_epoch_leave(far.hot, 0);
            shmd_authority_changed(far.authority);
        }
        test_join(thread);
        CHECK_EQ(pair.result, closes ? SHMD_E_CLOSED : 1);
        rig_consumer_free(c);
        rig_stop(&far);
        stop();
    }
}

static uint32_t knocks;

static void knock(void)
{
    (void)shmd_add32(&knocks, 1);
    shmd_futex_wake(&knocks);
}

static void *wait_for_either_or_a_knock(void *argument)
{
    shmd_word_t word = {.word = &knocks, .seen = 0};
    pair_t *pair = argument;
    pair->result = shmd_guarded_wait_many(pair->consumers, pair->consumers[1] == NULL ? 1 : 2, UINT64_MAX, &word, 1);
    return NULL;
}

static void *write_on_or_a_knock(void *argument)
{
    shmd_word_t word = {.word = &knocks, .seen = 0};
    *(int *)argument = shmd_guarded_wait_room_or(producer, 1, UINT64_MAX, &word);
    return NULL;
}

static void test_another_word_ends_a_wait_for_several(void)
{
    for (int early = 0; early < 2; early++) {
        start(SHMD_WAIT_SLEEP);
        knocks = 0;
        pair_t pair = {.consumers = {consumer, NULL}, .result = -1};
        if (early)
            knock();
        pthread_t thread = test_thread(wait_for_either_or_a_knock, &pair);
        if (!early) {
            wait_for_sleep(0);
            knock();
        }
        test_join(thread);
        CHECK_EQ(pair.result, 0);
        stop();
    }
}

static void test_another_word_ends_a_producers_wait_for_room(void)
{
    for (int early = 0; early < 2; early++) {
        start(SHMD_WAIT_SLEEP);
        fill();
        knocks = 0;
        int result = 1;
        if (early)
            knock();
        pthread_t thread = test_thread(write_on_or_a_knock, &result);
        if (!early) {
            wait_for_sleep(0);
            knock();
        }
        test_join(thread);
        CHECK_EQ(result, SHMD_BACK_PRESSURED);
        stop();
    }
}

/* All of its consumers are away: only the words are left. */
static void test_a_wait_for_none_lasts_until_a_word_changes(void)
{
    start(SHMD_WAIT_SLEEP);
    knocks = 0;
    shmd_word_t word = {.word = &knocks, .seen = 0};
    is_noting = 1;
    at_last = knock;
    CHECK_EQ(shmd_guarded_wait_many(NULL, 0, UINT64_MAX, &word, 1), 0);
    CHECK_EQ(noted, SLEEPS_NOTED);
    stop();
}

static void test_a_producers_sleep_ends_when_the_reader_that_holds_it_back_is_evicted(void)
{
    start(SHMD_WAIT_SLEEP);
    fill();
    int result = 1;
    pthread_t thread = test_thread(write_on, &result);
    wait_for_sleep(0);
    shmd_epoch_leave(rig.hot, 0);
    shmd_authority_changed(rig.authority);
    test_join(thread);
    CHECK_EQ(result, SHMD_OK);
    stop();
}

static void test_a_producers_sleep_ends_with_its_lease_and_with_a_close(void)
{
    for (int closes = 0; closes < 2; closes++) {
        start(SHMD_WAIT_SLEEP);
        fill();
        int result = 1;
        pthread_t thread = test_thread(write_on, &result);
        wait_for_sleep(0);
        if (closes) {
            CHECK_EQ(shmd_guarded_producer_abandon(producer), SHMD_E_CONCURRENT);
        } else {
            (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 0, 0);
            shmd_authority_changed(rig.authority);
        }
        test_join(thread);
        CHECK_EQ(result, closes ? SHMD_E_CLOSED : SHMD_E_REVOKED);
        stop();
    }
}

static void *sleep_beside(void *argument)
{
    static const uint32_t never_changes;
    int rc = SHMD_OK;
    while (rc == SHMD_OK || rc == SHMD_E_TIMEOUT) /* of a slice, where the kernel cannot wait for several words */
        rc = shmd_producer_sleep(producer, &never_changes, 0, UINT64_MAX);
    *(int *)argument = rc;
    return NULL;
}

static void test_a_close_ends_the_sleep_of_who_waits_beside_a_producer(void)
{
    start(SHMD_WAIT_SLEEP);
    int result = 1;
    pthread_t thread = test_thread(sleep_beside, &result);
    wait_for_sleep(0);
    CHECK_EQ(shmd_guarded_producer_abandon(producer), SHMD_OK);
    test_join(thread);
    CHECK_EQ(result, SHMD_E_CLOSED);
    stop();
}

static void test_a_consumers_admission_ends_the_sleep_of_a_producer_without_one(void)
{
    start(SHMD_WAIT_SLEEP);
    shmd_epoch_leave(rig.hot, 0);
    producer->min_consumers = 1;
    producer->limit = 0;
    int result = 1;
    pthread_t thread = test_thread(write_on, &result);
    wait_for_sleep(0);
    shmd_consumer *c = rig_consumer(&rig, 1, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    shmd_event_writer *writer = shmd_event_writer_new(rig.authority);
    shmd_event_t event = {.kind = SHMD_EVENT_ATTACH_RESPONSE};
    (void)shmd_event_publish(writer, &event);
    shmd_event_writer_free(writer);
    test_join(thread);
    CHECK_EQ(result, SHMD_OK);
    rig_consumer_free(c);
    stop();
}

/* ---- views that hold a gate, and are gone -------------------------------------------------- */

static void announce_too_late(void)
{
    if (rig.data->room_waiting == 0) /* as a producer that looked at the gate right before it moved */
        shmd_store32_relaxed(&rig.data->room_waiting, 1u << 8 | 1);
}

static void test_a_gate_that_moves_without_its_reader_wakes_a_producer_at_the_next_idle_turn(void)
{
    unsigned char out[512];
    shmd_batch_t batch;
    start(SHMD_WAIT_SLEEP);
    publish_one();
    CHECK_EQ(shmd_guarded_fetch(consumer, 0, 16, 0, out, sizeof out, &batch), 1); /* seq 0 is held */
    CHECK_EQ(shmd_guarded_fetch(consumer, 0, 16, 0, out, sizeof out, &batch), 0);
    uint32_t word = consumer->gate->room_word;
    before_slow_poll = announce_too_late;
    CHECK_EQ(shmd_guarded_fetch(consumer, UINT64_MAX, 16, 0, out, sizeof out, &batch), 0);
    before_slow_poll = NULL;
    CHECK_EQ(consumer->gate->position, 1);
    CHECK_EQ(consumer->gate->room_word, word + 1);
    stop();
}

static void test_a_producer_that_gets_no_room_wakes_the_reader_whose_views_hold_it_back(void)
{
    unsigned char out[8192];
    shmd_batch_t batch;
    start(SHMD_WAIT_SLEEP);
    fill();
    CHECK_EQ(shmd_guarded_fetch(consumer, 0, 64, 0, out, sizeof out, &batch), 64);
    shmd_producer_unblocked(producer);
    int64_t result = 0; /* holds seq 0 */
    pthread_t thread = test_thread(read_on, &result);
    wait_for_sleep(0);
    CHECK_EQ(shmd_publish(producer, "x", 1, 0), SHMD_BACK_PRESSURED);
    test_join(thread);
    CHECK_EQ(result, 0); /* nothing came: it is to say what it still holds */
    CHECK_EQ(shmd_guarded_fetch(consumer, 0, 64, 1, out, sizeof out, &batch), SHMD_E_VIEWS_HELD);
    CHECK_EQ(shmd_guarded_fetch(consumer, UINT64_MAX, 64, 0, out, sizeof out, &batch), 0);
    publish_one();
    stop();
}

static void test_a_producer_that_gets_no_room_ends_a_wait_for_several(void)
{
    unsigned char out[8192];
    shmd_batch_t batch;
    start(SHMD_WAIT_SLEEP);
    shmd_consumer *other = rig_consumer(&rig, 1, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SLEEP, 0, 0);
    fill();
    CHECK_EQ(shmd_guarded_fetch(consumer, 0, 64, 0, out, sizeof out, &batch), 64);
    while (shmd_guarded_fetch(other, UINT64_MAX, 64, 0, out, sizeof out, &batch) > 0)
        ;
    shmd_producer_unblocked(producer);
    pair_t pair = {.consumers = {other, consumer}, .result = -1};
    pthread_t thread = test_thread(wait_for_either, &pair);
    wait_for_sleep(0);
    CHECK_EQ(shmd_publish(producer, "x", 1, 0), SHMD_BACK_PRESSURED);
    test_join(thread);
    CHECK_EQ(pair.result, 0); /* their owner is to say what it still holds */
    sleeps = 0;
    CHECK_EQ(shmd_guarded_wait_many(pair.consumers, 2, UINT64_MAX, &(shmd_word_t){.word = &knocks, .seen = knocks + 1}, 1), 0);
    CHECK_EQ(sleeps, 0);
    is_noting = 1;
    interrupted_at = 1;
    CHECK_EQ(shmd_guarded_wait_many(pair.consumers, 2, UINT64_MAX, NULL, 0), SHMD_E_INTERRUPTED); /* the producer waits for these views already */
    CHECK_EQ(noted, 1);
    is_noting = 0;
    rig_consumer_free(other);
    stop();
}

int main(void)
{
    RUN(test_a_readers_sleeps_grow_while_nothing_comes);
    RUN(test_a_wait_that_is_called_again_sleeps_on);
    RUN(test_sleeps_of_a_wait_for_several_grow_while_nothing_comes);
    RUN(test_a_producers_sleeps_grow_while_there_is_no_room);
    RUN(test_sleeps_are_short_while_a_reader_of_kept_messages_catches_up);
    RUN(test_a_notifiers_sleeps_grow_while_nothing_comes);
    RUN(test_an_eviction_ends_its_readers_sleep);
    RUN(test_a_seal_ends_its_readers_sleep);
    RUN(test_a_close_ends_its_readers_sleep);
    RUN(test_a_close_and_a_change_at_any_driver_end_a_wait_for_several);
    RUN(test_another_word_ends_a_wait_for_several);
    RUN(test_another_word_ends_a_producers_wait_for_room);
    RUN(test_a_wait_for_none_lasts_until_a_word_changes);
    RUN(test_a_producers_sleep_ends_when_the_reader_that_holds_it_back_is_evicted);
    RUN(test_a_producers_sleep_ends_with_its_lease_and_with_a_close);
    RUN(test_a_close_ends_the_sleep_of_who_waits_beside_a_producer);
    RUN(test_a_consumers_admission_ends_the_sleep_of_a_producer_without_one);
    RUN(test_a_gate_that_moves_without_its_reader_wakes_a_producer_at_the_next_idle_turn);
    RUN(test_a_producer_that_gets_no_room_wakes_the_reader_whose_views_hold_it_back);
    RUN(test_a_producer_that_gets_no_room_ends_a_wait_for_several);
    return test_report();
}
