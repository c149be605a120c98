/* bench.h: what the native benchmarks share: arguments, cores, clock, attaching, latencies to a file, one JSON line a run.
 *
 * Arguments are NAME=VALUE, in any order; each has a default. An unknown name is an error. */
#ifndef BENCH_H
#define BENCH_H

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shmdriver.h"

enum { BENCH_CONSUMERS_MAX = 64, BENCH_STREAMS_MAX = 256, BENCH_BATCH_MAX = 1024, BENCH_ATTACH_NS = 1000000000, BENCH_ALARM_S = 60 };

typedef struct bench_arguments {
    const char *instance;
    const char *mode;       /* single, batch, claim or copy */
    const char *samples;    /* file that takes the latencies, u64 nanoseconds each */
    uint64_t bytes;         /* payload */
    uint64_t batch;         /* messages a call in mode batch */
    uint64_t slots;         /* of the ring; 0: by the payload */
    uint64_t consumers;     /* that read, in turn, in one process */
    uint64_t stalled;       /* lossy consumers that are attached and never read */
    uint64_t streams;       /* one producer each, published to in turn */
    uint64_t messages;      /* count.c: how many */
    uint64_t rate;          /* messages a second; 0: flat out (paced: silence) */
    uint64_t warm_ms;
    uint64_t run_ms;
    uint64_t delivery;
    uint64_t wait;
    uint64_t kill;          /* stream.c: a process (the driver) that gets SIGKILL when the warm-up is over; 0: none */
    uint64_t first_core;    /* of the producer */
    uint64_t second_core;   /* of the consumers */
} bench_arguments_t;

static inline void bench_fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmd_last_error());
    exit(2);
}

static inline uint64_t bench_choice(const char *value, const char *const *names, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (strcmp(value, names[i]) == 0)
            return i + 1;
    fprintf(stderr, "%s: not one of the known words\n", value);
    exit(2);
}

static uint64_t bench_realtime; /* priority of SCHED_FIFO for what is pinned; 0: as everybody else */

static inline void bench_number(const char *name, const char *value, bench_arguments_t *a)
{
    struct {
        const char *name;
        uint64_t *place, low, high;
    } known[] = {{"bytes", &a->bytes, 8, UINT32_MAX}, {"batch", &a->batch, 1, BENCH_BATCH_MAX}, {"slots", &a->slots, 0, 1u << 24},
                 {"consumers", &a->consumers, 0, BENCH_CONSUMERS_MAX}, {"stalled", &a->stalled, 0, BENCH_CONSUMERS_MAX},
                 {"messages", &a->messages, 1, 100000000}, {"streams", &a->streams, 1, BENCH_STREAMS_MAX}, {"rate", &a->rate, 0, 100000000}, {"warm_ms", &a->warm_ms, 0, 10000},
                 {"run_ms", &a->run_ms, 1, 30000}, {"kill", &a->kill, 0, INT32_MAX}, {"first_core", &a->first_core, 0, CPU_SETSIZE - 1},
                 {"second_core", &a->second_core, 0, CPU_SETSIZE - 1}, {"realtime", &bench_realtime, 0, 99}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i].name) != 0)
            continue;
        char *end;
        uint64_t number = strtoull(value, &end, 10);
        if (*value == '\0' || *end != '\0' || number < known[i].low || number > known[i].high) {
            fprintf(stderr, "%s=%s: expected %llu to %llu\n", name, value, (unsigned long long)known[i].low,
                    (unsigned long long)known[i].high);
            exit(2);
        }
        *known[i].place = number;
        return;
    }
    fprintf(stderr, "%s: no such argument\n", name);
    exit(2);
}

static inline bench_arguments_t bench_parse(int argc, char **argv)
{
    static const char *const deliveries[] = {"reliable", "lossy", "latest"}; /* numbered as SHMD_DELIVERY_... */
    static const char *const waits[] = {"adaptive", "spin", "sleep"};        /* numbered as SHMD_WAIT_... */
    bench_arguments_t a = {.mode = "single", .bytes = 40, .batch = 64, .consumers = 1, .messages = 1024, .streams = 1, .warm_ms = 50, .run_ms = 250,
                           .delivery = SHMD_DELIVERY_RELIABLE, .wait = SHMD_WAIT_SPIN, .second_core = 1};
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (value == NULL) {
            fprintf(stderr, "usage: %s NAME=VALUE...\n", argv[0]);
            exit(2);
        }
        *value++ = '\0';
        if (strcmp(argv[i], "instance") == 0)
            a.instance = value;
        else if (strcmp(argv[i], "mode") == 0)
            a.mode = value;
        else if (strcmp(argv[i], "samples") == 0)
            a.samples = value;
        else if (strcmp(argv[i], "delivery") == 0)
            a.delivery = bench_choice(value, deliveries, 3);
        else if (strcmp(argv[i], "wait") == 0)
            a.wait = bench_choice(value, waits, 3);
        else
            bench_number(argv[i], value, &a);
    }
    return a;
}

static inline void bench_pin(uint64_t core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        perror("sched_setaffinity");
        exit(2);
    }
    struct sched_param priority = {.sched_priority = (int)bench_realtime};
    if (bench_realtime != 0 && sched_setscheduler(0, SCHED_FIFO, &priority) != 0) {
        perror("real-time priority (needs root, CAP_SYS_NICE or `ulimit -r`)");
        exit(2);
    }
}

