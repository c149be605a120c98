/* shmd_heartbeat.c: what a client keeps writing into its lines of the control segment: its beat, and the leases that it
 * confirms. It runs in a thread of its own, which never needs the GIL; or from shmd_keepalive. That thread also ends what was
 * abandoned: leases (core/shmd_abandon.c), and at last the client itself. */
#include "shmd_internal.h"

#include <signal.h>
#include <stdlib.h>

int shmd_heartbeat_init(shmd_client *client)
{
    client->confirmed = calloc(client->tables.lease_max, sizeof *client->confirmed);
    if (client->confirmed == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory for the confirmations of %u leases", client->tables.lease_max);
    pthread_mutexattr_t recursive; /* what is sent with the lock held may mend the control segment first (shmd_client_mend) */
    (void)pthread_mutexattr_init(&recursive);
    (void)pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    (void)pthread_mutex_init(&client->lines, &recursive);
    (void)pthread_mutexattr_destroy(&recursive);
    return SHMD_OK;
}

void shmd_heartbeat_free(shmd_client *client)
{
    if (client->confirmed == NULL)
        return;
    if (shmd_client_check_fork(client) == SHMD_OK) /* else it may have been held when it was copied */
        (void)pthread_mutex_destroy(&client->lines);
    shmd_client_forget_noted(client);
    free(client->confirmed);
}

/* ---- confirmations ------------------------------------------------------------------------ */

static void confirm_again(shmd_client *client, uint32_t index)
{
    uint64_t lease_id = client->confirmed[index];
    shmd_lease_record_t lease;
    shmd_lease_line_t *line = shmd_control_lease_line(client->control, client->tables.client_max, client->tables.lease_max, index);
    if (lease_id == 0 || shmd_load_relaxed(&line->confirmed) == lease_id)
        return;
    if (shmd_lease_copy(client, index, lease_id, &lease) && (lease.word & 0xff) == SHMD_LEASE_ATTACHED)
        shmd_store_release(&line->confirmed, lease_id); /* L2 */
}

/* Any client can write over a line: until the driver has seen a confirmation, each beat looks after it. Its lease line is
 * this client's until its detach is sent, which takes the lock first. */
void shmd_client_confirm(shmd_client *client, uint32_t lease_index, uint64_t lease_id)
{
    shmd_lease_line_t *line = shmd_control_lease_line(client->control, client->tables.client_max, client->tables.lease_max, lease_index);
    if (line == NULL)
        return;
    (void)pthread_mutex_lock(&client->lines);
    client->confirmed[lease_index] = lease_id;
    client->confirmed_max = shmd_max(client->confirmed_max, (uint64_t)lease_index + 1);
    shmd_store_release(&line->confirmed, lease_id); /* L2 */
    (void)pthread_mutex_unlock(&client->lines);
}

void shmd_client_unconfirm(shmd_client *client, uint64_t lease_id)
{
    if (shmd_client_check_fork(client) != SHMD_OK)
        return; /* its lock may have been held when it was copied */
    (void)pthread_mutex_lock(&client->lines);
    for (uint64_t i = 0; i < client->confirmed_max; i++)
        if (client->confirmed[i] == lease_id)
            client->confirmed[i] = 0;
    (void)pthread_mutex_unlock(&client->lines);
}

/* ---- the beat ----------------------------------------------------------------------------- */

void shmd_client_beat(shmd_client *client)
{
    shmd_client_mend(client);
    shmd_heartbeat_t *line = shmd_control_heartbeat(client->control, client->tables.client_max, client->tables.lease_max, client->index);
    (void)pthread_mutex_lock(&client->lines);
    if (client->is_silent) { /* its goodbye is said: these lines may be another client's by now */
        (void)pthread_mutex_unlock(&client->lines);
        return;
    }
    shmd_store_release(&line->beat, ++client->beat); /* L1 */
    for (uint64_t i = 0; i < client->confirmed_max; i++)
        confirm_again(client, (uint32_t)i);
    shmd_client_end_noted(client);
    (void)pthread_mutex_unlock(&client->lines);
}

enum { STOPPED = 1, TAKES_OVER = 2 }; /* what stop_word says */

static uint64_t interval_ns_of(const shmd_client *client)
{
    uint64_t interval_ns = shmd_load_relaxed(&client->authority->heartbeat_interval_ns);
    interval_ns = interval_ns == 0 ? 1000000000 : interval_ns; /* the authority was truncated */
    return shmd_min(shmd_max(interval_ns, 1000000), 10000000000u);
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
    while ((told = shmd_load32_acquire(&client->stop_word)) == 0) { /* A2 */
        shmd_client_beat(client);
        (void)shmd_futex_wait(&client->stop_word, 0, interval_ns_of(client));
    }
    if (told == TAKES_OVER)
        part(client);
    return NULL;
}

int shmd_thread_start(void *(*function)(void *), void *argument, const char *what, unsigned long *out)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    (void)sigfillset(&all);
    (void)sigdelset(&all, SIGBUS); /* what a fault raises must reach its handler (core/shmd_bus_error.c): blocked, it ends the process */
    (void)sigdelset(&all, SIGSEGV);
    (void)pthread_attr_init(&attributes);
    (void)pthread_attr_setstacksize(&attributes, 128u << 10);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, &attributes, function, argument);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    errno = error;
    if (error != 0)
        return shmd_fail_errno("starting the %s thread", what);
    *out = (unsigned long)thread;
    return SHMD_OK;
}

int shmd_heartbeat_start(shmd_client *client)
{
    int rc = shmd_thread_start(heartbeat_thread, client, "heartbeat", &client->thread);
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
    (void)pthread_mutex_lock(&client->lines);
    client->is_silent = 1;
    (void)pthread_mutex_unlock(&client->lines);
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
    if (client->heartbeat_mode != SHMD_HEARTBEAT_MANUAL)
        return shmd_fail(SHMD_E_INVALID, "this client has a heartbeat thread; connect with SHMD_HEARTBEAT_MANUAL to beat by hand");
    shmd_client_beat(client);
    return SHMD_OK;
}
