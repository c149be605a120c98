/* Shards: which messages a consumer gets, where its gate stands, what it counts. And producers that keep what is unread,
 * with readers that resume.
 * fault: 43, 52 (a view held while its shard idles; a getter's successor that has nothing to read)
 * fault: 55 (a shard joins in a full ring, among peers that claim anything) */
#include "rig.h"

static void publish_many(shmd_producer *p, uint64_t n)
{
    unsigned char payload[16];
    for (uint64_t i = 0; i < n; i++) {
        rig_fill(payload, sizeof payload, p->seq);
        CHECK_EQ(shmd_publish(p, payload, sizeof payload, 5), SHMD_OK);
    }
}

static shmd_consumer *shard_of(rig_t *rig, uint32_t gate, uint32_t delivery, uint64_t shard, uint64_t shards)
{
    shmd_consumer *c = rig_consumer(rig, gate, delivery, SHMD_WAIT_SPIN, 0, 0);
    c->shard = shard;
    c->stride = shards;
    c->slack = shards - 1;
    c->position = shmd_shard_next(c, c->position);
    return c;
}

static uint64_t gate_of(const rig_t *rig, const shmd_consumer *c) { return shmd_gate_position(rig->gates, c->gate_index); }

static void expect(shmd_consumer *c, uint64_t seq)
{
    shmd_message m;
    CHECK_EQ(shmd_poll(c, &m), 1);
    CHECK_EQ(m.seq, seq);
    CHECK(rig_matches(m.data, 16, seq));
    CHECK_EQ(shmd_advance(c), SHMD_OK);
}

static void test_each_shard_gets_its_messages_and_its_gate_passes_the_others(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c[3] = {shard_of(&rig, 0, SHMD_DELIVERY_RELIABLE, 0, 3), shard_of(&rig, 1, SHMD_DELIVERY_RELIABLE, 1, 3),
                           shard_of(&rig, 2, SHMD_DELIVERY_RELIABLE, 2, 3)};
    shmd_message m;
    for (uint64_t seq = 0; seq < 400; seq++) {
        publish_many(p, 1);
        expect(c[seq % 3], seq);
        CHECK_EQ(gate_of(&rig, c[seq % 3]), seq + 1); /* never past what is committed */
        for (int k = 0; k < 3; k++) {
            CHECK_EQ(shmd_poll(c[k], &m), 0);
            CHECK_EQ(gate_of(&rig, c[k]), seq + 1);
        }
    }
    for (int k = 0; k < 3; k++) {
        CHECK_EQ(c[k]->lost, 0);
        CHECK_EQ(c[k]->consumed, 400 / 3 + (k == 0));
        rig_consumer_free(c[k]);
    }
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_shard_holds_the_producer_at_its_next_message(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = shard_of(&rig, 0, SHMD_DELIVERY_RELIABLE, 5, 8);
    publish_many(p, 64);
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED);
    expect(c, 5);
    publish_many(p, 6); /* seqs 64 to 69: what stands before seq 6 is nobody's */
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED);
    expect(c, 13);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_shards_gate_does_not_pass_what_its_caller_holds(void)
{
    for (int is_batch = 0; is_batch <= 1; is_batch++) {
        rig_t rig;
        unsigned char out[4096] = {0};
        shmd_batch_t batch;
        rig_start(&rig, 64, 64, 262144, 0);
        shmd_producer *p = rig_producer(&rig);
        shmd_consumer *c = shard_of(&rig, 0, SHMD_DELIVERY_RELIABLE, 0, 2);
        uint32_t length = is_batch ? 16 : 2048;
        for (int i = 0; i < 2; i++)
            CHECK_EQ(shmd_publish(p, out, length, 0), SHMD_OK);
        batch.mapping_serial = c->mapping_serial;
        int64_t found = is_batch ? shmd_guarded_fetch_records(c, UINT64_MAX, 1, length, 0, NULL, 0, &batch)
                                 : shmd_guarded_fetch(c, UINT64_MAX, 1, 0, out, sizeof out, &batch);
        CHECK_EQ(found, 1);
        CHECK_EQ(batch.copied, 0);
        shmd_consumer *many[1] = {c};
        CHECK_EQ(shmd_guarded_wait(c, 1), 0);
        CHECK_EQ(shmd_guarded_wait_many(many, 1, 1, NULL, 0), 0);
        CHECK_EQ(gate_of(&rig, c), 0);
        CHECK_EQ(shmd_guarded_fetch(c, 0, 1, 0, out, sizeof out, &batch), 0); /* the caller says that it holds seq 0 */
        CHECK_EQ(shmd_guarded_wait(c, 1), 0);
        CHECK_EQ(gate_of(&rig, c), 0);
        CHECK_EQ(shmd_guarded_release(c, UINT64_MAX), SHMD_OK);
        CHECK_EQ(gate_of(&rig, c), 2); /* nothing is held any more: past its message, and the other shard's after it */
        CHECK_EQ(shmd_guarded_wait(c, 1), 0);
        CHECK_EQ(gate_of(&rig, c), 2);
        rig_consumer_free(c);
        rig_producer_free(p);
        rig_stop(&rig);
    }
}

