/* shmd_control_ring.c: requests from many clients to one driver (_mpsc).
 *
 * A position is a 64-bit number; slot = position % SHMD_CONTROL_SLOTS, lap = position / SHMD_CONTROL_SLOTS. The slot's
 * turn word says whose it is:
 *
 *     (lap, 0, FREE) --CAS, client--> (lap, who, CLAIMED) --CAS, client--> (lap, who, COMMITTED) --driver--> (lap+1, 0, FREE)
 *                                          | CAS, driver: claimer proved dead      -> (lap+1, 0, FREE)
 *                                          ` CAS, driver: silent for too long      -> (lap, who, QUARANTINED), passed over
 *                       late commit fails, the claimer CASes QUARANTINED -> RELEASED, the driver frees the slot
 *
 * The turns decide; tail is a hint that the driver repairs. The driver's cursor is private, its copy in the authority is
 * for clients (where free slots may be) and for its successor.
 */
#include "shmd_internal.h"

#include <stdlib.h>

struct shmd_control_reader {
    shmd_control_t *control;
    shmd_authority_t *authority;
    uint64_t cursor;
    uint64_t aside;             /* bit a slot: this driver, or the one before it, set it aside; only then is its turn believed */
    uint64_t claim_since_ns;    /* since when it looks at an uncommitted claim at the cursor */
    int claim_seen;
};

/* ---- clients -------------------------------------------------------------------------- */

/* Claims the first free position in [from, end). */
static int claim_between(shmd_control_t *control, uint32_t who, uint64_t from, uint64_t end, uint64_t *position)
{
    for (uint64_t at = from; at != end; at++) {
        uint64_t *turn = &shmd_control_slot(control, at)->turn;
        uint32_t lap = shmd_position_lap(at);
        /* K1: acquire, pairs with the driver's release store that freed the slot */
        if (shmd_load_relaxed(turn) == shmd_turn(lap, 0, SHMD_TURN_FREE) &&
            shmd_cas(turn, shmd_turn(lap, 0, SHMD_TURN_FREE), shmd_turn(lap, who, SHMD_TURN_CLAIMED))) {
            *position = at;
            return 1;
        }
    }
    return 0;
}

/* Claims a free position within one lap of the driver's cursor. 0: the ring is full. */
static int claim(shmd_control_t *control, const shmd_authority_t *authority, uint32_t who, uint64_t *position)
{
    uint64_t cursor = shmd_load_acquire(&authority->control_cursor);
    uint64_t end = cursor + SHMD_CONTROL_SLOTS;
    uint64_t tail = shmd_load_relaxed(&control->tail); /* a hint that anybody can write: where to look first, within one lap */
    uint64_t first = tail - cursor < SHMD_CONTROL_SLOTS ? tail : cursor;
    /* "Full" is never believed, the turns decide; what stands before the hint is looked at, too, or a wrong one would keep all out. */
    if (!claim_between(control, who, first, end, position) && !claim_between(control, who, cursor, first, position))
        return 0;
    SHMD_FAILPOINT("control.turn");
    if (*position + 1 - tail <= SHMD_CONTROL_SLOTS)
        (void)shmd_cas(&control->tail, tail, *position + 1);
    SHMD_FAILPOINT("control.claimed");
    return 1;
}

void shmd_control_ring(shmd_control_t *control)
{
    (void)shmd_add32(&control->doorbell, 1); /* K4: before the wake; a driver that read the old value does not fall asleep */
    shmd_futex_wake(&control->doorbell);
}

