/* shmd_consumer_wait.c: how a consumer waits: it spins, then sleeps on futex words. Nothing
 * yields: a yield hands the core to a busy neighbour for milliseconds, and no message ends that.
 * Every sleep has a time limit, which doubles while nothing comes. */
#include "shmd_internal.h"

enum {
    FIRST_SLICE_NS = 20000000,  /* for an attach: a producer looks at sleep_mask without a fence */
    LOOK_NS_MIN = 50000,        /* between looks at a stream whose producer wakes nobody: */
    LOOK_NS_MAX = 1000000,
    LOOK_PART = 16              /* this part of the time that nothing has come */
};

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
        c->slice_ns = FIRST_SLICE_NS;
    } else if (now_ns - c->idle_since_ns >= SHMD_LONG_WAIT_NS) {
        c->is_over = (uint32_t)shmd_client_over(c->client, now_ns);
    }
    return (int)c->is_over;
}

int shmd_consumer_is_waited_for(const shmd_consumer *c)
{
    return shmd_load32_acquire(&c->data->blocked_gate) == c->gate_index + 1 && /* B1 */
           shmd_load_relaxed(&c->data->blocked_position) == c->gate_published;
}

/* The caller's views hold the gate at the very place where the producer waits: only the caller
 * moves it. */
int shmd_consumer_blocks_itself(const shmd_consumer *c)
{
    return c->hold_seq != UINT64_MAX && c->gate != NULL && c->hold_seq <= c->gate_published &&
           shmd_consumer_is_waited_for(c);
}

/* How long the next sleep is: grown, if it has slept since the last message. */
static uint64_t slice_of(const shmd_consumer *c)
{
    int is_here = c->idle_at == c->position && c->idle_epoch == c->last_epoch;
    return is_here && c->idle_since_ns != 0 ? c->slice_ns : FIRST_SLICE_NS;
}

