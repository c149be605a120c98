/* Who has connected, across users and PID namespaces. Needs root: other users are children after setuid, namespaces are made by unshare.
 * fault: 80, 81 (users, PID namespaces) */
#include "socket_rig.h"

#include <grp.h>
#include <sched.h>

enum { STRANGER = 4301, SECOND = 4302, GROUP = 4400 };

static void become(uint32_t uid)
{
    const gid_t groups[] = {GROUP};
    CHECK_EQ(setgroups(1, groups), 0);
    CHECK_EQ(setgid(GROUP), 0);
    CHECK_EQ(setuid(uid), 0);
}

/* A child of that user, which connects `count` times, says Hello with the last of them, and stays until `until` ends. */
static pid_t other_user(uint32_t uid, int count, int until)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    become(uid);
    shmd_hello_t hello = rig_hello();
    int fd = -1;
    for (int i = 0; i < count; i++)
        fd = rig_connect(0);
    char byte;
    if (fd < 0 || send(fd, &hello, sizeof hello, MSG_NOSIGNAL) != (ssize_t)sizeof hello)
        _exit(1);
    _exit(read(until, &byte, 1) == 0 ? 0 : 1);
}

static int hear(shmd_listener_t *listener, shmd_peer_t *peer, shmd_hello_t *hello)
{
    struct pollfd epoll = {.fd = listener->epoll, .events = POLLIN};
    for (;;) {
        CHECK(shmd_listener_accept(listener, 1, 1000) >= 0);
        int rc = shmd_listener_hello(listener, 1, peer, hello);
        if (rc != 0)
            return rc;
        CHECK_EQ(poll(&epoll, 1, 60000), 1);
    }
}

static void forget(shmd_peer_t *peer)
{
    (void)close(peer->fd);
    if (peer->pidfd >= 0)
        (void)close(peer->pidfd);
}

