/* The driver's socket: who has connected, and what a Hello may look like. What others send is refused by name, whatever it is.
 * fault: 80 (the socket's side) */
#include "socket_rig.h"

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { LATER_NS = 2000000000, BUDGET = 1000 };

static int hear(shmd_listener_t *listener, uint64_t now_ns, shmd_peer_t *peer, shmd_hello_t *hello)
{
    CHECK(shmd_listener_accept(listener, now_ns, BUDGET) >= 0);
    return shmd_listener_hello(listener, now_ns, peer, hello);
}

static void forget(shmd_peer_t *peer)
{
    (void)close(peer->fd);
    if (peer->pidfd >= 0)
        (void)close(peer->pidfd);
}

static void test_the_socket_is_private_and_stands_under_its_name(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX), other;
    struct stat status;
    CHECK_EQ(fstatat(rig_folder, SHMD_SOCKET_NAME, &status, AT_SYMLINK_NOFOLLOW), 0);
    CHECK(S_ISSOCK(status.st_mode));
    CHECK_EQ(status.st_mode & 07777u, 0600);
    CHECK_EQ(shmd_listener_check(&listener, rig_folder), 1);
    CHECK_EQ(shmd_listener_open(rig_folder, rig_path, UINT32_MAX, 0, &other), SHMD_E_INVALID); /* only where nothing stands */
    CHECK_TEXT("something else stands");
    CHECK_EQ(shmd_listener_check(&listener, rig_folder), 1);
    CHECK_EQ(unlinkat(rig_folder, SHMD_SOCKET_NAME, 0), 0);
    CHECK_EQ(shmd_listener_check(&listener, rig_folder), 0);
    CHECK_EQ(shmd_listener_open(rig_folder, rig_path, UINT32_MAX, 0, &other), SHMD_OK);
    CHECK_EQ(shmd_listener_check(&listener, rig_folder), SHMD_E_INVALID);
    CHECK_EQ(shmd_listener_check(&other, rig_folder), 1);
    shmd_listener_close(&listener);
    shmd_listener_close(&listener);
    shmd_listener_close(&other);
}

static void test_a_hello_is_heard_and_its_sender_is_known(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t hello = rig_hello(), heard;
    shmd_process_t self;
    CHECK_EQ(hear(&listener, 1, &peer, &heard), 0);
    int fd = rig_connect(0);
    CHECK(rig_is_readable(listener.epoll));
    CHECK_EQ(hear(&listener, 1, &peer, &heard), 0);
    CHECK_EQ(listener.count, 1);
    CHECK(!rig_is_readable(listener.epoll));
    rig_send(fd, &hello, sizeof hello);
    CHECK(rig_is_readable(listener.epoll));
    CHECK_EQ(hear(&listener, 1, &peer, &heard), 1);
    CHECK_EQ(memcmp(&heard, &hello, sizeof hello), 0);
    shmd_process_self(&self);
    CHECK_EQ(peer.uid, geteuid());
    CHECK_EQ(peer.gid, getegid());
    CHECK_EQ(peer.process.pid, getpid());
    CHECK_EQ(peer.process.pid_namespace, self.pid_namespace);
    CHECK(peer.pidfd >= 0 || peer.pidfd_error != 0);
    if (peer.pidfd >= 0)
        CHECK_EQ(peer.process.start_time, self.start_time);
    CHECK_EQ(listener.count, 0);
    CHECK(!rig_is_readable(listener.epoll));
    forget(&peer);
    CHECK_EQ(close(fd), 0);
    shmd_listener_close(&listener);
}

