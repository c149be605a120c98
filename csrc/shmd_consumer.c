/* shmd_consumer.c: a consumer's slow turns: nothing there yet, lapped, sealed, revoked, the next epoch.
 * The fast one (gated, slot committed, nothing changed) is inline in shmdriver.h.
 *
 *     no epoch --wired into one--> reading --sealed and drained--> left: next epoch (follow), or ended
 *                                     `--bit cleared--> ended (revoked)
 */
#include "shmd_internal.h"

static int is_ungated(const shmd_consumer *c) { return c->gated_from == UINT64_MAX; }

/* ---- gaps ------------------------------------------------------------------------------ */

static void note_lost(shmd_consumer *c, uint64_t first, uint64_t end)
{
    shmd_lost_range_t *last = c->lost_range_count == 0 ? NULL : &c->lost_ranges[(c->lost_range_count - 1) % SHMD_LOST_RANGES];
    first = shmd_shard_next(c, first); /* other shards' messages are not lost */
    if (end <= first)
        return;
    uint64_t newest = shmd_shard_last(c, end);
    uint64_t count = (newest - first) / c->stride + 1;
    c->lost += count;
    if (c->gate != NULL)
        shmd_store_relaxed(&c->gate->lost, shmd_load_relaxed(&c->gate->lost) + count);
    if (last != NULL && last->epoch == c->epoch && last->last + c->stride == first)
        last->last = newest;
    else
        c->lost_ranges[c->lost_range_count++ % SHMD_LOST_RANGES] = (shmd_lost_range_t){.epoch = c->epoch, .first = first, .last = newest};
}

uint64_t shmd_consumer_lost_ranges(const shmd_consumer *c, shmd_lost_range_t *out, uint64_t limit)
{
    uint64_t kept = shmd_min(c->lost_range_count, SHMD_LOST_RANGES);
    uint64_t n = shmd_min(kept, limit);
    for (uint64_t i = 0; i < n; i++)
        out[i] = c->lost_ranges[(c->lost_range_count - n + i) % SHMD_LOST_RANGES];
    return n;
}

/* ---- epochs ---------------------------------------------------------------------------- */

/* Around what changes where it reads: threads that only look (shmd_consumer_info) have no guard, and must not meet half of it. */
static void move(shmd_consumer *c)
{
    shmd_store32_seq_cst(&c->moving, 1);
    shmd_await_lookers(&c->lookers);
}

static void moved(shmd_consumer *c) { shmd_store32_release(&c->moving, 0); }

int shmd_consumer_look_begin(const shmd_consumer *c)
{
    if (shmd_load32_relaxed(&c->moving) != 0) /* not counted: who looks all the time must not keep the owner waiting */
        return 0;
    if (shmd_look_begin((uint32_t *)(uintptr_t)&c->lookers, &c->closing) && shmd_load32_acquire(&c->moving) == 0 && c->data != NULL)
        return 1;
    shmd_consumer_look_end(c);
    return 0;
}

void shmd_consumer_look_end(const shmd_consumer *c) { shmd_look_end((uint32_t *)(uintptr_t)&c->lookers); }

static void unmap(shmd_consumer *c)
{
    move(c);
    shmd_mapping_disown(c->mapping);
    shmd_consumer_discard(c, c->retired); /* the one before: what was handed out of it is over by now */
    c->retired = c->mapping;
    c->mapping = NULL;
    c->epoch = 0;
    c->polled = 0;
    c->bound = c->look_until = 0; /* the fast turn finds nothing to read */
    c->gated_from = UINT64_MAX;   /* nothing is handed out in place any more */
    c->gate = NULL;
    c->data = NULL;
    moved(c);
}

