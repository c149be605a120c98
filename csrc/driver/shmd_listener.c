/* shmd_listener.c: the driver's socket. Who connects is what the kernel says (SO_PEERCRED, SO_PEERPIDFD); a Hello is a claim.
 *
 * What others can do to it is bounded: connections that say nothing end after 2 s, one user has a share of them, each call accepts
 * at most as many as its caller says, and messages are received without room for descriptors, so that none is ever installed here.
 * Nothing waits. What fails for one connection ends that connection alone.
 *
 * A forked child shares the epoll instance's registrations with its parent. So a connection's registration is taken back before it
 * is closed here, and a child that closes everything takes nothing back.
 */
#include "shmd_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

static shmd_peer_t *waiting_of(const shmd_listener_t *listener) { return listener->waiting; }

static void close_one(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

/* ---- the socket and its name ---------------------------------------------------------------- */

static int is_ours(int folder_fd, const char *name, struct stat *status)
{
    if (fstatat(folder_fd, name, status, AT_SYMLINK_NOFOLLOW) != 0)
        return shmd_fail_errno(SHMD_CALL_RUNTIME, "fstatat of the socket %s that was just bound in the runtime folder", name);
    return S_ISSOCK(status->st_mode) && status->st_uid == geteuid()
               ? SHMD_OK : shmd_fail(SHMD_E_INVALID, "%s in the runtime folder is no socket of this user's, though one was just bound there: somebody else changes that folder", name);
}

/* Nobody connects before it listens, and nobody looks for this name: so the mode is right when the first client comes. */
static int share(int folder_fd, const char *name, uint32_t gid)
{
    mode_t mode = gid == UINT32_MAX ? 0600 : 0660;
    if (gid != UINT32_MAX && fchownat(folder_fd, name, (uid_t)-1, (gid_t)gid, AT_SYMLINK_NOFOLLOW) != 0)
        return shmd_fail_errno(SHMD_CALL_SHARE, "fchownat of the driver's socket to group %u", gid);
    return fchmodat(folder_fd, name, mode, 0) == 0 ? SHMD_OK : shmd_fail_errno(SHMD_CALL_SHARE, "fchmodat of the driver's socket to %04o", (unsigned)mode);
}

static int put_in_place(int folder_fd, const char *name, int replace)
{
    if (replace)
        return renameat(folder_fd, name, folder_fd, SHMD_SOCKET_NAME) == 0
                   ? SHMD_OK : shmd_fail_errno(SHMD_CALL_RUNTIME, "renameat of the driver's socket to %s in the runtime folder", SHMD_SOCKET_NAME);
    if (linkat(folder_fd, name, folder_fd, SHMD_SOCKET_NAME, 0) == 0)
        return unlinkat(folder_fd, name, 0) == 0 ? SHMD_OK : shmd_fail_errno(SHMD_CALL_RUNTIME, "unlinkat of %s in the runtime folder", name);
    if (errno == EEXIST)
        return shmd_fail(SHMD_E_INVALID, "something else stands in the runtime folder as %s: it is left there", SHMD_SOCKET_NAME);
    return shmd_fail_errno(SHMD_CALL_RUNTIME, "linkat of the driver's socket to %s in the runtime folder", SHMD_SOCKET_NAME);
}

static int bind_and_listen(shmd_listener_t *listener, int folder_fd, const char *folder_path, uint32_t gid, int replace)
{
    struct sockaddr_un address;
    struct stat status = {.st_ino = 0};
    uint64_t drawn;
    char name[32];
    if (getrandom(&drawn, sizeof drawn, 0) != (ssize_t)sizeof drawn)
        return shmd_fail_errno(SHMD_CALL_OTHER, "getrandom");
    (void)snprintf(name, sizeof name, "%s.%016llx", SHMD_SOCKET_NAME, (unsigned long long)drawn);
    int rc = shmd_socket_address(folder_fd, folder_path, name, &address);
    if (rc != SHMD_OK)
        return rc;
    if (bind(listener->fd, (struct sockaddr *)&address, sizeof address) != 0)
        return shmd_fail_errno(SHMD_CALL_RUNTIME, "bind of the driver's socket in %s", folder_path);
    rc = is_ours(folder_fd, name, &status);
    rc = rc ? rc : share(folder_fd, name, gid);
    if (rc == SHMD_OK && listen(listener->fd, SHMD_LISTEN_BACKLOG) != 0)
        rc = shmd_fail_errno(SHMD_CALL_OTHER, "listen on the driver's socket");
    rc = rc ? rc : put_in_place(folder_fd, name, replace);
    if (rc != SHMD_OK)
        (void)unlinkat(folder_fd, name, 0);
    listener->device = status.st_dev;
    listener->inode = status.st_ino;
    return rc;
}

/* Level-triggered: whoever sleeps on the epoll is woken as long as there is something to do. Not armed: there is, and it cannot be done. */
static int watch(const shmd_listener_t *listener, int fd, int operation, int armed)
{
    struct epoll_event event = {.events = armed ? EPOLLIN : 0, .data.fd = fd};
    return epoll_ctl(listener->epoll, operation, fd, &event) == 0 ? SHMD_OK : shmd_fail_errno(SHMD_CALL_OTHER, "epoll_ctl of the driver's socket");
}

static int open_spare(shmd_listener_t *listener)
{
    if (listener->spare < 0)
        listener->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return listener->spare >= 0;
}

int shmd_listener_open(int folder_fd, const char *folder_path, uint32_t gid, int replace, shmd_listener_t *out)
{
    *out = (shmd_listener_t){.fd = -1, .epoll = -1, .spare = -1, .uid = geteuid()};
    int rc = shmd_keep_standard_descriptors();
    if (rc != SHMD_OK)
        return rc;
    out->waiting = calloc(SHMD_LISTENER_WAITING, sizeof(shmd_peer_t));
    if (out->waiting == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory for %d connections", SHMD_LISTENER_WAITING);
    out->epoll = epoll_create1(EPOLL_CLOEXEC);
    out->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (out->epoll < 0 || out->fd < 0 || !open_spare(out))
        rc = shmd_fail_errno(SHMD_CALL_OTHER, "socket, epoll_create1 or open of /dev/null for the driver's socket");
    rc = rc ? rc : watch(out, out->fd, EPOLL_CTL_ADD, 1);
    rc = rc ? rc : bind_and_listen(out, folder_fd, folder_path, gid, replace);
    if (rc != SHMD_OK)
        shmd_listener_close(out);
    return rc;
}

int shmd_listener_check(const shmd_listener_t *listener, int folder_fd)
{
    struct stat status;
    if (fstatat(folder_fd, SHMD_SOCKET_NAME, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : shmd_fail_errno(SHMD_CALL_RUNTIME, "fstatat of %s in the runtime folder", SHMD_SOCKET_NAME);
    if (status.st_dev == listener->device && status.st_ino == listener->inode)
        return 1;
    return shmd_fail(SHMD_E_INVALID, "%s in the runtime folder is not this driver's: uid %u put something else there", SHMD_SOCKET_NAME, (unsigned)status.st_uid);
}

void shmd_listener_close(shmd_listener_t *listener)
{
    shmd_peer_t *waiting = waiting_of(listener);
    for (uint32_t i = 0; i < listener->count; i++) {
        close_one(&waiting[i].fd);
        close_one(&waiting[i].pidfd);
    }
    listener->count = 0;
    close_one(&listener->fd);
    close_one(&listener->epoll);
    close_one(&listener->spare);
    free(listener->waiting);
    listener->waiting = NULL;
}

/* ---- accept ------------------------------------------------------------------------------------ */

static int is_other(const shmd_listener_t *listener, uint32_t uid) { return uid != listener->uid && uid != 0; }

static int is_silent(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, 0) == 0;
}

static void take_out(shmd_listener_t *listener, uint32_t at, shmd_peer_t *out);

static uint32_t count_of(const shmd_listener_t *listener, uint32_t uid)
{
    const shmd_peer_t *waiting = waiting_of(listener);
    uint32_t count = 0;
    for (uint32_t i = 0; i < listener->count; i++)
        count += waiting[i].uid == uid;
    return count;
}

/* Whose connections make room: `newcomer` once its share is used up, else who has most of them, of all or of the others. */
static uint32_t who_yields(const shmd_listener_t *listener, uint32_t newcomer)
{
    const shmd_peer_t *waiting = waiting_of(listener);
    uint32_t yields = newcomer, most = 0;
    int of_others = is_other(listener, newcomer);
    if (of_others && count_of(listener, newcomer) >= SHMD_USER_SHARE)
        return newcomer;
    for (uint32_t i = 0; i < listener->count; i++) {
        uint32_t count = count_of(listener, waiting[i].uid);
        if (count > most && (!of_others || is_other(listener, waiting[i].uid))) {
            most = count;
            yields = waiting[i].uid;
        }
    }
    return yields;
}

static int has_room(const shmd_listener_t *listener, uint32_t uid)
{
    const shmd_peer_t *waiting = waiting_of(listener);
    uint32_t others = 0;
    for (uint32_t i = 0; i < listener->count; i++)
        others += (uint32_t)is_other(listener, waiting[i].uid);
    return listener->count < SHMD_LISTENER_WAITING &&
           (!is_other(listener, uid) || (count_of(listener, uid) < SHMD_USER_SHARE && others < SHMD_OTHERS_SHARE));
}

/* A client says Hello right after it has connected, so the oldest silent one is hardly ever one; if it is, it tries again. */
static int make_room(shmd_listener_t *listener, uint32_t newcomer)
{
    const shmd_peer_t *waiting = waiting_of(listener);
    uint32_t yields = who_yields(listener, newcomer), oldest = 0;
    while (oldest < listener->count && (waiting[oldest].uid != yields || !is_silent(waiting[oldest].fd)))
        oldest++;
    if (oldest == listener->count)
        return 0;
    shmd_peer_t ended;
    take_out(listener, oldest, &ended);
    close_one(&ended.fd);
    close_one(&ended.pidfd);
    listener->refused++;
    return 1;
}

static void refuse(int fd, uint32_t code, uint32_t reason, const char *text)
{
    shmd_welcome_t welcome;
    memset(&welcome, 0, sizeof welcome);
    welcome.code = code;
    welcome.reason = reason;
    (void)snprintf(welcome.text, sizeof welcome.text, "%s", text);
    (void)shmd_listener_answer(fd, &welcome, -1, -1); /* it is closed now, whether it hears that or not */
}

/* No descriptor is left to accept with: the spare one is given up for as long as it takes to say so. */
static int refuse_by_spare(shmd_listener_t *listener)
{
    struct rlimit limit = {.rlim_cur = 0};
    char text[160];
    int error = errno;
    close_one(&listener->spare);
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int is_none = fd < 0 && errno == EAGAIN; /* the kernel looks for a descriptor before it looks for a connection */
    if (fd >= 0) {
        (void)getrlimit(RLIMIT_NOFILE, &limit);
        (void)snprintf(text, sizeof text, "the driver has no descriptor left for another client (%s; its limit is %llu): raise LimitNOFILE",
                       error == EMFILE ? "EMFILE" : "ENFILE, the whole system's", (unsigned long long)limit.rlim_cur);
        refuse(fd, SHMD_CODE_REJECTED, SHMD_REASON_LIMIT, text);
        (void)close(fd);
        listener->accepted++;
        listener->refused++;
    }
    (void)open_spare(listener);
    errno = error;
    return fd >= 0 ? 1 : is_none ? 0 : shmd_fail_errno(SHMD_CALL_OTHER, "accept on the driver's socket");
}

/* Whether so few descriptors are left that the driver's own work might soon have none. */
static int is_short_of_descriptors(const shmd_peer_t *peer)
{
    enum { OWN = 32 };
    struct rlimit limit;
    int newest = peer->fd > peer->pidfd ? peer->fd : peer->pidfd;
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && (rlim_t)newest + OWN >= limit.rlim_cur;
}

static int wait_for_hello(shmd_listener_t *listener, const shmd_peer_t *peer)
{
    /* Both go: the newcomer has the numbers that are to stay free, and tries again a little later with those of the other. */
    if (is_short_of_descriptors(peer) && make_room(listener, peer->uid))
        return shmd_fail(SHMD_E_INVALID, "hardly any descriptor is left for a connection that has not said Hello");
    if (!has_room(listener, peer->uid) && !make_room(listener, peer->uid))
        return shmd_fail(SHMD_E_INVALID, "uid %u has %u connections whose Hellos are read first", peer->uid, count_of(listener, peer->uid));
    int rc = watch(listener, peer->fd, EPOLL_CTL_ADD, 1);
    if (rc == SHMD_OK)
        waiting_of(listener)[listener->count++] = *peer;
    return rc;
}

/* 1: one was taken off the backlog; 0: there is none; SHMD_E_SYSTEM. */
static int accept_one(shmd_listener_t *listener, uint64_t now_ns)
{
    shmd_peer_t peer;
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE))
        return refuse_by_spare(listener);
    if (fd < 0)
        return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED ? 0 : shmd_fail_errno(SHMD_CALL_OTHER, "accept on the driver's socket");
    listener->accepted++;
    int rc = shmd_peer_identify(fd, now_ns, &peer);
    rc = rc ? rc : wait_for_hello(listener, &peer);
    if (rc != SHMD_OK) { /* it sees the end of the connection, and tries again a little later */
        listener->refused++;
        close_one(&peer.fd);
        close_one(&peer.pidfd);
    }
    return 1;
}

/* Whether one more can be taken: there is a place, or somebody silent who yields it. */
static int can_accept(const shmd_listener_t *listener)
{
    const shmd_peer_t *waiting = waiting_of(listener);
    uint32_t silent = 0;
    for (uint32_t i = 0; i < listener->count && silent == 0; i++)
        silent += (uint32_t)is_silent(waiting[i].fd);
    return listener->count < SHMD_LISTENER_WAITING || silent != 0;
}

int shmd_listener_accept(shmd_listener_t *listener, uint64_t now_ns, uint32_t budget)
{
    int count = 0, rc = 1;
    (void)open_spare(listener);
    while (rc == 1 && (uint32_t)count < budget && can_accept(listener)) {
        rc = accept_one(listener, now_ns);
        count += rc == 1;
    }
    int watched = watch(listener, listener->fd, EPOLL_CTL_MOD, rc >= 0); /* what fails would wake the driver for nothing, again and again */
    return rc < 0 ? rc : watched != SHMD_OK ? watched : count;
}

/* ---- Hello --------------------------------------------------------------------------------------- */

/* The connection is the caller's from here on, and wakes this listener's sleeper no more. */
static void take_out(shmd_listener_t *listener, uint32_t at, shmd_peer_t *out)
{
    shmd_peer_t *waiting = waiting_of(listener);
    *out = waiting[at];
    (void)epoll_ctl(listener->epoll, EPOLL_CTL_DEL, out->fd, NULL);
    listener->count--;
    memmove(&waiting[at], &waiting[at + 1], (listener->count - at) * sizeof *waiting); /* the oldest stand first */
}

/* A whole message, or SHMD_BACK_PRESSURED: none yet. Without room for ancillary data the kernel drops descriptors that come with it. */
static int receive(const shmd_peer_t *peer, shmd_hello_t *out)
{
    unsigned char message[sizeof *out];
    ssize_t got = recv(peer->fd, message, sizeof message, MSG_DONTWAIT | MSG_TRUNC); /* MSG_TRUNC: its true length */
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return SHMD_BACK_PRESSURED;
    if (got < 0 && errno != ECONNRESET)
        return shmd_fail_errno(SHMD_CALL_OTHER, "recv of a Hello from uid %u", peer->uid);
    if (got <= 0)
        return shmd_fail(SHMD_E_CLOSED, "a process of uid %u, pid %lld, left without a Hello", peer->uid, (long long)peer->process.pid);
    int rc = shmd_hello_check(message, (uint64_t)got, out);
    return rc ? rc : shmd_peer_check(peer, out);
}

static int end_refused(shmd_listener_t *listener, uint32_t at, int code, shmd_peer_t *out)
{
    take_out(listener, at, out);
    if (code == SHMD_E_LAYOUT)
        refuse(out->fd, SHMD_CODE_UNSUPPORTED, SHMD_REASON_LAYOUT, shmd_last_error());
    else if (code == SHMD_E_INVALID)
        refuse(out->fd, SHMD_CODE_INVALID_PARAMS, SHMD_REASON_NONE, shmd_last_error());
    close_one(&out->fd);
    close_one(&out->pidfd);
    listener->refused++;
    return code;
}

int shmd_listener_hello(shmd_listener_t *listener, uint64_t now_ns, shmd_peer_t *peer, shmd_hello_t *hello)
{
    const shmd_peer_t *waiting = waiting_of(listener);
    for (uint32_t at = 0; at < listener->count; at++) {
        int rc = receive(&waiting[at], hello);
        if (rc == SHMD_OK) {
            take_out(listener, at, peer);
            return 1;
        }
        uint64_t accepted_ns = waiting[at].accepted_ns;
        if (rc == SHMD_BACK_PRESSURED && now_ns > accepted_ns && now_ns - accepted_ns >= SHMD_HELLO_PATIENCE_NS)
            rc = shmd_fail(SHMD_E_TIMEOUT, "a process of uid %u, pid %lld, connected and said nothing for %u s", waiting[at].uid,
                           (long long)waiting[at].process.pid, SHMD_HELLO_PATIENCE_NS / 1000000000u);
        if (rc != SHMD_BACK_PRESSURED)
            return end_refused(listener, at, rc, peer);
    }
    return 0;
}

/* ---- answers ---------------------------------------------------------------------------------------- */

int shmd_listener_answer(int fd, shmd_welcome_t *welcome, int authority_fd, int control_fd)
{
    union {
        struct cmsghdr header;
        unsigned char bytes[CMSG_SPACE(2 * sizeof(int))];
    } ancillary;
    int descriptors[2] = {authority_fd, control_fd};
    struct iovec part = {.iov_base = welcome, .iov_len = sizeof *welcome};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    shmd_message_begin(welcome, SHMD_MESSAGE_WELCOME, sizeof *welcome);
    welcome->text[sizeof welcome->text - 1] = 0;
    welcome->text_bytes = (uint32_t)strlen(welcome->text);
    if (welcome->code == SHMD_CODE_OK) {
        memset(&ancillary, 0, sizeof ancillary);
        ancillary.header.cmsg_level = SOL_SOCKET;
        ancillary.header.cmsg_type = SCM_RIGHTS;
        ancillary.header.cmsg_len = CMSG_LEN(sizeof descriptors);
        memcpy(CMSG_DATA(&ancillary.header), descriptors, sizeof descriptors);
        message.msg_control = &ancillary;
        message.msg_controllen = sizeof ancillary;
    }
    ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent == (ssize_t)sizeof *welcome)
        return SHMD_OK;
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
        return shmd_fail(SHMD_E_CLOSED, "the client has left before its Hello was answered");
    return shmd_fail_errno(SHMD_CALL_OTHER, "sendmsg of the answer to a Hello");
}
