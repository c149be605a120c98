/* A client's connection to its driver, step by step: who is there, what an answer may be, and the next driver.
 * fault: 81 (the client's side) */
#include "socket_rig.h"

#include "../../csrc/core/shmd_image.h"

#include <sys/mman.h>

static const char instance[] = "rig";
static shmd_folder_t folder;
static int authority = -1, authority_to_read = -1, control = -1; /* what a driver hands over */

static shmd_listener_t listen_here(void)
{
    shmd_listener_t listener;
    CHECK_EQ(shmd_listener_open(folder.fd, folder.path, UINT32_MAX, 1, &listener), SHMD_OK);
    return listener;
}

static void new_session(shmd_session_t *session) { shmd_session_init(session, instance, UINT32_MAX, 77); }

static shmd_welcome_t welcome_of(uint32_t code)
{
    shmd_welcome_t welcome;
    memset(&welcome, 0, sizeof welcome);
    welcome.code = code;
    welcome.boot_id = 9;
    welcome.client_id = 5;
    return welcome;
}

static void hear(shmd_listener_t *listener, shmd_peer_t *peer, shmd_hello_t *hello)
{
    CHECK_EQ(shmd_listener_accept(listener, 1, 10), 1);
    CHECK_EQ(shmd_listener_hello(listener, 1, peer, hello), 1);
}

static void forget(shmd_peer_t *peer)
{
    (void)close(peer->fd);
    if (peer->pidfd >= 0)
        (void)close(peer->pidfd);
}

/* ---- images ------------------------------------------------------------------------------------ */

static void test_siphash_is_as_published(void)
{
    /* The reference implementation's table (vectors_sip64): key 00 01 .. 0f, messages 00 01 02 ... of 0 to 15 bytes. */
    static const uint8_t expected[16][8] = {
        {0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72}, {0xfd, 0x67, 0xdc, 0x93, 0xc5, 0x39, 0xf8, 0x74}, {0x5a, 0x4f, 0xa9, 0xd9, 0x09, 0x80, 0x6c, 0x0d},
        {0x2d, 0x7e, 0xfb, 0xd7, 0x96, 0x66, 0x67, 0x85}, {0xb7, 0x87, 0x71, 0x27, 0xe0, 0x94, 0x27, 0xcf}, {0x8d, 0xa6, 0x99, 0xcd, 0x64, 0x55, 0x76, 0x18},
        {0xce, 0xe3, 0xfe, 0x58, 0x6e, 0x46, 0xc9, 0xcb}, {0x37, 0xd1, 0x01, 0x8b, 0xf5, 0x00, 0x02, 0xab}, {0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93},
        {0xb0, 0xe4, 0xa9, 0x0b, 0xdf, 0x82, 0x00, 0x9e}, {0xf3, 0xb9, 0xdd, 0x94, 0xc5, 0xbb, 0x5d, 0x7a}, {0xa7, 0xad, 0x6b, 0x22, 0x46, 0x2f, 0xb3, 0xf4},
        {0xfb, 0xe5, 0x0e, 0x86, 0xbc, 0x8f, 0x1e, 0x75}, {0x90, 0x3d, 0x84, 0xc0, 0x27, 0x56, 0xea, 0x14}, {0xee, 0xf2, 0x7a, 0x8e, 0x90, 0xca, 0x23, 0xf7},
        {0xe5, 0x45, 0xbe, 0x49, 0x61, 0xca, 0x29, 0xa1},
    };
    uint8_t key[SHMD_SIPHASH_KEY_BYTES], message[16];
    for (uint8_t i = 0; i < 16; i++)
        key[i] = message[i] = i;
    for (size_t bytes = 0; bytes < 16; bytes++) {
        uint64_t found = shmd_siphash(message, bytes, key);
        for (unsigned i = 0; i < 8; i++)
            CHECK_EQ((found >> 8 * i) & 0xff, expected[bytes][i]);
    }
}

static uint64_t image_after_exec(void)
{
    int told[2];
    uint64_t image = 0;
    CHECK_EQ(pipe(told), 0);
    pid_t child = fork();
    if (child == 0) {
        char number[16];
        (void)snprintf(number, sizeof number, "%d", told[1]);
        (void)execl("/proc/self/exe", "test_hello", "image", number, (char *)NULL);
        _exit(9);
    }
    CHECK_EQ(close(told[1]), 0);
    CHECK_EQ(read(told[0], &image, sizeof image), (ssize_t)sizeof image);
    CHECK_EQ(close(told[0]), 0);
    CHECK_EQ(rig_child_code(child), 0);
    return image;
}

