/* shmd_session.c: a client's connection to its driver.
 *
 *     CONNECTING  -> connect, send the Hello             -> SENT        a full backlog, nobody there: later again
 *     SENT        -> the answer, with two descriptors    -> OPEN        the connection ends: CONNECTING
 *     OPEN        -> the connection ends                 -> CONNECTING
 *
 * Each step does what can be done now. Times between tries grow, and are drawn, so that thousands of clients of a new driver do not
 * come at once again and again. A socket on which something failed is closed, never used again. The same client says Hello with the
 * same nonce and secret each time, and a later serial: a driver heeds the newest.
 *
 * Whom it speaks with is what the kernel says of the listening socket (SO_PEERCRED), and has to be trusted; what comes is copied,
 * checked, and then used. There is room for two descriptors, so no more are ever installed here.
 */
#include "shmd_session.h"
#include "shmd_hello.h"
#include "shmd_internal.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

enum { TRY_NS = 1000000, TRIES_DOUBLED = 8 }; /* from 1 ms up to 256 ms between tries */
enum { NOT_NOW = 0, IS_SENT = 1 };            /* what became of a try, unless negative */

static pthread_mutex_t sessions_lock = PTHREAD_MUTEX_INITIALIZER; /* between threads */
static shmd_session_t *sessions; /* whole at each moment, also for a child that was forked while a thread changes it */

/* ---- begin and end ---------------------------------------------------------------------------- */

static void enlist(shmd_session_t *session)
{
    (void)pthread_mutex_lock(&sessions_lock);
    session->next = sessions;
    shmd_fence_release();
    sessions = session;
    (void)pthread_mutex_unlock(&sessions_lock);
}

static void strike_out(const shmd_session_t *session)
{
    (void)pthread_mutex_lock(&sessions_lock);
    shmd_session_t **at = &sessions;
    while (*at != NULL && *at != session)
        at = &(*at)->next;
    if (*at != NULL)
        *at = session->next;
    (void)pthread_mutex_unlock(&sessions_lock);
}

static int is_own_socket(const shmd_session_t *session)
{
    struct stat status;
    return session->fd >= 0 && fstat(session->fd, &status) == 0 && status.st_dev == session->device && status.st_ino == session->inode;
}

static void hang_up(shmd_session_t *session)
{
    if (is_own_socket(session))
        (void)close(session->fd);
    session->fd = -1;
    session->state = SHMD_SESSION_IDLE;
}

