/* test_errno.c: system calls that really fail. The text has the system's words, the cause and the remedy; errno stays.
 * fault: 77 (RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_MEMLOCK, RLIMIT_NPROC, RLIMIT_FSIZE, another uid, a read-only mount) */
#include "rig.h"

#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { NOBODY = 65534, BYTES = 1 << 16 };

static char name[SHMD_SEGMENT_NAME_BYTES];
static int fd;

/* Lowers a soft limit. 0: it does not hold here (qemu-user passes some limits on to nobody). */
static int lower(int resource, rlim_t soft, struct rlimit *before)
{
    struct rlimit found;
    CHECK_EQ(getrlimit((unsigned)resource, before), 0);
    found = (struct rlimit){.rlim_cur = soft, .rlim_max = before->rlim_max};
    CHECK_EQ(setrlimit((unsigned)resource, &found), 0);
    CHECK_EQ(getrlimit((unsigned)resource, &found), 0);
    if (found.rlim_cur != soft)
        (void)fprintf(stderr, "  NOT LOOKED AT: resource limit %d cannot be set here\n", resource);
    return found.rlim_cur == soft;
}

static void restore(int resource, const struct rlimit *before) { CHECK_EQ(setrlimit((unsigned)resource, before), 0); }

/* `found`: errno right after the call. */
static void is_told(int rc, int found, int error, const char *words)
{
    CHECK_EQ(rc, SHMD_E_SYSTEM);
    CHECK_EQ(found, error);
    CHECK_TEXT(strerror(error));
    CHECK_TEXT(words);
}

/* Runs `body` in a child without privileges; fails when that fails. */
static void as_nobody(void (*body)(void))
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        if (geteuid() == 0 && (setgid(NOBODY) != 0 || setuid(NOBODY) != 0))
            TEST_FAIL("cannot become uid %d", NOBODY);
        body();
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

static void test_every_error_of_every_call_has_a_hint(void)
{
    for (uint32_t call = SHMD_CALL_OTHER; call < SHMD_CALL_FILE; call <<= 1) {
        for (int error = 1; error < 134; error++) {
            const char *hint = shmd_errno_hint(call, error);
            CHECK(hint[0] != 0 && strlen(hint) < SHMD_TEXT_BYTES / 4);
        }
    }
    CHECK(shmd_errno_hint(SHMD_CALL_FILE, ENOENT)[0] == 0 && shmd_errno_hint(SHMD_CALL_FILE, EMFILE)[0] != 0);
    CHECK(shmd_errno_hint(SHMD_CALL_OPEN, 0)[0] == 0);
}

static void test_the_hint_of_the_call_comes_before_the_general_one(void)
{
    CHECK(strstr(shmd_errno_hint(SHMD_CALL_MAP, ENOMEM), "vm.max_map_count") != NULL);
    CHECK(strstr(shmd_errno_hint(SHMD_CALL_LOCK, ENOMEM), "RLIMIT_MEMLOCK") != NULL);
    CHECK(strstr(shmd_errno_hint(SHMD_CALL_ALLOCATE, ENOMEM), "memory.max") != NULL);
    CHECK(strstr(shmd_errno_hint(SHMD_CALL_THREAD | SHMD_CALL_THREAD_DEADLINE, EAGAIN), "SCHED_DEADLINE") != NULL);
}

static void test_no_descriptor_is_left(void)
{
    enum { MOST = 32 };
    struct rlimit before;
    int taken[MOST], n = 0, event = -1, copy = -1, rc[3], error[3];
    uint64_t bytes;
    if (!lower(RLIMIT_NOFILE, MOST, &before))
        return;
    while (n < MOST && (taken[n] = dup(STDERR_FILENO)) >= 0)
        n++;
    rc[0] = shmd_segment_open(name, 0, &bytes);
    error[0] = errno;
    CHECK_TEXT(name);
    CHECK_TEXT("RLIMIT_NOFILE allows 32 descriptors");
    rc[1] = shmd_descriptor_open_event(&event);
    error[1] = errno;
    CHECK_TEXT("RLIMIT_NOFILE allows 32 descriptors");
    rc[2] = shmd_descriptor_copy(fd, &copy);
    error[2] = errno;
    while (n > 0)
        (void)close(taken[--n]);
    for (int i = 0; i < 3; i++)
        is_told(rc[i], error[i], EMFILE, "raise it (LimitNOFILE=");
    restore(RLIMIT_NOFILE, &before);
}

