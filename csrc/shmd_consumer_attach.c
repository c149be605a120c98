/* shmd_consumer_attach.c: a consumer's attach (ask, map, confirm) and its end. */
#include "shmd_internal.h"

#include <stdio.h>
#include <stdlib.h>

void shmd_consumer_options_init(shmd_consumer_options *options)
{
    memset(options, 0, sizeof *options);
    options->delivery = SHMD_DELIVERY_RELIABLE;
    options->start = SHMD_START_NEWEST;
    options->wait = SHMD_WAIT_ADAPTIVE;
    options->pace = SHMD_PACE_AUTO;
    options->timeout_ns = SHMD_ATTACH_TIMEOUT_NS;
    options->flags = SHMD_ATTACH_CREATE;
}

/* The caller's options, with the default in place of each 0 that is no choice. */
static shmd_consumer_options chosen(const shmd_consumer_options *options)
{
    shmd_consumer_options choice;
    shmd_consumer_options_init(&choice);
    if (options == NULL)
        return choice;
    choice.schema = options->schema;
    choice.timeout_ns = options->timeout_ns;
    choice.flags = options->flags;
    choice.delivery = options->delivery ? options->delivery : choice.delivery;
    choice.start = options->start ? options->start : choice.start;
    choice.wait = options->wait ? options->wait : choice.wait;
    choice.pace = options->pace ? options->pace : choice.pace;
    choice.shard = options->shard;
    choice.shards = options->shards;
    return choice;
}

static const size_t wiped_bytes = offsetof(struct shmd_consumer, scratch);

shmd_consumer *shmd_consumer_new(shmd_client *client, const char *stream)
{
    shmd_consumer *c = shmd_handle_new(sizeof *c, wiped_bytes);
    if (c == NULL) {
        (void)shmd_fail(SHMD_E_NO_MEMORY, "no memory for a consumer");
        return NULL;
    }
    c->client = client;
    shmd_client_hold(client);
    c->fork_generation = shmd_fork_generation();
    (void)snprintf(c->stream, sizeof c->stream, "%s", stream);
    return c;
}

void shmd_consumer_free(shmd_consumer *c) { shmd_handle_free(c, sizeof *c, wiped_bytes); }

int shmd_consumer_check_fork(const shmd_consumer *c)
{
    if (!shmd_is_forked(c->fork_generation))
        return SHMD_OK;
    return shmd_fail(SHMD_E_FORKED, "stream %s: this consumer was made before fork; attach a new one in the child", c->stream);
}

static void give_back(shmd_consumer *c, int may_wait)
{
    shmd_mapping_disown(c->mapping);
    shmd_mapping_free(c->mapping);
    shmd_mapping_free(c->retired);
    shmd_consumer_prepared_free(c);
    c->mapping = c->retired = NULL;
    c->gate = NULL;
    c->data = NULL;
    c->bound = c->look_until = 0;
    c->scratch = NULL;
    shmd_client_drop(c->client, may_wait);
    c->client = NULL;
}

static int wire_first(shmd_consumer *c, const shmd_event_t *answer)
{
    shmd_epoch_record_t record;
    uint32_t index = 0;
    if (answer->epoch == 0)
        return SHMD_OK;
    int rc = shmd_stream_epoch(c->client, answer->stream_index, answer->stream_id, answer->epoch, &record, &index);
    return rc ? rc : shmd_consumer_wire(c, &record, index, answer->start_seq, answer->value);
}