int shmd_consumer_wire(shmd_consumer *c, const shmd_epoch_record_t *record, uint32_t record_index, uint64_t start, uint64_t joined)
{
    if (c->gate_index >= record->gate_count)
        return shmd_fail(SHMD_E_CORRUPT, "stream %s: this consumer's gate is %u, epoch %u has %u", c->stream, c->gate_index, record->epoch, record->gate_count);
    shmd_mapping *mapping = shmd_consumer_take_prepared(c, record->epoch);
    int rc = mapping != NULL ? SHMD_OK : shmd_mapping_open(c->client, record, SHMD_ROLE_CONSUMER, &mapping);
    if (rc != SHMD_OK)
        return rc;
    uint64_t head = shmd_data_head(mapping->data);
    if (joined > head) {
        shmd_mapping_free(mapping);
        return shmd_fail(SHMD_E_CORRUPT, "stream %s: this consumer joined at seq %llu, the head of epoch %u is %llu", c->stream, (unsigned long long)joined, record->epoch,
                         (unsigned long long)head);
    }
    move(c);
    c->mapping = mapping;
    shmd_mapping_own(mapping, &c->gate_bit, 0); /* as if the driver had cleared it in the mask */
    c->mapping_serial = mapping->serial;
    c->scratch = mapping->scratch;
    c->scratch_bytes = mapping->scratch_bytes;
    c->slots = mapping->ring;
    c->arena = mapping->arena;
    c->arena_bytes = record->arena_bytes;
    c->data = mapping->data;
    c->gate = shmd_gates_gate(mapping->gates, c->gate_index);
    c->mask = record->slots - 1;
    c->fence_mask = ~(uint64_t)(record->slots / 4 > 0 ? record->slots / 4 - 1 : 0);
    c->slot_bytes = record->slot_bytes;
    c->inline_max = record->slot_bytes - SHMD_SLOT_HEADER_BYTES;
    c->hot = shmd_stream_hot(c->client, c->stream_index, record_index);
    c->open_word = (uint64_t)record->epoch << 8 | SHMD_EPOCH_OPEN;
    c->epoch = record->epoch;
    shmd_store32_relaxed(&c->last_epoch, record->epoch); /* shmd_consumer_prepare looks at it in other threads */
    c->record = record_index;
    c->position = c->delivery == SHMD_DELIVERY_LATEST && start != 0 ? shmd_shard_last(c, shmd_max(start, joined)) : shmd_shard_next(c, start);
    c->gate_published = joined;
    c->gated_from = c->delivery == SHMD_DELIVERY_RELIABLE ? joined : UINT64_MAX;
    c->bound = c->look_until = UINT64_MAX;
    c->head_seen = 0;
    shmd_consumer_flow_begin(c);
    c->polled = 0;
    c->fenced_at = UINT64_MAX;
    c->hold_seq = UINT64_MAX; /* what is referred to lies in the epoch before */
    c->noted = 0;
    c->stamped = (record->flags & SHMD_ATTACH_TIMESTAMPS) != 0;
    c->woken = 0;
    if (c->resumes)
        shmd_consumer_resume(c);
    moved(c);
    SHMD_FAILPOINT("epoch.wired");
    return SHMD_OK;
}

static int end(shmd_consumer *c, int code, uint32_t reason)
{
    c->ended = (uint32_t)-code;
    c->end_reason = reason;
    return code;
}

/* The words of an end that was met before. */
static int ended(const shmd_consumer *c)
{
    int code = -(int)c->ended;
    if (code == SHMD_E_END)
        return shmd_fail(code, "stream %s: its producer closed it after seq %llu", c->stream, (unsigned long long)c->sealed_seq);
    if (code == SHMD_E_PRODUCER_LOST)
        return shmd_fail(code, "stream %s: its producer was lost (%s) at seq %llu of epoch %u; all that it committed was delivered",
                         c->stream, shmd_reason_text(c->end_reason), (unsigned long long)c->sealed_seq, c->last_epoch);
    if (c->end_reason == SHMD_REASON_TRUNCATED)
        return shmd_mapping_refuse(c->mapping, c->stream);
    int is_over = c->end_reason == SHMD_REASON_SHUTDOWN || c->end_reason == SHMD_REASON_SUPERSEDED;
    return shmd_fail(code, "stream %s: consumer lease %llu has ended (%s)%s", c->stream, (unsigned long long)c->lease_id, shmd_reason_text(c->end_reason),
                     is_over ? "" : "; views of it may be overwritten from now on");
}

/* Nothing is there. Does anything come? */
static int nothing_now(shmd_consumer *c)
{
    return c->is_over ? shmd_client_over_fail(c->client, c->stream) : 0;
}

