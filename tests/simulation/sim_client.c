/* sim_client.c: the native client of a simulation: the core's own handles, but no call that waits for a driver.
 *
 * Python sends requests and receives answers, so that one thread plays all processes and the driver. The three functions
 * that speak with the driver on a handle's behalf are replaced at link time (ld --wrap, native.py); all else is the core.
 * Nothing here is shipped. One of the core's files is included whole for its static part: claim (of a control slot).
 */
#include "shmd_control_ring.c"

typedef struct sim_message {
    uint64_t seq;
    uint64_t tag;       /* first word of the payload */
    uint64_t lost;      /* the consumer's counters when it was handed out */
    uint64_t skipped;
    uint64_t epoch;
    uint64_t bad;       /* payload words that are not the first one */
} sim_message_t;

shmd_client *sim_client_new(const shmd_authority_t *authority, shmd_control_t *control, uint64_t nonce)
{
    shmd_client *client = calloc(1, sizeof *client);
    if (client == NULL)
        return NULL;
    client->authority = authority;
    client->control = control;
    client->tables = *authority;
    client->boot_id = authority->header.boot_id;
    client->nonce = nonce;
    client->fork_generation = shmd_fork_generation();
    client->references = 1u << 30; /* the mappings are the simulation's */
    if (shmd_heartbeat_init(client) == SHMD_OK)
        return client;
    free(client);
    return NULL;
}

void sim_client_free(shmd_client *client)
{
    shmd_heartbeat_free(client);
    free(client);
}

void sim_client_beat(shmd_client *client, uint64_t client_id, uint32_t index)
{
    shmd_heartbeat_t *line = shmd_control_heartbeat(client->control, client->tables.client_max, client->tables.lease_max, index);
    client->client_id = client_id;
    client->index = index;
    shmd_store_relaxed(&line->client_id, client_id);
    shmd_client_beat(client);
}

int sim_send(shmd_client *client, shmd_request_t *request, uint32_t who)
{
    return shmd_control_send(client->control, client->authority, request, who, client->nonce, 0);
}

/* A claim that is committed later or never. */
int sim_control_claim(shmd_client *client, uint32_t who, uint64_t *position)
{
    return claim(client->control, client->authority, who, position);
}

/* checksum: added to the right one. 1 committed, 0 too late. */
int sim_control_commit(shmd_client *client, shmd_request_t *request, uint32_t who, uint64_t position, uint64_t checksum)
{
    shmd_control_slot_t *slot = shmd_control_slot(client->control, position);
    uint32_t lap = shmd_position_lap(position);
    request->position = position;
    request->checksum = shmd_request_checksum(request, who, client->nonce) + checksum;
    shmd_copy_to_shared(&slot->request, request, sizeof *request);
    if (shmd_cas(&slot->turn, shmd_turn(lap, who, SHMD_TURN_CLAIMED), shmd_turn(lap, who, SHMD_TURN_COMMITTED))) {
        (void)shmd_add32(&client->control->doorbell, 1);
        return 1;
    }
    (void)shmd_cas(&slot->turn, shmd_turn(lap, who, SHMD_TURN_QUARANTINED), shmd_turn(lap, who, SHMD_TURN_RELEASED));
    return 0;
}

/* ---- what a handle says to the driver -------------------------------------------------- */

static const shmd_event_t *answer_to_attach;

int __wrap_shmd_client_attach(shmd_client *client, shmd_request_t *request, shmd_event_t *answer, uint64_t timeout_ns)
{
    (void)client, (void)request, (void)timeout_ns;
    *answer = *answer_to_attach;
    return SHMD_OK;
}

/* A handle that is dropped, as the kernel does it with a process: unmapped, nobody told. */
int __wrap_shmd_client_detach(shmd_client *client, uint64_t lease_id, uint32_t role, const char *stream, int aborted, int wait_answer)
{
    (void)role, (void)stream, (void)aborted, (void)wait_answer;
    shmd_client_unconfirm(client, lease_id);
    return SHMD_OK;
}

void __real_shmd_client_confirm(shmd_client *client, uint32_t lease_index, uint64_t lease_id);
void __wrap_shmd_client_confirm(shmd_client *client, uint32_t lease_index, uint64_t lease_id)
{
    (void)client, (void)lease_index, (void)lease_id; /* an act of its own: sim_confirm */
}

void sim_confirm(shmd_client *client, uint32_t lease_index, uint64_t lease_id) { __real_shmd_client_confirm(client, lease_index, lease_id); }

int sim_produce(shmd_client *client, const shmd_event_t *answer, uint32_t min_consumers, shmd_producer **out)
{
    shmd_producer_options options;
    shmd_producer_options_init(&options);
    options.min_consumers = min_consumers;
    answer_to_attach = answer;
    return shmd_producer_attach(client, answer->stream, &options, out);
}

int sim_consume(shmd_client *client, const shmd_event_t *answer, uint32_t delivery, uint32_t wait, uint32_t flags, shmd_consumer **out)
{
    shmd_consumer_options options;
    shmd_consumer_options_init(&options);
    options.delivery = delivery;
    options.wait = wait;
    options.flags = flags;
    answer_to_attach = answer;
    return shmd_consumer_attach(client, answer->stream, &options, out);
}

