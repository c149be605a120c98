/* The control segment of one client: its ring of requests, its lease entries, and what happens when it writes garbage there. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/shmd_client_ring.h"
#include "test.h"

enum { CLIENT = 11, INDEX = 4, NONCE = 0x5eed, BOOT = 99 };

typedef struct bench {
    shmd_control_t *control;
    uint64_t *cursor;
    shmd_client_ring_t ring;
    shmd_client_ring_reader_t reader;
} bench_t;

static void *shared_memory(uint64_t bytes)
{
    void *memory = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static void start(bench_t *b, uint64_t position)
{
    uint64_t bytes = shmd_client_ring_footprint();
    b->control = shared_memory(bytes);
    b->cursor = shared_memory(4096);
    CHECK_EQ(shmd_client_ring_init(b->control, bytes, CLIENT, BOOT, 1), SHMD_OK);
    shmd_segment_complete(b->control);
    *b->cursor = position;
    b->control->tail = position;
    CHECK_EQ(shmd_client_ring_open(&b->ring, b->control, b->cursor, INDEX, NONCE), SHMD_OK);
    shmd_client_ring_reader_init(&b->reader, b->control, b->cursor, CLIENT, INDEX, NONCE);
}

static void stop(bench_t *b)
{
    shmd_client_ring_close(&b->ring);
    CHECK_EQ(munmap(b->control, (size_t)shmd_client_ring_footprint()), 0);
    CHECK_EQ(munmap(b->cursor, 4096), 0);
}

static void fill(shmd_request_t *request, uint64_t correlation_id)
{
    memset(request, 0, sizeof *request);
    request->kind = SHMD_REQUEST_GOODBYE;
    request->layout_version = SHMD_LAYOUT_VERSION;
    request->client_id = CLIENT;
    request->correlation_id = correlation_id;
    memset(request->text, (int)('a' + correlation_id % 26), sizeof request->text - 1);
}

static int send_one(bench_t *b, uint64_t correlation_id)
{
    shmd_request_t request;
    fill(&request, correlation_id);
    return shmd_client_ring_send(&b->ring, &request);
}

static void receive(bench_t *b, uint64_t correlation_id)
{
    shmd_request_t request;
    CHECK_EQ(shmd_client_ring_poll(&b->reader, &request), 1);
    CHECK_EQ(request.correlation_id, correlation_id);
    shmd_client_ring_advance(&b->reader);
}

/* ---- the segment ------------------------------------------------------------------------ */

static void test_a_segment_fits_its_limit_and_says_whose_it_is(void)
{
    bench_t b;
    uint64_t bytes = shmd_client_ring_footprint();
    CHECK(sizeof(shmd_control_t) <= 16384);
    CHECK_EQ(bytes % shmd_page_bytes(), 0);
    CHECK(SHMD_CLIENT_LEASES >= 256);
    CHECK_EQ(sizeof b.control->requests / sizeof b.control->requests[0], SHMD_CLIENT_REQUESTS);
    CHECK_EQ(sizeof b.control->leases / sizeof b.control->leases[0], SHMD_CLIENT_LEASES);
    start(&b, 0);
    CHECK_EQ(shmd_client_ring_check(b.control, bytes, CLIENT, BOOT), SHMD_OK);
    CHECK_EQ(shmd_client_ring_check(b.control, bytes, CLIENT, 0), SHMD_OK);
    CHECK_EQ(shmd_client_ring_check(b.control, bytes, CLIENT + 1, BOOT), SHMD_E_LAYOUT);
    CHECK_TEXT("expected that of client 12");
    CHECK_EQ(shmd_client_ring_check(b.control, bytes, CLIENT, BOOT + 1), SHMD_E_LAYOUT);
    CHECK_EQ(shmd_client_ring_check(b.control, sizeof(shmd_control_t) - 1, CLIENT, BOOT), SHMD_E_LAYOUT);
    b.control->lease_count++;
    CHECK_EQ(shmd_client_ring_check(b.control, bytes, CLIENT, BOOT), SHMD_E_LAYOUT);
    CHECK_TEXT("449 leases");
    b.control->lease_count--;
    b.control->header.magic = 0;
    CHECK_EQ(shmd_client_ring_check(b.control, bytes, CLIENT, BOOT), SHMD_E_LAYOUT);
    CHECK_EQ(shmd_client_ring_init(b.control, bytes - 1, CLIENT, BOOT, 1), SHMD_E_INVALID);
    stop(&b);
}

