/* One pass over all clients and leases: who is silent, who came back, what each says of its leases. Time is a number. */
#include "rig.h"

enum { STALLED_NS = 1000, TIMEOUT_NS = 5000 };

typedef struct check {
    rig_t rig;
    shmd_control_t *controls[8];
    shmd_client_watch_t watches[8];
    shmd_check_t found[32];
} check_t;

static void start(check_t *k)
{
    memset(k, 0, sizeof *k);
    rig_authority(&k->rig);
    for (uint32_t i = 0; i < 8; i++) {
        shmd_authority_client(k->rig.authority, i)->index = i;
        k->controls[i] = rig_control(100 + i);
        k->watches[i].control = k->controls[i];
    }
}

static void stop(check_t *k)
{
    for (uint32_t i = 0; i < 8; i++)
        free(k->controls[i]);
    free(k->rig.authority);
    free(k->rig.control);
}

static void set_client(check_t *k, uint32_t index, uint64_t id, uint32_t state)
{
    shmd_client_record_t *record = shmd_authority_client(k->rig.authority, index);
    record->client_id = id;
    shmd_word_store(&record->word, 0x200 | state);
}

static void beat(check_t *k, uint32_t index)
{
    shmd_heartbeat_t *line = &k->controls[index]->heartbeat;
    shmd_word_store(&line->beat, line->beat + 1);
}

static int64_t run(check_t *k, uint64_t now_ns)
{
    return shmd_lease_check(k->rig.authority, k->watches, now_ns, STALLED_NS, TIMEOUT_NS, k->found, 32);
}

static void expect(check_t *k, uint64_t now_ns, uint32_t what, uint32_t index)
{
    CHECK_EQ(run(k, now_ns), 1);
    CHECK_EQ(k->found[0].what, what);
    CHECK_EQ(k->found[0].index, index);
}

static void test_a_beating_client_is_never_found(void)
{
    check_t k;
    start(&k);
    set_client(&k, 2, 11, SHMD_CLIENT_ALIVE);
    for (uint64_t now = 1; now < 100000; now += STALLED_NS - 1) {
        beat(&k, 2);
        CHECK_EQ(run(&k, now), 0);
        CHECK(now == 1 || shmd_authority_client(k.rig.authority, 2)->seen_ns == now);
    }
    stop(&k);
}

static void test_silence_is_stalled_then_expired_and_a_beat_recovers(void)
{
    check_t k;
    start(&k);
    set_client(&k, 3, 11, SHMD_CLIENT_ALIVE);
    CHECK_EQ(run(&k, 100), 0);
    CHECK_EQ(run(&k, 100 + STALLED_NS - 1), 0);
    expect(&k, 100 + STALLED_NS, SHMD_CHECK_CLIENT_STALLED, 3);
    set_client(&k, 3, 11, SHMD_CLIENT_STALLED);
    CHECK_EQ(run(&k, 100 + TIMEOUT_NS - 1), 0); /* said once */
    beat(&k, 3);
    expect(&k, 100 + TIMEOUT_NS - 1, SHMD_CHECK_CLIENT_RECOVERED, 3);
    set_client(&k, 3, 11, SHMD_CLIENT_ALIVE);
    expect(&k, 99 + 2 * TIMEOUT_NS, SHMD_CHECK_CLIENT_EXPIRED, 3);
    CHECK_EQ(k.found[0].silent_ns, TIMEOUT_NS);
    set_client(&k, 3, 11, SHMD_CLIENT_GONE);
    CHECK_EQ(run(&k, 100000), 0);
    stop(&k);
}

static void test_a_new_driver_and_a_new_client_start_afresh(void)
{
    check_t k;
    start(&k);
    set_client(&k, 0, 11, SHMD_CLIENT_ALIVE);
    beat(&k, 0);
    CHECK_EQ(run(&k, 1000000), 0); /* first look of this driver, whatever the past */
    CHECK_EQ(run(&k, 1000000 + STALLED_NS - 1), 0);
    set_client(&k, 0, 12, SHMD_CLIENT_ALIVE); /* the record serves another client */
    CHECK_EQ(run(&k, 2000000), 0);
    CHECK_EQ(k.watches[0].client_id, 12);
    stop(&k);
}

static void test_time_that_stands_or_runs_back_expires_nobody(void)
{
    check_t k;
    start(&k);
    set_client(&k, 0, 11, SHMD_CLIENT_ALIVE);
    CHECK_EQ(run(&k, 1000000), 0);
    CHECK_EQ(run(&k, 1000000), 0);
    CHECK_EQ(run(&k, 5), 0);
    stop(&k);
}

enum { CLIENT = 5, LEASE = 9, ENTRY = 3 };

/* A lease of that client; what the client says of it stands in `entry`. */
static uint64_t lease(check_t *k, uint32_t state)
{
    uint64_t id = rig_lease(&k->rig, LEASE, state);
    shmd_lease_record_t *record = shmd_authority_lease(k->rig.authority, LEASE);
    record->client_index = CLIENT;
    record->entry = ENTRY;
    record->deadline_ns = 500;
    return id;
}

