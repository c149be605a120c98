/* Segments that another process truncates or punches holes into: nobody dies of it, and every handle says so. Each test runs in a
 * child of its own, because a handler of SIGBUS is the whole process's.
 *
 * fault: 48 (ftruncate of a mapped segment, and holes with a full mount, under readers, writers and threads) */
#include "rig.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PAGES = 4 };

/* ---- children ---------------------------------------------------------------------------- */

static int status_of(void (*function)(void))
{
    int status = 0;
    (void)fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        (void)signal(SIGBUS, SIG_DFL); /* a sanitizer's handler would report what is meant to happen here */
        (void)signal(SIGSEGV, SIG_DFL);
        function();
        rig_unlink();
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    return status;
}

static void survives(void (*function)(void))
{
    int status = status_of(function);
    if (WIFSIGNALED(status))
        TEST_FAIL("the child died of signal %d", WTERMSIG(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

static void dies_of(int number, void (*function)(void))
{
    int status = status_of(function);
    CHECK(WIFSIGNALED(status));
    CHECK_EQ(WTERMSIG(status), number);
}

static void truncate_segment(const char *name, uint64_t bytes)
{
    char path[SHMD_SEGMENT_NAME_BYTES + 16];
    (void)snprintf(path, sizeof path, "/dev/shm%s", name);
    CHECK_EQ(truncate(path, (off_t)bytes), 0);
}

static volatile unsigned char *map_truncated(int writable, int is_mirrored, char *name)
{
    void *base = NULL;
    uint64_t page = shmd_page_bytes();
    int fd = rig_segment("bus", PAGES * page, name);
    CHECK_EQ(is_mirrored ? shmd_segment_map_mirrored(fd, 0, PAGES * page, writable, 1, &base)
                         : shmd_segment_map(fd, 0, PAGES * page, writable, 1, &base), SHMD_OK);
    (void)close(fd);
    if (writable)
        memset(base, 7, PAGES * page);
    truncate_segment(name, page);
    return base;
}

/* ---- what the handler does --------------------------------------------------------------- */

static void reads_on(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    uint64_t page = shmd_page_bytes();
    CHECK_EQ(shmd_guard_truncation(), 1);
    CHECK_EQ(shmd_guard_truncation(), 1);
    volatile unsigned char *base = map_truncated(1, 0, name);
    CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)base), 0);
    CHECK_EQ(base[page - 1], 7);
    CHECK_EQ(base[2 * page + 5], 0);
    CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)base), 1);
    CHECK_EQ(shmd_bus_errors(), 1);
    CHECK_EQ(base[3 * page], 0); /* behind it everything is there */
    CHECK_EQ(shmd_bus_errors(), 1);
    base[page] = 1; /* before it: a fault of its own */
    base[3 * page] = 2;
    CHECK_EQ(shmd_bus_errors(), 2);
    CHECK(base[page] == 1 && base[3 * page] == 2);
    CHECK_EQ(base[page - 1], 7); /* what is left of the file is still the file */
    CHECK_EQ(shmd_segment_unmap((void *)(uintptr_t)base, PAGES * page), SHMD_OK);
    CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)base), 0);
}

static void test_a_truncated_segment_reads_as_zeros_and_says_that_it_is_damaged(void) { survives(reads_on); }

static void both_halves(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    uint64_t page = shmd_page_bytes();
    CHECK_EQ(shmd_guard_truncation(), 1);
    for (uint64_t half = 0; half < 2; half++) {
        volatile unsigned char *base = map_truncated(1, 1, name);
        volatile unsigned char *here = base + half * PAGES * page, *there = base + (1 - half) * PAGES * page;
        uint32_t before = shmd_bus_errors();
        here[page] = 9;
        CHECK(here[page] == 9 && here[PAGES * page - 1] == 0 && here[0] == 7 && there[0] == 7);
        CHECK_EQ(shmd_bus_errors(), before + 1);
        CHECK_EQ(there[PAGES * page - 1], 0); /* the other half is mapped by itself, and faults by itself */
        CHECK_EQ(shmd_bus_errors(), before + 2);
        CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)base), 1);
        CHECK_EQ(shmd_segment_unmap((void *)(uintptr_t)base, 2 * PAGES * page), SHMD_OK);
    }
}

