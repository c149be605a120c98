/* test_fork.c: a child that was forked in any way and in any state can call everything on its parent's handles, is told
 * SHMD_E_FORKED, and changes nothing of its parent's. fault: 45 (fork, _Fork and raw clone in each state) */
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "rig.h"

enum { MESSAGES = 20, LARGE = 3000 };

static pid_t fork_raw(void) { return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }

typedef struct way {
    const char *name;
    pid_t (*fork)(void);
    int has_handlers;
} way_t;

static const way_t ways[] = {
    {"fork", fork, 1},
#if __GLIBC_PREREQ(2, 34)
    {"_Fork", _Fork, 0},
#endif
    {"clone", fork_raw, 0},
};
enum { WAYS = sizeof ways / sizeof ways[0] };

/* qemu says that it does, and does not. */
static int kernel_wipes(void)
{
    unsigned char *probe = shmd_handle_new(2 * SHMD_LINE_BYTES, SHMD_LINE_BYTES);
    CHECK(probe != NULL);
    *probe = 1;
    pid_t child = fork_raw();
    if (child == 0)
        _exit(*probe);
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    shmd_handle_free(probe, 2 * SHMD_LINE_BYTES, SHMD_LINE_BYTES);
    return status == 0;
}

static void end_of_child(pid_t child, const char *how)
{
    int status = 0;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        TEST_FAIL("the child of %s ended with status 0x%x", how, (unsigned)status);
}

/* In a child: without stdio's locks, which another thread of the parent may have held. */
static void must_be(int64_t found, int64_t expected, const char *call)
{
    char text[200];
    if (found == expected)
        return;
    int n = snprintf(text, sizeof text, "in the child: %s returned %lld, expected %lld\n", call, (long long)found, (long long)expected);
    if (write(2, text, (size_t)n) < 0)
        _exit(2);
    _exit(1);
}
#define FORKED(call) must_be(call, SHMD_E_FORKED, #call)

static void call_all_of(shmd_producer *p)
{
    unsigned char bytes[LARGE] = {0};
    shmd_producer_info_t info;
    shmd_window_t window;
    void *room;
    FORKED(shmd_publish(p, bytes, 0, 0));
    FORKED(shmd_publish_inline(p, bytes, 8, 0));
    FORKED(shmd_publish(p, bytes, 40, 0));
    FORKED(shmd_publish(p, bytes, LARGE, 0));
    FORKED(shmd_publish_wait(p, bytes, 8, 0, UINT64_MAX));
    FORKED(shmd_publish_records(p, bytes, 8, 4, UINT64_MAX));
    FORKED(shmd_publish_records(p, bytes, 0, 4, 0));
    FORKED(shmd_claim(p, 8, &room));
    FORKED(shmd_claim(p, LARGE, &room));
    FORKED(shmd_commit(p, 8, 0));
    FORKED(shmd_abort(p));
    FORKED(shmd_producer_wait_room(p, 8, UINT64_MAX));
    FORKED(shmd_producer_keep(p, 1));
    shmd_producer_info(p, &info);
    FORKED(shmd_guarded_publish(p, bytes, 8, 0));
    FORKED(shmd_guarded_publish_flags(p, bytes, 8, bytes, 8, 0, 0));
    FORKED(shmd_guarded_publish_records(p, bytes, 8, 8, 4, 0));
    FORKED(shmd_guarded_claim(p, 8));
    FORKED(shmd_guarded_commit(p, 8, 0, 0));
    FORKED(shmd_guarded_abort(p));
    FORKED(shmd_guarded_wait_room(p, 8, UINT64_MAX));
    FORKED(shmd_guarded_window(p, 8, &window));
    FORKED(shmd_guarded_producer_close(p, 1));
    shmd_guarded_producer_drop(&p);
}

