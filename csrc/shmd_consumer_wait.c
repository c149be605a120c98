/* shmd_consumer_wait.c: how a consumer waits: spin, yield, sleep on a futex word. Every sleep has a timeout. */
#include "shmd_internal.h"

#include <sched.h>
#include <time.h>

int shmd_consumer_ready(const shmd_consumer *c)
{
    shmd_epoch_record_t record;
    uint32_t index, reason;
    if (c->ended != 0)
        return 1;
    if (c->data == NULL) {
        return shmd_is_forked(c->fork_generation) || shmd_stream_next_epoch(c->client, c->stream_index, c->stream_id, c->last_epoch, c->gate_bit, &record, &index) ||
               !shmd_lease_live(c->client, c->lease_index, c->lease_id, &reason) || c->is_over;
    }
    uint64_t seq = c->position;
    uint64_t state = shmd_load_acquire(&c->hot->state);
    if (seq >= c->bound || (state != c->open_word && state != ((uint64_t)c->epoch << 8 | SHMD_EPOCH_SEALING)))
        return 1;
    if ((shmd_load_relaxed(c->gated_from == UINT64_MAX ? &c->hot->wired_mask : &c->hot->gate_mask) & c->gate_bit) == 0)
        return 1;
    if (state == ((uint64_t)c->epoch << 8 | SHMD_EPOCH_SEALING))
        return c->is_over != 0;
    if (c->delivery == SHMD_DELIVERY_LATEST) {
        uint64_t newest = shmd_shard_last(c, shmd_min(shmd_load_acquire(&c->data->head), c->bound));
        seq = newest > seq ? newest : seq;
    }
    if (shmd_load_acquire(&shmd_consumer_slot(c, seq)->commit) >= ((seq << 1) | 1)) /* P2; larger: lapped */
        return 1;
    return c->is_over != 0; /* the poll says so */
}

int shmd_consumer_over(shmd_consumer *c, uint64_t now_ns)
{
    if (c->is_over)
        return 1;
    if (c->idle_since_ns == 0 || c->idle_at != c->position || c->idle_epoch != c->last_epoch) {
        c->idle_at = c->position;
        c->idle_epoch = c->last_epoch;
        c->idle_since_ns = now_ns;
    } else if (now_ns - c->idle_since_ns >= SHMD_LONG_WAIT_NS) {
        c->is_over = (uint32_t)shmd_client_over(c->client, now_ns);
    }
    return (int)c->is_over;
}

static int nap(uint64_t ns)
{
    struct timespec pause = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    return nanosleep(&pause, NULL) == 0 || errno != EINTR ? SHMD_OK : shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal");
}

/* The first half of W1. The caller executes a seq_cst fence, looks again, and then sleeps on the word. */
const uint32_t *shmd_consumer_announce(const shmd_consumer *c, uint32_t *seen)
{
    if (c->mapping == NULL) {
        *seen = shmd_load32_acquire(&c->client->authority->event_word); /* E1 */
        return &c->client->authority->event_word;
    }
    if ((shmd_load_acquire(&c->hot->sleep_mask) & c->gate_bit) == 0)
        return NULL; /* wake-ups are forbidden on this stream, or this consumer said that it only spins */
    *seen = shmd_load32_acquire(&c->data->wake_word);
    shmd_store32_seq_cst(&c->gate->sleeping, *seen << 1 | 1);
    return &c->data->wake_word;
}

static void retract(const shmd_consumer *c)
{
    if (c->mapping != NULL)
        shmd_store32_relaxed(&c->gate->sleeping, 0);
}

/* One sleep of at most slice_ns, on the word that whoever has news for us bumps. */
static int sleep_once(shmd_consumer *c, uint64_t slice_ns)
{
    enum { NAP_NS = 50000 };
    uint32_t seen = 0;
    const uint32_t *word = shmd_consumer_announce(c, &seen);
    if (word == NULL)
        return nap(shmd_min(slice_ns, NAP_NS));
    shmd_fence_seq_cst(); /* W1: flag before this, another look after; the producer commits, fences, looks for flags */
    SHMD_FAILPOINT("sleep.announced");
    int rc = shmd_consumer_ready(c) ? SHMD_OK : shmd_futex_wait(word, seen, slice_ns);
    retract(c);
    return rc;
}

