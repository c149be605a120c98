/* shmd_process.c: who a process is, and whether it lives.
 *
 * One function says whether a process lives (shmd_process_look). A pidfd proves a death; /proc alone proves nothing: an entry may be
 * hidden, of another namespace, a zombie with living threads, or there is no descriptor left to read it with. All that is UNKNOWN.
 */
#include "shmd_internal.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* ---- namespaces ------------------------------------------------------------------------ */

static uint64_t inode_of(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

/* Of the calling thread: a main thread that has exited is in none any more. */
uint64_t shmd_pid_namespace(void) { return inode_of("/proc/thread-self/ns/pid"); }

static uint64_t time_namespace(void)
{
    enum { KERNEL_HAS_NONE = 1 };
    uint64_t inode = inode_of("/proc/thread-self/ns/time");
    return inode == 0 && errno == ENOENT && shmd_pid_namespace() != 0 ? KERNEL_HAS_NONE : inode;
}

/* Whether the numbers in /proc are those of this process's PID namespace: not so after `unshare --pid --fork` alone. */
static int proc_is_ours(void)
{
    char text[32];
    ssize_t got = readlink("/proc/self", text, sizeof text - 1);
    if (got <= 0)
        return 0;
    text[got] = 0;
    return strtoll(text, NULL, 10) == (long long)getpid();
}

/* ---- looks ------------------------------------------------------------------------------- */

/* Start time (field 22) and state (field 3) of a process (0: the calling one). 0, or errno. */
static int read_stat(int64_t pid, uint64_t *start_time, char *state)
{
    char path[64];
    char text[1024];
    (void)shmd_keep_standard_descriptors(); /* a process in which that fails has opened no segment */
    if (pid == 0)
        (void)snprintf(path, sizeof path, "/proc/self/stat");
    else
        (void)snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    ssize_t got = read(fd, text, sizeof text - 1);
    int error = got > 0 ? 0 : got < 0 ? errno : ESRCH;
    (void)close(fd);
    if (error != 0)
        return error;
    text[got] = 0;
    const char *field = strrchr(text, ')'); /* the command may hold spaces and parentheses: count from its end */
    if (field == NULL || field[1] != ' ')
        return EPROTO;
    *state = field[2];
    for (int i = 2; field != NULL && i < 22; i++) {
        field = strchr(field, ' ');
        if (field != NULL)
            field++;
    }
    if (field == NULL)
        return EPROTO;
    *start_time = strtoull(field, NULL, 10);
    return 0;
}

void shmd_process_self(shmd_process_t *out)
{
    char state;
    memset(out, 0, sizeof *out);
    out->pid = getpid();
    out->pid_namespace = shmd_pid_namespace();
    out->time_namespace = time_namespace();
    if (read_stat(0, &out->start_time, &state) != 0)
        out->start_time = 0;
}

uint64_t shmd_process_start_time(int64_t pid)
{
    uint64_t start_time = 0;
    char state;
    return proc_is_ours() && read_stat(pid, &start_time, &state) == 0 ? start_time : 0;
}

static int is_short_of_descriptors(int error) { return error == EMFILE || error == ENFILE || error == ENOMEM; }

int shmd_pidfd_has_fired(int pidfd)
{
    struct pollfd one = {.fd = pidfd, .events = POLLIN};
    return poll(&one, 1, 0) == 1 && (one.revents & POLLIN) != 0; /* POLLIN: all of its threads have ended */
}

/* What /proc says: START_TIME, OTHER_START, or why it says nothing. A start time is worth something only where it was read in
 * this time namespace, of a process with this number in this PID namespace. */
static uint32_t compare_start(const shmd_process_t *process, char *state)
{
    uint64_t start_time = 0, own = time_namespace();
    if (process->start_time == 0)
        return SHMD_EVIDENCE_NO_START_TIME;
    if (own == 0 || process->time_namespace == 0)
        return SHMD_EVIDENCE_NAMESPACES;
    if (own != process->time_namespace)
        return SHMD_EVIDENCE_TIME_NAMESPACE;
    if (!proc_is_ours())
        return SHMD_EVIDENCE_PROC_FOREIGN;
    int error = read_stat(process->pid, &start_time, state);
    if (error == 0)
        return start_time == process->start_time ? SHMD_EVIDENCE_START_TIME : SHMD_EVIDENCE_OTHER_START;
    if (is_short_of_descriptors(error))
        return SHMD_EVIDENCE_NO_DESCRIPTOR;
    return error == ENOENT || error == EACCES || error == EPERM ? SHMD_EVIDENCE_PROC_HIDDEN : SHMD_EVIDENCE_PROC_UNREADABLE;
}

/* A kernel or a sandbox without pidfds: a process that is a zombie may have threads that live. */
static uint32_t look_without_pidfd(const shmd_process_t *process, int error)
{
    char state = 0;
    if (error == ESRCH || (kill((pid_t)process->pid, 0) != 0 && errno == ESRCH))
        return SHMD_EVIDENCE_NO_PROCESS;
    if (is_short_of_descriptors(error))
        return SHMD_EVIDENCE_NO_DESCRIPTOR;
    uint32_t found = compare_start(process, &state);
    if (found == SHMD_EVIDENCE_START_TIME && (state == 'Z' || state == 'X'))
        return SHMD_EVIDENCE_ZOMBIE;
    return found == SHMD_EVIDENCE_START_TIME || found == SHMD_EVIDENCE_OTHER_START ? found : (uint32_t)SHMD_EVIDENCE_NO_PIDFD;
}

/* The pidfd is opened first: from then on the number cannot pass to another process unnoticed. */
static uint32_t look_by_pidfd(const shmd_process_t *process, int *pidfd)
{
    char state;
    (void)shmd_keep_standard_descriptors();
    *pidfd = (int)syscall(SYS_pidfd_open, (pid_t)process->pid, 0);
    if (*pidfd < 0)
        return look_without_pidfd(process, errno);
    if (shmd_pidfd_has_fired(*pidfd))
        return SHMD_EVIDENCE_PIDFD;
    uint32_t found = compare_start(process, &state);
    return found != SHMD_EVIDENCE_OTHER_START && shmd_pidfd_has_fired(*pidfd) ? SHMD_EVIDENCE_PIDFD : found;
}

static int verdict_of(uint32_t evidence)
{
    if (evidence == SHMD_EVIDENCE_START_TIME)
        return SHMD_PROCESS_ALIVE;
    return evidence >= SHMD_EVIDENCE_NO_PROCESS && evidence <= SHMD_EVIDENCE_EXIT_KIND ? SHMD_PROCESS_DEAD : SHMD_PROCESS_UNKNOWN;
}

int shmd_process_look(const shmd_process_t *process, int *pidfd, uint32_t *evidence)
{
    uint64_t own = shmd_pid_namespace();
    int fd = -1;
    if (own == 0 || process->pid_namespace == 0)
        *evidence = SHMD_EVIDENCE_NAMESPACES;
    else if (own != process->pid_namespace)
        *evidence = SHMD_EVIDENCE_PID_NAMESPACE;
    else if (process->pid == 0) /* how the kernel names a process that is not in this PID namespace */
        *evidence = SHMD_EVIDENCE_PID_NAMESPACE;
    else if (process->pid < 0 || process->pid > INT_MAX)
        *evidence = SHMD_EVIDENCE_NO_PROCESS;
    else
        *evidence = look_by_pidfd(process, &fd);
    int verdict = verdict_of(*evidence);
    if (fd >= 0 && (pidfd == NULL || verdict == SHMD_PROCESS_DEAD)) {
        (void)close(fd);
        fd = -1;
    }
    if (pidfd != NULL)
        *pidfd = fd;
    return verdict;
}

const char *shmd_evidence_text(uint32_t evidence)
{
    static const char *const texts[] = {
        "nobody has looked",
        "its start time is as expected, and its pidfd has not fired",
        "there is no process of its number in this PID namespace",
        "its pidfd has fired: all of its threads have ended",
        "its number was given to another process, which began at another time",
        "its authority segment shows no sign of life: nobody holds a lock on it",
        "it has said so itself",
        "it is in another PID namespace",
        "its start time was read in another time namespace",
        "the namespaces are not known (/proc is not mounted, or hidden)",
        "no descriptor was left to look at it with (RLIMIT_NOFILE, or the system's limit)",
        "this kernel or sandbox has no pidfd, and /proc does not tell",
        "/proc hides it (hidepid, or another user's)",
        "/proc belongs to another PID namespace (mount it anew: unshare --mount-proc)",
        "its entry in /proc cannot be read",
        "its start time is not known: it could not read its own /proc entry",
        "it is a zombie in /proc, whose other threads may live",
    };
    return evidence < sizeof texts / sizeof texts[0] ? texts[evidence] : "unknown evidence";
}

const char *shmd_pid_text(int64_t pid, uint64_t pid_namespace)
{
    static _Thread_local char text[80];
    uint64_t own = shmd_pid_namespace();
    const char *where = own == 0 || pid_namespace == 0 ? " in a PID namespace that is not known" : own == pid_namespace ? "" : " in another PID namespace";
    if (pid == 0)
        (void)snprintf(text, sizeof text, "a process of another PID namespace");
    else
        (void)snprintf(text, sizeof text, "pid %lld%s", (long long)pid, where);
    return text;
}

/* "embedded-PID-HEX": a name that an embedded driver makes for itself (driver/embedded.py). Nobody runs a driver of that name again,
 * and what a dead one leaves the next embedded driver removes. */
int shmd_instance_is_embedded(const char *instance)
{
    static const char prefix[] = "embedded-";
    if (strncmp(instance, prefix, sizeof prefix - 1) != 0)
        return 0;
    const char *at = instance + sizeof prefix - 1;
    size_t digits = strspn(at, "0123456789");
    if (digits == 0 || at[digits] != '-')
        return 0;
    at += digits + 1;
    return *at != 0 && at[strspn(at, "0123456789abcdef")] == 0;
}
