/* What a reader says of bytes that the producer overwrites while they are read: in the middle of a copy, and between a poll and
 * its advance. A page of the ring or of the arena is made unreadable; the fault handler, which therefore runs after the first
 * and before the last byte of the copy, ends the reader's lease and has the producer go round the ring.
 * fault: 43 (eviction and a lap in the middle of each kind of read, and between poll and advance) */
#include "rig.h"

#include <signal.h>

enum { SLOTS = 16, SLOT_BYTES = 16384, LENGTH = 16000, LARGE = 20000, ARENA_BYTES = 262144, GATE = 3 };

typedef struct scene {
    rig_t rig;
    shmd_producer *p;
    shmd_consumer *c;
    unsigned char *out;
} scene_t;

static scene_t *trapped;
static unsigned char *trapped_page;
static int trap_count;

static void publish_one(shmd_producer *p, uint32_t length)
{
    unsigned char payload[LARGE];
    rig_fill(payload, length, p->seq);
    CHECK_EQ(shmd_publish(p, payload, length, 5), SHMD_OK);
}

static void evict(scene_t *s)
{
    shmd_authority_lease(s->rig.authority, GATE + 1)->end_reason = SHMD_REASON_EVICTED;
    (void)rig_lease(&s->rig, GATE + 1, SHMD_LEASE_REVOKED);
    shmd_epoch_leave(s->rig.hot, GATE);
}

static void go_round(scene_t *s, uint32_t length)
{
    for (int i = 0; i < 2 * SLOTS; i++)
        publish_one(s->p, length);
}

/* Runs within the copy, in its thread. */
static void on_fault(int number)
{
    static const char text[] = "a fault outside the trap\n";
    (void)number;
    if (trapped == NULL) {
        (void)!write(2, text, sizeof text - 1);
        _exit(1);
    }
    scene_t *s = trapped;
    trapped = NULL;
    trap_count++;
    (void)mprotect(trapped_page, shmd_page_bytes(), PROT_READ);
    evict(s);
    go_round(s, s->p->arena_bytes != 0 ? LARGE : LENGTH);
}

/* The page in the middle of the payload of seq, in the reader's own mapping. */
static void set_trap(scene_t *s, uint64_t seq)
{
    shmd_message m = {.data = NULL};
    const shmd_slot_t *slot = shmd_consumer_slot(s->c, seq);
    if (!shmd_slot_describe(slot, seq, s->c->inline_max, &m))
        CHECK_EQ(shmd_consumer_resolve(s->c, &m), SHMD_OK);
    uintptr_t page = (uintptr_t)shmd_page_bytes();
    trapped_page = (unsigned char *)(((uintptr_t)m.data + m.length / 2) / page * page);
    CHECK(trapped_page > (const unsigned char *)m.data && trapped_page + page < (const unsigned char *)m.data + m.length);
    trapped = s;
    CHECK_EQ(mprotect(trapped_page, page, PROT_NONE), 0);
}

static void start(scene_t *s, uint32_t delivery, uint64_t arena_bytes)
{
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
    memset(s, 0, sizeof *s);
    rig_start(&s->rig, SLOTS, SLOT_BYTES, arena_bytes, 0);
    s->p = rig_producer(&s->rig);
    s->c = rig_consumer(&s->rig, GATE, delivery, SHMD_WAIT_SPIN, 0, 0);
    s->out = test_memory(1 << 20);
    trap_count = 0;
    for (int i = 0; i < 3; i++)
        publish_one(s->p, arena_bytes != 0 ? LARGE : LENGTH);
}

static void stop(scene_t *s)
{
    rig_consumer_free(s->c);
    rig_producer_free(s->p);
    rig_stop(&s->rig);
    free(s->out);
}

static void copy_is_refused(uint64_t arena_bytes)
{
    scene_t s;
    shmd_message m;
    start(&s, SHMD_DELIVERY_RELIABLE, arena_bytes);
    set_trap(&s, 0);
    CHECK_EQ(shmd_copy(s.c, s.out, 1 << 20, &m), SHMD_E_REVOKED);
    CHECK_EQ(trap_count, 1);
    CHECK_EQ(shmd_advance(s.c), SHMD_OK); /* nothing was handed out */
    CHECK_EQ(s.c->position, 0);
    CHECK_EQ(shmd_copy(s.c, s.out, 1 << 20, &m), SHMD_E_REVOKED);
    stop(&s);
}

static void test_a_copy_that_an_eviction_interrupts_is_refused(void) { copy_is_refused(0); }
static void test_a_copy_out_of_the_arena_that_an_eviction_interrupts_is_refused(void) { copy_is_refused(ARENA_BYTES); }

