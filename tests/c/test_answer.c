/* test_answer.c: attaches whose answer is damaged are errors with a text: no index of it is used before it was checked.
 * fault: 47 (corrupt answers) */
#include "rig.h"

enum { CLIENT_INDEX = 1, LEASE_INDEX = 4, GATE = 3 };

/* A driver that answers every request with what the test says. */
typedef struct fake {
    rig_t rig;
    pthread_t thread;
    shmd_event_t answer;            /* to an attach */
    uint32_t is_over;
    uint64_t given_up;              /* atomic: detaches by correlation id */
} fake_t;

static void *answer_all(void *argument)
{
    fake_t *f = argument;
    shmd_client_ring_reader_t reader;
    shmd_client_ring_reader_init(&reader, f->rig.control, &shmd_authority_client(f->rig.authority, CLIENT_INDEX)->control_cursor, 5, CLIENT_INDEX, 77);
    shmd_event_writer *writer = shmd_event_writer_new(f->rig.authority);
    shmd_request_t request;
    CHECK(writer != NULL);
    while (!shmd_load32_acquire(&f->is_over)) {
        if (shmd_client_ring_poll(&reader, &request) != 1) {
            (void)sched_yield(); /* there is no connection, so nothing rings */
            continue;
        }
        shmd_client_ring_advance(&reader);
        shmd_event_t event = f->answer;
        if (request.kind == SHMD_REQUEST_DETACH) {
            memset(&event, 0, sizeof event);
            event.kind = SHMD_EVENT_DETACH_RESPONSE;
            (void)shmd_add(&f->given_up, request.lease_id == 0);
        }
        event.correlation_id = request.correlation_id;
        (void)shmd_event_publish(writer, &event);
    }
    shmd_event_writer_free(writer);
    return NULL;
}

static void fake_start(fake_t *f, uint32_t role)
{
    uint64_t start = 0, joined = 0;
    memset(f, 0, sizeof *f);
    rig_start(&f->rig, 64, 64, 65536, 100);
    shmd_authority_t *a = f->rig.authority;
    shmd_process_t self;
    shmd_process_self(&self);
    a->driver_pid = self.pid;
    a->driver_start_time = self.start_time;
    a->driver_pid_namespace = self.pid_namespace;
    a->driver_time_namespace = self.time_namespace;
    shmd_client *client = &f->rig.client;
    client->authority_fd = -1;
    client->client_id = 5;
    rig_ring(&f->rig, CLIENT_INDEX, 77);
    client->references = 100; /* the rig's own */
    CHECK_EQ(shmd_heartbeat_init(client), SHMD_OK);
    shmd_client_record_t *record = shmd_authority_client(a, CLIENT_INDEX);
    record->client_id = 5;
    record->nonce = 77;
    shmd_word_store(&record->word, 0x200 | SHMD_CLIENT_ALIVE);
    uint64_t lease_id = rig_lease(&f->rig, LEASE_INDEX, SHMD_LEASE_ACTIVE);
    if (role == SHMD_ROLE_CONSUMER)
        joined = shmd_epoch_join(f->rig.hot, f->rig.data, f->rig.gates, &f->rig.geometry, GATE, 1, 1, lease_id, 0, 0, &start);
    f->answer = (shmd_event_t){.kind = SHMD_EVENT_ATTACH_RESPONSE, .code = SHMD_CODE_OK, .lease_id = lease_id, .lease_index = LEASE_INDEX, .stream_index = 0,
                               .stream_id = RIG_STREAM_ID, .epoch = RIG_EPOCH, .gate = GATE, .start_seq = start, .value = joined};
    f->thread = test_thread(answer_all, f);
}

static void fake_stop(fake_t *f)
{
    shmd_store32_release(&f->is_over, 1);
    test_join(f->thread);
    shmd_heartbeat_free(&f->rig.client);
    rig_stop(&f->rig);
}

static int attach_and_use(fake_t *f, uint32_t role)
{
    shmd_producer *p;
    shmd_consumer *c;
    shmd_message message;
    int rc = role == SHMD_ROLE_PRODUCER ? shmd_producer_attach(&f->rig.client, "rig", NULL, &p) : shmd_consumer_attach(&f->rig.client, "rig", NULL, &c);
    if (rc != SHMD_OK)
        return rc;
    rc = role == SHMD_ROLE_PRODUCER ? shmd_publish(p, "x", 1, 0) : shmd_poll(c, &message);
    CHECK_EQ(role == SHMD_ROLE_PRODUCER ? shmd_producer_close(p) : shmd_consumer_close(c), SHMD_OK);
    return rc;
}

/* Attaches while a field of the answer is `value`. */
static void attach_with(uint32_t role, size_t offset, size_t bytes, uint64_t value, int expected, const char *text)
{
    fake_t f;
    fake_start(&f, role);
    memcpy((unsigned char *)&f.answer + offset, &value, bytes);
    CHECK_EQ(attach_and_use(&f, role), expected);
    if (expected != SHMD_OK)
        CHECK_TEXT(text);
    while (expected != SHMD_OK && shmd_load_relaxed(&f.given_up) == 0 && /* what was granted is given back */
           shmd_client_ring_look(f.rig.control, 0, f.answer.lease_id) != SHMD_ENTRY_ABORTED)
        (void)sched_yield();
    fake_stop(&f);
}
#define WITH(role, field, value, expected, text) \
    attach_with(role, offsetof(shmd_event_t, field), sizeof((shmd_event_t *)0)->field, value, expected, text)

