/* shmd_py_consumer.c: reading. Small messages are fetched in runs: one call into the core copies up to a few hundred messages
 * of equal length into a private buffer, from which they are made one by one. The gate follows with the next fetch. */
#include "shmd_py_consumer.h"

enum {
    RUN_MAX = 256,                            /* messages fetched ahead, into private memory */
    BUFFER_BYTES = 65536 + SHMD_PY_HEAD_BYTES + SHMD_PY_ALIGNED,
    PRIVATE_FROM_BYTES = 4096,                /* larger copies are handed out as they are, not copied again */
    FOREVER_SLICE_NS = 1000000000,            /* a signal ends one; then Python looks after the driver */
    LOOK_AGAIN_NS = 250000000,                /* reads that never wait look after the driver, too */
};

/* ---- buffers ------------------------------------------------------------------------------ */

static int use_buffer(consumer *c, PyObject *buffer)
{
    if (buffer == NULL)
        return -1;
    PyObject *before = c->buffer;
    uintptr_t start = (uintptr_t)PyByteArray_AsString(buffer);
    uintptr_t shift = -(start + SHMD_PY_HEAD_BYTES) % SHMD_PY_ALIGNED; /* the first message's payload is aligned */
    c->buffer = buffer;
    c->run.out = (unsigned char *)start + shift;
    c->run.out_bytes = (uint64_t)PyByteArray_Size(buffer) - shift;
    Py_XDECREF(before);
    return 0;
}

/* A buffer that can take the place of the present one: one of its size that has come back, or a new one. */
static PyObject *take_spare(consumer *c)
{
    Py_ssize_t size = PyByteArray_Size(c->buffer);
    for (int i = 0; i < SPARE_BUFFERS; i++) {
        PyObject *spare = c->spare[i];
        if (spare != NULL && Py_REFCNT(spare) == 1 && PyByteArray_Size(spare) == size) {
            c->spare[i] = NULL;
            return spare;
        }
    }
    return PyByteArray_FromStringAndSize(NULL, size);
}

/* The present one has gone out with a message; keeps an eye on it. */
static void exchange_buffer(consumer *c, PyObject *spare)
{
    PyObject *oldest = c->spare[SPARE_BUFFERS - 1];
    for (int i = SPARE_BUFFERS - 1; i > 0; i--)
        c->spare[i] = c->spare[i - 1];
    c->spare[0] = c->buffer;
    c->buffer = NULL;
    (void)use_buffer(c, spare);
    Py_XDECREF(oldest);
}

/* ---- what was fetched --------------------------------------------------------------------- */

static PyObject *recover(consumer *c, int64_t code, uint64_t timeout_ns)
{
    return shmd_py_call((PyObject *)c, SHMD_PY_RECOVER, "(LK)", (long long)code, (unsigned long long)timeout_ns);
}

static PyObject *next_of_run(consumer *c)
{
    if (is_forked(c))
        return recover(c, SHMD_E_FORKED, 0);
    PyObject *message = shmd_py_message_packed(c->at, c->length);
    if (message == NULL)
        return NULL;
    c->at += SHMD_PY_HEAD_BYTES + c->length;
    if (--c->left == 0 && c->settles)
        (void)shmd_guarded_settle(c->handle.native); /* a handle that is closed by now says so at the next fetch */
    return message;
}

static int keep_mapping_of(consumer *c, uint64_t serial)
{
    shmd_py_mapping *mapping = (shmd_py_mapping *)c->mapping;
    if (mapping != NULL && mapping->serial == serial)
        return 0;
    PyObject *made = shmd_py_call((PyObject *)c, SHMD_PY_MAP, "(K)", (unsigned long long)serial);
    Py_XDECREF(made);
    if (made == NULL)
        return -1;
    if (c->mapping != NULL)
        return 0;
    PyErr_SetString(PyExc_SystemError, "no mapping was made");
    return -1;
}

/* What `batch` describes, in place, its first `bytes` bytes. */
static PyObject *placed(consumer *c, const shmd_batch_t *batch, Py_ssize_t bytes)
{
    if (keep_mapping_of(c, batch->mapping_serial) < 0)
        return NULL;
    return shmd_py_message_placed(batch, bytes, (shmd_py_mapping *)c->mapping);
}

