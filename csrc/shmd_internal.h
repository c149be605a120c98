/* shmd_internal.h: what the core's own files share and nobody else sees. */
#ifndef SHMD_INTERNAL_H
#define SHMD_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#define SHMD_NO_INLINE 1
#include "shmdriver.h"
#include "core/shmd_bus_error.h"
#include "core/shmd_client_ring.h"
#include "core/shmd_fork.h"
#include "core/shmd_seqlock.h"
#include "core/shmd_session.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>

enum { SHMD_PAGE_BYTES_MIN = 4096 };
#define SHMD_ATTACH_TIMEOUT_NS 5000000000u /* where the caller leaves it to us */

/* Sets this thread's text (printf-like), with what could drive a terminal escaped, and returns code: a refusal is one line. */
int shmd_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
int shmd_fail_errno(uint32_t call, const char *format, ...) __attribute__((format(printf, 2, 3))); /* SHMD_E_SYSTEM; appends strerror and the hint; errno stays */
const char *shmd_errno_text(uint32_t call, int error); /* strerror, and the hint if there is one; a thread's until its next call */
void shmd_escape(char *out, size_t out_bytes, const char *text); /* copies it with what could drive a terminal escaped (\x1b, \u202e), and what is not UTF-8 */
void shmd_fail_answer(uint32_t code, uint32_t reason);                              /* what shmd_last_code, shmd_last_reason say */

