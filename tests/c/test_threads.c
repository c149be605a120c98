/* One producer and readers of every kind in threads of one process, on rings so small that they wrap all the time.
 * Payloads say what they should be; TSAN watches the orderings.
 * fault: 9, 42 (threads on tiny rings, under TSAN and on ARM64 under qemu, too) */
#include "rig.h"

#include <sched.h>

typedef struct reader {
    shmd_consumer *consumer;
    uint64_t got;
    int code;
    uint32_t many;
} reader_t;

typedef struct writer {
    shmd_producer *producer;
    uint64_t n;
    uint32_t length_max;
    uint32_t claims;
} writer_t;

static uint32_t length_of(uint64_t seq, uint32_t length_max) { return (uint32_t)((seq * 2654435761u >> 7) % (length_max + 1)); }

static void write_one(shmd_producer *p, uint32_t length, uint32_t claims)
{
    unsigned char payload[4096];
    int rc;
    if (claims && p->seq % 3 == 0) {
        void *data = NULL;
        while ((rc = shmd_claim(p, length, &data)) == SHMD_BACK_PRESSURED)
            CHECK(shmd_producer_wait_room(p, length, 100000000) <= SHMD_OK);
        CHECK_EQ(rc, SHMD_OK);
        rig_fill(data, length, p->seq);
        CHECK_EQ(p->seq % 9 == 0 ? shmd_abort(p) : shmd_commit(p, length, 0), SHMD_OK);
        if (p->seq % 9 != 0)
            return;
    }
    rig_fill(payload, length, p->seq);
    while ((rc = shmd_publish_wait(p, payload, length, 0, 100000000)) == SHMD_BACK_PRESSURED)
        continue;
    CHECK_EQ(rc, SHMD_OK);
}

static void *write_all(void *argument)
{
    writer_t *w = argument;
    uint64_t end = w->producer->seq + w->n;
    while (w->producer->seq < end)
        write_one(w->producer, length_of(w->producer->seq, w->length_max), w->claims);
    return NULL;
}

static void check(const shmd_message *m, uint64_t *next, int gapless)
{
    if (gapless)
        CHECK_EQ(m->seq, *next);
    CHECK(m->seq >= *next);
    if (!rig_matches(m->data, m->length, m->seq))
        TEST_FAIL("message %" PRIu64 " of %u bytes is torn", m->seq, m->length);
    *next = m->seq + 1;
}

static void *read_all(void *argument)
{
    reader_t *r = argument;
    shmd_consumer *c = r->consumer;
    int gapless = c->delivery == SHMD_DELIVERY_RELIABLE;
    shmd_message many[16];
    uint64_t next = c->position;
    for (;;) {
        int64_t n = r->many ? shmd_poll_many(c, many, 16) : shmd_poll(c, many);
        if (n < 0) {
            r->code = (int)n;
            return NULL;
        }
        for (int64_t i = 0; i < n; i++)
            check(&many[i], &next, gapless);
        r->got += (uint64_t)n;
        CHECK_EQ(shmd_advance(c), SHMD_OK);
        if (n == 0)
            (void)shmd_wait(c, 50000000);
    }
}

static void run(uint32_t slots, uint64_t arena_bytes, uint32_t length_max, uint32_t claims, uint64_t first, uint64_t n)
{
    static const uint32_t deliveries[] = {SHMD_DELIVERY_RELIABLE, SHMD_DELIVERY_RELIABLE, SHMD_DELIVERY_LOSSY, SHMD_DELIVERY_LATEST};
    static const uint32_t waits[] = {SHMD_WAIT_ADAPTIVE, SHMD_WAIT_SLEEP, SHMD_WAIT_ADAPTIVE, SHMD_WAIT_SLEEP};
    enum { READERS = 4 };
    rig_t rig;
    rig_start(&rig, slots, 64, arena_bytes, first);
    writer_t writer = {.producer = rig_producer(&rig), .n = n, .length_max = length_max, .claims = claims};
    reader_t readers[READERS];
    pthread_t threads[READERS];
    for (uint32_t i = 0; i < READERS; i++) {
        shmd_consumer *c = rig_consumer(&rig, i, deliveries[i], waits[i], 0, 0);
        c->position = first; /* there is no message before it that latest could begin with */
        readers[i] = (reader_t){.consumer = c, .many = i == 1};
    }
    for (uint32_t i = 0; i < READERS; i++)
        threads[i] = test_thread(read_all, &readers[i]);
    test_join(test_thread(write_all, &writer));
    rig.stream->epochs[0].end_reason = SHMD_REASON_CLOSED;
    CHECK_EQ(shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 1), first + n);
    for (uint32_t i = 0; i < READERS; i++) {
        test_join(threads[i]);
        shmd_consumer *c = readers[i].consumer;
        CHECK_EQ(readers[i].code, SHMD_E_END);
        CHECK_EQ(readers[i].got + c->lost + c->skipped, n);
        CHECK(c->delivery != SHMD_DELIVERY_RELIABLE || c->lost == 0);
        CHECK(c->delivery == SHMD_DELIVERY_LATEST || c->skipped == 0);
        rig_consumer_free(c);
    }
    rig_producer_free(writer.producer);
    rig_stop(&rig);
}