static void test_a_shard_joins_where_the_slowest_of_its_peers_stands(void)
{
    rig_t rig;
    uint64_t start = 0;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c[2] = {shard_of(&rig, 0, SHMD_DELIVERY_RELIABLE, 0, 3), shard_of(&rig, 1, SHMD_DELIVERY_RELIABLE, 1, 3)};
    publish_many(p, 64);
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED);
    expect(c[0], 0);
    expect(c[0], 3);
    expect(c[1], 1);
    CHECK_EQ(shmd_epoch_join(rig.hot, rig.data, rig.gates, &rig.geometry, 2, 1, 0, 77, 0, 3, &start), 2);
    CHECK_EQ(start, 2);
    CHECK_EQ(shmd_gate_position(rig.gates, 2), 2);
    expect(c[0], 6);
    expect(c[1], 4);
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_OK); /* into the slots before seq 2 only */
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_OK);
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(shmd_epoch_join(rig.hot, rig.data, rig.gates, &rig.geometry, 3, 1, 0, 78, 1, 3, &start), 5);
    CHECK_EQ(start, 2); /* the oldest that the ring still has */
    CHECK_EQ(shmd_gate_position(rig.gates, 3), 5);
    shmd_epoch_leave(rig.hot, 2);
    shmd_store_release(&shmd_gates_gate(rig.gates, 0)->position, UINT64_MAX); /* claims */
    shmd_store_release(&shmd_gates_gate(rig.gates, 1)->position, 1000);
    CHECK_EQ(shmd_epoch_join(rig.hot, rig.data, rig.gates, &rig.geometry, 2, 1, 0, 79, 0, 3, &start), 66);
    shmd_store_release(&shmd_gates_gate(rig.gates, 0)->position, 0);
    CHECK_EQ(shmd_epoch_join(rig.hot, rig.data, rig.gates, &rig.geometry, 2, 1, 0, 80, 0, 3, &start), 2);
    rig_consumer_free(c[0]);
    rig_consumer_free(c[1]);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_poll_many_takes_every_nth_and_one_advance_frees_them(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = shard_of(&rig, 0, SHMD_DELIVERY_RELIABLE, 2, 4);
    shmd_message m[64];
    publish_many(p, 64);
    CHECK_EQ(shmd_poll_many(c, m, 64), 16);
    for (uint64_t i = 0; i < 16; i++)
        CHECK(m[i].seq == 4 * i + 2 && rig_matches(m[i].data, 16, m[i].seq));
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    CHECK_EQ(gate_of(&rig, c), 63);
    CHECK_EQ(c->position, 66);
    CHECK_EQ(c->consumed, 16);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_lapped_shard_counts_its_own_messages_only(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *lossy = shard_of(&rig, 0, SHMD_DELIVERY_LOSSY, 1, 3);
    shmd_consumer *latest = shard_of(&rig, 1, SHMD_DELIVERY_LATEST, 1, 3);
    publish_many(p, 200);
    shmd_message m;
    uint64_t read = 0;
    while (shmd_poll(lossy, &m) == 1) {
        CHECK_EQ(m.seq % 3, 1);
        CHECK(rig_matches(m.data, 16, m.seq));
        CHECK_EQ(shmd_advance(lossy), SHMD_OK);
        read++;
    }
    CHECK_EQ(read + lossy->lost, 67); /* 1, 4, ... 199 */
    CHECK(lossy->lost > 0);
    CHECK_EQ(shmd_poll(latest, &m), 1);
    CHECK_EQ(m.seq, 199);
    CHECK_EQ(latest->skipped, 66);
    CHECK_EQ(latest->lost, 0);
    rig_consumer_free(lossy);
    rig_consumer_free(latest);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_shard_ends_though_the_seal_is_before_its_next_message(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = shard_of(&rig, 0, SHMD_DELIVERY_RELIABLE, 0, 10);
    publish_many(p, 3);
    expect(c, 0);
    ((shmd_epoch_record_t *)(void *)rig.hot)->end_reason = SHMD_REASON_CLOSED;
    (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 1);
    shmd_message m;
    CHECK_EQ(shmd_poll(c, &m), SHMD_E_END);
    CHECK_EQ(gate_of(&rig, c), 3);
    CHECK_EQ(c->lost, 0);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_producer_that_keeps_overwrites_nothing_unread_also_without_a_consumer(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    CHECK_EQ(shmd_producer_keep(p, 0), SHMD_E_INVALID);
    CHECK_EQ(shmd_producer_keep(p, 65), SHMD_E_INVALID);
    CHECK_EQ(shmd_producer_keep(p, 10), SHMD_OK);
    publish_many(p, 10);
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED); /* nobody is there: kept */
    shmd_consumer *c = rig_consumer(&rig, 3, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 1, 0);
    CHECK_EQ(gate_of(&rig, c), 10);
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED); /* its gate is at the head, its cursor is not */
    shmd_batch_t batch;
    unsigned char out[256];
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 4, 0, out, sizeof out, &batch), 4);
    publish_many(p, 4);
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED);
    shmd_epoch_leave(rig.hot, 3); /* it dies */
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED);
    rig_consumer_free(c);

    shmd_consumer *next = rig_consumer(&rig, 3, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 1, 0); /* the same gate, another lease */
    CHECK_EQ(next->position, 0);
    CHECK_EQ(shmd_consumer_delivered(next), 4);
    shmd_consumer_resume(next);
    CHECK_EQ(shmd_guarded_fetch(next, UINT64_MAX, 1, 0, out, sizeof out, &batch), 1);
    CHECK_EQ(batch.seq, 4); /* nothing twice, nothing lost */
    CHECK_EQ(next->lost, 0);
    CHECK_EQ(shmd_producer_keep(p, 10), SHMD_E_INVALID); /* too late */
    rig_consumer_free(next);
    rig_producer_free(p);
    rig_stop(&rig);
}

