/* shmd_connect.c: how a client comes to a driver, and to the next one.
 *
 * It finds the driver's socket in a runtime folder, says Hello (shmd_session.c), and maps the two descriptors of the answer: no
 * name in /dev/shm is read. What stands there is looked at only while nobody answers, to know whether anybody will: a driver that
 * starts, or hands over, is waited for; one that is not there, or dead, is not.
 */
#include "shmd_hello.h"
#include "shmd_internal.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

/* ---- the authority ---------------------------------------------------------------------------- */

void shmd_client_unmap_authority(shmd_client *client)
{
    (void)shmd_segment_unmap((void *)(uintptr_t)client->authority, client->authority_bytes);
    client->authority = NULL;
    struct stat status;
    if (shmd_client_has_fd(client, &status))
        (void)close(client->authority_fd);
    client->authority_fd = -1;
}

/* Maps what client->authority_fd is. What is checked is the copy that is used. boot_id 0: any. */
static int map_authority(shmd_client *client, uint64_t boot_id)
{
    void *base = NULL;
    if (fstat(client->authority_fd, &client->authority_is) != 0)
        return shmd_fail_errno(SHMD_CALL_OPEN, "fstat of the authority of instance %s", client->instance);
    client->owner = client->authority_is.st_uid;
    client->authority_bytes = (uint64_t)client->authority_is.st_size;
    int rc = shmd_segment_map(client->authority_fd, 0, client->authority_bytes, 0, 0, &base);
    if (rc != SHMD_OK)
        return rc;
    client->authority = base;
    rc = shmd_header_check(base, client->authority_bytes, SHMD_SEGMENT_AUTHORITY, boot_id, 0, 0);
    if (rc != SHMD_OK)
        return rc;
    memcpy(&client->tables, base, sizeof client->tables);
    client->tables.folder[sizeof client->tables.folder - 1] = 0;
    rc = shmd_authority_check(&client->tables, client->authority_bytes);
    if (rc == SHMD_OK && strncmp(client->tables.instance, client->instance, sizeof client->tables.instance) != 0)
        rc = shmd_fail(SHMD_E_LAYOUT, "the authority is of instance %.64s, expected %s", client->tables.instance, client->instance);
    if (rc != SHMD_OK)
        return rc;
    client->boot_id = client->tables.header.boot_id;
    shmd_bus_error_tell(base, &client->authority_damage, 1);
    return SHMD_OK;
}

/* The name of this in texts. */
static void name_authority(shmd_client *client)
{
    char link[32], path[SHMD_SEGMENT_NAME_BYTES + sizeof "/dev/shm"];
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", client->authority_fd);
    ssize_t got = readlink(link, path, sizeof path - 1);
    path[got > 0 ? got : 0] = 0;
    const char *name = strrchr(path, '/');
    (void)snprintf(client->authority_name, sizeof client->authority_name, "%.*s", SHMD_SEGMENT_NAME_BYTES - 1, name != NULL ? name : "/shmd.*.authority");
}

/* ---- while nobody answers ------------------------------------------------------------------------ */

/* Whether a driver has the lock of this instance's folder: it starts, or serves. Held shared for a moment only; a driver that
 * starts tries again. What may not be opened tells nothing. */
static int lock_is_held(const shmd_client *client)
{
    shmd_folder_t folder;
    uint32_t from = 0;
    int held = 0;
    while (!held && shmd_folder_find(client->instance, client->named_owner, &from, &folder) == 1) {
        int fd = openat(folder.fd, "lock", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        held = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        if (fd >= 0)
            (void)close(fd);
        shmd_folder_close(&folder);
    }
    return held;
}

static int no_driver(const shmd_client *client)
{
    const char *passed_over = shmd_authorities_notes();
    return shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "no driver of instance %s: no authority segment of it is in /dev/shm; start one with `shmdriver run -i %s`%s%s",
                     client->instance, client->instance, *passed_over == 0 ? "" : ". Passed over: ", passed_over);
}

/* Maps the authority that stands in /dev/shm, which the caller unmaps. 0, and then a driver may be there; *is_between: it starts, or hands over, or
 * has just ended. Else why nobody answers. */