int shmd_consumer_attach(shmd_client *client, const char *stream, const shmd_consumer_options *options, shmd_consumer **out)
{
    shmd_request_t request;
    shmd_event_t answer;
    shmd_consumer_options choice = chosen(options);
    int rc = shmd_request_begin(&request, SHMD_ROLE_CONSUMER, stream, choice.schema);
    if (rc == SHMD_OK && (choice.shards > SHMD_GATE_MAX || choice.shard >= (choice.shards ? choice.shards : 1)))
        rc = shmd_fail(SHMD_E_INVALID, "shard %u of %u: expected at most %d shards, numbered from 0", choice.shard, choice.shards, SHMD_GATE_MAX);
    if (rc == SHMD_OK && choice.pace > SHMD_PACE_EAGER)
        rc = shmd_fail(SHMD_E_INVALID, "pace is %u, expected SHMD_PACE_AUTO (%d) or SHMD_PACE_EAGER (%d)", choice.pace,
                       SHMD_PACE_AUTO, SHMD_PACE_EAGER);
    if (rc != SHMD_OK)
        return rc;
    request.delivery = choice.delivery;
    request.start = choice.start;
    request.wait = choice.wait;
    request.flags = choice.flags;
    request.shards = choice.shards;
    rc = shmd_client_attach(client, &request, &answer, choice.timeout_ns);
    if (rc != SHMD_OK)
        return rc;
    shmd_consumer *c = shmd_consumer_new(client, request.stream);
    if (c == NULL) {
        shmd_client_note_end(client, answer.entry, answer.lease_id, 1);
        return SHMD_E_NO_MEMORY;
    }
    c->delivery = choice.delivery;
    c->wait = choice.wait;
    c->pace = choice.pace;
    c->flags = choice.flags;
    c->stride = choice.shards ? choice.shards : 1;
    c->slack = c->stride - 1;
    c->shard = choice.shard;
    c->hold_seq = UINT64_MAX;
    c->gate_index = answer.gate;
    c->gate_bit = (uint64_t)1 << (answer.gate & 63);
    c->lease_id = answer.lease_id;
    c->lease_index = answer.lease_index;
    c->entry = answer.entry;
    c->stream_index = answer.stream_index;
    c->stream_id = answer.stream_id;
    c->gated_from = UINT64_MAX;
    rc = wire_first(c, &answer);
    if (rc != SHMD_OK) {
        rc = shmd_client_attach_failed(client, &request, &answer, rc);
        give_back(c, 1);
        shmd_consumer_free(c);
        return rc;
    }
    SHMD_FAILPOINT("attach.mapped");
    shmd_client_confirm(client, c->entry, c->lease_id);
    SHMD_FAILPOINT("attach.confirmed");
    *out = c;
    return SHMD_OK;
}

uint64_t shmd_consumer_delivered(const shmd_consumer *c)
{
    uint64_t delivered = 0;
    if (c->data == NULL)
        return 0;
    uint64_t gates = (c->mapping->gates_bytes - SHMD_GATES_HEADER_BYTES) / sizeof(shmd_gate_t);
    for (uint32_t i = 0; i < shmd_min(gates, SHMD_GATE_MAX); i++)
        delivered = shmd_max(delivered, shmd_load_acquire(&shmd_gates_gate(c->mapping->gates, i)->delivered)); /* C2 */
    return shmd_min(delivered, shmd_load_acquire(&c->data->head)); /* a claim of a consumer: no further than there are messages */
}

/* Over messages that it does not want. A producer that keeps what is unread waits until it is told. */
static void pass_over(shmd_consumer *c, uint64_t seq)
{
    if (c->data == NULL || seq <= c->position)
        return;
    c->position = shmd_shard_next(c, seq);
    c->fenced_at = UINT64_MAX; /* its next idle turn wakes the producer (W2) */
    shmd_store_release(&c->gate->cursor, c->position); /* C2 */
}

void shmd_consumer_resume(shmd_consumer *c)
{
    c->resumes = 1;
    c->stamped = 0; /* a queue's stamps are for its order: nobody pays for counting latencies */
    pass_over(c, shmd_consumer_delivered(c));
}

/* Whether the epoch that is mapped has ended so that nobody can be wired to it any more, and nobody is; and where it ends. Only
 * a clean end can still be joined, until it is retired. A freed record keeps both, until it is used again. */