/* What is pending. A message that cannot be handed out now stays so, for the next fetch: the core has passed it. Records stay so
 * until Python has made its array of them and is about to return that: an exception on the way, a signal handler's, loses nothing. */
PyObject *shmd_py_hand_out(consumer *c)
{
    c->run.batch = c->pending_batch;
    PyObject *message = placed(c, &c->pending_batch, c->pending_bytes);
    if (message != NULL && c->pending == MESSAGE)
        c->pending = 0;
    return message;
}

/* Goes out with its buffer, for which another one must be there first. */
static PyObject *private_copy(consumer *c, Py_ssize_t length)
{
    PyObject *spare = take_spare(c);
    PyObject *message = spare == NULL ? NULL : shmd_py_message_private(c->run.out, length, c->buffer);
    if (message == NULL) {
        Py_XDECREF(spare);
        return NULL;
    }
    exchange_buffer(c, spare);
    return message;
}

/* The run of copied messages that was found: from now on it is there for whoever asks. */
static int keep_run(consumer *c, int64_t found)
{
    uint64_t count = (uint64_t)found & ((1u << SHMD_RUN_LENGTH_SHIFT) - 1);
    Py_ssize_t length = (Py_ssize_t)(found >> SHMD_RUN_LENGTH_SHIFT);
    if (count * (uint64_t)(SHMD_PY_HEAD_BYTES + length) > c->run.out_bytes) {
        PyErr_SetString(PyExc_SystemError, "more was fetched than there is room for");
        return -1;
    }
    shmd_py_mapping *mapping = (shmd_py_mapping *)c->mapping;
    if (mapping != NULL && mapping->serial != c->run.batch.mapping_serial)
        Py_CLEAR(c->mapping); /* another epoch: views of the one before hold nothing in this one */
    c->at = c->run.out;
    c->left = count;
    c->length = length;
    return 0;
}

/* The first message of a new run; one that cannot be made stays, for the next fetch. */
static PyObject *first_of_run(consumer *c)
{
    if (c->left == 0) /* a signal's handler has read it meanwhile */
        return shmd_py_none();
    if (c->left != 1)
        return next_of_run(c);
    PyObject *message = c->length >= PRIVATE_FROM_BYTES ? private_copy(c, c->length) : shmd_py_message_packed(c->at, c->length);
    if (message != NULL)
        c->left = 0;
    return message;
}

/* ---- fetching ----------------------------------------------------------------------------- */

static int64_t call_core(consumer *c, uint64_t hold_seq, uint64_t timeout_ns, int *waited)
{
    shmd_consumer *native = c->handle.native;
    int64_t found = 0;
    if (may_look(c, timeout_ns, copies_of(native))) {
        found = shmd_guarded_next(native, (int64_t)hold_seq, 0, &c->run);
        if (found != 0 || timeout_ns == 0)
            return found;
    }
    *waited = 1;
    SHMD_PY_UNLOCKED(c->handle, found = shmd_guarded_next(native, (int64_t)hold_seq, timeout_ns, &c->run));
    return found;
}

/* Before what came in a wait is handed out: 0 when a signal's handler raised, whose exception would take it along. It is kept instead.
 * Where an fd is watched it is not: the core has just found nothing left to tell by it. */
static int may_hand_out(const consumer *c, int waited)
{
    return !waited || c->settles || PyErr_CheckSignals() == 0;
}

static int grow_buffer(consumer *c)
{
    return use_buffer(c, PyByteArray_FromStringAndSize(NULL, 2 * ((Py_ssize_t)c->run.batch.length + SHMD_PY_HEAD_BYTES + SHMD_PY_ALIGNED)));
}

