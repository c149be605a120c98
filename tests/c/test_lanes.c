/* Several producers' streams, read in the order in which publishes ended, and how much of them is unread.
 * fault: 52 (a consequence that is published by another thread than its cause) */
#include "rig.h"

#include <pthread.h>

enum { CAUSES = 20000 };

static shmd_producer *stamping(rig_t *rig)
{
    shmd_producer *p = rig_producer(rig);
    p->stamp = 1;
    return p;
}

static void publish(shmd_producer *p, uint16_t type)
{
    unsigned char payload[16];
    rig_fill(payload, sizeof payload, p->seq);
    CHECK_EQ(shmd_publish(p, payload, sizeof payload, type), SHMD_OK);
}

static void advance(shmd_consumer *c)
{
    shmd_message m;
    CHECK_EQ(shmd_poll(c, &m), 1);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
}

static void test_the_oldest_message_comes_first_and_its_elders_are_counted(void)
{
    rig_t rigs[2];
    shmd_producer *p[2];
    shmd_consumer *c[2];
    for (uint32_t i = 0; i < 2; i++) {
        rig_start(&rigs[i], 64, 64, 0, 0);
        p[i] = stamping(&rigs[i]);
        c[i] = rig_consumer(&rigs[i], 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    }
    uint64_t events = 7;
    CHECK_EQ(shmd_guarded_oldest(c, 2, 64, &events, 7), -1);
    CHECK_EQ(shmd_guarded_oldest(c, 2, 64, &events, 6), -2);
    for (int i = 0; i < 3; i++)
        publish(p[1], 0);
    publish(p[0], 0);
    for (int i = 0; i < 2; i++)
        publish(p[1], 2);
    CHECK_EQ(shmd_guarded_oldest(c, 2, 64, &events, 7), (int64_t)3 << 32 | 1);
    CHECK_EQ(shmd_guarded_oldest(c, 2, 2, NULL, 0), (int64_t)2 << 32 | 1); /* at most */
    CHECK_EQ(shmd_consumer_count(c[1], 1u << 0), 3);
    CHECK_EQ(shmd_consumer_count(c[1], 1u << 0 | 1u << 2), 5);
    for (int i = 0; i < 3; i++)
        advance(c[1]);
    CHECK_EQ(shmd_guarded_oldest(c, 2, 64, &events, 7), (int64_t)1 << 32 | 0);
    advance(c[0]);
    CHECK_EQ(shmd_guarded_oldest(c, 2, 64, &events, 7), (int64_t)2 << 32 | 1);
    for (uint32_t i = 0; i < 2; i++) {
        rig_consumer_free(c[i]);
        rig_producer_free(p[i]);
        rig_stop(&rigs[i]);
    }
}

typedef struct relay {
    shmd_producer *causes, *consequences;
    uint64_t caused;
} relay;

static void *publish_consequences(void *argument)
{
    relay *r = argument;
    for (uint64_t n = 0; n < CAUSES; n++) {
        while (shmd_load_acquire(&r->caused) <= n)
            sched_yield();
        unsigned char payload[16] = {0};
        memcpy(payload, &n, sizeof n);
        while (shmd_publish(r->consequences, payload, sizeof payload, 1) == SHMD_BACK_PRESSURED)
            sched_yield();
    }
    return NULL;
}

static void *publish_causes(void *argument)
{
    relay *r = argument;
    for (uint64_t n = 0; n < CAUSES; n++) {
        unsigned char payload[16] = {0};
        memcpy(payload, &n, sizeof n);
        while (shmd_publish(r->causes, payload, sizeof payload, 0) == SHMD_BACK_PRESSURED)
            sched_yield();
        shmd_store_release(&r->caused, n + 1);
    }
    return NULL;
}

static void test_a_consequence_is_read_after_its_cause(void)
{
    rig_t rigs[2];
    shmd_consumer *c[2];
    relay r = {.caused = 0};
    for (uint32_t i = 0; i < 2; i++)
        rig_start(&rigs[i], 256, 64, 0, 0);
    r.consequences = stamping(&rigs[0]); /* looked at first: the harder order */
    r.causes = stamping(&rigs[1]);
    for (uint32_t i = 0; i < 2; i++)
        c[i] = rig_consumer(&rigs[i], 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    pthread_t threads[2];
    CHECK_EQ(pthread_create(&threads[0], NULL, publish_consequences, &r), 0);
    CHECK_EQ(pthread_create(&threads[1], NULL, publish_causes, &r), 0);
    uint64_t seen[2] = {0, 0};
    while (seen[0] + seen[1] < 2 * CAUSES) {
        int64_t found = shmd_guarded_oldest(c, 2, 64, NULL, 0);
        if (found < 0) {
            sched_yield();
            continue;
        }
        uint32_t i = (uint32_t)(found & 1);
        for (int64_t left = found >> 32; left > 0; left--) {
            shmd_message m;
            uint64_t n;
            CHECK_EQ(shmd_poll(c[i], &m), 1);
            memcpy(&n, m.data, sizeof n);
            CHECK_EQ(n, seen[i]);
            CHECK(i == 1 || seen[1] > n);
            seen[i]++;
            CHECK_EQ(shmd_advance(c[i]), SHMD_OK);
        }
    }
    for (uint32_t i = 0; i < 2; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    for (uint32_t i = 0; i < 2; i++)
        rig_consumer_free(c[i]);
    rig_producer_free(r.causes);
    rig_producer_free(r.consequences);
    for (uint32_t i = 0; i < 2; i++)
        rig_stop(&rigs[i]);
}

static rig_t late_rigs[2];
static shmd_producer *late[2];
static const shmd_consumer *late_at; /* at the look at this one they come */

/* A message that was stamped at `stamp` and is visible from now on: its commit stood in its core's store buffer meanwhile. */
static void publish_late(uint32_t lane, uint64_t stamp)
{
    uint64_t seq = late[lane]->seq;
    publish(late[lane], 0);
    shmd_store_relaxed(&((shmd_slot_t *)(void *)(late_rigs[lane].ring + (seq & 63) * late_rigs[lane].geometry.slot_bytes))->timestamp_ns, stamp);
}

int __real_shmd_consumer_enter(shmd_consumer *c);
int __wrap_shmd_consumer_enter(shmd_consumer *c)
{
    if (c != NULL && c == late_at) {
        late_at = NULL;
        publish_late(0, 100);
        publish_late(1, 200);
    }
    return __real_shmd_consumer_enter(c);
}

/* One thread publishes to one lane, then to the other. The clock does not wait for its store buffer, so both may be older than
 * the reader's look at the first lane, and come after it. */
static void test_what_comes_between_two_looks_is_read_in_its_order(void)
{
    shmd_consumer *c[2];
    for (uint32_t i = 0; i < 2; i++) {
        rig_start(&late_rigs[i], 64, 64, 0, 0);
        late[i] = rig_producer(&late_rigs[i]);
        c[i] = rig_consumer(&late_rigs[i], 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    }
    late_at = c[1];
    CHECK_EQ(shmd_guarded_oldest(c, 2, 64, NULL, 0), (int64_t)1 << 32 | 0);
    advance(c[0]);
    CHECK_EQ(shmd_guarded_oldest(c, 2, 64, NULL, 0), (int64_t)1 << 32 | 1);
    advance(c[1]);
    publish_late(1, 50);
    late_at = c[1]; /* now they come behind one that is the oldest: it goes out alone */
    CHECK_EQ(shmd_guarded_oldest(c, 2, 64, NULL, 0), (int64_t)1 << 32 | 1);
    for (uint32_t i = 0; i < 2; i++) {
        rig_consumer_free(c[i]);
        rig_producer_free(late[i]);
        rig_stop(&late_rigs[i]);
    }
}

static void test_unread_messages_are_counted_and_bounded(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    unsigned char payload[16] = {0};
    CHECK_EQ(shmd_producer_keep(p, 2), SHMD_OK);
    publish(p, 0);
    publish(p, 0);
    CHECK_EQ(shmd_publish(p, payload, sizeof payload, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(shmd_guarded_unread(p, 3), 2);
    publish(p, 0);
    CHECK_EQ(shmd_publish(p, payload, sizeof payload, 0), SHMD_BACK_PRESSURED);
    advance(c);
    CHECK_EQ(shmd_guarded_unread(p, 2), 2);
    CHECK_EQ(shmd_publish(p, payload, sizeof payload, 0), SHMD_BACK_PRESSURED); /* the bound of now */
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

int main(void)
{
    RUN(test_the_oldest_message_comes_first_and_its_elders_are_counted);
    RUN(test_a_consequence_is_read_after_its_cause);
    RUN(test_what_comes_between_two_looks_is_read_in_its_order);
    RUN(test_unread_messages_are_counted_and_bounded);
    return test_report();
}