/* ---- requests --------------------------------------------------------------------------- */

static void test_requests_arrive_in_order_and_positions_wrap(void)
{
    static const uint64_t starts[] = {0, 1, ((uint64_t)1 << 32) - 6, UINT64_MAX - 9};
    for (size_t s = 0; s < sizeof starts / sizeof starts[0]; s++) {
        bench_t b;
        shmd_request_t request;
        start(&b, starts[s]);
        CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), 0);
        CHECK_EQ(shmd_client_ring_rests(&b.reader), 1);
        for (uint64_t i = 1; i <= 40; i++) {
            for (uint64_t k = 0; k <= i % SHMD_CLIENT_REQUESTS; k++)
                CHECK_EQ(send_one(&b, 100 * i + k), SHMD_OK);
            CHECK_EQ(shmd_client_ring_rests(&b.reader), 0);
            for (uint64_t k = 0; k <= i % SHMD_CLIENT_REQUESTS; k++)
                receive(&b, 100 * i + k);
        }
        CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), 0);
        CHECK_EQ(*b.cursor, b.control->tail);
        stop(&b);
    }
}

static void test_a_full_ring_refuses_at_once_and_goes_on_after_an_advance(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, UINT64_MAX - 1);
    for (uint64_t i = 1; i <= SHMD_CLIENT_REQUESTS; i++)
        CHECK_EQ(send_one(&b, i), SHMD_OK);
    CHECK_EQ(send_one(&b, 5), SHMD_BACK_PRESSURED);
    CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), 1);
    CHECK_EQ(send_one(&b, 5), SHMD_BACK_PRESSURED); /* read, but its slot is the driver's until it advances */
    shmd_client_ring_advance(&b.reader);
    CHECK_EQ(send_one(&b, 5), SHMD_OK);
    for (uint64_t i = 2; i <= 5; i++)
        receive(&b, i);
    stop(&b);
}

static void test_a_request_stays_until_the_driver_advances(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    shmd_client_ring_advance(&b.reader);
    CHECK_EQ(*b.cursor, 0); /* nothing was polled */
    CHECK_EQ(send_one(&b, 1), SHMD_OK);
    CHECK_EQ(send_one(&b, 2), SHMD_OK);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), 1);
        CHECK_EQ(request.correlation_id, 1);
    }
    shmd_client_ring_advance(&b.reader);
    shmd_client_ring_advance(&b.reader);
    CHECK_EQ(*b.cursor, 1);
    receive(&b, 2);
    stop(&b);
}

static void test_a_successor_goes_on_at_the_cursor(void)
{
    bench_t b;
    shmd_request_t request;
    start(&b, 6);
    for (uint64_t i = 1; i <= 3; i++)
        CHECK_EQ(send_one(&b, i), SHMD_OK);
    receive(&b, 1);
    CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), 1); /* and dies before it advances */
    memset(&b.reader, 0, sizeof b.reader);
    shmd_client_ring_reader_init(&b.reader, b.control, b.cursor, CLIENT, INDEX, NONCE);
    receive(&b, 2);
    receive(&b, 3);
    CHECK_EQ(send_one(&b, 4), SHMD_OK);
    receive(&b, 4);
    stop(&b);
}