static int look_in_shm(shmd_client *client, int *is_between)
{
    shmd_found_t found;
    int n = shmd_authority_choose(client->instance, client->named_owner, &found);
    *is_between = 0;
    if (n <= 0)
        return n < 0 ? n : no_driver(client);
    memcpy(client->authority_name, found.name, sizeof client->authority_name);
    *is_between = !found.is_complete && (found.layout_version == 0 || found.layout_version == SHMD_LAYOUT_VERSION);
    if (*is_between)
        return shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "driver of instance %s is still starting (%s is not complete)", client->instance, found.name);
    client->authority_fd = shmd_found_open(&found, 0);
    if (client->authority_fd < 0) {
        *is_between = client->authority_fd != SHMD_E_SYSTEM || errno == ENOENT; /* it was removed meanwhile: there may be another */
        return *is_between ? shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "driver of instance %s has just removed %s", client->instance, found.name) : client->authority_fd;
    }
    int rc = map_authority(client, 0);
    if (rc != SHMD_OK)
        return rc;
    *is_between = shmd_load_acquire(&client->authority->exit_kind) == SHMD_EXIT_HANDOVER;
    return shmd_client_may_answer(client) ? SHMD_OK : SHMD_E_DRIVER_UNAVAILABLE;
}

static int folder_is_not_seen(const shmd_client *client)
{
    return shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "the driver of instance %s (%s) has its socket in %s, which is not to be found from here: let this process see that folder, "
                     "or set SHMDRIVER_RUNTIME_DIR for both sides", client->instance, shmd_pid_text(client->authority->driver_pid, client->authority->driver_pid_namespace),
                     client->tables.folder[0] == 0 ? "a folder that it does not name" : client->tables.folder);
}

/* A driver that has heard its Hello was killed, and the next one can adopt what is there: as for any other request. */
static int awaits_next(const shmd_client *client)
{
    return client->waits_for_driver && client->session.hello.serial != 0 && client->authority != NULL && !shmd_client_is_orphaned(client);
}

/* SHMD_OK: somebody may answer yet. *lives: a driver does, as far as can be told; it had been seen before the last try already. */
static int look_for_driver(shmd_client *client, int *lives)
{
    int is_between, was_there = *lives;
    int rc = look_in_shm(client, &is_between);
    *lives = rc == SHMD_OK && !is_between;
    if (*lives && was_there && client->session.folders == 0) /* a driver makes its folder before its authority */
        rc = folder_is_not_seen(client);
    else if (is_between || (rc == SHMD_E_DRIVER_UNAVAILABLE && (lock_is_held(client) || awaits_next(client))))
        rc = SHMD_OK;
    shmd_client_unmap_authority(client);
    return rc;
}

/* At the deadline. */
static int give_up(shmd_client *client)
{
    int is_between;
    char trouble[sizeof client->session.trouble];
    (void)snprintf(trouble, sizeof trouble, "%s", client->session.state == SHMD_SESSION_SENT ? "" : client->session.trouble);
    int rc = look_in_shm(client, &is_between);
    if (rc == SHMD_OK && !is_between)
        rc = shmd_client_give_up_asking(client, 0);
    shmd_client_unmap_authority(client);
    if (trouble[0] == 0)
        return rc;
    char text[SHMD_TEXT_BYTES];
    (void)snprintf(text, sizeof text, "%s", shmd_last_error());
    return shmd_fail(rc == SHMD_OK ? SHMD_E_DRIVER_UNAVAILABLE : rc, "%s (%s)", text, trouble);
}

/* An answer, or the end of the connection, wakes this thread; nothing does when a driver begins to listen. */
static int wait_for_step(const shmd_client *client, uint64_t now_ns, uint64_t began_ns, uint64_t deadline_ns)
{
    enum { UNINTERRUPTED_NS = 100000000 }; /* as in shmd_client_request: with frequent signals nobody would ever connect */
    const shmd_session_t *session = &client->session;
    int is_sent = session->state == SHMD_SESSION_SENT;
    struct pollfd answer = {.fd = session->fd, .events = POLLIN};
    uint64_t until_ns = shmd_min(deadline_ns, is_sent ? now_ns + SHMD_LONG_WAIT_NS : session->due_ns);
    uint64_t ns = until_ns > now_ns ? until_ns - now_ns : 0;
    struct timespec timeout = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    SHMD_ENTERS_WAIT();
    if (ppoll(&answer, is_sent ? 1 : 0, &timeout, NULL) >= 0)
        return SHMD_OK;
    if (errno != EINTR)
        return shmd_fail_errno(SHMD_CALL_OTHER, "ppoll of the connection to the driver");
    return shmd_now_ns() - began_ns < UNINTERRUPTED_NS ? SHMD_OK : shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal while waiting for the driver");
}

/* Its own user's driver comes before all others. Of others, two of one name have to be told apart by whoever connects. */
static int check_choice(const shmd_client *client)
{
    shmd_found_t found;
    if (client->named_owner != UINT32_MAX || client->session.peer == geteuid())
        return SHMD_OK;
    int n = shmd_authority_choose(client->instance, UINT32_MAX, &found);
    return n < 0 ? n : SHMD_OK;
}