static void drop(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

void shmd_session_drop_descriptors(shmd_session_t *session)
{
    drop(&session->authority_fd);
    drop(&session->control_fd);
}

void shmd_session_init(shmd_session_t *session, const char *instance, uint32_t named, uint64_t nonce)
{
    memset(session, 0, sizeof *session);
    session->fd = session->authority_fd = session->control_fd = -1;
    session->instance = instance;
    session->named = named;
    session->drawn = nonce | 1;
    session->fork_generation = shmd_fork_generation();
    shmd_hello_begin(&session->hello, instance);
    session->hello.nonce = nonce;
    enlist(session);
}

void shmd_session_begin(shmd_session_t *session, uint64_t due_ns)
{
    hang_up(session);
    session->state = SHMD_SESSION_CONNECTING;
    session->due_ns = due_ns;
    session->tries = 0;
}

void shmd_session_end(shmd_session_t *session)
{
    if (session->instance == NULL || shmd_is_forked(session->fork_generation))
        return; /* in a child: closed already, and another file may have the numbers */
    hang_up(session);
    shmd_session_drop_descriptors(session);
    strike_out(session);
    session->instance = NULL;
}

/* Else a child would keep its parent's connection open, and the driver would not see the end of it. */
void shmd_session_forked(void)
{
    (void)pthread_mutex_init(&sessions_lock, NULL);
    for (shmd_session_t *each = sessions; each != NULL; each = each->next)
        hang_up(each);
    sessions = NULL;
}

/* ---- tries --------------------------------------------------------------------------------------- */

static void __attribute__((format(printf, 2, 3))) note(shmd_session_t *session, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(session->trouble, sizeof session->trouble, format, arguments);
    va_end(arguments);
}

/* When it tries next: half to one and a half of a time that doubles. */
static void put_off(shmd_session_t *session, uint64_t now_ns)
{
    uint64_t pause_ns = (uint64_t)TRY_NS << (session->tries < TRIES_DOUBLED ? session->tries : TRIES_DOUBLED);
    session->tries++;
    session->drawn ^= session->drawn << 13;
    session->drawn ^= session->drawn >> 7;
    session->drawn ^= session->drawn << 17;
    session->due_ns = now_ns + pause_ns / 2 + session->drawn % pause_ns;
    session->state = SHMD_SESSION_CONNECTING;
}

/* Errors that pass: nobody listens yet or any more, or more clients come at once than the driver lets in. */
static int passes(int error)
{
    return error == EAGAIN || error == EINTR || error == ECONNREFUSED || error == ENOENT || error == ECONNRESET || error == EPIPE || error == ENOBUFS ||
           error == ENOTCONN || error == ENOMEM;
}

static int check_peer(shmd_session_t *session, const shmd_folder_t *folder)
{
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    if (getsockopt(session->fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
        return shmd_fail_errno(SHMD_CALL_OTHER, "SO_PEERCRED of the driver's socket in %s", folder->path);
    session->peer = peer.uid;
    int trusted = shmd_trusts(peer.uid, session->named, folder);
    if (trusted < 0)
        return trusted;
    return trusted ? SHMD_OK
        : shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "the socket in %s is served by uid %u, whom this process (uid %u) does not trust: name its owner to use it (--owner, connect(owner=...))",
                    folder->path, peer.uid, (unsigned)geteuid());
}

static int say_hello(shmd_session_t *session)
{
    session->hello.serial = shmd_max(session->hello.serial + 1, shmd_now_ns()); /* a driver compares those of one process, also after an exec */
    ssize_t sent = send(session->fd, &session->hello, sizeof session->hello, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent == (ssize_t)sizeof session->hello)
        return IS_SENT;
    return sent < 0 && passes(errno) ? NOT_NOW : shmd_fail_errno(SHMD_CALL_OTHER, "send of a Hello");
}

static int may_not_connect(const shmd_folder_t *folder, int error)
{
    struct stat status;
    char who[112] = "";
    int sees_socket = fstatat(folder->fd, SHMD_SOCKET_NAME, &status, AT_SYMLINK_NOFOLLOW) == 0;
    if (error == EACCES && (sees_socket || fstat(folder->fd, &status) == 0))
        (void)snprintf(who, sizeof who, "the %s of uid %u, gid %u (mode %04o) cannot be used by uid %u: ", sees_socket ? "driver's socket" : "folder",
                       (unsigned)status.st_uid, (unsigned)status.st_gid, (unsigned)status.st_mode & 07777u, (unsigned)geteuid());
    errno = error;
    return shmd_fail_errno(SHMD_CALL_CONNECT, "%sconnect to the driver's socket in %s", who, folder->path);
}

/* session->fd is an unconnected socket; whoever gets another result than IS_SENT closes it. */
static int try_folder(shmd_session_t *session, const shmd_folder_t *folder)
{
    struct sockaddr_un address;
    int rc = shmd_socket_address(folder->fd, folder->path, SHMD_SOCKET_NAME, &address);
    if (rc != SHMD_OK)
        return rc;
    if (connect(session->fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int error = errno;
        if (!passes(error))
            return may_not_connect(folder, error);
        session->error = error;
        note(session, error == EAGAIN ? "more clients come at once to the socket in %s than its driver lets in"
                      : error == ENOENT ? "no driver's socket stands in %s" : "no driver listens at the socket in %s", folder->path);
        return NOT_NOW;
    }
    rc = check_peer(session, folder);
    return rc ? rc : say_hello(session);
}

static int new_socket(shmd_session_t *session)
{
    struct stat status;
    int rc = shmd_keep_standard_descriptors();
    if (rc != SHMD_OK)
        return rc;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return shmd_fail_errno(SHMD_CALL_OTHER, "socket for the connection to the driver");
    if (fstat(fd, &status) != 0) {
        rc = shmd_fail_errno(SHMD_CALL_OTHER, "fstat of the connection to the driver");
        drop(&fd);
        return rc;
    }
    session->device = status.st_dev;
    session->inode = status.st_ino;
    session->fd = fd; /* last: a child that is forked now closes what stands here if it is that file */
    return SHMD_OK;
}

/* In each folder of one owner. *found: as shmd_folder_find ended; *refused: a folder was passed over for good. */
static int try_owner(shmd_session_t *session, uint32_t owner, int *found, int *refused)
{
    shmd_folder_t folder;
    uint32_t from = 0;
    int result = NOT_NOW;
    while (result != IS_SENT && (*found = shmd_folder_find(session->instance, owner, &from, &folder)) == 1) {
        session->folders++;
        result = new_socket(session);
        result = result ? result : try_folder(session, &folder);
        if (result < 0 && *refused == 0) {
            *refused = result;
            (void)snprintf(session->refusal, sizeof session->refusal, "%s", shmd_last_error());
        }
        if (result != IS_SENT)
            drop(&session->fd);
        shmd_folder_close(&folder);
    }
    return result == IS_SENT ? IS_SENT : NOT_NOW;
}

/* Folders are looked for at each try: the next driver may have made another one. The first in which a driver listens is taken: of
 * this user, of the system's place, of whom else the user has said that they are trusted. */
static int try_all(shmd_session_t *session)
{
    uint32_t owners[SHMD_OWNERS_MAX];
    int found = 0, refused = 0, n = session->named == UINT32_MAX ? shmd_owners_trusted(NULL, owners) : 1;
    session->folders = 0;
    session->error = ENOENT;
    note(session, "there is no runtime folder of instance %s", session->instance);
    int result = n < 0 ? n : try_owner(session, session->named, &found, &refused);
    for (int i = 0; i < n && result == NOT_NOW && found == 0; i++)
        if (session->named == UINT32_MAX && owners[i] != geteuid()) /* its own were the first */
            result = try_owner(session, owners[i], &found, &refused);
    if (result != NOT_NOW || (found == 0 && refused == 0))
        return result;
    return found < 0 ? found : shmd_fail(refused, "%s", session->refusal);
}

/* ---- answers --------------------------------------------------------------------------------------- */

static void take_descriptors(shmd_session_t *session, struct msghdr *message)
{
    int *slots[2] = {&session->authority_fd, &session->control_fd};
    uint32_t n = 0;
    for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each != NULL; each = CMSG_NXTHDR(message, each)) {
        if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS)
            continue;
        const unsigned char *at = CMSG_DATA(each);
        for (size_t left = each->cmsg_len - CMSG_LEN(0); left >= sizeof(int); left -= sizeof(int), at += sizeof(int)) {
            int fd;
            memcpy(&fd, at, sizeof fd);
            if (n < 2)
                *slots[n++] = fd;
            else
                (void)close(fd);
        }
    }
}

static int check_descriptor(const shmd_session_t *session, int fd, int access, const char *what)
{
    struct stat status;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fstat(fd, &status) != 0)
        return shmd_fail_errno(SHMD_CALL_OTHER, "fcntl or fstat of the %s that the driver handed over", what);
    if (!S_ISREG(status.st_mode) || (flags & (O_ACCMODE | O_PATH)) != access || (status.st_uid != session->peer && status.st_uid != 0))
        return shmd_fail(SHMD_E_CORRUPT, "the %s that uid %u handed over is of uid %u, mode %07o, open with flags 0%o: expected a regular file of that user or root, open with 0%o",
                         what, session->peer, (unsigned)status.st_uid, (unsigned)status.st_mode, (unsigned)flags, (unsigned)access);
    return SHMD_OK;
}