static void test_an_impossible_tail_is_corrupt_and_moves_nothing(void)
{
    bench_t b, other;
    shmd_request_t request;
    static const uint64_t ahead[] = {SHMD_CLIENT_REQUESTS + 1, 64, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 1};
    start(&b, 1000);
    start(&other, 0);
    for (size_t i = 0; i < sizeof ahead / sizeof ahead[0]; i++) {
        shmd_store_release(&b.control->tail, 1000 + ahead[i]);
        CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), SHMD_E_CORRUPT);
        CHECK_TEXT("client 11 says");
        CHECK_TEXT("expected 1000 to 1004");
        CHECK_EQ(shmd_client_ring_rests(&b.reader), 0);
        shmd_client_ring_advance(&b.reader);
        CHECK_EQ(*b.cursor, 1000);
        CHECK_EQ(send_one(&other, i + 1), SHMD_OK); /* nobody else notices */
        receive(&other, i + 1);
    }
    shmd_store_release(&b.control->tail, 1001); /* possible, but there never was a request */
    CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), SHMD_E_CORRUPT);
    CHECK_TEXT("says position 0, it stands at 1000");
    stop(&b);
    stop(&other);
}

static void test_a_request_that_is_not_whole_or_not_its_clients_is_refused(void)
{
    static const struct { size_t offset; const char *text; } flips[] = {
        {offsetof(shmd_request_t, position), "position"}, {offsetof(shmd_request_t, checksum), "checksum"},
        {offsetof(shmd_request_t, client_id), "says that it is of client"}, {offsetof(shmd_request_t, stream) + 60, "checksum"},
        {offsetof(shmd_request_t, correlation_id), "checksum"}, {sizeof(shmd_request_t) - 1, "checksum"}};
    bench_t b;
    shmd_request_t request;
    start(&b, 0);
    for (size_t i = 0; i < sizeof flips / sizeof flips[0]; i++) {
        CHECK_EQ(send_one(&b, 1), SHMD_OK);
        CHECK_EQ(send_one(&b, 2), SHMD_OK);
        ((unsigned char *)&b.control->requests[*b.cursor % SHMD_CLIENT_REQUESTS])[flips[i].offset] ^= 0x40;
        CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), SHMD_E_CORRUPT);
        CHECK_TEXT(flips[i].text);
        shmd_client_ring_advance(&b.reader);
        receive(&b, 2);
    }
    static const struct { uint64_t nonce; uint32_t index; } keys[] = {{NONCE + 1, INDEX}, {NONCE, INDEX + 1}};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) { /* as another client would sign it */
        fill(&request, 7);
        request.position = *b.cursor;
        request.checksum = shmd_request_checksum(&request, keys[i].index + 1, keys[i].nonce);
        memcpy(&b.control->requests[*b.cursor % SHMD_CLIENT_REQUESTS], &request, sizeof request);
        shmd_store_release(&b.control->tail, *b.cursor + 1);
        CHECK_EQ(shmd_client_ring_poll(&b.reader, &request), SHMD_E_CORRUPT);
        CHECK_TEXT("checksum");
        shmd_client_ring_advance(&b.reader);
    }
    stop(&b);
}

static void test_a_cursor_that_is_impossible_is_told_to_the_sender(void)
{
    bench_t b;
    start(&b, 1000);
    CHECK_EQ(send_one(&b, 1), SHMD_OK);
    static const uint64_t wrong[] = {0, 996, 1002, UINT64_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        shmd_store_release(b.cursor, wrong[i]);
        CHECK_EQ(send_one(&b, 2), SHMD_E_CORRUPT);
        CHECK_TEXT("expected 997 to 1001");
        CHECK_EQ(b.control->tail, 1001);
    }
    shmd_store_release(b.cursor, 1000);
    CHECK_EQ(send_one(&b, 2), SHMD_OK);
    receive(&b, 1);
    receive(&b, 2);
    stop(&b);
}

