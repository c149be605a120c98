/* shmd_producer.c: a producer's slow turns: room, waiting, arena, claims, batches. The fast one is inline in shmdriver.h;
 * attach and the end are in shmd_producer_attach.c.
 *
 * Room. limit is private: seq below it may be written. It is min(gates that count) + slots, recomputed only when reached.
 * What the gates free of the arena is known from spans, the private list of arena messages that some gate may still hold.
 */
#include "shmd_internal.h"

enum { NO_CONSUMER_YET = SHMD_GATE_MAX + 1 };

/* ---- room ------------------------------------------------------------------------------ */

static void blocked_begin(shmd_producer *p, uint32_t gate_plus_1, uint64_t position)
{
    int is_news = p->blocked_gate != gate_plus_1 ||
                  shmd_load_relaxed(&p->data->blocked_position) != position;
    if (p->blocked_gate == 0) {
        p->blocked_since_ns = shmd_now_ns();
        shmd_store_relaxed(&p->data->blocked_since_ns, p->blocked_since_ns);
        shmd_store_relaxed(&p->data->blocked_count, shmd_load_relaxed(&p->data->blocked_count) + 1);
    }
    p->blocked_gate = gate_plus_1;
    shmd_store_relaxed(&p->data->blocked_position, position);
    /* B1: after all that was committed; pairs with shmd_consumer_is_waited_for */
    shmd_store32_release(&p->data->blocked_gate, gate_plus_1);
    SHMD_FAILPOINT("room.blocked");
    if (is_news && gate_plus_1 <= p->gate_count && shmd_load_relaxed(&p->hot->sleep_mask) != 0)
        shmd_producer_wake(p); /* B1: views that held that gate may be gone; their owner moves it */
}

void shmd_producer_unblocked(shmd_producer *p)
{
    if (p->blocked_gate == 0)
        return;
    p->blocked_total_ns += shmd_now_ns() - p->blocked_since_ns;
    p->blocked_gate = 0;
    if (p->room_gate != 0)
        shmd_store32_relaxed(&p->data->room_waiting, 0);
    p->room_gate = 0;
    shmd_store_relaxed(&p->data->blocked_total_ns, p->blocked_total_ns);
    shmd_store32_relaxed(&p->data->blocked_gate, 0);
}

/* The smallest position of the gates in mask, clamped to what a gate can honestly be. gate: whose it is, + 1. */
static uint64_t slowest_of(const shmd_producer *p, uint64_t mask, uint32_t *gate)
{
    uint64_t slots = p->mask + 1;
    uint64_t least = p->seq;
    *gate = 0;
    while (mask != 0) {
        uint32_t index = (uint32_t)__builtin_ctzll(mask);
        mask &= mask - 1;
        uint64_t position = index < p->gate_count ? shmd_load_acquire(&shmd_gates_gate(p->gates, index)->position) : p->seq; /* C2 */
        if (p->keeps && index < p->gate_count) /* one that begins with older messages has its gate at the head and its cursor behind */
            position = shmd_min(position, shmd_load_acquire(&shmd_gates_gate(p->gates, index)->cursor)); /* C2 */
        int64_t behind = (int64_t)(p->seq - position);
        if (behind < 0)
            behind = 0;
        else if ((uint64_t)behind > slots)
            behind = (int64_t)slots;
        if (p->seq - (uint64_t)behind < least) {
            least = p->seq - (uint64_t)behind;
            *gate = index + 1;
        }
    }
    return least;
}

/* Of all gates that count. mask: what was seen of the mask before, and is changed to what is seen last. */
static uint64_t slowest(const shmd_producer *p, uint64_t *mask, uint32_t *gate)
{
    for (;;) {
        uint64_t least = slowest_of(p, *mask, gate);
        uint64_t now = shmd_load_acquire(&p->hot->gate_mask);
        if (now == *mask) /* J2: the gates before the mask here, the mask before the gates in shmd_epoch_join */
            return least;
        *mask = now;
    }
}

