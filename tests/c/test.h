/* test.h: the whole test framework. A test is a function without arguments; main runs them by RUN and ends with
 * `return test_report();`. A failed CHECK prints what it saw and ends the process: what follows would only repeat it. */
#ifndef SHMD_TEST_H
#define SHMD_TEST_H

#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shmd_internal.h"

static unsigned test_count;

#define TEST_FAIL(...)                                                                                                       \
    do {                                                                                                                     \
        (void)fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                \
        (void)fprintf(stderr, __VA_ARGS__);                                                                                  \
        (void)fprintf(stderr, " (last error: %s)\n", shmd_last_error());                                                     \
        exit(1);                                                                                                             \
    } while (0)

#define CHECK(condition)                                                                                                     \
    do {                                                                                                                     \
        if (!(condition))                                                                                                    \
            TEST_FAIL("%s does not hold", #condition);                                                                       \
    } while (0)

/* Any two integers; both are shown. */
#define CHECK_EQ(found, expected)                                                                                            \
    do {                                                                                                                     \
        int64_t test_found = (int64_t)(found);                                                                               \
        int64_t test_expected = (int64_t)(expected);                                                                         \
        if (test_found != test_expected)                                                                                     \
            TEST_FAIL("%s is %" PRId64 ", expected %s = %" PRId64, #found, test_found, #expected, test_expected);            \
    } while (0)

#define CHECK_TEXT(needle)                                                                                                   \
    do {                                                                                                                     \
        if (strstr(shmd_last_error(), needle) == NULL)                                                                       \
            TEST_FAIL("the error does not mention \"%s\"", needle);                                                          \
    } while (0)

#define SKIP(reason)                                                                                                         \
    do {                                                                                                                     \
        (void)printf("%s\n", reason);                                                                                        \
        exit(77);                                                                                                            \
    } while (0)

#define RUN(test)                                                                                                            \
    do {                                                                                                                     \
        (void)fprintf(stderr, "%s\n", #test);                                                                                \
        test();                                                                                                              \
        test_count++;                                                                                                        \
    } while (0)

static inline int test_report(void)
{
    (void)printf("%u tests\n", test_count);
    return 0;
}

/* How often to repeat: n in a plain run, a tenth where a sanitizer slows everything, 20 times that with STRESS=1. */
static inline uint64_t test_scale(uint64_t n)
{
    const char *stress = getenv("STRESS");
#ifdef SHMD_TEST
    n = n / 10 + 1;
#endif
    return stress != NULL && *stress != 0 ? n * 20 : n;
}

static inline pthread_t test_thread(void *(*function)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, function, argument) != 0)
        TEST_FAIL("cannot start a thread");
    return thread;
}

static inline void test_join(pthread_t thread)
{
    if (pthread_join(thread, NULL) != 0)
        TEST_FAIL("cannot join a thread");
}

/* xorshift64*: tests that draw numbers print their seed by being deterministic. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1du;
}

static inline void *test_memory(uint64_t bytes)
{
    void *memory = aligned_alloc(4096, (size_t)shmd_round_up(bytes, 4096));
    if (memory == NULL)
        TEST_FAIL("no memory for %llu bytes", (unsigned long long)bytes);
    memset(memory, 0, (size_t)shmd_round_up(bytes, 4096));
    return memory;
}

#endif