static void test_random_bytes_everywhere_never_stop_the_reader(void)
{
    bench_t b, honest;
    shmd_request_t request;
    uint64_t seed = 0x1234567, accepted = 0;
    start(&b, 0);
    start(&honest, 0);
    unsigned char *bytes = (unsigned char *)b.control;
    for (uint64_t round = 1; round <= test_scale(5000); round++) {
        for (int i = 0; i < 200; i++)
            bytes[test_random(&seed) % sizeof *b.control] = (unsigned char)test_random(&seed);
        shmd_store_release(&b.control->tail, *b.cursor + test_random(&seed) % (SHMD_CLIENT_REQUESTS + 2)); /* mostly a possible one */
        uint64_t before = *b.cursor;
        for (int i = 0; i < 2 * SHMD_CLIENT_REQUESTS; i++) {
            int rc = shmd_client_ring_poll(&b.reader, &request);
            CHECK(rc == 0 || rc == SHMD_E_CORRUPT);
            accepted += rc == 1;
            shmd_client_ring_advance(&b.reader);
            int said = shmd_client_ring_look(b.control, (uint32_t)(test_random(&seed) % SHMD_CLIENT_LEASES), round);
            CHECK((said >= SHMD_ENTRY_NONE && said <= SHMD_ENTRY_ABORTED) || said == SHMD_E_CORRUPT);
        }
        CHECK(*b.cursor - before <= SHMD_CLIENT_REQUESTS);
        CHECK_EQ(send_one(&honest, round), SHMD_OK);
        receive(&honest, round);
    }
    CHECK_EQ(accepted, 0);
    stop(&b);
    stop(&honest);
}

/* ---- leases ----------------------------------------------------------------------------- */

static void test_every_lease_can_be_confirmed_and_ended_while_the_ring_is_full(void)
{
    bench_t b;
    start(&b, 0);
    for (uint64_t i = 1; i <= SHMD_CLIENT_REQUESTS; i++)
        CHECK_EQ(send_one(&b, i), SHMD_OK); /* no driver reads them */
    for (uint32_t entry = 0; entry < SHMD_CLIENT_LEASES; entry++) {
        uint64_t lease_id = 1000 + entry;
        uint32_t how = entry % 2 == 0 ? SHMD_ENTRY_DETACHED : SHMD_ENTRY_ABORTED;
        CHECK_EQ(shmd_client_ring_look(b.control, entry, lease_id), SHMD_ENTRY_NONE);
        CHECK_EQ(shmd_client_ring_confirm(&b.ring, entry, lease_id), SHMD_OK);
        CHECK_EQ(shmd_client_ring_look(b.control, entry, lease_id), SHMD_ENTRY_CONFIRMED);
        CHECK_EQ(shmd_client_ring_detach(&b.ring, entry, lease_id, how), SHMD_OK);
    }
    for (uint32_t entry = 0; entry < SHMD_CLIENT_LEASES; entry++) { /* a successor finds all of them */
        CHECK_EQ(shmd_client_ring_look(b.control, entry, 1000 + entry), entry % 2 == 0 ? SHMD_ENTRY_DETACHED : SHMD_ENTRY_ABORTED);
        CHECK_EQ(shmd_client_ring_look(b.control, entry, 999 + entry), SHMD_ENTRY_NONE);
        CHECK_EQ(shmd_client_ring_look(b.control, entry, 1001 + entry), SHMD_ENTRY_NONE);
    }
    for (uint64_t i = 1; i <= SHMD_CLIENT_REQUESTS; i++)
        receive(&b, i);
    stop(&b);
}

static void test_a_late_note_of_an_earlier_lease_replaces_none_of_a_later_one(void)
{
    bench_t b;
    start(&b, 0);
    CHECK_EQ(shmd_client_ring_confirm(&b.ring, 5, 20), SHMD_OK); /* lease 19 was ended by the driver, its entry serves lease 20 */
    CHECK_EQ(shmd_client_ring_confirm(&b.ring, 5, 19), SHMD_OK);
    CHECK_EQ(shmd_client_ring_look(b.control, 5, 20), SHMD_ENTRY_CONFIRMED);
    CHECK_EQ(shmd_client_ring_detach(&b.ring, 5, 19, SHMD_ENTRY_DETACHED), SHMD_OK);
    CHECK_EQ(shmd_client_ring_look(b.control, 5, 19), SHMD_ENTRY_DETACHED);
    CHECK_EQ(shmd_client_ring_look(b.control, 5, 20), SHMD_ENTRY_CONFIRMED);
    CHECK_EQ(shmd_client_ring_detach(&b.ring, 5, 20, SHMD_ENTRY_DETACHED), SHMD_OK);
    CHECK_EQ(shmd_client_ring_detach(&b.ring, 5, 19, SHMD_ENTRY_ABORTED), SHMD_OK);
    CHECK_EQ(shmd_client_ring_look(b.control, 5, 20), SHMD_ENTRY_DETACHED);
    CHECK_EQ(shmd_client_ring_detach(&b.ring, 5, 20, SHMD_ENTRY_ABORTED), SHMD_OK); /* said anew of the same lease */
    CHECK_EQ(shmd_client_ring_look(b.control, 5, 20), SHMD_ENTRY_ABORTED);
    stop(&b);
}