int shmd_control_send(shmd_control_t *control, const shmd_authority_t *authority, shmd_request_t *request, uint32_t who, uint64_t nonce,
                      uint64_t deadline_ns)
{
    for (;;) {
        uint64_t position;
        uint32_t seen = shmd_load32_acquire(&authority->event_word);
        if (!claim(control, authority, who, &position)) {
            if (shmd_now_ns() >= deadline_ns)
                return shmd_fail(SHMD_E_TIMEOUT, "control ring full: %d requests wait for the driver", SHMD_CONTROL_SLOTS);
            (void)shmd_futex_wait(&authority->event_word, seen, 1000000);
            continue;
        }
        shmd_control_slot_t *slot = shmd_control_slot(control, position);
        uint32_t lap = shmd_position_lap(position);
        request->position = position;
        request->checksum = shmd_request_checksum(request, who, nonce);
        shmd_copy_to_shared(&slot->request, request, sizeof *request);
        SHMD_FAILPOINT("control.written");
        /* K2: release, pairs with the driver's acquire load of the turn before it copies the request */
        if (shmd_cas(&slot->turn, shmd_turn(lap, who, SHMD_TURN_CLAIMED), shmd_turn(lap, who, SHMD_TURN_COMMITTED))) {
            SHMD_FAILPOINT("control.committed");
            shmd_control_ring(control);
            return SHMD_OK;
        }
        /* The driver passed us over. Nothing of ours will be written there again: say so, and claim anew. */
        (void)shmd_cas(&slot->turn, shmd_turn(lap, who, SHMD_TURN_QUARANTINED), shmd_turn(lap, who, SHMD_TURN_RELEASED));
    }
}

/* ---- the driver ------------------------------------------------------------------------ */

/* The next position at or past the cursor that uses this slot. */
static uint64_t next_use(const shmd_control_reader *r, uint32_t slot)
{
    uint64_t ahead = (slot + SHMD_CONTROL_SLOTS - r->cursor % SHMD_CONTROL_SLOTS) % SHMD_CONTROL_SLOTS;
    return r->cursor + ahead;
}

static uint64_t slot_bit(uint64_t position) { return (uint64_t)1 << position % SHMD_CONTROL_SLOTS; }

static int says_aside(uint64_t turn)
{
    uint32_t phase = shmd_turn_phase(turn);
    return phase == SHMD_TURN_QUARANTINED || phase == SHMD_TURN_RELEASED;
}

shmd_control_reader *shmd_control_reader_new(shmd_control_t *control, uint64_t bytes, shmd_authority_t *authority)
{
    if (bytes < shmd_control_heartbeats_offset()) {
        (void)shmd_fail(SHMD_E_LAYOUT, "control segment of %llu bytes is too short for its ring", (unsigned long long)bytes);
        return NULL;
    }
    shmd_control_reader *r = calloc(1, sizeof *r);
    if (r == NULL)
        return NULL;
    r->control = control;
    r->authority = authority;
    r->cursor = shmd_load_acquire(&authority->control_cursor);
    /* A driver that died between freeing a slot and publishing its cursor: the freed slot has the next lap. */
    while (shmd_load_acquire(&shmd_control_slot(control, r->cursor)->turn) ==
           shmd_turn(shmd_position_lap(r->cursor) + 1, 0, SHMD_TURN_FREE))
        r->cursor++;
    shmd_store_release(&authority->control_cursor, r->cursor);
    for (uint32_t slot = 0; slot < SHMD_CONTROL_SLOTS; slot++) {
        if (says_aside(shmd_load_acquire(&shmd_control_slot(control, slot)->turn)))
            r->aside |= slot_bit(slot);
    }
    uint64_t tail = shmd_load_relaxed(&control->tail);
    if (tail - r->cursor > SHMD_CONTROL_SLOTS)
        (void)shmd_cas(&control->tail, tail, r->cursor);
    return r;
}

void shmd_control_reader_free(shmd_control_reader *reader) { free(reader); }

static void step(shmd_control_reader *r)
{
    r->cursor++;
    r->claim_seen = 0;
    shmd_store_release(&r->authority->control_cursor, r->cursor); /* K3: pairs with a claimer's acquire load */
    SHMD_FAILPOINT("control.cursor");
}

void shmd_control_advance(shmd_control_reader *r)
{
    shmd_store_release(&shmd_control_slot(r->control, r->cursor)->turn,
                       shmd_turn(shmd_position_lap(r->cursor) + 1, 0, SHMD_TURN_FREE)); /* K1 */
    SHMD_FAILPOINT("control.freed");
    r->aside &= ~slot_bit(r->cursor);
    step(r);
}