/* For a producer that keeps what is unread: without a consumer nothing more is free than was before. */
static uint64_t unread(shmd_producer *p, uint64_t mask, uint64_t least, uint32_t *gate)
{
    if (mask == 0)
        *gate = NO_CONSUMER_YET;
    return p->kept = mask == 0 ? p->kept : shmd_max(p->kept, least);
}

int shmd_producer_keep(shmd_producer *p, uint64_t bound)
{
    if (shmd_is_forked(p->fork_generation))
        return shmd_producer_forked(p);
    if (p->seq != 0 || p->claim_open || bound == 0 || bound > p->mask + 1)
        return shmd_fail(SHMD_E_INVALID, "stream %s: keep %llu messages at seq %llu: expected 1 to %llu, before the first message", p->stream,
                         (unsigned long long)bound, (unsigned long long)p->seq, (unsigned long long)(p->mask + 1));
    p->keeps = 1;
    p->bound = bound;
    p->limit = 0; /* the first message takes its slow turn and looks here */
    return SHMD_OK;
}

uint64_t shmd_producer_unread(shmd_producer *p, uint64_t bound)
{
    uint32_t gate;
    p->bound = shmd_min(shmd_max(bound, 1), p->mask + 1);
    p->limit = shmd_min(p->limit, p->seq); /* whatever is published next looks at the gates, with the new bound */
    shmd_store_release(&p->data->head, p->seq);
    shmd_fence_seq_cst(); /* J1, as in shmd_producer_room */
    uint64_t mask = shmd_load_acquire(&p->hot->gate_mask);
    uint64_t least = slowest(p, &mask, &gate);
    uint64_t read = unread(p, mask, least, &gate);
    for (uint32_t i = 0; mask == 0 && i < p->gate_count; i++) /* between two readers: what the last one noted */
        read = shmd_max(read, shmd_load_acquire(&shmd_gates_gate(p->gates, i)->delivered)); /* C2 */
    return p->seq - shmd_min(read, p->seq);
}

static void free_spans(shmd_producer *p, uint64_t freed_below)
{
    uint64_t tail = p->arena_limit - p->arena_bytes;
    while (p->span_tail != p->span_head && p->spans[p->span_tail & p->mask].seq < freed_below)
        tail = p->spans[p->span_tail++ & p->mask].end;
    if (p->span_tail == p->span_head)
        tail = p->arena_next;
    p->arena_limit = tail + p->arena_bytes;
}

/* Is there ever room again? */
static int no_room(const shmd_producer *p)
{
    uint64_t now = shmd_now_ns();
    if (now - p->blocked_since_ns < SHMD_LONG_WAIT_NS || !shmd_client_over(p->client, now))
        return SHMD_BACK_PRESSURED;
    return shmd_client_over_fail(p->client, p->stream);
}

int shmd_producer_room(shmd_producer *p, uint64_t arena_need)
{
    if (p->claim_open)
        return shmd_fail(SHMD_E_CLAIM, "stream %s: a claim is open; commit or abort it first", p->stream);
    if (p->hot == NULL)
        return shmd_producer_forked(p);
    if (shmd_load_acquire(&p->hot->state) != p->open_word)
        return shmd_producer_ended(p);
    shmd_store_release(&p->data->head, p->seq);
    shmd_fence_seq_cst(); /* J1: head before mask here, mask before head in shmd_epoch_join */
    SHMD_FAILPOINT("room.announced");
    uint64_t mask = shmd_load_acquire(&p->hot->gate_mask);
    if (p->min_consumers > (uint32_t)__builtin_popcountll(mask)) {
        blocked_begin(p, NO_CONSUMER_YET, p->seq);
        return no_room(p);
    }
    p->min_consumers = 0;
    uint32_t gate;
    uint64_t least = slowest(p, &mask, &gate);
    if (p->keeps)
        least = unread(p, mask, least, &gate);
    p->limit = least + p->bound;
    if (p->arena_bytes != 0)
        free_spans(p, least);
    if (p->seq >= p->limit || p->arena_next + arena_need > p->arena_limit) {
        blocked_begin(p, gate, least);
        p->limit = p->seq; /* whatever is published next, however small, looks here again and ends the wait */
        return no_room(p);
    }
    shmd_producer_unblocked(p);
    return SHMD_OK;
}

