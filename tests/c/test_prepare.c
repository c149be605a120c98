/* A consumer's next epoch is mapped by shmd_consumer_prepare, in any thread: then the poll that enters it maps and unmaps nothing, and
 * meets no page fault.
 * fault: 61 (page faults and calls of mmap and munmap in a poll that enters an epoch) */
#include <sys/resource.h>
#include <sys/wait.h>

#include "rig.h"

enum { GATE = 2 };

static _Thread_local unsigned mmaps, munmaps;

void *__real_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *address, size_t bytes);
int __wrap_munmap(void *address, size_t bytes);

void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    mmaps++;
    return __real_mmap(address, bytes, protection, flags, fd, offset);
}

int __wrap_munmap(void *address, size_t bytes)
{
    munmaps++;
    return __real_munmap(address, bytes);
}

static uint64_t faults(void)
{
    struct rusage usage;
    CHECK_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
    return (uint64_t)usage.ru_minflt;
}

static void publish(rig_t *rig, uint64_t n, uint32_t length)
{
    unsigned char payload[4096];
    shmd_producer *p = rig_producer(rig);
    for (uint64_t i = 0; i < n; i++) {
        rig_fill(payload, length, p->seq);
        CHECK_EQ(shmd_publish(p, payload, length, 0), SHMD_OK);
    }
    rig_producer_free(p);
}

static void close_epoch(rig_t *rig, uint32_t index)
{
    shmd_store32_relaxed(&rig->stream->epochs[index].end_reason, SHMD_REASON_CLOSED);
    (void)shmd_epoch_seal(rig->hot, rig->data, rig->ring, &rig->geometry, 1, 1);
}

/* The next producer's epoch, with n messages, and the consumer wired to it. */
static void open_epoch(rig_t *rig, const shmd_consumer *c, uint32_t index, uint32_t epoch, uint64_t n, uint32_t length)
{
    uint64_t start;
    rig_epoch_unmap(rig);
    rig_epoch(rig, index, epoch, 0);
    shmd_store32_relaxed(&rig->stream->epochs[index].flags, SHMD_ATTACH_PREFAULT);
    (void)shmd_epoch_join(rig->hot, rig->data, rig->gates, &rig->geometry, c->gate_index, c->delivery == SHMD_DELIVERY_RELIABLE, 0, c->lease_id, 0,
                          0, &start);
    publish(rig, n, length);
}

static void expect(shmd_consumer *c, uint64_t first, uint64_t n, uint32_t length)
{
    shmd_message m;
    for (uint64_t seq = first; seq < first + n; seq++) {
        CHECK_EQ(shmd_poll(c, &m), 1);
        CHECK_EQ(m.seq, seq);
        CHECK(rig_matches(m.data, length, seq));
        CHECK_EQ(shmd_advance(c), SHMD_OK);
    }
}

static int poll(shmd_consumer *c)
{
    shmd_message m;
    return shmd_poll(c, &m);
}

static shmd_consumer *start(rig_t *rig, uint32_t delivery)
{
    rig_start(rig, 1024, 256, 65536, 0);
    return rig_consumer(rig, GATE, delivery, SHMD_WAIT_SPIN, 0, SHMD_ATTACH_FOLLOW);
}

static void stop(rig_t *rig, shmd_consumer *c)
{
    rig_consumer_free(c);
    rig_stop(rig);
}

static void go_through_epochs(uint32_t delivery, uint32_t length)
{
    rig_t rig;
    shmd_consumer *c = start(&rig, delivery);
    publish(&rig, 10, length);
    expect(c, 0, 1, length);
    for (uint32_t i = 1; i < 5; i++) {
        close_epoch(&rig, (i - 1) % 2);
        open_epoch(&rig, c, i % 2, RIG_EPOCH + i, 10, length);
        mmaps = munmaps = 0;
        CHECK_EQ(shmd_consumer_prepare(c), 1);
        CHECK(mmaps > 0);
        mmaps = munmaps = 0;
        CHECK_EQ(shmd_consumer_prepare(c), 1);
        uint64_t before = faults();
        expect(c, 1, 9, length);
        expect(c, 0, 1, length);
        uint64_t met = faults() - before;
        CHECK_EQ(c->epoch, RIG_EPOCH + i);
        CHECK_EQ(mmaps + munmaps, 0);
#if !defined SHMD_TEST && !defined SHMD_EMULATED /* which have page faults of their own */
        CHECK(met == 0 || i == 1); /* the first time the program's own pages come in */
#else
        (void)met;
#endif
        CHECK_EQ(shmd_consumer_prepare(c), 0);
        CHECK_EQ(munmaps > 0, i > 1); /* the epoch that it left before the last one */
    }
    stop(&rig, c);
}

static void test_the_poll_that_enters_a_prepared_epoch_maps_nothing(void) { go_through_epochs(SHMD_DELIVERY_RELIABLE, 40); }
static void test_messages_in_the_arena_likewise(void) { go_through_epochs(SHMD_DELIVERY_RELIABLE, 3000); }
static void test_a_lossy_consumer_likewise(void) { go_through_epochs(SHMD_DELIVERY_LOSSY, 40); }