/* 1: somebody claimed or committed a position behind a free one, so the free one must not hold it up. */
static int is_work_ahead(const shmd_control_reader *r)
{
    for (uint64_t at = r->cursor + 1; at < r->cursor + SHMD_CONTROL_SLOTS; at++) {
        uint64_t turn = shmd_load_relaxed(&shmd_control_slot(r->control, at)->turn);
        uint32_t phase = shmd_turn_phase(turn);
        if (shmd_turn_lap(turn) == shmd_position_lap(at) && (phase == SHMD_TURN_CLAIMED || phase == SHMD_TURN_COMMITTED))
            return 1;
    }
    return 0;
}

static int take(shmd_control_reader *r, uint32_t who, shmd_request_t *out)
{
    shmd_copy_from_shared(out, &shmd_control_slot(r->control, r->cursor)->request, sizeof *out); /* once; the copy is what is checked */
    if (out->position != r->cursor)
        return shmd_fail(SHMD_E_CORRUPT, "request says position %llu, it stands at %llu", (unsigned long long)out->position,
                         (unsigned long long)r->cursor);
    const shmd_client_record_t *client = shmd_authority_client(r->authority, who - 1);
    /* Also one that expired, or whose record is free again and not used by another yet: last words that a driver reads
     * after the death are no attack. What they may still ask for the driver decides. */
    if (client == NULL || client->client_id == 0 || client->client_id != out->client_id)
        return shmd_fail(SHMD_E_CORRUPT, "request of client %llu from claimer %u: no such client", (unsigned long long)out->client_id, who);
    if (out->checksum != shmd_request_checksum(out, who, client->nonce))
        return shmd_fail(SHMD_E_CORRUPT, "request at position %llu from claimer %u: wrong checksum", (unsigned long long)r->cursor, who);
    return 1;
}

int shmd_control_poll(shmd_control_reader *r, shmd_request_t *out, uint64_t now_ns)
{
    /* At most one lap is passed over a poll, whatever the words say and however fast somebody rewrites them. */
    for (uint32_t passed = 0; passed < SHMD_CONTROL_SLOTS; passed++) {
        uint64_t *word = &shmd_control_slot(r->control, r->cursor)->turn;
        uint64_t turn = shmd_load_acquire(word); /* K2 */
        uint32_t lap = shmd_position_lap(r->cursor);
        uint32_t phase = shmd_turn_phase(turn);
        if (says_aside(turn) && (r->aside & slot_bit(r->cursor)) != 0) {
            step(r);
        } else if (turn == shmd_turn(lap, 0, SHMD_TURN_FREE)) {
            if (!is_work_ahead(r))
                return 0;
            if (shmd_cas(word, turn, shmd_turn(lap + 1, 0, SHMD_TURN_FREE))) {
                r->aside &= ~slot_bit(r->cursor);
                step(r);
            }
        } else if (shmd_turn_lap(turn) == lap && phase == SHMD_TURN_COMMITTED) {
            return take(r, shmd_turn_who(turn), out);
        } else if (shmd_turn_lap(turn) == lap && phase == SHMD_TURN_CLAIMED && shmd_turn_who(turn) != 0) {
            if (!r->claim_seen) { /* once a position: a claimer that keeps rewriting the word gains no time */
                r->claim_seen = 1;
                r->claim_since_ns = now_ns;
            }
            return now_ns - r->claim_since_ns >= (uint64_t)SHMD_CLAIM_PATIENCE_MS * 1000000u ? SHMD_E_TIMEOUT : 0;
        } else {
            return shmd_fail(SHMD_E_CORRUPT, "turn word 0x%016llx at position %llu is not a turn of lap %u", (unsigned long long)turn,
                             (unsigned long long)r->cursor, lap);
        }
    }
    return 0;
}

