/* test_life.c: the sign of life on an authority: who can show it, who sees it, what it takes to fake or to bar it.
 * fault: E4 (a watcher's lock on an authority that it can only read) */
#include "rig.h"

#include <sys/file.h>
#include <sys/wait.h>

static char path[SHMD_SEGMENT_NAME_BYTES + 16];

static int again(int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static void test_it_is_seen_by_every_other_description_until_the_last_descriptor_is_closed(void)
{
    int driver = again(O_RDWR), reader = again(O_RDONLY), writer = again(O_RDWR);
    CHECK_EQ(shmd_life_seen(reader), 0);
    CHECK_EQ(shmd_life_show(driver), SHMD_OK);
    CHECK_EQ(shmd_life_seen(reader), 1);
    CHECK_EQ(shmd_life_seen(writer), 1);
    CHECK_EQ(shmd_life_seen(driver), 0); /* its own description does not see it: it needs another one to look */
    int copy = dup(driver);
    (void)close(driver);
    CHECK_EQ(shmd_life_seen(reader), 1);
    (void)close(copy);
    CHECK_EQ(shmd_life_seen(reader), 0);
    (void)close(reader);
    (void)close(writer);
}

static void test_closing_another_descriptor_of_the_file_does_not_end_it(void)
{
    int driver = again(O_RDWR), other = again(O_RDWR), reader = again(O_RDONLY);
    CHECK_EQ(shmd_life_show(driver), SHMD_OK);
    (void)close(other);
    CHECK_EQ(shmd_life_seen(reader), 1);
    (void)close(driver);
    (void)close(reader);
}

static void test_it_ends_with_a_driver_that_is_killed(void)
{
    int told[2], reader = again(O_RDONLY);
    char byte;
    CHECK_EQ(pipe(told), 0);
    pid_t driver = fork();
    if (driver == 0) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0 || shmd_life_show(fd) != SHMD_OK || write(told[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            (void)pause();
    }
    CHECK_EQ(read(told[0], &byte, 1), 1);
    CHECK_EQ(shmd_life_seen(reader), 1);
    CHECK_EQ(kill(driver, SIGKILL), 0);
    CHECK_EQ(waitpid(driver, NULL, 0), driver);
    CHECK_EQ(shmd_life_seen(reader), 0);
    (void)close(told[0]);
    (void)close(told[1]);
    (void)close(reader);
}

/* E4: a lock of somebody who can only read it neither keeps a driver from showing life nor ends it. */
static void test_a_watcher_s_lock_bars_no_driver(void)
{
    int watcher = again(O_RDONLY), driver = again(O_RDWR), reader = again(O_RDONLY);
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    CHECK_EQ(fcntl(watcher, F_OFD_SETLK, &lock), 0);
    CHECK_EQ(flock(watcher, LOCK_EX | LOCK_NB), 0); /* the lock of the layout before */
    CHECK_EQ(shmd_life_show(driver), SHMD_OK);
    (void)close(watcher);
    CHECK_EQ(shmd_life_seen(reader), 1);
    lock.l_type = F_WRLCK;
    CHECK_EQ(fcntl(reader, F_OFD_SETLK, &lock), -1);
    (void)close(driver);
    (void)close(reader);
}

static void test_a_flock_is_no_sign_of_life(void)
{
    int holder = again(O_RDONLY), reader = again(O_RDONLY);
    CHECK_EQ(flock(holder, LOCK_EX | LOCK_NB), 0);
    CHECK_EQ(shmd_life_seen(reader), 0);
    (void)close(holder);
    (void)close(reader);
}

static void test_a_writer_s_lock_is_told_when_life_cannot_be_shown(void)
{
    int writer = again(O_RDWR), driver = again(O_RDWR);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK_EQ(fcntl(writer, F_OFD_SETLK, &lock), 0);
    CHECK_EQ(shmd_life_show(driver), SHMD_E_SYSTEM);
    CHECK_TEXT("cannot set the read lock on the authority");
    (void)close(writer);
    CHECK_EQ(shmd_life_show(driver), SHMD_OK);
    (void)close(driver);
}

static void test_what_cannot_be_told_is_neither_yes_nor_no(void)
{
    CHECK_EQ(shmd_life_seen(-1), SHMD_E_SYSTEM);
    int only_path = again(O_PATH);
    CHECK_EQ(shmd_life_seen(only_path), SHMD_E_SYSTEM);
    CHECK_TEXT("cannot look for the lock");
    (void)close(only_path);
}

int main(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    (void)close(rig_segment("life", 4096, name));
    (void)snprintf(path, sizeof path, "/dev/shm%s", name);
    int fd = again(O_RDONLY);
    if (shmd_life_seen(fd) < 0)
        SKIP("NOT LOOKED AT: no locks of open file descriptions here");
    (void)close(fd);
    RUN(test_it_is_seen_by_every_other_description_until_the_last_descriptor_is_closed);
    RUN(test_closing_another_descriptor_of_the_file_does_not_end_it);
    RUN(test_it_ends_with_a_driver_that_is_killed);
    RUN(test_a_watcher_s_lock_bars_no_driver);
    RUN(test_a_flock_is_no_sign_of_life);
    RUN(test_a_writer_s_lock_is_told_when_life_cannot_be_shown);
    RUN(test_what_cannot_be_told_is_neither_yes_nor_no);
    return test_report();
}
