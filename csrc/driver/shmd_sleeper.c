/* shmd_sleeper.c: the one place where the driver sleeps.
 *
 * An epoll set holds the listener, the connections, a pidfd for each client that has one, the end of a socket pair for signals,
 * and an eventfd of its own for other threads. All of it is level-triggered: what is not read is told again, so no wake-up can
 * be lost between two waits. Bytes that only wake are read here, in C: a client's doorbell rings thousands of times a second.
 * They are read with recv, which has no room for ancillary data, so the kernel discards descriptors that a client sends along.
 *
 * A client that rings all the time would keep the driver awake. Each has a budget; beyond it, its descriptor is not watched
 * until the next tick. Its bytes stay in its socket, so that tick finds them.
 *
 * A descriptor's generation goes into the kernel's set with its number, so an event of a descriptor that was closed is not
 * taken for one of another that has the same number now.
 */
#include "../shmd_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS_MAX = 64, BUFFER_BYTES = 64, SIGNAL_READS_MAX = 64 };
enum { FREE = 0, ARMED = 1, DISARMED = 2, ENDED = 3 }; /* ENDED: told, and out of the kernel's set */
#define END_EVENTS ((uint32_t)EPOLLRDHUP | (uint32_t)EPOLLHUP | (uint32_t)EPOLLERR)

typedef struct watched {
    uint64_t key;
    uint32_t generation;
    uint32_t rung;              /* messages since the last arm */
    int next;                   /* in the list of those that the next arm has to do with; -1: the last */
    uint8_t kind;
    uint8_t state;
    uint8_t is_listed;
} watched_t;

struct shmd_sleeper {
    int epoll_fd;
    int event_fd;
    uint32_t fork_generation;
    uint32_t budget;
    watched_t *watched;         /* by descriptor */
    int room;
    int listed;                 /* first of the list; -1: empty */
    uint32_t disarmed;          /* how many */
    uint32_t generation;
};

uint32_t shmd_pwait2_missing; /* 1: this kernel has no epoll_pwait2; a test may say so */

/* ---- making and closing ------------------------------------------------------------------- */

static int check_fork(const shmd_sleeper *s)
{
    return shmd_is_forked(s->fork_generation) ? shmd_fail(SHMD_E_FORKED, "this driver belongs to the process that started it") : SHMD_OK;
}

static uint64_t tag(int fd, uint32_t generation) { return (uint64_t)generation << 32 | (uint32_t)fd; }

static int control(const shmd_sleeper *s, int operation, int fd, uint32_t events)
{
    uint32_t generation = fd == s->event_fd ? 0 : s->watched[fd].generation;
    struct epoll_event event = {.events = events, .data.u64 = tag(fd, generation)};
    return epoll_ctl(s->epoll_fd, operation, fd, &event);
}

static void close_own(shmd_sleeper *s)
{
    if (s->epoll_fd >= 0)
        (void)close(s->epoll_fd);
    if (s->event_fd >= 0)
        (void)close(s->event_fd);
    s->epoll_fd = s->event_fd = -1;
}