static void test_the_kernel_says_whose_process_it_is(void)
{
    shmd_listener_t listener = rig_listen(GROUP);
    shmd_peer_t peer;
    shmd_hello_t hello;
    int until[2];
    CHECK_EQ(pipe2(until, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        (void)close(until[1]);
        pid_t inner = other_user(STRANGER, 1, until[0]);
        _exit(rig_child_code(inner));
    }
    CHECK_EQ(hear(&listener, &peer, &hello), 1);
    CHECK_EQ(peer.uid, STRANGER);
    CHECK_EQ(peer.gid, GROUP);
    CHECK_EQ(close(until[1]), 0);
    CHECK_EQ(rig_child_code(child), 0);
    CHECK_EQ(close(until[0]), 0);
    forget(&peer);
    shmd_listener_close(&listener);
}

static void test_the_socket_is_closed_to_others_without_the_group(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    pid_t child = fork();
    if (child == 0) {
        become(STRANGER);
        _exit(rig_connect(0) == -1 && errno == EACCES ? 0 : 1);
    }
    CHECK_EQ(rig_child_code(child), 0);
    shmd_listener_close(&listener);
}

/* A stranger that floods loses its own connections, and keeps nobody out. */
static void test_a_user_has_a_share_of_the_silent_ones(void)
{
    shmd_listener_t listener = rig_listen(GROUP);
    shmd_peer_t peer;
    shmd_hello_t hello, own = rig_hello();
    int until[2], silent[SHMD_LISTENER_WAITING - SHMD_USER_SHARE];
    for (int i = 0; i < SHMD_LISTENER_WAITING - SHMD_USER_SHARE; i++)
        silent[i] = rig_connect(0);
    CHECK_EQ(pipe(until), 0);
    pid_t child = fork();
    if (child == 0) {
        (void)close(until[1]);
        _exit(rig_child_code(other_user(STRANGER, 100, until[0])));
    }
    CHECK_EQ(hear(&listener, &peer, &hello), 1);
    CHECK_EQ(peer.uid, STRANGER);
    forget(&peer);
    CHECK(listener.count <= SHMD_LISTENER_WAITING);
    for (int i = 0; i < SHMD_LISTENER_WAITING - SHMD_USER_SHARE; i++)
        CHECK(!rig_is_readable(silent[i])); /* still open: the stranger's own made room */
    int mine = rig_connect(0);
    rig_send(mine, &own, sizeof own);
    CHECK_EQ(hear(&listener, &peer, &hello), 1);
    CHECK_EQ(peer.uid, 0);
    forget(&peer);
    CHECK(listener.refused >= 100 - 1 - SHMD_USER_SHARE);
    CHECK_EQ(close(mine), 0);
    CHECK_EQ(close(until[1]), 0);
    CHECK_EQ(close(until[0]), 0);
    CHECK_EQ(rig_child_code(child), 0);
    for (int i = 0; i < SHMD_LISTENER_WAITING - SHMD_USER_SHARE; i++)
        CHECK_EQ(close(silent[i]), 0);
    shmd_listener_close(&listener);
}

/* ---- PID namespaces ------------------------------------------------------------------------------- */

/* In a PID namespace of its own: a client from outside has no number there. Its pidfd proves its death all the same. */
static int hear_from_outside(int ready, int told)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t hello;
    uint32_t evidence;
    CHECK_EQ(write(ready, "r", 1), 1);
    CHECK_EQ(hear(&listener, &peer, &hello), 1);
    CHECK_EQ(peer.process.pid, 0);
    CHECK_EQ(peer.process.start_time, 0);
    CHECK_EQ(peer.uid, 0);
    CHECK_EQ(shmd_process_look(&peer.process, NULL, &evidence), SHMD_PROCESS_UNKNOWN);
    CHECK_EQ(evidence, SHMD_EVIDENCE_PID_NAMESPACE);
    CHECK(strstr(shmd_pid_text(peer.process.pid, peer.process.pid_namespace), "a process of another PID namespace") != NULL);
    int code = 0;
    if (peer.is_of_peer) {
        CHECK(!shmd_pidfd_has_fired(peer.pidfd));
        CHECK_EQ(write(told, "t", 1), 1);
        struct pollfd death = {.fd = peer.pidfd, .events = POLLIN};
        CHECK_EQ(poll(&death, 1, 60000), 1);
    } else {
        CHECK_EQ(peer.pidfd, -1); /* before Linux 6.5 nothing proves it */
        CHECK_EQ(write(told, "t", 1), 1);
        code = 77;
    }
    forget(&peer);
    shmd_listener_close(&listener);
    return code;
}

static pid_t client_outside(int told)
{
    pid_t child = fork();
    if (child == 0) {
        char byte;
        shmd_hello_t hello = rig_hello();
        int fd = rig_connect(0);
        rig_send(fd, &hello, sizeof hello);
        _exit(read(told, &byte, 1) == 1 ? 0 : 1);
    }
    return child;
}

static void test_a_client_of_another_pid_namespace_has_no_number_and_can_be_proved_dead(void)
{
    int ready[2], told[2];
    char byte;
    CHECK_EQ(pipe(ready), 0);
    CHECK_EQ(pipe(told), 0);
    pid_t outer = fork();
    if (outer == 0) {
        if (unshare(CLONE_NEWPID) != 0)
            _exit(77);
        pid_t inner = fork();
        if (inner == 0)
            _exit(hear_from_outside(ready[1], told[1]));
        _exit(rig_child_code(inner));
    }
    CHECK_EQ(close(ready[1]), 0);
    int is_there = read(ready[0], &byte, 1) == 1;
    pid_t client = is_there ? client_outside(told[0]) : -1;
    int code = rig_child_code(outer);
    CHECK(code == 0 || code == 77);
    if (code == 77)
        (void)printf("SKIPPED: %s\n", is_there ? "SO_PEERPIDFD needs Linux 6.5" : "this machine makes no PID namespaces");
    if (client > 0)
        CHECK_EQ(rig_child_code(client), 0);
    CHECK_EQ(close(ready[0]), 0);
    CHECK_EQ(close(told[0]), 0);
    CHECK_EQ(close(told[1]), 0);
}

