/* shmd_guarded_consumer.c: a consumer's guarded calls (shmd_guarded.c says what that means): runs copied into one buffer, large
 * messages and records in place, and the gate that follows what the caller still refers to. */
#include "shmd_internal.h"

#include <stdlib.h>

static shmd_guard_t guard_of(shmd_consumer *c)
{
    return (shmd_guard_t){.busy = &c->busy, .closing = &c->closing, .lookers = &c->lookers, .fork_generation = c->fork_generation, .what = "consumer", .stream = c->stream};
}

static int enter_consumer(shmd_consumer *c)
{
    if (c == NULL)
        return shmd_guard_none("consumer");
    shmd_guard_t guard = guard_of(c);
    return shmd_guard_enter(&guard);
}

int shmd_consumer_enter(shmd_consumer *c) { return enter_consumer(c); }

/* Moves the gate to min(position, hold_seq), never back. */
static void release_to(shmd_consumer *c, uint64_t hold_seq)
{
    uint64_t to = shmd_min(c->position - shmd_min(c->slack, c->position), hold_seq);
    c->hold_seq = hold_seq;
    if (c->gate == NULL || c->gated_from == UINT64_MAX || to <= c->gate_published)
        return;
    uint64_t before = c->gate_published;
    SHMD_FAILPOINT("gate.due");
    shmd_store_release(&c->gate->position, to); /* C2 */
    SHMD_FAILPOINT("gate.stored");
    c->gate_published = to;
    c->fenced_at = UINT64_MAX; /* W2: the next idle turn fences anew, also if the position stays */
    if (((before ^ to) & c->fence_mask) != 0)
        shmd_fence_seq_cst(); /* C3 */
    if ((shmd_load32_relaxed(&c->data->room_waiting) & 0xff) == c->gate_index + 1)
        shmd_consumer_wake_producer(c);
}

static void took(shmd_consumer *c, uint64_t n)
{
    if (__builtin_expect(c->stamped, 0))
        shmd_consumer_note_run(c, n);
    c->polled = 0;
    c->position += n * c->stride;
    c->consumed += n;
    shmd_store_relaxed(&c->gate->consumed, c->consumed);
    shmd_store_release(&c->gate->cursor, c->position); /* C2: a producer that keeps what is unread looks at it, too */
    if (c->delivery == SHMD_DELIVERY_RELIABLE)
        shmd_store_release(&c->gate->delivered, c->position);
}

/* The caller holds messages in place from here on, and tells its hold with its next fetch. The gate could move earlier, so the hold is lowered now. */
static void took_in_place(shmd_consumer *c, uint64_t n)
{
    c->hold_seq = shmd_min(c->hold_seq, c->position);
    took(c, n);
}

static int views_held(shmd_consumer *c, uint64_t hold_seq)
{
    return shmd_fail(SHMD_E_VIEWS_HELD,
                     "stream %s: this consumer's own views hold seq %llu on and fill the ring of %llu "
                     "slots or its arena; drop or copy some of them",
                     c->stream, (unsigned long long)hold_seq, (unsigned long long)(c->mask + 1));
}

/* Waits for a message: 1, 2 when it has just come, 0 at the timeout, negative. Also 0 when a
 * producer comes to wait for what the caller held: views may have gone meanwhile, so the caller
 * tells its hold anew, with its next fetch. */
static int await(shmd_consumer *c, uint64_t hold_seq, uint64_t timeout_ns, shmd_message *first)
{
    int rc = shmd_poll_inline(c, first);
    if (rc != 0 || timeout_ns == 0)
        return rc;
    if (shmd_consumer_blocks_itself(c)) {
        rc = shmd_poll_inline(c, first); /* B1: sees all that the blocked producer had committed */
        return rc != 0 ? rc : views_held(c, hold_seq);
    }
    uint64_t deadline_ns = shmd_deadline(timeout_ns);
    for (;;) {
        uint64_t now = shmd_now_ns();
        if (shmd_load32_relaxed(&c->closing))
            return shmd_fail(SHMD_E_CLOSED, "stream %s: consumer was closed by another thread", c->stream);
        if (now >= deadline_ns)
            return 0;
        rc = shmd_wait(c, deadline_ns - now);
        rc = rc < 0 ? rc : shmd_poll_inline(c, first);
        if (rc != 0)
            return rc == 1 ? 2 : rc;
        if (shmd_consumer_blocks_itself(c))
            return 0;
    }
}

