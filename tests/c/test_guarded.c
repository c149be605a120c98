/* test_guarded.c: the calls for Python: held views, small buffers, closing from several threads, and readers that poll
 * twice or meet what no honest producer writes. */
#include <pthread.h>

#include "rig.h"

static void put(shmd_producer *p, uint32_t length)
{
    unsigned char payload[4096];
    rig_fill(payload, length, p->seq);
    CHECK_EQ(shmd_publish(p, payload, length, 0), SHMD_OK);
}

static void test_what_nobody_overwrites_any_more_is_all_delivered_to_an_oldest_joiner(void)
{
    rig_t rig;
    void *data;
    shmd_message message;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    for (int i = 0; i < 200; i++)
        put(p, 16);
    CHECK_EQ(shmd_claim(p, 16, &data), SHMD_OK); /* the oldest message is gone */
    CHECK_EQ(shmd_abort(p), SHMD_OK);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 1, 0);
    rig.stream->epochs[0].end_reason = SHMD_REASON_CLOSED;
    (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 1);
    int got = 0;
    while (shmd_poll(c, &message) == 1) {
        got++;
        (void)shmd_advance(c);
    }
    CHECK_EQ(got, 63);
    CHECK_EQ(c->lost, 1);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_views_are_not_blamed_for_a_wait_that_is_over(void)
{
    rig_t rig;
    shmd_batch_t batch;
    unsigned char payload[4096] = {0};
    unsigned char out[8192];
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    for (uint64_t hold = UINT64_MAX, i = 0; i < 2; i++, hold = 0) { /* a view of seq 0 is kept */
        CHECK_EQ(shmd_publish(p, payload, sizeof payload, 0), SHMD_OK);
        CHECK_EQ(shmd_guarded_fetch(c, hold, 8, 0, out, sizeof out, &batch), 1);
    }
    CHECK_EQ(shmd_publish(p, payload, 4000, 0), SHMD_BACK_PRESSURED); /* dropped; it goes on with small ones */
    CHECK_EQ(shmd_guarded_fetch(c, 0, 8, 1000000, out, sizeof out, &batch), SHMD_E_VIEWS_HELD);
    for (int i = 0; i < 5; i++) {
        put(p, 16);
        CHECK_EQ(shmd_load32_relaxed(&rig.data->blocked_gate), 0);
        CHECK_EQ(shmd_guarded_fetch(c, 0, 8, 1000000, out, sizeof out, &batch), 1);
        CHECK_EQ(shmd_guarded_fetch(c, 0, 8, 1000000, out, sizeof out, &batch), 0);
    }
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_an_advance_after_a_poll_that_ended_the_epoch_does_nothing(void)
{
    rig_t rig;
    shmd_message message;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    put(p, 8);
    CHECK_EQ(shmd_poll(c, &message), 1);
    shmd_store_relaxed(&((shmd_slot_t *)(void *)rig.ring)->commit, 0); /* no honest producer takes a commit back */
    (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 1);
    CHECK(shmd_poll(c, &message) < 0);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    CHECK_EQ(c->lost, 1);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_length_that_no_producer_may_send_is_passed_over(void)
{
    rig_t rig;
    shmd_message message;
    unsigned char payload[4096] = {0};
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SPIN, 0, 0);
    CHECK_EQ(shmd_publish(p, payload, sizeof payload, 0), SHMD_OK);
    put(p, 8);
    ((shmd_slot_t *)(void *)rig.ring)->length = 8000; /* fits the arena, and not half of it */
    ((shmd_arena_ref_t *)(void *)(rig.ring + SHMD_SLOT_HEADER_BYTES))->bytes = 8192;
    CHECK_EQ(shmd_poll(c, &message), 1);
    CHECK_EQ(message.seq, 1);
    CHECK_EQ(c->lost, 1);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_records_are_not_copied_into_a_buffer_that_is_too_small(void)
{
    rig_t rig;
    shmd_batch_t batch;
    unsigned char out[8];
    rig_start(&rig, 64, 128, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    put(p, 64);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 1, 0);
    batch.mapping_serial = c->mapping_serial;
    CHECK_EQ(shmd_guarded_fetch_records(c, UINT64_MAX, 4, 64, 0, out, sizeof out, &batch), SHMD_E_TOO_LARGE);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

/* fault: 53 (records of the next epoch, asked for with the schema of the one before) */
static void test_records_of_another_epoch_than_the_caller_knows_stay(void)
{
    rig_t rig;
    shmd_batch_t batch;
    char schema[8];
    rig_start(&rig, 64, 128, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    put(p, 64);
    uint64_t here = c->mapping_serial, position = c->position;
    batch.mapping_serial = here - 1;
    CHECK_EQ(shmd_guarded_fetch_records(c, UINT64_MAX, 4, 64, 0, NULL, 0, &batch), 0);
    CHECK_EQ(batch.mapping_serial, here);
    CHECK_EQ(shmd_guarded_fetch_records(c, UINT64_MAX, 0, 64, 0, NULL, 0, &batch), 1); /* only a look */
    CHECK_EQ(c->position, position);
    CHECK_EQ(shmd_guarded_schema(c, here, schema, sizeof schema), 0);
    CHECK_EQ(shmd_guarded_schema(c, here - 1, schema, sizeof schema), SHMD_E_LAYOUT);
    rig.data->schema_bytes = UINT32_MAX;
    CHECK_EQ(shmd_guarded_schema(c, here, schema, sizeof schema), SHMD_E_CORRUPT);
    rig.data->schema_bytes = 0;
    CHECK_EQ(shmd_guarded_fetch_records(c, UINT64_MAX, 4, 64, 0, NULL, 0, &batch), 1);
    CHECK_EQ(batch.count, 1);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void *close_producer(void *producer) { return (void *)(intptr_t)shmd_guarded_producer_close(producer, 0); }

static void test_two_threads_may_close_one_handle(void)
{
    for (int i = 0; i < 300; i++) {
        rig_t rig;
        rig_start(&rig, 64, 64, 0, 0);
        rig.client.references = 100; /* the rig's own */
        rig.client.client_id = 5;
        rig.client.fork_generation = shmd_fork_generation();
        rig.authority->exit_kind = SHMD_EXIT_CLEAN; /* nobody to ask */
        shmd_producer *p = rig_producer(&rig);
        pthread_t other = test_thread(close_producer, p);
        CHECK_EQ((intptr_t)close_producer(p), SHMD_OK);
        test_join(other);
        CHECK_EQ(shmd_guarded_publish(p, (const uint8_t *)"x", 1, 0), SHMD_E_CLOSED);
        shmd_guarded_producer_drop(&p);
        rig_stop(&rig);
    }
}

static void *close_consumer(void *consumer) { return (void *)(intptr_t)shmd_guarded_consumer_close(consumer); }

/* A rig whose driver has ended, so that a close asks nobody; and a reliable consumer of it. */
static shmd_consumer *rig_that_ended(rig_t *rig)
{
    rig_start(rig, 64, 64, 0, 0);
    rig->client.references = 100; /* the rig's own */
    rig->client.client_id = 5;
    rig->authority->exit_kind = SHMD_EXIT_CLEAN;
    return rig_consumer(rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
}

/* fault: 46 (one closer gives up while the other waits) */
static void test_a_closer_that_gives_up_lets_nobody_look_while_another_closes(void)
{
    rig_t rig;
    shmd_consumer *c = rig_that_ended(&rig);
    CHECK_EQ(shmd_exchange32(&c->busy, 1), 0); /* this thread stays inside */
    shmd_store_relaxed(&shmd_guard_patience_ns, UINT64_MAX);
    pthread_t patient = test_thread(close_consumer, c);
    while (shmd_load32_acquire(&c->closing) == SHMD_HANDLE_OPEN)
        (void)sched_yield();
    shmd_store_relaxed(&shmd_guard_patience_ns, 0);
    CHECK_EQ(shmd_guarded_consumer_close(c), SHMD_E_CONCURRENT);
    CHECK(shmd_load32_acquire(&c->closing) != SHMD_HANDLE_OPEN);
    CHECK(!shmd_consumer_look_begin(c));
    CHECK_EQ(shmd_guarded_release(c, UINT64_MAX), SHMD_E_CLOSED); /* not "another thread is inside" */
    shmd_handle_leave(&c->busy);
    test_join(patient);
    CHECK(shmd_is_closed(&c->closing));
    shmd_guarded_consumer_drop(&c);
    rig_stop(&rig);
}

static void test_a_handle_that_nobody_could_close_is_open_as_before(void)
{
    rig_t rig;
    shmd_consumer *c = rig_that_ended(&rig);
    shmd_store_relaxed(&shmd_guard_patience_ns, 0);
    CHECK_EQ(shmd_exchange32(&c->busy, 1), 0);
    CHECK_EQ(shmd_guarded_consumer_close(c), SHMD_E_CONCURRENT);
    CHECK_EQ(shmd_guarded_consumer_close(c), SHMD_E_CONCURRENT);
    shmd_handle_leave(&c->busy);
    CHECK_EQ(shmd_load32_acquire(&c->closing), SHMD_HANDLE_OPEN);
    CHECK(shmd_consumer_look_begin(c));
    shmd_consumer_look_end(c);
    CHECK_EQ(shmd_guarded_release(c, UINT64_MAX), SHMD_OK);
    CHECK_EQ(shmd_guarded_consumer_close(c), SHMD_OK);
    CHECK_EQ(shmd_guarded_consumer_close(c), SHMD_OK);
    CHECK_EQ(shmd_guarded_release(c, UINT64_MAX), SHMD_E_CLOSED);
    shmd_guarded_consumer_drop(&c);
    rig_stop(&rig);
}

static void *look_until_closed(void *consumer)
{
    const shmd_consumer *c = consumer;
    uint64_t heads = 0;
    while (!shmd_is_closed(&c->closing)) {
        if (shmd_consumer_look_begin(c)) {
            heads += shmd_load_acquire(&c->data->head); /* of a mapping that the closer unmaps */
            shmd_consumer_look_end(c);
        }
    }
    return (void *)(uintptr_t)heads;
}

static void *go_in_and_out(void *consumer)
{
    int rc;
    while ((rc = shmd_guarded_release(consumer, UINT64_MAX)) != SHMD_E_CLOSED || !shmd_is_closed(&((shmd_consumer *)consumer)->closing))
        CHECK(rc == SHMD_OK || rc == SHMD_E_CONCURRENT || rc == SHMD_E_CLOSED);
    return NULL;
}

static void *close_at_last(void *consumer)
{
    while (shmd_guarded_consumer_close(consumer) != SHMD_OK)
        continue;
    return NULL;
}

static void test_closers_lookers_and_a_caller_meet(void)
{
    shmd_store_relaxed(&shmd_guard_patience_ns, 0); /* gives up whenever another thread is inside */
    for (uint64_t i = 0; i < test_scale(300); i++) {
        rig_t rig;
        shmd_consumer *c = rig_that_ended(&rig);
        pthread_t threads[] = {test_thread(look_until_closed, c), test_thread(go_in_and_out, c), test_thread(close_at_last, c),
                               test_thread(close_at_last, c)};
        for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++)
            test_join(threads[t]);
        CHECK_EQ(c->closing, SHMD_HANDLE_CLOSED); /* no mark is left */
        shmd_guarded_consumer_drop(&c);
        rig_stop(&rig);
    }
    shmd_store_relaxed(&shmd_guard_patience_ns, 500000000);
}

static void *poll_past_the_end(void *consumer)
{
    shmd_message message;
    return (void *)(intptr_t)shmd_poll((shmd_consumer *)consumer, &message);
}

__attribute__((unused)) static void *look_on(void *consumer)
{
    shmd_consumer_info_t info;
    while (shmd_load32_acquire(&((shmd_consumer *)consumer)->closing) == SHMD_HANDLE_OPEN) {
        shmd_consumer_info(consumer, &info);
        (void)shmd_consumer_end_seq(consumer);
    }
    return NULL;
}

static void test_an_epoch_stays_mapped_while_another_thread_looks_at_it(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, SHMD_ATTACH_FOLLOW);
    (void)shmd_add32(&c->lookers, 1); /* as one who has just begun to look */
    const shmd_data_t *data = c->data;
    rig.stream->epochs[0].end_reason = SHMD_REASON_CLOSED;
    (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 1);
    pthread_t owner = test_thread(poll_past_the_end, c);
    while (shmd_gate_left(rig.gates, 0) != c->lease_id) /* it is about to go */
        (void)sched_yield();
    for (int i = 0; i < 200; i++) {
        (void)sched_yield();
        CHECK(*(const shmd_data_t *const volatile *)&c->data == data);
    }
    (void)shmd_sub32(&c->lookers, 1);
    test_join(owner);
    CHECK(c->mapping == NULL);
    rig_consumer_free(c);
    rig_stop(&rig);
}

__attribute__((unused)) static void test_threads_look_at_a_consumer_that_goes_through_epochs(void)
{
    rig_t rig;
    shmd_message message;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, SHMD_ATTACH_FOLLOW);
    pthread_t lookers[2] = {test_thread(look_on, c), test_thread(look_on, c)};
    for (uint32_t i = 0, epoch = RIG_EPOCH; i < test_scale(300); i++, epoch++) {
        uint64_t start;
        if (i != 0) {
            rig_epoch_unmap(&rig);
            rig_unlink();
            rig_epoch(&rig, i % 2, epoch, 0);
            (void)shmd_epoch_join(rig.hot, rig.data, rig.gates, &rig.geometry, 0, 1, 0, c->lease_id, 0, 0, &start);
        }
        CHECK_EQ(shmd_poll(c, &message), 0);
        CHECK_EQ(c->epoch, epoch);
        rig.stream->epochs[i % 2].end_reason = SHMD_REASON_CLOSED;
        (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 1);
        CHECK_EQ(shmd_poll(c, &message), 0);
        CHECK_EQ(c->epoch, 0);
    }
    shmd_store32_release(&c->closing, SHMD_HANDLE_CLOSED);
    test_join(lookers[0]);
    test_join(lookers[1]);
    rig_consumer_free(c);
    rig_stop(&rig);
}

static void test_no_handle_is_a_closed_handle(void)
{
    shmd_batch_t batch;
    CHECK_EQ(shmd_guarded_publish(NULL, (const uint8_t *)"x", 1, 0), SHMD_E_CLOSED);
    CHECK_EQ(shmd_guarded_fetch(NULL, 0, 1, 0, NULL, 0, &batch), SHMD_E_CLOSED);
}

int main(void)
{
    RUN(test_what_nobody_overwrites_any_more_is_all_delivered_to_an_oldest_joiner);
    RUN(test_views_are_not_blamed_for_a_wait_that_is_over);
    RUN(test_an_advance_after_a_poll_that_ended_the_epoch_does_nothing);
    RUN(test_a_length_that_no_producer_may_send_is_passed_over);
    RUN(test_records_are_not_copied_into_a_buffer_that_is_too_small);
    RUN(test_records_of_another_epoch_than_the_caller_knows_stay);
    RUN(test_two_threads_may_close_one_handle);
    RUN(test_a_closer_that_gives_up_lets_nobody_look_while_another_closes);
    RUN(test_a_handle_that_nobody_could_close_is_open_as_before);
    RUN(test_closers_lookers_and_a_caller_meet);
    RUN(test_an_epoch_stays_mapped_while_another_thread_looks_at_it);
#ifndef __SANITIZE_THREAD__ /* positions and counts are read as they stand, one word each */
    RUN(test_threads_look_at_a_consumer_that_goes_through_epochs);
#endif
    RUN(test_no_handle_is_a_closed_handle);
    return test_report();
}
