/* Sleeping and waking, both ways. A lost wake-up costs a sleep's time limit, never a hang: so
 * this program is linked (Makefile) with a futex wait of its own, in which that limit is endless
 * for readers. A lost one then hangs, and make ends it. What ends waits: test_wait_ends.c.
 * fault: 41 (hand-offs both ways) */
#include "rig.h"

enum { WAIT_NS = 15000000 }; /* shorter than a reader's sleep: those end */
static uint32_t endless_sleeps;

int __real_shmd_futex_wait_any(const shmd_word_t *words, uint32_t n, uint64_t timeout_ns,
                               uint64_t look_ns);
int __wrap_shmd_futex_wait_any(const shmd_word_t *words, uint32_t n, uint64_t timeout_ns,
                               uint64_t look_ns);

int __wrap_shmd_futex_wait_any(const shmd_word_t *words, uint32_t n, uint64_t timeout_ns,
                               uint64_t look_ns)
{
    if (timeout_ns <= WAIT_NS)
        return __real_shmd_futex_wait_any(words, n, timeout_ns, look_ns);
    (void)shmd_add32(&endless_sleeps, 1);
    return __real_shmd_futex_wait_any(words, n, UINT64_MAX, look_ns);
}

typedef struct side {
    shmd_producer *out;
    shmd_consumer *in;
    uint64_t n;
    int answers;
} side_t;

static uint64_t receive(shmd_consumer *c, uint64_t *waits)
{
    shmd_message m;
    int rc;
    while ((rc = shmd_poll(c, &m)) == 0) {
        (*waits)++;
        CHECK(shmd_wait(c, UINT64_MAX) >= 0);
    }
    CHECK_EQ(rc, 1);
    uint64_t value;
    memcpy(&value, m.data, sizeof value);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    return value;
}

static void *bounce(void *argument)
{
    side_t *side = argument;
    uint64_t waits = 0;
    for (uint64_t i = 0; i < side->n; i++) {
        if (side->answers)
            CHECK_EQ(receive(side->in, &waits), i);
        CHECK_EQ(shmd_publish(side->out, &i, sizeof i, 0), SHMD_OK);
        if (!side->answers)
            CHECK_EQ(receive(side->in, &waits), i);
    }
    return NULL;
}

static void ping_pong(uint32_t wait, uint64_t n)
{
    rig_t there, back;
    rig_start(&there, 64, 64, 0, 0);
    rig_start(&back, 64, 64, 0, 0);
    side_t caller = {.out = rig_producer(&there), .n = n};
    side_t answerer = {.out = rig_producer(&back), .n = n, .answers = 1};
    caller.in = rig_consumer(&back, 0, SHMD_DELIVERY_RELIABLE, wait, 0, 0);
    answerer.in = rig_consumer(&there, 0, SHMD_DELIVERY_RELIABLE, wait, 0, 0);
    uint32_t before = endless_sleeps;
    pthread_t thread = test_thread(bounce, &answerer);
    (void)bounce(&caller);
    test_join(thread);
    (void)fprintf(stderr, "  %" PRIu64 " round trips, %u sleeps\n", n, endless_sleeps - before);
    CHECK(wait != SHMD_WAIT_SLEEP || endless_sleeps != before); /* else the core's limit is another one by now */
    rig_consumer_free(caller.in);
    rig_consumer_free(answerer.in);
    rig_producer_free(caller.out);
    rig_producer_free(answerer.out);
    rig_stop(&there);
    rig_stop(&back);
}

static void test_no_wake_up_is_lost_by_sleeping_readers(void) { ping_pong(SHMD_WAIT_SLEEP, test_scale(20000)); }
static void test_no_wake_up_is_lost_by_adaptive_readers(void) { ping_pong(SHMD_WAIT_ADAPTIVE, test_scale(20000)); }

typedef struct pump {
    shmd_producer *producer;
    uint64_t n;
} pump_t;

static void *pump_all(void *argument)
{
    pump_t *pump = argument;
    for (uint64_t i = 0; i < pump->n; i++)
        CHECK_EQ(shmd_publish_wait(pump->producer, &i, sizeof i, 0, UINT64_MAX), SHMD_OK);
    return NULL;
}

static void test_a_full_ring_and_an_empty_ring_hand_over_without_loss(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    pump_t pump = {.producer = rig_producer(&rig), .n = test_scale(200000)};
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    uint64_t waits = 0;
    pthread_t thread = test_thread(pump_all, &pump);
    for (uint64_t i = 0; i < pump.n; i++)
        CHECK_EQ(receive(c, &waits), i);
    test_join(thread);
    rig_consumer_free(c);
    rig_producer_free(pump.producer);
    rig_stop(&rig);
}

static void test_a_wait_ends_at_its_timeout_and_not_before(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    for (uint32_t wait = SHMD_WAIT_ADAPTIVE; wait <= SHMD_WAIT_SLEEP; wait++) {
        shmd_consumer *c = rig_consumer(&rig, wait, SHMD_DELIVERY_RELIABLE, wait, 0, 0);
        uint64_t began_ns = shmd_now_ns();
        CHECK_EQ(shmd_wait(c, WAIT_NS), 0);
        CHECK(shmd_now_ns() - began_ns >= WAIT_NS);
        CHECK_EQ(shmd_wait(c, 0), 0);
        CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_OK);
        CHECK_EQ(shmd_wait(c, 0), 1);
        CHECK_EQ(shmd_wait(c, UINT64_MAX), 1);
        shmd_epoch_leave(rig.hot, c->gate_index);
        rig_consumer_free(c);
    }
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_producer_waits_for_room_as_long_as_it_says(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    for (int i = 0; i < 64; i++)
        CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_OK);
    uint64_t began_ns = shmd_now_ns();
    CHECK_EQ(shmd_publish_wait(p, "x", 1, 0, WAIT_NS), SHMD_BACK_PRESSURED);
    CHECK(shmd_now_ns() - began_ns >= WAIT_NS);
    shmd_producer_info_t info;
    shmd_producer_info(p, &info);
    CHECK_EQ(info.blocked_gate, 1);
    CHECK_EQ(info.blocked_position, 0);
    CHECK(info.blocked_since_ns >= began_ns - 1000000000 && info.blocked_since_ns <= shmd_now_ns());
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_stream_without_sleepers_makes_no_wake_calls(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_ADAPTIVE, 0, 0);
    uint64_t waits = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        CHECK_EQ(shmd_publish(p, &i, sizeof i, 0), SHMD_OK);
        CHECK_EQ(receive(c, &waits), i);
    }
    CHECK_EQ(rig.data->wakes, 0);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

int main(void)
{
    RUN(test_no_wake_up_is_lost_by_sleeping_readers);
    RUN(test_no_wake_up_is_lost_by_adaptive_readers);
    RUN(test_a_full_ring_and_an_empty_ring_hand_over_without_loss);
    RUN(test_a_wait_ends_at_its_timeout_and_not_before);
    RUN(test_a_producer_waits_for_room_as_long_as_it_says);
    RUN(test_a_stream_without_sleepers_makes_no_wake_calls);
    return test_report();
}