static int revoked(shmd_consumer *c)
{
    uint32_t reason = SHMD_REASON_TRUNCATED;
    if (!shmd_mapping_is_damaged(c->mapping)) /* that took the gate bit */
        (void)shmd_lease_live(c->client, c->lease_index, c->lease_id, &reason);
    int is_delivered = reason == SHMD_REASON_DELIVERED;
    (void)end(c, is_delivered ? SHMD_E_END : SHMD_E_REVOKED, is_delivered ? (uint32_t)SHMD_REASON_CLOSED : reason);
    return ended(c);
}

/* Why this epoch has ended. A freed record keeps that, and its seal, until it is used again; an ungated reader that is later
 * than that cannot know it, and a crash must not look like an end of file. What such a reader had not read yet is gone. */
static uint32_t look_back(shmd_consumer *c, int is_counted)
{
    const shmd_epoch_record_t *record = &shmd_client_stream(c->client, c->stream_index)->epochs[c->record];
    uint32_t reason;
    uint64_t sealed_seq;
    if (!shmd_epoch_end(record, c->epoch, &sealed_seq, &reason)) {
        (void)shmd_lease_live(c->client, c->lease_index, c->lease_id, &reason);
        return reason == SHMD_REASON_TRUNCATED ? reason : SHMD_REASON_ABORTED;
    }
    c->sealed_seq = sealed_seq;
    if (!is_counted && c->delivery == SHMD_DELIVERY_LOSSY && c->position < sealed_seq)
        note_lost(c, c->position, sealed_seq);
    return reason != SHMD_REASON_NONE ? reason : (uint32_t)SHMD_REASON_ABORTED;
}

/* It had one epoch, which has ended like this. */
static int end_with_epoch(shmd_consumer *c, uint32_t reason)
{
    int code = reason == SHMD_REASON_CLOSED ? SHMD_E_END : reason == SHMD_REASON_TRUNCATED ? SHMD_E_REVOKED : SHMD_E_PRODUCER_LOST;
    (void)end(c, code, reason);
    return ended(c);
}

/* Everything below the seal was handed out, or is counted: say so, then go on or end. */
static int leave_epoch(shmd_consumer *c, int is_counted)
{
    uint32_t reason = look_back(c, is_counted);
    c->position = shmd_min(c->position, c->bound); /* a shard looks past the end for its next message */
    shmd_store_release(&c->gate->position, c->position);
    SHMD_FAILPOINT("left.gate");
    shmd_store_release(&c->gate->left, c->lease_id); /* D1: after the last read; pairs with shmd_gate_left */
    SHMD_FAILPOINT("left.stored");
    c->gate_published = c->position;
    unmap(c);
    if ((c->flags & SHMD_ATTACH_FOLLOW) != 0)
        return 0;
    return end_with_epoch(c, reason);
}

/* The first epoch that this consumer was wired to; 0: none yet, or its lease has ended. */
static uint32_t first_epoch(const shmd_consumer *c)
{
    shmd_lease_record_t lease;
    return shmd_lease_copy(c->client, c->lease_index, c->lease_id, &lease) ? lease.first_epoch : 0;
}

/* Without `follow` an ungated reader has one epoch. That may be gone before it was ever mapped: then nothing comes any more. */
static int missed_its_epoch(shmd_consumer *c)
{
    const shmd_stream_record_t *stream = shmd_client_stream(c->client, c->stream_index);
    uint32_t first = first_epoch(c);
    if ((c->flags & SHMD_ATTACH_FOLLOW) != 0 || c->delivery == SHMD_DELIVERY_RELIABLE || first == 0 || first <= c->last_epoch ||
        shmd_load_acquire(&stream->epoch_count) < first)
        return 0;
    c->record = 0;
    for (uint32_t i = 0; i < SHMD_EPOCH_RECORDS; i++) {
        uint64_t state = shmd_load_acquire(&stream->epochs[i].hot.state);
        uint32_t low = (uint32_t)(state & 0xff);
        if (state >> 8 == first && low != SHMD_EPOCH_RETIRED && low != SHMD_EPOCH_FREE)
            return 0; /* it was opened since the last look */
        if (state >> 8 == first)
            c->record = i;
    }
    c->epoch = first;
    shmd_store32_relaxed(&c->last_epoch, first);
    uint32_t reason = look_back(c, 0);
    c->epoch = 0;
    return end_with_epoch(c, reason);
}

