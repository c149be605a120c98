/* shmd_wait.c: futexes. A word is compared by the kernel, so a read-only mapping of it can be slept on. */
#include "shmd_internal.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int shmd_futex_wait(const uint32_t *word, uint32_t seen, uint64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u), .tv_nsec = (long)(timeout_ns % 1000000000u)};
    long rc = syscall(SYS_futex, word, FUTEX_WAIT, seen, timeout_ns == UINT64_MAX ? NULL : &timeout, NULL, 0);
    if (rc == 0 || errno == EAGAIN)
        return SHMD_OK;
    if (errno == ETIMEDOUT)
        return SHMD_E_TIMEOUT;
    if (errno == EINTR)
        return SHMD_E_INTERRUPTED;
    return shmd_fail_errno("futex wait");
}

void shmd_futex_wake(const uint32_t *word) { (void)syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }
