/* shmd_notifier.c: fds that are readable while a consumer has something to read, for select, epoll and asyncio. One thread a
 * client, started with the first watch, sleeps for all of its watched consumers at once.
 *
 * A watch is
 *     READABLE   the fd is readable; its owner reads, and nobody spends anything on its messages
 *     ARMED      the fd is not readable; the notifier makes it so when there is something to see
 *     PAUSED     it was ARMED, and its owner waits in a call of its own
 * The owner's calls arm it when nothing is left (settle); the thread, or an owner's call, signals it. Both do so under the
 * notifier's mutex, so that clearing an fd and looking once more is one step for the other side.
 *
 * The thread never touches a consumer: it looks at a copy of what shmd_consumer_ready reads, made by the owner whenever it
 * arms, and keeps the epoch's mapping. A producer sees one sleeper in both of them: the owner announces it (W1) when it
 * arms, the thread announces it anew after each wake-up. So arming costs no system call but the read that clears the fd:
 * the thread sleeps on the words of all watches, armed or not, and of those that are not nobody bumps the word.
 */
#include "shmd_internal.h"

#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { READABLE = 1, ARMED = 2, PAUSED = 3 };
uint64_t shmd_notifier_slice_ns = 20000000; /* its first sleep, as a reader's; a test may set it */
enum { LOOK_NS_MIN = 50000, LOOK_NS_MAX = 2000000,       /* between looks at streams that cannot wake us */
       HELD_NS_MIN = 1000000, HELD_NS_MAX = 64000000 };  /* between signals to an owner whose views hold its producer back */

struct shmd_watch {
    shmd_consumer seen;         /* what shmd_consumer_ready needs, as the owner left it; nothing else is set */
    shmd_mapping *mapping;      /* the owner's, held */
    shmd_watch *next;
    int fd;
    uint32_t state;
    uint32_t paused;            /* the owner's own note: 1 between pause and settle */
    uint32_t slept_on;          /* 1: its word is among those that the thread sleeps on */
    uint64_t held_next_ns;
    uint64_t held_pause_ns;
};

/* ---- state, under the mutex ------------------------------------------------------------- */

static void copy_seen(const shmd_consumer *c, shmd_watch *w)
{
    shmd_consumer *s = &w->seen;
    if (s->gate_published != c->gate_published) {
        w->held_next_ns = 0;
        w->held_pause_ns = HELD_NS_MIN;
    }
    if (c->mapping != w->mapping) {
        if (c->mapping != NULL)
            shmd_mapping_hold(c->mapping);
        shmd_mapping_free(w->mapping);
        w->mapping = c->mapping;
        w->slept_on = 0;
    }
    s->mapping = c->mapping;
    s->client = c->client;
    s->fork_generation = c->fork_generation;
    s->slots = c->slots;
    s->mask = c->mask;
    s->slot_bytes = c->slot_bytes;
    s->position = c->position;
    s->stride = c->stride;
    s->shard = c->shard;
    s->bound = c->bound;
    s->hot = c->hot;
    s->open_word = c->open_word;
    s->gate_bit = c->gate_bit;
    s->gate_index = c->gate_index;
    s->gated_from = c->gated_from;
    s->gate = c->gate;
    s->gate_published = c->gate_published;
    s->data = c->data;
    s->delivery = c->delivery;
    s->epoch = c->epoch;
    s->last_epoch = c->last_epoch;
    s->ended = c->ended;
    s->stream_index = c->stream_index;
    s->stream_id = c->stream_id;
    s->lease_index = c->lease_index;
    s->lease_id = c->lease_id;
}

static void signal_fd(shmd_watch *w)
{
    static const uint64_t one = 1;
    if (w->state == READABLE)
        return;
    w->state = READABLE;
    if (w->seen.mapping != NULL)
        shmd_store32_relaxed(&w->seen.gate->sleeping, 0); /* its producer need not wake anybody for it */
    (void)!write(w->fd, &one, sizeof one);
}

static void clear_fd(shmd_watch *w)
{
    uint64_t count;
    (void)!read(w->fd, &count, sizeof count); /* whatever the state: the fd is the caller's, who may have written to it */
    w->state = ARMED;
}

static void kick(shmd_notifier_t *n)
{
    shmd_store32_seq_cst(&n->kick_word, shmd_load32_relaxed(&n->kick_word) + 1); /* under the mutex: one writer at a time */
    shmd_futex_wake(&n->kick_word);
}

static int may_hold(const shmd_watch *w)
{
    return w->seen.mapping != NULL && w->seen.gated_from != UINT64_MAX && w->seen.gate_published < w->seen.position;
}

/* Its producer waits at a place that this reader's views may have held and hold no more: only a call of the owner moves the gate. */
static int is_held_back(const shmd_watch *w)
{
    return may_hold(w) && shmd_consumer_is_waited_for(&w->seen);
}