/* A message, None when none came in time or the consumer was attached anew, NULL with an exception. */
static PyObject *fetch(consumer *c, uint64_t timeout_ns)
{
    int64_t found;
    int waited = 0;
    PyObject *message = NULL;
    if (take_turn(c) < 0)
        return NULL;
    if (is_forked(c))
        return recover(c, SHMD_E_FORKED, timeout_ns);
    if (c->left != 0) /* a handler or another thread may have fetched meanwhile */
        return next_of_run(c);
    if (c->is_fetching) /* another thread, which is about to look at what it found */
        return recover(c, c->handle.native == NULL ? SHMD_E_CLOSED : SHMD_E_CONCURRENT, timeout_ns);
    if (check_pending(c, MESSAGE) < 0)
        return NULL;
    uint64_t hold_seq = hold_of(c);
    c->is_fetching = 1;
    if (c->pending == MESSAGE) {
        message = shmd_py_hand_out(c);
        c->is_fetching = 0;
        return message;
    }
    do {
        found = call_core(c, hold_seq, timeout_ns, &waited);
    } while (found == SHMD_E_TOO_LARGE && grow_buffer(c) == 0);
    note_lost(c, found > 0);
    if (found == INT64_MAX) {
        note_in_place(c, MESSAGE, (Py_ssize_t)c->run.batch.length);
        if (may_hand_out(c, waited))
            message = shmd_py_hand_out(c);
    } else if (found > 0 && keep_run(c, found) == 0 && may_hand_out(c, waited)) {
        message = first_of_run(c);
    }
    c->is_fetching = 0;
    if (found > 0 || found == SHMD_E_TOO_LARGE)
        return message;
    return found == 0 || found == SHMD_E_INTERRUPTED ? shmd_py_none() : recover(c, found, timeout_ns);
}

/* A message, waited for until deadline_ns (UINT64_MAX: for ever) in slices, between which signal handlers run and Python looks
 * after the driver. None at the deadline, NULL with an exception: a handler's is raised with nothing fetched. */
static PyObject *wait_and_fetch(consumer *c, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now = deadline_ns == UINT64_MAX ? 0 : shmd_now_ns();
        uint64_t left_ns = deadline_ns > now ? deadline_ns - now : 0;
        uint64_t slice_ns = left_ns < FOREVER_SLICE_NS ? left_ns : FOREVER_SLICE_NS;
        PyObject *message = fetch(c, slice_ns);
        if (message != Py_None || slice_ns == 0)
            return message;
        Py_DECREF(message);
        PyObject *idled = shmd_py_call((PyObject *)c, SHMD_PY_IDLE, NULL);
        if (idled == NULL)
            return NULL;
        Py_DECREF(idled);
    }
}

/* ---- methods ------------------------------------------------------------------------------ */

static int is_zero(PyObject *timeout)
{
    int is_huge = 0;
    if (timeout == NULL)
        return 0;
    if (PyLong_CheckExact(timeout))
        return PyLong_AsLongAndOverflow(timeout, &is_huge) == 0 && !is_huge;
    return PyFloat_CheckExact(timeout) && PyFloat_AsDouble(timeout) <= 0;
}

/* For who polls without waiting: what a wait does after each slice, now and then. Takes `none`, and returns it or NULL. */
static PyObject *note_empty(consumer *c, PyObject *none)
{
    uint64_t now = shmd_now_ns();
    if (now < c->idle_due_ns)
        return none;
    c->idle_due_ns = now + LOOK_AGAIN_NS;
    PyObject *idled = shmd_py_call((PyObject *)c, SHMD_PY_IDLE, NULL);
    Py_XDECREF(idled);
    if (idled == NULL)
        Py_CLEAR(none);
    return none;
}

static PyObject *consumer_read(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"timeout", NULL};
    consumer *c = (consumer *)self;
    PyObject *timeout = n == 1 ? args[0] : NULL;
    if ((n > 1 || keywords != NULL) && shmd_py_arguments("read", names, 1, 0, args, n, keywords, &timeout) < 0)
        return NULL;
    if (c->left != 0)
        return next_of_run(c);
    if (timeout == NULL || timeout == Py_None)
        return wait_and_fetch(c, UINT64_MAX);
    PyObject *message = fetch(c, 0);
    if (message != Py_None)
        return message;
    if (is_zero(timeout))
        return note_empty(c, message);
    Py_DECREF(message);
    uint64_t deadline_ns = shmd_py_deadline(timeout, "timeout");
    return deadline_ns == 0 ? NULL : wait_and_fetch(c, deadline_ns);
}

