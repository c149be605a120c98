/* socket_rig.h: a folder with a driver's socket, and clients that say anything. */
#ifndef SOCKET_RIG_H
#define SOCKET_RIG_H

#include "test.h"

#include "../../csrc/driver/shmd_listener.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static char rig_path[64];
static int rig_folder = -1;

static inline void rig_folder_make(void)
{
    (void)snprintf(rig_path, sizeof rig_path, "/tmp/shmd-socket-XXXXXX");
    CHECK(mkdtemp(rig_path) != NULL);
    rig_folder = open(rig_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    CHECK(rig_folder >= 0);
}

static inline void rig_folder_remove(void)
{
    (void)unlinkat(rig_folder, SHMD_SOCKET_NAME, 0);
    CHECK_EQ(rmdir(rig_path), 0); /* also: nothing else was left in it */
    CHECK_EQ(close(rig_folder), 0);
}

static inline shmd_listener_t rig_listen(uint32_t gid)
{
    shmd_listener_t listener;
    CHECK_EQ(shmd_listener_open(rig_folder, rig_path, gid, 1, &listener), SHMD_OK);
    return listener;
}

/* Blocking, so that a full backlog is waited for; the descriptor, or -1 with errno. */
static inline int rig_connect(int flags)
{
    struct sockaddr_un address;
    CHECK_EQ(shmd_socket_address(rig_folder, rig_path, SHMD_SOCKET_NAME, &address), SHMD_OK);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0);
    CHECK(fd >= 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    int error = errno;
    (void)close(fd);
    errno = error;
    return -1;
}

static inline shmd_hello_t rig_hello(void)
{
    shmd_hello_t hello;
    shmd_hello_begin(&hello, "rig");
    hello.serial = 1;
    (void)snprintf(hello.name, sizeof hello.name, "rig");
    return hello;
}

static inline void rig_send(int fd, const void *message, size_t bytes) { CHECK_EQ(send(fd, message, bytes, MSG_NOSIGNAL), (ssize_t)bytes); }

/* What stands there of an answer: its length; 0: the connection has ended. */
static inline ssize_t rig_answer(int fd, shmd_welcome_t *out) { return recv(fd, out, sizeof *out, 0); }

static inline unsigned rig_open_descriptors(void)
{
    unsigned count = 0;
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder != NULL);
    while (readdir(folder) != NULL)
        count++;
    (void)closedir(folder);
    return count;
}

static inline int rig_is_readable(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, 0) == 1;
}

static inline int rig_child_code(pid_t child)
{
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#endif