shmd_sleeper *shmd_sleeper_new(uint32_t budget)
{
    shmd_sleeper *s = calloc(1, sizeof *s);
    if (s == NULL || budget == 0) {
        (void)shmd_fail(s == NULL ? SHMD_E_NO_MEMORY : SHMD_E_INVALID, s == NULL ? "no memory for the driver's epoll set" : "a budget of 0 doorbells: at least 1");
        free(s);
        return NULL;
    }
    *s = (shmd_sleeper){.epoll_fd = -1, .event_fd = -1, .fork_generation = shmd_fork_generation(), .budget = budget, .listed = -1};
    if ((s->epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0)
        (void)shmd_fail_errno(SHMD_CALL_OTHER, "making the driver's epoll set");
    else if ((s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        (void)shmd_fail_errno(SHMD_CALL_OTHER, "making the driver's eventfd");
    else if (control(s, EPOLL_CTL_ADD, s->event_fd, EPOLLIN) != 0)
        (void)shmd_fail_errno(SHMD_CALL_OTHER, "watching the driver's eventfd");
    else
        return s;
    close_own(s);
    free(s);
    return NULL;
}

void shmd_sleeper_free(shmd_sleeper *s)
{
    if (s == NULL)
        return;
    close_own(s);
    free(s->watched);
    free(s);
}

void shmd_sleeper_close_in_child(shmd_sleeper *s)
{
    if (shmd_is_forked(s->fork_generation))
        close_own(s); /* never EPOLL_CTL_DEL: the set is one for parent and child */
}

/* ---- what is watched ---------------------------------------------------------------------- */

static int make_room(shmd_sleeper *s, int fd)
{
    if (fd < s->room)
        return SHMD_OK;
    int room = (int)shmd_min(shmd_max((uint64_t)fd + 1, (uint64_t)s->room * 2), INT_MAX);
    watched_t *watched = realloc(s->watched, (size_t)room * sizeof *watched);
    if (watched == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory to watch descriptor %d", fd);
    memset(watched + s->room, 0, (size_t)(room - s->room) * sizeof *watched);
    s->watched = watched;
    s->room = room;
    return SHMD_OK;
}

static watched_t *find(const shmd_sleeper *s, int fd)
{
    if (fd >= 0 && fd < s->room && s->watched[fd].state != FREE)
        return &s->watched[fd];
    (void)shmd_fail(SHMD_E_INVALID, "descriptor %d is not watched", fd);
    return NULL;
}

static void set_state(shmd_sleeper *s, watched_t *w, uint8_t state)
{
    s->disarmed += (uint32_t)(state == DISARMED) - (uint32_t)(w->state == DISARMED);
    w->state = state;
}

static int fail_closed(int fd) { return shmd_fail_errno(SHMD_CALL_OTHER, "descriptor %d was closed before the driver stopped watching it", fd); }

int shmd_sleeper_add(shmd_sleeper *s, int fd, uint32_t kind, uint64_t key)
{
    int rc = check_fork(s);
    if (rc == SHMD_OK && (fd < 0 || fd == s->event_fd || fd == s->epoll_fd || kind < SHMD_SLEEPER_READ || kind > SHMD_SLEEPER_DEATH))
        rc = shmd_fail(SHMD_E_INVALID, "descriptor %d of kind %u cannot be watched", fd, kind);
    rc = rc ? rc : make_room(s, fd);
    if (rc != SHMD_OK)
        return rc;
    watched_t *w = &s->watched[fd];
    uint32_t was = w->generation;
    int operation = w->state == ARMED || w->state == DISARMED ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    w->generation = ++s->generation;
    int failed = control(s, operation, fd, EPOLLIN | EPOLLRDHUP);
    if (failed && operation == EPOLL_CTL_MOD && errno == ENOENT) /* it was closed, and another has its number */
        failed = control(s, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP);
    if (failed) {
        w->generation = was;
        if (errno == ENOSPC)
            return shmd_fail(SHMD_E_SYSTEM, "this user's processes watch as many descriptors as fs.epoll.max_user_watches allows: raise it (sysctl)");
        return shmd_fail_errno(SHMD_CALL_OTHER, "watching descriptor %d", fd);
    }
    set_state(s, w, ARMED);
    w->key = key;
    w->kind = (uint8_t)kind;
    w->rung = 0;
    return SHMD_OK;
}

/* Out of the kernel's set. */
static int end_watch(shmd_sleeper *s, watched_t *w, int fd, uint8_t state)
{
    int was_watched = w->state != ENDED;
    set_state(s, w, state);
    return was_watched && epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, fd, NULL) != 0 ? fail_closed(fd) : SHMD_OK;
}

int shmd_sleeper_remove(shmd_sleeper *s, int fd)
{
    int rc = check_fork(s);
    if (rc != SHMD_OK)
        return rc;
    watched_t *w = find(s, fd);
    return w == NULL ? SHMD_E_INVALID : end_watch(s, w, fd, FREE);
}

static void list(shmd_sleeper *s, watched_t *w, int fd)
{
    if (w->is_listed)
        return;
    w->is_listed = 1;
    w->next = s->listed;
    s->listed = fd;
}

static int disarm(shmd_sleeper *s, watched_t *w, int fd)
{
    if (w->state != ARMED)
        return SHMD_OK;
    if (control(s, EPOLL_CTL_MOD, fd, 0) != 0) /* an end is told all the same */
        return fail_closed(fd);
    set_state(s, w, DISARMED);
    list(s, w, fd);
    return SHMD_OK;
}

int shmd_sleeper_disarm(shmd_sleeper *s, int fd)
{
    int rc = check_fork(s);
    if (rc != SHMD_OK)
        return rc;
    watched_t *w = find(s, fd);
    return w == NULL ? SHMD_E_INVALID : disarm(s, w, fd);
}

int shmd_sleeper_arm(shmd_sleeper *s)
{
    int rc = check_fork(s);
    while (rc == SHMD_OK && s->listed >= 0) {
        int fd = s->listed;
        watched_t *w = &s->watched[fd];
        if (w->state == DISARMED) {
            if (control(s, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLRDHUP) != 0)
                rc = fail_closed(fd);
            set_state(s, w, rc == SHMD_OK ? ARMED : FREE);
        }
        w->rung = 0;
        w->is_listed = 0;
        s->listed = w->next;
    }
    return rc;
}

/* ---- what has happened -------------------------------------------------------------------- */

/* One message, or up to BUFFER_BYTES of a stream. 1: something; 0: nothing there; -1: the socket is over. Without room for ancillary data. */
static int receive(int fd, uint32_t events)
{
    char buffer[BUFFER_BYTES];
    ssize_t bytes;
    do
        bytes = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    while (bytes < 0 && errno == EINTR);
    if (bytes > 0)
        return 1;
    if (bytes < 0)
        return errno == EAGAIN ? 0 : -1;
    return (events & END_EVENTS) != 0 ? -1 : 1; /* a message without bytes looks like the end, but that comes with an event */
}

static void read_signals(int fd, shmd_wakeup_t *out, uint32_t events)
{
    int found = 1;
    for (int i = 0; i < SIGNAL_READS_MAX && found > 0; i++)
        found = receive(fd, events);
    out->what |= found < 0 ? SHMD_WOKEN_ENDED : SHMD_WOKEN_READABLE;
}

static int read_doorbells(shmd_sleeper *s, watched_t *w, int fd, shmd_wakeup_t *out, uint32_t events)
{
    int found = 1;
    list(s, w, fd);
    while (w->rung < s->budget && (found = receive(fd, events)) > 0) {
        w->rung++;
        out->what |= SHMD_WOKEN_READABLE;
    }
    if (found < 0)
        out->what |= SHMD_WOKEN_ENDED;
    if (w->rung < s->budget || (out->what & SHMD_WOKEN_ENDED) != 0)
        return SHMD_OK;
    out->what |= SHMD_WOKEN_DISARMED;
    return disarm(s, w, fd);
}

static int take(shmd_sleeper *s, const struct epoll_event *event, shmd_wakeup_t *out)
{
    int fd = (int)(uint32_t)event->data.u64, rc = SHMD_OK;
    if (fd == s->event_fd && event->data.u64 >> 32 == 0) {
        uint64_t count;
        *out = (shmd_wakeup_t){.kind = SHMD_SLEEPER_WAKE, .what = SHMD_WOKEN_READABLE};
        if (read(fd, &count, sizeof count) < 0 && errno != EAGAIN)
            return shmd_fail_errno(SHMD_CALL_OTHER, "reading the driver's eventfd");
        return SHMD_OK;
    }
    watched_t *w = find(s, fd);
    if (w == NULL || w->state == ENDED || tag(fd, w->generation) != event->data.u64)
        return shmd_fail(SHMD_E_INVALID, "descriptor %d was closed before the driver stopped watching it, and a child has a copy of it", fd);
    *out = (shmd_wakeup_t){.key = w->key, .kind = w->kind, .what = (event->events & END_EVENTS) != 0 ? SHMD_WOKEN_ENDED : 0};
    if (w->kind == SHMD_SLEEPER_DOORBELL && (event->events & EPOLLIN) != 0)
        rc = read_doorbells(s, w, fd, out, event->events);
    else if (w->kind == SHMD_SLEEPER_SIGNAL && (event->events & EPOLLIN) != 0)
        read_signals(fd, out, event->events);
    else if ((event->events & EPOLLIN) != 0)
        out->what |= SHMD_WOKEN_READABLE;
    if (rc == SHMD_OK && ((out->what & SHMD_WOKEN_ENDED) != 0 || w->kind == SHMD_SLEEPER_DEATH))
        rc = end_watch(s, w, fd, ENDED);
    return rc;
}

/* ---- sleeping ----------------------------------------------------------------------------- */

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

static int await(const shmd_sleeper *s, struct epoll_event *events, int limit, uint64_t ns)
{
    SHMD_ENTERS_WAIT();
    if (!shmd_load32_relaxed(&shmd_pwait2_missing)) {
        struct timespec timeout = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
        long n = syscall(SYS_epoll_pwait2, s->epoll_fd, events, limit, ns == UINT64_MAX ? NULL : &timeout, NULL, (size_t)0);
        if (n >= 0 || (errno != ENOSYS && errno != EPERM))
            return (int)n;
        shmd_store32_relaxed(&shmd_pwait2_missing, 1); /* a kernel before 5.11, or a sandbox that does not know the call */
    }
    uint64_t ms = ns / 1000000 + (ns % 1000000 != 0); /* up: what is woken too early would look in vain, again and again */
    return epoll_wait(s->epoll_fd, events, limit, ns == UINT64_MAX ? -1 : (int)shmd_min(ms, INT_MAX));
}

int shmd_sleeper_wait(shmd_sleeper *s, shmd_rest_t *rest, uint64_t now_ns, uint64_t until_ns, shmd_wakeup_t *out, uint32_t limit)
{
    struct epoll_event events[EVENTS_MAX];
    int rc = check_fork(s), n = 0;
    if (rc == SHMD_OK && limit == 0)
        rc = shmd_fail(SHMD_E_INVALID, "room for 0 wake-ups: at least 1");
    /* The driver's time is the caller's; how long a sleep took is the kernel's to say. */
    uint64_t began_ns = shmd_now_ns(), at_ns = now_ns;
    while (rc == SHMD_OK && n == 0) {
        uint64_t due_ns = rest == NULL ? until_ns : shmd_min(rest->check_due_ns, until_ns);
        uint64_t ns = due_ns == UINT64_MAX ? due_ns : due_ns > at_ns ? due_ns - at_ns : 0;
        n = await(s, events, (int)shmd_min(limit, EVENTS_MAX), ns);
        if (n < 0)
            return errno == EINTR ? 0 : shmd_fail_errno(SHMD_CALL_OTHER, "the driver's sleep");
        at_ns = now_ns + (shmd_now_ns() - began_ns);
        int is_check_due = rest != NULL && at_ns >= rest->check_due_ns;
        if (n == 0 && (at_ns >= until_ns || (is_check_due && (s->disarmed != 0 || !shmd_driver_rests(rest, at_ns)))))
            return 0;
    }
    int taken = 0;
    for (int i = 0; i < n; i++) {
        int each = take(s, &events[i], &out[taken]);
        taken += each == SHMD_OK;
        rc = each == SHMD_OK ? rc : each;
    }
    shmd_fence_seq_cst(); /* Q3: the bytes are read before this, what they announce is looked at after it */
    return taken > 0 ? taken : rc; /* a failure keeps nobody else out; it is met again when nothing else is ready */
}

void shmd_sleeper_wake(const shmd_sleeper *s)
{
    const uint64_t one = 1;
    int error = errno; /* of what a signal handler interrupts */
    if (shmd_is_forked(s->fork_generation))
        return;
    shmd_fence_seq_cst(); /* Q5 */
    if (write(s->event_fd, &one, sizeof one) < 0)
        errno = error; /* EAGAIN: the count is at its end, so the descriptor is readable */
}