static unsigned char *pack(unsigned char *out, const shmd_message *m)
{
    memcpy(out, &m->seq, 8);
    memcpy(out + 8, &m->timestamp_ns, 8);
    memcpy(out + 16, &m->type, 2);
    memcpy(out + 18, &m->flags, 2);
    shmd_copy_from_shared(out + 20, m->data, m->length);
    return out + 20 + m->length;
}

static void describe(const shmd_consumer *c, const shmd_message *m, shmd_batch_t *batch)
{
    batch->seq = m->seq;
    batch->timestamp_ns = m->timestamp_ns;
    batch->data = m->data;
    batch->length = m->length;
    batch->stride = 0;
    batch->type = m->type;
    batch->flags = m->flags;
    batch->copied = 0;
    batch->count = 1;
    batch->mapping_serial = c->mapping_serial;
    batch->lost = c->lost;
    batch->lost_range_count = c->lost_range_count;
}

/* Packs the run that begins at the position, all of it protected by this reader's gate. */
static int64_t pack_gated(shmd_consumer *c, const shmd_message *first, uint64_t most, unsigned char *out)
{
    shmd_message m = *first;
    uint64_t n = 0;
    do {
        out = pack(out, &m);
        n++;
        const shmd_slot_t *slot = shmd_consumer_slot(c, m.seq += c->stride);
        if (n >= most || shmd_load_acquire(&slot->commit) != ((m.seq << 1) | 1)) /* P2 */
            break;
        m.timestamp_ns = shmd_load_relaxed(&slot->timestamp_ns);
        m.type = shmd_load16_relaxed(&slot->type);
        m.data = (const unsigned char *)slot + SHMD_SLOT_HEADER_BYTES;
        if (shmd_load32_relaxed(&slot->length) != first->length || shmd_load16_relaxed(&slot->flags) != first->flags)
            break;
    } while (1);
    if (!shmd_consumer_unchanged(c)) { /* C1: after all copies, before any of them is handed out */
        c->polled = 0;
        int rc = shmd_consumer_look(c);
        return rc < 0 ? rc : 0;
    }
    took(c, n);
    return (int64_t)n;
}

static int64_t pack_copied(shmd_consumer *c, const shmd_message *first, uint64_t most, unsigned char *out)
{
    shmd_message m = *first;
    uint64_t serial = c->mapping_serial; /* a poll may cross into the next epoch, or a gap: that is another run */
    uint64_t next = m.seq;
    uint64_t n = 0;
    do {
        out = pack(out, &m); /* from this reader's scratch: verified */
        n++;
        took(c, 1);
        next += c->stride;
    } while (n < most && !shmd_consumer_is_protected(c) && c->delivery != SHMD_DELIVERY_LATEST && shmd_poll_inline(c, &m) == 1 &&
             m.seq == next && c->mapping_serial == serial && m.length == first->length && m.flags == first->flags);
    c->polled = 0;
    return (int64_t)n;
}

/* Fetches the run that begins with the polled message `m`. */
static int64_t fetch_run(shmd_consumer *c, const shmd_message *m, uint64_t limit, unsigned char *out, uint64_t out_bytes, shmd_batch_t *batch)
{
    int in_place = shmd_consumer_is_protected(c);
    uint64_t each = 20 + (uint64_t)m->length;
    describe(c, m, batch);
    if (in_place && (m->flags & SHMD_FLAG_ARENA) != 0) {
        took_in_place(c, 1);
        return 1;
    }
    if (each > out_bytes)
        return shmd_fail(SHMD_E_TOO_LARGE, "stream %s: message %llu has %u bytes, the buffer %llu", c->stream, (unsigned long long)m->seq, m->length,
                         (unsigned long long)out_bytes);
    uint64_t most = shmd_min(shmd_min(limit, out_bytes / each), shmd_shard_count(c, c->look_until));
    int64_t n = in_place ? pack_gated(c, m, most, out) : pack_copied(c, m, most, out);
    batch->copied = 1;
    batch->count = n > 0 ? (uint64_t)n : 0;
    return n;
}