static void test_a_run_that_an_eviction_interrupts_is_refused(void)
{
    scene_t s;
    shmd_batch_t batch;
    for (uint64_t seq = 0; seq < 3; seq++) {
        start(&s, SHMD_DELIVERY_RELIABLE, 0);
        set_trap(&s, seq);
        CHECK_EQ(shmd_guarded_fetch(s.c, UINT64_MAX, 8, 0, s.out, 1 << 20, &batch), SHMD_E_REVOKED);
        CHECK_EQ(trap_count, 1);
        CHECK_EQ(s.c->position, 0);
        stop(&s);
    }
}

static void ungated_hands_out_whole_messages_only(uint32_t delivery, uint64_t arena_bytes)
{
    uint32_t length = arena_bytes != 0 ? LARGE : LENGTH;
    scene_t s;
    shmd_message m;
    shmd_batch_t batch;
    for (int path = 0; path < 4; path++) {
        start(&s, delivery, arena_bytes);
        set_trap(&s, delivery == SHMD_DELIVERY_LATEST ? 2 : 0);
        batch.mapping_serial = s.c->mapping_serial;
        int64_t rc = path == 0   ? shmd_poll(s.c, &m)
                     : path == 1 ? shmd_copy(s.c, s.out, 1 << 20, &m)
                     : path == 2 ? shmd_guarded_fetch(s.c, UINT64_MAX, 8, 0, s.out, 1 << 20, &batch)
                                 : shmd_guarded_fetch_records(s.c, UINT64_MAX, 8, length, 0, s.out, 1 << 20, &batch);
        CHECK_EQ(trap_count, 1);
        CHECK_EQ(rc, SHMD_E_REVOKED); /* its lease ended, too: what it copied is not handed out */
        CHECK_EQ(s.c->polled, 0);
        stop(&s);
    }
}

static void test_an_ungated_read_that_an_eviction_interrupts_is_refused(void)
{
    ungated_hands_out_whole_messages_only(SHMD_DELIVERY_LOSSY, 0);
    ungated_hands_out_whole_messages_only(SHMD_DELIVERY_LATEST, 0);
}

static void test_an_ungated_read_out_of_the_arena_that_an_eviction_interrupts_is_refused(void)
{
    ungated_hands_out_whole_messages_only(SHMD_DELIVERY_LOSSY, ARENA_BYTES);
    ungated_hands_out_whole_messages_only(SHMD_DELIVERY_LATEST, ARENA_BYTES);
}

static void test_an_advance_over_what_was_overwritten_is_refused(void)
{
    scene_t s;
    shmd_message m[4];
    for (uint64_t arena_bytes = 0; arena_bytes <= ARENA_BYTES; arena_bytes += ARENA_BYTES) {
        uint32_t length = arena_bytes != 0 ? LARGE : LENGTH;
        start(&s, SHMD_DELIVERY_RELIABLE, arena_bytes);
        CHECK_EQ(shmd_poll_many(s.c, m, 4), 3);
        CHECK_EQ(shmd_consumer_valid(s.c), 1);
        CHECK(rig_matches(m[0].data, length, 0));
        evict(&s);
        CHECK_EQ(shmd_consumer_valid(s.c), 0); /* from here on nobody keeps the producer off it */
        go_round(&s, length);
        CHECK(!rig_matches(m[0].data, length, 0));
        CHECK_EQ(shmd_advance(s.c), SHMD_E_REVOKED);
        CHECK_TEXT("has ended");
        CHECK_EQ(s.c->consumed, 0);
        CHECK_EQ(shmd_gate_position(s.rig.gates, GATE), 0);
        CHECK_EQ(shmd_poll(s.c, m), SHMD_E_REVOKED);
        stop(&s);
    }
}

static void test_what_is_handed_out_stays_valid_through_a_seal_and_its_end(void)
{
    scene_t s;
    shmd_message m;
    start(&s, SHMD_DELIVERY_RELIABLE, 0);
    for (uint64_t seq = 0; seq < 3; seq++) {
        CHECK_EQ(shmd_poll(s.c, &m), 1);
        if (seq == 1) {
            ((shmd_epoch_record_t *)(void *)s.rig.hot)->end_reason = SHMD_REASON_DIED;
            (void)shmd_epoch_seal(s.rig.hot, s.rig.data, s.rig.ring, &s.rig.geometry, 0, 0);
        }
        CHECK_EQ(shmd_consumer_valid(s.c), 1);
        CHECK(rig_matches(m.data, LENGTH, seq));
        CHECK_EQ(shmd_advance(s.c), SHMD_OK);
    }
    CHECK_EQ(shmd_poll(s.c, &m), SHMD_E_PRODUCER_LOST);
    CHECK_EQ(shmd_consumer_valid(s.c), 1); /* nothing is handed out */
    CHECK_EQ(shmd_advance(s.c), SHMD_OK);
    stop(&s);
}

