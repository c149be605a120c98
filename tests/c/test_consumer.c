/* Consumers of every delivery, one step at a time: what they get, what they count, how they end.
 * fault: 9, 40 (a tiny ring lapped; seqs near 2^32 and 2^62) */
#include "rig.h"

static void publish_many(shmd_producer *p, uint64_t n, uint32_t length)
{
    unsigned char payload[8192];
    for (uint64_t i = 0; i < n; i++) {
        rig_fill(payload, length, p->seq);
        CHECK_EQ(shmd_publish(p, payload, length, 5), SHMD_OK);
    }
}

static void expect(shmd_consumer *c, uint64_t seq, uint32_t length)
{
    shmd_message m;
    CHECK_EQ(shmd_poll(c, &m), 1);
    CHECK_EQ(m.seq, seq);
    CHECK_EQ(m.length, length);
    CHECK_EQ(m.type, 5);
    CHECK(rig_matches(m.data, length, seq));
    CHECK_EQ(shmd_advance(c), SHMD_OK);
}

static int64_t poll(shmd_consumer *c)
{
    shmd_message m;
    return shmd_poll(c, &m);
}

static uint64_t gate_of(const rig_t *rig, const shmd_consumer *c) { return shmd_gate_position(rig->gates, c->gate_index); }

static void seal(rig_t *rig, int clean, int proved, uint32_t reason)
{
    shmd_epoch_record_t *record = (shmd_epoch_record_t *)(void *)rig->hot;
    record->end_reason = reason;
    (void)shmd_epoch_seal(rig->hot, rig->data, rig->ring, &rig->geometry, clean, proved);
}

