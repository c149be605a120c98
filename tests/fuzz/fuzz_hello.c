/* Hello by socket, both directions, over real sockets: any bytes with any descriptors as a Hello for the driver, and as an answer
 * for a client. Nothing that came stays open, and what is accepted may be used as driver and client use it.
 * fault: 80, 81 (libFuzzer: any bytes as a Hello, and as its answer) */
#include "fuzz.h"

#include "../../csrc/driver/shmd_listener.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static char path[64];
static shmd_folder_t folder;
static shmd_listener_t listener;
static int segments[2] = {-1, -1}; /* an authority to read, a control segment */

static void set_up(void)
{
    if (path[0] != 0)
        return;
    char link[32];
    (void)snprintf(path, sizeof path, "/tmp/shmd-fuzz-XXXXXX");
    MUST(mkdtemp(path) != NULL);
    MUST(setenv("SHMDRIVER_RUNTIME_DIR", path, 1) == 0);
    MUST(shmd_folder_make("fuzz", 0, &folder) == SHMD_OK);
    MUST(shmd_listener_open(folder.fd, folder.path, UINT32_MAX, 1, &listener) == SHMD_OK);
    int authority = memfd_create("authority", MFD_CLOEXEC);
    segments[1] = memfd_create("control", MFD_CLOEXEC);
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", authority);
    segments[0] = open(link, O_RDONLY | O_CLOEXEC);
    MUST(authority >= 0 && segments[0] >= 0 && segments[1] >= 0);
}

static int lowest_descriptor(void)
{
    int lowest = dup(0);
    MUST(lowest >= 0 && close(lowest) == 0);
    return lowest;
}

static void tear_down(void) __attribute__((destructor));
static void tear_down(void)
{
    if (path[0] == 0)
        return;
    shmd_listener_close(&listener);
    (void)unlinkat(folder.fd, SHMD_SOCKET_NAME, 0);
    (void)shmd_folder_remove(&folder);
    (void)rmdir(path);
}

/* Sends bytes, exactly so long, with so many descriptors. */
static void say(int fd, const void *message, size_t bytes, size_t count, uint64_t which)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } ancillary;
    int descriptors[4];
    void *copy = fuzz_copy(message, bytes);
    memset(&ancillary, 0, sizeof ancillary);
    ancillary.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(count * sizeof(int))};
    for (size_t i = 0; i < count; i++)
        descriptors[i] = segments[(which >> i) & 1];
    memcpy(CMSG_DATA(&ancillary.header), descriptors, count * sizeof(int));
    struct iovec part = {.iov_base = copy, .iov_len = bytes};
    struct msghdr whole = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = count == 0 ? NULL : &ancillary, .msg_controllen = count == 0 ? 0 : CMSG_SPACE(count * sizeof(int))};
    MUST(sendmsg(fd, &whole, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)bytes);
    free(copy);
}

static void close_peer(const shmd_peer_t *peer)
{
    if (peer->fd >= 0)
        (void)close(peer->fd);
    if (peer->pidfd >= 0)
        (void)close(peer->pidfd);
}

static void to_driver(input_t *input, size_t length, size_t count)
{
    struct sockaddr_un address;
    shmd_peer_t peer;
    shmd_hello_t sent, heard;
    shmd_hello_begin(&sent, "fuzz");
    sent.serial = 1;
    input_patch(input, &sent, sizeof sent, 8);
    MUST(shmd_socket_address(folder.fd, folder.path, SHMD_SOCKET_NAME, &address) == SHMD_OK);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    MUST(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    unsigned char large[2 * sizeof sent] = {0};
    memcpy(large, &sent, sizeof sent);
    say(fd, large, length % sizeof large, count, input_take(input, 1));
    MUST(shmd_listener_accept(&listener, 1, 4) == 1);
    int rc = shmd_listener_hello(&listener, 1, &peer, &heard);
    MUST(rc == 1 || rc == SHMD_E_INVALID || rc == SHMD_E_LAYOUT || rc == SHMD_E_CLOSED);
    MUST((rc == 1) == (peer.fd >= 0) && listener.count == 0);
    if (rc == 1) {
        MUST(length % sizeof large == sizeof sent && memcmp(&heard, &sent, sizeof sent) == 0);
        MUST(heard.magic == shmd_magic(SHMD_MESSAGE_HELLO) && heard.layout_version == SHMD_LAYOUT_VERSION && heard.bytes == sizeof heard);
        MUST(heard.serial != 0 && heard.flags == 0 && memchr(heard.name, 0, sizeof heard.name) != NULL);
    } else {
        MUST(shmd_last_error()[0] != 0);
    }
    close_peer(&peer);
    (void)close(fd);
}

static void to_client(input_t *input, size_t length, size_t count)
{
    static shmd_session_t session;
    shmd_peer_t peer;
    shmd_hello_t hello;
    unsigned char large[2 * sizeof(shmd_welcome_t)] = {0};
    shmd_welcome_t sent;
    memset(&sent, 0, sizeof sent);
    shmd_message_begin(&sent, SHMD_MESSAGE_WELCOME, sizeof sent);
    sent.boot_id = sent.client_id = 7;
    input_patch(input, &sent, sizeof sent, 8);
    memcpy(large, &sent, sizeof sent);
    shmd_session_init(&session, "fuzz", UINT32_MAX, 3);
    shmd_session_begin(&session, 0);
    MUST(shmd_session_step(&session, 0) == SHMD_SESSION_WAIT && session.state == SHMD_SESSION_SENT);
    MUST(shmd_listener_accept(&listener, 1, 4) == 1 && shmd_listener_hello(&listener, 1, &peer, &hello) == 1);
    say(peer.fd, large, length % sizeof large, count, input_take(input, 1));
    int rc = shmd_session_step(&session, 0);
    MUST(rc == SHMD_SESSION_DONE || rc == SHMD_SESSION_WAIT || rc == SHMD_E_CORRUPT || rc == SHMD_E_LAYOUT || rc == SHMD_E_REJECTED);
    if (rc == SHMD_SESSION_DONE) {
        MUST(length % sizeof large == sizeof sent && count == 2 && session.state == SHMD_SESSION_OPEN);
        MUST(session.authority_fd >= 0 && session.control_fd >= 0 && session.welcome.code == SHMD_CODE_OK && session.welcome.client_id != 0);
    } else {
        MUST(session.authority_fd == -1 && session.control_fd == -1 && session.state != SHMD_SESSION_OPEN);
    }
    if (rc == SHMD_SESSION_WAIT)
        MUST(length % sizeof large == 0); /* an empty message is the end of the connection */
    shmd_session_end(&session);
    close_peer(&peer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    set_up();
    input_t input = {.at = data, .left = size};
    uint64_t how = input_take(&input, 1);
    int lowest = lowest_descriptor();
    size_t count = how >> 2 & 3;
    size_t whole = how & 1 ? sizeof(shmd_welcome_t) : sizeof(shmd_hello_t);
    size_t length = how & 2 ? (size_t)input_take(&input, 2) : whole;
    if (how & 1)
        to_client(&input, length, count);
    else
        to_driver(&input, length, count);
    MUST(lowest_descriptor() == lowest); /* nothing that came is kept */
    return 0;
}
