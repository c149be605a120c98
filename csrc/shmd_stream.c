/* shmd_stream.c: epochs, from both sides: the driver wires, unwires and seals; clients look them up. Mapping them is
 * shmd_mapping.c's. */
#include "shmd_internal.h"

/* ---- the driver ------------------------------------------------------------------------ */

static void set_bit(uint64_t *mask, uint32_t bit, int on)
{
    uint64_t value = shmd_load_relaxed(mask); /* one writer: the driver */
    uint64_t with = on ? value | (uint64_t)1 << bit : value & ~((uint64_t)1 << bit);
    shmd_store_seq_cst(mask, with);
}

/* Where a joiner is to stand: at the head, or where the slowest of its peers stands, which are clients and can claim anything. */
static uint64_t place_of_joiner(const shmd_data_t *data, shmd_gates_t *gates, const shmd_geometry_t *geometry, uint64_t peers)
{
    uint64_t head = shmd_load_seq_cst(&data->head);
    uint64_t oldest = head > geometry->slots ? head - geometry->slots : 0;
    uint64_t place = head;
    for (; peers != 0; peers &= peers - 1)
        place = shmd_min(place, shmd_gate_position(gates, (uint32_t)__builtin_ctzll(peers)));
    return shmd_max(place, oldest);
}

uint64_t shmd_epoch_join(shmd_epoch_hot_t *hot, const shmd_data_t *data, shmd_gates_t *gates, const shmd_geometry_t *geometry,
                         uint32_t gate_index, int reliable, int may_sleep, uint64_t lease_id, int oldest, uint64_t peers, uint64_t *cursor)
{
    shmd_gate_t *gate = shmd_gates_gate(gates, gate_index);
    shmd_store_relaxed(&gate->left, 0);
    shmd_store32_relaxed(&gate->sleeping, 0);
    shmd_store_relaxed(&gate->consumed, 0);
    shmd_store_relaxed(&gate->lost, 0);
    shmd_store_relaxed(&gate->skipped, 0);
    shmd_store_relaxed(&gate->last_read_ns, 0);
    for (uint32_t i = 0; i < SHMD_LATENCY_BUCKETS; i++)
        shmd_store32_relaxed(&gate->latency[i], 0);
    shmd_store_release(&gate->position, place_of_joiner(data, gates, geometry, peers));
    shmd_store_release(&gate->lease_id, lease_id);
    SHMD_FAILPOINT("join.gate");
    if (reliable)
        set_bit(&hot->gate_mask, gate_index, 1);
    SHMD_FAILPOINT("join.mask");
    shmd_fence_seq_cst();
    /* J1: mask before head here, head before mask in shmd_producer_room, a seq_cst fence between either pair: one of the
     * two sees the other, so the producer cannot pass the joiner by a ring. J2: mask before the peers' gates here, gates before
     * mask there: a producer that has not seen the bit has seen no gate of a peer further on than they are found here. */
    uint64_t joined = place_of_joiner(data, gates, geometry, peers);
    shmd_store_release(&gate->position, joined);
    uint64_t head = shmd_load_acquire(&data->head); /* P3 */
    uint64_t start = oldest ? shmd_min(joined, head > geometry->slots ? head - geometry->slots : 0) : joined;
    shmd_store_relaxed(&gate->cursor, start);
    SHMD_FAILPOINT("join.position");
    if (may_sleep)
        set_bit(&hot->sleep_mask, gate_index, 1);
    set_bit(&hot->wired_mask, gate_index, 1);
    SHMD_FAILPOINT("join.wired");
    *cursor = start;
    return joined;
}

void shmd_epoch_leave(shmd_epoch_hot_t *hot, uint32_t gate)
{
    set_bit(&hot->gate_mask, gate, 0);
    SHMD_FAILPOINT("leave.gate");
    set_bit(&hot->sleep_mask, gate, 0);
    SHMD_FAILPOINT("leave.sleep");
    set_bit(&hot->wired_mask, gate, 0);
}

static uint64_t scan(const unsigned char *ring, const shmd_geometry_t *geometry, uint64_t seq)
{
    for (uint32_t n = 0; n < geometry->slots; n++, seq++) {
        const shmd_slot_t *slot = (const shmd_slot_t *)(const void *)(ring + (seq & (geometry->slots - 1)) * geometry->slot_bytes);
        if (shmd_load_acquire(&slot->commit) != ((seq << 1) | 1)) /* P2 */
            break;
    }
    return seq;
}

uint64_t shmd_epoch_seal(shmd_epoch_hot_t *hot, const shmd_data_t *data, const void *ring, const shmd_geometry_t *geometry, int clean, int proved)
{
    uint64_t word = (uint64_t)geometry->epoch << 8;
    if (shmd_load_acquire(&hot->state) == (word | SHMD_EPOCH_SEALED))
        return shmd_load_relaxed(&hot->sealed_seq);
    if (!clean && !proved) {
        shmd_store_seq_cst(&hot->state, word | SHMD_EPOCH_SEALING);
        shmd_fence_seq_cst(); /* X1: readers wait from here on; what they handed out before is below the scan's end */
        SHMD_FAILPOINT("seal.sealing");
    }
    uint64_t sealed = shmd_load_acquire(&data->head); /* P3 */
    if (!clean)
        sealed = scan(ring, geometry, sealed);
    shmd_store_release(&hot->sealed_seq, sealed);
    SHMD_FAILPOINT("seal.number");
    shmd_store_seq_cst(&hot->state, word | SHMD_EPOCH_SEALED); /* X2: publishes sealed_seq */
    SHMD_FAILPOINT("seal.sealed");
    return sealed;
}

