/* A producer whose consumers write anything into their gates. Gate 0 is honest.
 *
 * Property: nothing that the honest consumer has not read is overwritten, in the ring or in the arena; the producer's limits stay
 * within one ring and one arena of it; every call ends.
 * fault: 26 (libFuzzer: any gates) */
#include "fuzz.h"

enum { SLOTS = 64, SLOT_BYTES = 64, ARENA_BYTES = 8192, HONEST = 0 };

static rig_t rig;

static void read_honestly(shmd_consumer *c, uint64_t most)
{
    shmd_message m;
    for (; most != 0 && shmd_poll(c, &m) == 1; most--) {
        MUST(rig_matches(m.data, m.length, m.seq));
        (void)shmd_advance(c);
    }
}

static void publish(shmd_producer *p, uint32_t length, uint64_t how)
{
    static unsigned char payload[ARENA_BYTES];
    void *room;
    rig_fill(payload, length, p->seq);
    if (how % 3 == 0) {
        int rc = shmd_claim(p, length, &room);
        MUST(rc == SHMD_OK || rc == SHMD_BACK_PRESSURED || rc == SHMD_E_TOO_LARGE);
        if (rc == SHMD_OK) {
            memcpy(room, payload, length);
            MUST((how & 64 ? shmd_abort(p) : shmd_commit(p, length, 1)) == SHMD_OK);
        }
    } else {
        int rc = shmd_publish(p, payload, length, 1);
        MUST(rc == SHMD_OK || rc == SHMD_BACK_PRESSURED || rc == SHMD_E_TOO_LARGE);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (rig.authority == NULL)
        rig_start(&rig, SLOTS, SLOT_BYTES, ARENA_BYTES, 0);
    input_t input = {.at = data, .left = size};
    uint64_t start = input_number(&input) & (UINT64_MAX >> 3);
    rig.hot->gate_mask = rig.hot->sleep_mask = rig.hot->wired_mask = 0;
    rig.hot->state = (uint64_t)RIG_EPOCH << 8 | SHMD_EPOCH_OPEN;
    memset(rig.ring, 0, SLOTS * SLOT_BYTES);
    rig.data->head = start;
    shmd_producer *p = rig_producer(&rig);
    rig_producer_arena_at(p, (input_number(&input) & (UINT64_MAX >> 2)) & ~(uint64_t)(SHMD_ARENA_ALIGN - 1));
    shmd_consumer *c = rig_consumer(&rig, HONEST, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0, 0);
    for (int i = 0; i < 256 && input.left != 0; i++) {
        uint64_t act = input_take(&input, 1);
        if (act < 100)
            publish(p, (uint32_t)(act & 1 ? input_take(&input, 1) % 40 : input_take(&input, 2) % (ARENA_BYTES / 2 + 64)), act);
        else if (act < 150)
            read_honestly(c, act % 8);
        else if (act < 220) {
            shmd_gate_t *gate = shmd_gates_gate(rig.gates, 1 + (uint32_t)act % (RIG_GATES - 1));
            gate->position = act & 16 ? p->seq + input_take(&input, 1) - 128 : input_number(&input);
            gate->sleeping = (uint32_t)input_number(&input);
            gate->room_word = (uint32_t)input_number(&input);
        } else if (act < 240) /* hostile gates come and go */
            rig.hot->gate_mask = (input_take(&input, 1) << 1) | 1;
        else
            (void)shmd_producer_wait_room(p, (uint32_t)input_take(&input, 2) % ARENA_BYTES, 0);
        MUST(p->seq - c->position <= SLOTS && (p->limit < p->seq || p->limit - p->seq <= SLOTS));
        MUST(p->arena_limit - p->arena_next <= ARENA_BYTES && p->arena_next % ARENA_BYTES == p->arena_offset);
    }
    rig.hot->gate_mask = 1;
    read_honestly(c, SLOTS);
    MUST(c->position == p->seq && c->lost == 0);
    rig_consumer_free(c);
    rig_producer_free(p);
    return 0;
}
