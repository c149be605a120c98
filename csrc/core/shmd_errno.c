/* shmd_errno.c: what the error number of a failed system call means here, and what to do about it.
 *
 * The C core's error texts (shmd_fail_errno) and Python's (shmdriver/os_errors.py) take their hints from this table. It is read when
 * a call has failed, never on a hot path. */
#include "../shmd_internal.h"

#include <stdio.h>
#include <sys/resource.h>

enum { ERRORS_MAX = 3, NO_LIMIT = -1 };

#define ALL_CALLS UINT32_MAX
#define ON_MOUNT (SHMD_CALL_OPEN | SHMD_CALL_CREATE | SHMD_CALL_ALLOCATE | SHMD_CALL_SHARE)
#define THREADS (SHMD_CALL_THREAD | SHMD_CALL_THREAD_ASKED)

typedef struct hint {
    uint32_t calls;             /* a mask of SHMD_CALL_* */
    int errors[ERRORS_MAX];     /* none: every error */
    const char *before;
    int limit;                  /* RLIMIT_*: the soft limit's value stands between the two texts; NO_LIMIT: nothing does */
    const char *after;
} hint_t;

/* The first row that has both the call and the error counts. */
static const hint_t hints[] = {
    /* errors that mean something else for one call than for the others */
    {SHMD_CALL_LOCK, {EAGAIN, ENOMEM, EPERM}, "RLIMIT_MEMLOCK is ", RLIMIT_MEMLOCK, " bytes: raise it (LimitMEMLOCK= in the unit, ulimit -l)"},
    {SHMD_CALL_MAP, {EAGAIN}, "this process locks its memory (mlockall), and RLIMIT_MEMLOCK is ", RLIMIT_MEMLOCK,
     " bytes: raise it (LimitMEMLOCK= in the unit, ulimit -l)"},
    {SHMD_CALL_MAP, {ENOMEM}, "no address space, mapping or memory is left. RLIMIT_AS is ", RLIMIT_AS,
     " (LimitAS= in the unit, ulimit -v); see also vm.max_map_count (sysctl) and the cgroup's memory.max"},
    {SHMD_CALL_THREAD_DEADLINE, {EAGAIN}, "a thread under SCHED_DEADLINE cannot start others: connect before that is set", NO_LIMIT, ""},
    {THREADS, {EAGAIN}, "no thread, or no memory for its stack, is left. RLIMIT_NPROC is ", RLIMIT_NPROC,
     " (LimitNPROC= in the unit, ulimit -u); see also the cgroup's pids.max and RLIMIT_AS"},
    {SHMD_CALL_THREAD_ASKED, {EPERM}, "its policy needs CAP_SYS_NICE, or an RLIMIT_RTPRIO of its priority (it is ", RLIMIT_RTPRIO, ")"},
    {SHMD_CALL_THREAD_ASKED, {EINVAL}, "this process may use none of the CPUs that were asked for: see `taskset -cp` and its cpuset", NO_LIMIT, ""},
    {SHMD_CALL_SHARE, {EPERM}, "a process may give files to groups that it is in: add its user to that group, or run as root", NO_LIMIT, ""},
    {SHMD_CALL_SHARE, {EINVAL}, "this user namespace has no such group: map it there, or choose another shm.group", NO_LIMIT, ""},
    {SHMD_CALL_OPEN | SHMD_CALL_CONNECT, {EACCES}, "run as its owner, or share by a group that both users are in (shm.mode = \"0660\", shm.group) and name its owner there", NO_LIMIT, ""},
    {SHMD_CALL_OPEN, {ENOENT}, "its driver has removed it, or has stopped: attach again", NO_LIMIT, ""},
    {SHMD_CALL_OPEN, {ELOOP, ENXIO}, "it is no shared-memory object; somebody planted it: remove it", NO_LIMIT, ""},
    {SHMD_CALL_CREATE, {EACCES}, "as a rule /dev/shm has mode 1777: chmod 1777 /dev/shm, or run as a user that may write there", NO_LIMIT, ""},
    {SHMD_CALL_CREATE | SHMD_CALL_ALLOCATE, {ENOSPC},
     "/dev/shm is full: remove files there, or make it larger (mount -o remount,size=... /dev/shm; containers: --shm-size)", NO_LIMIT, ""},
    {ON_MOUNT, {EROFS}, "/dev/shm is mounted read-only: mount -o remount,rw /dev/shm; containers: --tmpfs /dev/shm", NO_LIMIT, ""},

    /* limits, whatever the call */
    {ALL_CALLS, {EMFILE}, "RLIMIT_NOFILE allows ", RLIMIT_NOFILE, " descriptors: raise it (LimitNOFILE= in the unit, ulimit -n)"},
    {ALL_CALLS, {ENFILE}, "the machine has no descriptor left: raise fs.file-max (sysctl)", NO_LIMIT, ""},
    {ALL_CALLS, {EFBIG}, "RLIMIT_FSIZE allows ", RLIMIT_FSIZE, " bytes a file: raise it (LimitFSIZE= in the unit, ulimit -f)"},
    {ALL_CALLS, {ENOMEM}, "the kernel has no memory for it (the machine's, or a cgroup's memory.max)", NO_LIMIT, ""},

    /* files */
    {SHMD_CALL_READ | SHMD_CALL_RUNTIME, {ELOOP}, "a symbolic link is not followed there: name the file itself", NO_LIMIT, ""},
    {SHMD_CALL_READ, {0}, "give the path of a file that this user can read", NO_LIMIT, ""},
    {SHMD_CALL_RUNTIME, {0}, "set SHMDRIVER_RUNTIME_DIR to a folder that this user can write to (a container with a read-only root: --tmpfs), "
     "or name a token file that exists in policies.shutdown_token_file", NO_LIMIT, ""},
    {ALL_CALLS, {ENOSPC, EDQUOT}, "no bytes, no inodes or no quota of this user are left there (df, df -i)", NO_LIMIT, ""},
    {ALL_CALLS, {EROFS}, "that file system is mounted read-only", NO_LIMIT, ""},
    {ALL_CALLS, {EACCES}, "this user may not: see the owner and the mode, also those of the folders above", NO_LIMIT, ""},
    {~(uint32_t)SHMD_CALL_FILE, {EPERM, ENOSYS}, "a seccomp filter or a security module forbids it, or this kernel does not have it", NO_LIMIT, ""},
    {~(uint32_t)SHMD_CALL_FILE, {0}, "`shmdriver doctor` checks this machine", NO_LIMIT, ""},
};

static int has(const hint_t *hint, uint32_t call, int error)
{
    int found = hint->errors[0] == 0;
    for (int i = 0; i < ERRORS_MAX; i++)
        found |= hint->errors[i] == error;
    return found && (hint->calls & call) != 0;
}

static void write_limit(int limit, char *out, size_t bytes)
{
    struct rlimit found = {.rlim_cur = 0};
    if (limit == NO_LIMIT || getrlimit((unsigned)limit, &found) != 0)
        out[0] = 0;
    else if (found.rlim_cur == RLIM_INFINITY)
        (void)snprintf(out, bytes, "unlimited");
    else
        (void)snprintf(out, bytes, "%llu", (unsigned long long)found.rlim_cur);
}

const char *shmd_errno_hint(uint32_t call, int error)
{
    static _Thread_local char text[SHMD_TEXT_BYTES / 2];
    char limit[24];
    text[0] = 0;
    for (size_t i = 0; error != 0 && i < sizeof hints / sizeof hints[0]; i++) {
        if (has(&hints[i], call, error)) {
            write_limit(hints[i].limit, limit, sizeof limit);
            (void)snprintf(text, sizeof text, "%s%s%s", hints[i].before, limit, hints[i].after);
            break;
        }
    }
    return text;
}
