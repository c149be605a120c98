/* shmd_failpoint.h: named places where a test build (native.mk, PROFILE=failpoints) kills or stops its own process.
 * In every other build a failpoint is nothing.
 *
 * SHMDRIVER_FAILPOINT=name:n:kill|stop in the environment, looked at once: the n-th pass (from 1) of that place sends
 * the calling thread SIGKILL or SIGSTOP. A failpoint stands between two stores that somebody else can tell apart. */
#ifndef SHMD_FAILPOINT_H
#define SHMD_FAILPOINT_H

#include <stdint.h>

#ifdef SHMD_FAILPOINTS
#ifdef __cplusplus
extern "C" {
#endif
void shmd_failpoint(const char *name);
void shmd_enters_wait(void);
uint64_t shmd_waits_entered(void); /* by this thread: sleeps, joins, spins for another thread. A finaliser adds none */
#ifdef __cplusplus
}
#endif
#define SHMD_FAILPOINT(name) shmd_failpoint(name)
#define SHMD_ENTERS_WAIT() shmd_enters_wait()
#else
#define SHMD_FAILPOINT(name) ((void)0)
#define SHMD_ENTERS_WAIT() ((void)0)
#endif

#endif