/* The first half of W1. The caller executes a seq_cst fence, looks again, and then sleeps on the word. */
const uint32_t *shmd_consumer_announce(const shmd_consumer *c, uint32_t *seen)
{
    if (c->mapping == NULL) {
        *seen = shmd_load32_acquire(&c->client->authority->change_word); /* E2 */
        return &c->client->authority->change_word;
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

/* One sleep of at most slice_ns (SHMD_E_TIMEOUT: all of it). It ends with a message, with a
 * change that the driver tells of, and with a close. */
static int sleep_once(shmd_consumer *c, uint64_t now_ns, uint64_t slice_ns)
{
    const uint32_t *change_word = &c->client->authority->change_word;
    uint32_t change = shmd_load32_acquire(change_word); /* E2: before the look */
    uint32_t seen = 0, count = 0;
    uint64_t limit_ns = slice_ns, part_ns = (now_ns - c->idle_since_ns) / LOOK_PART;
    shmd_word_t words[3];
    const uint32_t *word = shmd_consumer_announce(c, &seen);
    if (word == NULL) /* nobody wakes it: wake-ups are forbidden on this stream */
        limit_ns = shmd_min(slice_ns, shmd_max(LOOK_NS_MIN, shmd_min(part_ns, LOOK_NS_MAX)));
    else if (word != change_word)
        words[count++] = (shmd_word_t){.word = word, .seen = seen};
    words[count++] = (shmd_word_t){.word = change_word, .seen = change};
    words[count++] = (shmd_word_t){.word = &c->closing, .seen = SHMD_HANDLE_OPEN}; /* H2 */
    shmd_fence_seq_cst(); /* W1: flag before this, another look after; the producer commits, fences, looks for flags */
    SHMD_FAILPOINT("sleep.announced");
    int is_over = shmd_consumer_ready(c) || shmd_consumer_blocks_itself(c);
    int rc = is_over ? SHMD_OK : shmd_futex_wait_any(words, count, limit_ns, FIRST_SLICE_NS);
    retract(c);
    return rc == SHMD_E_TIMEOUT && limit_ns < slice_ns ? SHMD_OK : rc;
}

/* 1: something to see; 0: not in time, or it is being closed, or the caller is to say first what it
 * still holds. */
int shmd_wait(shmd_consumer *c, uint64_t timeout_ns)
{
    enum { SPINS = 1500 };
    if (shmd_consumer_check_fork(c) != SHMD_OK)
        return SHMD_E_FORKED;
    if (shmd_consumer_ready(c))
        return 1;
    if (timeout_ns == 0)
        return 0;
    shmd_consumer_before_idle(c);
    uint64_t deadline_ns = shmd_deadline(timeout_ns);
    /* Once a message: who has slept for it already sleeps on. */
    int is_new = c->mapping != NULL && slice_of(c) == FIRST_SLICE_NS;
    uint32_t spins = c->wait == SHMD_WAIT_ADAPTIVE && is_new ? SPINS : 0;
    for (uint32_t i = 1; c->wait == SHMD_WAIT_SPIN || i < spins; i++) {
        shmd_pause();
        if (shmd_consumer_ready(c))
            return 1;
        uint64_t now = i % 256 == 0 ? shmd_now_ns() : 0;
        if (now != 0)
            (void)shmd_client_waits(c->client, now, 0);
        if (now != 0 && (now >= deadline_ns || shmd_load32_relaxed(&c->closing)))
            return 0;
        if (now != 0 && shmd_consumer_blocks_itself(c))
            return 0;
        if (now != 0 && shmd_consumer_over(c, now))
            return 1;
        if (i % 256 == 0 && c->slack != 0)
            shmd_consumer_before_idle(c); /* other shards' messages came and must not fill the ring */
    }
    for (;;) {
        uint64_t now = shmd_now_ns();
        uint64_t limit_ns = shmd_client_waits(c->client, now, SHMD_LONG_WAIT_NS);
        if (now >= deadline_ns || shmd_load32_relaxed(&c->closing))
            return 0;
        if (shmd_consumer_over(c, now))
            return 1;
        limit_ns = shmd_min(limit_ns, deadline_ns - now);
        int rc = sleep_once(c, now, shmd_min(limit_ns, c->slice_ns));
        if (rc == SHMD_E_INTERRUPTED)
            return shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal");
        if (shmd_consumer_ready(c))
            return 1;
        if (shmd_consumer_blocks_itself(c))
            return 0;
        if (rc == SHMD_E_TIMEOUT && c->slice_ns <= limit_ns)
            c->slice_ns = shmd_longer(c->slice_ns);
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

/* The words of one sleep for several consumers. */
typedef struct sleep_set {
    shmd_word_t words[SHMD_WORDS_MAX];
    uint32_t count;
    uint64_t slice_ns;
} sleep_set_t;

/* limit_ns: how long it may sleep if there is no room for this word. */
static void add_word(sleep_set_t *set, const uint32_t *word, uint32_t seen, uint64_t limit_ns)
{
    if (set->count < SHMD_WORDS_MAX)
        set->words[set->count++] = (shmd_word_t){.word = word, .seen = seen};
    else
        set->slice_ns = shmd_min(set->slice_ns, limit_ns);
}

/* Those of all their clients, once each: their consumers wait for what the drivers tell (E2). */
static void add_change_words(sleep_set_t *set, shmd_consumer **consumers, size_t n,
                             uint64_t look_ns)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t *word = &consumers[i]->client->authority->change_word;
        uint32_t known = 0;
        while (known < set->count && set->words[known].word != word)
            known++;
        if (known == set->count)
            add_word(set, word, shmd_load32_acquire(word), look_ns);
    }
}

/* How many of them keep a producer waiting for places that their callers hold. */
static int count_held(shmd_consumer **consumers, size_t n)
{
    int held = 0;
    for (size_t i = 0; i < n; i++)
        held += shmd_consumer_blocks_itself(consumers[i]);
    return held;
}

/* The conditions that end a wait although none of its consumers is ready. */
typedef struct wait_ends {
    const shmd_word_t *others; /* H3: words of the caller's */
    uint32_t count;
    int held;                  /* B1: more than so many that keep a producer waiting */
} wait_ends_t;

static int has_ended(shmd_consumer **consumers, size_t n, const wait_ends_t *ends)
{
    return shmd_words_changed(ends->others, ends->count) || count_held(consumers, n) > ends->held;
}

/* As sleep_once, for all of them at a time. Those that nobody wakes, and those beyond what the
 * kernel takes, are looked at every look_ns. */
static int sleep_for_any(shmd_consumer **consumers, size_t n, const wait_ends_t *ends, uint64_t slice_ns, uint64_t look_ns)
{
    sleep_set_t set = {.count = 0, .slice_ns = slice_ns};
    add_change_words(&set, consumers, n, look_ns);
    for (uint32_t i = 0; i < ends->count; i++)
        add_word(&set, ends->others[i].word, ends->others[i].seen, look_ns);
    for (size_t i = 0; i < n; i++) {
        uint32_t seen = 0;
        const uint32_t *word = shmd_consumer_announce(consumers[i], &seen);
        if (word == NULL)
            set.slice_ns = shmd_min(set.slice_ns, look_ns);
        else if (word != &consumers[i]->client->authority->change_word)
            add_word(&set, word, seen, look_ns);
    }
    for (size_t i = 0; i < n; i++)
        add_word(&set, &consumers[i]->closing, SHMD_HANDLE_OPEN, FIRST_SLICE_NS); /* H2 */
    shmd_fence_seq_cst(); /* W1: all flags before this, another look at all after */
    int rc = SHMD_OK;
    if (!count_ready(consumers, n) && !has_ended(consumers, n, ends))
        rc = shmd_futex_wait_any(set.words, set.count, set.slice_ns, LOOK_NS_MAX);
    for (size_t i = 0; i < n; i++)
        retract(consumers[i]);
    return rc == SHMD_E_TIMEOUT && set.slice_ns < slice_ns ? SHMD_OK : rc;
}

/* As slice_of, for all of them. */
static uint64_t shortest_slice(shmd_consumer **consumers, size_t n)
{
    uint64_t slice_ns = SHMD_LONG_WAIT_NS;
    for (size_t i = 0; i < n; i++)
        slice_ns = shmd_min(slice_ns, slice_of(consumers[i]));
    return slice_ns;
}

int shmd_wait_many_or(shmd_consumer **consumers, size_t n, uint64_t timeout_ns, const shmd_word_t *others, uint32_t count)
{
    enum { SPINS = 200, HELD_NS = 50000000 }; /* nobody tells that views have gone; only a look of their owner moves the gate */
    wait_ends_t ends = {.others = others, .count = count, .held = count_held(consumers, n)};
    uint64_t deadline_ns = shmd_deadline(ends.held == 0 ? timeout_ns : shmd_min(timeout_ns, HELD_NS));
    uint64_t look_ns = LOOK_NS_MIN;
    uint32_t spins = shortest_slice(consumers, n) == FIRST_SLICE_NS ? SPINS : 0;
    for (uint32_t round = 0;; round++) {
        for (size_t i = 0; i < n; i++)
            if (shmd_consumer_check_fork(consumers[i]) != SHMD_OK)
                return SHMD_E_FORKED;
            else if (shmd_load32_relaxed(&consumers[i]->closing))
                return shmd_fail(SHMD_E_CLOSED, "stream %s: consumer was closed by another thread", consumers[i]->stream);
        int ready = count_ready(consumers, n);
        uint64_t now = shmd_now_ns(), limit_ns = SHMD_LONG_WAIT_NS;
        for (size_t i = 0; i < n; i++) /* they may be of several clients */
            limit_ns = shmd_client_waits(consumers[i]->client, now, limit_ns);
        if (ready != 0 || n + count == 0 || now >= deadline_ns || has_ended(consumers, n, &ends))
            return ready;
        for (size_t i = 0; i < n; i++)
            if (round == 0 || consumers[i]->slack != 0)
                shmd_consumer_before_idle(consumers[i]);
        if (round < spins) {
            shmd_pause();
            continue;
        }
        for (size_t i = 0; i < n; i++)
            (void)shmd_consumer_over(consumers[i], now);
        uint64_t slice_ns = shortest_slice(consumers, n);
        limit_ns = shmd_min(limit_ns, deadline_ns - now);
        int rc = sleep_for_any(consumers, n, &ends, shmd_min(limit_ns, slice_ns), look_ns);
        if (rc == SHMD_E_INTERRUPTED)
            return shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal");
        for (size_t i = 0; i < n && rc == SHMD_E_TIMEOUT && slice_ns <= limit_ns; i++)
            consumers[i]->slice_ns = shmd_longer(slice_ns);
        look_ns = shmd_min(look_ns * 2, LOOK_NS_MAX);
    }
}

int shmd_wait_many(shmd_consumer **consumers, size_t n, uint64_t timeout_ns)
{
    return shmd_wait_many_or(consumers, n, timeout_ns, NULL, 0);
}
