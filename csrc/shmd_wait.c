/* shmd_wait.c: futexes. A word is compared by the kernel, so a read-only mapping of it can be slept on. */
#include "shmd_internal.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int shmd_futex_wait(const uint32_t *word, uint32_t seen, uint64_t timeout_ns)
{
    SHMD_ENTERS_WAIT();
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u), .tv_nsec = (long)(timeout_ns % 1000000000u)};
    long rc = syscall(SYS_futex, word, FUTEX_WAIT, seen, timeout_ns == UINT64_MAX ? NULL : &timeout, NULL, 0);
    if (rc == 0 || errno == EAGAIN)
        return SHMD_OK;
    if (errno == ETIMEDOUT)
        return SHMD_E_TIMEOUT;
    if (errno == EINTR)
        return SHMD_E_INTERRUPTED;
    return shmd_fail_errno(SHMD_CALL_OTHER, "futex wait");
}

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

/* As the kernel's struct futex_waitv, which older headers lack. */
typedef struct waitv {
    uint64_t value;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
} waitv_t;

uint32_t shmd_waitv_missing;

int shmd_futex_wait_any(const shmd_word_t *words, uint32_t n, uint64_t timeout_ns, uint64_t look_ns)
{
    enum { SIZE_U32 = 2 };
    waitv_t list[SHMD_WORDS_MAX];
    SHMD_ENTERS_WAIT();
    if (n == 0 || shmd_load32_relaxed(&shmd_waitv_missing))
        return shmd_futex_wait(n == 0 ? &shmd_waitv_missing : words[0].word,
                               n == 0 ? shmd_waitv_missing : words[0].seen,
                               shmd_min(timeout_ns, look_ns));
    for (uint32_t i = 0; i < n; i++)
        list[i] = (waitv_t){.value = words[i].seen, .address = (uint64_t)(uintptr_t)words[i].word, .flags = SIZE_U32};
    uint64_t until_ns = shmd_deadline(timeout_ns);
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};
    long rc = syscall(SYS_futex_waitv, list, n, 0, until_ns == UINT64_MAX ? NULL : &until, CLOCK_MONOTONIC);
    if (rc >= 0 || errno == EAGAIN)
        return SHMD_OK;
    if (errno == ETIMEDOUT)
        return SHMD_E_TIMEOUT;
    if (errno == EINTR)
        return SHMD_E_INTERRUPTED;
    if (errno == ENOSYS || errno == EPERM) /* a kernel before 5.16, or a sandbox that does not know the call */
        shmd_store32_relaxed(&shmd_waitv_missing, 1);
    return SHMD_OK; /* also EFAULT: a word's memory went meanwhile; whoever unmapped it has told the caller otherwise */
}

void shmd_futex_wake(const uint32_t *word) { (void)syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }

void shmd_futex_change(uint32_t *word)
{
    shmd_add32(word, 1);
    shmd_futex_wake(word);
}
