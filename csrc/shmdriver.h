/* shmdriver.h: the C API of shmdriver. Include this, link with libshmdriver.
 *
 * The calls are declared in shmd_abi.h; this header adds the private state of the two handles and
 * the hot path, inline:
 *
 *     shmd_publish   have room -> state still open? -> mark the slot -> write -> commit -> head -> wake
 *     shmd_poll      commit word -> header -> fence -> own bit and state -> hand out
 *     shmd_advance   own bit -> gate -> wake a waiting producer
 *
 * No system call and no allocation on it. Every slow turn (room, sleep, seal, next epoch) is a
 * function of shmd_producer.c or shmd_consumer.c. A handle belongs to one thread at a time.
 */
#ifndef SHMDRIVER_H
#define SHMDRIVER_H

#include "shmd_abi.h"
#include "shmd_atomic.h"
#include "shmd_failpoint.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One arena message that gates may still hold: freed when every gate is past seq. */
typedef struct shmd_arena_span {
    uint64_t seq;
    uint64_t end;                       /* arena position after it */
} shmd_arena_span_t;

enum { SHMD_HANDLE_ALIGN = 128 };

struct shmd_producer {
    /* What every publish reads; private memory, so nothing that a client can write steers it. A forked child finds all of
     * this zeroed, up to `gate_count`: no room, no open claim (core/shmd_fork.h). */
    unsigned char *slots;
    uint64_t mask;                      /* slots - 1 */
    uint64_t seq;                       /* the next message's */
    uint64_t limit;                     /* there is room below it; 0 while a claim is open */
    const shmd_epoch_hot_t *hot;
    uint64_t open_word;                 /* what hot->state says while this epoch is open */
    shmd_data_t *data;
    uint64_t bytes;                     /* payload bytes ever published */
    uint32_t slot_bytes;
    uint32_t inline_max;
    uint32_t stamp;                     /* 1: read the clock at every publish */
    uint32_t claim_open;
    uint32_t ahead;                     /* slots: how early their lines are asked for */
    /* arena; positions are absolute, offset = arena_next % arena_bytes kept beside it */
    unsigned char *arena;
    uint64_t arena_bytes;
    uint64_t arena_next;
    uint64_t arena_offset;
    uint64_t arena_limit;
    uint64_t arena_intent;
    uint64_t span_head;
    uint64_t span_tail;
    /* the open claim */
    void *claim_data;
    uint64_t claim_arena_bytes;         /* 0: inline */
    uint64_t claim_limit;               /* limit, put aside while the claim is open */
    uint32_t claim_length;
    /* The rest, which a forked child keeps. */
    uint32_t gate_count __attribute__((aligned(SHMD_HANDLE_ALIGN)));
    shmd_arena_span_t *spans;           /* ring of `slots` entries */
    const shmd_gates_t *gates;
    shmd_mapping *mapping;
    uint64_t max_message;
    uint64_t lease_id;
    uint64_t ended_seal;
    uint64_t blocked_since_ns;
    uint64_t blocked_total_ns;
    uint64_t bound;                     /* messages that may wait to be read: slots, or fewer (shmd_producer_keep) */
    uint64_t kept;                      /* keeps: nothing at or past it is overwritten without a consumer */
    uint32_t keeps;
    uint32_t blocked_gate;              /* + 1 */
    uint32_t min_consumers;             /* still wanted; 0 once they were there */
    uint32_t wake_word;
    uint32_t room_ticket;               /* one a wait for room: a consumer wakes once a ticket */
    uint32_t room_gate;                 /* + 1; the wait that is announced there, 0: none, */
    uint32_t room_seen;                 /* and that gate's word then: a new one is the answer */
    uint64_t room_slice_ns;             /* how long the next sleep for room is */
    uint32_t end_reason;
    uint32_t lease_index;
    uint32_t entry;                     /* of the client's control segment: what it says of this lease */
    uint32_t stream_index;
    uint32_t stream_id;
    uint32_t epoch;
    uint32_t busy;                      /* guard of the guarded calls */
    uint32_t closing;
    uint32_t lookers;                   /* in shmd_producer_info just now */
    uint32_t fork_generation;
    shmd_client *client;
    char stream[SHMD_NAME_BYTES];
};

/* A forked child finds all of it zeroed, up to `scratch`: nothing to read, nothing polled. */
struct shmd_consumer {
    const unsigned char *slots;
    uint64_t mask;
    uint64_t position;                  /* next seq to read */
    uint64_t bound;                     /* nothing at or past it is read: sealed_seq, or UINT64_MAX while open */
    uint64_t look_until;                /* bound; in flow, what is read before the next look at the head (shmd_consumer_flow.c) */
    const shmd_epoch_hot_t *hot;
    uint64_t open_word;                 /* what hot->state says while nothing has changed */
    uint64_t gate_bit;
    uint64_t gated_from;                /* this reader's gate protects what is at or past it; UINT64_MAX: ungated */
    shmd_gate_t *gate;
    const shmd_data_t *data;
    uint64_t polled;                    /* messages handed out by the last poll */
    uint64_t head_seen;                 /* the head as batches last saw it: a hint how far to look, never what decides */
    uint64_t stride;                    /* from one message to the next: 1, or the number of shards */
    uint64_t slack;                     /* stride - 1: other shards' messages between the last read one and position */
    uint64_t gate_published;
    uint64_t consumed;
    uint32_t slot_bytes;
    uint32_t inline_max;
    uint32_t gate_index;
    uint32_t delivery;
    const unsigned char *arena;
    uint64_t arena_bytes;
    uint64_t fence_mask;                /* a fence at every crossing of this many seqs */
    uint64_t fenced_at;                 /* position at the last fence */
    uint64_t shard;                     /* seq % stride of what it reads */
    uint64_t hold_seq;                  /* the caller refers to what stands there, or did when it last said; UINT64_MAX: to nothing */
    uint64_t hold_ns;                   /* how long it keeps off a producer in flow; 0: never (small ring, SHMD_PACE_EAGER) */
    uint64_t caught_up_ns;              /* when it last had nothing left to read, */
    uint64_t caught_up_at;              /* and where */
    uint32_t chased;                    /* how often since the last hold messages came close together but few at a time; */
    uint32_t trial_after;               /* that often, and it tries one */
    uint64_t noted;                     /* the latency of what is below it was noted */
    uint32_t stamped;                   /* 1: this epoch's messages have timestamps */
    uint32_t ended;                     /* 0, or the negative code that every further read returns */
    /* The rest, which a forked child keeps. */
    unsigned char *scratch __attribute__((aligned(SHMD_HANDLE_ALIGN))); /* the mapping's: copies of what an ungated reader hands out */
    uint64_t scratch_bytes;
    shmd_mapping *mapping;
    shmd_mapping *retired;              /* earlier one, until the caller's view of it is over */
    void *prepared;                     /* shmd_mapping of an epoch to come, or NULL; any thread exchanges it (N1) */
    void *spent;                        /* likewise, one to be unmapped by the next shmd_consumer_prepare */
    uint32_t prepared_epoch;            /* the last epoch that was prepared; 0: none ever */
    uint64_t mapping_serial;
    uint64_t lost;
    uint64_t skipped;
    uint64_t lost_range_count;
    uint64_t sealed_seq;
    uint64_t lease_id;
    uint64_t holds;                     /* how often it held still for a moment (shmd_consumer_flow.c) */
    uint32_t wait;
    uint32_t pace;                      /* SHMD_PACE_* */
    uint32_t flags;                     /* SHMD_ATTACH_FOLLOW */
    uint32_t resumes;                   /* begins each epoch where the last reliable consumer got to */
    uint32_t epoch;                     /* 0: none mapped */
    uint32_t last_epoch;                /* the newest one ever mapped */
    uint32_t record;
    uint32_t end_reason;
    uint32_t lease_index;
    uint32_t entry;                     /* of the client's control segment: what it says of this lease */
    uint32_t stream_index;
    uint32_t stream_id;
    uint32_t busy;
    uint32_t closing;
    uint32_t lookers;                   /* in shmd_consumer_info or shmd_consumer_end_seq just now */
    uint32_t moving;                    /* 1: between epochs, nobody may look at what is mapped */
    uint32_t fork_generation;
    uint32_t woken;                     /* the producer's wait that was answered last */
    uint32_t is_over;                   /* 1: it has waited for long, and it is proved that nobody serves it any more */
    uint32_t idle_epoch;                /* last_epoch and position when its present wait was seen first, */
    uint64_t idle_at;
    uint64_t idle_since_ns;             /* and when; 0: it has not waited */
    uint64_t slice_ns;                  /* how long it sleeps next if nothing has come since */
    shmd_epoch_hot_t drained;           /* what hot is of an epoch that it drains after its lease has ended */
    shmd_client *client;
    shmd_watch *watch;                  /* who makes its fd readable; NULL: it has none */
    shmd_lost_range_t lost_ranges[SHMD_LOST_RANGES];
    char stream[SHMD_NAME_BYTES];
};