void sim_producer_drop(shmd_producer *p) { (void)shmd_producer_abort(p); }
void sim_consumer_drop(shmd_consumer *c) { (void)shmd_consumer_close(c); }

/* ---- data ------------------------------------------------------------------------------- */

static uint64_t tag_of(const shmd_producer *p) { return (uint64_t)p->stream_id << 48 | (uint64_t)p->epoch << 32 | p->seq; }

static int publish_one(shmd_producer *p, uint32_t bytes, int in_place)
{
    uint64_t payload[512];
    uint64_t tag = tag_of(p);
    void *room = payload;
    if (in_place) {
        int rc = shmd_claim(p, bytes, &room);
        if (rc != SHMD_OK)
            return rc;
    }
    for (uint32_t i = 0; i < bytes / 8; i++)
        memcpy((unsigned char *)room + i * 8, &tag, 8);
    return in_place ? shmd_commit(p, bytes, 0) : shmd_publish(p, payload, bytes, 0);
}

/* n messages of `bytes` (a multiple of 8, at most 4096), each filled with its tag. How many went in; *rc: why no more. */
uint64_t sim_publish(shmd_producer *p, uint32_t bytes, uint64_t n, int in_place, int *rc)
{
    uint64_t done = 0;
    *rc = SHMD_OK;
    for (; done < n && *rc == SHMD_OK; done += *rc == SHMD_OK)
        *rc = publish_one(p, bytes, in_place);
    return done;
}

/* What a producer leaves that is killed between the commit and the store of the head: n messages. */
uint64_t sim_publish_headless(shmd_producer *p, uint64_t n)
{
    uint64_t done = 0;
    while (done < n && p->seq < p->limit && shmd_load_acquire(&p->hot->state) == p->open_word) {
        uint64_t tag = tag_of(p);
        shmd_slot_t *slot = shmd_producer_slot(p, p->seq);
        shmd_slot_open(slot, p->seq);
        shmd_copy_to_shared(shmd_slot_payload(slot), &tag, sizeof tag);
        shmd_slot_commit(slot, p->seq++, sizeof tag, 0, 0, 0);
        done++;
    }
    return done;
}

/* A claim left open: what a producer leaves that is killed in the middle of a message. */
int sim_claim(shmd_producer *p, uint32_t bytes)
{
    void *room;
    int rc = shmd_claim(p, bytes, &room);
    if (rc == SHMD_OK)
        memset(room, 0xee, bytes / 2);
    return rc;
}

int sim_commit(shmd_producer *p) /* of that claim, after all */
{
    uint64_t tag = tag_of(p);
    uint32_t bytes = p->claim_length;
    for (uint32_t i = 0; p->claim_open && i < bytes / 8; i++)
        memcpy((unsigned char *)p->claim_data + i * 8, &tag, 8);
    return shmd_commit(p, bytes, 0);
}

int sim_abort(shmd_producer *p) { return shmd_abort(p); }

static uint64_t count_bad(const shmd_message *m)
{
    const uint64_t *words = m->data;
    uint64_t bad = m->length < 8 || m->length % 8 != 0;
    for (uint32_t i = 1; i < m->length / 8; i++)
        bad += words[i] != words[0];
    return bad;
}

static sim_message_t seen(const shmd_consumer *c, const shmd_message *m)
{
    return (sim_message_t){.seq = m->seq, .tag = *(const uint64_t *)m->data, .lost = c->lost, .skipped = c->skipped,
                           .epoch = c->epoch, .bad = count_bad(m)};
}

/* Up to limit messages, one by one or as runs. How many; *rc: 0 nothing more now, 1 limit reached, negative: over. */
uint64_t sim_poll(shmd_consumer *c, sim_message_t *out, uint64_t limit, int runs, int *rc)
{
    shmd_message found[64];
    uint64_t done = 0;
    *rc = 1;
    while (done < limit) {
        int64_t n = runs ? shmd_poll_many(c, found, shmd_min(limit - done, 64)) : shmd_poll(c, found);
        if (n <= 0) {
            *rc = (int)n;
            return done;
        }
        for (int64_t i = 0; i < n; i++)
            out[done++] = seen(c, &found[i]);
        (void)shmd_advance(c);
    }
    return done;
}

void sim_consumer_state(const shmd_consumer *c, uint64_t out[8])
{
    out[0] = c->epoch;
    out[1] = c->last_epoch;
    out[2] = c->position;
    out[3] = c->lost;
    out[4] = c->skipped;
    out[5] = c->consumed;
    out[6] = c->end_reason;
    out[7] = c->sealed_seq;
}

/* A consumer that lies about where it is. 0: it has no gate now. */
int sim_lie(shmd_consumer *c, uint64_t position)
{
    if (c->gate == NULL)
        return 0;
    shmd_store_release(&c->gate->position, position);
    return 1;
}
