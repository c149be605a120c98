/* shmd_failpoint.h: named places where a test build (native.mk, PROFILE=failpoints) kills or stops its own process.
 * In every other build a failpoint is nothing.
 *
 * SHMDRIVER_FAILPOINT=name:n:kill|stop in the environment, looked at once: the n-th pass (from 1) of that place sends
 * the calling thread SIGKILL or SIGSTOP. A failpoint stands between two stores that somebody else can tell apart. */
#ifndef SHMD_FAILPOINT_H
#define SHMD_FAILPOINT_H

#ifdef SHMD_FAILPOINTS
#ifdef __cplusplus
extern "C" {
#endif
void shmd_failpoint(const char *name);
#ifdef __cplusplus
}
#endif
#define SHMD_FAILPOINT(name) shmd_failpoint(name)
#else
#define SHMD_FAILPOINT(name) ((void)0)
#endif

#endif