/* The slow turns. */
int shmd_producer_room(shmd_producer *producer, uint64_t arena_need);
int shmd_producer_ended(shmd_producer *producer);
void shmd_producer_wake(shmd_producer *producer);
int shmd_publish_large(shmd_producer *producer, const void *data, uint32_t length, uint16_t type, uint16_t flags);
int shmd_poll_slow(shmd_consumer *consumer, shmd_message *out);
int shmd_consumer_overwritten(shmd_consumer *consumer);     /* its bit is cleared: gives up what was handed out, and returns why */
void shmd_consumer_wake_producer(shmd_consumer *consumer);
void shmd_consumer_note(shmd_consumer *consumer, const shmd_message *message);  /* its latency, publish to read */
void shmd_consumer_note_run(shmd_consumer *consumer, uint64_t n);               /* of n messages from its position, which its gate protects */

static inline shmd_slot_t *shmd_producer_slot(const shmd_producer *p, uint64_t seq)
{
    return (shmd_slot_t *)(void *)(p->slots + (seq & p->mask) * p->slot_bytes);
}

static inline const shmd_slot_t *shmd_consumer_slot(const shmd_consumer *c, uint64_t seq)
{
    return (const shmd_slot_t *)(const void *)(c->slots + (seq & c->mask) * c->slot_bytes);
}

/* The lines of a slot are where they were last read: with the consumers. Asked for early, many are on their way at once.
 * Only below the limit, and not far in a small ring: there a consumer may be reading. Two lines; the hardware fetches what follows. */
enum { SHMD_AHEAD_BYTES = 2048, SHMD_AHEAD_SLOTS_MIN = 2, SHMD_AHEAD_RING_PART = 64, SHMD_CACHE_LINE_BYTES = 64 };
static inline uint32_t shmd_slots_ahead(uint32_t slots, uint32_t slot_bytes)
{
    const uint32_t least = SHMD_AHEAD_SLOTS_MIN, in_bytes = SHMD_AHEAD_BYTES / slot_bytes, in_ring = slots / SHMD_AHEAD_RING_PART;
    uint32_t ahead = in_bytes < in_ring ? in_bytes : in_ring;
    return ahead > least ? ahead : least;
}

static inline void shmd_producer_fetch_ahead(const shmd_producer *p, uint64_t seq)
{
    seq += p->ahead;
    if (seq < p->limit) {
        const unsigned char *slot = (const unsigned char *)shmd_producer_slot(p, seq);
        shmd_prefetch_write(slot);
        if (p->slot_bytes > SHMD_CACHE_LINE_BYTES)
            shmd_prefetch_write(slot + SHMD_CACHE_LINE_BYTES);
    }
}

