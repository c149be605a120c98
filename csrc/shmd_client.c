/* shmd_client.c: a process's connection to a driver: map authority and control, say hello, ask and be answered.
 * Requests go in by the control ring, answers come by the event ring; a request that was not answered is sent
 * again with the same correlation id. Threads may ask at the same time: the ring has many writers. */
#include "shmd_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RESEND_NS = 250000000, LOOK_NS = 20000000, FULL_NS = 1000000 };

/* ---- the driver, seen from outside ----------------------------------------------------- */

static const char *pid_of_driver(const shmd_authority_t *a) { return shmd_pid_text(a->driver_pid, a->driver_pid_namespace); }

static int is_over_by(const shmd_authority_t *a, uint64_t exit_kind)
{
    const char *pid = pid_of_driver(a);
    if (exit_kind == SHMD_EXIT_HANDOVER)
        return shmd_fail(SHMD_PROCESS_DEAD, "driver of instance %s handed over (%s) and its successor is not there yet", a->instance, pid);
    if (exit_kind == SHMD_EXIT_CLEAN)
        return shmd_fail(SHMD_PROCESS_DEAD, "driver of instance %s (%s) was stopped; start one again with `shmdriver run -i %s`, and connect anew",
                         a->instance, pid, a->instance);
    return shmd_fail(SHMD_PROCESS_DEAD, "driver of instance %s (%s) was superseded by another one that began anew; connect anew to that", a->instance, pid);
}

int shmd_driver_is_over(const shmd_authority_t *a)
{
    uint64_t exit_kind = shmd_load_acquire(&a->exit_kind); /* A1 */
    if (exit_kind == SHMD_EXIT_NONE || exit_kind == SHMD_EXIT_HANDOVER)
        return SHMD_OK;
    (void)is_over_by(a, exit_kind);
    return SHMD_E_DRIVER_UNAVAILABLE;
}

/* Without a sign of life no driver drives, in whatever namespace it was. One that is seen proves nothing: anybody who can read the
 * segment can hold such a lock. */
static int shows_no_life(int authority_fd) { return shmd_life_seen(authority_fd) == 0; }

int shmd_driver_look(const shmd_authority_t *a, int authority_fd, uint32_t *evidence)
{
    uint64_t exit_kind = shmd_load_acquire(&a->exit_kind);
    shmd_process_t driver = {.pid = a->driver_pid, .start_time = a->driver_start_time, .pid_namespace = a->driver_pid_namespace,
                             .time_namespace = a->driver_time_namespace};
    *evidence = SHMD_EVIDENCE_EXIT_KIND;
    if (exit_kind != SHMD_EXIT_NONE)
        return is_over_by(a, exit_kind);
    int verdict = shmd_process_look(&driver, NULL, evidence);
    int was_here = verdict == SHMD_PROCESS_ALIVE && driver.pid == getpid();
    int may_have_left = verdict == SHMD_PROCESS_ALIVE && (was_here || shmd_instance_is_embedded(a->instance)); /* its program lives on without it */
    if ((verdict == SHMD_PROCESS_UNKNOWN || may_have_left) && authority_fd >= 0 && shows_no_life(authority_fd)) {
        *evidence = SHMD_EVIDENCE_NO_LIFE;
        verdict = SHMD_PROCESS_DEAD;
    }
    if (verdict != SHMD_PROCESS_DEAD)
        return verdict;
    const char *where = was_here ? ": it crashed in this process, whose standard error has its traceback" : "";
    if (shmd_instance_is_embedded(a->instance))
        return shmd_fail(verdict, "the embedded driver of instance %s (in %s) is dead%s, and nobody takes it over; connect to another instance", a->instance,
                         pid_of_driver(a), where);
    if (was_here)
        return shmd_fail(verdict, "the driver of instance %s is dead%s; start it again, it takes over what is there", a->instance, where);
    return shmd_fail(verdict, "driver of instance %s (%s) is dead; start it again with `shmdriver run -i %s`, it takes over what is there", a->instance,
                     pid_of_driver(a), a->instance);
}

/* Whether authority_fd is ours. */
int shmd_client_has_fd(const shmd_client *client, struct stat *status)
{
    return client->authority_fd >= 0 && fstat(client->authority_fd, status) == 0 && status->st_dev == client->authority_is.st_dev &&
           status->st_ino == client->authority_is.st_ino;
}