static void test_inline_messages_reach_reliable_readers_gapless_and_others_untorn(void) { run(64, 0, 40, 0, 0, test_scale(300000)); }
static void test_arena_messages_likewise(void) { run(64, 16384, 3000, 0, 0, test_scale(60000)); }
static void test_claims_and_aborts_likewise(void) { run(64, 16384, 2000, 1, 0, test_scale(40000)); }
static void test_across_2_to_the_32(void) { run(64, 8192, 100, 0, ((uint64_t)1 << 32) - 5000, test_scale(20000)); }

typedef struct record_writer {
    shmd_producer *producer;
    uint64_t n;
} record_writer_t;

static void *write_records_of_32_bytes(void *argument)
{
    record_writer_t *w = argument;
    unsigned char records[200][32];
    uint64_t done = 0;
    while (done < w->n) {
        uint64_t some = shmd_min(200, w->n - done);
        for (uint64_t i = 0; i < some; i++)
            rig_fill(records[i], 32, w->producer->seq + i);
        uint64_t sent = 0;
        while (sent < some) {
            int64_t rc = shmd_publish_records(w->producer, records[sent], 32, some - sent, 100000000);
            CHECK(rc > 0 || rc == SHMD_BACK_PRESSURED);
            sent += rc > 0 ? (uint64_t)rc : 0;
        }
        done += some;
    }
    return NULL;
}

static void test_record_batches_are_gapless_and_a_slow_lossy_reader_sees_no_torn_one(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    uint64_t n = test_scale(1000000);
    record_writer_t writer = {.producer = rig_producer(&rig), .n = n};
    reader_t readers[] = {{.consumer = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_ADAPTIVE, 0, 0), .many = 1},
                          {.consumer = rig_consumer(&rig, 1, SHMD_DELIVERY_LOSSY, SHMD_WAIT_ADAPTIVE, 0, 0)}};
    pthread_t threads[] = {test_thread(read_all, &readers[0]), test_thread(read_all, &readers[1])};
    test_join(test_thread(write_records_of_32_bytes, &writer));
    rig.stream->epochs[0].end_reason = SHMD_REASON_CLOSED;
    (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 1);
    for (int i = 0; i < 2; i++) {
        test_join(threads[i]);
        CHECK_EQ(readers[i].code, SHMD_E_END);
        CHECK_EQ(readers[i].got + readers[i].consumer->lost, n);
        rig_consumer_free(readers[i].consumer);
    }
    rig_producer_free(writer.producer);
    rig_stop(&rig);
}

/* Writes as fast as it can, without any gate, until told to stop. */
typedef struct flood {
    shmd_producer *producer;
    uint32_t length_max;
    uint32_t stop;
} flood_t;

static void *flood(void *argument)
{
    flood_t *f = argument;
    while (shmd_load32_acquire(&f->stop) == 0) {
        write_one(f->producer, length_of(f->producer->seq, f->length_max), 0);
        if (f->producer->seq % 1024 == 0)
            (void)sched_yield(); /* where both have one core, nothing would be read for the rest of its slice */
    }
    return NULL;
}

