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

/* The bytes of a character that begins at p, of at most left bytes; 0: it is not UTF-8. Writes its code point. */
static size_t character(const unsigned char *p, size_t left, uint32_t *point)
{
    size_t more = p[0] < 0x80 ? 0 : p[0] >= 0xc2 && p[0] < 0xe0 ? 1 : p[0] >= 0xe0 && p[0] < 0xf0 ? 2 : p[0] >= 0xf0 && p[0] < 0xf5 ? 3 : left;
    if (more >= left)
        return 0;
    *point = more == 0 ? p[0] : p[0] & (0x3fu >> more);
    for (size_t i = 1; i <= more; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        *point = *point << 6 | (p[i] & 0x3fu);
    }
    return more + 1;
}

/* Whether it could drive a terminal, turn a line around, hide in it or forge one. */
static int is_control(uint32_t point)
{
    return point < 0x20 || (point >= 0x7f && point < 0xa0) || point == 0xad || point == 0x061c || (point >= 0x200b && point <= 0x200f) ||
           (point >= 0x2028 && point <= 0x202e) || (point >= 0x2060 && point <= 0x206f) || point == 0xfeff || (point >= 0xe0000 && point <= 0xe007f);
}

void shmd_escape(char *out, size_t out_bytes, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t left = strlen(text), used = 0;
    while (left != 0) {
        char piece[12];
        uint32_t point;
        size_t taken = character(p, left, &point), length = taken;
        if (taken == 0)
            point = p[0];
        if (taken == 0 || is_control(point))
            length = (size_t)snprintf(piece, sizeof piece, taken == 0 || point < 0x100 ? "\\x%02x" : point < 0x10000 ? "\\u%04x" : "\\U%08x", point);
        else
            memcpy(piece, p, taken);
        if (used + length >= out_bytes)
            break; /* never half a character */
        memcpy(out + used, piece, length);
        used += length;
        taken = taken == 0 ? 1 : taken;
        p += taken;
        left -= taken;
    }
    out[used] = '\0';
}

/* Names, reasons and answers in a text are of other processes. */
static void escape_last_error(void)
{
    char text[sizeof last_error];
    const unsigned char *p = (const unsigned char *)last_error;
    while (*p >= 0x20 && *p < 0x7f)
        p++;
    if (*p == 0)
        return;
    memcpy(text, last_error, sizeof text);
    shmd_escape(last_error, sizeof last_error, text);
}

int shmd_fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    escape_last_error();
    return code;
}

const char *shmd_errno_text(uint32_t call, int error)
{
    static _Thread_local char text[SHMD_TEXT_BYTES];
    const char *hint = shmd_errno_hint(call, error);
    (void)snprintf(text, sizeof text, "%s%s%s", strerror(error), *hint == 0 ? "" : ": ", hint);
    return text;
}

int shmd_fail_errno(uint32_t call, const char *format, ...)
{
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    if (used >= 0 && (size_t)used < sizeof last_error)
        (void)snprintf(last_error + used, sizeof last_error - (size_t)used, ": %s", shmd_errno_text(call, error));
    escape_last_error();
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

const char *shmd_reason_text(uint32_t reason)
{
    static const char *const texts[] = {
        [SHMD_REASON_NONE] = "no reason given",
        [SHMD_REASON_DRAINING] = "the driver is draining",
        [SHMD_REASON_MAINTENANCE] = "the driver is in maintenance",
        [SHMD_REASON_STOPPED] = "the driver has stopped",
        [SHMD_REASON_LIMIT] = "a configured limit is reached",
        [SHMD_REASON_PRODUCER_EXISTS] = "the stream already has a producer",
        [SHMD_REASON_UNKNOWN_STREAM] = "there is no such stream",
        [SHMD_REASON_SCHEMA] = "the schemas differ",
        [SHMD_REASON_LAYOUT] = "the layout versions differ",
        [SHMD_REASON_NO_MEMORY] = "not enough shared memory",
        [SHMD_REASON_BAD_NAME] = "the name is not allowed",
        [SHMD_REASON_UNDRAINED] = "earlier epochs are not drained yet",
        [SHMD_REASON_NOT_OWNER] = "somebody else owns it",
        [SHMD_REASON_UNKNOWN_CLIENT] = "the driver does not know this client",
        [SHMD_REASON_REFUSED_RELIABLE] = "the stream admits no reliable consumers",
        [SHMD_REASON_TOKEN] = "the shutdown token is missing or wrong",
        [SHMD_REASON_RATE] = "too many requests",
        [SHMD_REASON_SIZE] = "a size is out of its range",
        [SHMD_REASON_DRIVER_DIED] = "a driver died while this request was in work",
        [SHMD_REASON_CLOSED] = "closed",
        [SHMD_REASON_ABORTED] = "left without a clean close",
        [SHMD_REASON_DIED] = "its process died",
        [SHMD_REASON_EXPIRED] = "its lease expired",
        [SHMD_REASON_EVICTED] = "evicted as too slow",
        [SHMD_REASON_REVOKED] = "revoked by an administrator",
        [SHMD_REASON_BAD_GATE] = "its gate position was impossible",
        [SHMD_REASON_UNCONFIRMED] = "the attach was never confirmed",
        [SHMD_REASON_SHUTDOWN] = "the driver shut down",
        [SHMD_REASON_DELIVERED] = "everything was delivered",
        [SHMD_REASON_SUPERSEDED] = "superseded by a newer driver or producer",
        [SHMD_REASON_TRUNCATED] = "another process truncated one of its segments",
        [SHMD_REASON_EXPELLED] = "its client was expelled, because what it wrote to the driver could not be read",
    };
    static _Thread_local char unknown[32];
    if (reason < sizeof texts / sizeof texts[0] && texts[reason] != NULL)
        return texts[reason];
    (void)snprintf(unknown, sizeof unknown, "reason %u", reason); /* of a newer driver */
    return unknown;
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