static int look_at_driver(const shmd_client *client, uint32_t *evidence)
{
    struct stat status;
    return shmd_driver_look(client->authority, shmd_client_has_fd(client, &status) ? client->authority_fd : -1, evidence);
}

/* Unless it is proved dead: what cannot be looked at is waited for until the time is over. */
int shmd_client_may_answer(const shmd_client *client)
{
    uint32_t evidence;
    return look_at_driver(client, &evidence) != SHMD_PROCESS_DEAD;
}

/* Whether the authority has no name and no driver any more. With its name gone nobody new finds it; who opened it before shows life
 * first and then looks whether it still has its name (driver/authority_file.py), so one look that finds both is final. */
static int is_removed(const shmd_client *client)
{
    struct stat status;
    return shmd_client_has_fd(client, &status) && status.st_nlink == 0 && shows_no_life(client->authority_fd);
}

static int is_dead_embedded(const shmd_client *client)
{
    return shmd_instance_is_embedded(client->authority->instance) && !shmd_client_may_answer(client);
}

/* 1: it is proved that no driver serves this connection, nor ever will; the text says how. A driver that was killed, or handed
 * over, is no such case as long as another one can adopt what is there; nobody adopts what an embedded one left. */
int shmd_client_is_orphaned(const shmd_client *client)
{
    const shmd_authority_t *a = client->authority;
    uint64_t exit_kind = shmd_load_acquire(&a->exit_kind); /* A1 */
    if (shmd_load32_acquire(&client->authority_damage.damaged) != 0)
        return !shmd_fail(0, "instance %s: a process of its owner truncated the segment %s; its driver cannot go on. Start one again with "
                          "`shmdriver run -i %s`, and connect anew", client->instance, client->authority_name, client->instance);
    if (exit_kind != SHMD_EXIT_NONE && exit_kind != SHMD_EXIT_HANDOVER)
        return !shmd_client_may_answer(client);
    if (is_dead_embedded(client))
        return 1;
    return is_removed(client) && !shmd_fail(0, "driver of instance %s (%s) is gone and its segments were removed; start a driver with "
                                            "`shmdriver run -i %s` and connect anew", a->instance, pid_of_driver(a), a->instance);
}

/* A client that waits for drivers goes over to the next one by itself, and reads on meanwhile what its peers still write; nobody
 * follows an embedded driver. Of one that was stopped or superseded the seals tell. */
int shmd_client_over(const shmd_client *client, uint64_t now_ns)
{
    shmd_client *own = (shmd_client *)(uintptr_t)client;
    if (shmd_load32_relaxed(&client->is_over))
        return 1;
    uint64_t due_ns = shmd_load_relaxed(&client->over_look_ns);
    if (now_ns < due_ns || !shmd_cas(&own->over_look_ns, due_ns, now_ns + SHMD_LONG_WAIT_NS))
        return 0;
    if (!(is_dead_embedded(client) || (!client->waits_for_driver && is_removed(client))))
        return 0;
    shmd_store32_release(&own->is_over, 1);
    return 1;
}

int shmd_client_over_fail(const shmd_client *client, const char *stream)
{
    const shmd_authority_t *a = client->authority;
    if (shmd_instance_is_embedded(a->instance))
        return shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "stream %s: the embedded driver of instance %s (in %s) is dead, and nobody takes its streams over; "
                         "connect to another instance", stream, a->instance, pid_of_driver(a));
    return shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "stream %s: the driver of instance %s (%s) is gone and its segments were removed, so that nobody new can come; connect again (in Python, reconnect=True does)",
                     stream, a->instance, pid_of_driver(a));
}

int shmd_client_driver_alive(const shmd_client *client) { return !shmd_client_is_orphaned(client) && shmd_client_may_answer(client); }

int shmd_client_check_fork(const shmd_client *client)
{
    return !shmd_is_forked(client->fork_generation)
               ? SHMD_OK : shmd_fail(SHMD_E_FORKED, "this client was made before fork; connect anew in the child");
}

/* ---- asking ----------------------------------------------------------------------------- */