/* What a lossy follower never saw: epochs after `last` and before the one that it has just mapped. Their freed records tell how
 * long they were, as for look_back; one whose record is used again cannot be counted. */
static void note_unseen(shmd_consumer *c, uint32_t last)
{
    const shmd_stream_record_t *stream = shmd_client_stream(c->client, c->stream_index);
    uint32_t here = c->epoch;
    uint32_t first = last != 0 ? last + 1 : first_epoch(c);
    if (c->delivery != SHMD_DELIVERY_LOSSY || first == 0)
        return;
    first = (uint32_t)shmd_max(first, here - shmd_min(here, SHMD_EPOCH_RECORDS)); /* earlier ones have no record any more */
    for (c->epoch = first; c->epoch < here; c->epoch++)
        for (uint32_t i = 0; i < SHMD_EPOCH_RECORDS; i++) {
            uint32_t reason;
            uint64_t sealed_seq;
            if (shmd_epoch_end(&stream->epochs[i], c->epoch, &sealed_seq, &reason))
                note_lost(c, 0, sealed_seq);
        }
    c->epoch = here;
}

/* Whether the gate's bit in that epoch is this lease's. One that has ended keeps its gate only in the epochs that there were then:
 * in a later one the bit may be the next owner's, who got it after the end was stored. */
static int is_wired_to_it(const shmd_consumer *c, uint32_t epoch)
{
    shmd_lease_record_t lease;
    uint32_t reason;
    if (shmd_lease_live(c->client, c->lease_index, c->lease_id, &reason)) /* D2: after the bit */
        return 1;
    return shmd_lease_copy(c->client, c->lease_index, c->lease_id, &lease) && epoch <= lease.epoch;
}

/* No epoch mapped. 1: one is now; 0: none yet; negative: over. */
static int enter_epoch(shmd_consumer *c)
{
    shmd_epoch_record_t record;
    uint32_t index = 0;
    uint32_t reason;
    if (shmd_consumer_check_fork(c) != SHMD_OK)
        return SHMD_E_FORKED;
    if (shmd_stream_next_epoch(c->client, c->stream_index, c->stream_id, c->last_epoch, c->gate_bit, &record, &index)) {
        uint32_t last = c->last_epoch;
        if (!is_wired_to_it(c, record.epoch))
            return revoked(c);
        int rc = shmd_consumer_wire(c, &record, index, 0, 0);
        if (rc == SHMD_OK) {
            note_unseen(c, last);
            return 1;
        }
        uint64_t state = shmd_load_acquire(&shmd_stream_hot(c->client, c->stream_index, index)->state);
        uint32_t low = (uint32_t)(state & 0xff);
        if (state >> 8 != record.epoch || low == SHMD_EPOCH_RETIRED || low == SHMD_EPOCH_FREE)
            return missed_its_epoch(c); /* retired while an ungated reader was about to map it */
        if (!shmd_lease_live(c->client, c->lease_index, c->lease_id, &reason))
            return revoked(c);
        if (rc != SHMD_E_LAYOUT)
            return rc;
        (void)end(c, SHMD_E_REVOKED, SHMD_REASON_TRUNCATED); /* not what the driver made and published */
        return ended(c);
    }
    if (!shmd_lease_live(c->client, c->lease_index, c->lease_id, &reason))
        return revoked(c);
    return missed_its_epoch(c);
}