static void test_an_overrun_reader_counts_exactly_and_never_sees_a_torn_message(void)
{
    for (uint32_t length_max = 40; length_max <= 3000; length_max += 2960) {
        rig_t rig;
        rig_start(&rig, 2, 64, length_max > 40 ? 8192 : 0, 0);
        flood_t writer = {.producer = rig_producer(&rig), .length_max = length_max};
        shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SPIN, 0, 0);
        pthread_t thread = test_thread(flood, &writer);
        uint64_t next = 0, got = 0, wanted = test_scale(30000), nothing = 0;
        while (got < wanted) {
            shmd_message m;
            uint64_t lost = c->lost;
            uint64_t before = next;
            if (shmd_poll(c, &m) != 1) {
                if (++nothing % 256 == 0)
                    (void)sched_yield(); /* nor written */
                continue;
            }
            check(&m, &next, 0);
            CHECK_EQ(c->lost - lost + before, m.seq);
            CHECK_EQ(shmd_advance(c), SHMD_OK);
            got++;
            if (got % 64 == 0)
                (void)sched_yield(); /* fall behind */
        }
        shmd_store32_release(&writer.stop, 1);
        test_join(thread);
        rig_consumer_free(c);
        rig_producer_free(writer.producer);
        rig_stop(&rig);
    }
}

static void test_joining_under_load_loses_nothing(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    flood_t writer = {.producer = rig_producer(&rig), .length_max = 60};
    pthread_t thread = test_thread(flood, &writer);
    uint64_t joins = test_scale(1500);
    for (uint64_t i = 0; i < joins; i++) {
        shmd_consumer *c = rig_consumer(&rig, (uint32_t)(i % RIG_GATES), SHMD_DELIVERY_RELIABLE, SHMD_WAIT_ADAPTIVE, 0, 0);
        uint64_t next = c->position;
        for (uint64_t got = 0; got < 100 + i % 100;) {
            shmd_message m;
            int rc = shmd_poll(c, &m);
            CHECK(rc >= 0);
            if (rc == 0) {
                (void)shmd_wait(c, 50000000);
                continue;
            }
            check(&m, &next, 1);
            CHECK_EQ(shmd_advance(c), SHMD_OK);
            got++;
        }
        CHECK_EQ(c->lost, 0);
        shmd_epoch_leave(rig.hot, c->gate_index);
        rig_consumer_free(c);
    }
    shmd_store32_release(&writer.stop, 1);
    test_join(thread);
    rig_producer_free(writer.producer);
    rig_stop(&rig);
}

static void test_the_seal_of_a_live_producer_is_what_everybody_reads(void)
{
    for (uint64_t round = 0; round < test_scale(200); round++) {
        rig_t rig;
        rig_start(&rig, 64, 64, 0, 0);
        shmd_producer *p = rig_producer(&rig);
        reader_t readers[] = {{.consumer = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0), .many = (uint32_t)round % 2},
                              {.consumer = rig_consumer(&rig, 1, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SPIN, 0, 0)}};
        pthread_t threads[] = {test_thread(read_all, &readers[0]), test_thread(read_all, &readers[1])};
        unsigned char payload[40];
        uint64_t sealed = 0;
        uint64_t at = 50 + round * 7 % 300;
        for (uint64_t i = 0; i < at + 20; i++) {
            rig_fill(payload, 16, p->seq);
            if (i == at) { /* its lease expired; it does not look */
                rig.stream->epochs[0].end_reason = SHMD_REASON_EXPIRED;
                sealed = shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 0, 0);
                p->open_word = shmd_load_relaxed(&rig.hot->state);
            }
            while (shmd_publish(p, payload, 16, 0) == SHMD_BACK_PRESSURED && i < at)
                (void)sched_yield();
        }
        for (int i = 0; i < 2; i++) {
            test_join(threads[i]);
            CHECK_EQ(readers[i].code, SHMD_E_PRODUCER_LOST);
            CHECK_EQ(readers[i].got + readers[i].consumer->lost, sealed);
            rig_consumer_free(readers[i].consumer);
        }
        rig_producer_free(p);
        rig_stop(&rig);
    }
}

int main(void)
{
    RUN(test_inline_messages_reach_reliable_readers_gapless_and_others_untorn);
    RUN(test_arena_messages_likewise);
    RUN(test_claims_and_aborts_likewise);
    RUN(test_across_2_to_the_32);
    RUN(test_record_batches_are_gapless_and_a_slow_lossy_reader_sees_no_torn_one);
    RUN(test_an_overrun_reader_counts_exactly_and_never_sees_a_torn_message);
    RUN(test_joining_under_load_loses_nothing);
    RUN(test_the_seal_of_a_live_producer_is_what_everybody_reads);
    return test_report();
}