int shmd_client_is_registered(const shmd_client *client)
{
    const shmd_client_record_t *record = shmd_client_record(client, client->index);
    uint32_t state = (uint32_t)(shmd_load_acquire(&record->word) & 0xff);
    return (state == SHMD_CLIENT_ALIVE || state == SHMD_CLIENT_STALLED) && record->client_id == client->client_id;
}

int shmd_client_check_registered(const shmd_client *client)
{
    return shmd_client_is_registered(client) ? SHMD_OK
        : shmd_fail(SHMD_E_REVOKED, "client %llu is no longer registered with the driver (it was silent for too long, or the driver was started afresh); connect anew",
                    (unsigned long long)client->client_id);
}

/* Also one that has expired: its detach and its goodbye free its lines. */
int shmd_client_is_known(const shmd_client *client)
{
    const shmd_client_record_t *record = shmd_client_record(client, client->index);
    return (shmd_load_acquire(&record->word) & 0xff) != SHMD_CLIENT_FREE && record->client_id == client->client_id;
}

/* 1: the answer is in out; 0: not yet. */
static int look_for_answer(const shmd_client *client, uint64_t *cursor, uint64_t correlation_id, shmd_event_t *out, int *resend)
{
    uint64_t lost = 0;
    while (shmd_event_take(client->authority, &client->tables, cursor, out, &lost)) {
        int is_answer = out->kind == SHMD_EVENT_ATTACH_RESPONSE ||
                        out->kind == SHMD_EVENT_DETACH_RESPONSE || out->kind == SHMD_EVENT_ADMIN_RESPONSE || out->kind == SHMD_EVENT_ERROR;
        if (is_answer && out->correlation_id == correlation_id)
            return 1;
    }
    if (lost != 0)
        *resend = 1; /* overrun: every request is idempotent, so asking again finds out */
    return 0;
}

/* 1: nobody will answer, the text says why. The last look for an answer comes after it: whoever ends has answered before (A1). The same
 * request, under the same correlation id, is otherwise answered by the driver that adopts, as it was meant. */
static int is_in_vain(const shmd_client *client, const shmd_request_t *request)
{
    if (shmd_client_is_orphaned(client))
        return 1;
    return (!client->waits_for_driver || request->kind == SHMD_REQUEST_DETACH) && !shmd_client_may_answer(client);
}

int shmd_client_give_up_asking(const shmd_client *client, int is_full)
{
    uint32_t evidence;
    if (shmd_client_is_orphaned(client) || look_at_driver(client, &evidence) == SHMD_PROCESS_DEAD)
        return SHMD_E_DRIVER_UNAVAILABLE;
    if (is_full)
        return shmd_fail(SHMD_E_TIMEOUT, "control ring full: %d requests of this client wait for the driver of instance %s (%s)", SHMD_CLIENT_REQUESTS, client->instance,
                         pid_of_driver(client->authority));
    if (evidence != SHMD_EVIDENCE_START_TIME)
        return shmd_fail(SHMD_E_TIMEOUT, "the driver of instance %s (%s) did not answer in time, and whether it lives cannot be proved: %s", client->instance,
                         pid_of_driver(client->authority), shmd_evidence_text(evidence));
    return shmd_fail(SHMD_E_TIMEOUT, "the driver of instance %s (%s) did not answer in time; it lives, but is stopped, frozen, hung or overloaded: `shmdriver stat -i %s` shows it",
                     client->instance, pid_of_driver(client->authority), client->instance);
}

static int send_once(shmd_client *client, shmd_request_t *request)
{
    int rc = shmd_client_ring_send(&client->ring, request);
    if (rc == SHMD_OK)
        shmd_client_wake_driver(client);
    return rc;
}

/* A driver has read it. Until then it stands in the ring, for this driver or the next one, and is not sent again. */
static int is_taken(const shmd_client *client, const shmd_request_t *request)
{
    return shmd_load_acquire(client->ring.cursor) - request->position - 1 < UINT64_MAX / 2; /* Q2 */
}