static void test_no_address_space_is_left(void)
{
    struct rlimit before;
    void *out = NULL;
    if (!lower(RLIMIT_AS, BYTES, &before))
        return;
    int once = shmd_segment_map(fd, 0, BYTES, 0, 0, &out);
    int error = errno;
    int twice = shmd_segment_map_mirrored(fd, 0, BYTES, 0, 0, &out);
    restore(RLIMIT_AS, &before);
    is_told(once, error, ENOMEM, "RLIMIT_AS is 65536 (LimitAS= in the unit, ulimit -v)");
    is_told(twice, error, ENOMEM, "reserving 131072 bytes of address space");
}

static void test_a_file_may_not_be_that_large(void)
{
    struct rlimit before;
    (void)signal(SIGXFSZ, SIG_IGN);
    if (!lower(RLIMIT_FSIZE, BYTES, &before))
        return;
    CHECK_EQ(ftruncate(fd, BYTES + 1), -1);
    int rc = shmd_fail_errno(SHMD_CALL_ALLOCATE, "ftruncate");
    is_told(rc, errno, EFBIG, "RLIMIT_FSIZE allows 65536 bytes a file: raise it");
    restore(RLIMIT_FSIZE, &before);
}

#ifndef SHMD_TEST /* sanitizers lock nothing, and have threads of their own */
static void lock_too_much(void)
{
    struct rlimit before;
    void *base = NULL;
    CHECK_EQ(shmd_segment_map(fd, 0, BYTES, 0, 0, &base), SHMD_OK);
    if (!lower(RLIMIT_MEMLOCK, 4096, &before))
        return;
    int rc = shmd_segment_lock(base, BYTES);
    is_told(rc, errno, ENOMEM, "RLIMIT_MEMLOCK is 4096 bytes: raise it");
    (void)lower(RLIMIT_MEMLOCK, 0, &before);
    rc = shmd_segment_lock(base, BYTES);
    is_told(rc, errno, EPERM, "RLIMIT_MEMLOCK is 0 bytes: raise it");
}

static void *nothing(void *argument) { return argument; }

static void start_a_thread_too_many(void)
{
    struct rlimit before;
    unsigned long thread;
    if (!lower(RLIMIT_NPROC, 0, &before))
        return;
    int rc = shmd_thread_start(&(shmd_threads_t){.has_cpus = 0}, nothing, NULL, "heartbeat", &thread);
    is_told(rc, errno, EAGAIN, "RLIMIT_NPROC is 0 (LimitNPROC=");
    CHECK_TEXT("starting the heartbeat thread");
}

static void test_no_memory_may_be_locked(void) { as_nobody(lock_too_much); }
static void test_no_thread_may_be_started(void) { as_nobody(start_a_thread_too_many); }
#endif

static void open_a_stranger_s(void)
{
    uint64_t bytes;
    int rc = shmd_segment_open(name, 1, &bytes);
    is_told(rc, errno, EACCES, "for writing: Permission denied: run as its owner, or share by a group");
    CHECK_TEXT("of uid 0, gid ");
    CHECK_TEXT("(mode 0600) as uid 65534");
}

static void test_a_segment_belongs_to_another_user(void)
{
    if (geteuid() == 0)
        as_nobody(open_a_stranger_s);
    else
        (void)fprintf(stderr, "  NOT LOOKED AT: becoming another user takes root\n");
}

static void test_the_mount_is_read_only(void)
{
    uint64_t bytes;
    int status;
    pid_t child = fork();
    if (child == 0) {
        if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
            mount("none", "/dev/shm", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) != 0)
            _exit(77);
        int rc = shmd_segment_open(name, 1, &bytes);
        is_told(rc, errno, EROFS, "/dev/shm is mounted read-only: mount -o remount,rw /dev/shm");
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        (void)fprintf(stderr, "  NOT LOOKED AT: no permission for a mount namespace\n");
    else
        CHECK_EQ(status, 0);
}

int main(void)
{
    fd = rig_segment("errno", BYTES, name);
    RUN(test_every_error_of_every_call_has_a_hint);
    RUN(test_the_hint_of_the_call_comes_before_the_general_one);
    RUN(test_no_descriptor_is_left);
    RUN(test_no_address_space_is_left);
    RUN(test_a_file_may_not_be_that_large);
#ifndef SHMD_TEST
    RUN(test_no_memory_may_be_locked);
    RUN(test_no_thread_may_be_started);
#endif
    RUN(test_a_segment_belongs_to_another_user);
    RUN(test_the_mount_is_read_only);
    return test_report();
}