/* Step 2 of the writer: from here on an ungated reader of this slot's last message knows that it is gone. */
static inline void shmd_slot_open(shmd_slot_t *slot, uint64_t seq)
{
    SHMD_FAILPOINT("slot.claimed");
    shmd_store_relaxed(&slot->commit, seq << 1);
    shmd_fence_release(); /* P1: before any payload store; pairs with the acquire fence before an ungated reader's second look */
    SHMD_FAILPOINT("slot.open");
}

/* Steps 3 and 4: the fields, then the licence to read. The payload is in place already or is written here. */
static inline void shmd_slot_commit(shmd_slot_t *slot, uint64_t seq, uint32_t length, uint16_t type, uint16_t flags,
                                    uint64_t timestamp_ns)
{
    shmd_store_fields(&slot->length, (uint64_t)length | (uint64_t)type << 32 | (uint64_t)flags << 48);
    shmd_store_relaxed(&slot->timestamp_ns, timestamp_ns);
    SHMD_FAILPOINT("slot.written");
    shmd_store_release(&slot->commit, (seq << 1) | 1); /* P2: pairs with every reader's acquire load of commit */
    SHMD_FAILPOINT("slot.committed");
}

static inline void *shmd_slot_payload(shmd_slot_t *slot) { return (unsigned char *)slot + SHMD_SLOT_HEADER_BYTES; }

/* Step 5, once a call, then the sleepers: without one that may sleep this is a load of a clean line. */
static inline void shmd_producer_announce(shmd_producer *p)
{
    shmd_store_relaxed(&p->data->bytes, p->bytes);
    shmd_store_release(&p->data->head, p->seq); /* P3: pairs with acquire loads of head by readers and driver */
    SHMD_FAILPOINT("head.stored");
    if (shmd_load_relaxed(&p->hot->sleep_mask) != 0)
        shmd_producer_wake(p);
}

static inline int shmd_publish_inline(shmd_producer *p, const void *data, uint32_t length, uint16_t type)
{
    if (__builtin_expect(length > p->inline_max, 0))
        return shmd_publish_large(p, data, length, type, 0);
    uint64_t seq = p->seq;
    if (__builtin_expect(seq >= p->limit, 0)) {
        int rc = shmd_producer_room(p, 0);
        if (rc != SHMD_OK)
            return rc;
    }
    /* Relaxed: the seal does not depend on it; a producer that misses it commits past sealed_seq, where nobody reads. */
    if (__builtin_expect(shmd_load_relaxed(&p->hot->state) != p->open_word, 0))
        return shmd_producer_ended(p);
    shmd_slot_t *slot = shmd_producer_slot(p, seq);
    shmd_producer_fetch_ahead(p, seq);
    shmd_slot_open(slot, seq);
    shmd_copy_fresh_to_shared(shmd_slot_payload(slot), data, length);
    shmd_slot_commit(slot, seq, length, type, 0, p->stamp ? shmd_now_ns() : 0);
    p->seq = seq + 1;
    p->bytes += length;
    shmd_producer_announce(p);
    return SHMD_OK;
}

/* What a slot says of its message: one load for length, type and flags, which lie in shmd_message as in the slot. 0 when the
 * payload is not inline, or cannot be. */
static inline int shmd_slot_describe(const shmd_slot_t *slot, uint64_t seq, uint64_t inline_max, shmd_message *out)
{
    const uint64_t length_and_arena = (uint64_t)SHMD_FLAG_ARENA << 48 | UINT32_MAX;
    uint64_t fields = shmd_load_fields(&slot->length);
    out->data = (const unsigned char *)slot + SHMD_SLOT_HEADER_BYTES;
    out->seq = seq;
    out->timestamp_ns = shmd_load_relaxed(&slot->timestamp_ns);
    memcpy((unsigned char *)out + offsetof(shmd_message, length), &fields, sizeof fields);
    return (fields & length_and_arena) <= inline_max;
}

