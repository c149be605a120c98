/* shmd_mapping.c: one epoch's segments in one process. Counted, because claims and views of Python outlive handles. A
 * producer writes data and reads gates; a consumer the other way round: what a role does not write is mapped read-only. */
#include "shmd_internal.h"

#include <stdlib.h>
#include <unistd.h>

static uint64_t header_bytes(void) { return shmd_round_up(SHMD_DATA_HEADER_BYTES, shmd_page_bytes()); }

/* The fd of a segment that is of the authority's owner, and as long as the directory says. */
static int open_sized(const shmd_client *client, const char *name, int writable, uint64_t expected)
{
    uint64_t bytes = 0;
    int fd = shmd_segment_open_of(name, client->owner, writable, &bytes);
    if (fd < 0 || bytes == expected)
        return fd;
    (void)close(fd);
    return shmd_fail(SHMD_E_LAYOUT, "%s has %llu bytes, the directory says %llu", name, (unsigned long long)bytes, (unsigned long long)expected);
}

/* The record was copied while it could change; the header never does. */
static int check_geometry(const shmd_data_t *data, const shmd_epoch_record_t *record)
{
    if (data->slots == record->slots && data->slot_bytes == record->slot_bytes && data->arena_bytes == record->arena_bytes)
        return SHMD_OK;
    return shmd_fail(SHMD_E_LAYOUT, "%s says %u slots of %u bytes, the directory %u of %u", record->data_name, data->slots, data->slot_bytes,
                     record->slots, record->slot_bytes);
}

static int map_data(const shmd_client *client, const shmd_epoch_record_t *record, int writable, shmd_mapping *mapping)
{
    uint64_t ring_offset = header_bytes();
    int fd = open_sized(client, record->data_name, writable, record->data_bytes);
    if (fd < 0)
        return fd;
    int rc = shmd_segment_map(fd, 0, ring_offset, writable, 1, &mapping->data);
    rc = rc ? rc : shmd_header_check(mapping->data, record->data_bytes, SHMD_SEGMENT_DATA, client->boot_id, record->stream_id, record->epoch);
    rc = rc ? rc : check_geometry(mapping->data, record);
    rc = rc ? rc : shmd_segment_map_mirrored(fd, ring_offset, mapping->ring_bytes, writable, (int)mapping->prefaults, &mapping->ring);
    if (rc == SHMD_OK && mapping->arena_bytes != 0)
        rc = shmd_segment_map_mirrored(fd, ring_offset + mapping->ring_bytes, mapping->arena_bytes, writable, (int)mapping->prefaults,
                                       &mapping->arena);
    (void)close(fd);
    return rc;
}

static int map_gates(const shmd_client *client, const shmd_epoch_record_t *record, int writable, shmd_mapping *mapping)
{
    int fd = open_sized(client, record->gates_name, writable, record->gates_bytes);
    if (fd < 0)
        return fd;
    int rc = shmd_segment_map(fd, 0, record->gates_bytes, writable, 1, &mapping->gates);
    rc = rc ? rc : shmd_header_check(mapping->gates, record->gates_bytes, SHMD_SEGMENT_GATES, client->boot_id, record->stream_id, record->epoch);
    (void)close(fd);
    return rc;
}

/* Of the scratch only what an inline message needs is populated: a larger message meets a page fault for each page that no message
 * before it has reached. */