static int check_welcome(shmd_session_t *session, uint64_t bytes, int is_cut)
{
    shmd_welcome_t *w = &session->welcome;
    int has_both = session->authority_fd >= 0 && session->control_fd >= 0;
    int rc = shmd_message_check(w, bytes, SHMD_MESSAGE_WELCOME, sizeof *w, "the driver's answer to a Hello");
    if (rc == SHMD_E_INVALID)
        return SHMD_E_CORRUPT;
    rc = rc ? rc : shmd_text_check("the text of the driver's answer", w->text, sizeof w->text);
    if (rc != SHMD_OK)
        return rc == SHMD_E_INVALID ? SHMD_E_CORRUPT : rc;
    if (is_cut && !has_both) { /* the kernel could not install what came */
        errno = EMFILE;
        return shmd_fail_errno(SHMD_CALL_OTHER, "taking the two descriptors of the driver's answer");
    }
    if (w->code > SHMD_CODE_INTERNAL_ERROR || is_cut || (w->code == SHMD_CODE_OK) != has_both || (w->code != SHMD_CODE_OK && session->authority_fd >= 0))
        return shmd_fail(SHMD_E_CORRUPT, "the driver's answer to a Hello has code %u and %s descriptors: expected two with code 0, none with 1 to 4", w->code,
                         is_cut ? "more than two" : has_both ? "two" : session->authority_fd >= 0 ? "one" : "no");
    if (w->code != SHMD_CODE_OK) {
        shmd_fail_answer(w->code, w->reason);
        return shmd_fail(SHMD_E_REJECTED, "%s", w->text);
    }
    if (w->client_id == 0 || w->boot_id == 0)
        return shmd_fail(SHMD_E_CORRUPT, "the driver's answer to a Hello has client id %llu and boot id %llu: neither is ever 0", (unsigned long long)w->client_id,
                         (unsigned long long)w->boot_id);
    rc = check_descriptor(session, session->authority_fd, O_RDONLY, "authority segment");
    return rc ? rc : check_descriptor(session, session->control_fd, O_RDWR, "control segment");
}