/* The state is not what it was: 0 go on (or wait), 1 the epoch is drained, negative over. */
int shmd_consumer_look(shmd_consumer *c)
{
    uint64_t state = shmd_load_acquire(&c->hot->state); /* X2 */
    if (shmd_load32_relaxed(&c->client->authority_damage.damaged) != 0) /* G3 */
        return revoked(c);
    uint64_t mask = is_ungated(c) ? shmd_load_acquire(&c->hot->wired_mask) : shmd_load_acquire(&c->hot->gate_mask);
    uint32_t low = (uint32_t)(state & 0xff);
    if (state >> 8 != c->epoch || low == SHMD_EPOCH_RETIRED || low == SHMD_EPOCH_FREE)
        return is_ungated(c) ? 1 : revoked(c); /* nobody waits for an ungated reader: what it had not read yet is gone */
    if ((mask & c->gate_bit) == 0) {
        /* A record is retired before its masks are cleared: who sees a cleared mask sees that, too. */
        uint64_t now = shmd_load_acquire(&c->hot->state);
        return is_ungated(c) && now != state && (now >> 8 != c->epoch || (now & 0xff) != SHMD_EPOCH_SEALED) ? 1 : revoked(c);
    }
    if (low == SHMD_EPOCH_SEALED) {
        uint64_t sealed_seq = shmd_load_relaxed(&c->hot->sealed_seq);
        if (!shmd_seqlock_same(&c->hot->state, state))
            return is_ungated(c) ? 1 : revoked(c); /* the record is another epoch's by now, and so may be the seal */
        c->sealed_seq = sealed_seq;
        c->open_word = state;
        c->bound = c->look_until = c->sealed_seq; /* the fast turn drains up to the seal */
        return c->position >= c->bound;
    }
    return 0;
}

/* ---- reading --------------------------------------------------------------------------- */

static shmd_ring_view_t ring_view(const shmd_consumer *c)
{
    return (shmd_ring_view_t){.slots = c->slots, .arena = c->arena, .arena_intent = &c->data->arena_intent, .mask = c->mask,
                              .arena_bytes = c->arena_bytes, .slot_bytes = c->slot_bytes, .inline_max = c->inline_max};
}

/* Where a lapped reader goes on: at most three quarters of a ring behind an open head, and past where it was. */
static void resync(shmd_consumer *c)
{
    uint64_t slots = c->mask + 1;
    uint64_t head = shmd_load_acquire(&c->data->head);
    uint64_t slack = c->bound == UINT64_MAX ? slots / 4 : 0; /* before the next lap; nobody laps a sealed epoch */
    uint64_t oldest = head > slots ? head - slots + slack : 0;
    uint64_t next = shmd_max(c->position + 1, oldest);
    if (c->delivery == SHMD_DELIVERY_RELIABLE)
        next = shmd_max(c->position + 1, shmd_min(next, c->gated_from)); /* from there on its own gate protects it */
    next = shmd_min(next, shmd_max(c->bound, c->position));
    note_lost(c, c->position, next);
    c->position = shmd_shard_next(c, next);
}

static void skip_to_latest(shmd_consumer *c)
{
    uint64_t head = shmd_load_acquire(&c->data->head); /* P3 */
    uint64_t newest = shmd_shard_last(c, shmd_min(head, c->bound));
    if (newest > c->position) {
        c->skipped += (newest - c->position) / c->stride;
        c->position = newest;
        shmd_store_relaxed(&c->gate->skipped, c->skipped);
    }
}

/* C1 for copies: the epoch is open, or its seal is known (bound), and this consumer is still wired to it. */
static int may_hand_out(const shmd_consumer *c)
{
    shmd_fence_acquire();
    uint64_t state = shmd_load_relaxed(&c->hot->state);
    uint64_t mask = shmd_load_relaxed(is_ungated(c) ? &c->hot->wired_mask : &c->hot->gate_mask);
    return (mask & c->gate_bit) != 0 && (state == c->open_word || (c->bound != UINT64_MAX && state >> 8 == c->epoch));
}