/* ---- the thread -------------------------------------------------------------------------- */

typedef struct sleep_set {
    shmd_word_t words[SHMD_WORDS_MAX];
    uint32_t count;
    int is_looking;             /* some that are armed cannot wake us */
    int is_held;                /* an armed one holds back its producer; nobody tells when no more */
} sleep_set_t;

static void announce(shmd_notifier_t *n, sleep_set_t *set, const uint32_t *change_word)
{
    set->is_looking = 0;
    for (shmd_watch *w = n->watches; w != NULL; w = w->next) {
        const shmd_consumer *s = &w->seen;
        uint32_t seen = 0;
        const uint32_t *word = change_word;
        if (w->state == ARMED)
            word = shmd_consumer_announce(s, &seen);
        else if (s->mapping != NULL)
            word = (shmd_load_acquire(&s->hot->sleep_mask) & s->gate_bit) == 0 || shmd_mapping_is_damaged(s->mapping) ? NULL : &s->data->wake_word;
        if (word != NULL && word != change_word && w->state != ARMED)
            seen = shmd_load32_acquire(word);
        w->slept_on = word == change_word || (word != NULL && set->count < SHMD_WORDS_MAX);
        if (w->slept_on && word != change_word)
            set->words[set->count++] = (shmd_word_t){.word = word, .seen = seen};
        if (!w->slept_on && w->state == ARMED)
            set->is_looking = 1;
    }
}

static uint32_t look(shmd_notifier_t *n, sleep_set_t *set)
{
    uint32_t found = 0;
    uint64_t now = shmd_now_ns();
    set->is_held = 0;
    for (shmd_watch *w = n->watches; w != NULL; w = w->next) {
        if (w->state != ARMED)
            continue;
        (void)shmd_consumer_over(&w->seen, now);
        if (!shmd_mapping_is_damaged(w->seen.mapping) && !shmd_consumer_ready(&w->seen)) {
            int is_held = is_held_back(w);
            set->is_held |= is_held;
            if (!is_held || now < w->held_next_ns)
                continue;
            w->held_next_ns = now + w->held_pause_ns;
            w->held_pause_ns = shmd_min(w->held_pause_ns * 2, HELD_NS_MAX);
        }
        signal_fd(w);
        found++;
    }
    return found;
}

static void *notifier_thread(void *argument)
{
    shmd_client *client = argument;
    shmd_notifier_t *n = &client->notifier;
    const uint32_t *change_word = &client->authority->change_word;
    uint64_t look_ns = LOOK_NS_MIN, slice_ns = 0;
    uint32_t kicks = 0;
    sleep_set_t set;
    (void)prctl(PR_SET_NAME, "shmd-notifier");
    for (;;) {
        /* Before the set is made: what is added after this finds another kick word, and does not sleep. */
        set.words[0] = (shmd_word_t){.word = &n->kick_word, .seen = shmd_load32_acquire(&n->kick_word)};
        uint32_t change = shmd_load32_acquire(change_word); /* E2 */
        set.words[1] = (shmd_word_t){.word = change_word, .seen = change};
        set.count = 2;
        (void)pthread_mutex_lock(&n->mutex);
        if (n->stopped) {
            (void)pthread_mutex_unlock(&n->mutex);
            return NULL;
        }
        announce(n, &set, change_word);
        shmd_fence_seq_cst(); /* W1: all flags before this, another look at all after */
        int is_idle = look(n, &set) == 0;
        look_ns = is_idle ? shmd_min(look_ns * 2, LOOK_NS_MAX) : LOOK_NS_MIN;
        uint64_t least_ns = shmd_load_relaxed(&shmd_notifier_slice_ns);
        int has_new = set.words[0].seen != kicks; /* a word that is slept on for the first time */
        int grows = is_idle && !set.is_held && !has_new;
        slice_ns = grows ? shmd_max(shmd_longer(slice_ns), least_ns) : least_ns;
        kicks = set.words[0].seen;
        (void)pthread_mutex_unlock(&n->mutex);
        SHMD_FAILPOINT("notifier.announced");
        uint64_t limit_ns = set.is_looking ? look_ns : slice_ns;
        (void)shmd_futex_wait_any(set.words, set.count, limit_ns, LOOK_NS_MAX / 2);
    }
}

void shmd_notifier_init(shmd_notifier_t *n) { (void)pthread_mutex_init(&n->mutex, NULL); }

void shmd_notifier_stop(shmd_notifier_t *n)
{
    (void)pthread_mutex_lock(&n->mutex);
    n->stopped = 1;
    for (shmd_watch *w = n->watches; w != NULL; w = w->next)
        signal_fd(w); /* whoever still waits reads, and is told what there is to be told */
    kick(n);
    uint32_t started = n->started;
    n->started = 0;
    (void)pthread_mutex_unlock(&n->mutex);
    if (started) {
        SHMD_ENTERS_WAIT();
        (void)pthread_join((pthread_t)n->thread, NULL);
    }
}

