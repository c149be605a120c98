/* Where the driver sleeps: what wakes it, what does not, and that no wake-up is lost. Sleeps have no time limit where a wake-up
 * has to end them: one that is lost hangs the test. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "core/shmd_client_ring.h"
#include "rig.h"

#include <sys/syscall.h>

enum { BUDGET = 8, LIMIT = 16 };

extern uint32_t shmd_pwait2_missing;

static pid_t fork_raw(void) { return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }

static shmd_sleeper *new_sleeper(uint32_t budget)
{
    shmd_sleeper *sleeper = shmd_sleeper_new(budget);
    CHECK(sleeper != NULL);
    return sleeper;
}

static void pair_of(int ends[2]) { CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0); }

/* The first end gets the number of a descriptor that was closed. */
static void pair_at(int ends[2], int number)
{
    pair_of(ends);
    int other = ends[0] == number ? ends[1] : ends[0];
    if (ends[0] != number && ends[1] != number) {
        CHECK_EQ(dup3(ends[0], number, O_CLOEXEC), number);
        CHECK_EQ(close(ends[0]), 0);
        other = ends[1];
    }
    ends[0] = number;
    ends[1] = other;
}

/* A connection that the driver watches as a client's: ends[0] is the driver's. */
static void connect_client(shmd_sleeper *sleeper, int ends[2], uint64_t key)
{
    pair_of(ends);
    CHECK_EQ(shmd_sleeper_add(sleeper, ends[0], SHMD_SLEEPER_DOORBELL, key), SHMD_OK);
}

static void hang_up(shmd_sleeper *sleeper, int ends[2])
{
    CHECK_EQ(shmd_sleeper_remove(sleeper, ends[0]), SHMD_OK);
    CHECK_EQ(close(ends[0]), 0);
    CHECK_EQ(close(ends[1]), 0);
}

static void expect_nothing(shmd_sleeper *sleeper)
{
    shmd_wakeup_t out[LIMIT];
    CHECK_EQ(shmd_sleeper_wait(sleeper, NULL, 5, 5, out, LIMIT), 0); /* its time has come */
}

/* Sleeps without a limit until exactly this has happened. */
static void expect_one(shmd_sleeper *sleeper, uint32_t kind, uint64_t key, uint32_t what)
{
    shmd_wakeup_t out[LIMIT];
    int n;
    while ((n = shmd_sleeper_wait(sleeper, NULL, 0, UINT64_MAX, out, LIMIT)) == 0)
        ; /* a signal */
    CHECK_EQ(n, 1);
    CHECK_EQ(out[0].kind, kind);
    CHECK_EQ(out[0].key, key);
    CHECK_EQ(out[0].what, what);
}

/* ---- the driver's own wake-up ------------------------------------------------------------- */

static shmd_sleeper *woken_by_signal;

static void wake_from_handler(int signal)
{
    (void)signal;
    shmd_sleeper_wake(woken_by_signal);
}

static void *wake_once(void *sleeper)
{
    shmd_sleeper_wake(sleeper);
    return NULL;
}

static void test_a_wake_before_a_sleep_and_many_of_them_end_one_sleep(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    expect_nothing(sleeper);
    for (int i = 0; i < 1000; i++)
        shmd_sleeper_wake(sleeper);
    expect_one(sleeper, SHMD_SLEEPER_WAKE, 0, SHMD_WOKEN_READABLE);
    expect_nothing(sleeper);
    shmd_sleeper_free(sleeper);
}

static void test_a_wake_from_a_thread_or_a_signal_handler_ends_a_sleep(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    struct sigaction action = {.sa_handler = wake_from_handler}, before;
    woken_by_signal = sleeper;
    CHECK_EQ(sigaction(SIGUSR1, &action, &before), 0);
    for (uint64_t i = 0; i < test_scale(200); i++) {
        pthread_t thread = test_thread(wake_once, sleeper);
        expect_one(sleeper, SHMD_SLEEPER_WAKE, 0, SHMD_WOKEN_READABLE);
        test_join(thread);
        errno = ENOENT;
        CHECK_EQ(raise(SIGUSR1), 0);
        CHECK_EQ(errno, ENOENT);
        expect_one(sleeper, SHMD_SLEEPER_WAKE, 0, SHMD_WOKEN_READABLE);
    }
    CHECK_EQ(sigaction(SIGUSR1, &before, NULL), 0);
    shmd_sleeper_free(sleeper);
}

