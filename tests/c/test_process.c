/* test_process.c: the one look at a process. fault: 44 (zombie leader, no descriptors, other namespaces, other start times) */
#include "test.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t evidence;

static shmd_process_t self(void)
{
    shmd_process_t process;
    shmd_process_self(&process);
    CHECK(process.start_time != 0 && process.pid_namespace != 0 && process.time_namespace != 0);
    return process;
}

static void look_is(const shmd_process_t *process, int verdict, uint32_t why)
{
    CHECK_EQ(shmd_process_look(process, NULL, &evidence), verdict);
    CHECK_EQ(evidence, why);
    CHECK(shmd_evidence_text(evidence)[0] != 0);
}

static void test_a_start_time_counts_only_where_it_was_read(void)
{
    shmd_process_t process = self();
    look_is(&process, SHMD_PROCESS_ALIVE, SHMD_EVIDENCE_START_TIME);
    process.start_time++;
    look_is(&process, SHMD_PROCESS_DEAD, SHMD_EVIDENCE_OTHER_START);
    process.time_namespace++;
    look_is(&process, SHMD_PROCESS_UNKNOWN, SHMD_EVIDENCE_TIME_NAMESPACE);
    process.time_namespace = 0;
    look_is(&process, SHMD_PROCESS_UNKNOWN, SHMD_EVIDENCE_NAMESPACES);
    process = self();
    process.start_time = 0;
    look_is(&process, SHMD_PROCESS_UNKNOWN, SHMD_EVIDENCE_NO_START_TIME);
    process.pid_namespace++;
    look_is(&process, SHMD_PROCESS_UNKNOWN, SHMD_EVIDENCE_PID_NAMESPACE);
    process.pid_namespace = 0;
    look_is(&process, SHMD_PROCESS_UNKNOWN, SHMD_EVIDENCE_NAMESPACES);
    process = self();
    process.pid = -1;
    look_is(&process, SHMD_PROCESS_DEAD, SHMD_EVIDENCE_NO_PROCESS);
}

/* A child's own description, then whatever ends it. */
static pid_t child_of(int pipes[2], shmd_process_t *process, void (*then)(void))
{
    CHECK_EQ(pipe(pipes), 0);
    pid_t child = fork();
    if (child == 0) {
        shmd_process_self(process);
        (void)!write(pipes[1], process, sizeof *process);
        then();
        (void)pause();
        _exit(0);
    }
    CHECK_EQ(read(pipes[0], process, sizeof *process), (ssize_t)sizeof *process);
    return child;
}

static void nothing(void) {}

static void test_a_pidfd_is_the_callers_and_fires_at_the_end(void)
{
    shmd_process_t process;
    int pipes[2], pidfd = -1, status;
    pid_t child = child_of(pipes, &process, nothing);
    CHECK_EQ(shmd_process_look(&process, &pidfd, &evidence), SHMD_PROCESS_ALIVE);
    struct pollfd one = {.fd = pidfd, .events = POLLIN};
    CHECK(pidfd >= 0);
    CHECK_EQ(poll(&one, 1, 0), 0);
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK_EQ(poll(&one, 1, 60000), 1);
    look_is(&process, SHMD_PROCESS_DEAD, SHMD_EVIDENCE_PIDFD); /* a zombie, and no thread of it lives */
    CHECK_EQ(waitpid(child, &status, 0), child);
    look_is(&process, SHMD_PROCESS_DEAD, SHMD_EVIDENCE_NO_PROCESS);
    (void)close(pidfd);
}

static void *stay(void *unused)
{
    (void)pause();
    return unused;
}

static void leave_by_pthread_exit(void)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, stay, NULL), 0);
    pthread_exit(NULL);
}

static char state_of(pid_t pid)
{
    char path[64], text[512];
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY);
    ssize_t got = read(fd, text, sizeof text - 1);
    (void)close(fd);
    CHECK(got > 0);
    text[got] = 0;
    return strrchr(text, ')')[2];
}

static void test_a_zombie_with_a_living_thread_lives(void)
{
    shmd_process_t process;
    int pipes[2], status;
    pid_t child = child_of(pipes, &process, leave_by_pthread_exit);
    while (state_of(child) != 'Z')
        (void)sched_yield();
    look_is(&process, SHMD_PROCESS_ALIVE, SHMD_EVIDENCE_START_TIME);
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    look_is(&process, SHMD_PROCESS_DEAD, SHMD_EVIDENCE_NO_PROCESS);
}

static void test_without_descriptors_only_a_missing_process_is_dead(void)
{
    shmd_process_t process = self(), gone;
    struct rlimit before, none;
    int pipes[2], status;
    pid_t child = child_of(pipes, &gone, nothing);
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    look_is(&process, SHMD_PROCESS_UNKNOWN, SHMD_EVIDENCE_NO_DESCRIPTOR);
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    look_is(&gone, SHMD_PROCESS_DEAD, SHMD_EVIDENCE_NO_PROCESS);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    look_is(&process, SHMD_PROCESS_ALIVE, SHMD_EVIDENCE_START_TIME);
}

static void test_names_that_an_embedded_driver_makes_are_told_from_others(void)
{
    CHECK(shmd_instance_is_embedded("embedded-4711-00ff12ab"));
    CHECK(!shmd_instance_is_embedded("embedded-4711-") && !shmd_instance_is_embedded("embedded-x-00") && !shmd_instance_is_embedded("embedded-1-0g"));
    CHECK(!shmd_instance_is_embedded("embedded") && !shmd_instance_is_embedded("default") && !shmd_instance_is_embedded(""));
}

int main(void)
{
#ifdef SHMD_EMULATED
    SKIP("an emulator shows a process another start time of itself than others see, by a tick or more");
#endif
    RUN(test_a_start_time_counts_only_where_it_was_read);
    RUN(test_a_pidfd_is_the_callers_and_fires_at_the_end);
    RUN(test_a_zombie_with_a_living_thread_lives);
    RUN(test_without_descriptors_only_a_missing_process_is_dead);
    RUN(test_names_that_an_embedded_driver_makes_are_told_from_others);
    return test_report();
}
