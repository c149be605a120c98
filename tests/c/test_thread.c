/* The library's threads: whatever the thread that starts them is pinned to, runs under, or has as thread-local variables.
 * fault: 64 (a caller that is pinned, under SCHED_BATCH and SCHED_FIFO, with 1 MiB of thread-local variables) */
#include "rig.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/wait.h>

enum { TLS_BYTES = 1 << 20, NOBODYS_CPU = SHMD_CPUS_MAX - 1 };

static _Thread_local volatile char large[TLS_BYTES]; /* a stack of 128 KiB has no room for it */

typedef struct seen {
    shmd_cpus_t cpus;
    int policy;
    int priority;
} seen_t;

static void look_at_self(seen_t *seen)
{
    struct sched_param param;
    memset(&seen->cpus, 0, sizeof seen->cpus);
    CHECK(sched_getaffinity(0, sizeof seen->cpus, (cpu_set_t *)(void *)&seen->cpus) == 0);
    CHECK_EQ(pthread_getschedparam(pthread_self(), &seen->policy, &param), 0);
    seen->priority = param.sched_priority;
}

static void *look(void *out)
{
    for (size_t i = 0; i < sizeof large; i += 4096)
        large[i] = 1;
    look_at_self(out);
    return NULL;
}

static void join(unsigned long thread) { test_join((pthread_t)thread); }

static void start_and_look(const shmd_threads_t *threads, seen_t *seen)
{
    unsigned long thread;
    CHECK_EQ(shmd_thread_start(threads, look, seen, "test", &thread), SHMD_OK);
    join(thread);
}

static int has(const shmd_cpus_t *cpus, uint32_t cpu) { return (int)(cpus->words[cpu / 64] >> cpu % 64 & 1); }

static int set_self(const shmd_cpus_t *cpus) { return sched_setaffinity(0, sizeof *cpus, (const cpu_set_t *)(const void *)cpus); }

/* What this process may use: the kernel takes the rest out of all. */
static shmd_cpus_t allowed(void)
{
    seen_t before, now;
    shmd_cpus_t all;
    memset(&all, 0xff, sizeof all);
    look_at_self(&before);
    CHECK_EQ(set_self(&all), 0);
    look_at_self(&now);
    CHECK_EQ(set_self(&before.cpus), 0);
    return now.cpus;
}

static uint32_t first_of(const shmd_cpus_t *cpus)
{
    uint32_t cpu = 0;
    while (!has(cpus, cpu))
        cpu++;
    return cpu;
}

static shmd_cpus_t only(uint32_t cpu)
{
    shmd_cpus_t cpus = {{0}};
    cpus.words[cpu / 64] = (uint64_t)1 << cpu % 64;
    return cpus;
}

static int may_be(int policy, int priority)
{
    int error = pthread_setschedparam(pthread_self(), policy, &(struct sched_param){.sched_priority = priority});
    if (error != 0)
        (void)fprintf(stderr, "  NOT LOOKED AT: this machine does not let us run under policy %d (%s)\n", policy, strerror(error));
    return error == 0;
}

static void be_ordinary(void) { CHECK_EQ(pthread_setschedparam(pthread_self(), SCHED_OTHER, &(struct sched_param){.sched_priority = 0}), 0); }

static void test_a_thread_has_room_for_the_thread_local_variables(void)
{
    seen_t seen;
    start_and_look(&(shmd_threads_t){.has_cpus = 0}, &seen);
}

static void test_a_thread_is_not_pinned_as_its_caller_is(void)
{
    seen_t seen;
    shmd_cpus_t may = allowed(), one = only(first_of(&may));
    CHECK_EQ(set_self(&one), 0);
    start_and_look(&(shmd_threads_t){.has_cpus = 0}, &seen);
    CHECK_EQ(set_self(&may), 0);
    CHECK(memcmp(&seen.cpus, &may, sizeof may) == 0);
}

static void run_under(int policy, int priority)
{
    seen_t seen;
    if (!may_be(policy, priority))
        return;
    start_and_look(&(shmd_threads_t){.has_cpus = 0}, &seen);
    be_ordinary();
    CHECK_EQ(seen.policy, SCHED_OTHER);
}

static void test_a_thread_does_not_run_under_its_callers_policy(void)
{
    run_under(SCHED_BATCH, 0);
    run_under(SCHED_FIFO, 1);
    run_under(SCHED_RR, 99);
}

/* Without privileges an idle thread may not become an ordinary one: then its threads are idle, too, but there they are. */
static void test_a_caller_that_may_change_nothing_gets_its_threads_all_the_same(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        seen_t seen = {.policy = -1};
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
            _exit(77);
        if (!may_be(SCHED_IDLE, 0))
            _exit(77);
        start_and_look(&(shmd_threads_t){.has_cpus = 0}, &seen);
        _exit(seen.policy == SCHED_IDLE || seen.policy == SCHED_OTHER ? 0 : 1);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77));
}