static void test_signals_come_through_their_socket_pair(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    int ends[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0); /* as Python's set_wakeup_fd has it */
    CHECK_EQ(shmd_sleeper_add(sleeper, ends[0], SHMD_SLEEPER_SIGNAL, 3), SHMD_OK);
    for (int i = 0; i < 200; i++)
        CHECK_EQ(write(ends[1], "\x0f", 1), 1);
    expect_one(sleeper, SHMD_SLEEPER_SIGNAL, 3, SHMD_WOKEN_READABLE);
    expect_nothing(sleeper);
    hang_up(sleeper, ends);
    shmd_sleeper_free(sleeper);
}

/* ---- descriptors ------------------------------------------------------------------------- */

static int listen_at(struct sockaddr_un *address, socklen_t *bytes)
{
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    *bytes = sizeof(sa_family_t);
    CHECK(listener >= 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)(void *)address, *bytes), 0); /* the kernel gives it an abstract name */
    *bytes = sizeof *address;
    CHECK_EQ(getsockname(listener, (struct sockaddr *)(void *)address, bytes), 0);
    CHECK_EQ(listen(listener, 64), 0);
    return listener;
}

static void test_a_listener_is_told_until_it_is_served_and_not_while_disarmed(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    struct sockaddr_un address;
    socklen_t bytes;
    int listener = listen_at(&address, &bytes);
    CHECK_EQ(shmd_sleeper_add(sleeper, listener, SHMD_SLEEPER_READ, 1), SHMD_OK);
    expect_nothing(sleeper);
    int client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(client, (struct sockaddr *)(void *)&address, bytes), 0);
    expect_one(sleeper, SHMD_SLEEPER_READ, 1, SHMD_WOKEN_READABLE);
    expect_one(sleeper, SHMD_SLEEPER_READ, 1, SHMD_WOKEN_READABLE);
    CHECK_EQ(shmd_sleeper_disarm(sleeper, listener), SHMD_OK);
    CHECK_EQ(shmd_sleeper_disarm(sleeper, listener), SHMD_OK);
    expect_nothing(sleeper);
    CHECK_EQ(shmd_sleeper_arm(sleeper), SHMD_OK);
    expect_one(sleeper, SHMD_SLEEPER_READ, 1, SHMD_WOKEN_READABLE);

    /* Before its Hello a connection's bytes are the caller's; after it they only wake. */
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    char hello[16];
    CHECK(connection >= 0);
    CHECK_EQ(shmd_sleeper_add(sleeper, connection, SHMD_SLEEPER_READ, 2), SHMD_OK);
    CHECK_EQ(send(client, "hello", 5, 0), 5);
    expect_one(sleeper, SHMD_SLEEPER_READ, 2, SHMD_WOKEN_READABLE);
    CHECK_EQ(recv(connection, hello, sizeof hello, 0), 5);
    CHECK_EQ(shmd_sleeper_add(sleeper, connection, SHMD_SLEEPER_DOORBELL, 77), SHMD_OK);
    CHECK_EQ(shmd_doorbell_ring(client), SHMD_OK);
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 77, SHMD_WOKEN_READABLE);
    expect_nothing(sleeper);
    CHECK_EQ(shmd_sleeper_remove(sleeper, listener), SHMD_OK);
    CHECK_EQ(close(listener), 0);
    hang_up(sleeper, (int[]){connection, client});
    shmd_sleeper_free(sleeper);
}

static void test_a_death_is_told_once(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    int held[2];
    pair_of(held);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char byte;
        (void)close(held[1]);
        _exit((int)read(held[0], &byte, 1));
    }
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    if (pidfd >= 0) {
        CHECK_EQ(shmd_sleeper_add(sleeper, pidfd, SHMD_SLEEPER_DEATH, 5), SHMD_OK);
        expect_nothing(sleeper);
    }
    CHECK_EQ(close(held[1]), 0);
    if (pidfd >= 0) {
        expect_one(sleeper, SHMD_SLEEPER_DEATH, 5, SHMD_WOKEN_READABLE);
        expect_nothing(sleeper);
    }
    CHECK_EQ(waitpid(child, NULL, 0), child);
    if (pidfd >= 0) {
        expect_nothing(sleeper);
        CHECK_EQ(shmd_sleeper_remove(sleeper, pidfd), SHMD_OK);
        CHECK_EQ(close(pidfd), 0);
    } else {
        (void)fprintf(stderr, "  not shown: no pidfd here\n");
    }
    CHECK_EQ(close(held[0]), 0);
    shmd_sleeper_free(sleeper);
}

