/* rig.h: one stream with one epoch, wired by hand instead of by a driver, all in this process.
 *
 * Authority and control are plain memory; data and gates are real segments, because consumers map them by name. Producers and
 * consumers are the core's own structs, filled as its attach fills them; the driver's calls (join, leave, seal) are its own. */
#ifndef SHMD_RIG_H
#define SHMD_RIG_H

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test.h"

enum { RIG_STREAM_ID = 7, RIG_EPOCH = 3, RIG_GATES = 8 };

typedef struct rig {
    shmd_geometry_t geometry;
    shmd_authority_t *authority;
    shmd_control_t *control;
    shmd_stream_record_t *stream;
    shmd_epoch_hot_t *hot;
    shmd_data_t *data;
    unsigned char *ring;
    unsigned char *arena;
    shmd_gates_t *gates;
    shmd_client client;
} rig_t;

/* A client's control segment, in plain memory. */
static inline shmd_control_t *rig_control(uint64_t client_id)
{
    uint64_t bytes = shmd_client_ring_footprint();
    shmd_control_t *control = test_memory(bytes);
    CHECK_EQ(shmd_client_ring_init(control, bytes, client_id, 99, 1), SHMD_OK);
    shmd_segment_complete(control);
    return control;
}

/* The client of the rig has that record and nonce. */
static inline void rig_ring(rig_t *rig, uint32_t index, uint64_t nonce)
{
    rig->client.index = index;
    rig->client.nonce = nonce;
    CHECK_EQ(shmd_client_ring_open(&rig->client.ring, rig->control, &shmd_authority_client(rig->authority, index)->control_cursor, index, nonce), SHMD_OK);
}

static inline void rig_authority(rig_t *rig)
{
    shmd_authority_params_t params = {.instance = "rig", .boot_id = 99, .now_ns = 1,
                                      .heartbeat_interval_ns = 1000, .lease_timeout_ns = 1000, .client_max = 8, .lease_max = 16,
                                      .stream_max = 2, .event_slots = 16, .config_bytes = 256, .error_max = 4};
    uint64_t bytes = shmd_authority_footprint(&params);
    CHECK(bytes != 0);
    rig->authority = test_memory(bytes);
    CHECK_EQ(shmd_authority_init(rig->authority, bytes, &params), SHMD_OK);
    shmd_segment_complete(rig->authority);
    rig->control = rig_control(5);
    rig->client.authority = rig->authority;
    rig->client.control = rig->control;
    rig->client.tables = *rig->authority;
    rig->client.boot_id = params.boot_id;
    rig->client.owner = geteuid(); /* as what makes the segments below */
    rig->client.fork_generation = shmd_fork_generation();
    shmd_notifier_init(&rig->client.notifier);
    rig_ring(rig, 0, 0);
}

static char rig_names[512][SHMD_SEGMENT_NAME_BYTES]; /* of this process, to be unlinked whatever happens */

static inline void rig_unlink(void)
{
    for (size_t i = 0; i < sizeof rig_names / sizeof rig_names[0]; i++) {
        if (rig_names[i][0] != 0)
            (void)shm_unlink(rig_names[i]);
        rig_names[i][0] = 0;
    }
}

/* Whether the process that the name names is proved to have ended. */
static inline int rig_owner_is_gone(const char *name)
{
    long pid;
    unsigned long long started, pid_namespace, time_namespace;
    uint32_t evidence;
    if (sscanf(name, "shmd.ctest-%ld-%llu-%llu-%llu-", &pid, &started, &pid_namespace, &time_namespace) != 4)
        return 0;
    shmd_process_t owner = {.pid = pid, .start_time = started, .pid_namespace = pid_namespace, .time_namespace = time_namespace};
    return shmd_process_look(&owner, NULL, &evidence) == SHMD_PROCESS_DEAD;
}

/* What tests that were killed have left. */
static inline void rig_collect(void)
{
    DIR *folder = opendir("/dev/shm");
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;)
        if (rig_owner_is_gone(entry->d_name))
            (void)unlinkat(dirfd(folder), entry->d_name, 0);
    if (folder != NULL)
        (void)closedir(folder);
}

/* "/shmd.ctest-" and whose it is: pid, start time, PID namespace; then a number and the kind. */
static inline void rig_name(char *name, const char *kind)
{
    static unsigned serial;
    shmd_process_t self;
    if (serial == 0)
        rig_collect();
    shmd_process_self(&self);
    (void)snprintf(name, SHMD_SEGMENT_NAME_BYTES, "/shmd.ctest-%ld-%llu-%llu-%llu-%u.%s", (long)self.pid, (unsigned long long)self.start_time,
                   (unsigned long long)self.pid_namespace, (unsigned long long)self.time_namespace, serial++, kind);
}

static inline int rig_segment(const char *kind, uint64_t bytes, char *name)
{
    static int registered;
    size_t i = 0;
    if (!registered++)
        (void)atexit(rig_unlink);
    while (rig_names[i][0] != 0)
        i++;
    rig_name(rig_names[i], kind);
    memcpy(name, rig_names[i], SHMD_SEGMENT_NAME_BYTES);
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || posix_fallocate(fd, 0, (off_t)bytes) != 0)
        SKIP("no shared memory here");
    return fd;
}