/* Enters to fetch, with a wait of its own or not. */
static int enter_to_fetch(shmd_consumer *c, uint64_t timeout_ns)
{
    int rc = enter_consumer(c);
    if (rc == SHMD_OK && __builtin_expect(c->watch != NULL, 0) && timeout_ns != 0)
        shmd_watch_pause(c);
    return rc;
}

int64_t shmd_guarded_fetch(shmd_consumer *c, uint64_t hold_seq, uint64_t limit, uint64_t timeout_ns, void *out, uint64_t out_bytes, shmd_batch_t *batch)
{
    shmd_message first;
    int64_t rc = enter_to_fetch(c, timeout_ns);
    if (rc != SHMD_OK)
        return rc;
    release_to(c, hold_seq);
    rc = await(c, hold_seq, timeout_ns, &first);
    if (rc > 0) /* one that has just come: its successor's slot is left alone, whose line the producer is about to write */
        rc = limit == 0 ? 0 : fetch_run(c, &first, rc == 1 ? limit : 1, out, out_bytes, batch);
    if (rc > 0 && batch->copied)
        release_to(c, hold_seq); /* copies hold nothing: the producer has that room at once */
    if (rc == SHMD_E_TOO_LARGE)
        batch->length = first.length;
    if (__builtin_expect(c->watch != NULL, 0)) {
        if (rc > 1)
            shmd_watch_signal(c); /* the caller has a run left: shmd_guarded_settle follows */
        else if (limit == 0)
            shmd_watch_resume(c); /* a look: the caller may have a run left from before */
        else
            (void)shmd_consumer_settle(c);
    }
    shmd_handle_leave(&c->busy);
    return rc;
}

int64_t shmd_guarded_next(shmd_consumer *c, int64_t hold_seq, uint64_t timeout_ns, shmd_run_t *run)
{
    int64_t rc = shmd_guarded_fetch(c, (uint64_t)hold_seq, run->limit, timeout_ns, run->out, run->out_bytes, &run->batch);
    if (rc <= 0)
        return rc;
    return run->batch.copied ? (int64_t)((uint64_t)run->batch.length << SHMD_RUN_LENGTH_SHIFT | (uint64_t)rc) : INT64_MAX;
}

/* How many records of record_bytes stand in a row from the position on, whose first was looked at: at most `most`. */
static uint64_t count_records(const shmd_consumer *c, uint32_t record_bytes, uint64_t most)
{
    uint64_t seq = c->position, mask = c->mask, stride = c->stride, slot_bytes = c->slot_bytes;
    const unsigned char *slots = c->slots;
    uint64_t n = 1;
    for (; n < most; n++) {
        seq += stride;
        const shmd_slot_t *slot = (const shmd_slot_t *)(const void *)(slots + (seq & mask) * slot_bytes);
        if (shmd_load_acquire(&slot->commit) != ((seq << 1) | 1)) /* P2 */
            break;
        uint64_t fields = shmd_load_fields(&slot->length);
        if ((uint32_t)fields != record_bytes || fields >> 48 != 0)
            break;
    }
    return n;
}