static void test_what_an_ungated_reader_hands_out_is_its_own(void)
{
    scene_t s;
    shmd_message m;
    start(&s, SHMD_DELIVERY_LOSSY, 0);
    CHECK_EQ(shmd_poll(s.c, &m), 1);
    go_round(&s, LENGTH);
    evict(&s);
    CHECK_EQ(shmd_consumer_valid(s.c), 1);
    CHECK(rig_matches(m.data, LENGTH, 0));
    CHECK_EQ(shmd_advance(s.c), SHMD_OK);
    stop(&s);
}

/* ---- between threads: the driver evicts at any moment, the producer never waits for the reader after that ---------- */

typedef struct race {
    scene_t scene;
    uint32_t is_over;
    uint64_t seed;
    uint64_t got;
    uint64_t refused;
} race_t;

static void *publish_on(void *argument)
{
    race_t *r = argument;
    unsigned char payload[512];
    while (!shmd_load32_acquire(&r->is_over)) {
        rig_fill(payload, sizeof payload, r->scene.p->seq);
        int rc = shmd_publish_wait(r->scene.p, payload, sizeof payload, 5, 1000000);
        CHECK(rc == SHMD_OK || rc == SHMD_BACK_PRESSURED);
    }
    return NULL;
}

static void *evict_at_random(void *argument)
{
    race_t *r = argument;
    for (uint64_t n = r->seed * 0x9e3779b97f4a7c15u % 20000; n > 0; n--)
        shmd_pause();
    evict(&r->scene);
    return NULL;
}

static void *read_until_evicted(void *argument)
{
    race_t *r = argument;
    shmd_consumer *c = r->scene.c;
    unsigned char bytes[512];
    shmd_message m;
    int rc = SHMD_OK;
    while (rc >= 0) {
        uint64_t seq = c->position;
        if (r->seed % 2 == 0) {
            rc = shmd_copy(c, bytes, sizeof bytes, &m);
            CHECK(rc != 1 || rig_matches(bytes, sizeof bytes, seq));
        } else if ((rc = shmd_poll(c, &m)) == 1) {
            for (uint32_t n = 0; n < 200; n++) /* a user that takes its time */
                shmd_pause();
            shmd_copy_from_shared(bytes, m.data, sizeof bytes); /* the use, with the loads that TSAN knows to be racing */
            int is_valid = shmd_consumer_valid(c);
            CHECK(!is_valid || rig_matches(bytes, sizeof bytes, seq));
        }
        if (rc != 1)
            continue;
        rc = shmd_advance(c);
        CHECK(rc != SHMD_OK || rig_matches(bytes, sizeof bytes, seq));
        r->got += rc == SHMD_OK;
        r->refused += rc != SHMD_OK;
    }
    CHECK_EQ(rc, SHMD_E_REVOKED);
    shmd_store32_release(&r->is_over, 1);
    return NULL;
}

static void test_what_an_advance_or_a_copy_confirms_was_whole_whenever_the_driver_evicts(void)
{
    for (uint64_t seed = 1; seed <= test_scale(400); seed++) {
        race_t race = {.seed = seed};
        rig_start(&race.scene.rig, 2, 1024, 0, 0);
        race.scene.p = rig_producer(&race.scene.rig);
        race.scene.c = rig_consumer(&race.scene.rig, GATE, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
        pthread_t threads[3] = {test_thread(read_until_evicted, &race), test_thread(publish_on, &race), test_thread(evict_at_random, &race)};
        for (int i = 0; i < 3; i++)
            test_join(threads[i]);
        CHECK(race.refused <= 1);
        rig_consumer_free(race.scene.c);
        rig_producer_free(race.scene.p);
        rig_stop(&race.scene.rig);
    }
}

int main(void)
{
    RUN(test_a_copy_that_an_eviction_interrupts_is_refused);
    RUN(test_a_copy_out_of_the_arena_that_an_eviction_interrupts_is_refused);
    RUN(test_a_run_that_an_eviction_interrupts_is_refused);
    RUN(test_an_ungated_read_that_an_eviction_interrupts_is_refused);
    RUN(test_an_ungated_read_out_of_the_arena_that_an_eviction_interrupts_is_refused);
    RUN(test_an_advance_over_what_was_overwritten_is_refused);
    RUN(test_what_is_handed_out_stays_valid_through_a_seal_and_its_end);
    RUN(test_what_an_ungated_reader_hands_out_is_its_own);
    RUN(test_what_an_advance_or_a_copy_confirms_was_whole_whenever_the_driver_evicts);
    return test_report();
}