static void reliable_from(uint64_t first)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, first);
    shmd_producer *p = rig_producer(&rig);
    publish_many(p, 10, 8);
    shmd_consumer *c = rig_consumer(&rig, 3, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    CHECK_EQ(poll(c), 0);
    for (uint64_t i = 10; i < 500; i++) {
        uint32_t length = i % 7 == 0 ? 900 : (uint32_t)(i % 41);
        publish_many(p, 1, length);
        CHECK_EQ(gate_of(&rig, c), first + i);
        expect(c, first + i, length);
        CHECK_EQ(gate_of(&rig, c), first + i + 1);
        CHECK_EQ(poll(c), 0);
    }
    CHECK_EQ(c->lost, 0);
    CHECK_EQ(shmd_gates_gate(rig.gates, 3)->consumed, 490);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_reliable_consumer_gets_every_message_from_its_join_on(void) { reliable_from(0); }
static void test_reliable_near_2_to_the_32(void) { reliable_from(((uint64_t)1 << 32) - 200); }
static void test_reliable_near_2_to_the_62(void) { reliable_from(((uint64_t)1 << 62) - 1000); }

static void test_a_message_stays_until_it_is_advanced_over(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    publish_many(p, 2, 4096);
    shmd_message m;
    CHECK_EQ(shmd_poll(c, &m), 1);
    unsigned char large[4096] = {0};
    CHECK_EQ(shmd_publish(p, large, 4096, 0), SHMD_BACK_PRESSURED);
    CHECK(rig_matches(m.data, 4096, 0));
    CHECK_EQ(shmd_poll(c, &m), 1); /* polling again is the same message */
    CHECK_EQ(m.seq, 0);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    CHECK_EQ(shmd_publish(p, large, 4096, 0), SHMD_OK);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_oldest_reads_what_is_still_there_and_counts_the_rest(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    publish_many(p, 100, 8);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 1, 0);
    for (uint64_t seq = 36; seq < 60; seq++)
        expect(c, seq, 8);
    CHECK_EQ(gate_of(&rig, c), 100); /* only what came after the join holds the producer back */
    publish_many(p, 40, 8);          /* overwrites 76 and below */
    shmd_message m;
    uint64_t got = 0, last = 59;
    while (shmd_poll(c, &m) == 1) {
        CHECK(m.seq > last);
        CHECK(rig_matches(m.data, m.length, m.seq));
        last = m.seq;
        got++;
        CHECK_EQ(shmd_advance(c), SHMD_OK);
    }
    CHECK_EQ(last, 139);
    CHECK_EQ(got + c->lost, 140 - 60);
    CHECK(c->lost >= 16);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_lapped_lossy_consumer_counts_exactly_and_tells_the_ranges(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SPIN, 0, 0);
    uint64_t got = 0, expected_next = 0, gaps = 0;
    for (uint64_t round = 0; round < 30; round++) {
        publish_many(p, 10 + round * 13 % 300, round % 3 == 0 ? 100 : 16);
        shmd_message m;
        while (shmd_poll(c, &m) == 1) {
            CHECK(m.seq >= expected_next);
            gaps += m.seq - expected_next;
            CHECK_EQ(c->lost, gaps);
            CHECK(rig_matches(m.data, m.length, m.seq));
            expected_next = m.seq + 1;
            got++;
            CHECK_EQ(shmd_advance(c), SHMD_OK);
        }
    }
    CHECK_EQ(got + c->lost, p->seq);
    CHECK(c->lost > 0);
    shmd_lost_range_t ranges[SHMD_LOST_RANGES];
    uint64_t n = shmd_consumer_lost_ranges(c, ranges, SHMD_LOST_RANGES), sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        CHECK(ranges[i].last >= ranges[i].first && ranges[i].epoch == RIG_EPOCH);
        CHECK(i == 0 || ranges[i].first > ranges[i - 1].last);
        sum += ranges[i].last - ranges[i].first + 1;
    }
    CHECK_EQ(sum, c->lost);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_latest_is_always_the_newest_and_skipping_is_no_loss(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_LATEST, SHMD_WAIT_SPIN, 0, 0);
    publish_many(p, 1, 8);
    expect(c, 0, 8);
    publish_many(p, 1000, 8);
    expect(c, 1000, 8);
    CHECK_EQ(poll(c), 0);
    CHECK_EQ(c->lost, 0);
    CHECK_EQ(c->skipped, 999);
    shmd_consumer *late = rig_consumer(&rig, 1, SHMD_DELIVERY_LATEST, SHMD_WAIT_SPIN, 0, 0);
    expect(late, 1000, 8); /* begins with the newest existing message */
    rig_consumer_free(late);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void end_of_stream(uint32_t delivery, int clean, uint32_t reason, int expected)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, delivery, SHMD_WAIT_SPIN, 0, 0);
    publish_many(p, 3, 8);
    if (delivery == SHMD_DELIVERY_LATEST) {
        seal(&rig, clean, 1, reason);
        expect(c, 2, 8);
    } else {
        expect(c, 0, 8);
        seal(&rig, clean, 1, reason);
        expect(c, 1, 8);
        expect(c, 2, 8);
    }
    CHECK_EQ(poll(c), expected);
    CHECK_EQ(poll(c), expected);
    CHECK_EQ(c->end_reason, reason);
    CHECK_EQ(shmd_gate_left(rig.gates, 0), c->lease_id);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_clean_end_comes_after_the_last_message(void)
{
    for (uint32_t delivery = SHMD_DELIVERY_RELIABLE; delivery <= SHMD_DELIVERY_LATEST; delivery++)
        end_of_stream(delivery, 1, SHMD_REASON_CLOSED, SHMD_E_END);
}

static void test_a_crash_never_looks_like_an_end_of_file(void)
{
    for (uint32_t delivery = SHMD_DELIVERY_RELIABLE; delivery <= SHMD_DELIVERY_LATEST; delivery++)
        end_of_stream(delivery, 0, SHMD_REASON_DIED, SHMD_E_PRODUCER_LOST);
}

/* A producer that was stopped inside publish goes on after the seal. */
static void zombie(uint32_t delivery, int seen_before)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, delivery, SHMD_WAIT_SPIN, 0, 0);
    publish_many(p, 3, 8);
    if (seen_before)
        for (uint64_t seq = 0; seq < 3; seq++)
            expect(c, seq, 8);
    seal(&rig, 0, 0, SHMD_REASON_EXPIRED);
    p->open_word = shmd_load_relaxed(&rig.hot->state); /* blind to the seal */
    publish_many(p, 5, 8);
    shmd_message m;
    int rc;
    uint64_t next = seen_before ? 3 : 0;
    while ((rc = shmd_poll(c, &m)) == 1) {
        CHECK(m.seq < 3);
        next = m.seq + 1;
        CHECK_EQ(shmd_advance(c), SHMD_OK);
    }
    CHECK_EQ(rc, SHMD_E_PRODUCER_LOST);
    CHECK_EQ(c->sealed_seq, 3);
    CHECK_EQ(next, 3); /* and everything before it is */
    CHECK_EQ(c->lost, 0);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_nothing_past_the_seal_is_ever_read_reliable(void) { zombie(SHMD_DELIVERY_RELIABLE, 0), zombie(SHMD_DELIVERY_RELIABLE, 1); }
