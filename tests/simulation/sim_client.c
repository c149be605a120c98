/* sim_client.c: the native client of a simulation: the core's own handles, but no call that waits for a driver.
 *
 * Python sends requests and receives answers, so that one thread plays all processes and the driver. The three functions
 * that speak with the driver on a handle's behalf are replaced at link time (ld --wrap, native.py); all else is the core.
 * Nothing here is shipped.
 */
#include "core/shmd_client_ring.h"
#include "shmd_internal.h"

typedef struct sim_message {
    uint64_t seq;
    uint64_t tag;       /* first word of the payload */
    uint64_t lost;      /* the consumer's counters when it was handed out */
    uint64_t skipped;
    uint64_t epoch;
    uint64_t bad;       /* payload words that are not the first one */
} sim_message_t;

typedef struct sim_client {
    shmd_client core;           /* for handles; its own connection, threads and segment are not used */
    shmd_client_ring_t ring;
} sim_client;

sim_client *sim_client_new(const shmd_authority_t *authority, uint64_t nonce)
{
    sim_client *client = calloc(1, sizeof *client);
    if (client == NULL)
        return NULL;
    client->core.authority = authority;
    client->core.tables = *authority;
    client->core.boot_id = authority->header.boot_id;
    client->core.nonce = nonce;
    client->core.fork_generation = shmd_fork_generation();
    client->core.references = 1u << 30; /* the mappings are the simulation's */
    if (shmd_heartbeat_init(&client->core) == SHMD_OK)
        return client;
    free(client);
    return NULL;
}

/* It is welcome, and has mapped its control segment. */
int sim_client_join(sim_client *client, shmd_control_t *control, uint64_t client_id, uint32_t index)
{
    const shmd_client_record_t *record = shmd_authority_client(client->core.authority, index);
    client->core.client_id = client_id;
    client->core.index = index;
    return shmd_client_ring_open(&client->ring, control, &record->control_cursor, index, client->core.nonce);
}

void sim_client_free(sim_client *client)
{
    if (client->ring.control != NULL)
        shmd_client_ring_close(&client->ring);
    shmd_heartbeat_free(&client->core);
    free(client);
}

void sim_client_beat(sim_client *client)
{
    shmd_heartbeat_t *line = &client->ring.control->heartbeat;
    shmd_store_release(&line->beat, line->beat + 1);
}

int sim_send(sim_client *client, shmd_request_t *request) { return shmd_client_ring_send(&client->ring, request); }

/* A client that is stopped or killed while it writes a request, of which the driver sees nothing. */
void sim_send_half(sim_client *client, const shmd_request_t *request)
{
    shmd_control_t *control = client->ring.control;
    memcpy(&control->requests[client->ring.tail % SHMD_CLIENT_REQUESTS], request, sizeof *request / 2);
}

/* A request that is none. 0: there was no room. */
int sim_send_garbage(sim_client *client, shmd_request_t *request)
{
    shmd_control_t *control = client->ring.control;
    uint64_t at = client->ring.tail;
    if (shmd_client_ring_send(&client->ring, request) != SHMD_OK)
        return 0;
    control->requests[at % SHMD_CLIENT_REQUESTS].checksum++;
    return 1;
}

void sim_tail(sim_client *client, uint64_t tail) { shmd_store_release(&client->ring.control->tail, tail); }

int sim_confirm(sim_client *client, uint32_t entry, uint64_t lease_id) { return shmd_client_ring_confirm(&client->ring, entry, lease_id); }

int sim_detach(sim_client *client, uint32_t entry, uint64_t lease_id, uint32_t how)
{
    return shmd_client_ring_detach(&client->ring, entry, lease_id, how);
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
    (void)client, (void)lease_id, (void)role, (void)stream, (void)aborted, (void)wait_answer;
    return SHMD_OK;
}

void __wrap_shmd_client_confirm(shmd_client *client, uint32_t lease_index, uint64_t lease_id)
{
    (void)client, (void)lease_index, (void)lease_id; /* an act of its own: sim_confirm */
}

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
