/* shmd_rest.c: one look at everything that a lease check looks at, in one call: whether the driver may sleep on. A tick in
 * Python, woken into cold caches, takes a core from whoever computes there for half a millisecond; this takes microseconds.
 *
 * It decides nothing. Whatever is not as it is all the time (a silent client, a request, an unlikely gate) ends the rest, and
 * the tick that follows finds it by its own looks. */
#include "shmd_internal.h"

static int clients_rest(const shmd_rest_t *rest, uint64_t now_ns)
{
    uint32_t client_max = rest->authority->client_max;
    for (uint32_t i = 0; i < client_max; i++) {
        shmd_client_watch_t *watch = &rest->clients[i];
        if (watch->client_id == 0)
            continue;
        shmd_client_record_t *client = shmd_authority_client(rest->authority, i);
        if (client == NULL || (client->word & 0xff) != SHMD_CLIENT_ALIVE || client->client_id != watch->client_id)
            return 0;
        /* What a client without a connection says of its leases only a tick sees, because nothing rings for it. */
        if (client->connected == 0 || watch->control == NULL || shmd_client_unread(client, watch))
            return 0;
        uint64_t beat = shmd_load_acquire(&watch->control->heartbeat.beat); /* L1 */
        if (watch->beat != beat) {
            watch->beat = beat;
            watch->seen_ns = now_ns;
            shmd_store_relaxed(&client->seen_ns, now_ns);
        } else if (now_ns > watch->seen_ns && now_ns - watch->seen_ns >= rest->stalled_ns) {
            return 0;
        }
    }
    return 1;
}

static int gates_rest(shmd_epoch_watch_t *watch)
{
    uint64_t bits = shmd_load_relaxed(&watch->hot->gate_mask) & shmd_load_relaxed(&watch->hot->wired_mask);
    for (; bits != 0; bits &= bits - 1) {
        uint32_t gate = (uint32_t)__builtin_ctzll(bits);
        if (gate >= watch->gate_count)
            return 0;
        /* Gate before head, as the driver's check: readers follow commit words past a head that is stored once a call. */
        uint64_t position = shmd_gate_position(watch->gates, gate);
        if (position < watch->positions[gate] || position > shmd_data_head(watch->data) + watch->slots)
            return 0;
        watch->positions[gate] = position;
    }
    return 1;
}

/* A sealed epoch changes when somebody leaves it, when a lease ends (a tick), and with time (the caller's until_ns). */
static int drain_rests(const shmd_epoch_watch_t *watch)
{
    for (uint64_t bits = shmd_load_relaxed(&watch->hot->wired_mask); bits != 0; bits &= bits - 1) {
        uint32_t gate = (uint32_t)__builtin_ctzll(bits);
        if (gate >= watch->gate_count || shmd_gate_left(watch->gates, gate) != watch->left[gate]) /* D1 */
            return 0;
    }
    return 1;
}

static int epochs_rest(const shmd_rest_t *rest, int gates_due)
{
    for (uint64_t i = 0; i < rest->epoch_count; i++) {
        shmd_epoch_watch_t *watch = rest->epochs[i];
        uint64_t state = shmd_load_relaxed(&watch->hot->state) & 0xff;
        if (state == SHMD_EPOCH_SEALED ? !drain_rests(watch) : state != SHMD_EPOCH_OPEN)
            return 0;
        if (state == SHMD_EPOCH_OPEN && watch->evicts && shmd_load32_relaxed(&watch->data->blocked_gate) != 0)
            return 0;
        if (state == SHMD_EPOCH_OPEN && gates_due && !gates_rest(watch))
            return 0;
    }
    return 1;
}

int shmd_driver_rests(shmd_rest_t *rest, uint64_t now_ns)
{
    int gates_due = now_ns - rest->gates_ns >= rest->gates_interval_ns;
    if (now_ns - rest->looked_ns >= rest->gap_ns || !clients_rest(rest, now_ns) || !epochs_rest(rest, gates_due) ||
        shmd_bus_errors() != rest->bus_errors)
        return 0;
    rest->looked_ns = now_ns;
    if (gates_due)
        rest->gates_ns = now_ns;
    while (rest->check_due_ns <= now_ns)
        rest->check_due_ns += rest->check_interval_ns;
    shmd_counter_add(rest->authority, SHMD_COUNTER_IDLE_CHECKS, 1);
    shmd_store_release(&rest->authority->heartbeat_ns, now_ns);
    return 1;
}