/* What a message of any content is: a private copy is received, and at most two descriptors. */
static int hear(shmd_session_t *session, uint64_t now_ns)
{
    union {
        struct cmsghdr header;
        unsigned char bytes[CMSG_SPACE(2 * sizeof(int))];
    } ancillary;
    struct iovec part = {.iov_base = &session->welcome, .iov_len = sizeof session->welcome};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof ancillary};
    ssize_t got = recvmsg(session->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return SHMD_SESSION_WAIT;
    if (got < 0 && !passes(errno)) {
        int rc = shmd_fail_errno(SHMD_CALL_OTHER, "recvmsg of the driver's answer to a Hello");
        hang_up(session);
        return rc;
    }
    shmd_session_drop_descriptors(session);
    if (got > 0)
        take_descriptors(session, &message);
    if (got <= 0) { /* an empty message counts as the end */
        session->error = ECONNRESET;
        note(session, "the driver closed the connection before it answered");
        shmd_session_drop_descriptors(session);
        hang_up(session);
        put_off(session, now_ns);
        return SHMD_SESSION_WAIT;
    }
    int rc = check_welcome(session, (uint64_t)got, (message.msg_flags & MSG_CTRUNC) != 0);
    session->tries = 0;
    if (rc == SHMD_OK) {
        session->state = SHMD_SESSION_OPEN;
        return SHMD_SESSION_DONE;
    }
    shmd_session_drop_descriptors(session);
    hang_up(session);
    return rc;
}

/* An open connection: whether it has ended. What else comes means nothing, and brings no descriptors: there is no room for them. */
static void look(shmd_session_t *session, uint64_t now_ns)
{
    unsigned char dropped[64];
    ssize_t got;
    int budget = 8;
    do
        got = recv(session->fd, dropped, sizeof dropped, MSG_DONTWAIT);
    while (got > 0 && --budget > 0);
    if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR)))
        return;
    hang_up(session);
    put_off(session, now_ns);
}

/* That the connection has ended is seen by the next step. */
void shmd_session_ring(shmd_session_t *session)
{
    if (session->state == SHMD_SESSION_OPEN && is_own_socket(session))
        (void)shmd_doorbell_ring(session->fd);
}

int shmd_session_step(shmd_session_t *session, uint64_t now_ns)
{
    if (session->state >= SHMD_SESSION_SENT && !is_own_socket(session)) { /* the program has closed it under us */
        hang_up(session);
        put_off(session, now_ns);
    }
    if (session->state == SHMD_SESSION_OPEN)
        look(session, now_ns);
    if (session->state == SHMD_SESSION_CONNECTING && now_ns >= session->due_ns) {
        int rc = try_all(session);
        if (rc == IS_SENT)
            session->state = SHMD_SESSION_SENT;
        else if (rc == NOT_NOW)
            put_off(session, now_ns);
        else
            session->state = SHMD_SESSION_IDLE;
        if (rc < 0)
            return rc;
    }
    return session->state == SHMD_SESSION_SENT ? hear(session, now_ns) : SHMD_SESSION_WAIT;
}