static void test_several_ready_at_once_are_all_told_also_in_small_portions(void)
{
    enum { CLIENTS = 100 };
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    int ends[CLIENTS][2], told[CLIENTS] = {0};
    shmd_wakeup_t out[7];
    for (int i = 0; i < CLIENTS; i++) {
        connect_client(sleeper, ends[i], (uint64_t)i);
        CHECK_EQ(shmd_doorbell_ring(ends[i][1]), SHMD_OK);
    }
    for (int found = 0; found < CLIENTS;) {
        int n = shmd_sleeper_wait(sleeper, NULL, 0, UINT64_MAX, out, 7);
        CHECK(n >= 1 && n <= 7);
        for (int i = 0; i < n; i++)
            CHECK_EQ(told[out[i].key]++, 0);
        found += n;
    }
    expect_nothing(sleeper);
    for (int i = 0; i < CLIENTS; i++)
        hang_up(sleeper, ends[i]);
    shmd_sleeper_free(sleeper);
}

static void test_what_cannot_be_watched_is_refused(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    shmd_wakeup_t out[1];
    int ends[2], file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    pair_of(ends);
    CHECK(file >= 0);
    CHECK(shmd_sleeper_new(0) == NULL);
    CHECK_TEXT("budget of 0");
    CHECK_EQ(shmd_sleeper_add(sleeper, -1, SHMD_SLEEPER_READ, 0), SHMD_E_INVALID);
    CHECK_EQ(shmd_sleeper_add(sleeper, ends[0], SHMD_SLEEPER_WAKE, 0), SHMD_E_INVALID);
    CHECK_EQ(shmd_sleeper_add(sleeper, ends[0], SHMD_SLEEPER_DEATH + 1, 0), SHMD_E_INVALID);
    CHECK_EQ(shmd_sleeper_add(sleeper, 1000, SHMD_SLEEPER_READ, 0), SHMD_E_SYSTEM); /* not open */
    CHECK_EQ(shmd_sleeper_add(sleeper, file, SHMD_SLEEPER_READ, 0), SHMD_E_SYSTEM); /* cannot be waited for */
    CHECK_EQ(shmd_sleeper_remove(sleeper, ends[0]), SHMD_E_INVALID);
    CHECK_TEXT("is not watched");
    CHECK_EQ(shmd_sleeper_disarm(sleeper, 5000), SHMD_E_INVALID);
    CHECK_EQ(shmd_sleeper_wait(sleeper, NULL, 0, 0, out, 0), SHMD_E_INVALID);
    CHECK_EQ(close(file), 0);

    /* Closed before it was removed: told; and a new one with its number is a new one. */
    CHECK_EQ(shmd_sleeper_add(sleeper, ends[0], SHMD_SLEEPER_DOORBELL, 1), SHMD_OK);
    int number = ends[0];
    CHECK_EQ(close(ends[0]), 0);
    CHECK_EQ(shmd_sleeper_disarm(sleeper, number), SHMD_E_SYSTEM);
    CHECK_TEXT("was closed before");
    CHECK_EQ(close(ends[1]), 0);
    pair_at(ends, number);
    CHECK_EQ(shmd_sleeper_add(sleeper, ends[0], SHMD_SLEEPER_DOORBELL, 2), SHMD_OK);
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_OK);
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 2, SHMD_WOKEN_READABLE);
    hang_up(sleeper, ends);
    shmd_sleeper_free(sleeper);
}

/* ---- doorbells --------------------------------------------------------------------------- */