static inline uint64_t bench_now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Processor time of this process. */
static inline uint64_t bench_cpu_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline int bench_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Writes n latencies to the file that was asked for, in the order in which they were taken. */
static inline void bench_save(const char *path, const uint64_t *ns, uint64_t n)
{
    if (path == NULL)
        return;
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(ns, sizeof *ns, n, file) != n || fclose(file) != 0) {
        perror(path);
        exit(2);
    }
}

/* Sorts and prints the percentiles of n latencies as JSON fields. */
static inline void bench_print_percentiles(uint64_t *ns, uint64_t n)
{
    if (n == 0) {
        fprintf(stderr, "no sample was taken: the run is too short for this rate\n");
        exit(2);
    }
    qsort(ns, n, sizeof *ns, bench_compare);
    printf("\"samples\": %llu, \"min_ns\": %llu, \"p50_ns\": %llu, \"p99_ns\": %llu, \"p999_ns\": %llu, \"max_ns\": %llu",
           (unsigned long long)n, (unsigned long long)ns[0], (unsigned long long)ns[n / 2], (unsigned long long)ns[n - n / 100 - 1],
           (unsigned long long)ns[n - n / 1000 - 1], (unsigned long long)ns[n - 1]);
}

/* Waits for the other process; ends this one when it failed. */
static inline void bench_join(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        exit(2);
}

/* Forks; each end is pinned to its core and cannot run for ever. 0 in the child, which consumes, its pid in the parent. */
static inline pid_t bench_fork(const bench_arguments_t *a)
{
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        exit(2);
    }
    bench_pin(child == 0 ? a->second_core : a->first_core);
    (void)alarm(BENCH_ALARM_S);
    return child;
}

/* Waits until the child says that it is ready; ends this process when the child has ended instead. */
static inline void bench_await(const uint64_t *ready, pid_t child)
{
    int status;
    while (__atomic_load_n(ready, __ATOMIC_ACQUIRE) == 0) {
        if (waitpid(child, &status, WNOHANG) == child)
            exit(2);
        (void)sched_yield();
    }
}

/* Zeroed memory that a child shares. */
static inline void *bench_shared(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return p;
}

static inline void *bench_memory(uint64_t bytes)
{
    void *p = calloc(1, bytes);
    if (p == NULL) {
        fprintf(stderr, "no memory for %llu bytes\n", (unsigned long long)bytes);
        exit(2);
    }
    return p;
}

static inline shmd_client *bench_connect(const char *instance)
{
    shmd_client *client = NULL;
    if (shmd_connect(instance, BENCH_ATTACH_NS * 5ull, &client) != 0)
        bench_fail("connect");
    return client;
}

static inline shmd_consumer *bench_consumer(shmd_client *client, const char *stream, const bench_arguments_t *a, uint64_t delivery)
{
    shmd_consumer_options options = {.timeout_ns = BENCH_ATTACH_NS * 5ull, .delivery = (uint32_t)delivery, .start = SHMD_START_NEWEST,
                                     .wait = (uint32_t)a->wait, .flags = SHMD_ATTACH_CREATE};
    shmd_consumer *made = NULL;
    if (shmd_consumer_attach(client, stream, &options, &made) != 0)
        bench_fail("attach consumer");
    return made;
}

/* Up to 4 KiB a message stands in its slot; larger ones in an arena of the derived size. */
static inline shmd_producer *bench_producer(shmd_client *client, const char *stream, const bench_arguments_t *a)
{
    shmd_producer_options options = {.max_message = a->bytes, .arena_bytes = UINT64_MAX, .timeout_ns = BENCH_ATTACH_NS * 5ull,
                                     .slots = 16, .flags = SHMD_ATTACH_CREATE};
    shmd_producer *made = NULL;
    if (a->bytes <= 4096) {
        options.slot_bytes = (24 + (uint32_t)a->bytes + 63) / 64 * 64;
        options.arena_bytes = 0;
        options.slots = a->bytes > 512 ? 4096 : 16384;
    }
    if (a->slots != 0)
        options.slots = (uint32_t)a->slots;
    if (a->delivery == SHMD_DELIVERY_RELIABLE)
        options.min_consumers = (uint32_t)a->consumers;
    if (shmd_producer_attach(client, stream, &options, &made) != 0)
        bench_fail("attach producer");
    return made;
}

/* What a consumer does when there is nothing: a spinning one looks again, others wait as they would in a program. */
static inline void bench_idle(shmd_consumer *c, const bench_arguments_t *a)
{
    if (a->wait == SHMD_WAIT_SPIN)
        shmd_pause();
    else if (shmd_wait(c, 100000000u) < 0)
        bench_fail("wait");
}

static inline void bench_publish(shmd_producer *p, const void *data, uint64_t bytes)
{
    int rc;
    while ((rc = shmd_publish(p, data, (uint32_t)bytes, 1)) == SHMD_BACK_PRESSURED)
        shmd_pause();
    if (rc != 0)
        bench_fail("publish");
}

#endif