static void test_nothing_past_the_seal_is_ever_read_lossy(void) { zombie(SHMD_DELIVERY_LOSSY, 0), zombie(SHMD_DELIVERY_LOSSY, 1); }
static void test_nothing_past_the_seal_is_ever_read_latest(void) { zombie(SHMD_DELIVERY_LATEST, 0); }

static void test_while_it_is_being_sealed_readers_wait(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *readers[] = {rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0),
                                rig_consumer(&rig, 1, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SPIN, 0, 0),
                                rig_consumer(&rig, 2, SHMD_DELIVERY_LATEST, SHMD_WAIT_SPIN, 0, 0)};
    publish_many(p, 1, 8);
    shmd_store_seq_cst(&rig.hot->state, (uint64_t)RIG_EPOCH << 8 | SHMD_EPOCH_SEALING);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(poll(readers[i]), 0);
    seal(&rig, 0, 0, SHMD_REASON_EXPIRED);
    for (int i = 0; i < 3; i++) {
        expect(readers[i], 0, 8);
        CHECK_EQ(poll(readers[i]), SHMD_E_PRODUCER_LOST);
        rig_consumer_free(readers[i]);
    }
    rig_producer_free(p);
    rig_stop(&rig);
}

static void revoked_while_messages_wait(uint32_t delivery)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, delivery, SHMD_WAIT_SPIN, 0, 0);
    publish_many(p, 4, 8);
    (void)poll(c);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    publish_many(p, 4, 8);
    (void)rig_lease(&rig, 1, SHMD_LEASE_REVOKED);
    shmd_authority_lease(rig.authority, 1)->end_reason = SHMD_REASON_EVICTED;
    shmd_epoch_leave(rig.hot, 0);
    CHECK_EQ(poll(c), SHMD_E_REVOKED); /* although messages wait */
    CHECK_EQ(c->end_reason, SHMD_REASON_EVICTED);
    shmd_message many[4];
    CHECK_EQ(shmd_poll_many(c, many, 4), SHMD_E_REVOKED);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_revoked_consumer_gets_nothing_more_reliable(void) { revoked_while_messages_wait(SHMD_DELIVERY_RELIABLE); }
static void test_a_revoked_consumer_gets_nothing_more_lossy(void) { revoked_while_messages_wait(SHMD_DELIVERY_LOSSY); }
static void test_a_revoked_consumer_gets_nothing_more_latest(void) { revoked_while_messages_wait(SHMD_DELIVERY_LATEST); }