static void test_an_image_is_one_until_exec_and_another_after_it(void)
{
    uint64_t own = shmd_image("rig");
    CHECK(own != 0);
    CHECK_EQ(shmd_image("rig"), own);
    CHECK(shmd_image("rih") != own); /* so drivers of two instances cannot tell that it is one process */
    uint64_t first = image_after_exec(), second = image_after_exec();
    CHECK(first != own && second != own && first != second);
}

/* ---- nobody is there --------------------------------------------------------------------------- */

static void test_nobody_to_connect_to_is_tried_again_later(void)
{
    shmd_session_t session;
    new_session(&session);
    shmd_session_begin(&session, 100);
    CHECK_EQ(shmd_session_step(&session, 99), SHMD_SESSION_WAIT); /* not due */
    CHECK_EQ(session.tries, 0);
    CHECK_EQ(shmd_session_step(&session, 100), SHMD_SESSION_WAIT);
    CHECK_EQ(session.error, ENOENT);
    CHECK_EQ(session.folders, 1);
    CHECK(strstr(session.trouble, "no driver's socket stands in") != NULL);
    CHECK(session.due_ns >= 100 + 500000 && session.due_ns < 100 + 1500000);
    shmd_listener_t listener = listen_here();
    shmd_listener_close(&listener);
    uint64_t due_ns = session.due_ns, first_ns = due_ns;
    for (int i = 0; i < 20; i++) { /* the times between tries grow up to a quarter of a second */
        CHECK_EQ(shmd_session_step(&session, due_ns), SHMD_SESSION_WAIT);
        CHECK_EQ(session.error, ECONNREFUSED);
        CHECK(session.due_ns > due_ns && session.due_ns - due_ns < 400000000);
        due_ns = session.due_ns;
    }
    CHECK(due_ns - first_ns > 1500000000);
    CHECK_EQ(unlinkat(folder.fd, SHMD_SOCKET_NAME, 0), 0);
    shmd_session_end(&session);
    shmd_session_end(&session);
}

static void test_without_a_folder_it_says_so(void)
{
    shmd_session_t session;
    shmd_session_init(&session, "another", UINT32_MAX, 1);
    shmd_session_begin(&session, 0);
    CHECK_EQ(shmd_session_step(&session, 0), SHMD_SESSION_WAIT);
    CHECK_EQ(session.folders, 0);
    CHECK(strstr(session.trouble, "no runtime folder of instance another") != NULL);
    shmd_session_end(&session);
}

static void test_a_full_backlog_is_tried_again(void)
{
    shmd_listener_t listener = listen_here();
    CHECK_EQ(listen(listener.fd, 0), 0); /* the backlog is changed, which stays true to the kernel's way of refusing */
    shmd_session_t sessions[4];
    int sent = 0, refused = 0;
    for (int i = 0; i < 4; i++) {
        shmd_session_init(&sessions[i], instance, UINT32_MAX, (uint64_t)i + 1);
        shmd_session_begin(&sessions[i], 0);
        CHECK_EQ(shmd_session_step(&sessions[i], 0), SHMD_SESSION_WAIT);
        sent += sessions[i].state == SHMD_SESSION_SENT;
        refused += sessions[i].state == SHMD_SESSION_CONNECTING && sessions[i].error == EAGAIN;
    }
    CHECK(sent >= 1 && refused >= 1);
    CHECK_EQ(sent + refused, 4);
    CHECK(strstr(sessions[3].trouble, "more clients come at once") != NULL);
    CHECK_EQ(listen(listener.fd, 16), 0);
    uint64_t now_ns = 1;
    for (int i = 0; i < 4; i++, now_ns += 1000000000)
        if (sessions[i].state == SHMD_SESSION_CONNECTING)
            CHECK_EQ(shmd_session_step(&sessions[i], now_ns + 1000000000), SHMD_SESSION_WAIT);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(sessions[i].state, SHMD_SESSION_SENT);
        shmd_session_end(&sessions[i]);
    }
    shmd_listener_close(&listener);
}

/* ---- answers --------------------------------------------------------------------------------------- */