static void test_a_lease_is_confirmed_by_its_own_id_only(void)
{
    check_t k;
    start(&k);
    uint64_t id = lease(&k, SHMD_LEASE_ATTACHED);
    shmd_lease_entry_t *entries = k.controls[CLIENT]->leases;
    shmd_word_store(&entries[ENTRY].confirmed, id - 1); /* its predecessor's */
    shmd_word_store(&entries[ENTRY + 1].confirmed, id);
    shmd_word_store(&k.controls[CLIENT + 1]->leases[ENTRY].confirmed, id); /* another client's word */
    CHECK_EQ(run(&k, 499), 0);
    expect(&k, 500, SHMD_CHECK_UNCONFIRMED, LEASE);
    shmd_word_store(&entries[ENTRY].confirmed, id);
    expect(&k, 501, SHMD_CHECK_CONFIRMED, LEASE);
    (void)lease(&k, SHMD_LEASE_ACTIVE);
    CHECK_EQ(run(&k, 10000), 0);
    stop(&k);
}

static void test_a_note_ends_a_live_lease_and_no_other(void)
{
    check_t k;
    start(&k);
    for (uint32_t state = SHMD_LEASE_FREE; state <= SHMD_LEASE_REVOKED; state++) {
        uint64_t id = lease(&k, state);
        uint64_t *note = &k.controls[CLIENT]->leases[ENTRY].detached;
        int is_live = state == SHMD_LEASE_ATTACHED || state == SHMD_LEASE_ACTIVE || state == SHMD_LEASE_STALLED;
        shmd_word_store(&k.controls[CLIENT]->leases[ENTRY].confirmed, id); /* a detach counts more */
        for (uint32_t how = SHMD_ENTRY_DETACHED; how <= SHMD_ENTRY_ABORTED; how++) {
            shmd_word_store(note, id << 8 | how);
            if (is_live)
                expect(&k, 1000, how == SHMD_ENTRY_DETACHED ? SHMD_CHECK_DETACHED : SHMD_CHECK_ABORTED, LEASE);
            else
                CHECK_EQ(run(&k, 1000), 0);
        }
        shmd_word_store(note, (id - 1) << 8 | SHMD_ENTRY_DETACHED);
        CHECK_EQ(run(&k, 1), state == SHMD_LEASE_ATTACHED); /* its confirmation */
        shmd_word_store(note, id << 8 | 77); /* no end that there is */
        CHECK_EQ(run(&k, 1), 0);
        shmd_word_store(note, 0);
    }
    stop(&k);
}

static void test_a_client_without_a_segment_is_silent_and_confirms_nothing(void)
{
    check_t k;
    start(&k);
    set_client(&k, CLIENT, 11, SHMD_CLIENT_ALIVE);
    uint64_t id = lease(&k, SHMD_LEASE_ATTACHED);
    shmd_word_store(&k.controls[CLIENT]->leases[ENTRY].confirmed, id);
    k.watches[CLIENT].control = NULL;
    CHECK_EQ(run(&k, 100), 0);
    beat(&k, CLIENT);
    k.controls[CLIENT]->tail = 1;
    CHECK_EQ(run(&k, 100 + TIMEOUT_NS), 2);
    CHECK_EQ(k.found[0].what, SHMD_CHECK_CLIENT_EXPIRED);
    CHECK_EQ(k.found[1].what, SHMD_CHECK_UNCONFIRMED);
    stop(&k);
}

static void test_unread_requests_are_found_whoever_has_rung(void)
{
    check_t k;
    start(&k);
    set_client(&k, CLIENT, 11, SHMD_CLIENT_ALIVE);
    CHECK_EQ(run(&k, 1), 0);
    shmd_word_store(&k.controls[CLIENT]->tail, 2);
    expect(&k, 2, SHMD_CHECK_REQUESTS, CLIENT);
    shmd_authority_client(k.rig.authority, CLIENT)->control_cursor = 2;
    CHECK_EQ(run(&k, 2), 0);
    shmd_word_store(&k.controls[CLIENT]->tail, 1); /* an impossible one */
    expect(&k, 2, SHMD_CHECK_REQUESTS, CLIENT);
    set_client(&k, CLIENT, 11, SHMD_CLIENT_GONE);
    CHECK_EQ(run(&k, 2), 0);
    stop(&k);
}

static void test_findings_stop_at_the_limit(void)
{
    check_t k;
    start(&k);
    for (uint32_t i = 0; i < 8; i++)
        set_client(&k, i, 100 + i, SHMD_CLIENT_ALIVE);
    CHECK_EQ(run(&k, 1), 0);
    CHECK_EQ(shmd_lease_check(k.rig.authority, k.watches, 1000000, STALLED_NS, TIMEOUT_NS, k.found, 3), 3);
    CHECK_EQ(run(&k, 1000000), 8);
    stop(&k);
}

int main(void)
{
    RUN(test_a_beating_client_is_never_found);
    RUN(test_silence_is_stalled_then_expired_and_a_beat_recovers);
    RUN(test_a_new_driver_and_a_new_client_start_afresh);
    RUN(test_time_that_stands_or_runs_back_expires_nobody);
    RUN(test_a_lease_is_confirmed_by_its_own_id_only);
    RUN(test_a_note_ends_a_live_lease_and_no_other);
    RUN(test_a_client_without_a_segment_is_silent_and_confirms_nothing);
    RUN(test_unread_requests_are_found_whoever_has_rung);
    RUN(test_findings_stop_at_the_limit);
    return test_report();
}
