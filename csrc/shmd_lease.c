/* shmd_lease.c: one pass over all clients and leases a check, so that Python pays per finding and not per lease. */
#include "shmd_internal.h"

typedef struct findings {
    shmd_check_t *out;
    uint64_t limit;
    uint64_t count;
} findings_t;

static void found(findings_t *f, uint32_t what, uint32_t index, uint64_t silent_ns)
{
    if (f->count < f->limit)
        f->out[f->count++] = (shmd_check_t){.what = what, .index = index, .silent_ns = silent_ns};
}

int shmd_client_unread(const shmd_client_record_t *client, const shmd_client_watch_t *watch)
{
    return watch->control != NULL && shmd_load_relaxed(&watch->control->tail) != client->control_cursor; /* plain, as the word below */
}

/* The client's segment is its own: what stands there besides its beat and its notes harms nobody else, and is the ring's reader's business. */
static void check_client(shmd_client_record_t *client, shmd_client_watch_t *watch, uint64_t now_ns, uint64_t stalled_ns, uint64_t timeout_ns,
                         findings_t *findings)
{
    /* NULL: the authority was truncated in the middle of the check. */
    uint32_t state = client == NULL ? SHMD_CLIENT_FREE : (uint32_t)(client->word & 0xff); /* plain: only ever written by this process */
    if (state != SHMD_CLIENT_ALIVE && state != SHMD_CLIENT_STALLED) {
        watch->client_id = 0;
        return;
    }
    if (shmd_client_unread(client, watch))
        found(findings, SHMD_CHECK_REQUESTS, client->index, 0);
    /* L1: pairs with the heartbeat thread's release store */
    uint64_t beat = watch->control == NULL ? watch->beat : shmd_load_acquire(&watch->control->heartbeat.beat);
    if (watch->client_id != client->client_id) { /* a new client, or a new driver: it starts afresh */
        watch->client_id = client->client_id;
        watch->beat = beat;
        watch->seen_ns = now_ns;
    } else if (watch->beat != beat) {
        watch->beat = beat;
        watch->seen_ns = now_ns;
        shmd_store_relaxed(&client->seen_ns, now_ns);
        if (state == SHMD_CLIENT_STALLED)
            found(findings, SHMD_CHECK_CLIENT_RECOVERED, client->index, 0);
        return;
    }
    uint64_t silent_ns = now_ns > watch->seen_ns ? now_ns - watch->seen_ns : 0;
    if (silent_ns >= timeout_ns)
        found(findings, SHMD_CHECK_CLIENT_EXPIRED, client->index, silent_ns);
    else if (silent_ns >= stalled_ns && state == SHMD_CLIENT_ALIVE)
        found(findings, SHMD_CHECK_CLIENT_STALLED, client->index, silent_ns);
}

static void check_lease(const shmd_lease_record_t *lease, uint32_t index, const shmd_control_t *control, uint64_t now_ns, findings_t *findings)
{
    uint32_t state = (uint32_t)(lease->word & 0xff);
    if (state != SHMD_LEASE_ATTACHED && state != SHMD_LEASE_ACTIVE && state != SHMD_LEASE_STALLED)
        return;
    int said = control == NULL ? SHMD_ENTRY_NONE : shmd_client_ring_look(control, lease->entry, lease->lease_id); /* L2, Q4 */
    if (said == SHMD_ENTRY_DETACHED || said == SHMD_ENTRY_ABORTED)
        found(findings, said == SHMD_ENTRY_DETACHED ? SHMD_CHECK_DETACHED : SHMD_CHECK_ABORTED, index, 0);
    else if (state == SHMD_LEASE_ATTACHED && said == SHMD_ENTRY_CONFIRMED)
        found(findings, SHMD_CHECK_CONFIRMED, index, 0);
    else if (state == SHMD_LEASE_ATTACHED && now_ns >= lease->deadline_ns)
        found(findings, SHMD_CHECK_UNCONFIRMED, index, now_ns - lease->deadline_ns);
}

int64_t shmd_lease_check(shmd_authority_t *authority, shmd_client_watch_t *watches, uint64_t now_ns, uint64_t stalled_ns, uint64_t timeout_ns,
                         shmd_check_t *out, uint64_t limit)
{
    findings_t findings = {.out = out, .limit = limit, .count = 0};
    uint32_t client_max = authority->client_max;
    uint32_t lease_max = authority->lease_max;
    for (uint32_t i = 0; i < client_max; i++)
        check_client(shmd_authority_client(authority, i), &watches[i], now_ns, stalled_ns, timeout_ns, &findings);
    for (uint32_t i = 0; i < lease_max; i++) {
        const shmd_lease_record_t *lease = shmd_authority_lease(authority, i);
        if (lease != NULL && lease->client_index < client_max)
            check_lease(lease, i, watches[lease->client_index].control, now_ns, &findings);
    }
    return (int64_t)findings.count;
}

int shmd_lease_unconfirmed(const shmd_authority_t *authority)
{
    const shmd_lease_record_t *lease;
    for (uint32_t i = 0; (lease = shmd_authority_lease(authority, i)) != NULL; i++)
        if ((lease->word & 0xff) == SHMD_LEASE_ATTACHED)
            return 1;
    return 0;
}