static void test_welcomed_and_again_by_the_next_driver(void)
{
    shmd_listener_t listener = listen_here();
    shmd_session_t session;
    new_session(&session);
    shmd_welcome_t welcome = welcome_of(SHMD_CODE_OK);
    shmd_peer_t peer;
    shmd_hello_t hello;
    uint64_t now_ns = 0, serial = shmd_now_ns() - 1;
    shmd_session_begin(&session, 0);
    for (uint64_t driver = 1; driver <= 3; driver++) {
        while (session.state != SHMD_SESSION_SENT)
            CHECK_EQ(shmd_session_step(&session, now_ns += 1000000000), SHMD_SESSION_WAIT);
        CHECK_EQ(shmd_session_step(&session, now_ns), SHMD_SESSION_WAIT); /* no answer yet */
        hear(&listener, &peer, &hello);
        CHECK(hello.serial > serial && hello.serial <= shmd_now_ns());
        serial = hello.serial;
        CHECK_EQ(hello.nonce, 77);
        CHECK_EQ(hello.image, shmd_image(instance));
        CHECK_EQ(shmd_listener_answer(peer.fd, &welcome, authority_to_read, control), SHMD_OK);
        CHECK_EQ(shmd_session_step(&session, now_ns), SHMD_SESSION_DONE);
        CHECK_EQ(session.state, SHMD_SESSION_OPEN);
        CHECK_EQ(session.welcome.client_id, 5);
        CHECK_EQ(fcntl(session.authority_fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        CHECK_EQ(fcntl(session.control_fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        shmd_session_drop_descriptors(&session);
        CHECK_EQ(shmd_session_step(&session, now_ns), SHMD_SESSION_WAIT);
        CHECK_EQ(session.state, SHMD_SESSION_OPEN);
        CHECK_EQ(send(peer.fd, "anything", 8, 0), 8);
        CHECK_EQ(shmd_session_step(&session, now_ns), SHMD_SESSION_WAIT);
        CHECK_EQ(session.state, SHMD_SESSION_OPEN);
        forget(&peer);
        shmd_listener_close(&listener);
        CHECK_EQ(shmd_session_step(&session, now_ns), SHMD_SESSION_WAIT); /* it has ended */
        CHECK_EQ(session.state, SHMD_SESSION_CONNECTING);
        CHECK(session.due_ns > now_ns);
        listener = listen_here();
    }
    shmd_session_end(&session);
    shmd_listener_close(&listener);
}

static void test_a_driver_that_goes_before_it_answers_is_no_answer(void)
{
    shmd_listener_t listener = listen_here();
    shmd_session_t session;
    new_session(&session);
    shmd_peer_t peer;
    shmd_hello_t hello;
    shmd_session_begin(&session, 0);
    CHECK_EQ(shmd_session_step(&session, 0), SHMD_SESSION_WAIT);
    hear(&listener, &peer, &hello);
    forget(&peer);
    CHECK_EQ(shmd_session_step(&session, 0), SHMD_SESSION_WAIT);
    CHECK_EQ(session.state, SHMD_SESSION_CONNECTING);
    CHECK(strstr(session.trouble, "closed the connection before it answered") != NULL);
    CHECK_EQ(shmd_session_step(&session, 1000000000), SHMD_SESSION_WAIT); /* in the backlog of a driver that dies */
    CHECK_EQ(session.state, SHMD_SESSION_SENT);
    shmd_listener_close(&listener);
    CHECK_EQ(shmd_session_step(&session, 1000000000), SHMD_SESSION_WAIT);
    CHECK_EQ(session.state, SHMD_SESSION_CONNECTING);
    shmd_session_end(&session);
}

/* One message of any content, with any descriptors. */
static void answers(const void *message, size_t bytes, const int *descriptors, size_t count, int expected, const char *text)
{
    shmd_listener_t listener = listen_here();
    unsigned before = rig_open_descriptors();
    shmd_session_t session;
    new_session(&session);
    shmd_peer_t peer;
    shmd_hello_t hello;
    shmd_session_begin(&session, 0);
    CHECK_EQ(shmd_session_step(&session, 0), SHMD_SESSION_WAIT);
    hear(&listener, &peer, &hello);
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } ancillary;
    memset(&ancillary, 0, sizeof ancillary);
    ancillary.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(count * sizeof(int))};
    if (count != 0)
        memcpy(CMSG_DATA(&ancillary.header), descriptors, count * sizeof(int));
    struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = bytes};
    struct msghdr whole = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = count == 0 ? NULL : &ancillary, .msg_controllen = count == 0 ? 0 : CMSG_SPACE(count * sizeof(int))};
    CHECK_EQ(sendmsg(peer.fd, &whole, 0), (ssize_t)bytes);
    CHECK_EQ(shmd_session_step(&session, 0), expected);
    if (expected < 0) {
        CHECK_TEXT(text);
        CHECK_EQ(session.state, SHMD_SESSION_IDLE);
        CHECK_EQ(shmd_session_step(&session, UINT64_MAX), SHMD_SESSION_WAIT); /* nothing, until the next begin */
    }
    shmd_session_end(&session);
    forget(&peer);
    CHECK_EQ(rig_open_descriptors(), before); /* nothing that came is kept */
    shmd_listener_close(&listener);
}