static PyObject *consumer_next(PyObject *self)
{
    consumer *c = (consumer *)self;
    if (c->left != 0)
        return next_of_run(c);
    PyObject *message = wait_and_fetch(c, UINT64_MAX);
    if (message == NULL && PyErr_ExceptionMatches(shmd_py.end_of_stream))
        PyErr_Clear();
    return message;
}

static PyObject *consumer_fetch(PyObject *self, PyObject *timeout_ns)
{
    unsigned long long ns = PyLong_AsUnsignedLongLong(timeout_ns);
    return PyErr_Occurred() ? NULL : fetch((consumer *)self, ns);
}

static PyObject *consumer_take(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    return ((consumer *)self)->left != 0 ? next_of_run((consumer *)self) : shmd_py_none();
}

static PyObject *consumer_drop_run(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    consumer *c = (consumer *)self;
    c->left = 0;
    c->pending = 0;
    c->is_fetching = 0; /* in a child, whose parent had a thread in a fetch */
    note_lost(c, 0);
    return shmd_py_none();
}

/* Takes notice of a new epoch or an end, without reading: a negative code when reading is over. */
static PyObject *consumer_look(PyObject *self, PyObject *nothing)
{
    consumer *c = (consumer *)self;
    shmd_consumer *native = c->handle.native;
    uint64_t hold_seq = hold_of(c);
    shmd_batch_t batch;
    int64_t found;
    (void)nothing;
    if (c->is_fetching || copies_of(native) != UINT64_MAX) {
        found = shmd_guarded_fetch(native, hold_seq, 0, 0, NULL, 0, &batch);
    } else {
        c->is_fetching = 1; /* nobody else adds holds meanwhile */
        SHMD_PY_UNLOCKED(c->handle, found = shmd_guarded_fetch(native, hold_seq, 0, 0, NULL, 0, &batch));
        c->is_fetching = 0;
    }
    return PyLong_FromLongLong(found);
}

static PyObject *consumer_let_go(PyObject *self, PyObject *nothing)
{
    consumer *c = (consumer *)self;
    (void)nothing;
    return PyLong_FromLong(shmd_guarded_release(c->handle.native, hold_of(c)));
}

static PyObject *consumer_hold_seq(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    return PyLong_FromUnsignedLongLong(hold_of((consumer *)self));
}

/* ---- attributes --------------------------------------------------------------------------- */

static int set_handle(PyObject *self, PyObject *value, void *nothing)
{
    (void)nothing;
    note_lost((consumer *)self, 0); /* another handle counts for itself */
    return shmd_py_handle_set(&((consumer *)self)->handle, value, "struct shmd_consumer *");
}

static PyObject *get_mapping(PyObject *self, void *nothing)
{
    PyObject *mapping = ((consumer *)self)->mapping;
    (void)nothing;
    if (mapping == NULL)
        return shmd_py_none();
    Py_INCREF(mapping);
    return mapping;
}

static int set_mapping(PyObject *self, PyObject *value, void *nothing)
{
    consumer *c = (consumer *)self;
    PyObject *before = c->mapping;
    (void)nothing;
    if (value != NULL && value != Py_None && !PyObject_TypeCheck(value, shmd_py.mapping)) {
        PyErr_SetString(PyExc_TypeError, "_mapping: expected a MappingCore or None");
        return -1;
    }
    c->mapping = value == Py_None ? NULL : value;
    Py_XINCREF(c->mapping);
    Py_XDECREF(before);
    return 0;
}

