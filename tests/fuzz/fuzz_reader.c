/* Consumers of a producer that writes anything into its data segment, and the driver that seals it.
 *
 * Property: every poll ends; what is handed out lies within the ring, the arena or the consumer's own buffer; the position only
 * grows, and by what was read, lost or skipped; a seal is at most one ring past the head that it was fixed at.
 * fault: 23 (libFuzzer: any bytes from a producer) */
#include "fuzz.h"

enum { SLOTS = 64, SLOT_BYTES = 64, ARENA_BYTES = 8192 };

static rig_t rig;

static uint64_t start_of(input_t *input)
{
    uint64_t start = input_number(input) & (UINT64_MAX >> 2);
    memset(rig.ring, 0, SLOTS * SLOT_BYTES);
    rig.data->head = start;
    rig.data->arena_intent = 0;
    rig.hot->sealed_seq = 0;
    rig.hot->gate_mask = rig.hot->sleep_mask = rig.hot->wired_mask = 0;
    rig.hot->state = (uint64_t)RIG_EPOCH << 8 | SHMD_EPOCH_OPEN;
    for (uint64_t seq = start > SLOTS ? start - SLOTS : 0; seq < start; seq++) {
        shmd_slot_t *slot = (shmd_slot_t *)(void *)(rig.ring + seq % SLOTS * SLOT_BYTES);
        *slot = (shmd_slot_t){.commit = seq << 1 | 1, .length = 8};
    }
    return start;
}

static void check_message(const shmd_consumer *c, const shmd_message *m)
{
    const unsigned char *data = m->data;
    int in_ring = data >= c->slots && data + m->length <= c->slots + 2 * SLOTS * SLOT_BYTES;
    int in_arena = data >= c->arena && data + m->length <= c->arena + 2 * ARENA_BYTES;
    int in_scratch = c->scratch != NULL && data >= c->scratch && data + m->length <= c->scratch + c->scratch_bytes;
    MUST(in_ring || in_arena || in_scratch);
    (void)fuzz_touch(data, m->length);
}

/* A committed slot near the reader, with fields of any kind; or any bytes. */
static void disturb(input_t *input, const shmd_consumer *c)
{
    uint64_t how = input_take(input, 1);
    uint64_t seq = c->position + input_take(input, 1) % (2 * SLOTS);
    shmd_slot_t *slot = (shmd_slot_t *)(void *)(rig.ring + seq % SLOTS * SLOT_BYTES);
    shmd_arena_ref_t ref;
    switch (how % 6) {
    case 0:
        *slot = (shmd_slot_t){.commit = seq << 1 | 1, .length = (uint32_t)input_number(input), .flags = (uint16_t)input_take(input, 1)};
        break;
    case 1: /* a reference of any kind */
        ref = (shmd_arena_ref_t){.position = input_number(input), .bytes = input_number(input)};
        *slot = (shmd_slot_t){.commit = seq << 1 | 1, .length = (uint32_t)input_number(input), .flags = SHMD_FLAG_ARENA};
        memcpy(slot + 1, &ref, sizeof ref);
        break;
    case 2: /* one that fits */
        ref = (shmd_arena_ref_t){.position = input_take(input, 2) * SHMD_ARENA_ALIGN, .bytes = ARENA_BYTES / 2};
        *slot = (shmd_slot_t){.commit = seq << 1 | 1, .length = (uint32_t)input_take(input, 2) % (ARENA_BYTES / 2 + 1), .flags = SHMD_FLAG_ARENA};
        memcpy(slot + 1, &ref, sizeof ref);
        break;
    case 3:
        rig.data->head = c->position + input_take(input, 1);
        break;
    case 4:
        rig.data->arena_intent = input_number(input);
        rig.data->head = input_number(input);
        break;
    default:
        input_patch(input, rig.ring, SLOTS * SLOT_BYTES, 1);
    }
}

static void poll_once(shmd_consumer *c, uint64_t act)
{
    static unsigned char out[ARENA_BYTES];
    shmd_message messages[4];
    uint64_t before = c->position, accounted = c->lost + c->skipped;
    int64_t found = act % 3 == 0 ? shmd_poll(c, messages) : act % 3 == 1 ? shmd_poll_many(c, messages, 4) : shmd_copy(c, out, sizeof out, messages);
    MUST(found <= 4);
    for (int64_t i = 0; i < found; i++) {
        if (messages[i].data == out)
            MUST(messages[i].length <= sizeof out);
        else
            check_message(c, &messages[i]);
    }
    MUST(c->mapping == NULL || c->position - before == c->lost + c->skipped - accounted);
    if (found > 0 && (act & 64) != 0)
        (void)shmd_advance(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (rig.authority == NULL)
        rig_start(&rig, SLOTS, SLOT_BYTES, ARENA_BYTES, 0);
    input_t input = {.at = data, .left = size};
    uint64_t kind = input_take(&input, 1);
    (void)start_of(&input);
    shmd_consumer *c = rig_consumer(&rig, 1, (uint32_t)(kind % 3) + 1, SHMD_WAIT_SPIN, (kind & 8) != 0, (kind & 16) != 0 ? SHMD_ATTACH_FOLLOW : 0);
    for (int i = 0; i < 128 && input.left != 0; i++) {
        uint64_t act = input_take(&input, 1);
        if (act < 120) {
            disturb(&input, c);
        } else if (act < 250) {
            poll_once(c, act);
        } else if (act < 253) {
            uint64_t head = rig.data->head;
            uint64_t seal = shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 0, act & 1);
            MUST(rig.hot->sealed_seq == seal && seal - head <= SLOTS);
            break;
        } else {
            shmd_epoch_leave(rig.hot, 1); /* revoked, evicted */
            break;
        }
    }
    for (uint64_t i = 0; i < 2 * SLOTS && c->ended == 0; i++)
        poll_once(c, 64 + i % 3);
    rig_consumer_free(c);
    return 0;
}
