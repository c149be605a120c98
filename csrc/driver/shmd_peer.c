/* shmd_peer.c: who is at the other end of a connection. The numbers are the kernel's (SO_PEERCRED), and so is the pidfd since Linux 6.5
 * (SO_PEERPIDFD): it is of the process that connected, in whatever PID namespace, and stays so after an exec. */
#include "shmd_listener.h"

#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#define PIDFS_MAGIC 0x50494446

static uint64_t inode_of_pidfd(int pidfd)
{
    struct statfs file_system;
    struct stat status;
    if (fstatfs(pidfd, &file_system) != 0 || file_system.f_type != PIDFS_MAGIC || fstat(pidfd, &status) != 0)
        return 0; /* before Linux 6.9 all pidfds have one inode */
    return status.st_ino;
}

/* The kernel's own pidfd of the process that connected; else by number, which may be another process's by now: the start time that
 * comes with the Hello tells. */
static void take_pidfd(shmd_peer_t *peer)
{
    socklen_t bytes = sizeof peer->pidfd;
    if (getsockopt(peer->fd, SOL_SOCKET, SO_PEERPIDFD, &peer->pidfd, &bytes) == 0) {
        peer->is_of_peer = 1;
    } else {
        peer->pidfd_error = errno;
        peer->pidfd = -1;
        if (errno == ENOPROTOOPT && peer->process.pid > 0) {
            peer->pidfd = (int)syscall(SYS_pidfd_open, (pid_t)peer->process.pid, 0);
            peer->pidfd_error = peer->pidfd < 0 ? errno : 0;
        }
    }
    if (peer->pidfd >= 0)
        peer->pidfd_inode = inode_of_pidfd(peer->pidfd);
}

/* What a pidfd was opened for lives as long as it has not fired, and so long its number is its own. */
static void take_start_time(shmd_peer_t *peer)
{
    if (peer->pidfd < 0 || peer->process.pid <= 0)
        return;
    uint64_t start_time = shmd_process_start_time(peer->process.pid);
    peer->process.start_time = shmd_pidfd_has_fired(peer->pidfd) ? 0 : start_time;
}

int shmd_peer_identify(int fd, uint64_t now_ns, shmd_peer_t *out)
{
    struct ucred credentials;
    socklen_t bytes = sizeof credentials;
    *out = (shmd_peer_t){.fd = fd, .pidfd = -1, .accepted_ns = now_ns};
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0)
        return shmd_fail_errno(SHMD_CALL_OTHER, "SO_PEERCRED of a connection");
    shmd_process_self(&out->process); /* its namespaces: those in which the numbers are read */
    out->process.pid = credentials.pid;
    out->process.start_time = 0;
    out->uid = credentials.uid;
    out->gid = credentials.gid;
    take_pidfd(out);
    take_start_time(out);
    return SHMD_OK;
}

static int same_namespaces(const shmd_peer_t *peer, const shmd_hello_t *hello)
{
    const shmd_process_t *own = &peer->process;
    return own->pid_namespace != 0 && own->pid_namespace == hello->pid_namespace && own->time_namespace != 0 &&
           own->time_namespace == hello->time_namespace;
}

/* What a process says of its own start time makes it nobody; another one than was read here shows that the number is another
 * process's by now, or the connection. */
int shmd_peer_check(const shmd_peer_t *peer, const shmd_hello_t *hello)
{
    uint64_t read_here = peer->process.start_time;
    if (read_here == 0 || hello->start_time == 0 || !same_namespaces(peer, hello) || read_here == hello->start_time)
        return SHMD_OK;
    return shmd_fail(SHMD_E_INVALID, "the process that connected has pid %lld and began at %llu; the one that says Hello began at %llu: connect in the process that uses the connection",
                     (long long)peer->process.pid, (unsigned long long)read_here, (unsigned long long)hello->start_time);
}