static uint64_t arena_need(const shmd_producer *p, uint64_t length)
{
    return length > p->inline_max ? shmd_round_up(length, SHMD_ARENA_ALIGN) : 0;
}

int shmd_producer_check_length(const shmd_producer *p, uint64_t length)
{
    if (length <= p->max_message)
        return SHMD_OK;
    return shmd_is_forked(p->fork_generation) ? shmd_producer_forked(p) : shmd_fail(SHMD_E_TOO_LARGE, "stream %s: message of %llu bytes, its largest is %llu", p->stream, (unsigned long long)length,
                     (unsigned long long)p->max_message);
}

/* An advance that went without a fence (C3) may have missed what is announced here. Its gate is
 * seen after the first sleep. */
enum { FIRST_SLICE_NS = 2000000 };

/* It stands until it is answered, another gate holds this producer back, or there is room. */
static void announce_wait(shmd_producer *p, uint32_t gate, uint32_t seen)
{
    uint32_t who = gate <= p->gate_count ? gate : 0;
    p->room_gate = gate;
    p->room_seen = seen;
    p->room_slice_ns = FIRST_SLICE_NS;
    shmd_store32_seq_cst(&p->data->room_waiting, ++p->room_ticket << 8 | who);
}

/* Whether the consumer that holds this producer back reads what was there before it came: that moves
 * its cursor, which a producer that keeps what is unread waits for, and looks for no sleeper. */
static int is_catching_up(const shmd_producer *p, uint32_t gate)
{
    if (!p->keeps || gate == 0 || gate > p->gate_count)
        return 0;
    const shmd_gate_t *of = shmd_gates_gate(p->gates, gate - 1);
    return shmd_load_relaxed(&of->cursor) < shmd_load_relaxed(&of->position);
}

/* One sleep until there may be room: on the word of the gate that holds this producer back; without
 * a consumer on the word of the driver, which admits one. Evictions, seals (E2), a close (H2) and `other`
 * (H3; NULL: none) end it, too. */
static int sleep_for_room(shmd_producer *p, uint64_t need, uint64_t left_ns, const shmd_word_t *other)
{
    const uint32_t *change_word = &p->client->authority->change_word;
    const uint32_t *word = &p->client->authority->event_word; /* E1 */
    uint32_t gate = p->blocked_gate;
    if (gate != 0 && gate <= p->gate_count)
        word = &shmd_gates_gate(p->gates, gate - 1)->room_word;
    shmd_word_t words[] = {{.word = word, .seen = shmd_load32_acquire(word)},
                           {.word = change_word, .seen = shmd_load32_acquire(change_word)},
                           {.word = &p->closing, .seen = SHMD_HANDLE_OPEN},
                           other == NULL ? (shmd_word_t){.word = NULL} : *other};
    uint32_t count = other == NULL ? 3 : 4;
    if (gate == 0 || p->room_gate != gate || p->room_seen != words[0].seen)
        announce_wait(p, gate, words[0].seen);
    shmd_fence_seq_cst(); /* W2: announce, look again; a consumer moves its gate, looks for us (C3) */
    SHMD_FAILPOINT("room.waiting");
    int rc = shmd_producer_room(p, need);
    if (rc != SHMD_BACK_PRESSURED || p->blocked_gate != gate) /* of another gate: on its word */
        return rc;
    uint64_t slice_ns = p->room_slice_ns;
    rc = shmd_futex_wait_any(words, count, shmd_min(left_ns, slice_ns), FIRST_SLICE_NS);
    if (rc == SHMD_E_TIMEOUT && slice_ns <= left_ns && !is_catching_up(p, gate))
        p->room_slice_ns = shmd_longer(slice_ns);
    return rc == SHMD_E_INTERRUPTED ? rc : shmd_producer_room(p, need);
}

