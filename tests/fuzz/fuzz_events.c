/* The event decoder: a client that follows an event ring of which any byte may be anything.
 *
 * Property: every poll ends; the cursor only grows, by what was read and what was counted as lost; texts end. An event that is
 * taken for an answer names nothing that is not there.
 * fault: 23 (libFuzzer: any bytes in an event ring) */
#include "fuzz.h"

static shmd_authority_t *authority;
static uint64_t bytes;

static void restart(void)
{
    shmd_authority_params_t params = {.instance = "fuzz", .boot_id = 99, .now_ns = 1,
                                      .heartbeat_interval_ns = 1000, .lease_timeout_ns = 1000, .client_max = 1, .lease_max = 1,
                                      .stream_max = 1, .event_slots = 4, .config_bytes = 256, .error_max = 1};
    bytes = shmd_authority_footprint(&params);
    if (authority == NULL)
        authority = test_memory(bytes);
    MUST(shmd_authority_init(authority, bytes, &params) == SHMD_OK);
}

/* As the client that asked. */
static void take_for_an_answer(const shmd_event_t *event, uint32_t kind, uint32_t role)
{
    static shmd_client client;
    shmd_request_t request = {.kind = kind, .role = role};
    client.authority = authority;
    client.tables = *authority;
    int rc = shmd_answer_check(&client, &request, event);
    MUST(rc == SHMD_OK || (rc == SHMD_E_CORRUPT && shmd_last_error()[0] != 0));
    if (rc != SHMD_OK)
        return;
    if (kind == SHMD_REQUEST_ATTACH) {
        (void)fuzz_touch(shmd_client_lease(&client, event->lease_index), sizeof(shmd_lease_record_t));
        (void)fuzz_touch(shmd_client_stream(&client, event->stream_index), sizeof(shmd_stream_record_t));
        MUST(role != SHMD_ROLE_CONSUMER || (event->gate < SHMD_GATE_MAX && event->start_seq <= event->value && event->value < UINT64_MAX >> 2));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    restart();
    input_t input = {.at = data, .left = size};
    uint64_t start = input_number(&input) & (UINT64_MAX >> 2);
    uint64_t cursor = start, lost = 0, got = 0, published = 0;
    unsigned char *ring = (unsigned char *)authority + authority->events_offset;
    size_t ring_bytes = (size_t)authority->event_slots * authority->event_slot_bytes;
    authority->event_head = start;
    shmd_event_writer *writer = shmd_event_writer_new(authority);
    MUST(writer != NULL);
    for (int i = 0; i < 64 && input.left != 0; i++) {
        uint64_t act = input_take(&input, 1);
        shmd_event_t *event = malloc(sizeof *event);
        MUST(event != NULL);
        memset(event, 'x', sizeof *event);
        if (act < 96) {
            event->kind = (uint32_t)act;
            if (act % 4 == 1) { /* an answer with a damaged field */
                memset(event, 0, sizeof *event);
                event->kind = SHMD_EVENT_ATTACH_RESPONSE + (uint32_t)act / 4 % 2;
                event->lease_id = event->client_id = event->stream_id = 1;
                input_patch(&input, event, offsetof(shmd_event_t, time_ns), 2);
            }
            (void)shmd_event_publish(writer, event);
            published++;
        } else if (act < 192) {
            uint64_t before = cursor, lost_before = lost;
            int found = shmd_event_poll(authority, &cursor, event, &lost);
            MUST(found == 0 || found == 1);
            MUST(cursor - before == (lost - lost_before) + (uint64_t)found);
            got += (uint64_t)found;
            if (found == 1) {
                    MUST(memchr(event->text, 0, sizeof event->text) != NULL && memchr(event->stream, 0, sizeof event->stream) != NULL);
                take_for_an_answer(event, SHMD_REQUEST_ATTACH + (uint32_t)act % 5, SHMD_ROLE_PRODUCER + (uint32_t)act % 2);
            }
        } else if (act < 224) {
            input_patch(&input, ring, ring_bytes, 1);
        } else if (act < 240) {
            size_t slot = (size_t)act % authority->event_slots;
            uint64_t word = (cursor + input_take(&input, 1) % 8) << 1 | (act & 1);
            memcpy(ring + slot * authority->event_slot_bytes, &word, sizeof word);
        } else {
            authority->event_head = input_number(&input) & (UINT64_MAX >> 2);
        }
        free(event);
    }
    MUST(cursor == start + got + lost);
    shmd_event_writer_free(writer);
    return 0;
}