/* ---- the owner's calls ------------------------------------------------------------------- */

static int start(shmd_client *client)
{
    shmd_notifier_t *n = &client->notifier;
    if (n->started)
        return SHMD_OK;
    if (n->stopped)
        return shmd_fail(SHMD_E_CLOSED, "this client has disconnected: nobody would feed the fd");
    int rc = shmd_thread_start(&client->threads, notifier_thread, client, "notifier", &n->thread);
    n->started = rc == SHMD_OK;
    return rc;
}

int shmd_consumer_watch(shmd_consumer *c, int fd)
{
    if (shmd_consumer_check_fork(c) != SHMD_OK)
        return SHMD_E_FORKED;
    if (fd < 0 || c->watch != NULL)
        shmd_watch_end(c);
    if (fd < 0)
        return SHMD_OK;
    shmd_watch *w = calloc(1, sizeof *w);
    if (w == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory for a watch");
    shmd_notifier_t *n = &c->client->notifier;
    (void)pthread_mutex_lock(&n->mutex);
    int rc = start(c->client);
    if (rc == SHMD_OK) {
        w->fd = fd;
        w->state = PAUSED;
        w->held_pause_ns = HELD_NS_MIN;
        signal_fd(w); /* as if there were something, so that settle clears whatever the fd said before */
        copy_seen(c, w);
        w->next = n->watches;
        n->watches = w;
        c->watch = w;
    }
    (void)pthread_mutex_unlock(&n->mutex);
    if (rc != SHMD_OK) {
        free(w);
        return rc;
    }
    (void)shmd_consumer_settle(c);
    return SHMD_OK;
}

int shmd_consumer_settle(shmd_consumer *c)
{
    if (shmd_consumer_check_fork(c) != SHMD_OK)
        return SHMD_E_FORKED;
    shmd_watch *w = c->watch;
    if (w == NULL)
        return shmd_fail(SHMD_E_INVALID, "stream %s: this consumer has no fd; give it one with shmd_consumer_watch", c->stream);
    shmd_notifier_t *n = &c->client->notifier;
    int is_ready = shmd_consumer_ready(c);
    uint32_t seen;
    w->paused = 0;
    if (!is_ready)
        shmd_consumer_before_idle(c);
    (void)pthread_mutex_lock(&n->mutex);
    copy_seen(c, w);
    c->is_over |= w->seen.is_over; /* found by the thread */
    if (!is_ready && !n->stopped) {
        (void)shmd_consumer_announce(c, &seen);
        shmd_fence_seq_cst(); /* W1: as the thread's */
        is_ready = shmd_consumer_ready(c);
    }
    if (is_ready || n->stopped) {
        signal_fd(w);
    } else {
        clear_fd(w);
        if (!w->slept_on || is_held_back(w)) /* held: nobody tells when no more, and it may sleep for long */
            kick(n);
    }
    (void)pthread_mutex_unlock(&n->mutex);
    return is_ready;
}

void shmd_watch_pause(shmd_consumer *c)
{
    (void)pthread_mutex_lock(&c->client->notifier.mutex);
    if (c->watch->state == ARMED) {
        c->watch->state = PAUSED; /* the owner stores its flag itself now; a producer's wake-up finds both of us */
        c->watch->paused = 1;
    }
    (void)pthread_mutex_unlock(&c->client->notifier.mutex);
}

void shmd_watch_resume(shmd_consumer *c)
{
    if (c->watch != NULL && c->watch->paused)
        (void)shmd_consumer_settle(c);
}

void shmd_watch_released(shmd_consumer *c)
{
    if (c->watch == NULL)
        return;
    (void)pthread_mutex_lock(&c->client->notifier.mutex);
    copy_seen(c, c->watch);
    (void)pthread_mutex_unlock(&c->client->notifier.mutex);
}

void shmd_watch_signal(shmd_consumer *c)
{
    (void)pthread_mutex_lock(&c->client->notifier.mutex);
    copy_seen(c, c->watch);
    c->watch->paused = 0;
    signal_fd(c->watch);
    (void)pthread_mutex_unlock(&c->client->notifier.mutex);
}

void shmd_watch_end(shmd_consumer *c)
{
    shmd_watch *w = c->watch;
    if (w == NULL)
        return;
    shmd_notifier_t *n = &c->client->notifier;
    (void)pthread_mutex_lock(&n->mutex);
    shmd_watch **at = &n->watches;
    while (*at != w)
        at = &(*at)->next;
    *at = w->next;
    copy_seen(c, w);
    signal_fd(w);
    (void)pthread_mutex_unlock(&n->mutex);
    c->watch = NULL;
    shmd_mapping_free(w->mapping);
    free(w);
}