/* One message that this reader's gate does not protect, copied and verified. */
static int poll_copy(shmd_consumer *c, void *out, uint64_t out_bytes, shmd_message *message)
{
    shmd_ring_view_t ring = ring_view(c);
    for (int tries = 0; tries < 64; tries++) {
        if (!may_hand_out(c))
            return 0; /* sealing, sealed or revoked: shmd_consumer_look says which, before anything is skipped or counted */
        if (c->delivery == SHMD_DELIVERY_LATEST)
            skip_to_latest(c);
        if (c->position >= c->bound || (c->gated_from != UINT64_MAX && c->position >= c->gated_from))
            return 0;
        int rc = shmd_slot_copy(&ring, c->position, out, out_bytes, message);
        if (rc == 0 || !may_hand_out(c))
            return 0; /* it happened meanwhile: nothing of it is handed out or counted */
        if (__builtin_expect(rc == 1, 1)) { /* so that the compiler pads no loop that each message would enter once */
            c->polled = 1;
            return 1;
        }
        if (rc == SHMD_E_TOO_LARGE)
            return shmd_fail(rc, "stream %s: message %llu has %u bytes, the buffer %llu", c->stream, (unsigned long long)c->position,
                             message->length, (unsigned long long)out_bytes);
        if (c->delivery != SHMD_DELIVERY_LATEST)
            resync(c); /* lapped, or what stands there cannot be a message */
    }
    return 0;
}

int shmd_consumer_resolve(const shmd_consumer *c, shmd_message *m)
{
    if ((m->flags & SHMD_FLAG_ARENA) == 0)
        return SHMD_E_CORRUPT;
    return shmd_arena_resolve(c->arena, c->arena_bytes, m->data, m->length, &m->data);
}

/* One message in place, protected by this reader's gate. */
static int poll_gated(shmd_consumer *c, shmd_message *out)
{
    uint64_t seq = c->position;
    const shmd_slot_t *slot = shmd_consumer_slot(c, seq);
    uint64_t commit = shmd_load_acquire(&slot->commit); /* P2 */
    if (commit != ((seq << 1) | 1))
        return 0;
    int rc = shmd_slot_describe(slot, seq, c->inline_max, out) ? SHMD_OK : shmd_consumer_resolve(c, out);
    if (!shmd_consumer_unchanged(c)) /* C1 */
        return 0;
    if (rc != SHMD_OK) { /* a producer that writes nonsense: passed over, counted, never followed */
        note_lost(c, seq, seq + 1);
        c->position += c->stride;
        return 0;
    }
    c->polled = 1;
    return 1;
}

/* Nothing to read for this shard: the gate passes the messages of the others, as far as they are there. */
static void pass_others(shmd_consumer *c)
{
    uint64_t to = shmd_min(shmd_min(c->position, c->hold_seq), shmd_load_acquire(&c->data->head)); /* P3 */
    if (to <= c->gate_published || c->position < c->gated_from)
        return;
    shmd_store_release(&c->gate->position, to); /* C2 */
    shmd_store_relaxed(&c->gate->cursor, c->position);
    c->gate_published = to;
    c->fenced_at = UINT64_MAX;
}

/* The gate moved since the last fence and nothing is left to read: a producer that waits for room must not be missed. */
void shmd_consumer_before_idle(shmd_consumer *c)
{
    if (c->gate != NULL && c->slack != 0)
        pass_others(c);
    if (c->gate == NULL || c->fenced_at == c->position)
        return;
    c->fenced_at = c->position;
    shmd_store_relaxed(&c->gate->consumed, c->consumed);
    shmd_store_relaxed(&c->gate->last_read_ns, shmd_now_ns()); /* once an idle turn, not once a message */
    if (c->gated_from == UINT64_MAX)
        return;
    shmd_fence_seq_cst(); /* W2: gate before this, the producer's flag after */
    if ((shmd_load32_relaxed(&c->data->room_waiting) & 0xff) == c->gate_index + 1)
        shmd_consumer_wake_producer(c);
}

static int poll_here(shmd_consumer *c, shmd_message *out)
{
    if (c->position >= c->bound)
        return 0;
    return shmd_consumer_is_protected(c) ? poll_gated(c, out) : poll_copy(c, c->scratch, c->scratch_bytes, out);
}