static void test_an_epoch_that_was_not_prepared_is_mapped_by_the_poll(void)
{
    rig_t rig;
    shmd_consumer *c = start(&rig, SHMD_DELIVERY_RELIABLE);
    close_epoch(&rig, 0);
    CHECK_EQ(shmd_consumer_prepare(c), 0);
    open_epoch(&rig, c, 1, RIG_EPOCH + 1, 1, 40);
    mmaps = 0;
    expect(c, 0, 1, 40);
    CHECK(mmaps > 0);
    stop(&rig, c);
}

static void test_a_consumer_without_an_epoch_finds_the_one_that_was_prepared(void)
{
    rig_t rig;
    shmd_consumer *c = start(&rig, SHMD_DELIVERY_RELIABLE);
    close_epoch(&rig, 0);
    CHECK_EQ(poll(c), 0);
    CHECK(c->mapping == NULL);
    CHECK_EQ(shmd_consumer_prepare(c), 0);
    open_epoch(&rig, c, 1, RIG_EPOCH + 1, 1, 40);
    CHECK_EQ(shmd_consumer_prepare(c), 1);
    mmaps = munmaps = 0;
    expect(c, 0, 1, 40);
    CHECK_EQ(mmaps + munmaps, 0);
    stop(&rig, c);
}

static void test_a_prepared_epoch_that_is_gone_is_dropped(void)
{
    rig_t rig;
    shmd_consumer *c = start(&rig, SHMD_DELIVERY_LOSSY);
    close_epoch(&rig, 0);
    open_epoch(&rig, c, 1, RIG_EPOCH + 1, 1, 40);
    CHECK_EQ(shmd_consumer_prepare(c), 1);
    close_epoch(&rig, 1);
    shmd_store_release(&rig.hot->state, (uint64_t)(RIG_EPOCH + 1) << 8 | SHMD_EPOCH_RETIRED); /* nobody waits for a lossy reader */
    open_epoch(&rig, c, 2, RIG_EPOCH + 2, 1, 40);
    expect(c, 0, 1, 40);
    CHECK_EQ(c->epoch, RIG_EPOCH + 2);
    CHECK_EQ(shmd_consumer_prepare(c), 0);
    stop(&rig, c);
}

static void test_an_epoch_without_a_name_is_an_error_of_the_call_and_not_of_the_consumer(void)
{
    rig_t rig;
    shmd_consumer *c = start(&rig, SHMD_DELIVERY_RELIABLE);
    publish(&rig, 1, 40);
    close_epoch(&rig, 0);
    open_epoch(&rig, c, 1, RIG_EPOCH + 1, 1, 40);
    rig_unlink();
    CHECK_EQ(shmd_consumer_prepare(c), SHMD_E_SYSTEM);
    CHECK_TEXT("No such file");
    expect(c, 0, 1, 40);
    stop(&rig, c);
}

static void *prepare_on(void *argument)
{
    shmd_consumer *c = argument;
    int rc = 0;
    while (rc >= 0 && shmd_load32_acquire(&c->closing) == SHMD_HANDLE_OPEN)
        rc = shmd_consumer_prepare(c);
    return rc < 0 ? c : NULL;
}

static void test_other_threads_prepare_while_the_consumer_goes_through_epochs(void)
{
    enum { THREADS = 2 };
    rig_t rig;
    pthread_t threads[THREADS];
    shmd_consumer *c = start(&rig, SHMD_DELIVERY_RELIABLE);
    publish(&rig, 10, 3000);
    expect(c, 0, 1, 3000);
    for (uint32_t i = 0; i < THREADS; i++)
        threads[i] = test_thread(prepare_on, c);
    for (uint32_t i = 1; i < 100; i++) {
        close_epoch(&rig, (i - 1) % 3);
        open_epoch(&rig, c, i % 3, RIG_EPOCH + i, 10, 3000);
        expect(c, 1, 9, 3000);
        expect(c, 0, 1, 3000);
        CHECK_EQ(c->epoch, RIG_EPOCH + i);
    }
    shmd_store32_release(&c->closing, SHMD_HANDLE_CLOSED);
    for (uint32_t i = 0; i < THREADS; i++) {
        void *failed = NULL;
        CHECK_EQ(pthread_join(threads[i], &failed), 0);
        CHECK(failed == NULL);
    }
    stop(&rig, c);
}

static void test_a_forked_child_cannot_prepare(void)
{
    rig_t rig;
    int status = 0;
    shmd_consumer *c = start(&rig, SHMD_DELIVERY_RELIABLE);
    pid_t child = fork();
    if (child == 0)
        _exit(shmd_consumer_prepare(c) == SHMD_E_FORKED ? 0 : 1);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    stop(&rig, c);
}

int main(void)
{
    RUN(test_the_poll_that_enters_a_prepared_epoch_maps_nothing);
    RUN(test_messages_in_the_arena_likewise);
    RUN(test_a_lossy_consumer_likewise);
    RUN(test_an_epoch_that_was_not_prepared_is_mapped_by_the_poll);
    RUN(test_a_consumer_without_an_epoch_finds_the_one_that_was_prepared);
    RUN(test_a_prepared_epoch_that_is_gone_is_dropped);
    RUN(test_an_epoch_without_a_name_is_an_error_of_the_call_and_not_of_the_consumer);
    RUN(test_other_threads_prepare_while_the_consumer_goes_through_epochs);
    RUN(test_a_forked_child_cannot_prepare);
    return test_report();
}