static void test_the_end_of_a_connection_is_told_once(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    int ends[2];
    connect_client(sleeper, ends, 1);
    CHECK_EQ(close(ends[1]), 0);
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 1, SHMD_WOKEN_ENDED);
    expect_nothing(sleeper);
    CHECK_EQ(shmd_sleeper_remove(sleeper, ends[0]), SHMD_OK);
    CHECK_EQ(close(ends[0]), 0);

    connect_client(sleeper, ends, 2); /* it rings, then closes its side for writing: both are told */
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_OK);
    CHECK_EQ(shutdown(ends[1], SHUT_WR), 0);
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 2, SHMD_WOKEN_READABLE | SHMD_WOKEN_ENDED);
    expect_nothing(sleeper);
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_E_DRIVER_UNAVAILABLE);
    hang_up(sleeper, ends);

    connect_client(sleeper, ends, 3);
    CHECK_EQ(shmd_sleeper_disarm(sleeper, ends[0]), SHMD_OK);
    CHECK_EQ(close(ends[1]), 0); /* told also while it is disarmed */
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 3, SHMD_WOKEN_ENDED);
    expect_nothing(sleeper);
    CHECK_EQ(shmd_sleeper_arm(sleeper), SHMD_OK);
    expect_nothing(sleeper);
    CHECK_EQ(shmd_sleeper_remove(sleeper, ends[0]), SHMD_OK);
    CHECK_EQ(close(ends[0]), 0);

    connect_client(sleeper, ends, 4); /* the driver goes */
    CHECK_EQ(shmd_sleeper_remove(sleeper, ends[0]), SHMD_OK);
    CHECK_EQ(close(ends[0]), 0);
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_E_DRIVER_UNAVAILABLE);
    CHECK_TEXT("waits for the next driver");
    CHECK_EQ(close(ends[1]), 0);
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_E_SYSTEM);
    shmd_sleeper_free(sleeper);
}

static void test_messages_of_any_length_ring_and_end_nothing(void)
{
    static const char large[4096];
    static const size_t lengths[] = {0, 1, 63, 64, 65, sizeof large};
    shmd_sleeper *sleeper = new_sleeper(100);
    int ends[2];
    connect_client(sleeper, ends, 1);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        CHECK_EQ(send(ends[1], large, lengths[i], MSG_DONTWAIT), lengths[i]);
        expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 1, SHMD_WOKEN_READABLE);
        expect_nothing(sleeper);
    }
    hang_up(sleeper, ends);
    shmd_sleeper_free(sleeper);
}

static int count_descriptors(void)
{
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    CHECK(folder != NULL);
    while (readdir(folder) != NULL)
        count++;
    CHECK_EQ(closedir(folder), 0);
    return count;
}

static void test_descriptors_that_a_client_sends_along_are_not_installed(void)
{
    enum { SENT = 5 };
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(SENT * sizeof(int))];
    } ancillary;
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    int ends[2], gone[2], sent[SENT];
    char byte = 0;
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary.bytes, .msg_controllen = sizeof ancillary.bytes};
    connect_client(sleeper, ends, 1);
    pair_of(gone);
    for (int i = 0; i < SENT; i++)
        sent[i] = gone[1];
    memset(&ancillary, 0, sizeof ancillary);
    ancillary.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof sent), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&ancillary.head), sent, sizeof sent);
    CHECK_EQ(sendmsg(ends[1], &message, MSG_DONTWAIT), 1);
    CHECK_EQ(close(gone[1]), 0);
    int before = count_descriptors();
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 1, SHMD_WOKEN_READABLE);
    CHECK_EQ(count_descriptors(), before);
    CHECK_EQ(read(gone[0], &byte, 1), 0); /* the kernel has closed them: nobody holds the other end */
    CHECK_EQ(close(gone[0]), 0);
    hang_up(sleeper, ends);
    shmd_sleeper_free(sleeper);
}

static void test_a_full_socket_has_rung_already(void)
{
    shmd_sleeper *sleeper = new_sleeper(1u << 20);
    int ends[2];
    char byte = 0;
    connect_client(sleeper, ends, 1);
    while (send(ends[1], &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1)
        ;
    CHECK_EQ(errno, EAGAIN);
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_OK);
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 1, SHMD_WOKEN_READABLE);
    expect_nothing(sleeper); /* all are read at once */
    hang_up(sleeper, ends);
    shmd_sleeper_free(sleeper);
}

