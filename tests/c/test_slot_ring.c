/* The writer's half of the slot ring, and room: gates set by hand.
 * fault: 40 (seqs near 2^32 and 2^62, arena near 2^63) */
#include "rig.h"

static void set_gate(rig_t *rig, uint32_t gate, uint64_t position)
{
    shmd_store_release(&shmd_gates_gate(rig->gates, gate)->position, position);
    shmd_store_seq_cst(&rig->hot->gate_mask, rig->hot->gate_mask | (uint64_t)1 << gate);
}

static void expect(const shmd_ring_view_t *view, uint64_t seq, uint32_t length)
{
    unsigned char out[65536];
    shmd_message message;
    CHECK_EQ(shmd_slot_copy(view, seq, out, sizeof out, &message), 1);
    CHECK_EQ(message.seq, seq);
    CHECK_EQ(message.length, length);
    CHECK(rig_matches(out, length, seq));
}

static int publish(shmd_producer *p, uint32_t length, uint16_t type)
{
    unsigned char payload[65536];
    rig_fill(payload, length, p->seq);
    return shmd_publish(p, payload, length, type);
}

/* Publishes three rings' worth from first on; every message is there until it is overwritten. */
static void publish_and_read(uint64_t first, uint64_t arena_at)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, first);
    shmd_producer *p = rig_producer(&rig);
    if (arena_at != 0)
        rig_producer_arena_at(p, arena_at);
    shmd_ring_view_t view = rig_view(&rig);
    uint64_t slots = rig.geometry.slots;
    for (uint64_t i = 0; i < 3 * slots; i++) {
        uint32_t length = (uint32_t)(i * 7 % 41 + (i % 5 == 0 ? 300 : 0));
        CHECK_EQ(publish(p, length, (uint16_t)i), SHMD_OK);
        expect(&view, first + i, length);
        CHECK_EQ(shmd_data_head(rig.data), first + i + 1);
        shmd_message message;
        unsigned char out[1024];
        CHECK_EQ(shmd_slot_copy(&view, first + i + 1, out, sizeof out, &message), 0);
        if (i >= slots)
            CHECK_EQ(shmd_slot_copy(&view, first + i - slots, out, sizeof out, &message), SHMD_E_OVERRUN);
    }
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_published_messages_are_read_as_they_were_written(void) { publish_and_read(0, 0); }
static void test_seq_passes_2_to_the_32(void) { publish_and_read(((uint64_t)1 << 32) - 100, 0); }
static void test_seq_up_to_2_to_the_62(void) { publish_and_read(((uint64_t)1 << 62) - 1000, 0); }
static void test_arena_positions_near_2_to_the_63(void) { publish_and_read(0, ((uint64_t)1 << 63) - 16384); }

