/* shmd_layout.c: sizes and first contents of the four kinds of segment, and where their tables are. */
#include "shmd_internal.h"

#include <stdio.h>

enum { CONFIG_BYTES_MIN = 64, EVENT_SLOT_BYTES = 1216 };

static uint64_t after(uint64_t offset, uint64_t bytes) { return shmd_round_up(offset + bytes, SHMD_LINE_BYTES); }

static int is_power_of_two(uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

/* The tables' offsets from the counts; returns the segment's size. */
static uint64_t authority_layout(shmd_authority_t *a)
{
    a->clients_offset = sizeof *a;
    a->leases_offset = after(a->clients_offset, (uint64_t)a->client_max * sizeof(shmd_client_record_t));
    a->streams_offset = after(a->leases_offset, (uint64_t)a->lease_max * sizeof(shmd_lease_record_t));
    a->events_offset = after(a->streams_offset, (uint64_t)a->stream_max * sizeof(shmd_stream_record_t));
    a->counters_offset = after(a->events_offset, (uint64_t)a->event_slots * a->event_slot_bytes);
    a->errors_offset = after(a->counters_offset, (uint64_t)a->counter_max * sizeof(uint64_t));
    a->config_offset = after(a->errors_offset, (uint64_t)a->error_max * sizeof(shmd_error_record_t));
    return shmd_round_up(a->config_offset + a->config_bytes, shmd_page_bytes());
}

static void authority_counts(shmd_authority_t *a, const shmd_authority_params_t *p)
{
    a->client_max = p->client_max;
    a->lease_max = p->lease_max;
    a->stream_max = p->stream_max;
    a->event_slots = p->event_slots;
    a->event_slot_bytes = EVENT_SLOT_BYTES;
    a->counter_max = SHMD_COUNTER_MAX;
    a->error_max = p->error_max;
    a->config_bytes = p->config_bytes;
}

static int counts_in_range(const shmd_authority_t *a)
{
    return a->client_max >= 1 && a->client_max <= SHMD_CLIENT_MAX && a->lease_max >= 1 && a->lease_max <= SHMD_LEASE_MAX &&
           a->stream_max >= 1 && a->stream_max <= SHMD_STREAM_MAX && is_power_of_two(a->event_slots) && a->event_slots >= 2 &&
           a->event_slots <= 1u << 20 && a->event_slot_bytes == EVENT_SLOT_BYTES && a->counter_max == SHMD_COUNTER_MAX &&
           a->error_max >= 1 && a->error_max <= 4096 && a->config_bytes >= CONFIG_BYTES_MIN && a->config_bytes <= 1u << 20;
}

uint64_t shmd_authority_footprint(const shmd_authority_params_t *params)
{
    shmd_authority_t counts;
    memset(&counts, 0, sizeof counts);
    authority_counts(&counts, params);
    return counts_in_range(&counts) ? authority_layout(&counts) : 0;
}

static void header_init(shmd_header_t *header, uint32_t kind, uint64_t bytes, uint64_t boot_id, uint32_t stream_id, uint32_t epoch,
                        uint64_t now_ns)
{
    header->layout_version = SHMD_LAYOUT_VERSION;
    header->kind = kind;
    header->segment_bytes = bytes;
    header->boot_id = boot_id;
    header->stream_id = stream_id;
    header->epoch = epoch;
    header->created_ns = now_ns;
}

int shmd_authority_init(void *base, uint64_t bytes, const shmd_authority_params_t *params)
{
    shmd_authority_t *a = base;
    uint64_t need = shmd_authority_footprint(params);
    if (need == 0 || need != bytes)
        return shmd_fail(SHMD_E_INVALID, "authority of %llu bytes, its counts ask for %llu", (unsigned long long)bytes, (unsigned long long)need);
    memset(base, 0, (size_t)bytes);
    authority_counts(a, params);
    (void)authority_layout(a);
    header_init(&a->header, SHMD_SEGMENT_AUTHORITY, bytes, params->boot_id, 0, 0, params->now_ns);
    a->heartbeat_interval_ns = params->heartbeat_interval_ns;
    a->lease_timeout_ns = params->lease_timeout_ns;
    (void)snprintf(a->instance, sizeof a->instance, "%s", params->instance);
    a->next_client_id = a->next_lease_id = a->next_stream_id = 1;
    return SHMD_OK;
}

int shmd_authority_check(const void *base, uint64_t bytes)
{
    const shmd_authority_t *a = base;
    shmd_authority_t expected;
    if (bytes < sizeof *a)
        return shmd_fail(SHMD_E_LAYOUT, "authority of %llu bytes is too short", (unsigned long long)bytes);
    memcpy(&expected, a, sizeof expected);
    if (!counts_in_range(&expected) || authority_layout(&expected) != bytes ||
        memcmp(&expected.clients_offset, &a->clients_offset, 7 * sizeof(uint64_t)) != 0)
        return shmd_fail(SHMD_E_LAYOUT, "authority's table offsets do not fit its counts and its %llu bytes", (unsigned long long)bytes);
    return SHMD_OK;
}

void shmd_geometry_round(uint32_t *slots, uint32_t *slot_bytes, uint64_t *arena_bytes)
{
    uint64_t page = shmd_page_bytes();
    uint64_t bytes = shmd_round_up(shmd_max(*slot_bytes, SHMD_SLOT_BYTES_MIN), SHMD_SLOT_BYTES_MIN);
    uint64_t count = SHMD_SLOTS_MIN;
    while (count < *slots && count < SHMD_SLOTS_MAX)
        count *= 2;
    while (count * bytes % page != 0)
        count *= 2;
    *slots = (uint32_t)count;
    *slot_bytes = (uint32_t)bytes;
    *arena_bytes = shmd_round_up(*arena_bytes, page);
}

static int geometry_check(const shmd_geometry_t *g)
{
    uint64_t page = shmd_page_bytes();
    if (!is_power_of_two(g->slots) || g->slots < SHMD_SLOTS_MIN || g->slots > SHMD_SLOTS_MAX || g->slot_bytes % SHMD_SLOT_BYTES_MIN != 0 ||
        g->slot_bytes < SHMD_SLOT_BYTES_MIN || g->slot_bytes > SHMD_SLOT_BYTES_MAX || (uint64_t)g->slots * g->slot_bytes % page != 0 ||
        g->arena_bytes % page != 0 || g->arena_bytes > (uint64_t)1 << 46)
        return shmd_fail(SHMD_E_INVALID, "%u slots of %u bytes with an arena of %llu bytes is no valid geometry", g->slots, g->slot_bytes,
                         (unsigned long long)g->arena_bytes);
    return SHMD_OK;
}

uint64_t shmd_data_footprint(const shmd_geometry_t *geometry)
{
    if (geometry_check(geometry) != SHMD_OK)
        return 0;
    return shmd_round_up(SHMD_DATA_HEADER_BYTES, shmd_page_bytes()) + (uint64_t)geometry->slots * geometry->slot_bytes + geometry->arena_bytes;
}

int shmd_epoch_record_check(const shmd_epoch_record_t *record)
{
    shmd_geometry_t geometry = {.slots = record->slots, .slot_bytes = record->slot_bytes, .arena_bytes = record->arena_bytes};
    if (shmd_data_footprint(&geometry) != record->data_bytes || record->gate_count > SHMD_GATE_MAX ||
        shmd_gates_footprint(record->gate_count) != record->gates_bytes)
        return shmd_fail(SHMD_E_LAYOUT, "epoch %u of stream %u: its record's sizes do not fit each other", record->epoch, record->stream_id);
    return SHMD_OK;
}

int shmd_data_init(void *base, uint64_t bytes, const shmd_geometry_t *geometry, const char *schema)
{
    shmd_data_t *data = base;
    size_t schema_bytes = schema == NULL ? 0 : strlen(schema);
    if (bytes == 0 || bytes != shmd_data_footprint(geometry) || schema_bytes >= SHMD_SCHEMA_BYTES)
        return shmd_fail(SHMD_E_INVALID, "data segment of %llu bytes does not fit its geometry", (unsigned long long)bytes);
    memset(base, 0, SHMD_DATA_HEADER_BYTES);
    header_init(&data->header, SHMD_SEGMENT_DATA, bytes, geometry->boot_id, geometry->stream_id, geometry->epoch, geometry->now_ns);
    data->slots = geometry->slots;
    data->slot_bytes = geometry->slot_bytes;
    data->arena_bytes = geometry->arena_bytes;
    data->ring_offset = shmd_round_up(SHMD_DATA_HEADER_BYTES, shmd_page_bytes());
    data->arena_offset = data->ring_offset + (uint64_t)geometry->slots * geometry->slot_bytes;
    data->flags = geometry->flags;
    data->schema_bytes = (uint32_t)schema_bytes;
    if (schema_bytes != 0)
        memcpy(data->schema, schema, schema_bytes);
    return SHMD_OK;
}

uint64_t shmd_gates_footprint(uint32_t gate_count)
{
    return shmd_round_up(SHMD_GATES_HEADER_BYTES + (uint64_t)gate_count * sizeof(shmd_gate_t), shmd_page_bytes());
}

int shmd_gates_init(void *base, uint64_t bytes, const shmd_geometry_t *geometry)
{
    shmd_gates_t *gates = base;
    if (geometry->gate_count == 0 || geometry->gate_count > SHMD_GATE_MAX || bytes != shmd_gates_footprint(geometry->gate_count))
        return shmd_fail(SHMD_E_INVALID, "gates segment of %llu bytes does not fit %u gates", (unsigned long long)bytes, geometry->gate_count);
    memset(base, 0, (size_t)bytes);
    header_init(&gates->header, SHMD_SEGMENT_GATES, bytes, geometry->boot_id, geometry->stream_id, geometry->epoch, geometry->now_ns);
    gates->gate_count = geometry->gate_count;
    return SHMD_OK;
}

/* Where the tables are. The authority is mapped read-only by clients, so these cast constness away only
 * for the driver, which is the one that has it writable. */
static unsigned char *at(const shmd_authority_t *authority, uint64_t offset) { return (unsigned char *)(uintptr_t)authority + offset; }

shmd_client_record_t *shmd_authority_client(const shmd_authority_t *a, uint32_t index)
{
    return index < a->client_max ? (shmd_client_record_t *)(void *)at(a, a->clients_offset) + index : NULL;
}
shmd_lease_record_t *shmd_authority_lease(const shmd_authority_t *a, uint32_t index)
{
    return index < a->lease_max ? (shmd_lease_record_t *)(void *)at(a, a->leases_offset) + index : NULL;
}
shmd_stream_record_t *shmd_authority_stream(const shmd_authority_t *a, uint32_t index)
{
    return index < a->stream_max ? (shmd_stream_record_t *)(void *)at(a, a->streams_offset) + index : NULL;
}

static const uint64_t *word_of(const shmd_authority_t *a, int table, uint32_t index)
{
    const shmd_client_record_t *client = table == SHMD_TABLE_CLIENTS ? shmd_authority_client(a, index) : NULL;
    const shmd_lease_record_t *lease = table == SHMD_TABLE_LEASES ? shmd_authority_lease(a, index) : NULL;
    const shmd_stream_record_t *stream = table == SHMD_TABLE_STREAMS ? shmd_authority_stream(a, index) : NULL;
    return client != NULL ? &client->word : lease != NULL ? &lease->word : stream != NULL ? &stream->word : NULL;
}

int64_t shmd_authority_next(const shmd_authority_t *a, int table, uint64_t states, uint32_t first)
{
    const uint64_t *word;
    for (uint32_t index = first; (word = word_of(a, table, index)) != NULL; index++) {
        /* relaxed: who is interested in the record copies it, with shmd_record_copy's orders, and looks again */
        uint64_t state = shmd_load_relaxed(word) & 0xff;
        if (state < 64 && (states >> state & 1) != 0)
            return index;
    }
    return -1;
}
shmd_error_record_t *shmd_authority_error(const shmd_authority_t *a, uint32_t index)
{
    return index < a->error_max ? (shmd_error_record_t *)(void *)at(a, a->errors_offset) + index : NULL;
}
char *shmd_authority_config(const shmd_authority_t *a) { return (char *)at(a, a->config_offset); }

shmd_gate_t *shmd_gates_gate(const shmd_gates_t *gates, uint32_t index)
{
    return index < SHMD_GATE_MAX ? (shmd_gate_t *)(void *)((unsigned char *)(uintptr_t)gates + SHMD_GATES_HEADER_BYTES) + index : NULL;
}