/* Opens epoch `epoch` of the stream in its record `index`. first: the seq that it begins at, as no real one does. */
static inline void rig_epoch(rig_t *rig, uint32_t index, uint32_t epoch, uint64_t first)
{
    shmd_epoch_record_t fresh, *record = &fresh; /* filled out of sight: a notifier may be looking at the table */
    shmd_geometry_t *geometry = &rig->geometry;
    geometry->epoch = epoch;
    uint64_t page = shmd_page_bytes();
    uint64_t ring_bytes = (uint64_t)geometry->slots * geometry->slot_bytes;
    uint64_t ring_offset = shmd_round_up(SHMD_DATA_HEADER_BYTES, page);
    *record = (shmd_epoch_record_t){.slots = geometry->slots, .slot_bytes = geometry->slot_bytes, .arena_bytes = geometry->arena_bytes,
                                    .gate_count = RIG_GATES, .data_bytes = shmd_data_footprint(geometry),
                                    .gates_bytes = shmd_gates_footprint(RIG_GATES), .stream_id = RIG_STREAM_ID, .epoch = epoch,
                                    .producer_pid = getpid()};
    int fd = rig_segment("data", record->data_bytes, record->data_name);
    void *out = NULL;
    CHECK_EQ(shmd_segment_map(fd, 0, ring_offset, 1, 1, &out), SHMD_OK);
    rig->data = out;
    CHECK_EQ(shmd_segment_map_mirrored(fd, ring_offset, ring_bytes, 1, 1, &out), SHMD_OK);
    rig->ring = out;
    rig->arena = NULL;
    if (geometry->arena_bytes != 0) {
        CHECK_EQ(shmd_segment_map_mirrored(fd, ring_offset + ring_bytes, geometry->arena_bytes, 1, 1, &out), SHMD_OK);
        rig->arena = out;
    }
    (void)close(fd);
    CHECK_EQ(shmd_data_init(rig->data, record->data_bytes, geometry, NULL), SHMD_OK);
    shmd_segment_complete(rig->data);
    fd = rig_segment("gates", record->gates_bytes, record->gates_name);
    CHECK_EQ(shmd_segment_map(fd, 0, record->gates_bytes, 1, 1, &out), SHMD_OK);
    rig->gates = out;
    (void)close(fd);
    CHECK_EQ(shmd_gates_init(rig->gates, record->gates_bytes, geometry), SHMD_OK);
    shmd_segment_complete(rig->gates);
    shmd_copy_to_shared(&rig->stream->epochs[index], record, sizeof *record);
    rig->hot = &rig->stream->epochs[index].hot;
    shmd_store_release(&rig->data->head, first);
    shmd_store_release(&rig->hot->state, (uint64_t)epoch << 8 | SHMD_EPOCH_OPEN);
    shmd_store_release(&rig->stream->epoch_count, epoch);
}

static inline void rig_start(rig_t *rig, uint32_t slots, uint32_t slot_bytes, uint64_t arena_bytes, uint64_t first)
{
    memset(rig, 0, sizeof *rig);
    rig_authority(rig);
    shmd_geometry_round(&slots, &slot_bytes, &arena_bytes);
    rig->geometry = (shmd_geometry_t){.slots = slots, .slot_bytes = slot_bytes, .arena_bytes = arena_bytes, .gate_count = RIG_GATES,
                                      .stream_id = RIG_STREAM_ID, .epoch = RIG_EPOCH, .boot_id = 99, .now_ns = 1};
    rig->stream = shmd_authority_stream(rig->authority, 0);
    rig->stream->stream_id = RIG_STREAM_ID;
    rig_epoch(rig, 0, RIG_EPOCH, first);
}

/* Unmaps the epoch that was opened last. */
static inline void rig_epoch_unmap(rig_t *rig)
{
    (void)shmd_segment_unmap(rig->ring, 2 * (uint64_t)rig->geometry.slots * rig->geometry.slot_bytes);
    (void)shmd_segment_unmap(rig->arena, 2 * rig->geometry.arena_bytes);
    (void)shmd_segment_unmap(rig->data, shmd_round_up(SHMD_DATA_HEADER_BYTES, shmd_page_bytes()));
    (void)shmd_segment_unmap(rig->gates, shmd_gates_footprint(RIG_GATES));
}

static inline void rig_stop(rig_t *rig)
{
    rig_epoch_unmap(rig);
    free(rig->authority);
    free(rig->control);
    rig_unlink();
}

/* Lease record index 0 is the producer's; consumer g has record g + 1. */
static inline uint64_t rig_lease(rig_t *rig, uint32_t index, uint32_t state)
{
    shmd_lease_record_t *lease = shmd_authority_lease(rig->authority, index);
    lease->lease_id = 1000 + index;
    lease->index = index;
    shmd_store_release(&lease->word, (lease->word & ~(uint64_t)0xff) + 0x200 + state);
    return lease->lease_id;
}