static void test_a_head_that_lied_ends_the_epoch_at_the_first_uncommitted_seq(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    publish_many(p, 3, 8);
    shmd_store_release(&rig.data->head, 50);
    seal(&rig, 1, 0, SHMD_REASON_CLOSED);
    for (uint64_t seq = 0; seq < 3; seq++)
        expect(c, seq, 8);
    CHECK_EQ(poll(c), SHMD_E_END);
    CHECK_EQ(c->lost, 47);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_following_consumer_goes_on_with_the_next_epoch(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 2, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, SHMD_ATTACH_FOLLOW);
    publish_many(p, 5, 8);
    seal(&rig, 0, 1, SHMD_REASON_DIED);
    for (uint64_t seq = 0; seq < 5; seq++)
        expect(c, seq, 8);
    CHECK_EQ(poll(c), 0);
    CHECK_EQ(shmd_gate_left(rig.gates, 2), c->lease_id);
    rig_producer_free(p);
    rig_epoch_unmap(&rig);
    rig_epoch(&rig, 1, RIG_EPOCH + 1, 0);
    CHECK_EQ(poll(c), 0); /* not wired to it yet */
    uint64_t start;
    (void)shmd_epoch_join(rig.hot, rig.data, rig.gates, &rig.geometry, 2, 1, 0, c->lease_id, 0, 0, &start);
    p = rig_producer(&rig);
    publish_many(p, 64, 30);
    unsigned char byte = 0;
    CHECK_EQ(shmd_publish(p, &byte, 1, 0), SHMD_BACK_PRESSURED);
    for (uint64_t seq = 0; seq < 64; seq++)
        expect(c, seq, 30);
    CHECK_EQ(c->epoch, RIG_EPOCH + 1);
    CHECK_EQ(shmd_publish(p, &byte, 1, 0), SHMD_OK);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_poll_many_hands_out_a_run_and_advance_frees_it(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    shmd_message many[100];
    uint64_t next = 0;
    for (int round = 0; round < 50; round++) {
        publish_many(p, 50, round % 4 == 0 ? 100 : 24);
        int64_t n = shmd_poll_many(c, many, 100);
        CHECK_EQ(n, 50);
        for (int64_t i = 0; i < n; i++, next++) {
            CHECK_EQ(many[i].seq, next);
            CHECK(rig_matches(many[i].data, many[i].length, next));
        }
        CHECK_EQ(shmd_advance(c), SHMD_OK);
        CHECK_EQ(gate_of(&rig, c), next);
    }
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_batches_of_records_go_round_the_ring(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    shmd_message many[64];
    unsigned char records[50][40];
    uint64_t next = 0;
    for (int round = 0; round < 50; round++) {
        uint32_t bytes = (uint32_t)round % 41;
        for (uint64_t i = 0; i < 50; i++)
            rig_fill(records[i], bytes, next + i);
        CHECK_EQ(shmd_publish_strided(p, records, bytes, sizeof records[0], 50, 0), 50);
        CHECK_EQ(shmd_poll_many(c, many, 64), 50);
        for (uint64_t i = 0; i < 50; i++, next++) {
            CHECK_EQ(many[i].seq, next);
            CHECK_EQ(many[i].length, bytes);
            CHECK_EQ(many[i].type, 0);
            CHECK(rig_matches(many[i].data, bytes, next));
        }
        CHECK_EQ(shmd_advance(c), SHMD_OK);
    }
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

/* 100 messages, or a head that says so; a reader that looks at it stays 33 behind, and reads these, too, when it does not move. */
static void flow_of(uint32_t slots, uint64_t published, uint64_t head, uint64_t until, uint64_t after)
{
    rig_t rig;
    rig_start(&rig, slots, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    CHECK_EQ(poll(c), 0);
    publish_many(p, published, 8);
    shmd_store_release(&rig.data->head, head);
    shmd_consumer_keep_off(c);
    CHECK_EQ(c->look_until, until);
    for (uint64_t seq = 0; seq < published; seq++)
        expect(c, seq, 8);
    CHECK_EQ(c->look_until, after);
    CHECK_EQ(poll(c), 0);
    CHECK_EQ(c->lost, 0);
    seal(&rig, 1, 1, SHMD_REASON_CLOSED);
    CHECK_EQ(poll(c), SHMD_E_END);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_reader_in_flow_stays_behind_the_head_until_that_stands_still(void) { flow_of(1024, 100, 100, 67, UINT64_MAX); }
static void test_a_head_that_is_near_is_no_flow(void) { flow_of(1024, 65, 65, UINT64_MAX, UINT64_MAX); }
static void test_a_liars_head_keeps_no_reader_from_what_is_there(void)
{
    flow_of(1024, 100, (uint64_t)1 << 61, ((uint64_t)1 << 61) - 33, ((uint64_t)1 << 61) - 33);
    flow_of(1024, 100, 0, UINT64_MAX, UINT64_MAX);
}

static void test_a_small_ring_has_shorter_holds_and_a_smaller_margin_or_none(void)
{
    flow_of(512, 40, 40, 24, UINT64_MAX); /* 33 messages fit into its hold */
    flow_of(256, 200, 200, UINT64_MAX, UINT64_MAX);
}

static void test_a_seal_ends_a_flow(void)
{
    rig_t rig;
    rig_start(&rig, 1024, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    CHECK_EQ(poll(c), 0);
    publish_many(p, 100, 8);
    shmd_consumer_keep_off(c);
    CHECK_EQ(c->look_until, 67);
    seal(&rig, 1, 1, SHMD_REASON_CLOSED);
    for (uint64_t seq = 0; seq < 100; seq++)
        expect(c, seq, 8);
    CHECK_EQ(c->look_until, 100);
    CHECK_EQ(poll(c), SHMD_E_END);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

/* The head says where a batch may well stop; commit words say what is there. */
static void test_a_batch_stops_at_the_head_and_passes_one_that_does_not_move(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    shmd_message many[64];
    publish_many(p, 10, 24);
    shmd_store_release(&rig.data->head, 4);
    CHECK_EQ(shmd_poll_many(c, many, 64), 4);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    CHECK_EQ(shmd_poll_many(c, many, 64), 6); /* what a producer committed that died before it stored its head */
    CHECK_EQ(many[5].seq, 9);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    publish_many(p, 2, 24);
    shmd_store_release(&rig.data->head, (uint64_t)1 << 40); /* a liar's */
    CHECK_EQ(shmd_poll_many(c, many, 64), 2);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    CHECK_EQ(shmd_poll_many(c, many, 64), 0);
    publish_many(p, 3, 24);
    CHECK_EQ(shmd_poll_many(c, many, 64), 3);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_corrupt_slot_is_passed_over_and_counted(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *readers[] = {rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0),
                                rig_consumer(&rig, 1, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SPIN, 0, 0)};
    publish_many(p, 1, 8);
    publish_many(p, 4, 100);
    publish_many(p, 1, 8);
    shmd_slot_t *slot = shmd_producer_slot(p, 1);
    shmd_arena_ref_t *ref = shmd_slot_payload(slot);
    ref->position = 3; /* not aligned */
    ref = shmd_slot_payload(shmd_producer_slot(p, 2));
    ref->bytes = UINT64_MAX;
    shmd_producer_slot(p, 3)->length = UINT32_MAX;
    shmd_slot_t *plain = shmd_producer_slot(p, 4);
    plain->flags = 0; /* 100 bytes "inline" in a slot of 40 */
    for (int i = 0; i < 2; i++) {
        expect(readers[i], 0, 8);
        expect(readers[i], 5, 8);
        CHECK_EQ(readers[i]->lost, 4);
        rig_consumer_free(readers[i]);
    }
    rig_producer_free(p);
    rig_stop(&rig);
}

int main(void)
{
    RUN(test_a_reliable_consumer_gets_every_message_from_its_join_on);
    RUN(test_reliable_near_2_to_the_32);
    RUN(test_reliable_near_2_to_the_62);
    RUN(test_a_message_stays_until_it_is_advanced_over);
    RUN(test_oldest_reads_what_is_still_there_and_counts_the_rest);
    RUN(test_a_lapped_lossy_consumer_counts_exactly_and_tells_the_ranges);
    RUN(test_latest_is_always_the_newest_and_skipping_is_no_loss);
    RUN(test_a_clean_end_comes_after_the_last_message);
    RUN(test_a_crash_never_looks_like_an_end_of_file);
    RUN(test_nothing_past_the_seal_is_ever_read_reliable);
    RUN(test_nothing_past_the_seal_is_ever_read_lossy);
    RUN(test_nothing_past_the_seal_is_ever_read_latest);
    RUN(test_while_it_is_being_sealed_readers_wait);
    RUN(test_a_revoked_consumer_gets_nothing_more_reliable);
    RUN(test_a_revoked_consumer_gets_nothing_more_lossy);
    RUN(test_a_revoked_consumer_gets_nothing_more_latest);
    RUN(test_a_head_that_lied_ends_the_epoch_at_the_first_uncommitted_seq);
    RUN(test_a_following_consumer_goes_on_with_the_next_epoch);
    RUN(test_poll_many_hands_out_a_run_and_advance_frees_it);
    RUN(test_batches_of_records_go_round_the_ring);
    RUN(test_a_reader_in_flow_stays_behind_the_head_until_that_stands_still);
    RUN(test_a_head_that_is_near_is_no_flow);
    RUN(test_a_liars_head_keeps_no_reader_from_what_is_there);
    RUN(test_a_small_ring_has_shorter_holds_and_a_smaller_margin_or_none);
    RUN(test_a_seal_ends_a_flow);
    RUN(test_a_batch_stops_at_the_head_and_passes_one_that_does_not_move);
    RUN(test_a_corrupt_slot_is_passed_over_and_counted);
    return test_report();
}