static void test_bad_entries_are_refused_on_both_sides(void)
{
    bench_t b;
    start(&b, 0);
    CHECK_EQ(shmd_client_ring_confirm(&b.ring, SHMD_CLIENT_LEASES, 1), SHMD_E_CORRUPT);
    CHECK_TEXT("lease entry 448 of 448");
    CHECK_EQ(shmd_client_ring_detach(&b.ring, UINT32_MAX, 1, SHMD_ENTRY_ABORTED), SHMD_E_CORRUPT);
    CHECK_EQ(shmd_client_ring_detach(&b.ring, 0, 1, SHMD_ENTRY_CONFIRMED), SHMD_E_INVALID);
    CHECK_EQ(shmd_client_ring_look(b.control, SHMD_CLIENT_LEASES, 1), SHMD_E_INVALID);
    b.control->leases[3].detached = 8 << 8 | 77;
    CHECK_EQ(shmd_client_ring_look(b.control, 3, 8), SHMD_E_CORRUPT);
    CHECK_TEXT("detached as 77");
    CHECK_EQ(shmd_client_ring_look(b.control, 3, 7), SHMD_ENTRY_NONE);
    stop(&b);
}

/* ---- threads, processes ------------------------------------------------------------------ */

typedef struct sender {
    bench_t *bench;
    uint64_t thread;
    uint64_t n;
} sender_t;

static void *send_many(void *argument)
{
    sender_t *s = argument;
    for (uint64_t i = 1; i <= s->n; i++) {
        int rc;
        while ((rc = send_one(s->bench, s->thread << 32 | i)) == SHMD_BACK_PRESSURED)
            (void)sched_yield();
        CHECK_EQ(rc, SHMD_OK);
    }
    CHECK_EQ(shmd_client_ring_detach(&s->bench->ring, (uint32_t)s->thread, s->n, SHMD_ENTRY_DETACHED), SHMD_OK);
    return NULL;
}

static void test_threads_of_a_client_are_all_heard_each_in_order(void)
{
    enum { SENDERS = 4 };
    bench_t b;
    start(&b, UINT64_MAX - 1000);
    sender_t senders[SENDERS];
    pthread_t threads[SENDERS];
    uint64_t last[SENDERS] = {0}, n = test_scale(5000), got = 0;
    for (uint64_t i = 0; i < SENDERS; i++) {
        senders[i] = (sender_t){.bench = &b, .thread = i, .n = n};
        threads[i] = test_thread(send_many, &senders[i]);
    }
    while (got < n * SENDERS) {
        shmd_request_t request;
        int rc = shmd_client_ring_poll(&b.reader, &request);
        if (rc == 0) {
            (void)sched_yield();
            continue;
        }
        CHECK_EQ(rc, 1);
        uint64_t thread = request.correlation_id >> 32;
        CHECK_EQ(request.correlation_id & UINT32_MAX, last[thread] + 1);
        last[thread]++;
        got++;
        shmd_client_ring_advance(&b.reader);
    }
    for (uint32_t i = 0; i < SENDERS; i++) {
        test_join(threads[i]);
        CHECK_EQ(shmd_client_ring_look(b.control, i, n), SHMD_ENTRY_DETACHED);
    }
    stop(&b);
}