static void test_both_halves_of_a_mirrored_mapping_are_held(void) { survives(both_halves); }

static void copies(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    uint64_t page = shmd_page_bytes();
    unsigned char *private = test_memory(PAGES * page);
    CHECK_EQ(shmd_guard_truncation(), 1);
    volatile unsigned char *base = map_truncated(1, 0, name);
    shmd_copy_from_shared(private, (const void *)(uintptr_t)base, PAGES * page); /* one instruction, interrupted in its middle */
    for (uint64_t i = 0; i < PAGES * page; i++)
        CHECK_EQ(private[i], i < page ? 7 : 0);
    memset(private, 5, PAGES * page);
    base = map_truncated(1, 0, name);
    shmd_copy_to_shared((void *)(uintptr_t)base, private, PAGES * page);
    for (uint64_t i = 0; i < PAGES * page; i++)
        CHECK_EQ(base[i], 5);
    free(private);
}

static void test_a_copy_that_is_interrupted_goes_on(void) { survives(copies); }

static void stores_read_only(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    CHECK_EQ(shmd_guard_truncation(), 1);
    volatile unsigned char *base = map_truncated(0, 0, name);
    CHECK_EQ(base[shmd_page_bytes()], 0);
    rig_unlink();
    base[shmd_page_bytes()] = 1;
}

static void test_zero_pages_keep_the_protection(void) { dies_of(SIGSEGV, stores_read_only); }

static void renews(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    uint64_t page = shmd_page_bytes(), bytes = 0;
    CHECK_EQ(shmd_guard_truncation(), 1);
    volatile unsigned char *base = map_truncated(1, 0, name);
    base[page] = 1;
    int fd = shmd_segment_open(name, 1, &bytes);
    CHECK_EQ(bytes, page);
    CHECK_EQ(posix_fallocate(fd, 0, (off_t)(PAGES * page)), 0);
    CHECK_EQ(shmd_segment_renew(fd, (void *)(uintptr_t)base, PAGES * page, 1), SHMD_OK);
    CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)base), 0);
    CHECK(base[0] == 7 && base[page] == 0);
    base[page] = 3;
    unsigned char seen = 0;
    CHECK_EQ(pread(fd, &seen, 1, (off_t)page), 1);
    CHECK_EQ(seen, 3); /* shared again */
    truncate_segment(name, 0);
    CHECK_EQ(base[page], 0);
    CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)base), 1);
    (void)close(fd);
}

static void test_a_segment_that_was_made_whole_is_mapped_anew(void) { survives(renews); }

/* A mount of its own for one child, with no page to spare. */
static void holes(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES], options[64], path[SHMD_SEGMENT_NAME_BYTES + 16];
    uint64_t page = shmd_page_bytes();
    void *base = NULL;
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        _exit(77);
    (void)snprintf(options, sizeof options, "size=%llu", (unsigned long long)(PAGES * page));
    if (mount("tmpfs", "/dev/shm", "tmpfs", 0, options) != 0)
        _exit(77);
    CHECK_EQ(shmd_guard_truncation(), 1);
    int fd = rig_segment("hole", PAGES * page - page, name);
    CHECK_EQ(shmd_segment_map_mirrored(fd, 0, PAGES * page - page, 1, 1, &base), SHMD_OK);
    memset(base, 7, PAGES * page - page);
    CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page, (off_t)page), 0);
    (void)snprintf(path, sizeof path, "/dev/shm/filler");
    int filler = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    while (filler >= 0 && write(filler, path, sizeof path) > 0)
        ;
    volatile unsigned char *seen = base;
    CHECK_EQ(seen[0], 7);
    CHECK_EQ(shmd_bus_errors(), 0);
    CHECK_EQ(seen[page], 0);
    CHECK_EQ(shmd_bus_errors(), 1);
    seen[PAGES * page + 1] = 3; /* the hole, in the second half */
    CHECK_EQ(shmd_bus_errors(), 2);
    CHECK_EQ(shmd_segment_is_damaged(base), 1);
}

static void test_a_hole_in_a_full_mount_is_held_like_a_truncation(void)
{
    int status = status_of(holes);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        (void)fprintf(stderr, "  SKIPPED: only root may mount\n");
    else
        CHECK_EQ(status, 0);
}