/* A kept stream whose ten messages, all that may wait, were read by a reader that is gone; and its successor on the same gate. */
static shmd_consumer *successor(rig_t *rig, shmd_producer **p)
{
    shmd_batch_t batch;
    unsigned char out[1024];
    rig_start(rig, 64, 64, 0, 0);
    *p = rig_producer(rig);
    CHECK_EQ(shmd_producer_keep(*p, 10), SHMD_OK);
    publish_many(*p, 10);
    shmd_consumer *c = rig_consumer(rig, 3, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 1, 0);
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 10, 0, out, sizeof out, &batch), 10);
    shmd_epoch_leave(rig->hot, 3);
    rig_consumer_free(c);
    return rig_consumer(rig, 3, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 1, 0);
}

static void test_a_reader_that_passes_over_what_was_read_tells_its_producer(void)
{
    rig_t rig;
    shmd_producer *p;
    for (int is_resumed = 0; is_resumed <= 1; is_resumed++) {
        shmd_consumer *next = successor(&rig, &p);
        CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED); /* nobody knows yet that it wants none of them */
        if (is_resumed)
            shmd_consumer_resume(next);
        else
            shmd_consumer_begin_at(next, RIG_EPOCH, 10);
        CHECK_EQ(next->position, 10);
        CHECK_EQ(shmd_gates_gate(rig.gates, 3)->cursor, 10);
        publish_many(p, 10);
        CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED);
        rig_consumer_free(next);
        rig_producer_free(p);
        rig_stop(&rig);
    }
}

static void test_a_lossy_reader_of_a_kept_stream_is_no_reader_of_it(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    CHECK_EQ(shmd_producer_keep(p, 64), SHMD_OK);
    publish_many(p, 64);
    shmd_consumer *tail = rig_consumer(&rig, 1, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SPIN, 1, 0);
    shmd_batch_t batch;
    unsigned char out[4096];
    CHECK(shmd_guarded_fetch(tail, UINT64_MAX, 64, 0, out, sizeof out, &batch) > 0);
    CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(shmd_consumer_delivered(tail), 0);
    rig_consumer_free(tail);
    rig_producer_free(p);
    rig_stop(&rig);
}