static void test_an_answer_brings_two_descriptors_only_when_it_says_yes(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t hello = rig_hello(), heard;
    for (int yes = 0; yes <= 1; yes++) {
        int fd = rig_connect(0);
        rig_send(fd, &hello, sizeof hello);
        CHECK_EQ(hear(&listener, 1, &peer, &heard), 1);
        shmd_welcome_t welcome, got;
        memset(&welcome, 0, sizeof welcome);
        welcome.code = yes ? SHMD_CODE_OK : SHMD_CODE_REJECTED;
        (void)snprintf(welcome.text, sizeof welcome.text, "told");
        CHECK_EQ(shmd_listener_answer(peer.fd, &welcome, listener.fd, listener.epoll), SHMD_OK);
        char ancillary[256];
        struct iovec part = {.iov_base = &got, .iov_len = sizeof got};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary};
        CHECK_EQ(recvmsg(fd, &message, MSG_CMSG_CLOEXEC), (ssize_t)sizeof got);
        CHECK_EQ(got.magic, shmd_magic(SHMD_MESSAGE_WELCOME));
        CHECK_EQ(got.layout_version, SHMD_LAYOUT_VERSION);
        CHECK_EQ(got.bytes, sizeof got);
        CHECK_EQ(got.text_bytes, 4);
        const struct cmsghdr *with = CMSG_FIRSTHDR(&message);
        CHECK_EQ(with != NULL, yes);
        if (with != NULL) {
            int descriptors[2];
            CHECK_EQ(with->cmsg_len, CMSG_LEN(sizeof descriptors));
            memcpy(descriptors, CMSG_DATA(with), sizeof descriptors);
            (void)close(descriptors[0]);
            (void)close(descriptors[1]);
        }
        (void)close(fd);
        CHECK_EQ(shmd_listener_answer(peer.fd, &welcome, listener.fd, listener.epoll), SHMD_E_CLOSED);
        forget(&peer);
    }
    shmd_listener_close(&listener);
}

/* One message; what the listener makes of it, and what it answers. */
static void says(const void *message, size_t bytes, int expected, const char *text, uint32_t code)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t heard;
    shmd_welcome_t answer;
    int fd = rig_connect(0);
    rig_send(fd, message, bytes);
    CHECK_EQ(hear(&listener, 1, &peer, &heard), expected);
    CHECK_TEXT(text);
    CHECK_EQ(peer.fd, -1);
    CHECK_EQ(peer.pidfd, -1);
    CHECK_EQ(peer.uid, geteuid());
    if (code != SHMD_CODE_OK) {
        CHECK_EQ(rig_answer(fd, &answer), (ssize_t)sizeof answer);
        CHECK_EQ(answer.code, code);
        CHECK(strstr(answer.text, text) != NULL);
    }
    CHECK_EQ(rig_answer(fd, &answer), 0); /* the end of the connection */
    CHECK_EQ(listener.count, 0);
    CHECK_EQ(listener.refused, 1);
    (void)close(fd);
    shmd_listener_close(&listener);
}

static void test_what_is_no_hello_is_refused_by_name(void)
{
    unsigned char large[sizeof(shmd_hello_t) + 1] = {0};
    shmd_hello_t hello = rig_hello();
    memcpy(large, &hello, sizeof hello);
    says("short", 5, SHMD_E_INVALID, "has 5 bytes, expected 512", SHMD_CODE_INVALID_PARAMS);
    says(&hello, sizeof hello - 1, SHMD_E_INVALID, "511 bytes and says 512", SHMD_CODE_INVALID_PARAMS);
    says(large, sizeof large, SHMD_E_INVALID, "513 bytes and says 512", SHMD_CODE_INVALID_PARAMS);
    says("", 0, SHMD_E_CLOSED, "left without a Hello", SHMD_CODE_OK);
    hello.magic++;
    says(&hello, sizeof hello, SHMD_E_INVALID, "magic", SHMD_CODE_INVALID_PARAMS);
    hello = rig_hello();
    hello.layout_version++;
    says(&hello, 100, SHMD_E_LAYOUT, "layout version 5, this side has 4", SHMD_CODE_UNSUPPORTED); /* of any length */
    hello = rig_hello();
    hello.bytes = 7;
    says(&hello, sizeof hello, SHMD_E_INVALID, "says 7, expected 512", SHMD_CODE_INVALID_PARAMS);
    hello = rig_hello();
    hello.serial = 0;
    says(&hello, sizeof hello, SHMD_E_INVALID, "serial 0", SHMD_CODE_INVALID_PARAMS);
    hello = rig_hello();
    hello.client_id = 5;
    says(&hello, sizeof hello, SHMD_E_INVALID, "an id comes with its boot id", SHMD_CODE_INVALID_PARAMS);
    hello = rig_hello();
    hello.flags = 4;
    says(&hello, sizeof hello, SHMD_E_INVALID, "flags 4", SHMD_CODE_INVALID_PARAMS);
    hello = rig_hello();
    hello.pad[sizeof hello.pad - 1] = 1;
    says(&hello, sizeof hello, SHMD_E_INVALID, "expected zeros", SHMD_CODE_INVALID_PARAMS);
    hello = rig_hello();
    memset(hello.name, 'n', sizeof hello.name);
    says(&hello, sizeof hello, SHMD_E_INVALID, "client name is not terminated", SHMD_CODE_INVALID_PARAMS);
    hello = rig_hello();
    hello.name[1] = 27;
    says(&hello, sizeof hello, SHMD_E_INVALID, "client name has byte 0x1b", SHMD_CODE_INVALID_PARAMS);
}

