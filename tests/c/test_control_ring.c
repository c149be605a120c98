/* Requests from many clients to one driver: turns, skipped claims, quarantine, garbage, wrap.
 * fault: 27, 40 (claims skipped; positions past 2^32, laps at their wrap) */
#include "rig.h"

#include <sched.h>

enum { PATIENCE_NS = SHMD_CLAIM_PATIENCE_MS * 1000000 };

typedef struct bench {
    rig_t rig;
    shmd_control_reader *reader;
    uint64_t control_bytes;
} bench_t;

static void start(bench_t *b, uint64_t cursor)
{
    memset(b, 0, sizeof *b);
    rig_authority(&b->rig);
    shmd_control_t *control = b->rig.control;
    for (uint32_t i = 0; i < b->rig.client.tables.client_max; i++) {
        shmd_client_record_t *record = shmd_authority_client(b->rig.authority, i);
        record->client_id = 100 + i;
        record->nonce = 7000 + i;
        record->index = i;
        record->word = 0x200 | SHMD_CLIENT_ALIVE;
    }
    b->rig.authority->control_cursor = cursor;
    for (uint64_t at = cursor; at < cursor + SHMD_CONTROL_SLOTS; at++)
        shmd_control_slot(control, at)->turn = shmd_turn(shmd_position_lap(at), 0, SHMD_TURN_FREE);
    control->tail = cursor;
    b->control_bytes = b->rig.authority->control_bytes;
    b->reader = shmd_control_reader_new(control, b->control_bytes, b->rig.authority);
    CHECK(b->reader != NULL);
}

static void stop(bench_t *b)
{
    shmd_control_reader_free(b->reader);
    free(b->rig.authority);
    free(b->rig.control);
}

static void fill(shmd_request_t *request, uint32_t client, uint64_t correlation)
{
    memset(request, 0, sizeof *request);
    request->kind = SHMD_REQUEST_GOODBYE;
    request->layout_version = SHMD_LAYOUT_VERSION;
    request->client_id = 100 + client;
    request->correlation_id = correlation;
    (void)snprintf(request->text, sizeof request->text, "request %llu", (unsigned long long)correlation);
}

static int send_one(bench_t *b, uint32_t client, uint64_t correlation, uint64_t timeout_ns)
{
    shmd_request_t request;
    fill(&request, client, correlation);
    return shmd_control_send(b->rig.control, b->rig.authority, &request, client + 1, 7000 + client, shmd_now_ns() + timeout_ns);
}

static void receive(bench_t *b, uint64_t correlation)
{
    shmd_request_t request;
    CHECK_EQ(shmd_control_poll(b->reader, &request, 1), 1);
    CHECK_EQ(request.correlation_id, correlation);
    CHECK_EQ(shmd_request_check(&request), SHMD_OK);
    shmd_control_advance(b->reader);
}

static uint64_t cursor_of(const bench_t *b) { return b->rig.authority->control_cursor; }

/* As a client that stops in the middle of a send. */
static uint64_t *claim_only(bench_t *b, uint64_t position, uint32_t who)
{
    uint64_t *turn = &shmd_control_slot(b->rig.control, position)->turn;
    CHECK(shmd_cas(turn, shmd_turn(shmd_position_lap(position), 0, SHMD_TURN_FREE), shmd_turn(shmd_position_lap(position), who, SHMD_TURN_CLAIMED)));
    return turn;
}

static int commit_late(uint64_t *turn, uint64_t position, uint32_t who)
{
    uint32_t lap = shmd_position_lap(position);
    return shmd_cas(turn, shmd_turn(lap, who, SHMD_TURN_CLAIMED), shmd_turn(lap, who, SHMD_TURN_COMMITTED));
}

static void round_trips(uint64_t cursor)
{
    bench_t b;
    shmd_request_t request;
    start(&b, cursor);
    for (uint64_t i = 1; i <= 300; i++) {
        CHECK_EQ(shmd_control_poll(b.reader, &request, 1), 0);
        CHECK_EQ(send_one(&b, (uint32_t)(i % 8), i, 0), SHMD_OK);
        CHECK_EQ(shmd_control_claimer(b.reader), i % 8 + 1);
        receive(&b, i);
        CHECK_EQ(cursor_of(&b), cursor + i);
    }
    CHECK_EQ(b.rig.control->doorbell, 300);
    stop(&b);
}