static int ask(shmd_client *client, shmd_request_t *request, shmd_event_t *answer, uint64_t deadline_ns)
{
    /* A call that a signal interrupts asks anew, and the driver gives up what it was making for that call. With signals more often
     * than the driver answers, that would never end. So no signal ends the wait before this time. */
    enum { UNINTERRUPTED_NS = 100000000 };
    uint64_t cursor = shmd_load_acquire(&client->authority->event_head);
    uint64_t sent_ns = 0;
    uint64_t sent_to = 0; /* which driver of this boot: one that was killed took what it had read with it */
    uint32_t sleeps = 0;
    int is_full = 0;
    uint64_t began_ns = shmd_now_ns();
    for (;;) {
        uint32_t seen = shmd_load32_acquire(&client->authority->event_word);
        int resend = 0;
        if (look_for_answer(client, &cursor, request->correlation_id, answer, &resend))
            return SHMD_OK;
        if (sleeps != 0 && is_in_vain(client, request)) /* costs more than an answer that is there */
            return look_for_answer(client, &cursor, request->correlation_id, answer, &resend) ? SHMD_OK : SHMD_E_DRIVER_UNAVAILABLE;
        if (sleeps != 0 && !shmd_client_is_registered(client)) /* its ring is read no more, so what stands there is not answered */
            return look_for_answer(client, &cursor, request->correlation_id, answer, &resend) ? SHMD_OK : shmd_client_check_registered(client);
        uint64_t now = shmd_now_ns();
        if (now >= deadline_ns)
            return shmd_client_give_up_asking(client, is_full);
        shmd_client_stay_connected(client, now);
        uint64_t adoptions = shmd_load_relaxed(&client->authority->adoptions);
        int is_due = sent_ns == 0 || (is_taken(client, request) && (resend || adoptions != sent_to || now - sent_ns >= RESEND_NS));
        if (is_due && shmd_client_may_answer(client)) {
            int rc = shmd_client_check_registered(client);
            if (rc != SHMD_OK)
                return rc;
            rc = send_once(client, request); /* a full ring is waited for below */
            if (rc != SHMD_OK && rc != SHMD_BACK_PRESSURED)
                return rc;
            is_full = rc == SHMD_BACK_PRESSURED;
            sent_ns = is_full ? sent_ns : now;
            sent_to = is_full ? sent_to : adoptions;
        } else if (is_due && sleeps == 0) {
            sleeps = 1; /* nobody is there: whether anybody may come is looked at now */
            continue;
        }
        sleeps++; /* at once: the driver may need this very core to answer */
        /* An answer wakes this thread. Nothing does when the driver dies or a slot of the full ring is freed: so it looks, too. */
        uint64_t slice_ns = shmd_look_pause(now - began_ns, is_full ? FULL_NS : LOOK_NS, RESEND_NS);
        slice_ns = shmd_client_waits(client, now, shmd_min(deadline_ns - now, slice_ns));
        if (shmd_futex_wait(&client->authority->event_word, seen, slice_ns) == SHMD_E_INTERRUPTED &&
            now - began_ns >= UNINTERRUPTED_NS)
            return shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal while waiting for the driver");
    }
}

static uint64_t next_correlation(shmd_client *client)
{
    uint64_t id;
    do
        id = shmd_hash(&client->nonce, sizeof client->nonce, shmd_add(&client->correlation, 1) + 1);
    while (id == 0);
    return id;
}

static void identify(shmd_client *client, shmd_request_t *request, uint64_t deadline_ns)
{
    request->client_id = client->client_id;
    request->layout_version = SHMD_LAYOUT_VERSION;
    if (request->kind != SHMD_REQUEST_SHUTDOWN && request->kind != SHMD_REQUEST_ADMIN) /* else it is signed, as all of it */
        request->deadline_ns = deadline_ns;
    if (request->correlation_id == 0)
        request->correlation_id = next_correlation(client);
}

int shmd_client_request(shmd_client *client, shmd_request_t *request, shmd_event_t *answer, uint64_t timeout_ns)
{
    uint64_t deadline_ns = shmd_deadline(timeout_ns);
    int rc = shmd_client_check_fork(client);
    if (rc != SHMD_OK)
        return rc;
    /* A detach is meant however long the driver takes to read it: nobody would send it again. */
    identify(client, request, request->kind == SHMD_REQUEST_DETACH ? UINT64_MAX : deadline_ns);
    rc = ask(client, request, answer, deadline_ns);
    if (rc != SHMD_OK)
        return rc;
    if (answer->code == SHMD_CODE_OK)
        return shmd_answer_check(client, request, answer);
    shmd_fail_answer(answer->code, answer->reason);
    return shmd_fail(SHMD_E_REJECTED, "%s", answer->text);
}