static int64_t fetch_records(shmd_consumer *c, uint64_t limit, uint32_t record_bytes, unsigned char *out, uint64_t out_bytes, shmd_batch_t *batch)
{
    int in_place = shmd_consumer_is_protected(c);
    uint64_t most = shmd_min(limit, record_bytes == 0 ? 1 : out_bytes / record_bytes); /* copied ones */
    uint64_t n = 0;
    if (batch->length != record_bytes || (batch->flags & (SHMD_FLAG_ARENA | SHMD_FLAG_TENSOR)) != 0)
        return shmd_fail(SHMD_E_CORRUPT, "stream %s: message %llu has %u bytes (flags %u), a record has %u", c->stream, (unsigned long long)batch->seq,
                         batch->length, batch->flags, record_bytes);
    if (!in_place && out_bytes < record_bytes)
        return shmd_fail(SHMD_E_TOO_LARGE, "stream %s: a record has %u bytes, the buffer %llu", c->stream, record_bytes, (unsigned long long)out_bytes);
    batch->stride = in_place ? c->slot_bytes * (uint32_t)c->stride : record_bytes;
    if (in_place) {
        n = count_records(c, record_bytes, shmd_consumer_batch(c, limit));
        if (!shmd_consumer_unchanged(c)) { /* C1 */
            c->polled = 0;
            return shmd_consumer_look(c) < 0 ? -(int64_t)c->ended : 0;
        }
        took_in_place(c, n);
    } else {
        shmd_message m;
        batch->copied = 1;
        batch->data = out;
        m.data = c->scratch;
        do {
            shmd_copy_from_shared(out + n * record_bytes, c->scratch, record_bytes);
            n++;
            took(c, 1);
        } while (n < most && shmd_consumer_is_protected(c) == 0 && shmd_poll_inline(c, &m) == 1 && m.length == record_bytes && m.flags == batch->flags &&
                 m.seq == batch->seq + n * c->stride && c->mapping_serial == batch->mapping_serial);
        c->polled = 0;
    }
    batch->count = n;
    return (int64_t)n;
}

int64_t shmd_guarded_fetch_records(shmd_consumer *c, uint64_t hold_seq, uint64_t limit, uint32_t record_bytes, uint64_t timeout_ns, void *out,
                                   uint64_t out_bytes, shmd_batch_t *batch)
{
    shmd_message first;
    uint64_t expected = batch->mapping_serial;
    int64_t rc = enter_to_fetch(c, timeout_ns);
    if (rc != SHMD_OK)
        return rc;
    release_to(c, hold_seq);
    rc = await(c, hold_seq, timeout_ns, &first);
    if (rc > 0) {
        describe(c, &first, batch);
        rc = limit == 0 ? 1 : c->mapping_serial != expected ? 0 : fetch_records(c, limit, record_bytes, out, out_bytes, batch);
    }
    if (__builtin_expect(c->watch != NULL, 0))
        (void)shmd_consumer_settle(c);
    shmd_handle_leave(&c->busy);
    return rc;
}

int shmd_guarded_release(shmd_consumer *c, uint64_t hold_seq)
{
    int rc = enter_consumer(c);
    if (rc != SHMD_OK)
        return rc;
    release_to(c, hold_seq);
    shmd_consumer_before_idle(c); /* the caller may stop reading, and make up for no miss */
    shmd_watch_released(c);
    shmd_handle_leave(&c->busy);
    return SHMD_OK;
}

int shmd_guarded_drain(shmd_consumer *c)
{
    int rc = enter_consumer(c);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_consumer_drain(c);
    shmd_handle_leave(&c->busy);
    return rc;
}

int shmd_guarded_wait(shmd_consumer *c, uint64_t timeout_ns)
{
    int rc = enter_to_fetch(c, timeout_ns);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_wait(c, timeout_ns);
    shmd_watch_resume(c);
    shmd_handle_leave(&c->busy);
    return rc;
}

int shmd_guarded_watch(shmd_consumer *c, int fd, int is_readable)
{
    int rc = enter_consumer(c);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_consumer_watch(c, fd);
    if (rc == SHMD_OK && is_readable)
        shmd_watch_signal(c);
    shmd_handle_leave(&c->busy);
    return rc;
}

int shmd_guarded_settle(shmd_consumer *c)
{
    int rc = enter_consumer(c);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_consumer_settle(c);
    shmd_handle_leave(&c->busy);
    return rc;
}