/* A reader of a kept stream that had taken two of five messages when its lease and the producer's ended. */
static shmd_consumer *left_in_the_middle(rig_t *rig, shmd_producer **p, uint32_t reason)
{
    shmd_batch_t batch;
    unsigned char out[256];
    rig_start(rig, 64, 64, 0, 0);
    *p = rig_producer(rig);
    shmd_consumer *c = rig_consumer(rig, 3, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    shmd_consumer_resume(c);
    CHECK_EQ(shmd_producer_keep(*p, 64), SHMD_OK);
    publish_many(*p, 5);
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 2, 0, out, sizeof out, &batch), 2);
    CHECK_EQ(shmd_guarded_drain(c), 0); /* its lease stands */
    (void)rig_lease(rig, 4, SHMD_LEASE_EXPIRED);
    shmd_epoch_leave(rig->hot, 3);
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 2, 0, out, sizeof out, &batch), SHMD_E_REVOKED);
    CHECK_EQ(shmd_guarded_drain(c), 0); /* the producer goes on: another reader may come */
    rig->stream->epochs[0].end_reason = reason;
    (void)shmd_epoch_seal(rig->hot, rig->data, rig->ring, &rig->geometry, reason == SHMD_REASON_CLOSED, 0);
    return c;
}

static void test_what_nobody_else_can_read_any_more_is_drained_after_the_lease(void)
{
    rig_t rig;
    shmd_producer *p;
    shmd_batch_t batch;
    unsigned char out[256];
    shmd_consumer *c = left_in_the_middle(&rig, &p, SHMD_REASON_EXPIRED);
    CHECK_EQ(shmd_guarded_drain(c), 1);
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 64, 0, out, sizeof out, &batch), 3);
    CHECK_EQ(batch.seq, 2);
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 64, 0, out, sizeof out, &batch), SHMD_E_PRODUCER_LOST);
    CHECK_EQ(c->lost, 0);
    CHECK_EQ(shmd_guarded_drain(c), 0);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_what_another_reader_has_had_is_not_drained_again(void)
{
    rig_t rig;
    shmd_producer *p;
    shmd_batch_t batch;
    unsigned char out[256];
    shmd_consumer *c = left_in_the_middle(&rig, &p, SHMD_REASON_EXPIRED);
    shmd_store_release(&shmd_gates_gate(rig.gates, 5)->delivered, 4);
    CHECK_EQ(shmd_guarded_drain(c), 1);
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 64, 0, out, sizeof out, &batch), 1);
    CHECK_EQ(batch.seq, 4);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_what_others_read_or_can_join_is_not_drained(void)
{
    rig_t rig;
    shmd_producer *p;
    shmd_consumer *c = left_in_the_middle(&rig, &p, SHMD_REASON_EXPIRED);
    shmd_store_seq_cst(&rig.hot->gate_mask, 1);
    CHECK_EQ(shmd_guarded_drain(c), 0);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
    c = left_in_the_middle(&rig, &p, SHMD_REASON_CLOSED);
    CHECK_EQ(shmd_guarded_drain(c), 0); /* a clean end: whoever comes now begins with the oldest message */
    shmd_store_seq_cst(&rig.hot->state, (uint64_t)RIG_EPOCH << 8 | SHMD_EPOCH_FREE);
    CHECK_EQ(shmd_guarded_drain(c), 1); /* retired since */
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
    c = left_in_the_middle(&rig, &p, SHMD_REASON_EXPIRED);
    shmd_record_rewrite(&rig.hot->state, SHMD_EPOCH_FREE); /* for another epoch: nobody knows the seal */
    CHECK_EQ(shmd_guarded_drain(c), 0);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

int main(void)
{
    RUN(test_each_shard_gets_its_messages_and_its_gate_passes_the_others);
    RUN(test_a_shard_holds_the_producer_at_its_next_message);
    RUN(test_a_shards_gate_does_not_pass_what_its_caller_holds);
    RUN(test_a_shard_joins_where_the_slowest_of_its_peers_stands);
    RUN(test_poll_many_takes_every_nth_and_one_advance_frees_them);
    RUN(test_a_lapped_shard_counts_its_own_messages_only);
    RUN(test_a_shard_ends_though_the_seal_is_before_its_next_message);
    RUN(test_a_producer_that_keeps_overwrites_nothing_unread_also_without_a_consumer);
    RUN(test_a_reader_that_passes_over_what_was_read_tells_its_producer);
    RUN(test_a_lossy_reader_of_a_kept_stream_is_no_reader_of_it);
    RUN(test_what_nobody_else_can_read_any_more_is_drained_after_the_lease);
    RUN(test_what_another_reader_has_had_is_not_drained_again);
    RUN(test_what_others_read_or_can_join_is_not_drained);
    return test_report();
}