static int wait_room(shmd_producer *p, uint64_t need, uint64_t timeout_ns, const shmd_word_t *other)
{
    enum { SPINS = 512 };
    int rc = shmd_producer_room(p, need);
    if (rc != SHMD_BACK_PRESSURED || timeout_ns == 0)
        return rc;
    uint64_t deadline_ns = shmd_deadline(timeout_ns);
    for (int i = p->room_gate == 0 ? 0 : SPINS; i < SPINS && rc == SHMD_BACK_PRESSURED; i++) {
        for (int k = 0; k < 8; k++)
            shmd_pause();
        if (i % 16 == 0)
            rc = shmd_producer_room(p, need);
    }
    while (rc == SHMD_BACK_PRESSURED) {
        uint64_t now = shmd_now_ns();
        uint64_t limit_ns = shmd_client_waits(p->client, now, SHMD_LONG_WAIT_NS);
        if (shmd_load32_relaxed(&p->closing))
            return shmd_fail(SHMD_E_CLOSED, "stream %s: producer was closed by another thread",
                             p->stream);
        if (now >= deadline_ns || (other != NULL && shmd_words_changed(other, 1)))
            return rc;
        rc = sleep_for_room(p, need, shmd_min(limit_ns, deadline_ns - now), other);
    }
    return rc;
}

int shmd_producer_wait_room_or(shmd_producer *p, uint32_t length, uint64_t timeout_ns, const shmd_word_t *other)
{
    int rc = shmd_producer_check_length(p, length);
    return rc ? rc : wait_room(p, arena_need(p, length), timeout_ns, other);
}

int shmd_producer_wait_room(shmd_producer *p, uint32_t length, uint64_t timeout_ns)
{
    return shmd_producer_wait_room_or(p, length, timeout_ns, NULL);
}

/* ---- waking consumers ------------------------------------------------------------------ */

void shmd_producer_wake(shmd_producer *p)
{
    /* W1: commit and head before this, the sleeper's flag after; it stores its flag, fences, then looks at the slot again. */
    shmd_fence_seq_cst();
    int any = 0;
    for (uint64_t mask = shmd_load_relaxed(&p->hot->sleep_mask); mask != 0; mask &= mask - 1) {
        uint32_t index = (uint32_t)__builtin_ctzll(mask);
        /* An older word: that sleeper was woken already, or the kernel's compare will not let it sleep. */
        if (index < p->gate_count && shmd_load32_relaxed(&shmd_gates_gate(p->gates, index)->sleeping) == (p->wake_word << 1 | 1))
            any = 1;
    }
    if (!any)
        return;
    shmd_store32_seq_cst(&p->data->wake_word, ++p->wake_word);
    SHMD_FAILPOINT("wake.bumped");
    shmd_store_relaxed(&p->data->wakes, shmd_load_relaxed(&p->data->wakes) + 1);
    shmd_futex_wake(&p->data->wake_word);
}

/* ---- publishing ------------------------------------------------------------------------ */