static void test_a_client_that_is_killed_leaves_whole_requests_without_a_gap(void)
{
    uint64_t seed = 0x9e3779b9, most = 0;
    for (uint64_t round = 0; round < test_scale(40); round++) {
        bench_t b;
        start(&b, 0);
        pid_t parent = getpid(), child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            shmd_client_ring_t own;
            (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* else it goes on for ever when a check of its parent fails */
            if (getppid() != parent || shmd_client_ring_open(&own, b.control, b.cursor, INDEX, NONCE) != SHMD_OK)
                _exit(1);
            shmd_request_t request;
            for (uint64_t i = 1;;) {
                fill(&request, i);
                if (shmd_client_ring_send(&own, &request) == SHMD_OK)
                    i++;
                else
                    (void)sched_yield();
            }
        }
        uint64_t got = 0, enough = 1 + test_random(&seed) % 500;
        shmd_request_t request;
        int rc;
        while (got < enough) {
            rc = shmd_client_ring_poll(&b.reader, &request);
            CHECK(rc == 0 || rc == 1);
            if (rc == 1)
                CHECK_EQ(request.correlation_id, ++got);
            else
                (void)sched_yield();
            shmd_client_ring_advance(&b.reader);
        }
        CHECK_EQ(kill(child, SIGKILL), 0);
        CHECK_EQ(waitpid(child, NULL, 0), child);
        while ((rc = shmd_client_ring_poll(&b.reader, &request)) == 1) {
            CHECK_EQ(request.correlation_id, ++got);
            shmd_client_ring_advance(&b.reader);
        }
        CHECK_EQ(rc, 0);
        most = shmd_max(most, got);
        stop(&b);
    }
    CHECK(most > SHMD_CLIENT_REQUESTS);
}

static void test_a_forked_child_cannot_use_its_parents_ring(void)
{
#ifdef SHMD_EMULATED
    enum { WAYS = 1 }; /* qemu does not wipe pages, so a child without fork handlers is not told apart */
#else
    enum { WAYS = 2 };
#endif
    bench_t b;
    start(&b, 0);
    for (int raw = 0; raw < WAYS; raw++) {
        (void)pthread_mutex_lock(&b.ring.lock); /* as another thread may have, when the child is made */
        pid_t child = raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
        if (child == 0)
            _exit(send_one(&b, 1) == SHMD_E_FORKED && shmd_client_ring_confirm(&b.ring, 1, 1) == SHMD_E_FORKED &&
                          shmd_client_ring_detach(&b.ring, 1, 1, SHMD_ENTRY_ABORTED) == SHMD_E_FORKED
                      ? 0
                      : 1);
        (void)pthread_mutex_unlock(&b.ring.lock);
        int status = -1;
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK_EQ(status, 0);
    }
    CHECK_EQ(b.control->tail, 0);
    CHECK_EQ(send_one(&b, 1), SHMD_OK);
    receive(&b, 1);
    stop(&b);
}

int main(void)
{
    RUN(test_a_segment_fits_its_limit_and_says_whose_it_is);
    RUN(test_requests_arrive_in_order_and_positions_wrap);
    RUN(test_a_full_ring_refuses_at_once_and_goes_on_after_an_advance);
    RUN(test_a_request_stays_until_the_driver_advances);
    RUN(test_a_successor_goes_on_at_the_cursor);
    RUN(test_an_impossible_tail_is_corrupt_and_moves_nothing);
    RUN(test_a_request_that_is_not_whole_or_not_its_clients_is_refused);
    RUN(test_a_cursor_that_is_impossible_is_told_to_the_sender);
    RUN(test_random_bytes_everywhere_never_stop_the_reader);
    RUN(test_every_lease_can_be_confirmed_and_ended_while_the_ring_is_full);
    RUN(test_a_late_note_of_an_earlier_lease_replaces_none_of_a_later_one);
    RUN(test_bad_entries_are_refused_on_both_sides);
    RUN(test_threads_of_a_client_are_all_heard_each_in_order);
    RUN(test_a_client_that_is_killed_leaves_whole_requests_without_a_gap);
    RUN(test_a_forked_child_cannot_use_its_parents_ring);
    return test_report();
}