int shmd_wait(shmd_consumer *c, uint64_t timeout_ns)
{
    enum { SPINS = 1500, YIELDS = 8, SLICE_NS = 20000000 };
    if (shmd_consumer_check_fork(c) != SHMD_OK)
        return SHMD_E_FORKED;
    if (shmd_consumer_ready(c))
        return 1;
    if (timeout_ns == 0)
        return 0;
    shmd_consumer_before_idle(c);
    uint64_t deadline_ns = shmd_deadline(timeout_ns);
    for (uint32_t i = 1; c->wait != SHMD_WAIT_SLEEP && (c->wait == SHMD_WAIT_SPIN || (c->mapping != NULL && i < SPINS)); i++) {
        shmd_pause();
        if (shmd_consumer_ready(c))
            return 1;
        uint64_t now = i % 256 == 0 ? shmd_now_ns() : 0;
        if (now != 0)
            (void)shmd_client_waits(c->client, now, 0);
        if (now != 0 && (now >= deadline_ns || shmd_load32_relaxed(&c->closing)))
            return 0;
        if (now != 0 && shmd_consumer_over(c, now))
            return 1;
        if (i % 256 == 0 && c->slack != 0)
            shmd_consumer_before_idle(c); /* other shards' messages came and must not fill the ring */
    }
    for (int i = 0; i < YIELDS && c->wait == SHMD_WAIT_ADAPTIVE; i++) {
        (void)sched_yield();
        if (shmd_consumer_ready(c))
            return 1;
    }
    for (;;) {
        uint64_t now = shmd_now_ns();
        uint64_t slice_ns = shmd_client_waits(c->client, now, SLICE_NS);
        if (now >= deadline_ns || shmd_load32_relaxed(&c->closing))
            return 0;
        if (shmd_consumer_over(c, now))
            return 1;
        if (sleep_once(c, shmd_min(deadline_ns - now, slice_ns)) == SHMD_E_INTERRUPTED)
            return shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal");
        if (shmd_consumer_ready(c))
            return 1;
        if (c->slack != 0)
            shmd_consumer_before_idle(c);
    }
}

static int count_ready(shmd_consumer **consumers, size_t n)
{
    int ready = 0;
    for (size_t i = 0; i < n; i++)
        ready += shmd_consumer_ready(consumers[i]);
    return ready;
}

/* As sleep_once, for all of them at a time: on their words and on the driver's, which brings seals and revocations. Those
 * that nobody wakes, and those beyond what the kernel takes, are looked at every look_ns. */
static int sleep_for_any(shmd_consumer **consumers, size_t n, uint64_t slice_ns, uint64_t look_ns)
{
    shmd_word_t words[SHMD_WORDS_MAX];
    const uint32_t *event_word = &consumers[0]->client->authority->event_word;
    uint32_t count = 1;
    words[0] = (shmd_word_t){.word = event_word, .seen = shmd_load32_acquire(event_word)};
    for (size_t i = 0; i < n; i++) {
        uint32_t seen = 0;
        const uint32_t *word = shmd_consumer_announce(consumers[i], &seen);
        if (word == event_word)
            continue;
        if (word == NULL || count == SHMD_WORDS_MAX)
            slice_ns = shmd_min(slice_ns, look_ns);
        else
            words[count++] = (shmd_word_t){.word = word, .seen = seen};
    }
    shmd_fence_seq_cst(); /* W1: all flags before this, another look at all after */
    int rc = count_ready(consumers, n) ? SHMD_OK : shmd_futex_wait_any(words, count, slice_ns);
    for (size_t i = 0; i < n; i++)
        retract(consumers[i]);
    return rc;
}

int shmd_wait_many(shmd_consumer **consumers, size_t n, uint64_t timeout_ns)
{
    enum { LOOK_NS = 50000, LOOK_NS_MAX = 1000000, SPINS = 200, SLICE_NS = 20000000 };
    uint64_t deadline_ns = shmd_deadline(timeout_ns);
    uint64_t look_ns = LOOK_NS;
    for (uint32_t round = 0;; round++) {
        for (size_t i = 0; i < n; i++)
            if (shmd_consumer_check_fork(consumers[i]) != SHMD_OK)
                return SHMD_E_FORKED;
            else if (shmd_load32_relaxed(&consumers[i]->closing))
                return shmd_fail(SHMD_E_CLOSED, "stream %s: consumer was closed by another thread", consumers[i]->stream);
        int ready = count_ready(consumers, n);
        uint64_t now = shmd_now_ns(), slice_ns = SLICE_NS;
        for (size_t i = 0; i < n; i++) /* they may be of several clients */
            slice_ns = shmd_client_waits(consumers[i]->client, now, slice_ns);
        if (ready != 0 || n == 0 || now >= deadline_ns)
            return ready;
        for (size_t i = 0; i < n; i++)
            if (round == 0 || consumers[i]->slack != 0)
                shmd_consumer_before_idle(consumers[i]);
        for (size_t i = 0; i < n && round >= SPINS; i++)
            (void)shmd_consumer_over(consumers[i], now);
        if (round < SPINS) {
            shmd_pause();
        } else {
            if (sleep_for_any(consumers, n, shmd_min(deadline_ns - now, slice_ns), look_ns) == SHMD_E_INTERRUPTED)
                return shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal");
            look_ns = shmd_min(look_ns * 2, LOOK_NS_MAX);
        }
    }
}