static int await_welcome(shmd_client *client, uint64_t deadline_ns)
{
    shmd_session_t *session = &client->session;
    uint64_t began_ns = shmd_now_ns(), now_ns = began_ns;
    uint32_t tries = 0;
    int lives = 0;
    for (;; now_ns = shmd_now_ns()) {
        int rc = shmd_session_step(session, now_ns);
        if (rc != SHMD_SESSION_WAIT)
            return rc == SHMD_SESSION_DONE ? check_choice(client) : rc;
        int has_failed = session->state == SHMD_SESSION_CONNECTING && session->tries != tries;
        tries = session->tries;
        if (has_failed && (session->error == ENOENT || session->error == ECONNREFUSED))
            rc = look_for_driver(client, &lives);
        if (rc == SHMD_OK && now_ns >= deadline_ns)
            return give_up(client);
        rc = rc ? rc : wait_for_step(client, now_ns, began_ns, deadline_ns);
        if (rc != SHMD_OK)
            return rc;
    }
}

/* ---- the control segment --------------------------------------------------------------------------- */

/* A forked child of this process would share it, and it has one writer. */
static int keep_from_children(const shmd_client *client)
{
    return madvise(client->control, (size_t)shmd_client_ring_footprint(), MADV_DONTFORK) == 0
               ? SHMD_OK : shmd_fail_errno(SHMD_CALL_MAP, "madvise(MADV_DONTFORK) of the control segment");
}

/* This client's own, which nobody else can write. */
static int map_control(shmd_client *client, int fd, const shmd_welcome_t *welcome)
{
    void *base = NULL;
    uint64_t bytes = shmd_client_ring_footprint();
    if (fstat(fd, &client->control_is) != 0)
        return shmd_fail_errno(SHMD_CALL_OPEN, "fstat of the control segment");
    if ((uint64_t)client->control_is.st_size != bytes || welcome->control_bytes != bytes)
        return shmd_fail(SHMD_E_LAYOUT, "the control segment of client %llu has %llu bytes, and the driver says %llu: expected %llu", (unsigned long long)welcome->client_id,
                         (unsigned long long)client->control_is.st_size, (unsigned long long)welcome->control_bytes, (unsigned long long)bytes);
    int rc = shmd_segment_map(fd, 0, bytes, 1, 0, &base);
    if (rc != SHMD_OK)
        return rc;
    client->control = base;
    rc = keep_from_children(client);
    rc = rc ? rc : shmd_client_ring_check(base, bytes, welcome->client_id, client->boot_id);
    return rc ? rc : shmd_client_ring_open(&client->ring, client->control, &shmd_client_record(client, welcome->client_index)->control_cursor, welcome->client_index, client->nonce);
}

/* ---- connect ------------------------------------------------------------------------------------------ */

static int check_registration(const shmd_client *client, const shmd_welcome_t *welcome)
{
    if (welcome->client_index >= client->tables.client_max || welcome->authority_bytes != client->authority_bytes)
        return shmd_fail(SHMD_E_CORRUPT, "the driver's answer to a Hello names record %u of %u, and %llu bytes of an authority that has %llu", welcome->client_index,
                         client->tables.client_max, (unsigned long long)welcome->authority_bytes, (unsigned long long)client->authority_bytes);
    return SHMD_OK;
}

/* From here on the client owns the descriptors of the welcome. */
static int move_in(shmd_client *client)
{
    shmd_session_t *session = &client->session;
    const shmd_welcome_t *welcome = &session->welcome;
    client->authority_fd = session->authority_fd;
    session->authority_fd = -1;
    int rc = map_authority(client, welcome->boot_id);
    name_authority(client);
    rc = rc ? rc : check_registration(client, welcome);
    rc = rc ? rc : map_control(client, session->control_fd, welcome);
    shmd_session_drop_descriptors(session);
    rc = rc ? rc : shmd_heartbeat_init(client);
    if (rc != SHMD_OK)
        return rc;
    client->client_id = session->hello.client_id = welcome->client_id;
    client->index = welcome->client_index;
    session->hello.boot_id = client->boot_id;
    client->heard_by = shmd_load_relaxed(&client->authority->adoptions);
    SHMD_FAILPOINT("hello.answered");
    shmd_client_beat(client);
    return client->is_manual ? SHMD_OK : shmd_heartbeat_start(client);
}

static int introduce(shmd_client *client)
{
    shmd_session_t *session = &client->session;
    shmd_session_init(session, client->instance, client->named_owner, client->nonce);
    memcpy(session->hello.name, client->name, sizeof session->hello.name);
    if (getrandom(session->hello.secret, sizeof session->hello.secret, 0) != (ssize_t)sizeof session->hello.secret)
        return shmd_fail_errno(SHMD_CALL_OTHER, "getrandom");
    shmd_session_begin(session, 0);
    return SHMD_OK;
}

