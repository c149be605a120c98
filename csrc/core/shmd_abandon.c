/* shmd_abandon.c: leases whose handles were abandoned. A finaliser runs in any thread, the embedded driver's own included, so
 * it never waits: for no answer, no other thread, no room in the control ring.
 *
 * An abandoned lease ends by a detach that is sent at once where the ring has room. A note of it stays with the client: each
 * beat looks whether the lease has ended, and sends the detach (again) when the ring was full, or when a driver has taken it
 * and the lease lives on, because that driver was killed before it served it. With its last handle a client parts: its
 * heartbeat thread says the goodbye, which ends all leases of it, and frees the client (shmd_heartbeat.c).
 */
#include "shmd_internal.h"

#include <stdlib.h>

enum { TAKEN_PATIENCE_NS = 1000000000 }; /* a driver that took a detach this long ago has served it, or was killed */

static int is_due(const shmd_client *client, const shmd_ending_t *ending, uint64_t now_ns)
{
    if (ending->sent_ns == 0)
        return 1;
    return now_ns - ending->sent_ns >= TAKEN_PATIENCE_NS && shmd_load_acquire(&client->authority->control_cursor) > ending->request.position; /* K3 */
}

static void send_if_due(shmd_client *client, shmd_ending_t *ending)
{
    uint64_t now_ns = shmd_now_ns();
    if (!is_due(client, ending, now_ns))
        return;
    ending->request.correlation_id = 0; /* a new one */
    if (shmd_client_tell_quietly(client, &ending->request, 0) == SHMD_OK)
        ending->sent_ns = now_ns;
}

void shmd_client_end_later(shmd_client *client, uint32_t lease_index, uint64_t lease_id, uint32_t role, const char *stream)
{
    shmd_ending_t once; /* without memory for a note it is sent once; then the client's goodbye or death ends the lease */
    shmd_ending_t *kept = calloc(1, sizeof *kept);
    shmd_ending_t *ending = kept == NULL ? &once : kept;
    if (kept == NULL)
        memset(&once, 0, sizeof once);
    ending->lease_index = lease_index;
    ending->request.kind = SHMD_REQUEST_DETACH;
    ending->request.role = role;
    ending->request.lease_id = lease_id;
    ending->request.flags = SHMD_DETACH_ABORTED;
    memcpy(ending->request.stream, stream, strlen(stream));
    shmd_client_unconfirm(client, lease_id);
    (void)pthread_mutex_lock(&client->lines);
    send_if_due(client, ending);
    if (kept != NULL) {
        kept->next = client->ending;
        client->ending = kept;
    }
    (void)pthread_mutex_unlock(&client->lines);
}

void shmd_client_end_noted(shmd_client *client)
{
    shmd_ending_t **at = &client->ending;
    while (*at != NULL) {
        shmd_ending_t *ending = *at;
        uint32_t reason;
        if (shmd_client_is_known(client) && shmd_lease_live(client, ending->lease_index, ending->request.lease_id, &reason)) {
            send_if_due(client, ending);
            at = &ending->next;
            continue;
        }
        *at = ending->next;
        free(ending);
    }
}

void shmd_client_forget_noted(shmd_client *client)
{
    while (client->ending != NULL) {
        shmd_ending_t *next = client->ending->next;
        free(client->ending);
        client->ending = next;
    }
}