int shmd_poll_slow(shmd_consumer *c, shmd_message *out)
{
    c->polled = 0; /* what the last poll handed out and nobody advanced over is looked at anew */
    for (int turns = 0; turns < 16; turns++) {
        if (c->ended != 0)
            return ended(c);
        if (c->data == NULL) {
            int rc = enter_epoch(c);
            if (rc <= 0)
                return rc ? rc : nothing_now(c);
        }
        if (c->position >= c->look_until && c->position < c->bound)
            shmd_consumer_keep_off(c);
        uint64_t position = c->position;
        uint64_t bound = c->bound;
        int rc = poll_here(c, out);
        if (rc == 1 && c->stamped)
            shmd_consumer_note(c, out);
        if (rc != 0)
            return rc;
        rc = shmd_consumer_look(c);
        if (rc < 0)
            return rc;
        if (rc == 0) {
            if (__builtin_expect(c->position != position || c->bound != bound, 0))
                continue; /* something was passed over, or the seal is news: look again */
            if (bound == UINT64_MAX) {
                shmd_consumer_before_idle(c);
                shmd_consumer_caught_up(c);
                return nothing_now(c);
            }
            note_lost(c, position, bound); /* sealed, below the seal, not committed: a head that lied. The epoch ends here. */
        }
        rc = leave_epoch(c, rc == 0);
        if (__builtin_expect(rc != 0, 1))
            return rc;
    }
    return 0;
}

int shmd_poll(shmd_consumer *c, shmd_message *out) { return shmd_poll_inline(c, out); }

int shmd_advance(shmd_consumer *c) { return shmd_advance_inline(c); }

int shmd_consumer_valid(const shmd_consumer *c) { return shmd_consumer_valid_inline(c); }

int shmd_consumer_overwritten(shmd_consumer *c)
{
    c->polled = 0;
    return shmd_consumer_look(c); /* a bit that is cleared stays so */
}

int shmd_copy(shmd_consumer *c, void *out, uint64_t out_bytes, shmd_message *message)
{
    int rc = shmd_poll_inline(c, message);
    if (rc != 1)
        return rc;
    if (message->length > out_bytes)
        return shmd_fail(SHMD_E_TOO_LARGE, "stream %s: message %llu has %u bytes, the buffer %llu", c->stream, (unsigned long long)message->seq,
                         message->length, (unsigned long long)out_bytes);
    shmd_copy_from_shared(out, message->data, message->length);
    if (!shmd_consumer_valid_inline(c)) /* C1: after the last byte */
        return shmd_consumer_overwritten(c);
    message->data = out;
    return 1;
}

void shmd_consumer_wake_producer(shmd_consumer *c)
{
    uint32_t waiting = shmd_load32_relaxed(&c->data->room_waiting);
    if (waiting == c->woken)
        return; /* woken already: it has not run yet, and another system call would not make it faster */
    c->woken = waiting;
    shmd_store32_seq_cst(&c->gate->room_word, shmd_load32_relaxed(&c->gate->room_word) + 1); /* one writer: this consumer */
    SHMD_FAILPOINT("room.bumped");
    shmd_futex_wake(&c->gate->room_word);
}

void shmd_consumer_info(const shmd_consumer *c, shmd_consumer_info_t *out)
{
    memset(out, 0, sizeof *out);
    out->lease_id = c->lease_id;
    out->position = c->position;
    out->gate = c->gate_published;
    out->lost = c->lost;
    out->skipped = c->skipped;
    out->consumed = c->consumed;
    out->sealed_seq = c->sealed_seq;
    out->mapping_serial = c->mapping_serial;
    out->lost_range_count = c->lost_range_count;
    out->holds = c->holds;
    out->slots = c->data == NULL ? 0 : (uint32_t)(c->mask + 1);
    out->slot_bytes = c->slot_bytes;
    out->inline_max = c->inline_max;
    out->epoch = c->last_epoch;
    out->stream_id = c->stream_id;
    out->stream_index = c->stream_index;
    out->lease_index = c->lease_index;
    out->gate_index = c->gate_index;
    out->end_reason = c->end_reason;
    out->delivery = c->delivery;
    if (shmd_consumer_look_begin(c)) {
        out->head = shmd_load_acquire(&c->data->head); /* P3 */
        const shmd_epoch_record_t *record = &shmd_client_stream(c->client, c->stream_index)->epochs[c->record];
        uint64_t seen = shmd_seqlock_read(&record->hot.state);
        int64_t pid = record->producer_pid;
        out->producer_pid = seen >> 8 == c->epoch && shmd_seqlock_same(&record->hot.state, seen) ? pid : 0;
        shmd_consumer_look_end(c);
    }
}
