/* The look in place of a lease check: what lets a driver sleep on, and what does not. Time is a number.
 * fault: 74 (all that only a tick sees to, one after the other) */
#include "rig.h"

enum { STALLED_NS = 1000, CHECK_NS = 100, GAP_NS = 5000 };

typedef struct rest_rig {
    rig_t rig;
    shmd_producer *producer;
    shmd_consumer *consumer;
    shmd_client_watch_t watches[8];
    shmd_epoch_watch_t watch;
    shmd_epoch_watch_t *list[1];
    shmd_control_t *control;
    shmd_rest_t rest;
} rest_rig_t;

static void beat(rest_rig_t *k)
{
    shmd_word_store(&k->control->heartbeat.beat, k->control->heartbeat.beat + 1);
}

static void start(rest_rig_t *k)
{
    memset(k, 0, sizeof *k);
    rig_start(&k->rig, 64, 64, 0, 0);
    k->producer = rig_producer(&k->rig);
    k->consumer = rig_consumer(&k->rig, 3, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    k->control = rig_control(11);
    k->watch = (shmd_epoch_watch_t){.hot = k->rig.hot, .data = k->rig.data, .gates = k->rig.gates, .slots = 64, .gate_count = RIG_GATES};
    k->list[0] = &k->watch;
    shmd_client_record_t *client = shmd_authority_client(k->rig.authority, 1);
    client->client_id = 11;
    shmd_word_store(&client->word, 0x200 | SHMD_CLIENT_ALIVE);
    client->connected = 1;
    k->watches[1] = (shmd_client_watch_t){.client_id = 11, .control = k->control};
    k->rest = (shmd_rest_t){.authority = k->rig.authority,
                            .clients = k->watches,
                            .epochs = k->list,
                            .epoch_count = 1,
                            .stalled_ns = STALLED_NS,
                            .gap_ns = GAP_NS,
                            .check_interval_ns = CHECK_NS,
                            .check_due_ns = CHECK_NS};
    beat(k);
}

static void stop(rest_rig_t *k)
{
    free(k->control);
    rig_consumer_free(k->consumer);
    rig_producer_free(k->producer);
    rig_stop(&k->rig);
}

static void test_a_look_renews_counts_and_moves_on(void)
{
    rest_rig_t k;
    start(&k);
    for (uint64_t now = CHECK_NS; now < 50 * STALLED_NS; now += STALLED_NS - 1) {
        beat(&k);
        CHECK_EQ(shmd_driver_rests(&k.rest, now), 1);
        CHECK_EQ(shmd_authority_client(k.rig.authority, 1)->seen_ns, now);
        CHECK_EQ(k.rig.authority->heartbeat_ns, now);
        CHECK(k.rest.check_due_ns > now && k.rest.check_due_ns <= now + CHECK_NS && k.rest.check_due_ns % CHECK_NS == 0);
    }
    CHECK(shmd_counter_get(k.rig.authority, SHMD_COUNTER_IDLE_CHECKS) > 0);
    CHECK_EQ(shmd_counter_get(k.rig.authority, SHMD_COUNTER_TICKS), 0); /* it is none: nothing was dispatched */
    stop(&k);
}

static void test_silence_ends_the_rest_and_what_stands_there_stays(void)
{
    rest_rig_t k;
    start(&k);
    CHECK_EQ(shmd_driver_rests(&k.rest, 1), 1);
    CHECK_EQ(shmd_driver_rests(&k.rest, STALLED_NS), 1);
    CHECK_EQ(shmd_driver_rests(&k.rest, STALLED_NS + 1), 0);
    CHECK_EQ(k.rest.looked_ns, STALLED_NS);
    CHECK_EQ(k.rig.authority->heartbeat_ns, STALLED_NS);
    beat(&k);
    shmd_word_store(&shmd_authority_client(k.rig.authority, 1)->word, 0x200 | SHMD_CLIENT_STALLED);
    CHECK_EQ(shmd_driver_rests(&k.rest, STALLED_NS + 2), 0); /* whose recovery is a tick's matter: its beat is not taken */
    CHECK_EQ(k.watches[1].beat, 1);
    stop(&k);
}

static void test_a_gap_ends_the_rest(void)
{
    rest_rig_t k;
    start(&k);
    CHECK_EQ(shmd_driver_rests(&k.rest, GAP_NS), 0);
    CHECK_EQ(k.watches[1].seen_ns, 0);
    k.rest.looked_ns = 1;
    CHECK_EQ(shmd_driver_rests(&k.rest, GAP_NS), 1);
    stop(&k);
}

static void test_a_gate_that_is_impossible_ends_the_rest(void)
{
    rest_rig_t k;
    start(&k);
    shmd_gate_t *gate = shmd_gates_gate(k.rig.gates, 3);
    k.rest.gates_interval_ns = 10;
    shmd_word_store(&gate->position, 64); /* head 0: as far as a reader of commit words can be */
    CHECK_EQ(shmd_driver_rests(&k.rest, 10), 1);
    shmd_word_store(&gate->position, 65);
    CHECK_EQ(shmd_driver_rests(&k.rest, 19), 1); /* gates are not due yet */
    CHECK_EQ(shmd_driver_rests(&k.rest, 20), 0);
    shmd_word_store(&gate->position, 63);
    CHECK_EQ(shmd_driver_rests(&k.rest, 20), 0);
    shmd_word_store(&gate->position, 64);
    CHECK_EQ(shmd_driver_rests(&k.rest, 20), 1);
    k.watch.gate_count = 3; /* a bit past the gates there are is looked at nowhere */
    CHECK_EQ(shmd_driver_rests(&k.rest, 30), 0);
    stop(&k);
}

static void test_who_holds_an_evicting_producer_back_ends_the_rest(void)
{
    rest_rig_t k;
    start(&k);
    shmd_store32_relaxed(&k.rig.data->blocked_gate, 4);
    CHECK_EQ(shmd_driver_rests(&k.rest, 1), 1);
    k.watch.evicts = 1;
    CHECK_EQ(shmd_driver_rests(&k.rest, 2), 0);
    shmd_store32_relaxed(&k.rig.data->blocked_gate, 0);
    CHECK_EQ(shmd_driver_rests(&k.rest, 2), 1);
    stop(&k);
}

static void test_an_epoch_that_somebody_left_or_that_is_being_sealed_ends_the_rest(void)
{
    rest_rig_t k;
    start(&k);
    uint64_t number = k.rig.hot->state & ~(uint64_t)0xff;
    shmd_word_store(&k.rig.hot->state, number | SHMD_EPOCH_SEALING);
    CHECK_EQ(shmd_driver_rests(&k.rest, 1), 0);
    shmd_word_store(&k.rig.hot->state, number | SHMD_EPOCH_SEALED);
    CHECK_EQ(shmd_driver_rests(&k.rest, 1), 1);
    shmd_word_store(&shmd_gates_gate(k.rig.gates, 2)->left, 77); /* a gate that is not wired */
    CHECK_EQ(shmd_driver_rests(&k.rest, 2), 1);
    shmd_word_store(&shmd_gates_gate(k.rig.gates, 3)->left, 78);
    CHECK_EQ(shmd_driver_rests(&k.rest, 3), 0);
    k.watch.left[3] = 78; /* it has been acted on */
    CHECK_EQ(shmd_driver_rests(&k.rest, 3), 1);
    k.watch.gate_count = 3;
    CHECK_EQ(shmd_driver_rests(&k.rest, 4), 0);
    stop(&k);
}

static void test_what_a_client_asks_and_a_client_that_cannot_ring_end_the_rest(void)
{
    rest_rig_t k;
    start(&k);
    shmd_client_record_t *client = shmd_authority_client(k.rig.authority, 1);
    CHECK_EQ(shmd_driver_rests(&k.rest, 1), 1);
    shmd_word_store(&k.control->tail, 1);
    CHECK_EQ(shmd_driver_rests(&k.rest, 2), 0);
    client->control_cursor = 1; /* it was served */
    CHECK_EQ(shmd_driver_rests(&k.rest, 3), 1);
    shmd_word_store(&k.control->tail, 0); /* impossible */
    CHECK_EQ(shmd_driver_rests(&k.rest, 4), 0);
    shmd_word_store(&k.control->tail, 1);
    client->connected = 0;
    CHECK_EQ(shmd_driver_rests(&k.rest, 5), 0);
    client->connected = 1;
    CHECK_EQ(shmd_driver_rests(&k.rest, 6), 1);
    k.watches[1].control = NULL;
    CHECK_EQ(shmd_driver_rests(&k.rest, 7), 0);
    stop(&k);
}

int main(void)
{
    RUN(test_a_look_renews_counts_and_moves_on);
    RUN(test_silence_ends_the_rest_and_what_stands_there_stays);
    RUN(test_a_gap_ends_the_rest);
    RUN(test_a_gate_that_is_impossible_ends_the_rest);
    RUN(test_who_holds_an_evicting_producer_back_ends_the_rest);
    RUN(test_an_epoch_that_somebody_left_or_that_is_being_sealed_ends_the_rest);
    RUN(test_what_a_client_asks_and_a_client_that_cannot_ring_end_the_rest);
    return test_report();
}