static int make_scratch(const shmd_epoch_record_t *record, shmd_mapping *mapping)
{
    uint64_t bytes = shmd_round_up(shmd_max(record->slot_bytes, record->arena_bytes / 2), SHMD_LINE_BYTES);
    mapping->scratch = aligned_alloc(SHMD_LINE_BYTES, bytes);
    if (mapping->scratch == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory for %llu bytes", (unsigned long long)bytes);
    mapping->scratch_bytes = bytes;
    if (mapping->prefaults)
        shmd_window_prefault(mapping->scratch, record->slot_bytes);
    return SHMD_OK;
}

int shmd_mapping_open(const shmd_client *client, const shmd_epoch_record_t *record, uint32_t role, shmd_mapping **out)
{
    static uint32_t serial;
    shmd_mapping *mapping = calloc(1, sizeof *mapping);
    if (mapping == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory for a mapping");
    mapping->owners = 1;
    mapping->fork_generation = shmd_fork_generation();
    mapping->epoch = record->epoch;
    mapping->ring_bytes = (uint64_t)record->slots * record->slot_bytes;
    mapping->arena_bytes = record->arena_bytes;
    mapping->gates_bytes = record->gates_bytes;
    mapping->prefaults = (record->flags & SHMD_ATTACH_PREFAULT) != 0;
    mapping->serial = (uint64_t)shmd_add32(&serial, 1) + 1;
    int rc = map_data(client, record, role == SHMD_ROLE_PRODUCER, mapping);
    rc = rc ? rc : map_gates(client, record, role == SHMD_ROLE_CONSUMER, mapping);
    if (rc == SHMD_OK && role == SHMD_ROLE_CONSUMER)
        rc = make_scratch(record, mapping);
    if (rc != SHMD_OK) {
        shmd_mapping_free(mapping);
        return rc;
    }
    memcpy(mapping->data_name, record->data_name, sizeof mapping->data_name);
    memcpy(mapping->gates_name, record->gates_name, sizeof mapping->gates_name);
    shmd_bus_error_tell(mapping->data, &mapping->damage, SHMD_DAMAGED_DATA);
    shmd_bus_error_tell(mapping->ring, &mapping->damage, SHMD_DAMAGED_DATA);
    shmd_bus_error_tell(mapping->arena, &mapping->damage, SHMD_DAMAGED_DATA);
    shmd_bus_error_tell(mapping->gates, &mapping->damage, SHMD_DAMAGED_GATES);
    *out = mapping;
    return SHMD_OK;
}

int shmd_mapping_protects(const shmd_mapping *mapping, const shmd_epoch_hot_t *hot, uint32_t gate, uint64_t lease_id)
{
    shmd_fence_acquire(); /* C1, G3: the loads of the payload are done before those of the mask and of the damage */
    if (shmd_mapping_is_damaged(mapping))
        return 0;
    /* The mask, then the state: a record that serves another epoch by now has had its state changed before its masks. */
    uint64_t mask = hot == NULL ? 0 : shmd_load_acquire(&hot->gate_mask);
    if ((mask >> gate & 1) != 0 && shmd_load_acquire(&hot->state) >> 8 == mapping->epoch)
        return 1;
    return shmd_gate_left(mapping->gates, gate) == lease_id; /* D1: drained with its bit set; nobody writes to a sealed epoch */
}

void shmd_mapping_own(shmd_mapping *mapping, uint64_t *word, uint64_t value) { shmd_damage_own(&mapping->damage, word, value); }

void shmd_mapping_disown(shmd_mapping *mapping)
{
    if (mapping != NULL && !shmd_is_forked(mapping->fork_generation)) /* in a child nobody leaves who was inside when it was copied */
        shmd_damage_disown(&mapping->damage);
}

int shmd_mapping_refuse(const shmd_mapping *mapping, const char *stream)
{
    if (!shmd_mapping_is_damaged(mapping)) /* this process has not met it: the driver says so */
        return shmd_fail(SHMD_E_REVOKED, "stream %s: another process truncated or removed a segment of the stream, or truncated the instance's authority; attach "
                         "again, and find the process that writes to /dev/shm", stream);
    int is_data = (shmd_load32_acquire(&mapping->damage.damaged) & SHMD_DAMAGED_DATA) != 0;
    return shmd_fail(SHMD_E_REVOKED, "stream %s: another process truncated segment %s (expected %llu bytes); attach again, and find the process "
                     "that writes to /dev/shm", stream, is_data ? mapping->data_name : mapping->gates_name,
                     (unsigned long long)(is_data ? header_bytes() + mapping->ring_bytes + mapping->arena_bytes : mapping->gates_bytes));
}

void shmd_mapping_hold(shmd_mapping *mapping) { (void)shmd_add32(&mapping->owners, 1); }

void shmd_mapping_free(shmd_mapping *mapping)
{
    if (mapping == NULL || shmd_sub32(&mapping->owners, 1) != 1)
        return;
    (void)shmd_segment_unmap(mapping->data, header_bytes());
    (void)shmd_segment_unmap(mapping->ring, mapping->ring_bytes * 2);
    (void)shmd_segment_unmap(mapping->arena, mapping->arena_bytes * 2);
    (void)shmd_segment_unmap(mapping->gates, mapping->gates_bytes);
    free(mapping->scratch);
    free(mapping);
}
