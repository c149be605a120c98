/* sketch.c: the limit for stream.c: the same slots, writer's steps and gate between two pinned processes, and nothing else:
 * no lease, state, sleeper, claim, arena, statistics or second consumer.
 * bench_sketch mode=single|batch bytes=40 batch=64 slots=0 run_ms=250 warm_ms=50 first_core=0 second_core=1 (bench.h)
 */
#include "bench.h"

typedef struct sketch {
    unsigned char *slots;
    uint64_t *head;
    uint64_t *gate;
    uint64_t *wrong;
    uint64_t *end; /* how many there will be; UINT64_MAX: not known yet */
    uint64_t mask, slot_bytes, words, every;
} sketch_t;

static shmd_slot_t *slot_of(const sketch_t *s, uint64_t seq)
{
    return (shmd_slot_t *)(void *)(s->slots + (seq & s->mask) * s->slot_bytes);
}

static void produce(const sketch_t *s, const bench_arguments_t *a, uint64_t *sent, uint64_t *ns)
{
    uint64_t begin_ns = bench_now_ns(), warm_ns = begin_ns + a->warm_ms * 1000000, end_ns = warm_ns + a->run_ms * 1000000;
    uint64_t seq = 0, limit = s->mask + 1, warm_seq = 0, now_ns = begin_ns, first_ns = 0;
    uint64_t ahead = shmd_slots_ahead((uint32_t)s->mask + 1, (uint32_t)s->slot_bytes);
    uint64_t *payload = bench_memory(s->words * 8);
    do {
        for (uint64_t i = 0; i < 4096; i++, seq++) {
            while (seq >= limit)
                limit = __atomic_load_n(s->gate, __ATOMIC_ACQUIRE) + s->mask + 1;
            if (seq + ahead < limit) {
                const unsigned char *early = (const unsigned char *)slot_of(s, seq + ahead);
                shmd_prefetch_write(early);
                if (s->slot_bytes > SHMD_CACHE_LINE_BYTES)
                    shmd_prefetch_write(early + SHMD_CACHE_LINE_BYTES);
            }
            payload[0] = seq;
            shmd_slot_t *slot = slot_of(s, seq);
            shmd_slot_open(slot, seq);
            uint64_t *out = shmd_slot_payload(slot);
            for (uint64_t k = 0; k < s->words; k++)
                shmd_store_relaxed(out + k, payload[k]);
            shmd_slot_commit(slot, seq, (uint32_t)a->bytes, 1, 0, 0);
            if ((seq + 1) % s->every == 0)
                shmd_store_release(s->head, seq + 1);
        }
        now_ns = bench_now_ns();
        if (first_ns == 0 && now_ns >= warm_ns) {
            first_ns = now_ns;
            warm_seq = seq;
        }
    } while (now_ns < end_ns || first_ns == now_ns);
    shmd_store_release(s->end, seq);
    *sent = seq - warm_seq;
    *ns = now_ns - first_ns;
    free(payload);
}

static void consume(const sketch_t *s, const bench_arguments_t *a)
{
    uint64_t wrong = 0, seq = 0;
    while (seq < shmd_load_acquire(s->end)) {
        uint64_t from = seq;
        for (const shmd_slot_t *slot = slot_of(s, seq); seq - from < s->every && shmd_load_acquire(&slot->commit) == (seq << 1 | 1);
             slot = slot_of(s, ++seq))
            wrong += shmd_load32_relaxed(&slot->length) != a->bytes || shmd_load_relaxed((const uint64_t *)(const void *)(slot + 1)) != seq;
        if (seq == from)
            shmd_pause();
        else
            shmd_store_release(s->gate, seq);
    }
    *s->wrong = wrong;
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    uint64_t slots = a.slots != 0 ? a.slots : a.bytes > 512 ? 4096 : 16384, sent = 0, ns = 1;
    unsigned char *lines = bench_shared(4096);
    sketch_t s = {.head = (uint64_t *)(void *)lines, .gate = (uint64_t *)(void *)(lines + 128), .wrong = (uint64_t *)(void *)(lines + 256),
                  .end = (uint64_t *)(void *)(lines + 384), .mask = slots - 1, .slot_bytes = (24 + a.bytes + 63) / 64 * 64,
                  .words = (a.bytes + 7) / 8, .every = strcmp(a.mode, "batch") == 0 ? a.batch : 1};
    if ((slots & (slots - 1)) != 0 || slots < 2) {
        fprintf(stderr, "slots=%llu: expected a power of two\n", (unsigned long long)slots);
        return 2;
    }
    s.slots = bench_shared(slots * s.slot_bytes);
    *s.end = UINT64_MAX;
    pid_t child = bench_fork(&a);
    if (child == 0) {
        consume(&s, &a);
        _exit(0);
    }
    produce(&s, &a, &sent, &ns);
    bench_join(child);
    printf("{\"messages_s\": %.0f, \"wrong\": %llu}\n", (double)sent * 1e9 / (double)ns, (unsigned long long)*s.wrong);
    return *s.wrong != 0;
}
