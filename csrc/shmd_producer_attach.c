/* shmd_producer_attach.c: a producer's attach (ask, map, confirm) and its end. */
#include "shmd_internal.h"

#include <stdio.h>
#include <stdlib.h>

void shmd_producer_options_init(shmd_producer_options *options)
{
    memset(options, 0, sizeof *options);
    options->arena_bytes = UINT64_MAX;
    options->timeout_ns = SHMD_ATTACH_TIMEOUT_NS;
    options->flags = SHMD_ATTACH_CREATE;
}

static void fill_request(shmd_request_t *request, const shmd_producer_options *options)
{
    request->flags = options->flags;
    request->slow_consumer = options->slow_consumer;
    request->min_consumers = options->min_consumers;
    request->slots = options->slots;
    request->slot_bytes = options->slot_bytes;
    request->max_message = options->max_message;
    request->arena_bytes = options->arena_bytes;
}

static const size_t wiped_bytes = offsetof(struct shmd_producer, gate_count);

shmd_producer *shmd_producer_new(shmd_client *client, const char *stream)
{
    shmd_producer *p = shmd_handle_new(sizeof *p, wiped_bytes);
    if (p == NULL) {
        (void)shmd_fail(SHMD_E_NO_MEMORY, "no memory for a producer");
        return NULL;
    }
    p->client = client;
    shmd_client_hold(client);
    p->fork_generation = shmd_fork_generation();
    (void)snprintf(p->stream, sizeof p->stream, "%s", stream);
    return p;
}

void shmd_producer_free(shmd_producer *p) { shmd_handle_free(p, sizeof *p, wiped_bytes); }

int shmd_producer_forked(const shmd_producer *p)
{
    return shmd_fail(SHMD_E_FORKED, "stream %s: this producer was made before fork; attach a new one in the child", p->stream);
}

static void give_back(shmd_producer *p, int may_wait)
{
    shmd_mapping_disown(p->mapping);
    shmd_mapping_free(p->mapping);
    p->mapping = NULL;
    free(p->spans);
    p->spans = NULL;
    shmd_client_drop(p->client, may_wait);
    p->client = NULL;
}

static int wire_producer(shmd_producer *p, const shmd_event_t *answer, uint32_t min_consumers)
{
    shmd_epoch_record_t record;
    uint32_t index = 0;
    int rc = shmd_stream_epoch(p->client, answer->stream_index, answer->stream_id, answer->epoch, &record, &index);
    rc = rc ? rc : shmd_mapping_open(p->client, &record, SHMD_ROLE_PRODUCER, &p->mapping);
    if (rc != SHMD_OK)
        return rc;
    p->data = p->mapping->data;
    p->slots = p->mapping->ring;
    p->arena = p->mapping->arena;
    p->arena_bytes = record.arena_bytes;
    p->gates = p->mapping->gates;
    p->hot = shmd_stream_hot(p->client, answer->stream_index, index);
    p->open_word = (uint64_t)answer->epoch << 8 | SHMD_EPOCH_OPEN;
    shmd_mapping_own(p->mapping, &p->open_word, UINT64_MAX);
    p->mask = record.slots - 1;
    p->bound = record.slots;
    p->slot_bytes = record.slot_bytes;
    p->ahead = shmd_slots_ahead(record.slots, record.slot_bytes);
    p->inline_max = record.slot_bytes - SHMD_SLOT_HEADER_BYTES;
    p->max_message = shmd_max(p->inline_max, shmd_min(record.arena_bytes / 2, UINT32_MAX - 1));
    p->stamp = (record.flags & SHMD_ATTACH_TIMESTAMPS) != 0;
    p->gate_count = record.gate_count;
    p->arena_limit = record.arena_bytes;
    p->min_consumers = min_consumers;
    p->ended_seal = UINT64_MAX;
    p->lease_id = answer->lease_id;
    p->lease_index = answer->lease_index;
    p->entry = answer->entry;
    p->stream_index = answer->stream_index;
    p->stream_id = answer->stream_id;
    p->epoch = answer->epoch;
    if (record.arena_bytes != 0) {
        p->spans = calloc(record.slots, sizeof *p->spans);
        if (p->spans == NULL)
            return shmd_fail(SHMD_E_NO_MEMORY, "no memory for the spans of %u slots", record.slots);
        if (p->mapping->prefaults)
            shmd_window_prefault(p->spans, record.slots * sizeof *p->spans);
    }
    return SHMD_OK;
}

int shmd_producer_attach(shmd_client *client, const char *stream, const shmd_producer_options *options, shmd_producer **out)
{
    shmd_request_t request;
    shmd_event_t answer;
    shmd_producer_options defaults;
    if (options == NULL) {
        shmd_producer_options_init(&defaults);
        options = &defaults;
    }
    int rc = shmd_request_begin(&request, SHMD_ROLE_PRODUCER, stream, options->schema);
    if (rc != SHMD_OK)
        return rc;
    fill_request(&request, options);
    rc = shmd_client_attach(client, &request, &answer, options->timeout_ns);
    if (rc != SHMD_OK)
        return rc;
    shmd_producer *p = shmd_producer_new(client, request.stream);
    if (p == NULL) {
        shmd_client_note_end(client, answer.entry, answer.lease_id, 1);
        return SHMD_E_NO_MEMORY;
    }
    rc = wire_producer(p, &answer, options->min_consumers);
    if (rc != SHMD_OK) {
        rc = shmd_client_attach_failed(client, &request, &answer, rc);
        give_back(p, 1);
        shmd_producer_free(p);
        return rc;
    }
    SHMD_FAILPOINT("attach.mapped");
    shmd_client_confirm(client, p->entry, p->lease_id);
    SHMD_FAILPOINT("attach.confirmed");
    *out = p;
    return SHMD_OK;
}

int shmd_producer_end(shmd_producer *p, int how)
{
    int rc = SHMD_OK;
    if (p->claim_open)
        (void)shmd_abort(p);
    if (!shmd_is_forked(p->fork_generation)) {
        shmd_producer_unblocked(p);
        if (how == SHMD_END_ABANDONED)
            shmd_client_note_end(p->client, p->entry, p->lease_id, 1);
        else
            rc = shmd_client_detach(p->client, p->entry, p->lease_id, SHMD_ROLE_PRODUCER, p->stream, how == SHMD_END_ABORTED);
    }
    give_back(p, how != SHMD_END_ABANDONED);
    return rc;
}

static int end_and_free(shmd_producer *p, int how)
{
    int rc = p == NULL ? SHMD_OK : shmd_producer_end(p, how);
    shmd_producer_free(p);
    return rc;
}

int shmd_producer_close(shmd_producer *producer) { return end_and_free(producer, SHMD_END_CLEAN); }
int shmd_producer_abort(shmd_producer *producer) { return end_and_free(producer, SHMD_END_ABORTED); }
void shmd_producer_abandon(shmd_producer *producer) { (void)end_and_free(producer, SHMD_END_ABANDONED); }