int shmd_client_connect(const char *instance, const shmd_client_options *options, shmd_client **out)
{
    shmd_client_options defaults;
    if (options == NULL) {
        shmd_client_options_init(&defaults);
        options = &defaults;
    }
    uint64_t deadline_ns = shmd_deadline(options->timeout_ns);
    shmd_client *client = calloc(1, sizeof *client);
    if (client == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory for a client");
    client->references = client->readers = 1;
    client->authority_fd = -1;
    client->fork_generation = shmd_fork_generation();
    shmd_notifier_init(&client->notifier);
    int rc = shmd_client_configure(client, instance, options);
    rc = rc ? rc : introduce(client);
    rc = rc ? rc : await_welcome(client, deadline_ns);
    rc = rc ? rc : move_in(client);
    if (rc != SHMD_OK) {
        shmd_client_drop(client, 1);
        return rc;
    }
    *out = client;
    return SHMD_OK;
}

int shmd_connect(const char *instance, uint64_t timeout_ns, shmd_client **out)
{
    shmd_client_options options;
    shmd_client_options_init(&options);
    options.timeout_ns = timeout_ns;
    return shmd_client_connect(instance, &options, out);
}

/* ---- the next driver -------------------------------------------------------------------------------------- */

enum { REFUSED_NS = 1000000000 }; /* until it asks a driver again that has said no */

/* The same registration, of the same authority: else it is somebody else's driver, or one that began anew. */
static int is_same(const shmd_client *client)
{
    const shmd_welcome_t *welcome = &client->session.welcome;
    struct stat status, control;
    return welcome->boot_id == client->boot_id && welcome->client_id == client->client_id && welcome->client_index == client->index &&
           fstat(client->session.authority_fd, &status) == 0 && status.st_dev == client->authority_is.st_dev && status.st_ino == client->authority_is.st_ino &&
           fstat(client->session.control_fd, &control) == 0 && control.st_dev == client->control_is.st_dev && control.st_ino == client->control_is.st_ino;
}

static void step_on(shmd_client *client, uint64_t now_ns)
{
    shmd_session_t *session = &client->session;
    uint64_t adoptions = shmd_load_relaxed(&client->authority->adoptions);
    int is_new = session->state == SHMD_SESSION_OPEN && adoptions != client->heard_by;
    if (is_new)
        shmd_session_begin(session, now_ns);
    if (session->state == SHMD_SESSION_CONNECTING)
        client->heard_by = adoptions;
    int rc = shmd_session_step(session, now_ns);
    int is_done = rc == SHMD_SESSION_DONE;
    if (rc < 0 || (is_done && !is_same(client)))
        shmd_session_begin(session, now_ns + REFUSED_NS);
    else if (is_done)
        shmd_store32_relaxed(&client->rings, 1); /* what was written meanwhile */
    shmd_session_drop_descriptors(session);
}

/* Whether the next driver could take it as what it was. */
static int may_be_heard(const shmd_client *client)
{
    uint64_t exit_kind = shmd_load_acquire(&client->authority->exit_kind);
    return client->client_id != 0 && !client->is_silent && exit_kind != SHMD_EXIT_CLEAN && exit_kind != SHMD_EXIT_SUPERSEDED && shmd_client_is_registered(client);
}

/* A thread that is inside when this one comes looks at `rings` after it has left: so one of them wakes the driver. */
void shmd_client_wake_driver(shmd_client *client)
{
    shmd_store32_seq_cst(&client->rings, 1);
    while (shmd_add32(&client->rings, 0) != 0 && shmd_cas32(&client->session_taken, 0, 1)) {
        shmd_store32_seq_cst(&client->rings, 0);
        shmd_session_ring(&client->session);
        shmd_store32_seq_cst(&client->session_taken, 0);
    }
}

void shmd_client_stay_connected(shmd_client *client, uint64_t now_ns)
{
    char text[SHMD_TEXT_BYTES];
    if (client->session.instance == NULL || !may_be_heard(client) || !shmd_cas32(&client->session_taken, 0, 1)) /* one thread at a time: nobody waits for it */
        return;
    uint32_t code = shmd_last_code(), reason = shmd_last_reason();
    (void)snprintf(text, sizeof text, "%s", shmd_last_error());
    step_on(client, now_ns);
    shmd_fail_answer(code, reason);
    (void)shmd_fail(0, "%s", text);
    shmd_store32_seq_cst(&client->session_taken, 0);
    if (shmd_add32(&client->rings, 0) != 0)
        shmd_client_wake_driver(client);
}

uint64_t shmd_client_reconnects_ns(const shmd_client *client, uint64_t now_ns)
{
    const shmd_session_t *session = &client->session;
    if (session->instance == NULL || session->state != SHMD_SESSION_CONNECTING || !may_be_heard(client))
        return UINT64_MAX;
    return session->due_ns > now_ns ? session->due_ns - now_ns : 0;
}