/* 1 while the producer respects this gated reader's gate. */
static inline int shmd_consumer_stands(const shmd_consumer *c)
{
    /* C1: acquire fence after the loads of the payload or the header, before the mask: pairs with the driver's seq_cst store
     * of it. A cleared bit means that the producer may have overwritten what was read. */
    shmd_fence_acquire();
    return (shmd_load_relaxed(&c->hot->gate_mask) & c->gate_bit) != 0;
}

/* Likewise, and the epoch is as this reader last saw it. */
static inline int shmd_consumer_unchanged(const shmd_consumer *c)
{
    return shmd_consumer_stands(c) && shmd_load_relaxed(&c->hot->state) == c->open_word;
}

/* Below gated_from the reader handed out a copy of its own. A handle that a fork has wiped has no hot. */
static inline int shmd_consumer_valid_inline(const shmd_consumer *c)
{
    return c->position < c->gated_from || (c->hot != NULL && shmd_consumer_stands(c));
}

static inline int shmd_poll_inline(shmd_consumer *c, shmd_message *out)
{
    uint64_t seq = c->position;
    /* In order: nothing mapped (0), past a seal, to be kept off for a moment; or not protected by this reader's gate. */
    if (__builtin_expect(seq >= c->look_until || seq < c->gated_from, 0))
        return shmd_poll_slow(c, out);
    const shmd_slot_t *slot = shmd_consumer_slot(c, seq);
    if (shmd_load_acquire(&slot->commit) != ((seq << 1) | 1)) /* P2 */
        return shmd_poll_slow(c, out);
    if (__builtin_expect(!shmd_slot_describe(slot, seq, c->inline_max, out) || !shmd_consumer_unchanged(c), 0))
        return shmd_poll_slow(c, out);
    if (__builtin_expect(c->stamped, 0))
        shmd_consumer_note(c, out);
    c->polled = 1;
    return 1;
}

static inline void shmd_consumer_pass(shmd_consumer *c, uint64_t n, uint64_t position)
{
    c->consumed += n;
    c->polled = 0;
    c->position = position;
    shmd_store_relaxed(&c->gate->cursor, position);
}

static inline int shmd_advance_inline(shmd_consumer *c)
{
    uint64_t before = c->position, n = c->polled;
    uint64_t position = before + n * c->stride;
    if (position == before)
        return SHMD_OK;
    if (position <= c->gated_from) { /* true for ungated ones, whose gated_from is the largest number */
        shmd_consumer_pass(c, n, position);
        return SHMD_OK;
    }
    if (__builtin_expect(!shmd_consumer_stands(c), 0))
        return shmd_consumer_overwritten(c);
    shmd_consumer_pass(c, n, position);
    shmd_store_release(&c->gate->position, position - c->slack); /* C2: after the loads of the payload; pairs with the producer's acquire load of the gate */
    SHMD_FAILPOINT("gate.stored");
    c->gate_published = position - c->slack;
    if (__builtin_expect(((before ^ position) & c->fence_mask) != 0, 0))
        shmd_fence_seq_cst(); /* C3: once every quarter ring, so that a waiting producer is not missed for long */
    if (__builtin_expect((shmd_load32_relaxed(&c->data->room_waiting) & 0xff) == c->gate_index + 1, 0))
        shmd_consumer_wake_producer(c);
    return SHMD_OK;
}

#ifndef SHMD_NO_INLINE
#define shmd_publish(producer, data, length, type) shmd_publish_inline(producer, data, length, type)
#define shmd_poll(consumer, out) shmd_poll_inline(consumer, out)
#define shmd_advance(consumer) shmd_advance_inline(consumer)
#define shmd_consumer_valid(consumer) shmd_consumer_valid_inline(consumer)
#endif

#ifdef __cplusplus
}
#endif
#endif