int shmd_producer_ended(shmd_producer *p)
{
    if (shmd_mapping_is_damaged(p->mapping)) {
        p->end_reason = SHMD_REASON_TRUNCATED;
        return shmd_mapping_refuse(p->mapping, p->stream);
    }
    const shmd_epoch_record_t *record = (const shmd_epoch_record_t *)(const void *)p->hot; /* hot is its first field */
    uint32_t reason = 0;
    uint64_t sealed_seq;
    int is_told = shmd_epoch_end(record, p->epoch, &sealed_seq, &reason);
    if (p->ended_seal == UINT64_MAX && is_told)
        p->ended_seal = sealed_seq;
    if (p->end_reason == 0)
        (void)shmd_lease_live(p->client, p->lease_index, p->lease_id, &p->end_reason);
    if (p->end_reason == 0 && is_told) /* a driver that stops seals before it ends the leases: the epoch's record says why */
        p->end_reason = reason;
    if (p->end_reason == SHMD_REASON_TRUNCATED && p->ended_seal == UINT64_MAX)
        return shmd_mapping_refuse(p->mapping, p->stream);
    if (p->ended_seal == UINT64_MAX)
        return shmd_fail(SHMD_E_REVOKED, "stream %s: producer lease %llu has ended; its epoch %u is being sealed", p->stream,
                         (unsigned long long)p->lease_id, p->epoch);
    return shmd_fail(SHMD_E_REVOKED, "stream %s: producer lease %llu has ended; epoch %u is sealed at seq %llu, %llu were published", p->stream,
                     (unsigned long long)p->lease_id, p->epoch, (unsigned long long)p->ended_seal, (unsigned long long)p->seq);
}

/* Takes `need` bytes of the arena at the private allocator's place and tells ungated readers first. */
static void *arena_take(shmd_producer *p, uint64_t need)
{
    uint64_t intent = p->arena_next + need;
    if (intent > p->arena_intent) {
        p->arena_intent = intent;
        shmd_store_relaxed(&p->data->arena_intent, intent);
    }
    shmd_fence_release(); /* U2: intent before any byte of the payload */
    SHMD_FAILPOINT("arena.intent");
    return p->arena + p->arena_offset;
}

static void arena_commit(shmd_producer *p, shmd_slot_t *slot, uint64_t need)
{
    shmd_arena_ref_t ref = {.position = p->arena_next, .bytes = need};
    shmd_copy_to_shared(shmd_slot_payload(slot), &ref, sizeof ref);
    SHMD_FAILPOINT("arena.reference");
    p->arena_next += need;
    p->arena_offset += need;
    if (p->arena_offset >= p->arena_bytes)
        p->arena_offset -= p->arena_bytes;
    p->spans[p->span_head++ & p->mask] = (shmd_arena_span_t){.seq = p->seq, .end = p->arena_next};
}

static void finish(shmd_producer *p, shmd_slot_t *slot, uint32_t length, uint16_t type, uint16_t flags)
{
    shmd_slot_commit(slot, p->seq, length, type, flags, p->stamp ? shmd_now_ns() : 0);
    p->seq++;
    p->bytes += length;
    shmd_producer_announce(p);
}

int shmd_claim(shmd_producer *p, uint32_t length, void **data)
{
    int rc = shmd_producer_check_length(p, length);
    if (rc != SHMD_OK)
        return rc;
    uint64_t need = arena_need(p, length);
    if (p->seq >= p->limit || p->arena_next + need > p->arena_limit) {
        rc = shmd_producer_room(p, need);
        if (rc != SHMD_OK)
            return rc;
    }
    if (shmd_load_relaxed(&p->hot->state) != p->open_word)
        return shmd_producer_ended(p);
    shmd_slot_t *slot = shmd_producer_slot(p, p->seq);
    shmd_slot_open(slot, p->seq);
    p->claim_data = need != 0 ? arena_take(p, need) : shmd_slot_payload(slot);
    p->claim_arena_bytes = need;
    p->claim_length = length;
    p->claim_open = 1;
    p->claim_limit = p->limit;
    p->limit = 0; /* publish takes its slow turn and is told so */
    SHMD_FAILPOINT("claim.open");
    *data = p->claim_data;
    return SHMD_OK;
}

static int no_claim(const shmd_producer *p)
{
    return shmd_is_forked(p->fork_generation) ? shmd_producer_forked(p) : shmd_fail(SHMD_E_CLAIM, "stream %s: no claim is open", p->stream);
}