static void test_a_start_time_that_is_not_the_peers_is_refused(void)
{
    shmd_hello_t hello = rig_hello();
    if (hello.start_time == 0 || hello.pid_namespace == 0 || hello.time_namespace == 0)
        return; /* no /proc: nothing is compared */
    hello.start_time++;
    says(&hello, sizeof hello, SHMD_E_INVALID, "connect in the process that uses the connection", SHMD_CODE_INVALID_PARAMS);
}

static void test_descriptors_that_come_with_a_hello_are_not_installed(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t hello = rig_hello(), heard;
    int pipe_ends[2], fd = rig_connect(0);
    CHECK_EQ(pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK), 0);
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } ancillary;
    memset(&ancillary, 0, sizeof ancillary);
    ancillary.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(&ancillary.header), &pipe_ends[1], sizeof(int));
    struct iovec part = {.iov_base = &hello, .iov_len = sizeof hello};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof ancillary};
    CHECK_EQ(sendmsg(fd, &message, 0), (ssize_t)sizeof hello);
    CHECK_EQ(close(pipe_ends[1]), 0);
    CHECK_EQ(hear(&listener, 1, &peer, &heard), 1);
    char byte;
    CHECK_EQ(read(pipe_ends[0], &byte, 1), 0); /* the end: nobody has the other side */
    CHECK_EQ(close(pipe_ends[0]), 0);
    CHECK_EQ(close(fd), 0);
    forget(&peer);
    shmd_listener_close(&listener);
}

static void test_who_says_nothing_is_closed_after_its_time(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t heard, hello = rig_hello();
    shmd_welcome_t answer;
    int silent = rig_connect(0), slow = rig_connect(0), gone = rig_connect(0);
    CHECK_EQ(hear(&listener, 100, &peer, &heard), 0);
    CHECK_EQ(listener.count, 3);
    CHECK_EQ(close(gone), 0);
    CHECK_EQ(hear(&listener, 100 + LATER_NS - 1, &peer, &heard), SHMD_E_CLOSED);
    CHECK_EQ(hear(&listener, 100 + LATER_NS - 1, &peer, &heard), 0);
    rig_send(slow, &hello, sizeof hello); /* what has come is heard, however late */
    int heard_one = 0, ended_one = 0, rc;
    while ((rc = hear(&listener, 100 + LATER_NS, &peer, &heard)) != 0) {
        heard_one += rc == 1;
        ended_one += rc == SHMD_E_TIMEOUT;
        if (rc == 1)
            forget(&peer);
        else
            CHECK_TEXT("said nothing for 2 s");
    }
    CHECK_EQ(heard_one, 1);
    CHECK_EQ(ended_one, 1);
    CHECK_EQ(rig_answer(silent, &answer), 0);
    CHECK_EQ(close(silent), 0);
    CHECK_EQ(close(slow), 0);
    shmd_listener_close(&listener);
}