void shmd_guarded_idle(shmd_consumer *c)
{
    if (enter_consumer(c) != SHMD_OK)
        return;
    (void)shmd_consumer_over(c, shmd_now_ns());
    shmd_handle_leave(&c->busy);
}

int shmd_guarded_wait_many(shmd_consumer **consumers, size_t n, uint64_t timeout_ns, const shmd_word_t *others, uint32_t count)
{
    size_t entered = 0;
    int rc = SHMD_OK;
    while (entered < n && rc == SHMD_OK) {
        rc = enter_to_fetch(consumers[entered], timeout_ns); /* one that is named twice is busy by then: SHMD_E_CONCURRENT */
        entered += rc == SHMD_OK;
    }
    if (rc == SHMD_OK)
        rc = shmd_wait_many_or(consumers, n, timeout_ns, others, count);
    while (entered > 0) {
        shmd_watch_resume(consumers[--entered]);
        shmd_handle_leave(&consumers[entered]->busy);
    }
    return rc;
}

int shmd_guarded_consumer_mapping(shmd_consumer *c, shmd_mapping **out)
{
    int rc = enter_consumer(c);
    if (rc != SHMD_OK)
        return rc;
    if (c->mapping != NULL)
        shmd_mapping_hold(c->mapping);
    *out = c->mapping;
    shmd_handle_leave(&c->busy);
    return SHMD_OK;
}

static int64_t copy_schema(const shmd_consumer *c, uint64_t mapping_serial, char *out, uint64_t out_bytes)
{
    const shmd_mapping *mapping = c->mapping != NULL && c->mapping->serial == mapping_serial ? c->mapping : c->retired;
    if (mapping == NULL || mapping->serial != mapping_serial)
        return shmd_fail(SHMD_E_LAYOUT, "stream %s: the epoch that this was read from is not mapped any more", c->stream);
    const shmd_data_t *data = mapping->data;
    uint32_t bytes = shmd_load32_relaxed(&data->schema_bytes); /* its producer can write there */
    if (bytes >= shmd_min(sizeof data->schema, out_bytes))
        return shmd_fail(SHMD_E_CORRUPT, "stream %s: epoch %u says that its schema has %u bytes", c->stream, mapping->epoch, bytes);
    shmd_copy_from_shared(out, data->schema, bytes);
    out[bytes] = 0;
    return bytes;
}

int64_t shmd_guarded_schema(shmd_consumer *c, uint64_t mapping_serial, char *out, uint64_t out_bytes)
{
    int64_t rc = enter_consumer(c);
    if (rc != SHMD_OK)
        return rc;
    rc = copy_schema(c, mapping_serial, out, out_bytes);
    shmd_handle_leave(&c->busy);
    return rc;
}

uint64_t shmd_consumer_copies(const shmd_consumer *c)
{
    /* A fetch that finds its epoch over gives one mapping back and makes another. */
    if (c->data == NULL || c->position >= c->bound || shmd_load_relaxed(&c->hot->state) != c->open_word)
        return UINT64_MAX;
    return shmd_consumer_is_protected(c) ? 0 : shmd_max(c->inline_max, c->arena_bytes / 2);
}

int shmd_guarded_consumer_close(shmd_consumer *c)
{
    if (c == NULL)
        return SHMD_OK;
    shmd_guard_t guard = guard_of(c);
    int rc = shmd_guard_take_over(&guard);
    if (rc != 1)
        return rc;
    rc = shmd_consumer_end(c, SHMD_END_CLEAN);
    shmd_guard_closed(&guard);
    return rc;
}

int shmd_guarded_consumer_abandon(shmd_consumer *c)
{
    if (c == NULL)
        return SHMD_OK;
    shmd_guard_t guard = guard_of(c);
    int rc = shmd_guard_try_over(&guard);
    if (rc != 1)
        return rc;
    (void)shmd_consumer_end(c, SHMD_END_ABANDONED);
    shmd_guard_closed(&guard);
    return SHMD_OK;
}
