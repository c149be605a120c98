/* shmd_py_consumer.h: the object that reads, for its two files: messages (shmd_py_consumer.c) and records (shmd_py_records.c). */
#ifndef SHMD_PY_CONSUMER_H
#define SHMD_PY_CONSUMER_H

#include "shmd_python.h"

#include "core/shmd_fork.h"

enum {
    SPARE_BUFFERS = 4,
    MESSAGE = 1, /* what is pending */
    RECORDS = 2,
    YIELD_TURNS = 32, /* after so many fetches in a row, from C perhaps, other threads have their turn */
};

typedef struct consumer {
    PyObject_HEAD
    shmd_py_handle handle;
    PyObject *mapping; /* the shmd_py_mapping of the epoch that it reads; NULL before something is handed out in place */
    shmd_run_t run;    /* what the core finds, and where it puts it */
    PyObject *buffer;  /* the bytearray that run.out is */
    PyObject *spare[SPARE_BUFFERS]; /* bytearrays that went out with large copies */
    const unsigned char *at;        /* the rest of a run */
    uint64_t left;
    Py_ssize_t length; /* of each message of the run */
    PyObject *event;   /* the owner of the fd that the native handle feeds; goes after it */
    int settles;       /* an fd is watched: the core is told when a run is used up */
    int is_fetching;   /* from the call into the core until what it found is held or handed out */
    int pending;       /* MESSAGE or RECORDS: that was found in place, and is not in the caller's hands yet */
    shmd_batch_t pending_batch;
    Py_ssize_t pending_bytes;
    uint64_t lost;     /* messages before what the last fetch found; UINT64_MAX: it found nothing, and the core's figure holds */
    uint64_t gaps;     /* likewise, how many ranges of them */
    unsigned turns;    /* of fetching */
    uint64_t idle_due_ns; /* when a read that does not wait looks after the driver again */
    uint32_t generation; /* of the process that made it */
} consumer;

/* Whether this process is a forked child of the one that made it: also a child that ran no fork handlers. What was fetched
 * is the parent's to hand out, and is forgotten here. */
static inline int is_forked(consumer *c)
{
    if (__builtin_expect(!shmd_is_forked(c->generation), 1))
        return 0;
    c->left = 0;
    c->pending = 0;
    c->is_fetching = 0;
    return 1;
}

/* Up to where the gate may go: the oldest seq that is, or is about to be, referred to. Read and used without letting go of
 * the GIL, or by who is fetching: nobody else adds holds. */
static inline uint64_t hold_of(const consumer *c)
{
    if (c->is_fetching)
        return 0; /* what was found may have no hold yet */
    uint64_t held = c->mapping == NULL ? UINT64_MAX : shmd_py_mapping_hold_seq((shmd_py_mapping *)c->mapping);
    return c->pending != 0 && c->pending_batch.seq < held ? c->pending_batch.seq : held;
}

/* Before a fetch: -1 when a signal's handler raised. Nothing has been taken from the core yet. */
static inline int take_turn(consumer *c)
{
    if (++c->turns % YIELD_TURNS == 0) {
        Py_BEGIN_ALLOW_THREADS
        Py_END_ALLOW_THREADS
    }
    return PyErr_CheckSignals();
}

/* Whether a look may keep the GIL: it maps nothing, copies little, and there is no fd to look after, with which a look that finds
 * nothing costs more. */
static inline int may_look(const consumer *c, uint64_t timeout_ns, uint64_t copies)
{
    return c->handle.native == NULL || (copies < SHMD_PY_UNLOCKED_BYTES && (timeout_ns == 0 || !c->settles));
}

static inline uint64_t copies_of(const shmd_consumer *native) { return native == NULL ? 0 : shmd_consumer_copies(native); }

/* 0, or -1 with an exception when the other kind is pending: that comes first. */
static inline int check_pending(const consumer *c, int wanted)
{
    if (c->pending == 0 || c->pending == wanted)
        return 0;
    PyErr_Format(PyExc_RuntimeError, "an exception interrupted a read that had found something: call %s for it first", c->pending == RECORDS ? "read_batch()" : "read()");
    return -1;
}

/* After a fetch. The core may have met a gap behind what it found, which is told with what comes behind that. */
static inline void note_lost(consumer *c, int has_found)
{
    c->lost = has_found ? c->run.batch.lost : UINT64_MAX;
    c->gaps = c->run.batch.lost_range_count;
}

static inline void note_in_place(consumer *c, int what, Py_ssize_t bytes)
{
    c->pending_batch = c->run.batch;
    c->pending_bytes = bytes;
    c->pending = what;
}

PyObject *shmd_py_hand_out(consumer *c); /* what is pending */
PyObject *shmd_py_fetch_records(PyObject *self, PyObject *const *args, Py_ssize_t n);

#endif