static void call_all_of_consumer(shmd_consumer *c)
{
    unsigned char bytes[LARGE];
    shmd_consumer_info_t info;
    shmd_lost_range_t range;
    shmd_message message, many[4];
    shmd_mapping *mapping;
    shmd_batch_t batch;
    shmd_run_t run = {.out = bytes, .out_bytes = sizeof bytes, .limit = 8};
    FORKED(shmd_poll_inline(c, &message));
    FORKED(shmd_poll(c, &message));
    FORKED(shmd_poll_many(c, many, 4));
    FORKED(shmd_copy(c, bytes, sizeof bytes, &message));
    FORKED(shmd_wait(c, UINT64_MAX));
    FORKED(shmd_wait_many(&c, 1, UINT64_MAX));
    FORKED(shmd_consumer_watch(c, 0));
    FORKED(shmd_consumer_settle(c));
    must_be(shmd_consumer_valid(c), 0, "shmd_consumer_valid");
    (void)shmd_advance(c); /* nothing was polled in this process */
    (void)shmd_advance_inline(c);
    CHECK_EQ(shmd_consumer_valid(c), 0);
    shmd_consumer_info(c, &info);
    must_be((int64_t)info.head, 0, "shmd_consumer_info: head");
    shmd_consumer_begin_at(c, RIG_EPOCH, 1);
    must_be((int64_t)shmd_consumer_delivered(c), 0, "shmd_consumer_delivered");
    shmd_consumer_resume(c);
    must_be((int64_t)shmd_consumer_end_seq(c), 0, "shmd_consumer_end_seq");
    (void)shmd_consumer_lost_ranges(c, &range, 1);
    must_be((int64_t)shmd_consumer_copies(c), (int64_t)UINT64_MAX, "shmd_consumer_copies");
    FORKED(shmd_guarded_fetch(c, UINT64_MAX, 4, UINT64_MAX, bytes, sizeof bytes, &batch));
    FORKED(shmd_guarded_next(c, -1, UINT64_MAX, &run));
    FORKED(shmd_guarded_fetch_records(c, UINT64_MAX, 4, 8, UINT64_MAX, bytes, sizeof bytes, &batch));
    FORKED(shmd_guarded_release(c, UINT64_MAX));
    FORKED(shmd_guarded_drain(c));
    FORKED(shmd_guarded_wait(c, UINT64_MAX));
    FORKED(shmd_guarded_wait_many(&c, 1, UINT64_MAX, NULL, 0));
    FORKED(shmd_guarded_watch(c, 0, 0));
    FORKED(shmd_guarded_settle(c));
    FORKED(shmd_guarded_consumer_mapping(c, &mapping));
    FORKED(shmd_guarded_consumer_close(c));
    shmd_guarded_consumer_drop(&c);
}

static void call_all_of_client(shmd_client *client)
{
    shmd_request_t request;
    shmd_event_t answer;
    shmd_producer *p;
    shmd_consumer *c;
    memset(&request, 0, sizeof request);
    FORKED(shmd_keepalive(client));
    FORKED(shmd_client_request(client, &request, &answer, UINT64_MAX));
    FORKED(shmd_producer_attach(client, "rig", NULL, &p));
    FORKED(shmd_consumer_attach(client, "rig", NULL, &c));
}

static void put(shmd_producer *p, uint32_t length)
{
    unsigned char payload[LARGE];
    rig_fill(payload, length, p->seq);
    CHECK_EQ(shmd_publish(p, payload, length, 0), SHMD_OK);
}

static void take(shmd_consumer *c, uint64_t seq, uint32_t length)
{
    shmd_message message;
    CHECK_EQ(shmd_poll(c, &message), 1);
    CHECK_EQ(message.seq, seq);
    CHECK_EQ(message.length, length);
    CHECK(rig_matches(message.data, length, seq));
    CHECK_EQ(shmd_advance(c), SHMD_OK);
}

static void *wait_for_one(void *consumer) { return (void *)(intptr_t)shmd_wait(consumer, 600u * (uint64_t)1000000000u); }

