/* shmd_consumer_flow.c: how a reader keeps off the heels of a producer that publishes as fast as it can.
 *
 *     eager --caught up, and messages came like a flow--> held: hold, look at the head --it went ahead--> in flow
 *       ^                                                         '--it did not--> eager             |       |
 *       '-------------------- the head did not go ahead in a hold <----- read up to look_until -----'<------'
 *
 * A reader that is right behind its producer asks for lines that are about to be filled, and so does what the processor reads
 * ahead: each is fetched back from its core before the producer's next stores get on, and both are slow. So a reader in flow
 * holds still for a moment whenever it has caught up, and then reads to a little short of the head. The head is no
 * condition: what stands past one that does not move is read as ever, by the commit words.
 *
 * An eager reader over far cores can keep its producer so slow that nothing looks like a flow. Messages that come one by one but
 * close together are therefore given a hold as a trial, and each trial that shows no flow makes the next one rarer: two that
 * answer each other hardly ever pay for one.
 *
 * A consumer attached with SHMD_PACE_EAGER is always eager: it never holds still, whatever that costs its producer.
 */
#include "shmd_internal.h"

enum {
    HOLD_NS = 2000,        /* in a ring of at least SLOTS_FULL slots; in smaller ones it must not fill meanwhile */
    SLOTS_FULL = 1024,
    SLOTS_MIN = 512,
    FLOW_NS = 30,          /* a message in at most this time is a flow */
    CHASE_NS = 100,        /* this is slower, and perhaps only for being chased */
    TRIAL_AFTER_MAX = 65536,
    PAUSES = 4             /* between two looks at the clock */
};

/* Messages of a flow in one hold; half of it is how far a reader stays behind the head. */
static uint64_t flow_in_hold(const shmd_consumer *c) { return c->hold_ns / FLOW_NS; }

void shmd_consumer_flow_begin(shmd_consumer *c)
{
    uint64_t slots = c->mask + 1;
    int never_holds = slots < SLOTS_MIN || c->pace == SHMD_PACE_EAGER;
    c->hold_ns = never_holds ? 0 : shmd_min(slots, SLOTS_FULL) * HOLD_NS / SLOTS_FULL;
    c->caught_up_ns = 0;
    c->caught_up_at = c->position;
    c->chased = 0;
    c->trial_after = 1;
}

static void hold(shmd_consumer *c, uint64_t since_ns)
{
    c->holds++;
    do
        for (int i = 0; i < PAUSES; i++)
            shmd_pause();
    while (shmd_now_ns() - since_ns < c->hold_ns);
}

/* In flow from here on when the head is far enough away (1), else eager (0). */
static int follow_head(shmd_consumer *c)
{
    uint64_t enough = flow_in_hold(c);
    uint64_t head = shmd_load_acquire(&c->data->head); /* P3 */
    int is_flow = enough != 0 && head > c->position && head - c->position >= enough;
    c->look_until = is_flow ? head - enough / 2 : c->bound;
    return is_flow;
}

void shmd_consumer_keep_off(shmd_consumer *c)
{
    if (follow_head(c))
        return;
    hold(c, shmd_now_ns());
    (void)follow_head(c);
}

void shmd_consumer_caught_up(shmd_consumer *c)
{
    uint64_t n = c->position - c->caught_up_at; /* of the stream, also where it reads a shard of it */
    if (n == 0 || c->hold_ns == 0 || !shmd_consumer_is_protected(c))
        return;
    uint64_t now_ns = shmd_now_ns(), ns = now_ns - c->caught_up_ns;
    c->caught_up_at = c->position;
    c->caught_up_ns = now_ns;
    int is_flow = n >= flow_in_hold(c) && ns <= n * FLOW_NS;
    int is_trial = !is_flow && ns <= n * CHASE_NS && ++c->chased >= c->trial_after;
    if (!is_flow && !is_trial)
        return;
    c->chased = 0;
    hold(c, now_ns);
    c->trial_after = follow_head(c) ? 1 : (uint32_t)shmd_min((uint64_t)c->trial_after * 2, TRIAL_AFTER_MAX);
}
