/* world.h: bodies of tests that run in a child of their own, in empty mounts of their own (/dev/shm, /run, /tmp), and as other
 * users. It takes root; without it, or where a sandbox forbids mounts, the whole program is skipped, and says so. */
#ifndef SHMD_WORLD_H
#define SHMD_WORLD_H

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

enum { ALICE = 4201, BOB = 4202, MALLORY = 4203 }; /* without an entry in /etc/passwd */

static inline int world_make(void)
{
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777") == 0 &&
           mount("tmpfs", "/run", "tmpfs", 0, "mode=0755") == 0 && mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777") == 0;
}

/* Runs a body in a child; fails when that fails. uid: as which user (0: root). */
static inline void world_child(void (*body)(void), int is_new, uid_t uid)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        if (is_new && !world_make())
            _exit(77);
        if (uid != 0 && (setgid(uid) != 0 || setuid(uid) != 0))
            TEST_FAIL("cannot become uid %u", (unsigned)uid);
        body();
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

static inline void in_world(void (*body)(void)) { world_child(body, 1, 0); }
static inline void as(uid_t uid, void (*body)(void)) { world_child(body, 0, uid); }

static inline void world_or_skip(void)
{
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(geteuid() == 0 && world_make() ? 0 : 77);
    CHECK_EQ(waitpid(child, &status, 0), child);
    if (status != 0)
        SKIP("NOT LOOKED AT: it takes root and mount namespaces to play several users");
    (void)unsetenv("SHMDRIVER_RUNTIME_DIR");
    (void)unsetenv("XDG_RUNTIME_DIR");
    (void)unsetenv("SHMDRIVER_TRUST_OWNERS");
}

/* 0: an emulator shows another root folder than the one in which absolute paths are found (qemu-user -L); says so. */
static inline int world_walks(void)
{
    struct stat status;
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), walks = fstatat(root, "dev/shm", &status, 0) == 0;
    (void)close(root);
    if (!walks)
        (void)fprintf(stderr, "  NOT LOOKED AT: no path can be walked from the root folder here\n");
    return walks;
}

static inline void make_dir(const char *path, uid_t uid, mode_t mode)
{
    CHECK_EQ(mkdir(path, 0700), 0);
    CHECK_EQ(chown(path, uid, uid), 0);
    CHECK_EQ(chmod(path, mode), 0);
}

static inline int mode_of(const char *path)
{
    struct stat status;
    CHECK_EQ(lstat(path, &status), 0);
    return (int)(status.st_mode & 07777);
}

static inline int exists(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0;
}

static inline int is_empty(const char *path)
{
    int n = 0;
    DIR *folder = opendir(path);
    CHECK(folder != NULL);
    while (readdir(folder) != NULL)
        n++;
    (void)closedir(folder);
    return n == 2; /* itself and the one above */
}

/* A user namespace with this map (NULL: none, so that nobody has a number there). 0: not here, and says so. */
static inline int world_user_namespace(const char *map)
{
    CHECK_EQ(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), 0); /* who has changed its uid may not write its own map otherwise */
    if (unshare(CLONE_NEWUSER) != 0) {
        (void)fprintf(stderr, "  NOT LOOKED AT: no user namespaces here\n");
        return 0;
    }
    int fd = map == NULL ? -1 : open("/proc/self/uid_map", O_WRONLY | O_CLOEXEC);
    CHECK_EQ(map == NULL ? 0 : write(fd, map, strlen(map)), map == NULL ? 0 : (ssize_t)strlen(map));
    if (fd >= 0)
        (void)close(fd);
    return 1;
}

#define CHECK_MENTIONS(text, needle)                                                                                         \
    do {                                                                                                                     \
        if (strstr(text, needle) == NULL)                                                                                    \
            TEST_FAIL("\"%s\" does not mention \"%s\"", text, needle);                                                       \
    } while (0)

#define CHECK_STR(found, expected)                                                                                           \
    do {                                                                                                                     \
        if (strcmp(found, expected) != 0)                                                                                    \
            TEST_FAIL("%s is \"%s\", expected \"%s\"", #found, found, expected);                                             \
    } while (0)

#endif