static shmd_welcome_t whole_welcome(uint32_t code)
{
    shmd_welcome_t welcome = welcome_of(code);
    shmd_message_begin(&welcome, SHMD_MESSAGE_WELCOME, sizeof welcome);
    (void)snprintf(welcome.text, sizeof welcome.text, "too many");
    return welcome;
}

static void test_what_is_no_answer_is_refused_and_leaves_nothing(void)
{
    unsigned char large[sizeof(shmd_welcome_t) + 1] = {0};
    shmd_welcome_t welcome = whole_welcome(SHMD_CODE_OK);
    const int both[] = {authority_to_read, control}, three[] = {authority_to_read, control, control}, eight[8] = {control, control, control, control, control, control, control, control};
    const int writable[] = {authority, control}, read_only[] = {authority_to_read, authority_to_read}, no_files[] = {folder.fd, control};
    answers(&welcome, sizeof welcome, both, 2, SHMD_SESSION_DONE, "");
    answers(&welcome, sizeof welcome, both, 0, SHMD_E_CORRUPT, "code 0 and no descriptors");
    answers(&welcome, sizeof welcome, both, 1, SHMD_E_CORRUPT, "code 0 and one descriptors");
    answers(&welcome, sizeof welcome, three, 3, SHMD_E_CORRUPT, "more than two");
    answers(&welcome, sizeof welcome, eight, 8, SHMD_E_CORRUPT, "more than two");
    answers(&welcome, sizeof welcome, writable, 2, SHMD_E_CORRUPT, "the authority segment");
    answers(&welcome, sizeof welcome, read_only, 2, SHMD_E_CORRUPT, "the control segment");
    answers(&welcome, sizeof welcome, no_files, 2, SHMD_E_CORRUPT, "expected a regular file");
    answers(&welcome, sizeof welcome - 1, both, 2, SHMD_E_CORRUPT, "2047 bytes and says 2048");
    memcpy(large, &welcome, sizeof welcome);
    answers(large, sizeof large, both, 2, SHMD_E_CORRUPT, "2049 bytes and says 2048");
    answers("x", 1, both, 0, SHMD_E_CORRUPT, "has 1 bytes");
    welcome.magic--;
    answers(&welcome, sizeof welcome, both, 2, SHMD_E_CORRUPT, "magic");
    welcome = whole_welcome(SHMD_CODE_OK);
    welcome.layout_version = 6;
    answers(&welcome, 200, both, 0, SHMD_E_LAYOUT, "layout version 6, this side has 4");
    welcome = whole_welcome(SHMD_CODE_INTERNAL_ERROR + 1);
    answers(&welcome, sizeof welcome, both, 0, SHMD_E_CORRUPT, "code 5");
    welcome = whole_welcome(SHMD_CODE_OK);
    memset(welcome.text, 'a', sizeof welcome.text);
    answers(&welcome, sizeof welcome, both, 2, SHMD_E_CORRUPT, "is not terminated");
    welcome = whole_welcome(SHMD_CODE_OK);
    welcome.client_id = 0;
    answers(&welcome, sizeof welcome, both, 2, SHMD_E_CORRUPT, "neither is ever 0");
}

static void test_a_refusal_is_told_with_its_reason(void)
{
    shmd_welcome_t welcome = whole_welcome(SHMD_CODE_REJECTED);
    const int both[] = {authority_to_read, control};
    welcome.reason = SHMD_REASON_LIMIT;
    answers(&welcome, sizeof welcome, both, 0, SHMD_E_REJECTED, "too many");
    CHECK_EQ(shmd_last_code(), SHMD_CODE_REJECTED);
    CHECK_EQ(shmd_last_reason(), SHMD_REASON_LIMIT);
    answers(&welcome, sizeof welcome, both, 2, SHMD_E_CORRUPT, "code 3 and two descriptors");
}

/* ---- children ------------------------------------------------------------------------------------------ */