static void test_an_answer_as_it_should_be_is_taken(void)
{
    for (uint32_t role = SHMD_ROLE_PRODUCER; role <= SHMD_ROLE_CONSUMER; role++)
        WITH(role, reason, 0, SHMD_OK, "");
}

static void test_an_answer_of_another_kind_is_refused(void)
{
    for (uint32_t role = SHMD_ROLE_PRODUCER; role <= SHMD_ROLE_CONSUMER; role++) {
        WITH(role, kind, SHMD_EVENT_DETACH_RESPONSE, SHMD_E_CORRUPT, "is an event of kind 3, expected 2");
        WITH(role, kind, SHMD_EVENT_ERROR, SHMD_E_CORRUPT, "is an event of kind 8, expected 2");
    }
}

static void test_no_index_of_an_answer_is_used_unchecked(void)
{
    for (uint32_t role = SHMD_ROLE_PRODUCER; role <= SHMD_ROLE_CONSUMER; role++) {
        WITH(role, lease_id, 0, SHMD_E_CORRUPT, "names lease 0");
        WITH(role, stream_id, 0, SHMD_E_CORRUPT, "of stream 0");
        WITH(role, lease_index, 16, SHMD_E_CORRUPT, "lease index 16, expected less than 16");
        WITH(role, lease_index, UINT32_MAX, SHMD_E_CORRUPT, "lease index 4294967295");
        WITH(role, stream_index, 2, SHMD_E_CORRUPT, "stream index 2, expected less than 2");
        WITH(role, stream_index, UINT32_MAX, SHMD_E_CORRUPT, "stream index");
        WITH(role, stream_index, 1, SHMD_E_LAYOUT, "not in the directory"); /* another stream's record */
        WITH(role, stream_id, RIG_STREAM_ID + 1, SHMD_E_LAYOUT, "not in the directory");
        WITH(role, epoch, RIG_EPOCH + 1, SHMD_E_LAYOUT, "not in the directory");
    }
    WITH(SHMD_ROLE_PRODUCER, epoch, 0, SHMD_E_LAYOUT, "not in the directory");
}

static void test_no_gate_or_seq_of_an_answer_is_used_unchecked(void)
{
    WITH(SHMD_ROLE_CONSUMER, gate, SHMD_GATE_MAX, SHMD_E_CORRUPT, "gate 64, expected less than 64");
    WITH(SHMD_ROLE_CONSUMER, gate, UINT32_MAX, SHMD_E_CORRUPT, "gate 4294967295");
    WITH(SHMD_ROLE_CONSUMER, gate, RIG_GATES, SHMD_E_CORRUPT, "gate is 8, epoch 3 has 8"); /* past the end of the gates' segment */
    WITH(SHMD_ROLE_CONSUMER, value, UINT64_MAX, SHMD_E_CORRUPT, "seq 18446744073709551615");
    WITH(SHMD_ROLE_CONSUMER, value, 101, SHMD_E_CORRUPT, "joined at seq 101, the head of epoch 3 is 100");
    WITH(SHMD_ROLE_CONSUMER, start_seq, 101, SHMD_E_CORRUPT, "first seq 101");
}

/* The header of the authority may change after it was checked: the client goes by its own copy. */
static void test_counts_and_offsets_that_change_later_steer_nothing(void)
{
    fake_t f;
    shmd_consumer *c;
    shmd_message message;
    uint32_t reason;
    fake_start(&f, SHMD_ROLE_CONSUMER);
    CHECK_EQ(shmd_consumer_attach(&f.rig.client, "rig", NULL, &c), SHMD_OK);
    shmd_authority_t *a = f.rig.authority;
    uint32_t maxima[] = {a->client_max, a->lease_max, a->stream_max};
    uint64_t offsets[] = {a->clients_offset, a->leases_offset, a->streams_offset};
    a->client_max = a->lease_max = a->stream_max = UINT32_MAX;
    a->clients_offset = a->leases_offset = a->streams_offset = UINT64_MAX >> 1;
    CHECK_EQ(shmd_lease_live(&f.rig.client, c->lease_index, c->lease_id, &reason), 1);
    CHECK_EQ(shmd_poll(c, &message), 0);
    /* The driver reads the same header; its other fields stay as they are, for its thread may be reading them now. */
    a->client_max = maxima[0];
    a->lease_max = maxima[1];
    a->stream_max = maxima[2];
    a->clients_offset = offsets[0];
    a->leases_offset = offsets[1];
    a->streams_offset = offsets[2];
    CHECK_EQ(shmd_consumer_close(c), SHMD_OK);
    fake_stop(&f);
}

int main(void)
{
    RUN(test_an_answer_as_it_should_be_is_taken);
    RUN(test_an_answer_of_another_kind_is_refused);
    RUN(test_no_index_of_an_answer_is_used_unchecked);
    RUN(test_no_gate_or_seq_of_an_answer_is_used_unchecked);
    RUN(test_counts_and_offsets_that_change_later_steer_nothing);
    return test_report();
}
