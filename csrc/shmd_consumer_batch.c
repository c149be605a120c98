/* shmd_consumer_batch.c: many messages at a time, and how far a batch goes. */
#include "shmd_internal.h"

uint64_t shmd_consumer_batch(shmd_consumer *c, uint64_t limit)
{
    limit = shmd_min(limit, c->stride == 1 ? c->mask + 1 : c->mask / c->stride + 1);
    if (c->look_until != UINT64_MAX)
        return shmd_min(limit, shmd_shard_count(c, c->look_until));
    if (c->head_seen <= c->position)
        c->head_seen = shmd_load_acquire(&c->data->head); /* P3 */
    return c->head_seen <= c->position ? limit : shmd_min(limit, shmd_shard_count(c, c->head_seen));
}

/* Fills in messages 1 to most - 1 behind the polled one, as far as they are there. How many there are, with it. */
static uint64_t take_more(const shmd_consumer *c, shmd_message *out, uint64_t most)
{
    uint64_t mask = c->mask, stride = c->stride, seq = c->position + stride, step = c->slot_bytes * stride, inline_max = c->inline_max;
    const unsigned char *place = (const unsigned char *)shmd_consumer_slot(c, seq);
    uint64_t n = 1;
    for (; n < most; n++, seq += stride, place += step) {
        if ((seq & mask) < stride)
            place = (const unsigned char *)shmd_consumer_slot(c, seq);
        const shmd_slot_t *slot = (const shmd_slot_t *)(const void *)place;
        if (shmd_load_acquire(&slot->commit) != ((seq << 1) | 1)) /* P2 */
            break;
        if (__builtin_expect(!shmd_slot_describe(slot, seq, inline_max, &out[n]), 0) && shmd_consumer_resolve(c, &out[n]) != SHMD_OK)
            break;
    }
    return n;
}

int64_t shmd_poll_many(shmd_consumer *c, shmd_message *out, uint64_t limit)
{
    if (limit == 0)
        return 0;
    int rc = shmd_poll_inline(c, out);
    if (rc <= 0 || !shmd_consumer_is_protected(c))
        return rc;
    uint64_t n = take_more(c, out, shmd_consumer_batch(c, limit));
    if (!shmd_consumer_unchanged(c)) { /* C1, once a poll */
        c->polled = 0;
        return shmd_poll_slow(c, out);
    }
    if (c->stamped)
        shmd_consumer_note_run(c, n);
    c->polled = n;
    return (int64_t)n;
}
