/* The latency histogram of a gate: every message once, by whichever call it was read; nothing without timestamps. */
#include "rig.h"

static uint64_t noted(const rig_t *rig, uint32_t gate)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < SHMD_LATENCY_BUCKETS; i++)
        sum += shmd_load32_relaxed(&shmd_gates_gate(rig->gates, gate)->latency[i]);
    return sum;
}

static void start(rig_t *rig, shmd_producer **p, int stamped)
{
    rig_start(rig, 64, 64, 65536, 0);
    rig->stream->epochs[0].flags = stamped ? SHMD_ATTACH_TIMESTAMPS : 0;
    *p = rig_producer(rig);
    (*p)->stamp = (uint32_t)stamped;
}

static void publish(shmd_producer *p, uint32_t n, uint32_t length)
{
    static const unsigned char payload[1024];
    for (uint32_t i = 0; i < n; i++)
        CHECK_EQ(shmd_publish_wait(p, payload, length, 0, 1000000000), SHMD_OK);
}

static void test_buckets_are_log_linear(void)
{
    for (uint32_t bucket = 0; bucket < SHMD_LATENCY_BUCKETS; bucket++) {
        uint64_t floor = shmd_latency_bucket_floor(bucket);
        CHECK_EQ(shmd_latency_bucket(floor), bucket);
        CHECK_EQ(shmd_latency_bucket(shmd_latency_bucket_floor(bucket + 1) - 1), bucket);
        CHECK(floor < 8 || (shmd_latency_bucket_floor(bucket + 1) - floor) * 8 <= floor); /* to an eighth */
    }
    CHECK_EQ(shmd_latency_bucket(UINT64_MAX), SHMD_LATENCY_BUCKETS - 1);
}

static void test_every_message_counts_once_however_it_is_read(void)
{
    rig_t rig;
    shmd_producer *p;
    shmd_message m, many[16];
    shmd_batch_t batch;
    unsigned char out[4096];
    start(&rig, &p, 1);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    uint64_t n = 0;
    publish(p, 3, 8);
    CHECK_EQ(shmd_poll(c, &m), 1);
    CHECK_EQ(shmd_poll(c, &m), 1); /* the same one again */
    CHECK_EQ(noted(&rig, 0), n += 1);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    CHECK_EQ(shmd_poll_many(c, many, 16), 2);
    CHECK_EQ(noted(&rig, 0), n += 2);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    publish(p, 10, 8);
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 100, 0, out, sizeof out, &batch), 10);
    CHECK_EQ(noted(&rig, 0), n += 10);
    publish(p, 2, 1000); /* in the arena */
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 100, 0, out, sizeof out, &batch), 1);
    CHECK_EQ(shmd_guarded_fetch(c, UINT64_MAX, 100, 0, out, sizeof out, &batch), 1);
    CHECK_EQ(noted(&rig, 0), n += 2);
    CHECK_EQ(shmd_publish_records(p, out, 32, 20, 0), 20);
    batch.mapping_serial = c->mapping_serial;
    CHECK_EQ(shmd_guarded_fetch_records(c, UINT64_MAX, 15, 32, 0, out, sizeof out, &batch), 15);
    CHECK_EQ(shmd_guarded_fetch_records(c, UINT64_MAX, 15, 32, 0, out, sizeof out, &batch), 5);
    CHECK_EQ(noted(&rig, 0), n += 20);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_ungated_readers_count_what_they_were_handed(void)
{
    rig_t rig;
    shmd_producer *p;
    shmd_batch_t batch;
    unsigned char out[4096];
    start(&rig, &p, 1);
    shmd_consumer *lossy = rig_consumer(&rig, 0, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SLEEP, 0, 0);
    shmd_consumer *latest = rig_consumer(&rig, 1, SHMD_DELIVERY_LATEST, SHMD_WAIT_SLEEP, 0, 0);
    publish(p, 200, 8); /* laps both */
    int64_t got = shmd_guarded_fetch(lossy, UINT64_MAX, 100, 0, out, sizeof out, &batch);
    CHECK(got > 10 && got < 64);
    CHECK_EQ(noted(&rig, 0), got);
    CHECK_EQ(shmd_guarded_fetch(latest, UINT64_MAX, 1, 0, out, sizeof out, &batch), 1);
    CHECK_EQ(shmd_guarded_fetch(latest, UINT64_MAX, 1, 0, out, sizeof out, &batch), 0);
    CHECK_EQ(noted(&rig, 1), 1);
    rig_consumer_free(lossy);
    rig_consumer_free(latest);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_what_is_counted_is_the_time_on_the_way(void)
{
    rig_t rig;
    shmd_producer *p;
    shmd_message m;
    start(&rig, &p, 1);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    uint64_t before_ns = shmd_now_ns();
    publish(p, 1, 8);
    uint64_t published_ns = shmd_now_ns();
    while (shmd_now_ns() - published_ns < 3000000)
        shmd_pause();
    CHECK_EQ(shmd_poll(c, &m), 1);
    uint64_t most = shmd_now_ns() - before_ns;
    uint32_t bucket = 0;
    while (shmd_load32_relaxed(&shmd_gates_gate(rig.gates, 0)->latency[bucket]) == 0)
        bucket++;
    CHECK(bucket >= shmd_latency_bucket(3000000) && bucket <= shmd_latency_bucket(most));
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_full_bucket_halves_all(void)
{
    rig_t rig;
    shmd_producer *p;
    shmd_message m;
    start(&rig, &p, 1);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    for (uint32_t i = 0; i < SHMD_LATENCY_BUCKETS; i++)
        shmd_store32_relaxed(&c->gate->latency[i], UINT32_MAX);
    publish(p, 1, 8);
    CHECK_EQ(shmd_poll(c, &m), 1);
    CHECK_EQ(noted(&rig, 0), (uint64_t)SHMD_LATENCY_BUCKETS * (UINT32_MAX / 2) + 1);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_without_timestamps_nothing_is_counted(void)
{
    rig_t rig;
    shmd_producer *p;
    shmd_message m;
    start(&rig, &p, 0);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    publish(p, 5, 8);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(shmd_poll(c, &m), 1);
        CHECK_EQ(shmd_advance(c), SHMD_OK);
    }
    CHECK_EQ(noted(&rig, 0), 0);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

int main(void)
{
    RUN(test_buckets_are_log_linear);
    RUN(test_every_message_counts_once_however_it_is_read);
    RUN(test_ungated_readers_count_what_they_were_handed);
    RUN(test_what_is_counted_is_the_time_on_the_way);
    RUN(test_a_full_bucket_halves_all);
    RUN(test_without_timestamps_nothing_is_counted);
    return test_report();
}