static void test_nothing_is_visible_of_an_open_or_aborted_claim(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_ring_view_t view = rig_view(&rig);
    unsigned char out[8192];
    shmd_message message;
    static const uint32_t lengths[] = {0, 8, 40, 41, 4096};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        void *data = NULL;
        uint64_t seq = p->seq;
        CHECK_EQ(shmd_claim(p, lengths[i], &data), SHMD_OK);
        memset(data, 0xee, lengths[i]);
        CHECK_EQ(shmd_slot_copy(&view, seq, out, sizeof out, &message), 0);
        CHECK_EQ(shmd_claim(p, 1, &data), SHMD_E_CLAIM);
        CHECK_EQ(shmd_publish(p, "x", 1, 0), SHMD_E_CLAIM);
        CHECK_EQ(shmd_abort(p), SHMD_OK);
        CHECK_EQ(shmd_slot_copy(&view, seq, out, sizeof out, &message), 0);
        CHECK_EQ(shmd_abort(p), SHMD_E_CLAIM);
        CHECK_EQ(shmd_commit(p, 0, 0), SHMD_E_CLAIM);
        CHECK_EQ(p->seq, seq);
        CHECK_EQ(publish(p, lengths[i], 3), SHMD_OK);
        expect(&view, seq, lengths[i]);
    }
    CHECK_EQ(rig.data->aborted_claims, 5);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_claim_is_committed_shorter_but_never_longer(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    shmd_ring_view_t view = rig_view(&rig);
    void *data = NULL;
    CHECK_EQ(shmd_claim(p, 1000, &data), SHMD_OK);
    rig_fill(data, 500, 0);
    CHECK_EQ(shmd_commit(p, 1001, 1), SHMD_E_TOO_LARGE);
    CHECK_EQ(shmd_commit(p, 500, 1), SHMD_OK);
    expect(&view, 0, 500);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_the_arena_intent_never_decreases(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    uint64_t before = 0;
    for (int i = 0; i < 200; i++) {
        void *data = NULL;
        CHECK_EQ(shmd_claim(p, (uint32_t)(64 + i * 97 % 4000), &data), SHMD_OK);
        CHECK(shmd_load_relaxed(&rig.data->arena_intent) >= before);
        before = shmd_load_relaxed(&rig.data->arena_intent);
        CHECK_EQ(i % 3 == 0 ? shmd_abort(p) : shmd_commit(p, 64, 0), SHMD_OK);
        CHECK(shmd_load_relaxed(&rig.data->arena_intent) >= before);
    }
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_message_too_large_names_both_numbers(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    static const unsigned char payload[8192];
    CHECK_EQ(shmd_publish(p, payload, 4097, 0), SHMD_E_TOO_LARGE);
    CHECK_TEXT("4097");
    CHECK_TEXT("4096");
    CHECK_EQ(shmd_publish(p, payload, 4096, 0), SHMD_OK);
    CHECK_EQ(shmd_publish(p, payload, UINT32_MAX, 0), SHMD_E_TOO_LARGE);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void back_pressure_at(uint64_t first)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, first);
    shmd_producer *p = rig_producer(&rig);
    uint64_t slots = rig.geometry.slots;
    set_gate(&rig, 2, first);
    set_gate(&rig, 5, first + 1000000); /* far ahead: ignored, not believed */
    for (uint64_t i = 0; i < slots; i++)
        CHECK_EQ(publish(p, 8, 0), SHMD_OK);
    CHECK_EQ(publish(p, 8, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(shmd_load32_relaxed(&rig.data->blocked_gate), 3);
    CHECK_EQ(rig.data->blocked_position, first);
    set_gate(&rig, 5, first + slots);
    set_gate(&rig, 2, first + 3);
    for (uint64_t i = 0; i < 3; i++)
        CHECK_EQ(publish(p, 8, 0), SHMD_OK);
    CHECK_EQ(shmd_load32_relaxed(&rig.data->blocked_gate), 0);
    CHECK_EQ(publish(p, 8, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(publish(p, 8, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(rig.data->blocked_count, 2);
    shmd_epoch_leave(rig.hot, 2); /* the driver revoked it */
    CHECK_EQ(publish(p, 8, 0), SHMD_OK);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_full_ring_pushes_back_and_names_the_gate(void) { back_pressure_at(0); }
static void test_back_pressure_near_2_to_the_32(void) { back_pressure_at(((uint64_t)1 << 32) - 40); }
static void test_back_pressure_near_2_to_the_62(void) { back_pressure_at(((uint64_t)1 << 62) - 400); }

static void test_a_gate_that_lies_cannot_free_more_than_a_ring_nor_stop_forever(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 500);
    shmd_producer *p = rig_producer(&rig);
    static const uint64_t lies[] = {0, UINT64_MAX, (uint64_t)1 << 63, 499, 501, 1u << 31};
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        set_gate(&rig, 0, lies[i]);
        p->limit = 0;
        int rc = shmd_producer_room(p, 0);
        CHECK(rc == SHMD_OK || rc == SHMD_BACK_PRESSURED);
        CHECK(p->limit <= p->seq + rig.geometry.slots);
        CHECK(p->limit >= p->seq);
    }
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_the_arena_is_freed_by_gates_not_by_wrapping(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    set_gate(&rig, 0, 0);
    static const unsigned char payload[4096];
    CHECK_EQ(shmd_publish(p, payload, 4096, 0), SHMD_OK);
    CHECK_EQ(shmd_publish(p, payload, 4000, 0), SHMD_OK);
    CHECK_EQ(shmd_publish(p, payload, 4096, 0), SHMD_BACK_PRESSURED); /* ring has room, arena has not */
    CHECK_EQ(shmd_publish(p, payload, 40, 0), SHMD_OK);               /* inline needs none */
    set_gate(&rig, 0, 1);
    CHECK_EQ(shmd_publish(p, payload, 4096, 0), SHMD_OK);
    CHECK_EQ(shmd_publish(p, payload, 41, 0), SHMD_OK); /* the 64 bytes that rounding left */
    CHECK_EQ(shmd_publish(p, payload, 41, 0), SHMD_BACK_PRESSURED);
    set_gate(&rig, 0, p->seq);
    CHECK_EQ(shmd_publish(p, payload, 4096, 0), SHMD_OK);
    CHECK_EQ(shmd_publish(p, payload, 4096, 0), SHMD_OK);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_records_go_in_as_far_as_there_is_room(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    set_gate(&rig, 1, 0);
    uint64_t records[200][4];
    for (uint64_t i = 0; i < 200; i++)
        rig_fill(records[i], 32, i);
    CHECK_EQ(shmd_publish_records(p, records, 32, 200, 0), 64);
    CHECK_EQ(shmd_publish_records(p, records[64], 32, 136, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(shmd_publish_records(p, records[64], 32, 136, 3000000), SHMD_BACK_PRESSURED);
    set_gate(&rig, 1, 30);
    CHECK_EQ(shmd_publish_records(p, records[64], 32, 136, 1000000), 30);
    CHECK_EQ(shmd_publish_records(p, records, 41, 1, 0), SHMD_E_TOO_LARGE);
    shmd_ring_view_t view = rig_view(&rig);
    for (uint64_t seq = 30; seq < 94; seq++)
        expect(&view, seq, 32);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_sealed_epoch_refuses_its_producer(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    shmd_producer *p = rig_producer(&rig);
    CHECK_EQ(publish(p, 8, 0), SHMD_OK);
    void *data = NULL;
    CHECK_EQ(shmd_claim(p, 8, &data), SHMD_OK);
    (void)rig_lease(&rig, 0, SHMD_LEASE_EXPIRED);
    shmd_authority_lease(rig.authority, 0)->end_reason = SHMD_REASON_EXPIRED;
    CHECK_EQ(shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 0, 0), 1);
    CHECK_EQ(shmd_commit(p, 8, 0), SHMD_E_REVOKED);
    CHECK_EQ(publish(p, 8, 0), SHMD_E_REVOKED);
    CHECK_EQ(shmd_claim(p, 8, &data), SHMD_E_REVOKED);
    CHECK_EQ(shmd_claim(p, 1000, &data), SHMD_E_REVOKED);
    CHECK_EQ(shmd_publish_wait(p, "x", 1, 0, 1000000), SHMD_E_REVOKED);
    CHECK_EQ(shmd_publish_records(p, "x", 1, 1, 0), SHMD_E_REVOKED);
    shmd_producer_info_t info;
    shmd_producer_info(p, &info);
    CHECK_EQ(info.end_reason, SHMD_REASON_EXPIRED);
    CHECK_EQ(info.sealed_seq, 1);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_the_seal_finds_what_was_committed_behind_the_head(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(publish(p, 8, 0), SHMD_OK);
    shmd_store_release(&rig.data->head, 97); /* killed between commit and head */
    CHECK_EQ(shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 0, 1), 100);
    CHECK_EQ(shmd_load_relaxed(&rig.hot->state), (uint64_t)RIG_EPOCH << 8 | SHMD_EPOCH_SEALED);
    CHECK_EQ(shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 0, 0), 100); /* again: the same */
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_clean_end_seals_at_the_head(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    for (int i = 0; i < 10; i++)
        CHECK_EQ(publish(p, 8, 0), SHMD_OK);
    CHECK_EQ(shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 1, 0), 10);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_head_that_lies_ends_the_seal_within_one_ring(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    static const uint64_t lies[] = {UINT64_MAX, (uint64_t)1 << 63, 5, UINT64_MAX / 2};
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        shmd_store_release(&rig.hot->state, (uint64_t)RIG_EPOCH << 8 | SHMD_EPOCH_OPEN);
        shmd_store_release(&rig.data->head, lies[i]);
        (void)shmd_epoch_seal(rig.hot, rig.data, rig.ring, &rig.geometry, 0, 1);
        CHECK_EQ(shmd_load_relaxed(&rig.hot->state) & 0xff, SHMD_EPOCH_SEALED);
    }
    rig_stop(&rig);
}

static void test_min_consumers_holds_the_first_message(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 0, 0);
    shmd_producer *p = rig_producer(&rig);
    p->min_consumers = 2;
    CHECK_EQ(publish(p, 8, 0), SHMD_BACK_PRESSURED);
    set_gate(&rig, 0, 0);
    CHECK_EQ(publish(p, 8, 0), SHMD_BACK_PRESSURED);
    CHECK_EQ(shmd_load32_relaxed(&rig.data->blocked_gate), SHMD_GATE_MAX + 1);
    set_gate(&rig, 1, 0);
    CHECK_EQ(publish(p, 8, 0), SHMD_OK);
    shmd_epoch_leave(rig.hot, 0); /* later leavers do not stop it again */
    shmd_epoch_leave(rig.hot, 1);
    for (int i = 0; i < 200; i++)
        CHECK_EQ(publish(p, 8, 0), SHMD_OK);
    rig_producer_free(p);
    rig_stop(&rig);
}

/* Sizes around every way of copying, at places that a tensor's head can leave; nothing before or past the last word changes. */
static void test_a_copy_of_any_size_is_exact_and_stays_within_its_place(void)
{
    enum { STREAM = SHMD_COPY_STREAM_BYTES, BLOCK = SHMD_COPY_BLOCK_BYTES, ROOM = STREAM + 4096, GUARD = 0xa5 };
    static const size_t sizes[] = {0, 1, 7, 8, 41, BLOCK - 1, BLOCK, BLOCK + 1, 4099, STREAM - 1, STREAM, STREAM + 1, STREAM + 63, STREAM + 1000};
    unsigned char *shared = aligned_alloc(4096, ROOM + 4096), *from = malloc(ROOM), *back = malloc(ROOM);
    CHECK(shared != NULL && from != NULL && back != NULL);
    rig_fill(from, ROOM, 7);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t at = 0; at <= 72; at += 8) {
            size_t bytes = sizes[i], end = at + 64 + (bytes + 7) / 8 * 8;
            unsigned char *place = shared + 64 + at;
            memset(shared, GUARD, ROOM + 4096);
            shmd_copy_to_shared(place, from + i, bytes);
            CHECK(memcmp(place, from + i, bytes) == 0);
            CHECK_EQ(place[-1], GUARD);
            CHECK_EQ(shared[end], GUARD);
            memset(back, 0, ROOM);
            shmd_copy_from_shared(back, place, bytes);
            CHECK(memcmp(back, from + i, bytes) == 0);
        }
    }
    free(shared);
    free(from);
    free(back);
}

static void check_short_copies(void (*copy)(void *, const void *, size_t))
{
    enum { MOST = 300, ROOM = 1024, GUARD = 0xa5 };
    unsigned char *shared = aligned_alloc(64, ROOM), *from = malloc(ROOM), *back = malloc(ROOM);
    CHECK(shared != NULL && from != NULL && back != NULL);
    rig_fill(from, ROOM, 11);
    for (size_t bytes = 0; bytes <= MOST; bytes++) {
        unsigned char *place = shared + SHMD_SLOT_HEADER_BYTES;
        size_t end = (bytes + 7) / 8 * 8;
        memset(shared, GUARD, ROOM);
        copy(place, from + bytes % 16, bytes);
        CHECK(memcmp(place, from + bytes % 16, bytes) == 0);
        CHECK_EQ(place[-1], GUARD);
        CHECK_EQ(place[end], GUARD);
        shmd_copy_from_shared(back, place, bytes);
        CHECK(memcmp(back, from + bytes % 16, bytes) == 0);
    }
    free(shared);
    free(from);
    free(back);
}

static void test_a_short_copy_of_every_length_is_exact(void)
{
    check_short_copies(shmd_copy_to_shared);
    check_short_copies(shmd_copy_fresh_to_shared);
}

static void test_geometry_is_rounded_to_powers_of_two_and_whole_pages(void)
{
    static const uint32_t wanted[][2] = {{0, 0}, {1, 1}, {2, 64}, {3, 65}, {100, 192}, {4096, 24}, {2, 4096}, {67108864, 64}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        uint32_t slots = wanted[i][0], slot_bytes = wanted[i][1];
        uint64_t arena = i * 1000;
        shmd_geometry_round(&slots, &slot_bytes, &arena);
        shmd_geometry_t geometry = {.slots = slots, .slot_bytes = slot_bytes, .arena_bytes = arena};
        CHECK(slots >= wanted[i][0] && slots >= SHMD_SLOTS_MIN && (slots & (slots - 1)) == 0);
        CHECK(slot_bytes >= wanted[i][1] && slot_bytes % 64 == 0);
        CHECK((uint64_t)slots * slot_bytes % shmd_page_bytes() == 0 && arena >= i * 1000);
        CHECK(shmd_data_footprint(&geometry) != 0);
    }
}

int main(void)
{
    RUN(test_published_messages_are_read_as_they_were_written);
    RUN(test_seq_passes_2_to_the_32);
    RUN(test_seq_up_to_2_to_the_62);
    RUN(test_arena_positions_near_2_to_the_63);
    RUN(test_nothing_is_visible_of_an_open_or_aborted_claim);
    RUN(test_a_claim_is_committed_shorter_but_never_longer);
    RUN(test_the_arena_intent_never_decreases);
    RUN(test_a_message_too_large_names_both_numbers);
    RUN(test_a_full_ring_pushes_back_and_names_the_gate);
    RUN(test_back_pressure_near_2_to_the_32);
    RUN(test_back_pressure_near_2_to_the_62);
    RUN(test_a_gate_that_lies_cannot_free_more_than_a_ring_nor_stop_forever);
    RUN(test_the_arena_is_freed_by_gates_not_by_wrapping);
    RUN(test_records_go_in_as_far_as_there_is_room);
    RUN(test_a_sealed_epoch_refuses_its_producer);
    RUN(test_the_seal_finds_what_was_committed_behind_the_head);
    RUN(test_a_clean_end_seals_at_the_head);
    RUN(test_a_head_that_lies_ends_the_seal_within_one_ring);
    RUN(test_min_consumers_holds_the_first_message);
    RUN(test_a_copy_of_any_size_is_exact_and_stays_within_its_place);
    RUN(test_a_short_copy_of_every_length_is_exact);
    RUN(test_geometry_is_rounded_to_powers_of_two_and_whole_pages);
    return test_report();
}