static void test_requests_arrive_in_order(void) { round_trips(0); }
static void test_laps_wrap_at_2_to_the_32(void) { round_trips(((uint64_t)1 << 32) * SHMD_CONTROL_SLOTS - 100); }
static void test_positions_beyond_2_to_the_32(void) { round_trips(((uint64_t)1 << 32) - 100); }

static void test_a_full_ring_times_out_and_goes_on_when_drained(void)
{
    bench_t b;
    start(&b, 10);
    for (uint64_t i = 1; i <= SHMD_CONTROL_SLOTS; i++)
        CHECK_EQ(send_one(&b, 0, i, 0), SHMD_OK);
    CHECK_EQ(send_one(&b, 0, 99, 1000000), SHMD_E_TIMEOUT);
    receive(&b, 1);
    CHECK_EQ(send_one(&b, 0, 99, 0), SHMD_OK);
    for (uint64_t i = 2; i <= SHMD_CONTROL_SLOTS; i++)
        receive(&b, i);
    receive(&b, 99);
    stop(&b);
}

static void test_an_uncommitted_claim_is_waited_for_then_quarantined(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    uint64_t *turn = claim_only(&b, 0, 3);
    CHECK_EQ(send_one(&b, 1, 42, 0), SHMD_OK);
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1000), 0);
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1000 + PATIENCE_NS - 1), 0);
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1000 + PATIENCE_NS), SHMD_E_TIMEOUT);
    CHECK_EQ(shmd_control_claimer(b.reader), 3);
    CHECK_EQ(shmd_control_skip(b.reader, 0), 1);
    CHECK_EQ(shmd_control_quarantined(b.reader, 0), 3);
    receive(&b, 42);
    CHECK(!commit_late(turn, 0, 3)); /* the late commit fails */
    for (uint64_t i = 1; i <= 200; i++) { /* three laps pass over the quarantined slot */
        CHECK_EQ(send_one(&b, 1, i, 0), SHMD_OK);
        receive(&b, i);
    }
    CHECK_EQ(shmd_control_quarantined(b.reader, 0), 3);
    CHECK_EQ(shmd_control_sweep(b.reader), 1); /* stays set aside */
    CHECK(shmd_cas(turn, shmd_turn(0, 3, SHMD_TURN_QUARANTINED), shmd_turn(0, 3, SHMD_TURN_RELEASED))); /* it says that it is done */
    CHECK_EQ(shmd_control_sweep(b.reader), 0);
    CHECK_EQ(shmd_control_quarantined(b.reader, 0), 0);
    uint64_t before = cursor_of(&b);
    for (uint64_t i = 1; i <= 3 * SHMD_CONTROL_SLOTS; i++) { /* and the slot is in use again */
        CHECK_EQ(send_one(&b, 1, i, 0), SHMD_OK);
        receive(&b, i);
    }
    CHECK_EQ(cursor_of(&b), before + 3 * SHMD_CONTROL_SLOTS);
    CHECK_EQ(shmd_counter_get(b.rig.authority, SHMD_COUNTER_CLAIMS_QUARANTINED), 1);
    stop(&b);
}

static void test_a_proved_dead_claim_is_skipped_at_once_and_its_slot_reused(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    uint64_t *turn = claim_only(&b, 0, 3);
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1), 0);
    CHECK_EQ(shmd_control_skip(b.reader, 1), 1);
    CHECK(!commit_late(turn, 0, 3));
    CHECK_EQ(*turn, shmd_turn(1, 0, SHMD_TURN_FREE));
    for (uint64_t i = 1; i <= 100; i++) {
        CHECK_EQ(send_one(&b, 1, i, 0), SHMD_OK);
        receive(&b, i);
    }
    stop(&b);
}

static void test_a_commit_at_the_last_moment_is_read(void)
{
    bench_t b;
    start(&b, 0);
    CHECK_EQ(send_one(&b, 0, 5, 0), SHMD_OK);
    CHECK_EQ(shmd_control_skip(b.reader, 0), 0);
    CHECK_EQ(shmd_control_skip(b.reader, 1), 0);
    receive(&b, 5);
    stop(&b);
}