static inline shmd_producer *rig_producer(rig_t *rig)
{
    shmd_producer *p = shmd_producer_new(&rig->client, "rig");
    CHECK(p != NULL);
    p->slots = rig->ring;
    p->mask = rig->geometry.slots - 1;
    p->bound = rig->geometry.slots;
    p->seq = shmd_load_relaxed(&rig->data->head);
    p->hot = rig->hot;
    p->open_word = shmd_load_relaxed(&rig->hot->state);
    p->data = rig->data;
    p->slot_bytes = rig->geometry.slot_bytes;
    p->inline_max = p->slot_bytes - SHMD_SLOT_HEADER_BYTES;
    p->ahead = shmd_slots_ahead(rig->geometry.slots, rig->geometry.slot_bytes);
    p->max_message = shmd_max(p->inline_max, rig->geometry.arena_bytes / 2);
    p->arena = rig->arena;
    p->arena_bytes = rig->geometry.arena_bytes;
    p->arena_limit = rig->geometry.arena_bytes;
    p->gates = rig->gates;
    p->gate_count = RIG_GATES;
    p->ended_seal = UINT64_MAX;
    p->lease_id = rig_lease(rig, 0, SHMD_LEASE_ACTIVE);
    p->epoch = RIG_EPOCH;
    p->stream_id = RIG_STREAM_ID;
    if (p->arena_bytes != 0)
        p->spans = test_memory(rig->geometry.slots * sizeof *p->spans);
    return p;
}

/* As if the arena had been used up to this position. */
static inline void rig_producer_arena_at(shmd_producer *p, uint64_t position)
{
    p->arena_next = position;
    p->arena_intent = position;
    p->arena_offset = position % p->arena_bytes;
    p->arena_limit = position + p->arena_bytes;
    shmd_store_relaxed(&p->data->arena_intent, position);
}

static inline void rig_producer_free(shmd_producer *p)
{
    free(p->spans);
    shmd_producer_free(p);
}

/* A consumer of the rig's epoch on this gate. As the driver's attach and the client's do it. */
static inline shmd_consumer *rig_consumer(rig_t *rig, uint32_t gate, uint32_t delivery, uint32_t wait, int oldest, uint32_t flags)
{
    shmd_consumer *c = shmd_consumer_new(&rig->client, "rig");
    CHECK(c != NULL);
    c->delivery = delivery;
    c->wait = wait;
    c->flags = flags;
    c->gate_index = gate;
    c->gate_bit = (uint64_t)1 << gate;
    c->lease_index = gate + 1;
    c->lease_id = rig_lease(rig, c->lease_index, SHMD_LEASE_ACTIVE);
    c->stream_id = RIG_STREAM_ID;
    c->gated_from = UINT64_MAX;
    c->stride = 1;
    c->hold_seq = UINT64_MAX;
    uint64_t start = 0;
    uint64_t joined = shmd_epoch_join(rig->hot, rig->data, rig->gates, &rig->geometry, gate, delivery == SHMD_DELIVERY_RELIABLE,
                                      wait != SHMD_WAIT_SPIN, c->lease_id, oldest, 0, &start);
    shmd_message message;
    (void)shmd_poll(c, &message); /* maps the epoch that it is wired to */
    CHECK(c->mapping != NULL);
    c->polled = 0;
    c->position = delivery == SHMD_DELIVERY_LATEST && start != 0 ? shmd_max(start, joined) - 1 : start;
    c->gate_published = joined;
    if (delivery == SHMD_DELIVERY_RELIABLE)
        c->gated_from = joined;
    c->lost = c->skipped = c->lost_range_count = 0;
    return c;
}

static inline void rig_consumer_free(shmd_consumer *c)
{
    shmd_mapping_free(c->mapping);
    shmd_mapping_free(c->retired);
    shmd_consumer_prepared_free(c);
    shmd_consumer_free(c);
}

/* What an ungated reader needs. */
static inline shmd_ring_view_t rig_view(const rig_t *rig)
{
    return (shmd_ring_view_t){.slots = rig->ring, .arena = rig->arena, .arena_intent = &rig->data->arena_intent,
                              .mask = rig->geometry.slots - 1, .arena_bytes = rig->geometry.arena_bytes,
                              .slot_bytes = rig->geometry.slot_bytes,
                              .inline_max = rig->geometry.slot_bytes - SHMD_SLOT_HEADER_BYTES};
}

/* A payload that says what it should be: words derived from seq and length, so that any mix is recognised. */
static inline void rig_fill(void *out, uint32_t length, uint64_t seq)
{
    unsigned char *to = out;
    uint64_t word = seq * 0x9e3779b97f4a7c15u + length;
    for (uint32_t at = 0; at < length; at += 8, word += 0x100000001b3u)
        memcpy(to + at, &word, length - at < 8 ? length - at : 8);
}

static inline int rig_matches(const void *payload, uint32_t length, uint64_t seq)
{
    const unsigned char *from = payload;
    uint64_t word = seq * 0x9e3779b97f4a7c15u + length;
    for (uint32_t at = 0; at < length; at += 8, word += 0x100000001b3u) {
        if (memcmp(from + at, &word, length - at < 8 ? length - at : 8) != 0)
            return 0;
    }
    return 1;
}

#endif