static void test_the_oldest_silent_one_yields_its_place(void)
{
    enum { MANY = SHMD_LISTENER_WAITING + 3 };
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_welcome_t answer;
    shmd_hello_t heard, hello = rig_hello();
    int clients[MANY];
    for (int i = 0; i < MANY; i++)
        clients[i] = rig_connect(0);
    rig_send(clients[0], &hello, sizeof hello);
    CHECK_EQ(shmd_listener_accept(&listener, 1, 5), 5); /* the budget */
    CHECK_EQ(shmd_listener_accept(&listener, 1, BUDGET), MANY - 5);
    CHECK_EQ(listener.count, SHMD_LISTENER_WAITING);
    CHECK_EQ(listener.refused, 3);
    for (int i = 1; i <= 3; i++)
        CHECK_EQ(rig_answer(clients[i], &answer), 0);
    CHECK(!rig_is_readable(clients[4]));
    CHECK_EQ(shmd_listener_hello(&listener, 1, &peer, &heard), 1); /* the oldest, but it has said Hello */
    forget(&peer);
    CHECK_EQ(shmd_listener_hello(&listener, 1, &peer, &heard), 0);
    rig_send(clients[MANY - 1], &hello, sizeof hello);
    CHECK_EQ(shmd_listener_hello(&listener, 1, &peer, &heard), 1);
    forget(&peer);
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(close(clients[i]), 0);
    shmd_listener_close(&listener);
}

static void test_hellos_that_fill_the_table_are_read_first(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t heard, hello = rig_hello();
    int clients[SHMD_LISTENER_WAITING + 1];
    for (int i = 0; i <= SHMD_LISTENER_WAITING; i++) {
        clients[i] = rig_connect(0);
        rig_send(clients[i], &hello, sizeof hello);
    }
    CHECK_EQ(shmd_listener_accept(&listener, 1, BUDGET), SHMD_LISTENER_WAITING);
    CHECK_EQ(shmd_listener_accept(&listener, 1, BUDGET), 0); /* the last one stays in the backlog */
    for (int i = 0; i < SHMD_LISTENER_WAITING; i++) {
        CHECK_EQ(shmd_listener_hello(&listener, 1, &peer, &heard), 1);
        forget(&peer);
    }
    CHECK(rig_is_readable(listener.epoll));
    CHECK_EQ(hear(&listener, 1, &peer, &heard), 1);
    forget(&peer);
    CHECK_EQ(listener.refused, 0);
    for (int i = 0; i <= SHMD_LISTENER_WAITING; i++)
        CHECK_EQ(close(clients[i]), 0);
    shmd_listener_close(&listener);
}

static void test_a_process_that_has_ended_is_seen_by_its_pidfd(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t heard;
    int go[2];
    CHECK_EQ(pipe(go), 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        shmd_hello_t hello = rig_hello();
        int fd = rig_connect(0);
        (void)close(go[1]);
        rig_send(fd, &hello, sizeof hello);
        _exit(read(go[0], &byte, 1) == 0 ? 0 : 1);
    }
    struct pollfd epoll = {.fd = listener.epoll, .events = POLLIN};
    int rc;
    while ((rc = hear(&listener, 1, &peer, &heard)) == 0)
        CHECK_EQ(poll(&epoll, 1, 60000), 1);
    CHECK_EQ(rc, 1);
    CHECK_EQ(peer.process.pid, child);
    CHECK_EQ(heard.start_time, peer.process.start_time);
    CHECK(peer.pidfd >= 0);
    CHECK(!shmd_pidfd_has_fired(peer.pidfd));
    CHECK_EQ(close(go[1]), 0);
    struct pollfd death = {.fd = peer.pidfd, .events = POLLIN};
    CHECK_EQ(poll(&death, 1, 60000), 1);
    CHECK(shmd_pidfd_has_fired(peer.pidfd));
    CHECK_EQ(rig_child_code(child), 0);
    CHECK_EQ(close(go[0]), 0);
    forget(&peer);
    shmd_listener_close(&listener);
}