static void test_a_quarantined_slot_is_released_by_proof_of_death(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    (void)claim_only(&b, 0, 3);
    (void)shmd_control_poll(b.reader, &request, 1);
    CHECK_EQ(shmd_control_skip(b.reader, 0), 1);
    shmd_control_release(b.reader, 0);
    CHECK_EQ(shmd_control_quarantined(b.reader, 0), 0);
    for (uint64_t i = 1; i <= 100; i++) {
        CHECK_EQ(send_one(&b, 1, i, 0), SHMD_OK);
        receive(&b, i);
    }
    CHECK_EQ(cursor_of(&b), 101);
    stop(&b);
}

/* Found by models/control_ring.pml (SWEEP_FORGETS): the claimer may be done before anybody lists what is quarantined. */
static void test_a_slot_released_before_the_first_sweep_comes_back(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    uint64_t *turn = claim_only(&b, 0, 3);
    (void)shmd_control_poll(b.reader, &request, 1);
    CHECK_EQ(shmd_control_skip(b.reader, 0), 1);
    CHECK(shmd_cas(turn, shmd_turn(0, 3, SHMD_TURN_QUARANTINED), shmd_turn(0, 3, SHMD_TURN_RELEASED)));
    shmd_control_reader_free(b.reader); /* and the driver may be another one by then */
    b.reader = shmd_control_reader_new(b.rig.control, shmd_control_footprint(8, 16), b.rig.authority);
    CHECK_EQ(shmd_control_sweep(b.reader), 0);
    CHECK_EQ(*turn, shmd_turn(1, 0, SHMD_TURN_FREE));
    stop(&b);
}

/* Found by models/control_ring.pml (ENDLESS_POLL): words that say "set aside" in every slot. */
static void test_a_poll_ends_when_every_slot_is_set_aside(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    for (uint64_t i = 0; i < SHMD_CONTROL_SLOTS; i++) {
        (void)claim_only(&b, i, 3);
        (void)shmd_control_poll(b.reader, &request, 1);
        CHECK_EQ(shmd_control_skip(b.reader, 0), 1);
    }
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1), 0);
    CHECK_EQ(shmd_control_sweep(b.reader), SHMD_CONTROL_SLOTS);
    for (uint32_t slot = 0; slot < SHMD_CONTROL_SLOTS; slot++)
        shmd_control_release(b.reader, slot);
    CHECK_EQ(send_one(&b, 1, 7, 0), SHMD_OK);
    receive(&b, 7);
    stop(&b);
}

static void test_a_slot_that_a_client_sets_aside_itself_is_freed(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    for (uint32_t slot = 0; slot < SHMD_CONTROL_SLOTS; slot++)
        shmd_store_release(&shmd_control_slot(b.rig.control, slot)->turn, shmd_turn(0, 5, slot % 2 ? SHMD_TURN_QUARANTINED : SHMD_TURN_RELEASED));
    CHECK_EQ(shmd_control_sweep(b.reader), 0); /* none that this driver set aside */
    for (uint32_t slot = 0; slot < SHMD_CONTROL_SLOTS; slot++) {
        CHECK_EQ(shmd_control_poll(b.reader, &request, 1), SHMD_E_CORRUPT);
        shmd_control_advance(b.reader);
    }
    CHECK_EQ(send_one(&b, 1, 7, 0), SHMD_OK);
    receive(&b, 7);
    stop(&b);
}

/* Found by fuzz_control.c: whatever the hint says, a free slot is found. */
static void test_a_wrong_tail_keeps_nobody_out(void)
{
    for (uint64_t hint = 0; hint <= SHMD_CONTROL_SLOTS + 1; hint++) {
        bench_t b;
        start(&b, 1000);
        for (uint64_t at = 1001; at < 1000 + SHMD_CONTROL_SLOTS; at++)
            shmd_store_release(&shmd_control_slot(b.rig.control, at)->turn, 8); /* garbage in all slots but the first */
        shmd_store_relaxed(&b.rig.control->tail, 1000 + hint);
        CHECK_EQ(send_one(&b, 1, 7, 0), SHMD_OK);
        receive(&b, 7);
        stop(&b);
    }
}

