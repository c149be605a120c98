/* shmd_counters.c: the driver's counters (W:driver(relaxed) R:tools) and the latencies of a consumer (W:consumer(relaxed)
 * R:tools). */
#include "shmd_internal.h"

static uint64_t *counter_at(const shmd_authority_t *authority, uint32_t counter)
{
    return counter < SHMD_COUNTER_MAX ? (uint64_t *)(void *)((unsigned char *)(uintptr_t)authority + authority->counters_offset) + counter : NULL;
}

void shmd_counter_add(shmd_authority_t *authority, uint32_t counter, uint64_t n)
{
    uint64_t *at = counter_at(authority, counter);
    if (at != NULL)
        shmd_store_relaxed(at, shmd_load_relaxed(at) + n); /* one writer: no read-modify-write needed */
}

void shmd_counter_max(shmd_authority_t *authority, uint32_t counter, uint64_t value)
{
    uint64_t *at = counter_at(authority, counter);
    if (at != NULL && shmd_load_relaxed(at) < value)
        shmd_store_relaxed(at, value);
}

void shmd_counter_set(shmd_authority_t *authority, uint32_t counter, uint64_t value)
{
    uint64_t *at = counter_at(authority, counter);
    if (at != NULL)
        shmd_store_relaxed(at, value);
}

uint64_t shmd_counter_get(const shmd_authority_t *authority, uint32_t counter)
{
    uint64_t *at = counter_at(authority, counter);
    return at != NULL ? shmd_load_relaxed(at) : 0;
}

/* Log-linear latency buckets: 8 to each power of two, after HdrHistogram's layout with 3 bits of precision. */
enum { SUB_BITS = 3, SUB_COUNT = 8 };

uint32_t shmd_latency_bucket(uint64_t ns)
{
    if (ns < SUB_COUNT)
        return (uint32_t)ns;
    uint32_t top = 63u - (uint32_t)__builtin_clzll(ns);
    uint32_t bucket = (top - SUB_BITS + 1) * SUB_COUNT + (uint32_t)((ns >> (top - SUB_BITS)) & (SUB_COUNT - 1));
    return bucket < SHMD_LATENCY_BUCKETS ? bucket : SHMD_LATENCY_BUCKETS - 1;
}

uint64_t shmd_latency_bucket_floor(uint32_t bucket)
{
    if (bucket < SUB_COUNT)
        return bucket;
    uint32_t top = bucket / SUB_COUNT + SUB_BITS - 1;
    return ((uint64_t)1 << top) + ((uint64_t)(bucket % SUB_COUNT) << (top - SUB_BITS));
}

/* One writer a histogram: the consumer. A bucket that is full halves them all: the shape stays, what is old weighs less. */
static void add(shmd_gate_t *gate, uint64_t ns, uint32_t n)
{
    uint32_t *bucket = &gate->latency[shmd_latency_bucket(ns)];
    if (shmd_load32_relaxed(bucket) > UINT32_MAX - n)
        for (uint32_t i = 0; i < SHMD_LATENCY_BUCKETS; i++)
            shmd_store32_relaxed(&gate->latency[i], shmd_load32_relaxed(&gate->latency[i]) / 2);
    shmd_store32_relaxed(bucket, shmd_load32_relaxed(bucket) + n);
}

void shmd_consumer_note(shmd_consumer *c, const shmd_message *message)
{
    if (message->seq < c->noted)
        return; /* polled again without an advance */
    c->noted = message->seq + 1;
    uint64_t now = shmd_now_ns();
    if (message->timestamp_ns != 0)
        add(c->gate, now > message->timestamp_ns ? now - message->timestamp_ns : 0, 1);
}

void shmd_consumer_note_run(shmd_consumer *c, uint64_t n)
{
    uint64_t end = c->position + n * c->stride;
    uint64_t seq = c->position;
    while (seq < shmd_min(c->noted, end))
        seq += c->stride; /* by the poll of the first one, or polled again without an advance */
    uint64_t now = seq < end ? shmd_now_ns() : 0;
    c->noted = shmd_max(c->noted, end);
    while (seq < end) {
        uint64_t stamp = shmd_load_relaxed(&shmd_consumer_slot(c, seq)->timestamp_ns);
        uint32_t same = 0; /* a batch has one stamp */
        do
            same++;
        while ((seq += c->stride) < end && shmd_load_relaxed(&shmd_consumer_slot(c, seq)->timestamp_ns) == stamp);
        if (stamp != 0)
            add(c->gate, now > stamp ? now - stamp : 0, same);
    }
}