static void test_a_child_that_closes_the_listener_changes_nothing_for_its_parent(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_peer_t peer;
    shmd_hello_t heard, hello = rig_hello();
    int waits = rig_connect(0);
    CHECK_EQ(hear(&listener, 1, &peer, &heard), 0);
    pid_t child = fork();
    if (child == 0) {
        shmd_listener_close(&listener);
        _exit(0);
    }
    CHECK_EQ(rig_child_code(child), 0);
    CHECK(!rig_is_readable(listener.epoll));
    rig_send(waits, &hello, sizeof hello);
    CHECK(rig_is_readable(listener.epoll));
    CHECK_EQ(hear(&listener, 1, &peer, &heard), 1);
    forget(&peer);
    int second = rig_connect(0);
    CHECK(rig_is_readable(listener.epoll));
    CHECK_EQ(close(second), 0);
    CHECK_EQ(close(waits), 0);
    shmd_listener_close(&listener);
}

static void without_descriptors(void)
{
    shmd_listener_t listener = rig_listen(UINT32_MAX);
    shmd_welcome_t answer;
    shmd_peer_t peer;
    shmd_hello_t heard, hello = rig_hello();
    int first = rig_connect(0), second = rig_connect(0);
    const struct rlimit limit = {.rlim_cur = 64, .rlim_max = 64};
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    int filler = -1, last;
    while ((last = dup(0)) >= 0)
        filler = last;
    CHECK_EQ(errno, EMFILE);
    CHECK_EQ(shmd_listener_accept(&listener, 1, 1), 1);
    CHECK_EQ(listener.refused, 1);
    CHECK_EQ(rig_answer(first, &answer), (ssize_t)sizeof answer);
    CHECK_EQ(answer.code, SHMD_CODE_REJECTED);
    CHECK_EQ(answer.reason, SHMD_REASON_LIMIT);
    CHECK(strstr(answer.text, "its limit is 64") != NULL);
    CHECK_EQ(rig_answer(first, &answer), 0);
    CHECK_EQ(close(filler), 0); /* one: the connection, but no pidfd */
    rig_send(second, &hello, sizeof hello);
    CHECK_EQ(hear(&listener, 1, &peer, &heard), 1);
    CHECK_EQ(peer.pidfd, -1);
    CHECK_EQ(peer.pidfd_error, EMFILE);
    CHECK_EQ(peer.process.pid, getpid());
    CHECK_EQ(peer.process.start_time, 0);
    shmd_listener_close(&listener);
}

static void test_without_descriptors_a_client_is_refused_by_number(void)
{
    pid_t child = fork();
    if (child == 0) {
        without_descriptors();
        _exit(0);
    }
    CHECK_EQ(rig_child_code(child), 0);
}

static void test_nothing_stays_open(unsigned before) { CHECK_EQ(rig_open_descriptors(), before); }

int main(void)
{
#ifdef SHMD_EMULATED
    SKIP("an emulator has a root folder of its own, and shows a process another start time of itself than others see");
#endif
    rig_folder_make();
    unsigned before = rig_open_descriptors();
    RUN(test_the_socket_is_private_and_stands_under_its_name);
    RUN(test_a_hello_is_heard_and_its_sender_is_known);
    RUN(test_an_answer_brings_two_descriptors_only_when_it_says_yes);
    RUN(test_what_is_no_hello_is_refused_by_name);
    RUN(test_a_start_time_that_is_not_the_peers_is_refused);
    RUN(test_descriptors_that_come_with_a_hello_are_not_installed);
    RUN(test_who_says_nothing_is_closed_after_its_time);
    RUN(test_the_oldest_silent_one_yields_its_place);
    RUN(test_hellos_that_fill_the_table_are_read_first);
    RUN(test_a_process_that_has_ended_is_seen_by_its_pidfd);
    RUN(test_a_child_that_closes_the_listener_changes_nothing_for_its_parent);
    RUN(test_without_descriptors_a_client_is_refused_by_number);
    test_nothing_stays_open(before);
    rig_folder_remove();
    return test_report();
}