static void test_a_client_beyond_its_budget_is_silent_until_the_next_tick(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    int flood[2], other[2];
    connect_client(sleeper, flood, 1);
    connect_client(sleeper, other, 2);
    for (int i = 0; i < 3 * BUDGET; i++)
        CHECK_EQ(shmd_doorbell_ring(flood[1]), SHMD_OK);
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 1, SHMD_WOKEN_READABLE | SHMD_WOKEN_DISARMED);
    expect_nothing(sleeper);
    CHECK_EQ(shmd_doorbell_ring(other[1]), SHMD_OK);
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 2, SHMD_WOKEN_READABLE);
    for (int i = 0; i < 2; i++) { /* what is left rings again; none of it was lost */
        CHECK_EQ(shmd_sleeper_arm(sleeper), SHMD_OK);
        expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 1, SHMD_WOKEN_READABLE | SHMD_WOKEN_DISARMED);
        expect_nothing(sleeper);
    }
    CHECK_EQ(shmd_sleeper_arm(sleeper), SHMD_OK);
    expect_nothing(sleeper);
    for (int tick = 0; tick < 3; tick++) { /* a budget is for a tick, however many wake-ups it comes in */
        for (int i = 0; i < BUDGET; i++) {
            CHECK_EQ(shmd_doorbell_ring(flood[1]), SHMD_OK);
            expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 1, SHMD_WOKEN_READABLE | (i == BUDGET - 1 ? SHMD_WOKEN_DISARMED : 0));
        }
        CHECK_EQ(shmd_sleeper_arm(sleeper), SHMD_OK);
    }
    CHECK_EQ(shmd_sleeper_disarm(sleeper, other[0]), SHMD_OK);
    hang_up(sleeper, flood); /* while they stand in the list of the next arm */
    hang_up(sleeper, other);
    CHECK_EQ(shmd_sleeper_arm(sleeper), SHMD_OK);
    expect_nothing(sleeper);
    shmd_sleeper_free(sleeper);
}

/* ---- forked children ---------------------------------------------------------------------- */

static int refuses_all(shmd_sleeper *sleeper, int connection)
{
    shmd_wakeup_t out[1];
    shmd_sleeper_wake(sleeper);
    return shmd_sleeper_wait(sleeper, NULL, 0, 0, out, 1) == SHMD_E_FORKED && shmd_sleeper_arm(sleeper) == SHMD_E_FORKED &&
           shmd_sleeper_disarm(sleeper, connection) == SHMD_E_FORKED && shmd_sleeper_remove(sleeper, connection) == SHMD_E_FORKED &&
           shmd_sleeper_add(sleeper, connection, SHMD_SLEEPER_READ, 9) == SHMD_E_FORKED;
}

static void test_a_forked_child_takes_nothing_from_its_parent(void)
{
#ifdef SHMD_EMULATED
    enum { WAYS = 1 }; /* qemu does not wipe pages, so a child without fork handlers is not told apart */
#else
    enum { WAYS = 2 };
#endif
    for (int way = 0; way < WAYS; way++) {
        shmd_sleeper *sleeper = new_sleeper(BUDGET);
        int ends[2], status = -1;
        connect_client(sleeper, ends, 1);
        shmd_sleeper_close_in_child(sleeper); /* in the parent it does nothing */
        pid_t child = way == 0 ? fork() : fork_raw();
        CHECK(child >= 0);
        if (child == 0) {
            int before = count_descriptors(), is_right = refuses_all(sleeper, ends[0]);
            shmd_sleeper_close_in_child(sleeper);
            is_right &= count_descriptors() == before - 2;
            shmd_sleeper_close_in_child(sleeper);
            is_right &= refuses_all(sleeper, ends[0]) && close(ends[0]) == 0 && count_descriptors() == before - 3;
            _exit(is_right ? 0 : 1);
        }
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK_EQ(status, 0);
        expect_nothing(sleeper); /* the child's wake was none */
        CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_OK);
        expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 1, SHMD_WOKEN_READABLE);
        shmd_sleeper_wake(sleeper);
        expect_one(sleeper, SHMD_SLEEPER_WAKE, 0, SHMD_WOKEN_READABLE);
        hang_up(sleeper, ends);
        shmd_sleeper_free(sleeper);
    }
}