/* ---- what it leaves to others -------------------------------------------------------------- */

static volatile unsigned char *foreign_page(void)
{
    char path[] = "/tmp/shmd-bus-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    (void)unlink(path);
    CHECK_EQ(ftruncate(fd, (off_t)shmd_page_bytes()), 0);
    void *base = mmap(NULL, shmd_page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(base != MAP_FAILED);
    CHECK_EQ(ftruncate(fd, 0), 0);
    (void)close(fd);
    return base;
}

static void touches_a_foreign_page(void)
{
    CHECK_EQ(shmd_guard_truncation(), 1);
    (void)*foreign_page();
}

static void is_sent_one(void)
{
    CHECK_EQ(shmd_guard_truncation(), 1);
    (void)kill(getpid(), SIGBUS);
    for (;;)
        (void)pause();
}

static void ignores_faults(void)
{
    (void)signal(SIGBUS, SIG_IGN);
    CHECK_EQ(shmd_guard_truncation(), 1);
    (void)raise(SIGBUS); /* ignored, as before */
    (void)*foreign_page();
}

static void touches_what_was_unmapped(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    CHECK_EQ(shmd_guard_truncation(), 1);
    volatile unsigned char *base = map_truncated(1, 0, name);
    CHECK_EQ(shmd_segment_unmap((void *)(uintptr_t)base, PAGES * shmd_page_bytes()), SHMD_OK);
    rig_unlink();
    volatile unsigned char *foreign = foreign_page();
    void *there = mremap((void *)(uintptr_t)foreign, shmd_page_bytes(), shmd_page_bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(uintptr_t)base);
    CHECK(there == (void *)(uintptr_t)base);
    (void)*base; /* the address is another file's now */
}

static void test_any_other_bus_error_ends_the_process_as_before(void)
{
    dies_of(SIGBUS, touches_a_foreign_page);
    dies_of(SIGBUS, is_sent_one);
    dies_of(SIGBUS, ignores_faults);
    dies_of(SIGBUS, touches_what_was_unmapped);
}

static volatile unsigned char *touched;
static sigset_t nothing;

static void plain(int number) { _exit(number == SIGBUS ? 21 : 1); }
static void detailed(int number, siginfo_t *info, void *context)
{
    _exit(number == SIGBUS && context != NULL && info->si_addr == (void *)(uintptr_t)touched ? 22 : 1);
}

static void chains(const struct sigaction *before)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    CHECK_EQ(sigaction(SIGBUS, before, NULL), 0);
    CHECK_EQ(shmd_guard_truncation(), 1);
    CHECK_EQ(map_truncated(1, 0, name)[shmd_page_bytes()], 0); /* ours: the other handler hears nothing of it */
    rig_unlink();
    touched = foreign_page();
    (void)*touched;
}

static void chains_to_a_plain_one(void) { chains(&(struct sigaction){.sa_handler = plain, .sa_mask = nothing}); }
static void chains_to_a_detailed_one(void) { chains(&(struct sigaction){.sa_sigaction = detailed, .sa_flags = SA_SIGINFO, .sa_mask = nothing}); }

#ifndef __SANITIZE_THREAD__ /* it blocks all signals in each handler */
static volatile unsigned char *shared;

static void reads_shared(int number)
{
    (void)number;
    _exit(shared[2 * shmd_page_bytes()] == 0 ? 21 : 1); /* a fault within a fault */
}

static void chains_to_one_that_faults(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    shared = map_truncated(0, 0, name);
    chains(&(struct sigaction){.sa_handler = reads_shared, .sa_mask = nothing});
}
#endif

static void guard_after_the_handler_was_taken_away(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    CHECK_EQ(shmd_guard_truncation(), 1);
    (void)signal(SIGBUS, SIG_DFL); /* as faulthandler.disable() does, when it was enabled before the guard */
    CHECK_EQ(shmd_guard_truncation(), 1);
    CHECK_EQ(map_truncated(0, 0, name)[2 * shmd_page_bytes()], 0);
}

static void test_a_handler_that_was_taken_away_is_installed_again(void) { survives(guard_after_the_handler_was_taken_away); }

static void test_the_handler_that_was_there_before_gets_the_others(void)
{
    int status = status_of(chains_to_a_plain_one);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 21);
    status = status_of(chains_to_a_detailed_one);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 22);
