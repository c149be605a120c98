/* test_abandon.c: leases whose handles were abandoned. fault: 50 (a full control ring, a driver that takes a detach and does not serve it) */
#include "rig.h"

enum { LEASE = 3, LEASE_ID = 77, LONG_NS = 2000000000 };

typedef struct bench {
    rig_t rig;
    shmd_control_reader *reader;
    shmd_client *client;
    shmd_lease_record_t *lease;
} bench_t;

static void start(bench_t *b)
{
    memset(b, 0, sizeof *b);
    rig_authority(&b->rig);
    b->reader = shmd_control_reader_new(b->rig.control, shmd_control_footprint(8, 16), b->rig.authority);
    CHECK(b->reader != NULL);
    b->client = &b->rig.client;
    b->client->client_id = 5;
    b->client->nonce = 11;
    CHECK_EQ(shmd_heartbeat_init(b->client), SHMD_OK);
    shmd_client_record_t *record = shmd_authority_client(b->rig.authority, 0);
    record->client_id = 5;
    record->nonce = 11;
    shmd_word_store(&record->word, 0x100 | SHMD_CLIENT_ALIVE);
    b->lease = shmd_authority_lease(b->rig.authority, LEASE);
    b->lease->lease_id = LEASE_ID;
    shmd_word_store(&b->lease->word, 0x100 | SHMD_LEASE_ACTIVE);
}

static void stop(bench_t *b)
{
    shmd_heartbeat_free(b->client);
    shmd_control_reader_free(b->reader);
    free(b->rig.authority);
    free(b->rig.control);
}

static void abandon(bench_t *b) { shmd_client_end_later(b->client, LEASE, LEASE_ID, SHMD_ROLE_PRODUCER, "s"); }

/* How many requests stand in the ring; the last one in `request`. They are taken, and served by nobody. */
static int take_all(bench_t *b, shmd_request_t *request)
{
    int count = 0;
    while (shmd_control_poll(b->reader, request, 1) == 1) {
        shmd_control_advance(b->reader);
        count++;
    }
    return count;
}

static void fill_ring(bench_t *b)
{
    shmd_request_t request;
    memset(&request, 0, sizeof request);
    request.kind = SHMD_REQUEST_ADMIN;
    request.client_id = 5;
    while (shmd_control_send(b->rig.control, b->rig.authority, &request, 1, 11, 0) == SHMD_OK)
        ;
}

static void test_an_abandoned_lease_asks_for_an_aborted_end_at_once(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b);
    (void)shmd_fail(SHMD_E_TIMEOUT, "what failed before");
    abandon(&b);
    CHECK_TEXT("what failed before"); /* a finaliser may run between a failure and the look at its text */
    CHECK_EQ(take_all(&b, &request), 1);
    CHECK_EQ(request.kind, SHMD_REQUEST_DETACH);
    CHECK_EQ(request.lease_id, LEASE_ID);
    CHECK_EQ(request.flags, SHMD_DETACH_ABORTED);
    shmd_word_store(&b.lease->word, 0x200 | SHMD_LEASE_DETACHED);
    shmd_client_beat(b.client);
    CHECK(b.client->ending == NULL);
    CHECK_EQ(take_all(&b, &request), 0);
    stop(&b);
}

static void test_a_full_ring_is_not_waited_for_and_a_beat_sends_later(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b);
    fill_ring(&b);
    abandon(&b);
    CHECK_EQ(b.client->ending->sent_ns, 0);
    shmd_client_beat(b.client);
    CHECK_EQ(b.client->ending->sent_ns, 0);
    CHECK_EQ(take_all(&b, &request), SHMD_CONTROL_SLOTS);
    shmd_client_beat(b.client);
    CHECK_EQ(take_all(&b, &request), 1);
    CHECK_EQ(request.lease_id, LEASE_ID);
    stop(&b);
}

static void test_a_detach_that_was_taken_and_not_served_is_sent_again(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b);
    abandon(&b);
    b.client->ending->sent_ns -= LONG_NS;
    shmd_client_beat(b.client);
    CHECK_EQ(take_all(&b, &request), 1); /* it stood in the ring all the time: not sent twice */
    shmd_client_beat(b.client);
    CHECK_EQ(take_all(&b, &request), 1); /* a driver took it, long ago, and the lease lives: that driver was killed */
    shmd_client_beat(b.client);
    CHECK_EQ(take_all(&b, &request), 0); /* the next one has its time */
    stop(&b);
}

static void test_a_forgotten_client_has_nothing_to_end(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b);
    shmd_word_store(&shmd_authority_client(b.rig.authority, 0)->word, 0x200 | SHMD_CLIENT_FREE);
    abandon(&b);
    shmd_client_beat(b.client);
    CHECK(b.client->ending == NULL);
    CHECK_EQ(take_all(&b, &request), 0);
    stop(&b);
}

static void test_a_silent_client_writes_no_line(void)
{
    bench_t b;
    start(&b);
    shmd_heartbeat_t *line = shmd_control_heartbeat(b.rig.control, 8, 16, 0);
    shmd_client_beat(b.client);
    uint64_t beat = line->beat;
    b.client->is_silent = 1; /* its goodbye is said: the line may be another client's */
    shmd_client_beat(b.client);
    CHECK_EQ(line->beat, beat);
    stop(&b);
}

/* Nobody makes it whole here, so that each look after it is in vain, also one by a thread that holds the lock. fault: 48, 50 */
static void test_a_truncated_control_segment_stops_neither_a_finaliser_nor_a_beat(void)
{
    bench_t b;
    start(&b);
    b.client->control_damage.damaged = 1; /* what the handler of SIGBUS does */
    (void)alarm(60);                      /* ends what waits for itself */
    abandon(&b);
    b.client->ending->sent_ns = 0; /* as if the ring had been full */
    shmd_client_beat(b.client);
    CHECK(b.client->ending->sent_ns != 0);
    (void)alarm(0);
    stop(&b);
}

int main(void)
{
    RUN(test_an_abandoned_lease_asks_for_an_aborted_end_at_once);
    RUN(test_a_full_ring_is_not_waited_for_and_a_beat_sends_later);
    RUN(test_a_detach_that_was_taken_and_not_served_is_sent_again);
    RUN(test_a_forgotten_client_has_nothing_to_end);
    RUN(test_a_silent_client_writes_no_line);
    RUN(test_a_truncated_control_segment_stops_neither_a_finaliser_nor_a_beat);
    return test_report();
}