static void test_a_child_that_keeps_its_copies_rings_for_no_descriptor_of_later(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    int ends[2], later[2], held[2];
    connect_client(sleeper, ends, 1);
    pair_of(held);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) { /* keeps all that it has until it is told */
        char byte;
        (void)close(held[1]);
        _exit((int)read(held[0], &byte, 1));
    }
    int number = ends[0];
    CHECK_EQ(shmd_sleeper_remove(sleeper, ends[0]), SHMD_OK);
    CHECK_EQ(close(ends[0]), 0);
    pair_at(later, number);
    CHECK_EQ(shmd_sleeper_add(sleeper, later[0], SHMD_SLEEPER_DOORBELL, 2), SHMD_OK);
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_OK); /* the child's copy keeps that connection open */
    expect_nothing(sleeper);
    CHECK_EQ(shmd_doorbell_ring(later[1]), SHMD_OK);
    expect_one(sleeper, SHMD_SLEEPER_DOORBELL, 2, SHMD_WOKEN_READABLE);
    CHECK_EQ(close(held[1]), 0);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    CHECK_EQ(close(held[0]), 0);
    CHECK_EQ(close(ends[1]), 0);
    hang_up(sleeper, later);
    shmd_sleeper_free(sleeper);
}

static void test_a_descriptor_that_was_only_closed_is_told_as_an_error(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    shmd_wakeup_t out[LIMIT];
    int ends[2], later[2];
    connect_client(sleeper, ends, 1);
    int copy = fcntl(ends[0], F_DUPFD_CLOEXEC, 100), number = ends[0]; /* as a forked child has one */
    CHECK_EQ(close(ends[0]), 0);
    pair_at(later, number);
    CHECK_EQ(shmd_sleeper_add(sleeper, later[0], SHMD_SLEEPER_DOORBELL, 2), SHMD_OK);
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_OK);
    CHECK_EQ(shmd_sleeper_wait(sleeper, NULL, 0, UINT64_MAX, out, LIMIT), SHMD_E_INVALID);
    CHECK_TEXT("a child has a copy");
    CHECK_EQ(shmd_doorbell_ring(later[1]), SHMD_OK);
    CHECK_EQ(shmd_sleeper_wait(sleeper, NULL, 0, UINT64_MAX, out, LIMIT), 1); /* it keeps no other one out */
    CHECK_EQ(out[0].key, 2);
    CHECK_EQ(close(copy), 0);
    expect_nothing(sleeper);
    CHECK_EQ(close(ends[1]), 0);
    hang_up(sleeper, later);
    shmd_sleeper_free(sleeper);
}

/* ---- the idle look ------------------------------------------------------------------------ */

typedef struct idle {
    rig_t rig;
    shmd_client_watch_t watches[8];
    shmd_control_t *control;
    shmd_rest_t rest;
    shmd_sleeper *sleeper;
} idle_t;

static void idle_start(idle_t *k, uint64_t stalled_ns)
{
    memset(k, 0, sizeof *k);
    rig_authority(&k->rig);
    k->control = rig_control(11);
    shmd_client_record_t *client = shmd_authority_client(k->rig.authority, 1);
    client->client_id = 11;
    shmd_word_store(&client->word, 0x200 | SHMD_CLIENT_ALIVE);
    client->connected = 1;
    k->watches[1] = (shmd_client_watch_t){.client_id = 11, .control = k->control};
    k->rest = (shmd_rest_t){.authority = k->rig.authority,
                            .clients = k->watches, .stalled_ns = stalled_ns, .gap_ns = UINT64_MAX, .check_interval_ns = 1000000,
                            .check_due_ns = 1000000, .bus_errors = shmd_bus_errors()};
    k->sleeper = new_sleeper(1);
}

static void idle_stop(idle_t *k)
{
    shmd_sleeper_free(k->sleeper);
    free(k->control);
    free(k->rig.authority);
    free(k->rig.control);
}

static void *wake_after_looks(void *argument)
{
    idle_t *k = argument;
    while (shmd_counter_get(k->rig.authority, SHMD_COUNTER_IDLE_CHECKS) < 3)
        (void)sched_yield();
    shmd_sleeper_wake(k->sleeper);
    return NULL;
}

static void test_looks_take_the_place_of_ticks_while_nothing_happens(void)
{
    idle_t k;
    shmd_wakeup_t out[LIMIT];
    idle_start(&k, UINT64_MAX);
    pthread_t thread = test_thread(wake_after_looks, &k);
    CHECK_EQ(shmd_sleeper_wait(k.sleeper, &k.rest, 1, UINT64_MAX, out, LIMIT), 1);
    CHECK_EQ(out[0].kind, SHMD_SLEEPER_WAKE);
    CHECK(shmd_counter_get(k.rig.authority, SHMD_COUNTER_IDLE_CHECKS) >= 3);
    test_join(thread);
    CHECK_EQ(shmd_sleeper_wait(k.sleeper, &k.rest, k.rest.looked_ns, k.rest.looked_ns, out, LIMIT), 0); /* something else is due */
    idle_stop(&k);
}