static inline uint64_t shmd_round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }
static inline uint64_t shmd_min(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t shmd_max(uint64_t a, uint64_t b) { return a > b ? a : b; }
uint64_t shmd_page_bytes(void);

uint64_t shmd_process_start_time(int64_t pid);  /* of the process of that number in this PID namespace; 0: not known */
int shmd_pidfd_has_fired(int pidfd);            /* 1: all threads of its process have ended */

/* Places and owners (core/shmd_folder.c, core/shmd_scan.c, core/shmd_trust.c). */
enum { SHMD_OWNERS_MAX = 32 };
int shmd_instance_is_name(const char *instance);
int shmd_instance_check(const char *instance);      /* 0, SHMD_E_INVALID */
int shmd_folder_system(const char *instance, shmd_folder_t *out); /* the folder that the system has for this instance: 1; 0: none; negative: that cannot be told */
int shmd_is_nobody(uint32_t uid);                   /* 1: stands for all who have no number in this user namespace; 0; negative: that cannot be told */
int shmd_is_own_or_roots(uint32_t uid);
/* Whose drivers this process uses, at most SHMD_OWNERS_MAX, in the order in which they are asked: how many; negative. NULL: no folder. */
int shmd_owners_trusted(const shmd_folder_t *folder, uint32_t *out);

int shmd_request_begin(shmd_request_t *request, uint32_t role, const char *stream, const char *schema); /* an attach; 0, SHMD_E_INVALID */
uint64_t shmd_request_checksum(const shmd_request_t *request, uint32_t who, uint64_t nonce);
/* The ungated read of one slot into private memory: 1 copied, 0 not there yet, SHMD_E_OVERRUN lapped, SHMD_E_TOO_LARGE, SHMD_E_CORRUPT. */
typedef struct shmd_ring_view {
    const unsigned char *slots;
    const unsigned char *arena;
    const uint64_t *arena_intent;
    uint64_t mask;
    uint64_t arena_bytes;
    uint32_t slot_bytes;
    uint32_t inline_max;
} shmd_ring_view_t;
int shmd_slot_copy(const shmd_ring_view_t *ring, uint64_t seq, void *out, uint64_t out_bytes, shmd_message *message);
int shmd_arena_resolve(const unsigned char *arena, uint64_t arena_bytes, const void *payload, uint32_t length, const void **data);

/* One epoch mapped by a producer or a consumer. */
struct shmd_mapping {
    uint32_t owners;
    uint32_t epoch;
    shmd_damage_t damage;   /* SHMD_DAMAGED_*: which of the segments somebody truncated, as far as this process has met that */
    void *data;
    void *ring;
    void *arena;
    void *gates;
    uint64_t ring_bytes;    /* once; mapped twice */
    uint64_t arena_bytes;
    uint64_t gates_bytes;
    uint64_t serial;
    unsigned char *scratch; /* of a consumer: room for a copy of the epoch's largest message */
    uint64_t scratch_bytes;
    uint32_t fork_generation;
    uint32_t prefaults;     /* 1: its pages were populated when they were mapped */
    char data_name[SHMD_SEGMENT_NAME_BYTES];
    char gates_name[SHMD_SEGMENT_NAME_BYTES];
};

/* Relaxed: after an acquire fence behind the last load it says whether what was loaded is the segment's (G3). */
static inline int shmd_mapping_is_damaged(const shmd_mapping *mapping)
{
    return mapping != NULL && shmd_load32_relaxed(&mapping->damage.damaged) != 0;
}
/* A handle is mapped to it, until disowned: damage stores `value` to the handle's word, so its hot path notices at no cost. */
void shmd_mapping_own(shmd_mapping *mapping, uint64_t *word, uint64_t value);
void shmd_mapping_disown(shmd_mapping *mapping); /* NULL: nothing */
int shmd_mapping_refuse(const shmd_mapping *mapping, const char *stream); /* SHMD_E_REVOKED: which segment was truncated, as far as this process has met it. NULL: none */

/* The first seq at or past `seq` that this consumer reads. */
static inline uint64_t shmd_shard_next(const shmd_consumer *c, uint64_t seq)
{
    return c->stride == 1 ? seq : seq + (c->shard + c->stride - seq % c->stride) % c->stride;
}

/* The last one below `end`; its very first when there is none. */
static inline uint64_t shmd_shard_last(const shmd_consumer *c, uint64_t end)
{
    return end <= c->shard ? c->shard : end - 1 - (end - 1 - c->shard) % c->stride;
}

/* How many it reads from its position on, below `end`, which is past it. */
static inline uint64_t shmd_shard_count(const shmd_consumer *c, uint64_t end)
{
    return c->stride == 1 ? end - c->position : (end - c->position - 1) / c->stride + 1;
}

/* What makes fds readable: one thread a client, started with the first watch (shmd_notifier.c). */
typedef struct shmd_notifier {
    pthread_mutex_t mutex;      /* private memory: between the threads of one process */
    shmd_watch *watches;
    unsigned long thread;
    uint32_t started;
    uint32_t stopped;           /* no thread any more: every fd stays readable */
    uint32_t kick_word;         /* private futex: the set of words to sleep on has changed */
} shmd_notifier_t;
extern uint64_t shmd_notifier_slice_ns;
void shmd_notifier_init(shmd_notifier_t *notifier);
void shmd_notifier_stop(shmd_notifier_t *notifier); /* joins the thread */

/* How the library's threads of a client run (core/shmd_thread.c). Zeros: nothing was asked. */
typedef struct shmd_cpus { uint64_t words[SHMD_CPUS_MAX / 64]; } shmd_cpus_t; /* bits as in a cpu_set_t */
typedef struct shmd_threads {
    shmd_cpus_t cpus;
    uint32_t has_cpus;
    uint32_t policy;            /* SHMD_POLICY_* */
    uint32_t priority;
} shmd_threads_t;
extern const char *shmd_isolated_path; /* a list of CPUs; a test may set it */
int shmd_threads_ask(shmd_threads_t *threads, const shmd_client_options *options); /* 0, SHMD_E_INVALID */
/* Of C, takes no signals. The caller does not wait until it runs. what: for the error's text; `function` names the thread. */
int shmd_thread_start(const shmd_threads_t *threads, void *(*function)(void *), void *argument, const char *what, unsigned long *thread);

struct shmd_client {
    const shmd_authority_t *authority;
    shmd_control_t *control; /* its own segment */
    shmd_client_ring_t ring;    /* of requests, in that segment; zeros: not open */
    uint64_t authority_bytes;
    int authority_fd;           /* as it was mapped: says whether it still has a name, and a driver (-1: not mapped) */
    uint32_t owner;             /* of the authority: whose all other segments have to be */
    uint32_t named_owner;       /* whose driver it has to be; UINT32_MAX: of anybody whom this process trusts */
    char authority_name[SHMD_SEGMENT_NAME_BYTES];
    struct stat control_is;     /* what was mapped */
    struct stat authority_is;   /* what was opened there: a program that closes all fds, as daemons do, gives the number to another file */
    shmd_authority_t tables;    /* a copy of the authority's header, checked: its counts and offsets. What the segment says later steers nothing */
    uint32_t index;
    shmd_damage_t authority_damage; /* somebody truncated it; zeros stand there for good */
    uint64_t boot_id;
    uint64_t client_id;
    uint64_t nonce;
    uint64_t correlation;
    uint64_t beat;
    uint32_t is_manual;         /* 1: no heartbeat thread; shmd_keepalive beats, and calls that wait */
    uint32_t waits_for_driver;
    shmd_threads_t threads;
    uint32_t is_over;           /* 1: proved that nobody will ever serve it again (shmd_client_over) */
    uint64_t over_look_ns;      /* when the next long wait looks whether that is so */
    uint32_t thread_started;
    uint32_t stop_word;         /* private futex of the heartbeat thread */
    uint32_t fork_generation;
    uint32_t references;        /* the connection's own, and handles that still use the mappings */
    uint32_t readers;           /* who reads the authority only, without the connection (shmd_client_keep_authority) */
    unsigned long thread;
    pthread_mutex_t beating;    /* between threads that beat. Nobody waits while holding it */
    uint64_t beat_due_ns;       /* manual heartbeats: when a call that waits beats next */
    uint32_t is_silent;         /* under `beating`: no beat any more */
    uint32_t is_parted;         /* its goodbye is in the ring, or needs not be said */
    shmd_notifier_t notifier;
    shmd_session_t session;     /* its connection to the driver; zeros: none */
    uint32_t session_taken;     /* 1: a thread is inside; the others pass by */
    uint32_t rings;             /* 1: the driver is to be woken, by whoever is inside, or gets in next */
    uint64_t heard_by;          /* adoptions of the authority when it said Hello last */
    char instance[SHMD_NAME_BYTES];
    char name[SHMD_NAME_BYTES];
};

/* Records of the authority, by the client's own counts and offsets; NULL: there is no such record. */
static inline const void *shmd_client_entry(const shmd_client *client, uint64_t offset, uint32_t index, uint32_t count, size_t bytes)
{
    return index < count ? (const unsigned char *)client->authority + offset + index * bytes : NULL;
}
static inline const shmd_client_record_t *shmd_client_record(const shmd_client *client, uint32_t index)
{
    return shmd_client_entry(client, client->tables.clients_offset, index, client->tables.client_max, sizeof(shmd_client_record_t));
}
static inline const shmd_lease_record_t *shmd_client_lease(const shmd_client *client, uint32_t index)
{
    return shmd_client_entry(client, client->tables.leases_offset, index, client->tables.lease_max, sizeof(shmd_lease_record_t));
}
static inline const shmd_stream_record_t *shmd_client_stream(const shmd_client *client, uint32_t index)
{
    return shmd_client_entry(client, client->tables.streams_offset, index, client->tables.stream_max, sizeof(shmd_stream_record_t));
}
/* As shmd_event_poll, by a private copy of the authority's header. */
int shmd_event_take(const shmd_authority_t *authority, const shmd_authority_t *tables, uint64_t *cursor, shmd_event_t *out, uint64_t *lost);

/* The longest sleep. A wait in which nothing has moved for so long looks whether anybody is
 * there. */
enum { SHMD_LONG_WAIT_NS = 1000000000 };

enum { SHMD_WORDS_MAX = 128 };
/* 1: one of the words is not what was seen any more. Pairs with whoever changes it and wakes it (H3). */
static inline int shmd_words_changed(const shmd_word_t *words, uint32_t count)
{
    while (count > 0 && shmd_load32_acquire(words[count - 1].word) == words[count - 1].seen)
        count--;
    return count > 0;
}
extern uint32_t shmd_waitv_missing; /* 1: this kernel has no futex_waitv; a test may say so */
/* Sleeps until one of at most SHMD_WORDS_MAX words is woken or is not what was seen. Without
 * futex_waitv: on the first of them, at most look_ns. 0, SHMD_E_TIMEOUT, SHMD_E_INTERRUPTED. */
int shmd_futex_wait_any(const shmd_word_t *words, uint32_t n, uint64_t timeout_ns,
                        uint64_t look_ns);
/* Sleeps in a wait are short at first and grow while nothing comes. By the end of the first one
 * all is out that was stored before it began, so from then on each wake-up is certain, and the
 * limit is for what nobody tells (MEMORY_MODEL.md). */
static inline uint64_t shmd_longer(uint64_t slice_ns)
{
    return shmd_min(slice_ns * 2, SHMD_LONG_WAIT_NS);
}
/* How long to sleep before the next look for what nobody tells: an eighth of the time that the wait
 * has lasted, so that this is noticed late by no more than that. */
static inline uint64_t shmd_look_pause(uint64_t lasted_ns, uint64_t least_ns, uint64_t most_ns)
{
    return shmd_min(shmd_max(lasted_ns / 8, least_ns), most_ns);
}

/* 1: it is proved that nobody will ever serve this connection again, so that a long wait on it is in vain. At most one of them a
 * second looks (some 20 us), all others load a word. */
int shmd_client_over(const shmd_client *client, uint64_t now_ns);
int shmd_client_over_fail(const shmd_client *client, const char *stream); /* SHMD_E_DRIVER_UNAVAILABLE, with its text */

void shmd_client_hold(shmd_client *client);
int shmd_client_try_hold(shmd_client *client);   /* SHMD_E_CLOSED: its last holder has gone; the caller reads the authority yet (shmd_client_keep_authority) */
void shmd_client_drop(shmd_client *client, int may_wait); /* the last says goodbye and unmaps; with may_wait 0 the heartbeat thread does so */
void shmd_client_release(shmd_client *client);   /* after its goodbye: unmaps, frees */
int shmd_client_goodbye(shmd_client *client, uint64_t patience_ns);
enum { SHMD_TELL_PATIENCE_NS = 20000000 };
/* Sends without waiting for an answer, for room in the ring at most patience_ns (0: not at all). SHMD_E_TIMEOUT: it was full. */
int shmd_client_tell(shmd_client *client, shmd_request_t *request, uint64_t patience_ns);
int shmd_client_tell_quietly(shmd_client *client, shmd_request_t *request, uint64_t patience_ns); /* and this thread's last text stays */
int shmd_client_is_known(const shmd_client *client);    /* its record is not free: a detach or a goodbye of its is read */
int shmd_client_is_orphaned(const shmd_client *client);
int shmd_client_may_answer(const shmd_client *client);  /* 0: its driver is proved dead, the text says how */
int shmd_client_has_fd(const shmd_client *client, struct stat *status); /* 1: authority_fd is still the authority's */
int shmd_client_give_up_asking(const shmd_client *client, int is_full); /* at a deadline: why no answer came */
void shmd_client_unmap_authority(shmd_client *client);
/* At each beat, and by whoever asks the driver for something. Says Hello again to the next driver, a step at a time. Never waits, leaves no text. */
void shmd_client_stay_connected(shmd_client *client, uint64_t now_ns);
uint64_t shmd_client_reconnects_ns(const shmd_client *client, uint64_t now_ns); /* in how long that has something to do; UINT64_MAX: not before the next beat */
int shmd_client_attach(shmd_client *client, shmd_request_t *request, shmd_event_t *answer, uint64_t timeout_ns);
int shmd_answer_check(const shmd_client *client, const shmd_request_t *request, const shmd_event_t *answer);
    /* what says yes to a request: its kind, and each index in it against the client's own counts; SHMD_E_CORRUPT with a text */
void shmd_client_confirm(shmd_client *client, uint32_t entry, uint64_t lease_id); /* its stream is mapped */
void shmd_client_wake_driver(shmd_client *client);  /* after something was written for it. Never waits; without a connection the next driver finds it */
int shmd_client_check_fork(const shmd_client *client);
void shmd_client_beat(shmd_client *client);
/* In the slow turns of every call that waits. With manual heartbeats: beats when that is due. How long the caller may sleep:
 * ns, and with manual heartbeats no longer than until the next beat. */
uint64_t shmd_client_waits(shmd_client *client, uint64_t now_ns, uint64_t ns);
int shmd_client_configure(shmd_client *client, const char *instance, const shmd_client_options *options); /* 0, SHMD_E_INVALID, SHMD_E_SYSTEM */
int shmd_client_is_registered(const shmd_client *client);
int shmd_client_check_registered(const shmd_client *client); /* SHMD_OK; SHMD_E_REVOKED: the driver has expelled it */
int shmd_driver_is_over(const shmd_authority_t *authority);  /* SHMD_OK; SHMD_E_DRIVER_UNAVAILABLE: it was stopped or superseded */
int shmd_heartbeat_init(shmd_client *client);
int shmd_heartbeat_start(shmd_client *client);
void shmd_heartbeat_stop(shmd_client *client);
void shmd_heartbeat_free(shmd_client *client);
int shmd_heartbeat_takes_over(shmd_client *client); /* 1: its thread says goodbye and releases the client; 0: it has no thread */
void shmd_client_note_end(shmd_client *client, uint32_t entry, uint64_t lease_id, int aborted); /* ends a lease without an answer. Never waits, needs no driver, leaves no text */
int shmd_client_detach(shmd_client *client, uint32_t entry, uint64_t lease_id, uint32_t role, const char *stream, int aborted);
void shmd_client_give_up(shmd_client *client, const shmd_request_t *attach); /* detach by correlation id, no answer wanted */
/* What was granted could not be mapped, for `rc`: gives it back. rc, or what has ended it meanwhile: SHMD_E_DRIVER_UNAVAILABLE, SHMD_E_REJECTED. */
int shmd_client_attach_failed(shmd_client *client, const shmd_request_t *request, const shmd_event_t *answer, int rc);

/* A stable copy of the epoch record of (stream, epoch), or of the next one that gate_bit is wired to. */
int shmd_stream_epoch(const shmd_client *client, uint32_t stream_index, uint32_t stream_id, uint32_t epoch,
                      shmd_epoch_record_t *out, uint32_t *record);
int shmd_stream_next_epoch(const shmd_client *client, uint32_t stream_index, uint32_t stream_id, uint32_t after,
                           uint64_t gate_bit, shmd_epoch_record_t *out, uint32_t *record);
const shmd_epoch_hot_t *shmd_stream_hot(const shmd_client *client, uint32_t stream_index, uint32_t record);
int shmd_epoch_record_check(const shmd_epoch_record_t *record); /* its geometry against the limits */
int shmd_lease_live(const shmd_client *client, uint32_t lease_index, uint64_t lease_id, uint32_t *end_reason);
/* 1: a whole copy of its record. 0: that serves another lease by now, or changes as fast as one looks. */
int shmd_lease_copy(const shmd_client *client, uint32_t lease_index, uint64_t lease_id, shmd_lease_record_t *out);

int shmd_mapping_open(const shmd_client *client, const shmd_epoch_record_t *record, uint32_t role, shmd_mapping **out);

/* `closing` of a handle: how many threads are closing it now, and whether it is closed. Each closer takes only its own mark
 * back, so one that gives up does not open the handle for the others. */
enum { SHMD_HANDLE_OPEN = 0, SHMD_HANDLE_CLOSING = 1, SHMD_HANDLE_CLOSED = 1 << 30 };
static inline int shmd_is_closed(const uint32_t *closing) { return (shmd_load32_acquire(closing) & SHMD_HANDLE_CLOSED) != 0; }

/* What guards a handle: its words and its name. */
typedef struct shmd_guard {
    uint32_t *busy;
    uint32_t *closing;
    const uint32_t *lookers;
    uint32_t fork_generation;
    const char *what;   /* "producer" or "consumer" */
    const char *stream;
} shmd_guard_t;

static inline void shmd_handle_leave(uint32_t *busy) { shmd_store32_release(busy, 0); }

extern uint64_t shmd_guard_patience_ns; /* how long a closer waits for a thread that stays inside; a test may set it */
int shmd_guard_refuse(const shmd_guard_t *guard, int code); /* code, with its text */
int shmd_guard_none(const char *what);                      /* SHMD_E_CLOSED: there never was a handle */
/* 1: the caller has the handle, ends it and calls shmd_guard_closed; 0: it is closed already; SHMD_E_FORKED, SHMD_E_CONCURRENT. */
int shmd_guard_take_over(const shmd_guard_t *guard);
int shmd_guard_try_over(const shmd_guard_t *guard); /* likewise, without waiting: SHMD_E_CONCURRENT also while somebody looks. Leaves no text */

/* Takes a handle for one call: SHMD_OK, SHMD_E_FORKED, SHMD_E_CONCURRENT, SHMD_E_CLOSED. */
static inline int shmd_guard_enter(const shmd_guard_t *guard)
{
    if (shmd_is_forked(guard->fork_generation))
        return shmd_guard_refuse(guard, SHMD_E_FORKED);
    if (shmd_exchange32(guard->busy, 1) != 0) /* the other thread may be one that closes it */
        return shmd_guard_refuse(guard, shmd_load32_acquire(guard->closing) != SHMD_HANDLE_OPEN ? SHMD_E_CLOSED : SHMD_E_CONCURRENT);
    if (!shmd_is_closed(guard->closing))
        return SHMD_OK;
    shmd_handle_leave(guard->busy);
    return shmd_guard_refuse(guard, SHMD_E_CLOSED);
}

/* Around a look at what a handle is mapped to, beside its owner and without its guard: whether it may look. Whoever closes the
 * handle waits until nobody looks. */
static inline int shmd_look_begin(uint32_t *lookers, const uint32_t *closing)
{
    (void)shmd_add32(lookers, 1);
    shmd_fence_seq_cst(); /* H1: counted before this, `closing` and `moving` after it; shmd_await_lookers does it the other way round */
    return shmd_load32_acquire(closing) == SHMD_HANDLE_OPEN;
}

static inline void shmd_look_end(uint32_t *lookers) { (void)shmd_sub32(lookers, 1); /* H1: after the look */ }

/* Waits until nobody looks any more. Only after the flag was stored that lets nobody begin to look; it stays while this waits. */
static inline void shmd_await_lookers(const uint32_t *lookers)
{
    shmd_fence_seq_cst(); /* H1: the flag before this, who looks after it; pairs with shmd_look_begin */
    while (shmd_load32_acquire(lookers) != 0) { /* H1: pairs with shmd_look_end */
        SHMD_ENTERS_WAIT();
        (void)sched_yield();
    }
}

static inline void shmd_guard_closed(const shmd_guard_t *guard)
{
    (void)shmd_add32(guard->closing, SHMD_HANDLE_CLOSED - SHMD_HANDLE_CLOSING);
    shmd_handle_leave(guard->busy);
}

/* A producer's parts, for its files and the guarded calls. */
shmd_producer *shmd_producer_new(shmd_client *client, const char *stream); /* zeros; holds the client. NULL: no memory */
void shmd_producer_free(shmd_producer *producer);
int shmd_producer_forked(const shmd_producer *producer);         /* SHMD_E_FORKED with its text */
int shmd_producer_check_length(const shmd_producer *producer, uint64_t length);
uint64_t shmd_producer_unread(shmd_producer *producer, uint64_t bound); /* shmd_guarded_unread, inside the guard */
int shmd_commit_flags(shmd_producer *producer, uint32_t length, uint16_t type, uint16_t flags);
int64_t shmd_publish_strided(shmd_producer *producer, const void *records, uint32_t record_bytes, uint64_t stride, uint64_t n, uint64_t timeout_ns);
void shmd_producer_unblocked(shmd_producer *producer);
/* How a handle ends. Only the first two wait for the driver's answer; an abandoned producer's stream ends as an aborted one. */
enum { SHMD_END_CLEAN = 0, SHMD_END_ABORTED = 1, SHMD_END_ABANDONED = 2 };
int shmd_producer_end(shmd_producer *producer, int how);         /* detaches, gives all back but the handle itself */

/* A consumer's parts, likewise. */
shmd_consumer *shmd_consumer_new(shmd_client *client, const char *stream);
void shmd_consumer_free(shmd_consumer *consumer);
int shmd_consumer_check_fork(const shmd_consumer *consumer);     /* SHMD_OK, SHMD_E_FORKED with its text */
int shmd_consumer_wire(shmd_consumer *consumer, const shmd_epoch_record_t *record, uint32_t index, uint64_t start, uint64_t joined);
shmd_mapping *shmd_consumer_take_prepared(shmd_consumer *consumer, uint32_t epoch); /* NULL: none of this epoch */
void shmd_consumer_discard(shmd_consumer *consumer, shmd_mapping *mapping); /* unmaps it, or leaves that to shmd_consumer_prepare */
void shmd_consumer_prepared_free(shmd_consumer *consumer); /* of a handle that ends */
uint64_t shmd_consumer_batch(shmd_consumer *consumer, uint64_t limit); /* of at most limit messages: how many to look for behind its position, which is there */
void shmd_consumer_flow_begin(shmd_consumer *consumer);     /* in a new epoch */
void shmd_consumer_caught_up(shmd_consumer *consumer);      /* nothing is left to read: may keep off the producer for a moment */
void shmd_consumer_keep_off(shmd_consumer *consumer);       /* read up to look_until: looks at the head, and moves look_until */
int shmd_consumer_enter(shmd_consumer *consumer); /* takes the guard of a handle, which may be NULL; shmd_handle_leave gives it back */
int shmd_consumer_drain(shmd_consumer *consumer);
int shmd_consumer_look_begin(const shmd_consumer *consumer); /* from any thread: 1 when what it is mapped to may be looked at, until ... */
void shmd_consumer_look_end(const shmd_consumer *consumer);  /* ... this */
int shmd_consumer_resolve(const shmd_consumer *consumer, shmd_message *message); /* one that is not inline; SHMD_E_CORRUPT: it cannot be one */
int shmd_consumer_look(shmd_consumer *consumer);    /* state and bit have changed? 0 no or wait, 1 drained, negative over */
void shmd_consumer_before_idle(shmd_consumer *consumer);
int shmd_consumer_ready(const shmd_consumer *consumer); /* 1: a poll would not return 0 */
int shmd_consumer_is_waited_for(const shmd_consumer *consumer); /* 1: its producer waits at the place where this gate is. It is mapped, and has a gate */
/* 1: its producer waits where the caller's hold (hold_seq) keeps the gate. */
int shmd_consumer_blocks_itself(const shmd_consumer *consumer);
int shmd_consumer_over(shmd_consumer *c, uint64_t now_ns); /* in the slow turns of its waits: 1, it is in vain, and so it is ready */
const uint32_t *shmd_consumer_announce(const shmd_consumer *consumer, uint32_t *seen); /* W1: the word that it now says it sleeps on; NULL: nobody wakes it */
int shmd_wait_many_or(shmd_consumer **consumers, size_t n, uint64_t timeout_ns, const shmd_word_t *others, uint32_t count); /* as shmd_guarded_wait_many */
int shmd_producer_wait_room_or(shmd_producer *producer, uint32_t length, uint64_t timeout_ns, const shmd_word_t *other); /* NULL: none */
void shmd_watch_pause(shmd_consumer *consumer);     /* its owner sleeps itself for now */
void shmd_watch_resume(shmd_consumer *consumer);    /* its owner has slept, and has read nothing */
void shmd_watch_released(shmd_consumer *consumer);  /* its gate has moved */
void shmd_watch_signal(shmd_consumer *consumer);    /* there is something, out of the notifier's sight */
void shmd_watch_end(shmd_consumer *consumer);       /* its fd is readable from now on; nobody looks after it */
int shmd_consumer_end(shmd_consumer *consumer, int how); /* likewise */
static inline int shmd_consumer_is_protected(const shmd_consumer *c) /* its gate keeps the producer off its position */
{
    return c->gated_from != UINT64_MAX && c->position >= c->gated_from;
}
uint64_t shmd_deadline(uint64_t timeout_ns);        /* saturating now + timeout */
int shmd_client_unread(const shmd_client_record_t *client, const shmd_client_watch_t *watch); /* 1: its ring has requests, or an impossible tail */

#endif