/* ---- the client's side: whom it trusts ---------------------------------------------------------------- */

static int connects_to(uint32_t named, const char *text)
{
    shmd_session_t session;
    shmd_session_init(&session, "rig", named, 1);
    shmd_session_begin(&session, 0);
    int rc = shmd_session_step(&session, 0);
    int found = rc == SHMD_SESSION_WAIT && session.state == SHMD_SESSION_SENT;
    if (!found && (rc >= 0 || strstr(shmd_last_error(), text) == NULL))
        TEST_FAIL("step returned %d, state %u, folders %u, trouble %s", rc, session.state, session.folders, session.trouble);
    shmd_session_end(&session);
    return found;
}

/* Root's folder, in which another user listens: as after a theft of the socket's name by somebody who may write there. */
static void test_a_socket_of_somebody_who_is_not_trusted_is_not_used(void)
{
    shmd_folder_t folder;
    int ready[2], until[2];
    char byte;
    CHECK_EQ(setenv("SHMDRIVER_RUNTIME_DIR", rig_path, 1), 0);
    CHECK_EQ(shmd_folder_make("rig", 1, &folder), SHMD_OK);
    CHECK_EQ(pipe(ready), 0);
    CHECK_EQ(pipe(until), 0);
    pid_t child = fork();
    if (child == 0) {
        (void)close(until[1]);
        CHECK_EQ(setuid(SECOND), 0);
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        (void)snprintf(address.sun_path, sizeof address.sun_path, "%s/stolen", rig_path);
        CHECK_EQ(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
        CHECK_EQ(listen(fd, 8), 0);
        CHECK_EQ(write(ready[1], "r", 1), 1);
        _exit(read(until[0], &byte, 1) == 0 ? 0 : 1);
    }
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    CHECK_EQ(renameat(rig_folder, "stolen", folder.fd, SHMD_SOCKET_NAME), 0);
    CHECK_EQ(connects_to(UINT32_MAX, "served by uid 4302, whom this process (uid 0) does not trust"), 0);
    CHECK_EQ(setenv("SHMDRIVER_TRUST_OWNERS", "4302", 1), 0);
    CHECK_EQ(connects_to(UINT32_MAX, ""), 1);
    CHECK_EQ(unsetenv("SHMDRIVER_TRUST_OWNERS"), 0);
    CHECK_EQ(close(until[1]), 0);
    CHECK_EQ(close(until[0]), 0);
    CHECK_EQ(close(ready[0]), 0);
    CHECK_EQ(close(ready[1]), 0);
    CHECK_EQ(rig_child_code(child), 0);
    CHECK_EQ(unlinkat(folder.fd, SHMD_SOCKET_NAME, 0), 0);
    CHECK_EQ(shmd_folder_remove(&folder), 0);
    shmd_folder_close(&folder);
    CHECK_EQ(unsetenv("SHMDRIVER_RUNTIME_DIR"), 0);
}

int main(void)
{
#ifdef SHMD_EMULATED
    SKIP("an emulator has a root folder of its own, and shows a process another start time of itself than others see");
#endif
    if (geteuid() != 0)
        SKIP("needs root: other users are made by setuid");
    rig_folder_make();
    CHECK_EQ(chmod(rig_path, 0711), 0);
    RUN(test_the_kernel_says_whose_process_it_is);
    RUN(test_the_socket_is_closed_to_others_without_the_group);
    RUN(test_a_user_has_a_share_of_the_silent_ones);
    RUN(test_a_client_of_another_pid_namespace_has_no_number_and_can_be_proved_dead);
    CHECK_EQ(chmod(rig_path, 0711 | S_ISVTX | 0022), 0);
    RUN(test_a_socket_of_somebody_who_is_not_trusted_is_not_used);
    (void)unlinkat(rig_folder, SHMD_SOCKET_NAME, 0);
    rig_folder_remove();
    return test_report();
}