static void test_a_look_that_finds_something_ends_the_sleep(void)
{
    idle_t k;
    shmd_wakeup_t out[LIMIT];
    idle_start(&k, 1); /* its client is silent from the first look on */
    CHECK_EQ(shmd_sleeper_wait(k.sleeper, &k.rest, 1, UINT64_MAX, out, LIMIT), 0);
    CHECK_EQ(shmd_counter_get(k.rig.authority, SHMD_COUNTER_IDLE_CHECKS), 0);
    idle_stop(&k);
}

static void test_no_look_takes_the_place_of_the_tick_that_arms_again(void)
{
    idle_t k;
    shmd_wakeup_t out[LIMIT];
    int ends[2];
    idle_start(&k, UINT64_MAX);
    connect_client(k.sleeper, ends, 7);
    CHECK_EQ(shmd_doorbell_ring(ends[1]), SHMD_OK);
    CHECK_EQ(shmd_sleeper_wait(k.sleeper, &k.rest, 1, UINT64_MAX, out, LIMIT), 1);
    CHECK_EQ(out[0].what, SHMD_WOKEN_READABLE | SHMD_WOKEN_DISARMED); /* a budget of 1 */
    uint64_t looks = shmd_counter_get(k.rig.authority, SHMD_COUNTER_IDLE_CHECKS);
    CHECK_EQ(shmd_sleeper_wait(k.sleeper, &k.rest, 1, UINT64_MAX, out, LIMIT), 0);
    CHECK_EQ(shmd_counter_get(k.rig.authority, SHMD_COUNTER_IDLE_CHECKS), looks);
    hang_up(k.sleeper, ends);
    idle_stop(&k);
}

static int timeout_ms, only_notes;
int __real_epoll_wait(int fd, struct epoll_event *events, int limit, int ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int limit, int ms);

int __wrap_epoll_wait(int fd, struct epoll_event *events, int limit, int ms)
{
    timeout_ms = ms;
    if (!only_notes)
        return __real_epoll_wait(fd, events, limit, ms);
    errno = EINTR;
    return -1;
}

/* A sleep that ended too early would be begun again and again. */
static void test_a_kernel_without_fine_timeouts_rounds_up(void)
{
    static const struct { uint64_t ns; int ms; } sleeps[] = {{0, 0}, {1, 1}, {999999, 1}, {1000000, 1}, {1000001, 2}, {UINT64_MAX - 1, INT32_MAX}, {UINT64_MAX, -1}};
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    shmd_wakeup_t out[LIMIT];
    uint32_t was_missing = shmd_pwait2_missing;
    shmd_pwait2_missing = 1;
    only_notes = 1;
    for (size_t i = 0; i < sizeof sleeps / sizeof sleeps[0]; i++) {
        timeout_ms = -2;
        CHECK_EQ(shmd_sleeper_wait(sleeper, NULL, 0, sleeps[i].ns, out, LIMIT), 0);
        CHECK_EQ(timeout_ms, sleeps[i].ms);
    }
    only_notes = 0;
    shmd_pwait2_missing = was_missing;
    shmd_sleeper_free(sleeper);
}

/* ---- rings and sleeps together ------------------------------------------------------------- */

enum { CLIENTS = 3 };

typedef struct talker {
    shmd_control_t *control;
    uint64_t cursor;
    shmd_client_ring_t ring;
    shmd_client_ring_reader_t reader;
    uint64_t n, got;
    int ends[2];
} talker_t;

static void *talk(void *argument)
{
    talker_t *t = argument;
    for (uint64_t i = 1; i <= t->n; i++) {
        shmd_request_t request;
        memset(&request, 0, sizeof request);
        request.client_id = 1;
        request.correlation_id = i;
        int rc;
        while ((rc = shmd_client_ring_send(&t->ring, &request)) == SHMD_BACK_PRESSURED)
            (void)sched_yield();
        CHECK_EQ(rc, SHMD_OK);
        CHECK_EQ(shmd_doorbell_ring(t->ends[1]), SHMD_OK);
    }
    CHECK_EQ(shmd_client_ring_detach(&t->ring, 0, 5, SHMD_ENTRY_DETACHED), SHMD_OK);
    CHECK_EQ(shmd_doorbell_ring(t->ends[1]), SHMD_OK);
    return NULL;
}