int shmd_client_attach(shmd_client *client, shmd_request_t *request, shmd_event_t *answer, uint64_t timeout_ns)
{
    int rc = shmd_client_request(client, request, answer, timeout_ns);
    SHMD_FAILPOINT("attach.answered");
    /* Also when the driver died: it may have granted the lease before, and its successor must not keep that for nobody. */
    if (rc == SHMD_E_TIMEOUT || rc == SHMD_E_INTERRUPTED || rc == SHMD_E_DRIVER_UNAVAILABLE || rc == SHMD_E_CORRUPT)
        shmd_client_give_up(client, request);
    return rc;
}

int shmd_client_tell(shmd_client *client, shmd_request_t *request, uint64_t patience_ns)
{
    int rc = shmd_client_check_fork(client);
    if (rc != SHMD_OK)
        return rc;
    identify(client, request, UINT64_MAX);
    uint64_t deadline_ns = patience_ns == 0 ? 0 : shmd_deadline(patience_ns);
    for (;;) {
        uint32_t seen = shmd_load32_acquire(&client->authority->event_word);
        if (!shmd_client_is_known(client))
            return SHMD_OK;
        rc = send_once(client, request);
        if (rc != SHMD_BACK_PRESSURED)
            return rc;
        if (shmd_now_ns() >= deadline_ns)
            return SHMD_E_TIMEOUT; /* with the ring's text */
        (void)shmd_futex_wait(&client->authority->event_word, seen, FULL_NS);
    }
}

int shmd_client_tell_quietly(shmd_client *client, shmd_request_t *request, uint64_t patience_ns)
{
    char text[sizeof ((shmd_event_t *)0)->text];
    (void)snprintf(text, sizeof text, "%s", shmd_last_error());
    return shmd_fail(shmd_client_tell(client, request, patience_ns), "%s", text);
}

void shmd_client_give_up(shmd_client *client, const shmd_request_t *attach)
{
    shmd_request_t request;
    memset(&request, 0, sizeof request);
    request.kind = SHMD_REQUEST_DETACH;
    request.role = attach->role;
    request.target_correlation_id = attach->correlation_id;
    memcpy(request.stream, attach->stream, sizeof request.stream);
    (void)shmd_client_tell_quietly(client, &request, SHMD_TELL_PATIENCE_NS);
}

int shmd_client_attach_failed(shmd_client *client, const shmd_request_t *request, const shmd_event_t *answer, int rc)
{
    uint32_t reason;
    int is_live = shmd_lease_live(client, answer->lease_index, answer->lease_id, &reason);
    shmd_client_note_end(client, answer->entry, answer->lease_id, 1);
    if (shmd_client_is_orphaned(client))
        return SHMD_E_DRIVER_UNAVAILABLE;
    if (is_live)
        return rc;
    if (reason == SHMD_REASON_SHUTDOWN || reason == SHMD_REASON_SUPERSEDED)
        return shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "the driver of instance %s (%s) admitted this to stream %.64s and ended before it was mapped; connect anew "
                         "when another one serves", client->instance, pid_of_driver(client->authority), request->stream);
    shmd_fail_answer(SHMD_CODE_REJECTED, reason);
    return shmd_fail(SHMD_E_REJECTED, "stream %.64s: the lease ended before the stream was mapped; attach again", request->stream);
}

/* A detach that nobody answers: read by this driver at its next lease check or by the next one, whenever that comes. */
void shmd_client_note_end(shmd_client *client, uint32_t entry, uint64_t lease_id, int aborted)
{
    char text[sizeof ((shmd_event_t *)0)->text];
    (void)snprintf(text, sizeof text, "%s", shmd_last_error());
    if (shmd_client_ring_detach(&client->ring, entry, lease_id, aborted ? SHMD_ENTRY_ABORTED : SHMD_ENTRY_DETACHED) == SHMD_OK)
        shmd_client_wake_driver(client);
    (void)shmd_fail(0, "%s", text);
}