static void test_a_free_slot_before_a_commit_does_not_hold_it_up(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    b.rig.control->tail = 5; /* a hint that lies */
    CHECK_EQ(send_one(&b, 0, 5, 0), SHMD_OK);
    receive(&b, 5);
    CHECK_EQ(cursor_of(&b), 6);
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1), 0);
    stop(&b);
}

static void test_a_garbage_tail_stops_nobody(void)
{
    bench_t b;
    start(&b, 1000);
    static const uint64_t offsets[] = {0, 1, 63, 64, 65, 1u << 20, (uint64_t)1 << 63, UINT64_MAX - 999, UINT64_MAX};
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        shmd_store_relaxed(&b.rig.control->tail, cursor_of(&b) + offsets[i]);
        if (send_one(&b, 0, i + 1, 0) != SHMD_OK)
            TEST_FAIL("tail at cursor + %" PRIu64 ": an empty ring is called full", offsets[i]);
        receive(&b, i + 1);
    }
    stop(&b);
}

static void test_a_garbage_turn_costs_its_slot_one_turn(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    static const uint64_t garbage[] = {UINT64_MAX, 0x0000000500000012u, 15, 0xdeadbeef00000001u, 0x2u, 0x1u};
    for (size_t i = 0; i < sizeof garbage / sizeof garbage[0]; i++) {
        shmd_control_slot(b.rig.control, cursor_of(&b))->turn = garbage[i];
        uint64_t before = cursor_of(&b);
        CHECK_EQ(send_one(&b, 0, i + 1, 0), SHMD_OK);
        for (int steps = 0; cursor_of(&b) < before + 2; steps++) {
            CHECK(steps < 10);
            int rc = shmd_control_poll(b.reader, &request, (uint64_t)steps * PATIENCE_NS);
            if (rc == 1)
                CHECK_EQ(request.correlation_id, i + 1);
            if (rc == 1 || rc == SHMD_E_CORRUPT)
                shmd_control_advance(b.reader);
            else if (rc == SHMD_E_TIMEOUT)
                CHECK_EQ(shmd_control_skip(b.reader, 0), 1);
        }
    }
    stop(&b);
}

static void test_a_request_that_is_not_its_claimers_is_refused(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    static const struct { size_t offset; const char *text; } flips[] = {
        {offsetof(shmd_request_t, position), "position"}, {offsetof(shmd_request_t, checksum), "checksum"},
        {offsetof(shmd_request_t, client_id), "no such client"}, {offsetof(shmd_request_t, stream) + 60, "checksum"},
        {offsetof(shmd_request_t, correlation_id), "checksum"}, {sizeof(shmd_request_t) - 1, "checksum"}};
    for (size_t i = 0; i < sizeof flips / sizeof flips[0]; i++) {
        CHECK_EQ(send_one(&b, 0, 5, 0), SHMD_OK);
        shmd_control_slot_t *slot = shmd_control_slot(b.rig.control, cursor_of(&b));
        ((unsigned char *)&slot->request)[flips[i].offset] ^= 0x40;
        CHECK_EQ(shmd_control_poll(b.reader, &request, 1), SHMD_E_CORRUPT);
        CHECK_TEXT(flips[i].text);
        shmd_control_advance(b.reader);
    }
    shmd_request_t forged; /* client 1's claim with client 0's identity and even its nonce */
    fill(&forged, 0, 9);
    CHECK_EQ(shmd_control_send(b.rig.control, b.rig.authority, &forged, 2, 7000, shmd_now_ns()), SHMD_OK);
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1), SHMD_E_CORRUPT);
    shmd_control_advance(b.reader);
    fill(&forged, 0, 9);
    CHECK_EQ(shmd_control_send(b.rig.control, b.rig.authority, &forged, 1, 12345, shmd_now_ns()), SHMD_OK);
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1), SHMD_E_CORRUPT); /* right claimer, wrong nonce */
    shmd_control_advance(b.reader);
    shmd_authority_client(b.rig.authority, 0)->word = 0x200 | SHMD_CLIENT_GONE; /* expired: it may still say goodbye */
    CHECK_EQ(send_one(&b, 0, 5, 0), SHMD_OK);
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1), 1);
    shmd_control_advance(b.reader);
    stop(&b);
}