static void read_requests(talker_t *t)
{
    shmd_request_t request;
    int rc;
    while ((rc = shmd_client_ring_poll(&t->reader, &request)) == 1) {
        CHECK_EQ(request.correlation_id, ++t->got);
        shmd_client_ring_advance(&t->reader);
    }
    CHECK_EQ(rc, 0);
}

/* Each client rings after each request, and the driver looks only at the clients that it was told of. */
static void test_no_doorbell_is_lost(void)
{
    shmd_sleeper *sleeper = new_sleeper(BUDGET);
    talker_t talkers[CLIENTS];
    pthread_t threads[CLIENTS];
    shmd_wakeup_t out[LIMIT];
    uint64_t bytes = shmd_client_ring_footprint(), n = test_scale(5000);
    uint32_t over = 0, disarmed = 0;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        talker_t *t = &talkers[i];
        *t = (talker_t){.control = test_memory(bytes), .n = n};
        CHECK_EQ(shmd_client_ring_init(t->control, bytes, 1, 1, 1), SHMD_OK);
        CHECK_EQ(shmd_client_ring_open(&t->ring, t->control, &t->cursor, i, 9), SHMD_OK);
        shmd_client_ring_reader_init(&t->reader, t->control, &t->cursor, 1, i, 9);
        connect_client(sleeper, t->ends, i);
        threads[i] = test_thread(talk, t);
    }
    while (over != (1u << CLIENTS) - 1) {
        int found = shmd_sleeper_wait(sleeper, NULL, 0, UINT64_MAX, out, LIMIT);
        CHECK(found >= 1);
        for (int i = 0; i < found; i++) {
            talker_t *t = &talkers[out[i].key];
            read_requests(t);
            if (shmd_client_ring_look(t->control, 0, 5) == SHMD_ENTRY_DETACHED)
                over |= 1u << out[i].key;
            disarmed += (out[i].what & SHMD_WOKEN_DISARMED) != 0;
        }
        if (disarmed > 0) { /* a tick of its own, whatever else comes */
            CHECK_EQ(shmd_sleeper_arm(sleeper), SHMD_OK);
            disarmed = 0;
        }
    }
    for (uint32_t i = 0; i < CLIENTS; i++) {
        test_join(threads[i]);
        read_requests(&talkers[i]);
        CHECK_EQ(talkers[i].got, n);
        hang_up(sleeper, talkers[i].ends);
        shmd_client_ring_close(&talkers[i].ring);
        free(talkers[i].control);
    }
    shmd_sleeper_free(sleeper);
}

static void run_all(void)
{
    RUN(test_a_wake_before_a_sleep_and_many_of_them_end_one_sleep);
    RUN(test_a_wake_from_a_thread_or_a_signal_handler_ends_a_sleep);
    RUN(test_signals_come_through_their_socket_pair);
    RUN(test_a_listener_is_told_until_it_is_served_and_not_while_disarmed);
    RUN(test_a_death_is_told_once);
    RUN(test_several_ready_at_once_are_all_told_also_in_small_portions);
    RUN(test_what_cannot_be_watched_is_refused);
    RUN(test_the_end_of_a_connection_is_told_once);
    RUN(test_messages_of_any_length_ring_and_end_nothing);
    RUN(test_descriptors_that_a_client_sends_along_are_not_installed);
    RUN(test_a_full_socket_has_rung_already);
    RUN(test_a_client_beyond_its_budget_is_silent_until_the_next_tick);
    RUN(test_a_forked_child_takes_nothing_from_its_parent);
    RUN(test_a_child_that_keeps_its_copies_rings_for_no_descriptor_of_later);
    RUN(test_a_descriptor_that_was_only_closed_is_told_as_an_error);
    RUN(test_looks_take_the_place_of_ticks_while_nothing_happens);
    RUN(test_a_look_that_finds_something_ends_the_sleep);
    RUN(test_no_look_takes_the_place_of_the_tick_that_arms_again);
    RUN(test_a_kernel_without_fine_timeouts_rounds_up);
    RUN(test_no_doorbell_is_lost);
}

int main(void)
{
    run_all();
    shmd_pwait2_missing = 1; /* as on a kernel before 5.11 */
    run_all();
    return test_report();
}