#ifndef __SANITIZE_THREAD__ /* it blocks all signals in each handler */
    status = status_of(chains_to_one_that_faults);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 21);
#endif
}

static void is_switched_off(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    CHECK_EQ(setenv(SHMD_GUARD_VARIABLE, "off", 1), 0);
    CHECK_EQ(shmd_guard_truncation(), 0);
    volatile unsigned char *base = map_truncated(1, 0, name);
    rig_unlink();
    (void)base[shmd_page_bytes()];
}

static void asks_for_nothing(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    volatile unsigned char *base = map_truncated(1, 0, name);
    rig_unlink();
    (void)base[shmd_page_bytes()];
}

static void test_without_the_handler_a_truncation_kills(void)
{
    dies_of(SIGBUS, is_switched_off);
    dies_of(SIGBUS, asks_for_nothing); /* a library installs no handler unasked */
}

/* ---- threads and forks ---------------------------------------------------------------------- */

static volatile unsigned char *shared_base;
static uint32_t go;

static void *touch_all(void *argument)
{
    uint64_t page = shmd_page_bytes();
    while (shmd_load32_acquire(&go) == 0)
        shmd_pause();
    for (uint64_t i = 0; i < 2 * PAGES; i++) {
        uint64_t at = (i + (uintptr_t)argument) % (2 * PAGES);
        CHECK_EQ(shared_base[at * page], at % PAGES == 0 ? 7 : 0);
    }
    return NULL;
}

static void *churn(void *argument)
{
    int fd = *(const int *)argument;
    void *base[8];
    uint64_t page = shmd_page_bytes();
    while (shmd_load32_acquire(&go) < 2)
        for (int turn = 0; turn < 2; turn++)
            for (int i = 0; i < 8; i++)
                CHECK_EQ(turn == 0 ? shmd_segment_map(fd, 0, page, 1, 0, &base[i]) : shmd_segment_unmap(base[i], page), SHMD_OK);
    return NULL;
}

static void many_threads(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    pthread_t threads[4];
    CHECK_EQ(shmd_guard_truncation(), 1);
    int fd = rig_segment("churn", shmd_page_bytes(), name);
    pthread_t churner = test_thread(churn, &fd); /* the table changes meanwhile */
    for (uint64_t round = 0; round < test_scale(200); round++) {
        shared_base = map_truncated(1, 1, name);
        shmd_store32_release(&go, 0);
        for (uintptr_t i = 0; i < 4; i++)
            threads[i] = test_thread(touch_all, (void *)i);
        shmd_store32_release(&go, 1);
        for (int i = 0; i < 4; i++)
            test_join(threads[i]);
        CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)shared_base), 1);
        CHECK_EQ(shmd_segment_unmap((void *)(uintptr_t)shared_base, 2 * PAGES * shmd_page_bytes()), SHMD_OK);
        rig_unlink();
    }
    shmd_store32_release(&go, 2);
    test_join(churner);
    (void)close(fd);
}

static void test_threads_may_fault_at_once_while_others_map_and_unmap(void) { survives(many_threads); }

static void *touch_missing(void *argument)
{
    (void)argument;
    (void)shared_base[shmd_page_bytes()];
    return NULL;
}

static void own_thread(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    unsigned long thread = 0;
    CHECK_EQ(shmd_guard_truncation(), 1);
    shared_base = map_truncated(1, 0, name);
    CHECK_EQ(shmd_thread_start(&(shmd_threads_t){0}, touch_missing, NULL, "test", &thread), SHMD_OK); /* as the heartbeat and the notifier are started */
    test_join((pthread_t)thread);
    CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)shared_base), 1);
}

static void test_the_librarys_own_threads_survive_too(void) { survives(own_thread); }

static void forked_child(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    int status;
    CHECK_EQ(shmd_guard_truncation(), 1);
    volatile unsigned char *base = map_truncated(1, 0, name);
    pid_t child = fork();
    if (child == 0)
        _exit(base[shmd_page_bytes()] == 0 && shmd_segment_is_damaged((void *)(uintptr_t)base) ? 0 : 1);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK_EQ(shmd_segment_is_damaged((void *)(uintptr_t)base), 0); /* the parent's pages are its own matter */
}

