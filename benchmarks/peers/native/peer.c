/* peer.c: a queue of somebody else between two pinned processes, measured as stream.c and roundtrip.c measure ours.
 *
 *   peer_NAME mode=single|batch|roundtrip batch=64 run_ms=250 warm_ms=50 first_core=0 second_core=1 (bench.h)
 *
 * The consumer copies each message out, as these queues want it, and looks at its number. */
#include "bench.h"
#include "peer.h"

typedef struct common {
    _Alignas(128) uint64_t ready;
    _Alignas(128) uint64_t end; /* how many there will be; UINT64_MAX: not known yet */
    uint64_t wrong;
} common_t;

static void push_all(void *queue, const peer_message_t *from, uint64_t n)
{
    for (uint64_t done = 0; done < n;) {
        uint64_t some = peer_push(queue, from + done, n - done);
        if (some == 0)
            shmd_pause();
        done += some;
    }
}

static void pop_one(void *queue, peer_message_t *to)
{
    while (peer_pop(queue, to, 1) == 0)
        shmd_pause();
}

static void produce(void *queue, common_t *common, const bench_arguments_t *a, uint64_t every, uint64_t *sent, uint64_t *ns)
{
    uint64_t begin_ns = bench_now_ns(), warm_ns = begin_ns + a->warm_ms * 1000000, end_ns = warm_ns + a->run_ms * 1000000;
    uint64_t number = 0, warm_number = 0, now_ns, first_ns = 0;
    peer_message_t *batch = bench_memory(every * sizeof *batch);
    do {
        for (uint64_t i = 0; i < 4096; i += every) {
            for (uint64_t k = 0; k < every; k++)
                batch[k].number = number++;
            push_all(queue, batch, every);
        }
        now_ns = bench_now_ns();
        if (first_ns == 0 && now_ns >= warm_ns) {
            first_ns = now_ns;
            warm_number = number;
        }
    } while (now_ns < end_ns || first_ns == now_ns);
    __atomic_store_n(&common->end, number, __ATOMIC_RELEASE);
    *sent = number - warm_number;
    *ns = now_ns - first_ns;
    free(batch);
}

static void consume(void *queue, common_t *common, uint64_t every)
{
    uint64_t number = 0, wrong = 0;
    peer_message_t *batch = bench_memory(every * sizeof *batch);
    while (number < __atomic_load_n(&common->end, __ATOMIC_ACQUIRE)) {
        uint64_t n = peer_pop(queue, batch, every);
        for (uint64_t k = 0; k < n; k++)
            wrong += batch[k].number != number++;
        if (n == 0)
            shmd_pause();
    }
    common->wrong = wrong;
    free(batch);
}

enum { TRIPS_MAX = 4000000 };

static uint64_t ping(void *there, void *back, common_t *common, const bench_arguments_t *a, uint64_t *ns)
{
    uint64_t begin_ns = bench_now_ns(), warm_ns = begin_ns + a->warm_ms * 1000000, end_ns = warm_ns + a->run_ms * 1000000, n = 0;
    peer_message_t message = {.number = 0}, answer;
    for (uint64_t now_ns = begin_ns; now_ns < end_ns && n < TRIPS_MAX; message.number++) {
        uint64_t start_ns = now_ns;
        push_all(there, &message, 1);
        pop_one(back, &answer);
        common->wrong += answer.number != message.number;
        now_ns = bench_now_ns();
        if (start_ns >= warm_ns)
            ns[n++] = now_ns - start_ns;
    }
    message.number = UINT64_MAX;
    push_all(there, &message, 1);
    return n;
}

static void pong(void *there, void *back)
{
    peer_message_t message;
    do {
        pop_one(there, &message);
        push_all(back, &message, 1);
    } while (message.number != UINT64_MAX);
}

int main(int argc, char **argv)
{
    bench_arguments_t a = bench_parse(argc, argv);
    int is_trip = strcmp(a.mode, "roundtrip") == 0;
    uint64_t every = strcmp(a.mode, "batch") == 0 ? a.batch : 1, sent = 0, ns = 1;
    common_t *common = bench_shared(sizeof *common);
    void *shared[2] = {bench_shared(peer_shared_bytes()), bench_shared(peer_shared_bytes())};
    common->end = UINT64_MAX;
    for (int i = 0; i < 2; i++)
        peer_make(shared[i]);
    pid_t child = bench_fork(&a);
    int is_child = child == 0;
    void *there = peer_open(shared[0], 0, !is_child), *back = peer_open(shared[1], 1, is_child);
    if (is_child) {
        __atomic_store_n(&common->ready, 1, __ATOMIC_RELEASE);
        if (is_trip)
            pong(there, back);
        else
            consume(there, common, every);
        peer_close(there);
        peer_close(back);
        _exit(0);
    }
    bench_await(&common->ready, child);
    if (is_trip) {
        uint64_t *trips = bench_memory(TRIPS_MAX * sizeof *trips), n = ping(there, back, common, &a, trips);
        bench_join(child);
        bench_save(a.samples, trips, n);
        printf("{");
        bench_print_percentiles(trips, n);
        printf(", \"wrong\": %llu}\n", (unsigned long long)common->wrong);
    } else {
        produce(there, common, &a, every, &sent, &ns);
        bench_join(child);
        printf("{\"messages_s\": %.0f, \"wrong\": %llu}\n", (double)sent * 1e9 / (double)ns, (unsigned long long)common->wrong);
    }
    (void)fflush(stdout);
    peer_close(there);
    peer_close(back);
    return common->wrong != 0;
}
