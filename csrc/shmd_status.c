/* shmd_status.c: codes, their texts, and this thread's last failure. */
#include "shmd_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#ifdef SHMD_TSAN
uint32_t shmd_tsan_fence_word;
#endif

#define SHMD_VERSION "0.1.0"

static _Thread_local char last_error[SHMD_TEXT_BYTES + 256];
static _Thread_local uint32_t last_reason;
static _Thread_local uint32_t last_code;

int shmd_fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return code;
}

int shmd_fail_errno(const char *format, ...)
{
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    if (used >= 0 && (size_t)used < sizeof last_error)
        (void)snprintf(last_error + used, sizeof last_error - (size_t)used, ": %s", strerror(error));
    errno = error;
    return SHMD_E_SYSTEM;
}

void shmd_fail_answer(uint32_t code, uint32_t reason)
{
    last_code = code;
    last_reason = reason;
}

const char *shmd_last_error(void) { return last_error; }
uint32_t shmd_last_reason(void) { return last_reason; }
uint32_t shmd_last_code(void) { return last_code; }
const char *shmd_version(void) { return SHMD_VERSION; }

const char *shmd_strerror(int code)
{
    static const char *const texts[] = {
        "ok",
        "back-pressured: no room now",
        "timed out",
        "invalid argument",
        "message too large for the stream",
        "lease revoked",
        "end of stream",
        "producer lost",
        "driver unavailable",
        "rejected by the driver",
        "segment layout mismatch",
        "handle used by two threads at once",
        "handle used after fork",
        "system call failed",
        "handle closed",
        "interrupted by a signal",
        "corrupt",
        "out of memory",
        "the consumer's own views fill the ring",
        "claim already open, or none open",
        "overrun by the producer",
    };
    size_t index = code <= 0 ? (size_t)(-(int64_t)code) : 0;
    return index < sizeof texts / sizeof texts[0] ? texts[index] : "unknown code";
}

uint64_t shmd_now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t shmd_deadline(uint64_t timeout_ns)
{
    uint64_t now = shmd_now_ns();
    return timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
}

/* A word-wise multiply-and-fold mix (the folded 64x64 product that wyhash made popular). It finds damage and
 * mistakes; it is no defence against somebody who means harm. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 product_t;
    product_t product = (product_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t shmd_hash(const void *data, uint64_t bytes, uint64_t seed)
{
    const unsigned char *from = data;
    uint64_t hash = fold(seed ^ 0x9e3779b97f4a7c15u, bytes ^ 0xbf58476d1ce4e5b9u);
    uint64_t word;
    for (uint64_t left = bytes; left != 0; left -= shmd_min(left, 8), from += 8) {
        word = 0;
        memcpy(&word, from, left < 8 ? (size_t)left : 8);
        hash = fold(hash ^ word, 0x94d049bb133111ebu ^ left);
    }
    return hash;
}
