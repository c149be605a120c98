/* Whether a reader holds still at the end of a fast flow: with SHMD_PACE_AUTO, never with SHMD_PACE_EAGER.
 * fault: 73 (flows of a thousand messages, each polled to its end, by reliable and lossy readers) */
#include "rig.h"

enum { FLOW = 1000, ROUNDS = 100 };

static void publish(shmd_producer *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        CHECK_EQ(shmd_publish(p, &i, sizeof i, 0), SHMD_OK);
}

/* Reads all of a flow that looks as fast as can be: nothing was left to read a moment before. */
static void read_a_flow(shmd_producer *p, shmd_consumer *c)
{
    shmd_message m;
    publish(p, FLOW);
    for (uint64_t i = 0; i < FLOW; i++) {
        CHECK_EQ(shmd_poll(c, &m), 1); /* a message that is there is handed out at once, whatever the pace */
        CHECK_EQ(shmd_advance(c), SHMD_OK);
    }
    c->caught_up_ns = shmd_now_ns();
    CHECK_EQ(shmd_poll(c, &m), 0);
}

static uint64_t holds_of(uint32_t slots, uint32_t pace, uint32_t delivery)
{
    rig_t rig;
    shmd_consumer_info_t info;
    rig_start(&rig, slots, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, delivery, SHMD_WAIT_SPIN, 0, 0);
    c->pace = pace;
    shmd_consumer_flow_begin(c); /* as each epoch that it enters */
    for (int i = 0; i < ROUNDS; i++)
        read_a_flow(p, c);
    shmd_consumer_info(c, &info);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
    return info.holds;
}

static void test_a_reader_in_flow_holds_still(void) { CHECK(holds_of(1024, SHMD_PACE_AUTO, SHMD_DELIVERY_RELIABLE) > 0); }

static void test_an_eager_reader_never_holds_still(void)
{
    CHECK_EQ(holds_of(1024, SHMD_PACE_EAGER, SHMD_DELIVERY_RELIABLE), 0);
}

static void test_a_lossy_reader_never_holds_still(void) { CHECK_EQ(holds_of(1024, SHMD_PACE_AUTO, SHMD_DELIVERY_LOSSY), 0); }

static void test_a_pace_that_does_not_exist_is_refused(void)
{
    rig_t rig;
    shmd_consumer_options options;
    shmd_consumer *c = NULL;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_consumer_options_init(&options);
    CHECK_EQ(options.pace, SHMD_PACE_AUTO);
    options.pace = SHMD_PACE_EAGER + 1;
    CHECK_EQ(shmd_consumer_attach(&rig.client, "rig", &options, &c), SHMD_E_INVALID);
    CHECK_TEXT("pace is 3");
    CHECK(c == NULL);
    rig_stop(&rig);
}

int main(void)
{
    RUN(test_a_reader_in_flow_holds_still);
    RUN(test_an_eager_reader_never_holds_still);
    RUN(test_a_lossy_reader_never_holds_still);
    RUN(test_a_pace_that_does_not_exist_is_refused);
    return test_report();
}
