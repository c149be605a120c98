/* shmd_thread.c: starts the library's own threads, the heartbeat and the notifier; settles threads that Python has started.
 *
 * A thread inherits the policy, the CPUs and the blocked signals of the thread that starts it, and its stack holds the
 * program's thread-local variables. The calling thread may be pinned to one CPU and spin there under SCHED_FIFO for ever;
 * then a heartbeat beside it would never run. So a thread of the library runs under SCHED_OTHER on all CPUs that the process may use,
 * or as the client's options say, and its stack has room for the thread-local variables. All of that is set while the thread
 * is made: one that had to set it by itself might never come to that. */
#include "shmd_internal.h"

#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

enum { STACK_BYTES = 128 << 10 }; /* what our threads need, without thread-local variables */

/* ---- CPUs ----------------------------------------------------------------------------------- */

const char *shmd_isolated_path = "/sys/devices/system/cpu/isolated";

/* Takes the CPUs of a list such as "2-3,6" out. */
static void take_out(shmd_cpus_t *cpus, char *list)
{
    for (char *at = list; *at >= '0' && *at <= '9'; at += *at == ',') {
        uint64_t first = strtoul(at, &at, 10);
        uint64_t last = *at == '-' ? strtoul(at + 1, &at, 10) : first;
        for (; first <= last && first < SHMD_CPUS_MAX; first++)
            cpus->words[first / 64] &= ~((uint64_t)1 << first % 64);
    }
}

/* All CPUs; the kernel keeps those of them that the process may use. Isolated CPUs are left out: nothing moves a thread away from
 * the one that it was started on, and whoever isolates a CPU spins there. A list that cannot be read takes out nothing. */
static void all_cpus(shmd_cpus_t *cpus, int isolated_too)
{
    char list[4096];
    memset(cpus, 0xff, sizeof *cpus);
    int fd = isolated_too ? -1 : open(shmd_isolated_path, O_RDONLY | O_CLOEXEC);
    ssize_t bytes = fd < 0 ? 0 : read(fd, list, sizeof list - 1);
    if (fd >= 0)
        (void)close(fd);
    list[bytes > 0 ? bytes : 0] = 0;
    take_out(cpus, list);
}

/* ---- what the client's options ask for ------------------------------------------------------- */

static int is_asked(const shmd_threads_t *threads) { return threads->has_cpus || threads->policy != SHMD_POLICY_OTHER; }

int shmd_threads_ask(shmd_threads_t *threads, const shmd_client_options *options)
{
    int is_realtime = options->policy == SHMD_POLICY_FIFO || options->policy == SHMD_POLICY_RR;
    if (options->policy > SHMD_POLICY_RR)
        return shmd_fail(SHMD_E_INVALID, "policy %u of the client's threads: expected SHMD_POLICY_OTHER, _FIFO or _RR (0 to %d)", options->policy, SHMD_POLICY_RR);
    if (is_realtime ? options->priority < 1 || options->priority > 99 : options->priority != 0)
        return shmd_fail(SHMD_E_INVALID, "priority %u of the client's threads: expected 1 to 99 with SHMD_POLICY_FIFO and _RR, 0 with SHMD_POLICY_OTHER", options->priority);
    if (options->cpus != NULL && options->cpu_count == 0)
        return shmd_fail(SHMD_E_INVALID, "an empty list of CPUs for the client's threads: expected one or more, or NULL for all");
    for (uint32_t i = 0; options->cpus != NULL && i < options->cpu_count; i++) {
        if (options->cpus[i] >= SHMD_CPUS_MAX)
            return shmd_fail(SHMD_E_INVALID, "CPU %u for the client's threads: expected 0 to %d", options->cpus[i], SHMD_CPUS_MAX - 1);
        threads->cpus.words[options->cpus[i] / 64] |= (uint64_t)1 << options->cpus[i] % 64;
    }
    threads->policy = options->policy;
    threads->priority = options->priority;
    threads->has_cpus = options->cpus != NULL;
    return SHMD_OK;
}

/* ---- starting ------------------------------------------------------------------------------- */

static int add_tls(struct dl_phdr_info *info, size_t size, void *sum)
{
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS)
            *(size_t *)sum += info->dlpi_phdr[i].p_memsz + info->dlpi_phdr[i].p_align;
    return 0;
}

/* Of every object that is loaded. More than the stack holds: what was loaded later is kept elsewhere. */
static size_t tls_bytes(void)
{
    size_t sum = 0;
    (void)dl_iterate_phdr(add_tls, &sum);
    return sum;
}

