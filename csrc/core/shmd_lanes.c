/* shmd_lanes.c: which of several producers' streams has the oldest message, and how many of its messages come before all others.
 *
 * Every message carries the time of its commit (CLOCK_MONOTONIC, one clock for all processes). The reader takes the time T, looks at
 * the next message of each stream, and takes the one with the smallest stamp. Let a publish of A have returned before the publish of
 * B began, in whichever processes: A is committed before B's stamp is taken, so stamp(A) <= stamp(B). When B is seen and
 * stamp(B) <= T, A was committed before T, so a look after T sees A, and A goes out first. A message that is younger than T proves
 * nothing about streams that were looked at before it came: the reader looks once more, with a new T.
 *
 * One thread's publishes need another look. Its clock does not wait for its store buffer, so A may become visible after B was stamped
 * and T was taken, right before B does. So the reader looks at all streams again when it has seen what it is about to hand out: whoever
 * sees B sees all that the thread committed before (P2).
 */
#include "shmd_internal.h"

enum { LOOKS = 2 }; /* what the first look saw is older than the second one's T; a clock that lies is looked at twice, not for ever */

/* The stamp of the next message, UINT64_MAX when there is none; 0, so that it comes first, when a fetch has an end to tell. */
static uint64_t next_stamp(shmd_consumer *c)
{
    shmd_message m;
    int rc = shmd_consumer_enter(c);
    if (rc != SHMD_OK)
        return 0;
    rc = shmd_poll_inline(c, &m);
    shmd_handle_leave(&c->busy);
    return rc == 1 ? m.timestamp_ns : rc == 0 ? UINT64_MAX : 0;
}

/* How many messages in a row, of those that are committed, are not younger than `until`. The first one was looked at. */
static uint64_t count_until(shmd_consumer *c, uint64_t until, uint64_t most)
{
    uint64_t n = 1;
    if (shmd_consumer_enter(c) != SHMD_OK)
        return n;
    uint64_t seq = c->position;
    while (c->mapping != NULL && n < most && ++seq < c->bound) {
        const shmd_slot_t *slot = shmd_consumer_slot(c, seq);
        if (shmd_load_acquire(&slot->commit) != ((seq << 1) | 1) || shmd_load_relaxed(&slot->timestamp_ns) > until) /* P2 */
            break;
        n++;
    }
    shmd_handle_leave(&c->busy);
    return n;
}

typedef struct elders {
    uint64_t first, second; /* stamps of the two oldest messages */
    uint32_t index;         /* whose the oldest one is */
} elders_t;

static elders_t look_at_all(shmd_consumer **consumers, uint32_t n)
{
    elders_t found = {.first = UINT64_MAX, .second = UINT64_MAX};
    for (uint32_t i = 0; i < n; i++) {
        uint64_t stamp = next_stamp(consumers[i]);
        if (stamp < found.first)
            found = (elders_t){.first = stamp, .second = found.first, .index = i};
        else
            found.second = shmd_min(found.second, stamp);
    }
    return found;
}

int64_t shmd_guarded_oldest(shmd_consumer **consumers, uint32_t n, uint32_t most, const uint64_t *event_head, uint64_t events_seen)
{
    uint64_t now = 0, taken_at;
    elders_t found = {.first = UINT64_MAX};
    for (int look = 0; look < LOOKS && (look == 0 || found.first > now); look++) {
        now = shmd_now_ns();
        shmd_store_relaxed(&taken_at, now); /* the fence waits for a store, and so for the time that it stores */
        shmd_fence_seq_cst();               /* before the looks: the argument above */
        if (event_head != NULL && shmd_load_acquire(event_head) != events_seen)
            return -2; /* after T: a stream whose producer came before is known to the caller */
        found = look_at_all(consumers, n);
        if (found.first == UINT64_MAX)
            return -1;
    }
    uint64_t count = count_until(consumers[found.index], shmd_min(now, found.second), most);
    if (n == 1)
        return (int64_t)(count << 32 | found.index);
    elders_t again = look_at_all(consumers, n); /* after the loads of all that was counted (P2) */
    if (again.first == UINT64_MAX)
        return -1;
    count = again.index != found.index ? 1 : count_until(consumers[again.index], shmd_min(now, again.second), (uint32_t)count);
    return (int64_t)(count << 32 | again.index);
}

uint64_t shmd_consumer_count(const shmd_consumer *c, uint64_t types)
{
    uint64_t count = 0;
    if (!shmd_consumer_look_begin(c))
        return 0;
    uint64_t head = shmd_load_acquire(&c->data->head); /* P3 */
    uint64_t seq = shmd_max(c->position, head > c->mask ? head - c->mask - 1 : 0);
    for (; seq < head; seq++) {
        const shmd_slot_t *slot = shmd_consumer_slot(c, seq);
        if (shmd_load_acquire(&slot->commit) == ((seq << 1) | 1)) /* P2 */
            count += types >> (shmd_load16_relaxed(&slot->type) & 63) & 1;
    }
    shmd_consumer_look_end(c);
    return count;
}
