/* shmd_slot_ring.c: the reader's half of the slot ring that does not depend on a gate. The writer's half and the gated
 * reader are inline in shmdriver.h. Layout of a slot: shmd_slot_t, then the payload or a shmd_arena_ref_t. */
#include "shmd_internal.h"

int shmd_arena_resolve(const unsigned char *arena, uint64_t arena_bytes, const void *payload, uint32_t length, const void **data)
{
    shmd_arena_ref_t ref;
    shmd_copy_from_shared(&ref, payload, sizeof ref);
    if (arena == NULL || ref.position % SHMD_ARENA_ALIGN != 0 || ref.bytes > arena_bytes || length > ref.bytes)
        return shmd_fail(SHMD_E_CORRUPT, "arena reference to %llu bytes at %llu for a message of %u bytes does not fit an arena of %llu bytes",
                         (unsigned long long)ref.bytes, (unsigned long long)ref.position, length, (unsigned long long)arena_bytes);
    *data = arena + ref.position % arena_bytes; /* mapped twice in a row: any length up to arena_bytes is contiguous */
    return SHMD_OK;
}

/* Copies the payload of an arena message whose reference was verified. */
static int copy_arena(const shmd_ring_view_t *ring, const shmd_slot_t *slot, uint64_t commit, const shmd_arena_ref_t *ref, void *out,
                      const shmd_message *message)
{
    if (ring->arena == NULL || ref->position % SHMD_ARENA_ALIGN != 0 || ref->bytes > ring->arena_bytes || message->length > ref->bytes)
        return SHMD_E_CORRUPT;
    shmd_copy_from_shared(out, ring->arena + ref->position % ring->arena_bytes, message->length);
    shmd_fence_acquire(); /* U2: payload loads before both second looks; pairs with the writer's release fence behind its intent */
    if (shmd_load_relaxed(ring->arena_intent) > ref->position + ring->arena_bytes || shmd_load_relaxed(&slot->commit) != commit)
        return SHMD_E_OVERRUN;
    return 1;
}

int shmd_slot_copy(const shmd_ring_view_t *ring, uint64_t seq, void *out, uint64_t out_bytes, shmd_message *message)
{
    const shmd_slot_t *slot = (const shmd_slot_t *)(const void *)(ring->slots + (seq & ring->mask) * ring->slot_bytes);
    uint64_t expected = (seq << 1) | 1;
    uint64_t commit = shmd_load_acquire(&slot->commit); /* P2 */
    if (commit != expected)
        return commit < expected ? 0 : SHMD_E_OVERRUN;
    shmd_arena_ref_t ref;
    message->seq = seq;
    message->length = shmd_load32_relaxed(&slot->length);
    message->type = shmd_load16_relaxed(&slot->type);
    message->flags = shmd_load16_relaxed(&slot->flags);
    message->timestamp_ns = shmd_load_relaxed(&slot->timestamp_ns);
    message->data = out;
    int in_arena = (message->flags & SHMD_FLAG_ARENA) != 0;
    int fits = message->length <= out_bytes;
    const unsigned char *payload = (const unsigned char *)slot + SHMD_SLOT_HEADER_BYTES;
    if (in_arena)
        shmd_copy_from_shared(&ref, payload, sizeof ref);
    else if (fits && message->length <= ring->inline_max)
        shmd_copy_from_shared(out, payload, message->length);
    shmd_fence_acquire(); /* U1: header, reference and inline payload before the second look; pairs with P1 */
    if (shmd_load_relaxed(&slot->commit) != commit)
        return SHMD_E_OVERRUN;
    if (message->length > (in_arena ? shmd_max(ring->arena_bytes / 2, ring->inline_max) : ring->inline_max))
        return SHMD_E_CORRUPT; /* no buffer would be large enough: passed over, not asked for again */
    if (!fits)
        return SHMD_E_TOO_LARGE;
    if (in_arena)
        return copy_arena(ring, slot, commit, &ref, out, message);
    return 1;
}