int shmd_client_detach(shmd_client *client, uint32_t entry, uint64_t lease_id, uint32_t role, const char *stream, int aborted)
{
    enum { PATIENCE_NS = 2000000000 };
    shmd_request_t request;
    shmd_event_t answer;
    memset(&request, 0, sizeof request);
    request.kind = SHMD_REQUEST_DETACH;
    request.role = role;
    request.lease_id = lease_id;
    request.flags = aborted ? SHMD_DETACH_ABORTED : 0;
    memcpy(request.stream, stream, strlen(stream));
    int rc = shmd_client_request(client, &request, &answer, PATIENCE_NS);
    /* Who has expired is asked nothing any more, and a driver looks at its notes alone: what is set aside for it is free then. */
    if (rc == SHMD_E_DRIVER_UNAVAILABLE || rc == SHMD_E_TIMEOUT || rc == SHMD_E_INTERRUPTED || rc == SHMD_E_REVOKED)
        shmd_client_note_end(client, entry, lease_id, aborted);
    if (rc == SHMD_E_DRIVER_UNAVAILABLE)
        return SHMD_OK;
    return rc == SHMD_E_REVOKED || rc == SHMD_E_REJECTED || rc == SHMD_E_INTERRUPTED ? SHMD_OK : rc;
}

/* ---- the end ----------------------------------------------------------------------------- */

/* Handles that are still open go on: a Goodbye frees the lines of all leases, and an open consumer would then write into a
 * gate that is somebody else's. It is said with the last of them. */
int shmd_disconnect(shmd_client *client)
{
    if (client != NULL)
        shmd_client_drop(client, 1);
    return SHMD_OK;
}

void shmd_client_abandon(shmd_client *client)
{
    if (client != NULL)
        shmd_client_drop(client, 0);
}

void shmd_client_hold(shmd_client *client) { (void)shmd_add32(&client->references, 1); }

int shmd_client_try_hold(shmd_client *client)
{
    for (;;) {
        uint32_t references = shmd_load32_acquire(&client->references);
        if (references == 0)
            return shmd_fail(SHMD_E_CLOSED, "this client is closed; connect again");
        if (shmd_cas32(&client->references, references, references + 1))
            return SHMD_OK;
    }
}

int shmd_client_goodbye(shmd_client *client, uint64_t patience_ns)
{
    shmd_request_t request;
    memset(&request, 0, sizeof request);
    request.kind = SHMD_REQUEST_GOODBYE;
    return client->client_id == 0 ? SHMD_OK : shmd_client_tell_quietly(client, &request, patience_ns);
}

void shmd_client_drop(shmd_client *client, int may_wait)
{
    if (shmd_sub32(&client->references, 1) != 1)
        return;
    if (!shmd_is_forked(client->fork_generation)) {
        if (!may_wait && shmd_heartbeat_takes_over(client))
            return;
        shmd_heartbeat_stop(client);
        shmd_notifier_stop(&client->notifier);
        (void)shmd_client_goodbye(client, may_wait ? SHMD_TELL_PATIENCE_NS : 0);
    }
    shmd_client_release(client);
}

void shmd_client_release(shmd_client *client)
{
    if (shmd_is_forked(client->fork_generation))
        shmd_bus_error_forget(client->control); /* a child does not have this mapping, and another one may be at its place */
    else
        (void)shmd_segment_unmap(client->control, shmd_client_ring_footprint());
    client->control = NULL;
    if (client->ring.control != NULL)
        shmd_client_ring_close(&client->ring);
    shmd_session_end(&client->session);
    shmd_heartbeat_free(client);
    shmd_client_drop_authority(client);
}

void shmd_client_keep_authority(shmd_client *client) { (void)shmd_add32(&client->readers, 1); }

void shmd_client_drop_authority(shmd_client *client)
{
    if (shmd_sub32(&client->readers, 1) != 1)
        return;
    shmd_client_unmap_authority(client);
    free(client);
}

const shmd_authority_t *shmd_client_authority(const shmd_client *client) { return client->authority; }
uint64_t shmd_client_id(const shmd_client *client) { return client->client_id; }
uint64_t shmd_client_boot_id(const shmd_client *client) { return client->boot_id; }