static void test_last_words_of_a_client_that_is_gone_are_read(void)
{
    bench_t b;
    start(&b, 0);
    CHECK_EQ(send_one(&b, 0, 5, 0), SHMD_OK);
    shmd_authority_client(b.rig.authority, 0)->word = 0x200 | SHMD_CLIENT_FREE; /* its death was proved meanwhile */
    receive(&b, 5);
    CHECK_EQ(send_one(&b, 0, 6, 0), SHMD_OK);
    shmd_authority_client(b.rig.authority, 0)->client_id = 555; /* its record serves another one: nobody can check them */
    shmd_request_t request;
    CHECK_EQ(shmd_control_poll(b.reader, &request, 1), SHMD_E_CORRUPT);
    CHECK_TEXT("no such client");
    stop(&b);
}

static void test_a_new_reader_goes_on_where_the_dead_one_stood(void)
{
    bench_t b;
    start(&b, 40);
    for (uint64_t i = 1; i <= 30; i++)
        CHECK_EQ(send_one(&b, 0, i, 0), SHMD_OK);
    for (uint64_t i = 1; i <= 10; i++)
        receive(&b, i);
    b.rig.authority->control_cursor -= 3; /* it died between freeing slots and publishing its cursor */
    shmd_control_reader_free(b.reader);
    b.reader = shmd_control_reader_new(b.rig.control, b.control_bytes, b.rig.authority);
    CHECK_EQ(cursor_of(&b), 50);
    for (uint64_t i = 11; i <= 30; i++)
        receive(&b, i);
    stop(&b);
}

static void test_random_bytes_everywhere_never_stop_the_reader(void)
{
    bench_t b;
    shmd_request_t request;
    uint64_t seed = 0x1234567, now = 1;
    start(&b, 0);
    unsigned char *bytes = (unsigned char *)b.rig.control + sizeof(shmd_header_t);
    for (uint64_t round = 0; round < test_scale(2000); round++) {
        for (int i = 0; i < 2000; i++)
            bytes[test_random(&seed) % (sizeof(shmd_control_t) - sizeof(shmd_header_t) + SHMD_CONTROL_SLOTS * sizeof(shmd_control_slot_t))] = (unsigned char)test_random(&seed);
        uint64_t before = cursor_of(&b);
        for (int i = 0; i < SHMD_CONTROL_SLOTS; i++, now += 2 * PATIENCE_NS) {
            int rc = shmd_control_poll(b.reader, &request, now);
            if (rc == 1 || rc == SHMD_E_CORRUPT)
                shmd_control_advance(b.reader);
            else if (rc == SHMD_E_TIMEOUT)
                (void)shmd_control_skip(b.reader, 0);
        }
        for (uint32_t slot = 0; slot < SHMD_CONTROL_SLOTS; slot++)
            shmd_control_release(b.reader, slot);
        (void)shmd_control_sweep(b.reader);
        CHECK(cursor_of(&b) >= before && cursor_of(&b) < before + 100000);
    }
    shmd_store_relaxed(&b.rig.control->tail, cursor_of(&b));
    for (uint64_t i = 1; i <= 200; i++) { /* and it still serves who behaves */
        CHECK_EQ(send_one(&b, 0, 77000 + i, 0), SHMD_OK);
        for (int steps = 0;; steps++, now += 2 * PATIENCE_NS) {
            CHECK(steps < 300);
            int rc = shmd_control_poll(b.reader, &request, now);
            if (rc == SHMD_E_TIMEOUT)
                (void)shmd_control_skip(b.reader, 1);
            if (rc == 1 || rc == SHMD_E_CORRUPT)
                shmd_control_advance(b.reader);
            if (rc == 1 && request.correlation_id == 77000 + i)
                break;
        }
    }
    stop(&b);
}

/* ---- threads ---------------------------------------------------------------------------- */

typedef struct sender {
    bench_t *bench;
    uint32_t client;
    uint64_t n;
} sender_t;

static void *send_many(void *argument)
{
    sender_t *s = argument;
    for (uint64_t i = 1; i <= s->n; i++)
        CHECK_EQ(send_one(s->bench, s->client, (uint64_t)s->client << 32 | i, 20000000000u), SHMD_OK);
    return NULL;
}