static void test_a_forked_child_does_not_keep_the_connection_open(void)
{
    shmd_listener_t listener = listen_here();
    shmd_session_t session;
    new_session(&session);
    shmd_welcome_t welcome = welcome_of(SHMD_CODE_OK);
    shmd_peer_t peer;
    shmd_hello_t hello;
    int stay[2];
    CHECK_EQ(pipe(stay), 0);
    shmd_session_begin(&session, 0);
    CHECK_EQ(shmd_session_step(&session, 0), SHMD_SESSION_WAIT);
    hear(&listener, &peer, &hello);
    CHECK_EQ(shmd_listener_answer(peer.fd, &welcome, authority_to_read, control), SHMD_OK);
    CHECK_EQ(shmd_session_step(&session, 0), SHMD_SESSION_DONE);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        (void)close(stay[1]);
        shmd_session_end(&session); /* nothing: it is the parent's */
        _exit(session.state == SHMD_SESSION_IDLE && read(stay[0], &byte, 1) == 0 ? 0 : 1);
    }
    struct pollfd end = {.fd = peer.fd, .events = POLLIN};
    CHECK_EQ(poll(&end, 1, 0), 0); /* the parent's is open as before */
    shmd_session_end(&session);
    CHECK_EQ(poll(&end, 1, 60000), 1);
    CHECK((end.revents & POLLHUP) != 0); /* while the child lives */
    CHECK_EQ(close(stay[1]), 0);
    CHECK_EQ(close(stay[0]), 0);
    CHECK_EQ(rig_child_code(child), 0);
    forget(&peer);
    shmd_listener_close(&listener);
}

static void test_a_program_that_closes_our_descriptors_harms_itself_only(void)
{
    shmd_listener_t listener = listen_here();
    shmd_session_t session;
    new_session(&session);
    shmd_session_begin(&session, 0);
    CHECK_EQ(shmd_session_step(&session, 0), SHMD_SESSION_WAIT);
    CHECK_EQ(session.state, SHMD_SESSION_SENT);
    CHECK_EQ(dup2(authority, session.fd), session.fd); /* as a daemon that closes all and opens its own */
    int theirs = session.fd;
    CHECK_EQ(shmd_session_step(&session, 0), SHMD_SESSION_WAIT);
    CHECK_EQ(session.state, SHMD_SESSION_CONNECTING);
    CHECK(fcntl(theirs, F_GETFD) >= 0);
    shmd_session_end(&session);
    CHECK_EQ(close(theirs), 0);
    shmd_listener_close(&listener);
}

static int tell_image(const char *number)
{
    uint64_t image = shmd_image("rig");
    return write(atoi(number), &image, sizeof image) == (ssize_t)sizeof image ? 0 : 1;
}

static void open_segments(void)
{
    char path[32];
    authority = memfd_create("authority", MFD_CLOEXEC);
    control = memfd_create("control", MFD_CLOEXEC);
    CHECK(authority >= 0 && control >= 0);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", authority);
    authority_to_read = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(authority_to_read >= 0);
}

int main(int argc, char **argv)
{
    if (argc == 3)
        return tell_image(argv[2]);
#ifdef SHMD_EMULATED
    SKIP("an emulator has a root folder of its own, and shows a process another start time of itself than others see");
#endif
    if (access("/proc/self/fd", X_OK) != 0)
        SKIP("no /proc here: a descriptor to read cannot be made of one to write");
    rig_folder_make();
    CHECK_EQ(setenv("SHMDRIVER_RUNTIME_DIR", rig_path, 1), 0);
    CHECK_EQ(shmd_folder_make(instance, 0, &folder), SHMD_OK);
    open_segments();
    unsigned before = rig_open_descriptors();
    RUN(test_siphash_is_as_published);
    RUN(test_an_image_is_one_until_exec_and_another_after_it);
    RUN(test_nobody_to_connect_to_is_tried_again_later);
    RUN(test_without_a_folder_it_says_so);
    RUN(test_a_full_backlog_is_tried_again);
    RUN(test_welcomed_and_again_by_the_next_driver);
    RUN(test_a_driver_that_goes_before_it_answers_is_no_answer);
    RUN(test_what_is_no_answer_is_refused_and_leaves_nothing);
    RUN(test_a_refusal_is_told_with_its_reason);
    RUN(test_a_forked_child_does_not_keep_the_connection_open);
    RUN(test_a_program_that_closes_our_descriptors_harms_itself_only);
    CHECK_EQ(rig_open_descriptors(), before);
    CHECK_EQ(unlinkat(folder.fd, SHMD_SOCKET_NAME, 0), 0);
    CHECK_EQ(shmd_folder_remove(&folder), 0);
    shmd_folder_close(&folder);
    rig_folder_remove();
    return test_report();
}