static void test_a_forked_child_has_the_table_and_the_handler(void) { survives(forked_child); }

static void many_mappings(void)
{
    enum { MANY = 300 };
    static void *bases[MANY];
    char name[SHMD_SEGMENT_NAME_BYTES];
    uint64_t page = shmd_page_bytes();
    CHECK_EQ(shmd_guard_truncation(), 1);
    int fd = rig_segment("many", page, name);
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(shmd_segment_map(fd, 0, page, 1, 0, &bases[i]), SHMD_OK);
    for (int i = 0; i < MANY; i += 2)
        CHECK_EQ(shmd_segment_unmap(bases[i], page), SHMD_OK);
    for (int i = 0; i < MANY; i += 2)
        CHECK_EQ(shmd_segment_map(fd, 0, page, 1, 0, &bases[i]), SHMD_OK);
    CHECK_EQ(ftruncate(fd, 0), 0);
    for (int i = 0; i < MANY; i += 3)
        CHECK_EQ(*(volatile unsigned char *)bases[i], 0);
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(shmd_segment_is_damaged(bases[i]), i % 3 == 0);
    CHECK_EQ(shmd_bus_errors(), MANY / 3);
}

static void test_the_table_grows_and_its_entries_are_used_again(void) { survives(many_mappings); }

/* ---- handles -------------------------------------------------------------------------------- */

static rig_t rig;
static shmd_producer *producer;
static shmd_consumer *consumer;

static void start(uint32_t delivery, uint32_t wait, uint64_t arena_bytes)
{
    CHECK_EQ(shmd_guard_truncation(), 1);
    rig_start(&rig, 256, 256, arena_bytes, 0);
    producer = rig_producer(&rig);
    CHECK_EQ(shmd_mapping_open(&rig.client, &rig.stream->epochs[0], SHMD_ROLE_PRODUCER, &producer->mapping), SHMD_OK);
    producer->data = producer->mapping->data;
    producer->slots = producer->mapping->ring;
    producer->arena = producer->mapping->arena;
    producer->gates = producer->mapping->gates;
    shmd_mapping_own(producer->mapping, &producer->open_word, UINT64_MAX);
    consumer = rig_consumer(&rig, 2, delivery, wait, 0, 0);
}

static void consumer_is_told(const char *name)
{
    shmd_message message;
    for (int polls = 0; polls < 300; polls++) {
        int rc = shmd_poll(consumer, &message);
        if (rc == SHMD_E_REVOKED) {
            CHECK_TEXT(name);
            CHECK_TEXT("truncated");
            CHECK_EQ(consumer->end_reason, SHMD_REASON_TRUNCATED);
            CHECK_EQ(shmd_poll(consumer, &message), SHMD_E_REVOKED); /* and again */
            CHECK_TEXT(name);
            CHECK_EQ(shmd_wait(consumer, 1), 1);
            return;
        }
        CHECK(rc >= 0);
        (void)shmd_advance(consumer);
    }
    TEST_FAIL("the consumer was not told");
}

static void producer_is_told(const char *name)
{
    for (int n = 0; n < 600; n++) {
        int rc = shmd_publish(producer, "x", 1, 0);
        if (rc == SHMD_E_REVOKED) {
            CHECK_TEXT(name);
            CHECK_TEXT("truncated");
            CHECK_EQ(producer->end_reason, SHMD_REASON_TRUNCATED);
            CHECK_EQ(shmd_publish(producer, "x", 1, 0), SHMD_E_REVOKED);
            CHECK_EQ(shmd_publish_wait(producer, "x", 1, 0, UINT64_MAX), SHMD_E_REVOKED);
            return;
        }
        CHECK(rc == SHMD_OK || rc == SHMD_BACK_PRESSURED);
    }
    TEST_FAIL("the producer was not told");
}

static void handles_of_data(void)
{
    start(SHMD_DELIVERY_RELIABLE, SHMD_WAIT_ADAPTIVE, 0);
    const char *name = rig.stream->epochs[0].data_name;
    for (int n = 0; n < 40; n++)
        CHECK_EQ(shmd_publish(producer, "x", 1, 0), SHMD_OK);
    truncate_segment(name, 0);
    consumer_is_told(name);
    producer_is_told(name);
}

