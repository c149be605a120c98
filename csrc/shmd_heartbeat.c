/* shmd_heartbeat.c: what a client keeps writing into its lines of the control segment: its beat, and the leases that it
 * confirms. It runs in a thread of its own, which never needs the GIL; or from shmd_keepalive and from calls that wait. That thread also ends what was
 * abandoned: leases (core/shmd_abandon.c), and at last the client itself. */
#include "shmd_internal.h"

#include <stdlib.h>
#include <sys/prctl.h>

int shmd_heartbeat_init(shmd_client *client)
{
    errno = pthread_mutex_init(&client->beating, NULL);
    return errno == 0 ? SHMD_OK : shmd_fail_errno(SHMD_CALL_OTHER, "the lock of a client's beats");
}

void shmd_heartbeat_free(shmd_client *client)
{
    if (client->client_id != 0 && shmd_client_check_fork(client) == SHMD_OK) /* else it may have been held when it was copied */
        (void)pthread_mutex_destroy(&client->beating);
}

/* ---- the beat ----------------------------------------------------------------------------- */

void shmd_client_beat(shmd_client *client)
{
    (void)pthread_mutex_lock(&client->beating);
    if (!client->is_silent) /* its goodbye is said */
        shmd_store_release(&client->control->heartbeat.beat, ++client->beat); /* L1 */
    (void)pthread_mutex_unlock(&client->beating);
}

void shmd_client_confirm(shmd_client *client, uint32_t entry, uint64_t lease_id)
{
    (void)shmd_client_ring_confirm(&client->ring, entry, lease_id); /* the entry was checked with the answer */
}

enum { STOPPED = 1, TAKES_OVER = 2 }; /* what stop_word says */

static uint64_t interval_ns_of(const shmd_client *client)
{
    uint64_t interval_ns = shmd_load_relaxed(&client->authority->heartbeat_interval_ns);
    interval_ns = interval_ns == 0 ? 1000000000 : interval_ns; /* the authority was truncated */
    return shmd_min(shmd_max(interval_ns, 1000000), 10000000000u);
}

uint64_t shmd_client_waits(shmd_client *client, uint64_t now_ns, uint64_t ns)
{
    if (!client->is_manual || client->client_id == 0) /* 0: it waits for the answer to its hello */
        return ns;
    uint64_t interval_ns = interval_ns_of(client);
    uint64_t due_ns = shmd_load_relaxed(&client->beat_due_ns);
    if (now_ns >= due_ns && shmd_cas(&client->beat_due_ns, due_ns, now_ns + interval_ns)) { /* of several threads that wait, one beats */
        shmd_client_beat(client);
        shmd_client_stay_connected(client, now_ns);
    }
    return shmd_min(ns, now_ns < due_ns ? due_ns - now_ns : interval_ns);
}

/* Nobody has the client any more but this thread, which nobody joins. A full control ring is waited for here. Without beats
 * the client expires in the end, too. */
static void part(shmd_client *client)
{
    (void)pthread_detach(pthread_self());
    shmd_notifier_stop(&client->notifier);
    while (!client->is_parted && shmd_client_goodbye(client, 0) == SHMD_E_TIMEOUT && !shmd_client_is_orphaned(client))
        (void)shmd_futex_wait(&client->stop_word, TAKES_OVER, interval_ns_of(client));
    shmd_client_release(client);
}

static void *heartbeat_thread(void *argument)
{
    shmd_client *client = argument;
    uint32_t told;
    (void)prctl(PR_SET_NAME, "shmd-heartbeat");
    while ((told = shmd_load32_acquire(&client->stop_word)) == 0) { /* A2 */
        shmd_client_beat(client); /* first: it is alive, whatever the connection is */
        uint64_t now_ns = shmd_now_ns();
        shmd_client_stay_connected(client, now_ns);
        (void)shmd_futex_wait(&client->stop_word, 0, shmd_min(interval_ns_of(client), shmd_client_reconnects_ns(client, now_ns)));
    }
    if (told == TAKES_OVER)
        part(client);
    return NULL;
}

int shmd_heartbeat_start(shmd_client *client)
{
    int rc = shmd_thread_start(&client->threads, heartbeat_thread, client, "heartbeat", &client->thread);
    client->thread_started = rc == SHMD_OK;
    return rc;
}

void shmd_heartbeat_stop(shmd_client *client)
{
    if (!client->thread_started)
        return;
    shmd_store32_release(&client->stop_word, STOPPED);
    shmd_futex_wake(&client->stop_word);
    SHMD_ENTERS_WAIT();
    (void)pthread_join((pthread_t)client->thread, NULL);
    client->thread_started = 0;
}

int shmd_heartbeat_takes_over(shmd_client *client)
{
    if (!client->thread_started)
        return 0;
    (void)pthread_mutex_lock(&client->beating);
    client->is_silent = 1;
    (void)pthread_mutex_unlock(&client->beating);
    client->is_parted = shmd_client_goodbye(client, 0) != SHMD_E_TIMEOUT; /* now, if it can be: a process that ends next takes its threads with it */
    const uint32_t *word = &client->stop_word; /* a wake-up looks at its address alone: the thread may have freed the client by then */
    shmd_store32_release(&client->stop_word, TAKES_OVER); /* A2: after all that this caller did with the client; pairs with the thread's load */
    shmd_futex_wake(word);
    return 1;
}

int shmd_keepalive(shmd_client *client)
{
    int rc = shmd_client_check_fork(client);
    if (rc != SHMD_OK)
        return rc;
    if (!client->is_manual)
        return shmd_fail(SHMD_E_INVALID, "this client has a heartbeat thread; connect with SHMD_HEARTBEAT_MANUAL to beat by hand");
    if (shmd_client_is_known(client)) /* else its line may be another client's. One that was expelled still sends what it has to */
        shmd_client_beat(client);
    shmd_client_stay_connected(client, shmd_now_ns());
    rc = shmd_driver_is_over(client->authority);
    return rc ? rc : shmd_client_check_registered(client);
}