uint64_t shmd_data_head(const shmd_data_t *data) { return shmd_load_acquire(&data->head); }
uint64_t shmd_gate_position(const shmd_gates_t *gates, uint32_t gate) { return shmd_load_acquire(&shmd_gates_gate(gates, gate)->position); }
uint64_t shmd_gate_left(const shmd_gates_t *gates, uint32_t gate) { return shmd_load_acquire(&shmd_gates_gate(gates, gate)->left); }

/* ---- clients --------------------------------------------------------------------------- */

const shmd_epoch_hot_t *shmd_stream_hot(const shmd_client *client, uint32_t stream_index, uint32_t record)
{
    return &shmd_client_stream(client, stream_index)->epochs[record].hot;
}

static int is_readable(uint64_t state)
{
    uint32_t low = (uint32_t)(state & 0xff);
    return low == SHMD_EPOCH_OPEN || low == SHMD_EPOCH_SEALING || low == SHMD_EPOCH_SEALED;
}

int shmd_stream_epoch(const shmd_client *client, uint32_t stream_index, uint32_t stream_id, uint32_t epoch, shmd_epoch_record_t *out,
                      uint32_t *record)
{
    const shmd_stream_record_t *stream = shmd_client_stream(client, stream_index);
    for (uint32_t i = 0; stream != NULL && i < SHMD_EPOCH_RECORDS; i++) {
        uint64_t state = shmd_load_acquire(&stream->epochs[i].hot.state);
        if (state >> 8 == epoch && is_readable(state) && shmd_epoch_copy(out, &stream->epochs[i]) && out->epoch == epoch && out->stream_id == stream_id) {
            *record = i;
            return shmd_epoch_record_check(out);
        }
    }
    return shmd_fail(SHMD_E_LAYOUT, "epoch %u of stream %u is not in the directory any more", epoch, stream_id);
}

int shmd_stream_next_epoch(const shmd_client *client, uint32_t stream_index, uint32_t stream_id, uint32_t after, uint64_t gate_bit,
                           shmd_epoch_record_t *out, uint32_t *record)
{
    const shmd_stream_record_t *stream = shmd_client_stream(client, stream_index);
    uint64_t best = UINT64_MAX;
    for (uint32_t i = 0; stream != NULL && i < SHMD_EPOCH_RECORDS; i++) {
        uint64_t state = shmd_load_acquire(&stream->epochs[i].hot.state);
        uint64_t wired = shmd_load_acquire(&stream->epochs[i].hot.wired_mask);
        if (is_readable(state) && state >> 8 > after && (wired & gate_bit) != 0 && state >> 8 < best)
            best = state >> 8;
    }
    if (best == UINT64_MAX)
        return 0;
    return shmd_stream_epoch(client, stream_index, stream_id, (uint32_t)best, out, record) == SHMD_OK;
}

/* A name stays as long as its record is in use, also while the schema is rewritten. */
static int is_named(const shmd_stream_record_t *record, const char *prefix, size_t length)
{
    enum { TRIES = 16 };
    char name[sizeof record->name];
    for (int i = 0; i < TRIES; i++) {
        uint64_t seen = shmd_seqlock_read(&record->word);
        if ((seen & 0xff) != SHMD_RECORD_USED)
            return 0;
        shmd_copy_from_shared(name, record->name, sizeof name);
        if (shmd_seqlock_unchanged(&record->word, seen))
            return strncmp(name, prefix, length) == 0;
    }
    return 0;
}

uint64_t shmd_streams_named(const shmd_authority_t *authority, const char *prefix, uint32_t *indexes, uint64_t limit)
{
    size_t length = strlen(prefix);
    uint64_t n = 0;
    for (uint32_t i = 0; i < authority->stream_max && n < limit && length < SHMD_NAME_BYTES; i++)
        if (is_named(shmd_authority_stream(authority, i), prefix, length))
            indexes[n++] = i;
    return n;
}

int shmd_lease_live(const shmd_client *client, uint32_t lease_index, uint64_t lease_id, uint32_t *end_reason)
{
    const shmd_lease_record_t *lease = shmd_client_lease(client, lease_index);
    shmd_lease_record_t copy;
    *end_reason = SHMD_REASON_REVOKED;
    for (int tries = 0; tries < 16; tries++) {
        int is_whole = shmd_record_copy(&copy, lease, sizeof copy);
        if (shmd_load32_acquire(&client->authority_damage.damaged) != 0) { /* G3: the copy ends with a fence */
            *end_reason = SHMD_REASON_TRUNCATED;
            return 0;
        }
        if (!is_whole) {
            if ((shmd_seqlock_read(&lease->word) & 0xff) == SHMD_LEASE_FREE)
                return 0; /* it is being filled for another lease */
            continue;
        }
        uint32_t state = (uint32_t)(copy.word & 0xff);
        if (copy.lease_id != lease_id || state == SHMD_LEASE_FREE)
            return 0;
        *end_reason = copy.end_reason;
        return state == SHMD_LEASE_ATTACHED || state == SHMD_LEASE_ACTIVE || state == SHMD_LEASE_STALLED;
    }
    return 1; /* it changes as fast as we look: not a proof of an end; the next look decides */
}