/* Nothing moves a thread away from an isolated CPU that it was started on. */
static void test_isolated_cpus_are_left_out_unless_there_are_no_others(void)
{
    char path[] = "/tmp/shmd-isolated-XXXXXX", list[64];
    const char *real = shmd_isolated_path;
    seen_t seen;
    shmd_cpus_t may = allowed();
    uint32_t first = first_of(&may);
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    int bytes = snprintf(list, sizeof list, "%u,%u-%d\n", first, NOBODYS_CPU - 1, NOBODYS_CPU);
    CHECK_EQ(write(fd, list, (size_t)bytes), bytes);
    shmd_isolated_path = path;
    start_and_look(&(shmd_threads_t){.has_cpus = 0}, &seen);
    shmd_cpus_t others = may;
    others.words[first / 64] &= ~((uint64_t)1 << first % 64);
    int has_others = memcmp(&others, &(shmd_cpus_t){{0}}, sizeof others) != 0;
    CHECK(memcmp(&seen.cpus, has_others ? &others : &may, sizeof may) == 0);
    bytes = snprintf(list, sizeof list, "0-%d\n", NOBODYS_CPU);
    CHECK_EQ(pwrite(fd, list, (size_t)bytes, 0), bytes);
    start_and_look(&(shmd_threads_t){.has_cpus = 0}, &seen);
    CHECK(memcmp(&seen.cpus, &may, sizeof may) == 0);
    shmd_isolated_path = "/nowhere";
    start_and_look(&(shmd_threads_t){.has_cpus = 0}, &seen);
    CHECK(memcmp(&seen.cpus, &may, sizeof may) == 0);
    shmd_isolated_path = real;
    (void)close(fd);
    (void)unlink(path);
}

/* ---- as asked */

static shmd_threads_t ask(const shmd_client_options *options)
{
    shmd_threads_t threads;
    memset(&threads, 0, sizeof threads);
    CHECK_EQ(shmd_threads_ask(&threads, options), SHMD_OK);
    return threads;
}

static void test_a_thread_runs_on_the_cpus_that_were_asked_for(void)
{
    seen_t seen;
    shmd_cpus_t may = allowed();
    uint32_t cpus[] = {first_of(&may), NOBODYS_CPU};
    shmd_threads_t threads = ask(&(shmd_client_options){.cpus = cpus, .cpu_count = 2});
    start_and_look(&threads, &seen);
    shmd_cpus_t one = only(cpus[0]);
    CHECK(memcmp(&seen.cpus, &one, sizeof one) == 0);
    CHECK_EQ(seen.policy, SCHED_OTHER);
}

static void test_cpus_that_nobody_has_are_an_error_that_says_so(void)
{
    unsigned long thread;
    uint32_t cpu = NOBODYS_CPU;
    shmd_threads_t threads = ask(&(shmd_client_options){.cpus = &cpu, .cpu_count = 1});
    CHECK_EQ(shmd_thread_start(&threads, look, NULL, "test", &thread), SHMD_E_SYSTEM);
    CHECK_TEXT("none of the CPUs that were asked for");
}

static void test_a_thread_runs_under_the_policy_that_was_asked_for(void)
{
    seen_t seen;
    shmd_threads_t threads = ask(&(shmd_client_options){.policy = SHMD_POLICY_RR, .priority = 2});
    if (!may_be(SCHED_RR, 2))
        return;
    be_ordinary();
    start_and_look(&threads, &seen);
    CHECK_EQ(seen.policy, SCHED_RR);
    CHECK_EQ(seen.priority, 2);
}

static void refuse(shmd_client_options options, const char *text)
{
    shmd_client *client;
    CHECK_EQ(shmd_client_connect("nobody", &options, &client), SHMD_E_INVALID);
    CHECK_TEXT(text);
}

static void test_options_that_mean_nothing_are_refused_in_words(void)
{
    uint32_t cpu = SHMD_CPUS_MAX;
    refuse((shmd_client_options){.policy = 3}, "policy 3");
    refuse((shmd_client_options){.policy = SHMD_POLICY_FIFO}, "priority 0");
    refuse((shmd_client_options){.policy = SHMD_POLICY_RR, .priority = 100}, "priority 100");
    refuse((shmd_client_options){.priority = 1}, "priority 1");
    refuse((shmd_client_options){.cpus = &cpu, .cpu_count = 1}, "CPU 8192");
    refuse((shmd_client_options){.cpus = &cpu}, "empty list of CPUs");
    refuse((shmd_client_options){.flags = 4}, "flags 4");
}

static void test_a_thread_that_settles_is_not_pinned_any_more(void)
{
    seen_t seen;
    shmd_cpus_t may = allowed(), one = only(first_of(&may));
    CHECK_EQ(set_self(&one), 0);
    (void)may_be(SCHED_BATCH, 0);
    shmd_thread_settle();
    look_at_self(&seen);
    CHECK(memcmp(&seen.cpus, &may, sizeof may) == 0);
    CHECK_EQ(seen.policy, SCHED_OTHER);
}

int main(void)
{
    RUN(test_a_thread_has_room_for_the_thread_local_variables);
    RUN(test_a_thread_is_not_pinned_as_its_caller_is);
    RUN(test_a_thread_does_not_run_under_its_callers_policy);
    RUN(test_a_caller_that_may_change_nothing_gets_its_threads_all_the_same);
    RUN(test_isolated_cpus_are_left_out_unless_there_are_no_others);
    RUN(test_a_thread_runs_on_the_cpus_that_were_asked_for);
    RUN(test_cpus_that_nobody_has_are_an_error_that_says_so);
    RUN(test_a_thread_runs_under_the_policy_that_was_asked_for);
    RUN(test_options_that_mean_nothing_are_refused_in_words);
    RUN(test_a_thread_that_settles_is_not_pinned_any_more);
    return test_report();
}