typedef struct wish {
    const shmd_cpus_t *cpus;    /* NULL: the caller's CPUs and policy */
    int policy;
    int priority;
    size_t stack_bytes;         /* 0: the default */
} wish_t;

static int create(const wish_t *wish, void *(*function)(void *), void *argument, pthread_t *thread)
{
    struct sched_param param = {.sched_priority = wish->priority};
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    if (wish->stack_bytes != 0)
        error = pthread_attr_setstacksize(&attributes, wish->stack_bytes);
    if (error == 0 && wish->cpus != NULL)
        error = pthread_attr_setaffinity_np(&attributes, sizeof *wish->cpus, (const cpu_set_t *)(const void *)wish->cpus);
    if (error == 0 && wish->cpus != NULL)
        error = pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
    if (error == 0 && wish->cpus != NULL)
        error = pthread_attr_setschedpolicy(&attributes, wish->policy);
    if (error == 0 && wish->cpus != NULL)
        error = pthread_attr_setschedparam(&attributes, &param);
    error = error ? error : pthread_create(thread, &attributes, function, argument);
    (void)pthread_attr_destroy(&attributes);
    return error;
}

/* The default stack is the last resort: a C library may count the thread-local variables in another way. */
static int create_with_a_stack(wish_t *wish, void *(*function)(void *), void *argument, pthread_t *thread)
{
    wish->stack_bytes = (size_t)shmd_round_up(STACK_BYTES + tls_bytes(), shmd_page_bytes());
    int error = create(wish, function, argument, thread);
    wish->stack_bytes = 0;
    return error == EINVAL ? create(wish, function, argument, thread) : error;
}

static int create_thread(const shmd_threads_t *threads, void *(*function)(void *), void *argument, pthread_t *thread)
{
    static const int policies[] = {[SHMD_POLICY_OTHER] = SCHED_OTHER, [SHMD_POLICY_FIFO] = SCHED_FIFO, [SHMD_POLICY_RR] = SCHED_RR};
    shmd_cpus_t cpus = threads->cpus;
    wish_t wish = {.cpus = &cpus, .policy = policies[threads->policy], .priority = (int)threads->priority};
    if (!threads->has_cpus)
        all_cpus(&cpus, 0);
    int error = create_with_a_stack(&wish, function, argument, thread);
    if (error == EINVAL && !threads->has_cpus) { /* all CPUs of this process are isolated */
        all_cpus(&cpus, 1);
        error = create_with_a_stack(&wish, function, argument, thread);
    }
    if (error != 0 && error != EAGAIN && !is_asked(threads)) { /* a sandbox forbids it, or the caller may not leave its SCHED_IDLE */
        wish.cpus = NULL;
        error = create_with_a_stack(&wish, function, argument, thread);
    }
    return error;
}

static int refused(const shmd_threads_t *threads, const char *what, int error)
{
    uint32_t call = is_asked(threads) ? SHMD_CALL_THREAD_ASKED : SHMD_CALL_THREAD;
    if (sched_getscheduler(0) == SCHED_DEADLINE)
        call |= SHMD_CALL_THREAD_DEADLINE;
    errno = error;
    return shmd_fail_errno(call, "starting the %s thread", what);
}

int shmd_thread_start(const shmd_threads_t *threads, void *(*function)(void *), void *argument, const char *what, unsigned long *out)
{
    sigset_t all, before;
    pthread_t thread;
    (void)sigfillset(&all);
    (void)sigdelset(&all, SIGBUS); /* what a fault raises must reach its handler (core/shmd_bus_error.c): blocked, it ends the process */
    (void)sigdelset(&all, SIGSEGV);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = create_thread(threads, function, argument, &thread);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return refused(threads, what, error);
    *out = (unsigned long)thread;
    return SHMD_OK;
}

/* The calling thread, which Python has started, gets SCHED_OTHER and all CPUs, as far as the kernel lets it. A failure is ignored:
 * the thread runs with what it inherited, which is right unless the thread that started it spins. */
void shmd_thread_settle(void)
{
    shmd_cpus_t cpus;
    (void)pthread_setschedparam(pthread_self(), SCHED_OTHER, &(struct sched_param){.sched_priority = 0});
    for (int isolated_too = 0; isolated_too <= 1; isolated_too++) {
        all_cpus(&cpus, isolated_too);
        if (sched_setaffinity(0, sizeof cpus, (const cpu_set_t *)(const void *)&cpus) == 0)
            return;
    }
}