static void handles_of_gates(void)
{
    start(SHMD_DELIVERY_RELIABLE, SHMD_WAIT_ADAPTIVE, 0);
    const char *name = rig.stream->epochs[0].gates_name;
    CHECK_EQ(shmd_publish(producer, "x", 1, 0), SHMD_OK);
    truncate_segment(name, 0);
    producer_is_told(name);
    consumer_is_told(name);
}

static void handles_that_copy(void)
{
    static unsigned char payload[100000], got[100000];
    shmd_message message;
    start(SHMD_DELIVERY_LOSSY, SHMD_WAIT_ADAPTIVE, 1 << 20);
    const char *name = rig.stream->epochs[0].data_name;
    memset(payload, 7, sizeof payload);
    CHECK_EQ(shmd_publish(producer, payload, sizeof payload, 0), SHMD_OK);
    truncate_segment(name, rig.stream->epochs[0].data_bytes - rig.geometry.arena_bytes + shmd_page_bytes()); /* in the middle of it */
    CHECK_EQ(shmd_copy(consumer, got, sizeof got, &message), SHMD_E_REVOKED);
    CHECK_TEXT(name);
    CHECK_EQ(shmd_publish(producer, payload, sizeof payload, 0), SHMD_E_REVOKED); /* its payload went nowhere */
}

static void *truncate_later(void *argument)
{
    while (shmd_load32_acquire(&shmd_gates_gate(rig.gates, 2)->sleeping) == 0)
        (void)sched_yield();
    truncate_segment(argument, 0);
    return NULL;
}

static void handles_that_sleep(void)
{
    start(SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0);
    const char *name = rig.stream->epochs[0].data_name;
    pthread_t thread = test_thread(truncate_later, (void *)(uintptr_t)name);
    CHECK_EQ(shmd_wait(consumer, UINT64_MAX), 1); /* its slice ends, and it looks */
    test_join(thread);
    consumer_is_told(name);
}

static void handles_that_wait_for_room(void)
{
    start(SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0);
    const char *name = rig.stream->epochs[0].gates_name;
    while (shmd_publish(producer, "x", 1, 0) == SHMD_OK)
        ;
    truncate_segment(name, 0);
    CHECK_EQ(shmd_publish_wait(producer, "x", 1, 0, UINT64_MAX), SHMD_E_REVOKED);
    CHECK_TEXT(name);
}

static void handles_of_claims(void)
{
    void *data;
    start(SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SPIN, 0);
    CHECK_EQ(shmd_claim(producer, 8, &data), SHMD_OK);
    truncate_segment(rig.stream->epochs[0].data_name, 0);
    memset(data, 1, 8);
    CHECK_EQ(shmd_commit(producer, 8, 0), SHMD_E_REVOKED);
    CHECK_TEXT(rig.stream->epochs[0].data_name);
}

static void test_every_handle_on_a_truncated_segment_is_revoked_by_name(void)
{
    survives(handles_of_data);
    survives(handles_of_gates);
    survives(handles_that_copy);
    survives(handles_that_sleep);
    survives(handles_that_wait_for_room);
    survives(handles_of_claims);
}

int main(void)
{
    (void)sigemptyset(&nothing);
    RUN(test_a_truncated_segment_reads_as_zeros_and_says_that_it_is_damaged);
    RUN(test_both_halves_of_a_mirrored_mapping_are_held);
    RUN(test_a_copy_that_is_interrupted_goes_on);
    RUN(test_zero_pages_keep_the_protection);
    RUN(test_a_segment_that_was_made_whole_is_mapped_anew);
    RUN(test_a_hole_in_a_full_mount_is_held_like_a_truncation);
    RUN(test_any_other_bus_error_ends_the_process_as_before);
    RUN(test_the_handler_that_was_there_before_gets_the_others);
    RUN(test_a_handler_that_was_taken_away_is_installed_again);
    RUN(test_without_the_handler_a_truncation_kills);
    RUN(test_threads_may_fault_at_once_while_others_map_and_unmap);
    RUN(test_the_librarys_own_threads_survive_too);
    RUN(test_a_forked_child_has_the_table_and_the_handler);
    RUN(test_the_table_grows_and_its_entries_are_used_again);
    RUN(test_every_handle_on_a_truncated_segment_is_revoked_by_name);
    return test_report();
}