static PyGetSetDef consumer_getters[] = {
    {"_handle", shmd_py_handle_get, set_handle, "The cffi pointer that owns the native handle, or None.", NULL},
    {"_last_handle", shmd_py_handle_last, NULL, "The same, also after `_handle` was set to None.", NULL},
    {"_mapping", get_mapping, set_mapping, "The MappingCore of the epoch that it reads, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef consumer_members[] = {
    {"buffered", T_ULONGLONG, offsetof(consumer, left), READONLY, "How many messages were fetched and not handed out yet."},
    {"_lost_before", T_ULONGLONG, offsetof(consumer, lost), READONLY, "How many messages were lost before what was found last; 2**64 - 1: ask the core."},
    {"_gaps_before", T_ULONGLONG, offsetof(consumer, gaps), READONLY, "How many ranges of them, if so."},
    {"_run_limit", T_ULONGLONG, offsetof(consumer, run.limit), 0, "How many messages are fetched at once, at most 65535."},
    {"_pending", T_INT, offsetof(consumer, pending), 0, "Not 0: what was found in place; set to 0 when the caller has the records."},
    {"_found_count", T_ULONGLONG, offsetof(consumer, run.batch.count), READONLY, "How many records were found."},
    {"_found_serial", T_ULONGLONG, offsetof(consumer, run.batch.mapping_serial), READONLY, "Which mapping the records lie in that were found."},
    {"_found_stride", T_UINT, offsetof(consumer, run.batch.stride), READONLY, "Bytes from one of them to the next."},
    {"_event", T_OBJECT, offsetof(consumer, event), 0, "The cffi pointer that owns the eventfd, or None."},
    {"_settles", T_INT, offsetof(consumer, settles), 0, "Whether the core is told that a run is used up."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef consumer_methods[] = {
    {"read", (PyCFunction)(void (*)(void))consumer_read, METH_FASTCALL | METH_KEYWORDS,
     "read($self, timeout=None)\n--\n\n"
     "The next message; None when none came within ``timeout`` seconds (None: for ever, 0: no waiting).\n\n"
     "Raises EndOfStream at the clean end, ProducerLost at an aborted one, LeaseRevoked, ViewsHeld, DriverUnavailable.\n"
     "With ``reconnect=True`` AttachRejected: the driver refuses to attach this consumer anew."},
    {"_fetch", consumer_fetch, METH_O, "The next message, None when none came within that many ns."},
    {"_take", consumer_take, METH_NOARGS, "The next message that was fetched already, or None."},
    {"_fetch_records", (PyCFunction)(void (*)(void))shmd_py_fetch_records, METH_FASTCALL, "How many records were found, or a negative code."},
    {"_drop_run", consumer_drop_run, METH_NOARGS, "Forgets what was fetched and not handed out."},
    {"_hold_seq", consumer_hold_seq, METH_NOARGS, "The oldest seq that something refers to; 2**64 - 1: none."},
    {"_look", consumer_look, METH_NOARGS, "Takes notice of a new epoch or an end: a negative code when reading is over."},
    {"_let_go", consumer_let_go, METH_NOARGS, "Advances the gate past all that nothing refers to any more: 0, or a negative code."},
    {NULL, NULL, 0, NULL},
};

static PyObject *consumer_make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    (void)args;
    (void)keywords;
    consumer *c = (consumer *)(void *)PyType_GenericAlloc(type, 0);
    if (c == NULL)
        return NULL;
    c->handle.cdata = shmd_py_none();
    c->generation = shmd_fork_generation();
    c->run.limit = RUN_MAX;
    if (use_buffer(c, PyByteArray_FromStringAndSize(NULL, BUFFER_BYTES)) < 0)
        Py_CLEAR(c);
    return (PyObject *)c;
}

static void consumer_dealloc(PyObject *self)
{
    consumer *c = (consumer *)self;
    shmd_py_handle_drop(&c->handle);
    Py_XDECREF(c->event);
    Py_XDECREF(c->mapping);
    Py_XDECREF(c->buffer);
    for (int i = 0; i < SPARE_BUFFERS; i++)
        Py_XDECREF(c->spare[i]);
    shmd_py_free(self);
}

static PyType_Slot consumer_slots[] = {
    {Py_tp_doc, "What reads: a native handle, a run of messages, and the places that were handed out."},
    {Py_tp_new, consumer_make},
    {Py_tp_dealloc, consumer_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, consumer_next},
    {Py_tp_methods, consumer_methods},
    {Py_tp_members, consumer_members},
    {Py_tp_getset, consumer_getters},
    {0, NULL},
};

PyType_Spec shmd_py_consumer_spec = {
    .name = "shmdriver._hotpath.ConsumerCore",
    .basicsize = (int)sizeof(consumer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = consumer_slots,
};
