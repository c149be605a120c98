/* shmd_failpoint.c: see the header. Empty in every build but that of the tests which kill. */
#include "shmd_internal.h"

#ifdef SHMD_FAILPOINTS

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char armed[64]; /* "": none */
static uint32_t passes_left;
static int with_signal;

static void read_environment(void)
{
    const char *spec = getenv("SHMDRIVER_FAILPOINT");
    const char *count = spec == NULL ? NULL : strchr(spec, ':');
    const char *how = count == NULL ? NULL : strchr(count + 1, ':');
    if (how == NULL || (size_t)(count - spec) >= sizeof armed)
        return;
    passes_left = (uint32_t)strtoul(count + 1, NULL, 10);
    with_signal = strcmp(how + 1, "stop") == 0 ? SIGSTOP : SIGKILL;
    memcpy(armed, spec, (size_t)(count - spec));
}

void shmd_failpoint(const char *name)
{
    (void)pthread_once(&once, read_environment);
    if (armed[0] != name[0] || strcmp(armed, name) != 0 || shmd_sub32(&passes_left, 1) != 1)
        return;
    /* To this thread: it must not go on while another one takes the signal. */
    (void)syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), with_signal);
}

static _Thread_local uint64_t waits_entered;

void shmd_enters_wait(void) { waits_entered++; }
uint64_t shmd_waits_entered(void) { return waits_entered; }

#endif