/* One parent with everything begun: messages unread, one polled and not advanced over, a claim open, a watch, a thread that waits. */
static void try_a_way(const way_t *way)
{
    rig_t rig, own;
    shmd_message message;
    void *room;
    rig_start(&rig, 64, 64, 65536, 0);
    rig.client.references = 100; /* the rig's own */
    shmd_producer *p = rig_producer(&rig);
    shmd_consumer *c = rig_consumer(&rig, 0, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    shmd_consumer *ungated = rig_consumer(&rig, 1, SHMD_DELIVERY_LOSSY, SHMD_WAIT_SLEEP, 0, 0);
    shmd_consumer *ended = rig_consumer(&rig, 2, SHMD_DELIVERY_RELIABLE, SHMD_WAIT_SLEEP, 0, 0);
    shmd_epoch_leave(rig.hot, 2);
    (void)rig_lease(&rig, 3, SHMD_LEASE_REVOKED);
    CHECK_EQ(shmd_poll(ended, &message), SHMD_E_REVOKED);
    pthread_t waiter = test_thread(wait_for_one, ungated);
    for (uint32_t i = 0; i < MESSAGES; i++)
        put(p, i % 4 == 0 ? LARGE : 40);
    CHECK_EQ((intptr_t)(test_join(waiter), 1), 1);
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK_EQ(shmd_consumer_watch(c, fd), SHMD_OK);
    CHECK_EQ(shmd_poll(c, &message), 1);
    CHECK_EQ(shmd_claim(p, LARGE, &room), SHMD_OK);
    rig_fill(room, LARGE, p->seq);
    const uint32_t generation = shmd_fork_generation();
    pid_t child = way->fork();
    if (child == 0) {
        memset(rig_names, 0, sizeof rig_names); /* they are the parent's */
        call_all_of(p);
        call_all_of_consumer(c);
        call_all_of_consumer(ungated);
        call_all_of_consumer(ended);
        call_all_of_client(&rig.client);
        must_be(shmd_fork_generation() == generation, 0, "the generation of the parent");
        must_be(shmd_producer_close(p), SHMD_OK, "shmd_producer_close");
        must_be(shmd_consumer_close(c), SHMD_OK, "shmd_consumer_close");
        must_be(shmd_consumer_close(ungated), SHMD_OK, "shmd_consumer_close");
        rig_start(&own, 64, 64, 0, 0); /* what the child makes itself works */
        shmd_producer *fresh = rig_producer(&own);
        must_be(shmd_publish(fresh, "x", 1, 0), SHMD_OK, "shmd_publish of its own");
        must_be(shmd_guarded_publish(fresh, (const uint8_t *)"x", 1, 0), SHMD_OK, "shmd_guarded_publish of its own");
        rig_stop(&own);
        _exit(0);
    }
    CHECK(child > 0);
    end_of_child(child, way->name);
    CHECK_EQ(shmd_fork_generation(), generation);
    CHECK_EQ(shmd_commit(p, LARGE, 0), SHMD_OK);
    CHECK_EQ(shmd_advance(c), SHMD_OK);
    for (uint64_t seq = 1; seq < MESSAGES; seq++)
        take(c, seq, seq % 4 == 0 ? LARGE : 40);
    take(c, MESSAGES, LARGE);
    for (uint64_t seq = 0; seq < MESSAGES; seq++)
        take(ungated, seq, seq % 4 == 0 ? LARGE : 40);
    CHECK_EQ(rig.data->aborted_claims, 0);
    CHECK_EQ(shmd_consumer_watch(c, -1), SHMD_OK);
    shmd_notifier_stop(&rig.client.notifier);
    (void)close(fd);
    rig_consumer_free(ended);
    rig_consumer_free(ungated);
    rig_consumer_free(c);
    rig_producer_free(p);
    rig_stop(&rig);
}

static void test_a_child_of_fork_is_told_by_every_call_and_harms_nobody(void) { try_a_way(&ways[0]); }

static void test_a_child_without_fork_handlers_is_told_likewise(void)
{
    for (int i = 1; i < WAYS && kernel_wipes(); i++)
        try_a_way(&ways[i]);
}

static void test_where_the_kernel_does_not_wipe_a_fork_handler_does(void)
{
    shmd_store32_relaxed(&shmd_wipe_missing, 1);
    try_a_way(&ways[0]);
    shmd_store32_relaxed(&shmd_wipe_missing, 0);
}

/* A grandchild is told apart from its parent, too: what a child without handlers makes has a generation of its own. */
static void test_each_generation_is_told_apart(void)
{
    for (int i = 0; i < WAYS * WAYS && kernel_wipes(); i++) {
        pid_t child = ways[i / WAYS].fork();
        if (child == 0) {
            rig_t rig;
            rig_start(&rig, 64, 64, 0, 0);
            shmd_producer *p = rig_producer(&rig);
            must_be(shmd_publish(p, "x", 1, 0), SHMD_OK, "shmd_publish in the child");
            pid_t grandchild = ways[i % WAYS].fork();
            if (grandchild == 0) {
                call_all_of(p);
                _exit(0);
            }
            end_of_child(grandchild, ways[i % WAYS].name);
            must_be(shmd_publish(p, "x", 1, 0), SHMD_OK, "shmd_publish in the child, after its own fork");
            must_be((int64_t)p->seq, 2, "seq");
            rig_stop(&rig);
            _exit(0);
        }
        end_of_child(child, ways[i / WAYS].name);
    }
}

int main(void)
{
    RUN(test_a_child_of_fork_is_told_by_every_call_and_harms_nobody);
    RUN(test_a_child_without_fork_handlers_is_told_likewise);
    RUN(test_where_the_kernel_does_not_wipe_a_fork_handler_does);
    RUN(test_each_generation_is_told_apart);
    return test_report();
}
