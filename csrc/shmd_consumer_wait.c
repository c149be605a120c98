/* shmd_consumer_wait.c: how a consumer waits: spin, yield, sleep on a futex word. Every sleep has a timeout. */
#include "shmd_internal.h"

#include <sched.h>
#include <time.h>

int shmd_consumer_ready(shmd_consumer *c)
{
    shmd_epoch_record_t record;
    uint32_t index, reason;
    if (c->ended != 0)
        return 1;
    if (c->mapping == NULL) {
        return shmd_stream_next_epoch(c->client, c->stream_index, c->stream_id, c->last_epoch, c->gate_bit, &record, &index) ||
               !shmd_lease_live(c->client, c->lease_index, c->lease_id, &reason);
    }
    uint64_t seq = c->position;
    uint64_t state = shmd_load_acquire(&c->hot->state);
    if (seq >= c->bound || (state != c->open_word && state != ((uint64_t)c->epoch << 8 | SHMD_EPOCH_SEALING)))
        return 1;
    if ((shmd_load_relaxed(c->gated_from == UINT64_MAX ? &c->hot->wired_mask : &c->hot->gate_mask) & c->gate_bit) == 0)
        return 1;
    if (state == ((uint64_t)c->epoch << 8 | SHMD_EPOCH_SEALING))
        return 0;
    if (c->delivery == SHMD_DELIVERY_LATEST) {
        uint64_t head = shmd_min(shmd_load_acquire(&c->data->head), c->bound);
        seq = head > seq + 1 ? head - 1 : seq;
    }
    return shmd_load_acquire(&shmd_consumer_slot(c, seq)->commit) >= ((seq << 1) | 1); /* P2; larger: lapped */
}

static int nap(uint64_t ns)
{
    struct timespec pause = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    return nanosleep(&pause, NULL) == 0 || errno != EINTR ? SHMD_OK : shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal");
}

/* One sleep of at most slice_ns, on the word that whoever has news for us bumps. */
static int sleep_once(shmd_consumer *c, uint64_t slice_ns)
{
    enum { NAP_NS = 50000 };
    if (c->mapping == NULL) {
        uint32_t seen = shmd_load32_acquire(&c->client->authority->event_word);
        return shmd_consumer_ready(c) ? SHMD_OK : shmd_futex_wait(&c->client->authority->event_word, seen, slice_ns);
    }
    if ((shmd_load_acquire(&c->hot->sleep_mask) & c->gate_bit) == 0) { /* nobody wakes us on this stream */
        return nap(shmd_min(slice_ns, NAP_NS));
    }
    uint32_t seen = shmd_load32_acquire(&c->data->wake_word);
    shmd_store32_seq_cst(&c->gate->sleeping, seen << 1 | 1);
    shmd_fence_seq_cst(); /* W1: flag before this, another look after; the producer commits, fences, looks for flags */
    SHMD_FAILPOINT("sleep.announced");
    int rc = shmd_consumer_ready(c) ? SHMD_OK : shmd_futex_wait(&c->data->wake_word, seen, slice_ns);
    shmd_store32_relaxed(&c->gate->sleeping, 0);
    return rc;
}

int shmd_wait(shmd_consumer *c, uint64_t timeout_ns)
{
    enum { SPINS = 1500, YIELDS = 8, SLICE_NS = 20000000 };
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
        if (i % 256 == 0 && (shmd_now_ns() >= deadline_ns || shmd_load32_relaxed(&c->closing)))
            return 0;
    }
    for (int i = 0; i < YIELDS && c->wait == SHMD_WAIT_ADAPTIVE; i++) {
        (void)sched_yield();
        if (shmd_consumer_ready(c))
            return 1;
    }
    for (;;) {
        uint64_t now = shmd_now_ns();
        if (now >= deadline_ns || shmd_load32_relaxed(&c->closing))
            return 0;
        if (sleep_once(c, shmd_min(deadline_ns - now, SLICE_NS)) == SHMD_E_INTERRUPTED)
            return shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal");
        if (shmd_consumer_ready(c))
            return 1;
    }
}

int shmd_wait_many(shmd_consumer **consumers, size_t n, uint64_t timeout_ns)
{
    enum { NAP_NS = 50000, NAP_NS_MAX = 1000000, SPINS = 200 };
    uint64_t deadline_ns = shmd_deadline(timeout_ns);
    uint64_t pause_ns = NAP_NS;
    for (uint32_t round = 0;; round++) {
        int ready = 0;
        for (size_t i = 0; i < n; i++) {
            if (shmd_load32_relaxed(&consumers[i]->closing))
                return shmd_fail(SHMD_E_CLOSED, "stream %s: consumer was closed by another thread", consumers[i]->stream);
            ready += shmd_consumer_ready(consumers[i]);
        }
        uint64_t now = shmd_now_ns();
        if (ready != 0 || now >= deadline_ns)
            return ready;
        if (round == 0)
            for (size_t i = 0; i < n; i++)
                shmd_consumer_before_idle(consumers[i]);
        if (round < SPINS) {
            shmd_pause();
        } else {
            if (nap(shmd_min(pause_ns, deadline_ns - now)) != SHMD_OK)
                return SHMD_E_INTERRUPTED;
            pause_ns = shmd_min(pause_ns * 2, NAP_NS_MAX);
        }
    }
}
