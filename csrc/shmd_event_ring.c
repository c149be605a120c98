/* shmd_event_ring.c: the driver's news: a slot ring in the authority with one writer, read by everybody without a gate. */
#include "shmd_internal.h"

#include <stdlib.h>

struct shmd_event_writer {
    shmd_authority_t *authority;
    unsigned char *slots;
    uint64_t mask;
    uint64_t seq;
    uint32_t slot_bytes;
};

static unsigned char *slots_of(const shmd_authority_t *authority)
{
    return (unsigned char *)(uintptr_t)authority + authority->events_offset;
}

shmd_event_writer *shmd_event_writer_new(shmd_authority_t *authority)
{
    shmd_event_writer *w = calloc(1, sizeof *w);
    if (w == NULL)
        return NULL;
    w->authority = authority;
    w->slots = slots_of(authority);
    w->mask = authority->event_slots - 1;
    w->slot_bytes = authority->event_slot_bytes;
    w->seq = shmd_load_acquire(&authority->event_head);
    /* A driver that died between commit and head left committed events past the head: they were seen, so they count. */
    for (uint64_t n = 0; n <= w->mask; n++) {
        const shmd_slot_t *slot = (const shmd_slot_t *)(void *)(w->slots + (w->seq & w->mask) * w->slot_bytes);
        if (shmd_load_acquire(&slot->commit) != ((w->seq << 1) | 1))
            break;
        w->seq++;
    }
    shmd_store_release(&authority->event_head, w->seq);
    return w;
}

void shmd_event_writer_free(shmd_event_writer *writer) { free(writer); }

uint64_t shmd_event_publish(shmd_event_writer *w, const shmd_event_t *event)
{
    uint64_t seq = w->seq++;
    shmd_slot_t *slot = (shmd_slot_t *)(void *)(w->slots + (seq & w->mask) * w->slot_bytes);
    shmd_slot_open(slot, seq);
    shmd_copy_to_shared(shmd_slot_payload(slot), event, sizeof *event);
    shmd_slot_commit(slot, seq, sizeof *event, (uint16_t)event->kind, 0, event->time_ns);
    shmd_store_release(&w->authority->event_head, seq + 1);
    SHMD_FAILPOINT("event.head");
    shmd_counter_add(w->authority, SHMD_COUNTER_EVENTS, 1);
    /* E1: one writer, so load and store suffice; the sleeper compares the word in the kernel. */
    shmd_store32_seq_cst(&w->authority->event_word, shmd_load32_relaxed(&w->authority->event_word) + 1);
    SHMD_FAILPOINT("event.word");
    shmd_futex_wake(&w->authority->event_word);
    return seq;
}

void shmd_authority_changed(shmd_authority_t *authority)
{
    /* E2: one writer, as E1. A sleeper that loads the new word sees what has changed before. */
    shmd_store32_seq_cst(&authority->change_word, shmd_load32_relaxed(&authority->change_word) + 1);
    SHMD_FAILPOINT("change.word");
    shmd_futex_wake(&authority->change_word);
}

int shmd_event_take(const shmd_authority_t *authority, const shmd_authority_t *tables, uint64_t *cursor, shmd_event_t *out, uint64_t *lost)
{
    shmd_ring_view_t ring = {.slots = (const unsigned char *)authority + tables->events_offset, .mask = tables->event_slots - 1,
                             .slot_bytes = tables->event_slot_bytes, .inline_max = tables->event_slot_bytes - SHMD_SLOT_HEADER_BYTES};
    shmd_message message;
    for (int tries = 0; tries < 64; tries++) {
        int rc = shmd_slot_copy(&ring, *cursor, out, sizeof *out, &message);
        if (rc == 0)
            return 0;
        if (rc == 1) {
            (*cursor)++;
            out->stream[sizeof out->stream - 1] = 0;
            out->text[sizeof out->text - 1] = 0;
            return 1;
        }
        uint64_t head = shmd_load_acquire(&authority->event_head);
        uint64_t oldest = head > tables->event_slots / 2 ? head - tables->event_slots / 2 : 0;
        uint64_t next = shmd_max(*cursor + 1, oldest); /* lapped: half a ring of slack before the next lap */
        if (lost != NULL)
            *lost += next - *cursor;
        *cursor = next;
    }
    return 0;
}

int shmd_event_poll(const shmd_authority_t *authority, uint64_t *cursor, shmd_event_t *out, uint64_t *lost)
{
    return shmd_event_take(authority, authority, cursor, out, lost);
}