static int is_left_to_us(const shmd_consumer *c, const shmd_epoch_record_t *record, uint64_t *sealed_seq)
{
    uint64_t state = shmd_load_acquire(&record->hot.state); /* X2 */
    uint32_t low = (uint32_t)(state & 0xff);
    int is_sealed = state == ((uint64_t)c->epoch << 8 | SHMD_EPOCH_SEALED);
    if (!is_sealed && low != SHMD_EPOCH_RETIRED && low != SHMD_EPOCH_FREE)
        return 0;
    if (is_sealed && shmd_load_acquire(&record->hot.gate_mask) != 0)
        return 0;
    uint32_t reason;
    return shmd_epoch_end(record, c->epoch, sealed_seq, &reason) && !(is_sealed && reason == SHMD_REASON_CLOSED);
}

int shmd_consumer_drain(shmd_consumer *c)
{
    uint64_t sealed_seq;
    if (c->mapping == NULL || !c->resumes || c->delivery != SHMD_DELIVERY_RELIABLE || c->ended != -SHMD_E_REVOKED || c->drained.state != 0 ||
        shmd_mapping_is_damaged(c->mapping) ||
        !is_left_to_us(c, &shmd_client_stream(c->client, c->stream_index)->epochs[c->record], &sealed_seq))
        return 0;
    c->drained = (shmd_epoch_hot_t){.state = (uint64_t)c->epoch << 8 | SHMD_EPOCH_SEALED, .gate_mask = UINT64_MAX, .sleep_mask = UINT64_MAX,
                                    .sealed_seq = sealed_seq, .wired_mask = UINT64_MAX};
    c->hot = &c->drained; /* nobody writes there: the epoch is as sealed as it will ever be */
    c->open_word = c->drained.state;
    c->bound = c->look_until = c->sealed_seq = sealed_seq;
    c->ended = c->end_reason = 0;
    c->polled = 0;
    shmd_consumer_resume(c);
    return 1;
}

void shmd_consumer_begin_at(shmd_consumer *c, uint32_t epoch, uint64_t seq)
{
    if (c->epoch == epoch)
        pass_over(c, seq);
}

static uint64_t end_seq(const shmd_consumer *c)
{
    uint64_t state = shmd_load_acquire(&c->hot->state); /* X2 */
    if (state == ((uint64_t)c->epoch << 8 | SHMD_EPOCH_SEALED)) {
        uint64_t sealed = shmd_load_relaxed(&c->hot->sealed_seq);
        if (shmd_seqlock_same(&c->hot->state, state))
            return sealed;
    }
    uint64_t seq = shmd_load_acquire(&c->data->head); /* P3 */
    for (uint64_t n = 0; n <= c->mask && shmd_load_acquire(&shmd_consumer_slot(c, seq)->commit) == ((seq << 1) | 1); n++) /* P2 */
        seq++;
    return seq;
}

uint64_t shmd_consumer_end_seq(const shmd_consumer *c)
{
    if (!shmd_consumer_look_begin(c))
        return c->position; /* it has left its last epoch, drained */
    uint64_t seq = end_seq(c);
    shmd_consumer_look_end(c);
    return seq;
}

int shmd_consumer_end(shmd_consumer *c, int how)
{
    int rc = SHMD_OK;
    if (!shmd_is_forked(c->fork_generation)) {
        shmd_watch_end(c);
        if (how == SHMD_END_ABANDONED)
            shmd_client_note_end(c->client, c->entry, c->lease_id, 1);
        else
            rc = shmd_client_detach(c->client, c->entry, c->lease_id, SHMD_ROLE_CONSUMER, c->stream, 0);
    }
    give_back(c, how != SHMD_END_ABANDONED);
    return rc;
}

static int end_and_free(shmd_consumer *c, int how)
{
    int rc = c == NULL ? SHMD_OK : shmd_consumer_end(c, how);
    shmd_consumer_free(c);
    return rc;
}

int shmd_consumer_close(shmd_consumer *consumer) { return end_and_free(consumer, SHMD_END_CLEAN); }
void shmd_consumer_abandon(shmd_consumer *consumer) { (void)end_and_free(consumer, SHMD_END_ABANDONED); }