int shmd_commit_flags(shmd_producer *p, uint32_t length, uint16_t type, uint16_t flags)
{
    if (!p->claim_open)
        return no_claim(p);
    if (length > p->claim_length)
        return shmd_fail(SHMD_E_TOO_LARGE, "stream %s: commit of %u bytes into a claim of %u", p->stream, length, p->claim_length);
    p->claim_open = 0;
    p->limit = p->claim_limit;
    if (shmd_load_acquire(&p->hot->state) != p->open_word)
        return shmd_producer_ended(p);
    shmd_slot_t *slot = shmd_producer_slot(p, p->seq);
    if (p->claim_arena_bytes != 0) {
        arena_commit(p, slot, p->claim_arena_bytes);
        flags |= SHMD_FLAG_ARENA;
    }
    finish(p, slot, length, type, flags);
    return SHMD_OK;
}

int shmd_commit(shmd_producer *p, uint32_t length, uint16_t type) { return shmd_commit_flags(p, length, type, 0); }

int shmd_abort(shmd_producer *p)
{
    if (!p->claim_open)
        return no_claim(p);
    p->claim_open = 0;
    p->limit = p->claim_limit; /* only the private allocator forgets; the intent never decreases */
    shmd_store_relaxed(&p->data->aborted_claims, shmd_load_relaxed(&p->data->aborted_claims) + 1);
    SHMD_FAILPOINT("claim.aborted");
    return SHMD_OK;
}

int shmd_publish_large(shmd_producer *p, const void *data, uint32_t length, uint16_t type, uint16_t flags)
{
    void *room;
    int rc = shmd_claim(p, length, &room);
    if (rc != SHMD_OK)
        return rc;
    shmd_copy_to_shared(room, data, length);
    return shmd_commit_flags(p, length, type, flags);
}

int shmd_publish(shmd_producer *p, const void *data, uint32_t length, uint16_t type) { return shmd_publish_inline(p, data, length, type); }

int shmd_publish_wait(shmd_producer *p, const void *data, uint32_t length, uint16_t type, uint64_t timeout_ns)
{
    int rc = shmd_publish_inline(p, data, length, type);
    if (rc != SHMD_BACK_PRESSURED || timeout_ns == 0)
        return rc;
    rc = wait_room(p, arena_need(p, length), timeout_ns, NULL);
    return rc ? rc : shmd_publish_inline(p, data, length, type);
}

/* A batch knows what it will write: it asks for all lines of a slot. */
enum { BATCH_AHEAD_LINES = 8 };

/* Writes n records from seq on that have room and whose slots lie in a row. What the loop needs stands in locals: each slot's
 * fence would have the compiler load the handle's fields anew. */
static void write_row(const shmd_producer *p, uint64_t seq, const unsigned char *from, uint32_t record_bytes, uint64_t stride, uint64_t n, uint64_t stamp)
{
    uint64_t slot_bytes = p->slot_bytes;
    uint64_t ahead = p->ahead;
    uint64_t lines = ahead * slot_bytes, lines_end = lines + shmd_min(slot_bytes, BATCH_AHEAD_LINES * SHMD_CACHE_LINE_BYTES);
    uint64_t fetch_until = p->limit > ahead ? p->limit - ahead : 0;
    unsigned char *place = (unsigned char *)shmd_producer_slot(p, seq);
    for (uint64_t end = seq + n; seq != end; seq++, from += stride, place += slot_bytes) {
        shmd_slot_t *slot = (shmd_slot_t *)(void *)place;
        if (seq < fetch_until) {
            uint64_t line = lines;
            do
                shmd_prefetch_write(place + line); /* past the ring's end its second mapping follows */
            while ((line += SHMD_CACHE_LINE_BYTES) < lines_end);
        }
        shmd_slot_open(slot, seq);
        shmd_copy_to_shared(shmd_slot_payload(slot), from, record_bytes);
        shmd_slot_commit(slot, seq, record_bytes, 0, 0, stamp);
    }
}

