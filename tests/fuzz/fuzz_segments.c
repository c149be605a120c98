/* The validators of segments: authority, control, data, gates with any bytes and any length. What passes may be walked to its end.
 * fault: 17 (libFuzzer: any bytes as a segment) */
#include "fuzz.h"

enum { BOOT = 99, STREAM = 7, EPOCH = 3 };

static unsigned char *made[5];
static uint64_t made_bytes[5];

static void make_all(void)
{
    shmd_authority_params_t params = {.instance = "fuzz", .boot_id = BOOT, .now_ns = 1,
                                      .heartbeat_interval_ns = 1000, .lease_timeout_ns = 1000, .client_max = 2, .lease_max = 2,
                                      .stream_max = 1, .event_slots = 4, .config_bytes = 256, .error_max = 1};
    shmd_geometry_t geometry = {.slots = 64, .slot_bytes = 64, .arena_bytes = 4096, .gate_count = 2, .stream_id = STREAM, .epoch = EPOCH,
                                .boot_id = BOOT, .now_ns = 1};
    made_bytes[SHMD_SEGMENT_AUTHORITY] = shmd_authority_footprint(&params);
    made_bytes[SHMD_SEGMENT_CONTROL] = shmd_client_ring_footprint();
    made_bytes[SHMD_SEGMENT_DATA] = shmd_data_footprint(&geometry);
    made_bytes[SHMD_SEGMENT_GATES] = shmd_gates_footprint(2);
    for (uint32_t kind = SHMD_SEGMENT_AUTHORITY; kind <= SHMD_SEGMENT_GATES; kind++) {
        made[kind] = calloc(1, made_bytes[kind]);
        MUST(made[kind] != NULL);
    }
    MUST(shmd_authority_init(made[1], made_bytes[1], &params) == SHMD_OK);
    MUST(shmd_client_ring_init(made[2], made_bytes[2], 5, BOOT, 1) == SHMD_OK);
    MUST(shmd_data_init(made[3], made_bytes[3], &geometry, "i8") == SHMD_OK);
    MUST(shmd_gates_init(made[4], made_bytes[4], &geometry) == SHMD_OK);
    for (uint32_t kind = SHMD_SEGMENT_AUTHORITY; kind <= SHMD_SEGMENT_GATES; kind++)
        shmd_segment_complete(made[kind]);
}

/* As clients and tools walk it: every record of every table, the newest epoch's names, the events, the texts. */
static void walk_authority(const shmd_authority_t *a)
{
    shmd_event_t event;
    uint64_t cursor = 0, lost = 0;
    for (uint32_t i = 0; i < a->client_max; i++)
        (void)fuzz_touch(shmd_authority_client(a, i), sizeof(shmd_client_record_t));
    for (uint32_t i = 0; i < a->lease_max; i++)
        (void)fuzz_touch(shmd_authority_lease(a, i), sizeof(shmd_lease_record_t));
    for (uint32_t i = 0; i < a->stream_max; i++)
        (void)fuzz_touch(shmd_authority_stream(a, i), sizeof(shmd_stream_record_t));
    for (uint32_t i = 0; i < a->error_max; i++)
        (void)fuzz_touch(shmd_authority_error(a, i), sizeof(shmd_error_record_t));
    MUST(shmd_authority_client(a, a->client_max) == NULL && shmd_authority_lease(a, a->lease_max) == NULL);
    MUST(shmd_authority_stream(a, a->stream_max) == NULL && shmd_authority_error(a, a->error_max) == NULL);
    (void)fuzz_touch(shmd_authority_config(a), a->config_bytes);
    for (uint32_t i = 0; i < SHMD_COUNTER_MAX; i++)
        (void)shmd_counter_get(a, i);
    for (int i = 0; i < 8 && shmd_event_poll(a, &cursor, &event, &lost) == 1; i++) {
        (void)strlen(event.text);
        (void)strlen(event.stream);
    }
    shmd_client client = {.authority = a, .tables = *a}; /* a connection copies the checked header */
    shmd_epoch_record_t record;
    uint32_t index = 0, reason = 0;
    for (uint32_t epoch = 0; epoch < 4; epoch++) {
        if (shmd_stream_epoch(&client, 0, STREAM, epoch, &record, &index) == SHMD_OK) {
            MUST(index < SHMD_EPOCH_RECORDS && strlen(record.data_name) < sizeof record.data_name && record.gate_count <= SHMD_GATE_MAX);
            MUST(record.data_bytes >= (uint64_t)record.slots * record.slot_bytes + record.arena_bytes);
        }
    }
    (void)shmd_stream_next_epoch(&client, 0, STREAM, 0, 1, &record, &index);
    (void)shmd_lease_live(&client, 0, 1, &reason);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (made[1] == NULL)
        make_all();
    input_t input = {.at = data, .left = size};
    uint64_t how = input_take(&input, 1);
    uint32_t kind = (uint32_t)(how & 3) + 1;
    uint64_t bytes = made_bytes[kind];
    if (how & 4)
        bytes = input_take(&input, 3) % (bytes + 1);
    unsigned char *segment = fuzz_copy(made[kind], bytes);
    if (how & 8)
        memcpy(segment, input.at, input.left < bytes ? input.left : bytes); /* raw: a file that somebody planted */
    else if (bytes != 0)
        input_patch(&input, segment, how & 16 && bytes > 512 ? 512 : bytes, 32);
    uint32_t stream = kind >= SHMD_SEGMENT_DATA ? STREAM : 0, epoch = kind >= SHMD_SEGMENT_DATA ? EPOCH : 0;
    int found = shmd_header_check(segment, bytes, kind, BOOT, stream, epoch);
    MUST(found == SHMD_OK || found == SHMD_E_LAYOUT);
    if (found == SHMD_OK) {
        MUST(((shmd_header_t *)(void *)segment)->segment_bytes == bytes);
        if (kind == SHMD_SEGMENT_AUTHORITY && shmd_authority_check(segment, bytes) == SHMD_OK)
            walk_authority((const shmd_authority_t *)(const void *)segment);
    } else if (kind == SHMD_SEGMENT_AUTHORITY) {
        (void)shmd_authority_check(segment, bytes); /* on its own it must not read past the end either */
    }
    free(segment);
    return 0;
}
