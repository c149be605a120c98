/* shmd_answer.c: what an answer of the driver may say. The event ring is memory of another process, so each number in an
 * answer is checked against what this client knows itself, before it is used as an index or a position. */
#include "shmd_internal.h"

static int corrupt(const shmd_client *client, const char *what, uint64_t found, uint64_t end)
{
    return shmd_fail(SHMD_E_CORRUPT, "the answer of the driver of instance %s names %s %llu, expected less than %llu: its event ring or its tables are "
                     "damaged; stop that driver and start it again", client->instance, what, (unsigned long long)found, (unsigned long long)end);
}

static uint32_t kind_of_answer(const shmd_request_t *request)
{
    switch (request->kind) {
    case SHMD_REQUEST_ATTACH:
        return SHMD_EVENT_ATTACH_RESPONSE;
    case SHMD_REQUEST_DETACH:
        return SHMD_EVENT_DETACH_RESPONSE;
    default:
        return SHMD_EVENT_ADMIN_RESPONSE;
    }
}

int shmd_answer_check(const shmd_client *client, const shmd_request_t *request, const shmd_event_t *a)
{
    const uint64_t seq_end = UINT64_MAX >> 2;
    if (a->kind != kind_of_answer(request))
        return shmd_fail(SHMD_E_CORRUPT, "the answer of the driver of instance %s to a request of kind %u is an event of kind %u, expected %u", client->instance,
                         request->kind, a->kind, kind_of_answer(request));
    if (request->kind != SHMD_REQUEST_ATTACH)
        return SHMD_OK;
    if (a->lease_id == 0 || a->stream_id == 0)
        return shmd_fail(SHMD_E_CORRUPT, "the answer of the driver of instance %s names lease %llu of stream %u, expected none of them 0", client->instance,
                         (unsigned long long)a->lease_id, a->stream_id);
    if (a->lease_index >= client->tables.lease_max)
        return corrupt(client, "lease index", a->lease_index, client->tables.lease_max);
    if (a->entry >= SHMD_CLIENT_LEASES)
        return corrupt(client, "lease entry", a->entry, SHMD_CLIENT_LEASES);
    if (a->stream_index >= client->tables.stream_max)
        return corrupt(client, "stream index", a->stream_index, client->tables.stream_max);
    if (request->role == SHMD_ROLE_CONSUMER && a->gate >= SHMD_GATE_MAX)
        return corrupt(client, "gate", a->gate, SHMD_GATE_MAX);
    if (request->role == SHMD_ROLE_CONSUMER && a->value >= seq_end)
        return corrupt(client, "seq", a->value, seq_end);
    if (request->role == SHMD_ROLE_CONSUMER && a->start_seq > a->value)
        return corrupt(client, "first seq", a->start_seq, a->value + 1);
    return SHMD_OK;
}