/* Writes n records that have room; the head and the wake are the caller's. */
static void write_records(shmd_producer *p, const unsigned char *from, uint32_t record_bytes, uint64_t stride, uint64_t n)
{
    uint64_t stamp = p->stamp ? shmd_now_ns() : 0;
    uint64_t row = shmd_min(n, p->mask + 1 - (p->seq & p->mask));
    write_row(p, p->seq, from, record_bytes, stride, row, stamp);
    write_row(p, p->seq + row, from + row * stride, record_bytes, stride, n - row, stamp);
    p->seq += n;
    p->bytes += n * record_bytes;
}

static int too_large_a_record(const shmd_producer *p, uint32_t record_bytes)
{
    return shmd_is_forked(p->fork_generation) ? shmd_producer_forked(p)
               : shmd_fail(SHMD_E_TOO_LARGE, "stream %s: record of %u bytes, its slots carry %u", p->stream, record_bytes, p->inline_max);
}

int64_t shmd_publish_strided(shmd_producer *p, const void *records, uint32_t record_bytes, uint64_t stride, uint64_t n, uint64_t timeout_ns)
{
    enum { CHUNK = 1024 };
    const unsigned char *from = records;
    uint64_t done = 0;
    uint64_t deadline_ns = timeout_ns == 0 ? 0 : shmd_deadline(timeout_ns);
    int rc = record_bytes <= p->inline_max ? SHMD_OK : too_large_a_record(p, record_bytes);
    while (done < n && rc == SHMD_OK) {
        if (p->seq >= p->limit) {
            rc = shmd_producer_room(p, 0);
            uint64_t now = rc == SHMD_BACK_PRESSURED && timeout_ns != 0 ? shmd_now_ns() : 0;
            if (rc == SHMD_BACK_PRESSURED && now < deadline_ns)
                rc = wait_room(p, 0, deadline_ns - now, NULL);
            if (rc != SHMD_OK)
                break;
        }
        if (shmd_load_relaxed(&p->hot->state) != p->open_word) {
            rc = shmd_producer_ended(p);
            break;
        }
        uint64_t some = shmd_min(shmd_min(n - done, p->limit - p->seq), CHUNK);
        write_records(p, from, record_bytes, stride, some);
        shmd_producer_announce(p);
        done += some;
        from += some * stride;
    }
    return done != 0 || rc == SHMD_OK ? (int64_t)done : rc;
}

int64_t shmd_publish_records(shmd_producer *p, const void *records, uint32_t record_bytes, uint64_t n, uint64_t timeout_ns)
{
    return shmd_publish_strided(p, records, record_bytes, record_bytes, n, timeout_ns);
}

void shmd_producer_info(const shmd_producer *p, shmd_producer_info_t *out)
{
    memset(out, 0, sizeof *out);
    out->lease_id = p->lease_id;
    out->seq = p->seq;
    out->max_message = p->max_message;
    out->arena_bytes = p->arena_bytes;
    out->sealed_seq = p->ended_seal;
    out->slots = (uint32_t)(p->mask + 1);
    out->slot_bytes = p->slot_bytes;
    out->inline_max = p->inline_max;
    out->epoch = p->epoch;
    out->stream_id = p->stream_id;
    out->stream_index = p->stream_index;
    out->lease_index = p->lease_index;
    uint32_t *lookers = (uint32_t *)(uintptr_t)&p->lookers;
    if (shmd_look_begin(lookers, &p->closing) && p->client != NULL && p->hot != NULL) {
        out->consumers = (uint32_t)__builtin_popcountll(shmd_load_acquire(&p->hot->gate_mask));
        out->blocked_position = shmd_load_relaxed(&p->data->blocked_position);
    }
    shmd_look_end(lookers);
    out->blocked_gate = p->blocked_gate;
    out->end_reason = p->end_reason;
    out->blocked_since_ns = p->blocked_since_ns;
    out->blocked_total_ns = p->blocked_total_ns;
}