uint32_t shmd_control_claimer(const shmd_control_reader *r)
{
    uint64_t turn = shmd_load_acquire(&shmd_control_slot(r->control, r->cursor)->turn);
    uint32_t phase = shmd_turn_phase(turn);
    return phase == SHMD_TURN_CLAIMED || phase == SHMD_TURN_COMMITTED ? shmd_turn_who(turn) : 0;
}

int shmd_control_skip(shmd_control_reader *r, int proved)
{
    uint64_t *word = &shmd_control_slot(r->control, r->cursor)->turn;
    uint64_t turn = shmd_load_acquire(word);
    uint32_t lap = shmd_position_lap(r->cursor);
    if (shmd_turn_phase(turn) != SHMD_TURN_CLAIMED)
        return 0;
    uint64_t next = proved ? shmd_turn(lap + 1, 0, SHMD_TURN_FREE) : shmd_turn(lap, shmd_turn_who(turn), SHMD_TURN_QUARANTINED);
    if (!shmd_cas(word, turn, next)) /* it was committed at this very moment: then it is read */
        return 0;
    SHMD_FAILPOINT("control.skipped");
    r->aside = proved ? r->aside & ~slot_bit(r->cursor) : r->aside | slot_bit(r->cursor);
    shmd_counter_add(r->authority, proved ? SHMD_COUNTER_CLAIMS_SKIPPED : SHMD_COUNTER_CLAIMS_QUARANTINED, 1);
    step(r);
    return 1;
}

uint32_t shmd_control_quarantined(const shmd_control_reader *r, uint32_t slot)
{
    uint64_t turn = shmd_load_acquire(&shmd_control_slot(r->control, slot)->turn);
    return (r->aside & slot_bit(slot)) != 0 && shmd_turn_phase(turn) == SHMD_TURN_QUARANTINED ? shmd_turn_who(turn) : 0;
}

void shmd_control_release(shmd_control_reader *r, uint32_t slot)
{
    if ((r->aside & slot_bit(slot)) == 0)
        return;
    shmd_store_release(&shmd_control_slot(r->control, slot)->turn, shmd_turn(shmd_position_lap(next_use(r, slot)), 0, SHMD_TURN_FREE)); /* K1 */
    r->aside &= ~slot_bit(slot);
}

int shmd_control_sweep(shmd_control_reader *r)
{
    for (uint64_t left = r->aside; left != 0; left &= left - 1) {
        uint32_t slot = (uint32_t)__builtin_ctzll(left);
        if (shmd_turn_phase(shmd_load_acquire(&shmd_control_slot(r->control, slot)->turn)) != SHMD_TURN_QUARANTINED)
            shmd_control_release(r, slot); /* RELEASED; or garbage, which says that nobody keeps to the protocol there */
    }
    return __builtin_popcountll(r->aside);
}

/* A request that stood in a lost page is sent again by its client. Turns that are right stay: their requests may be whole. */
void shmd_control_mend(shmd_control_reader *r)
{
    for (uint64_t at = r->cursor; at < r->cursor + SHMD_CONTROL_SLOTS; at++) {
        uint64_t *word = &shmd_control_slot(r->control, at)->turn;
        uint64_t turn = shmd_load_acquire(word), own = shmd_turn(shmd_position_lap(at), 0, SHMD_TURN_FREE);
        uint32_t phase = shmd_turn_phase(turn);
        int is_claimed = phase == SHMD_TURN_CLAIMED || phase == SHMD_TURN_COMMITTED;
        if (turn == own || (is_claimed && shmd_turn_lap(turn) == shmd_position_lap(at)) || (says_aside(turn) && (r->aside & slot_bit(at)) != 0))
            continue;
        shmd_store_release(word, own); /* K1 */
        r->aside &= ~slot_bit(at);
    }
    shmd_store_relaxed(&r->control->tail, r->cursor);
}

int shmd_control_rests(const shmd_control_reader *r)
{
    uint64_t turn = shmd_load_relaxed(&shmd_control_slot(r->control, r->cursor)->turn);
    return r->aside == 0 && turn == shmd_turn(shmd_position_lap(r->cursor), 0, SHMD_TURN_FREE) && !is_work_ahead(r);
}