static void test_many_senders_are_all_heard_each_in_order(void)
{
    enum { SENDERS = 4 };
    bench_t b;
    start(&b, ((uint64_t)1 << 32) * SHMD_CONTROL_SLOTS - 1000);
    shmd_event_writer *events = shmd_event_writer_new(b.rig.authority); /* who waits for a slot sleeps on its word */
    sender_t senders[SENDERS];
    pthread_t threads[SENDERS];
    uint64_t last[SENDERS] = {0}, n = test_scale(20000), got = 0;
    for (uint32_t i = 0; i < SENDERS; i++) {
        senders[i] = (sender_t){.bench = &b, .client = i, .n = n};
        threads[i] = test_thread(send_many, &senders[i]);
    }
    while (got < n * SENDERS) {
        shmd_request_t request;
        int rc = shmd_control_poll(b.reader, &request, 1); /* time stands still: nobody is given up */
        if (rc == 0) {
            (void)sched_yield();
            continue;
        }
        CHECK_EQ(rc, 1);
        uint64_t client = request.correlation_id >> 32;
        CHECK_EQ(request.correlation_id & UINT32_MAX, last[client] + 1);
        last[client]++;
        got++;
        shmd_control_advance(b.reader);
    }
    for (uint32_t i = 0; i < SENDERS; i++)
        test_join(threads[i]);
    shmd_event_writer_free(events);
    stop(&b);
}

static void test_impatient_reader_and_slow_senders_lose_no_request(void)
{
    enum { SENDERS = 3 };
    bench_t b;
    start(&b, 0);
    sender_t senders[SENDERS];
    pthread_t threads[SENDERS];
    uint64_t n = test_scale(5000), got = 0, now = 0;
    unsigned char *seen[SENDERS];
    for (uint32_t i = 0; i < SENDERS; i++) {
        seen[i] = test_memory(n + 1);
        senders[i] = (sender_t){.bench = &b, .client = i, .n = n};
        threads[i] = test_thread(send_many, &senders[i]);
    }
    while (got < n * SENDERS) {
        shmd_request_t request;
        int rc = shmd_control_poll(b.reader, &request, now += PATIENCE_NS); /* every claim that is seen twice is skipped */
        if (rc == SHMD_E_TIMEOUT) {
            (void)shmd_control_skip(b.reader, 0);
        } else if (rc == 1) {
            uint64_t client = request.correlation_id >> 32, i = request.correlation_id & UINT32_MAX;
            CHECK_EQ(seen[client][i], 0);
            seen[client][i] = 1;
            got++;
            shmd_control_advance(b.reader);
        } else {
            CHECK_EQ(rc, 0);
            (void)shmd_control_sweep(b.reader);
            (void)sched_yield();
        }
    }
    for (uint32_t i = 0; i < SENDERS; i++) {
        test_join(threads[i]);
        free(seen[i]);
    }
    stop(&b);
}

int main(void)
{
    RUN(test_requests_arrive_in_order);
    RUN(test_laps_wrap_at_2_to_the_32);
    RUN(test_positions_beyond_2_to_the_32);
    RUN(test_a_full_ring_times_out_and_goes_on_when_drained);
    RUN(test_an_uncommitted_claim_is_waited_for_then_quarantined);
    RUN(test_a_proved_dead_claim_is_skipped_at_once_and_its_slot_reused);
    RUN(test_a_commit_at_the_last_moment_is_read);
    RUN(test_a_quarantined_slot_is_released_by_proof_of_death);
    RUN(test_a_slot_released_before_the_first_sweep_comes_back);
    RUN(test_a_poll_ends_when_every_slot_is_set_aside);
    RUN(test_a_slot_that_a_client_sets_aside_itself_is_freed);
    RUN(test_a_wrong_tail_keeps_nobody_out);
    RUN(test_a_free_slot_before_a_commit_does_not_hold_it_up);
    RUN(test_a_garbage_turn_costs_its_slot_one_turn);
    RUN(test_a_request_that_is_not_its_claimers_is_refused);
    RUN(test_last_words_of_a_client_that_is_gone_are_read);
    RUN(test_a_new_reader_goes_on_where_the_dead_one_stood);
    RUN(test_random_bytes_everywhere_never_stop_the_reader);
    RUN(test_many_senders_are_all_heard_each_in_order);
    RUN(test_impatient_reader_and_slow_senders_lose_no_request);
    RUN(test_a_garbage_tail_stops_nobody);
    return test_report();
}
