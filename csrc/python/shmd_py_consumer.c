/* shmd_py_consumer.c: reading. Small messages are fetched in runs: one call into the core copies up to a few hundred messages
 * of equal length into a private buffer, from which they are made one by one. The gate follows with the next fetch. */
#include "shmd_python.h"

enum {
    RUN_MAX = 256,                            /* messages fetched ahead, into private memory */
    BUFFER_BYTES = 65536 + SHMD_PY_HEAD_BYTES,
    PRIVATE_FROM_BYTES = 4096,                /* larger copies are handed out as they are, not copied again */
    SPARE_BUFFERS = 4,
    FOREVER_SLICE_NS = 50000000,              /* between slices Python runs signal handlers */
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
    int settles;       /* an fd is watched: the core is told when a run is used up */
    int is_fetching;
} consumer;

/* ---- buffers ------------------------------------------------------------------------------ */

static int use_buffer(consumer *c, PyObject *buffer)
{
    if (buffer == NULL)
        return -1;
    PyObject *before = c->buffer;
    c->buffer = buffer;
    c->run.out = PyByteArray_AsString(buffer);
    c->run.out_bytes = (uint64_t)PyByteArray_Size(buffer);
    Py_XDECREF(before);
    return 0;
}

/* The buffer goes out with a message; one of its size that has come back takes its place, or a new one. */
static int exchange_buffer(consumer *c)
{
    PyObject *gone = c->buffer;
    PyObject *found = NULL;
    for (int i = 0; i < SPARE_BUFFERS && found == NULL; i++) {
        if (c->spare[i] != NULL && Py_REFCNT(c->spare[i]) == 1 && PyByteArray_Size(c->spare[i]) == PyByteArray_Size(gone)) {
            found = c->spare[i];
            c->spare[i] = NULL;
        }
    }
    if (found == NULL)
        found = PyByteArray_FromStringAndSize(NULL, PyByteArray_Size(gone));
    if (found == NULL)
        return -1;
    Py_XDECREF(c->spare[SPARE_BUFFERS - 1]);
    for (int i = SPARE_BUFFERS - 1; i > 0; i--)
        c->spare[i] = c->spare[i - 1];
    Py_INCREF(gone);
    c->spare[0] = gone;
    return use_buffer(c, found);
}

/* ---- what was fetched --------------------------------------------------------------------- */

static PyObject *next_of_run(consumer *c)
{
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

static PyObject *placed(consumer *c, Py_ssize_t bytes)
{
    if (keep_mapping_of(c, c->run.batch.mapping_serial) < 0)
        return NULL;
    return shmd_py_message_placed(&c->run.batch, bytes, (shmd_py_mapping *)c->mapping);
}

static PyObject *private_copy(consumer *c, Py_ssize_t length)
{
    PyObject *message = shmd_py_message_private(c->run.out, length, c->buffer);
    if (message != NULL && exchange_buffer(c) < 0)
        Py_CLEAR(message);
    return message;
}

/* The first of `count` copied messages of `length` bytes; the rest is the run. */
static PyObject *copied(consumer *c, uint64_t count, Py_ssize_t length)
{
    if (count * (uint64_t)(SHMD_PY_HEAD_BYTES + length) > c->run.out_bytes) {
        PyErr_SetString(PyExc_SystemError, "more was fetched than there is room for");
        return NULL;
    }
    shmd_py_mapping *mapping = (shmd_py_mapping *)c->mapping;
    if (mapping != NULL && mapping->serial != c->run.batch.mapping_serial)
        Py_CLEAR(c->mapping); /* another epoch: views of the one before hold nothing in this one */
    if (count == 1)
        return length >= PRIVATE_FROM_BYTES ? private_copy(c, length) : shmd_py_message_packed(c->run.out, length);
    c->at = c->run.out;
    c->left = count;
    c->length = length;
    return next_of_run(c);
}

/* ---- fetching ----------------------------------------------------------------------------- */

static int64_t call_core(consumer *c, uint64_t timeout_ns)
{
    shmd_consumer *native = c->handle.native;
    int64_t hold_seq = c->mapping == NULL ? -1 : (int64_t)shmd_py_mapping_hold_seq((shmd_py_mapping *)c->mapping);
    int64_t found = 0;
    int copies_much = c->run.batch.copied && c->run.batch.length >= SHMD_PY_UNLOCKED_BYTES; /* the last one was large */
    if (!copies_much && (timeout_ns == 0 || !c->settles)) { /* with an fd to look after, each call that finds nothing costs more */
        found = shmd_guarded_next(native, hold_seq, 0, &c->run);
        if (found != 0 || timeout_ns == 0)
            return found;
    }
    PyObject *keep = c->handle.cdata; /* another thread may close this consumer meanwhile */
    Py_INCREF(keep);
    Py_BEGIN_ALLOW_THREADS
    found = shmd_guarded_next(native, hold_seq, timeout_ns, &c->run);
    Py_END_ALLOW_THREADS
    Py_DECREF(keep);
    return found;
}

static PyObject *recover(consumer *c, int64_t code, uint64_t timeout_ns)
{
    return shmd_py_call((PyObject *)c, SHMD_PY_RECOVER, "(LK)", (long long)code, (unsigned long long)timeout_ns);
}

/* A message, None when none came in time or the consumer was attached anew, NULL with an exception. */
static PyObject *fetch(consumer *c, uint64_t timeout_ns)
{
    int64_t found;
    if (c->left != 0)
        return next_of_run(c);
    if (c->is_fetching) /* by another thread, which is about to look at what it found */
        return recover(c, SHMD_E_CONCURRENT, timeout_ns);
    c->is_fetching = 1;
    do {
        found = call_core(c, timeout_ns);
    } while (found == SHMD_E_TOO_LARGE && use_buffer(c, PyByteArray_FromStringAndSize(NULL, 2 * ((Py_ssize_t)c->run.batch.length + SHMD_PY_HEAD_BYTES))) == 0);
    PyObject *message = NULL;
    if (found == INT64_MAX)
        message = placed(c, (Py_ssize_t)c->run.batch.length);
    else if (found > 0)
        message = copied(c, (uint64_t)found & ((1u << SHMD_RUN_LENGTH_SHIFT) - 1), (Py_ssize_t)(found >> SHMD_RUN_LENGTH_SHIFT));
    c->is_fetching = 0;
    if (found > 0 || found == SHMD_E_TOO_LARGE)
        return message;
    return found == 0 || found == SHMD_E_INTERRUPTED ? shmd_py_none() : recover(c, found, timeout_ns);
}

/* ---- methods ------------------------------------------------------------------------------ */

static int is_zero(PyObject *timeout)
{
    return timeout != NULL && ((PyLong_Check(timeout) && PyObject_Not(timeout) == 1) || (PyFloat_Check(timeout) && PyFloat_AsDouble(timeout) <= 0));
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
    int is_forever = timeout == NULL || timeout == Py_None;
    PyObject *message = fetch(c, is_forever ? FOREVER_SLICE_NS : 0);
    if (message != Py_None || is_zero(timeout))
        return message;
    Py_DECREF(message);
    return shmd_py_call(self, SHMD_PY_WAIT_AND_FETCH, "(O)", timeout == NULL ? Py_None : timeout);
}

static PyObject *consumer_next(PyObject *self)
{
    consumer *c = (consumer *)self;
    if (c->left != 0)
        return next_of_run(c);
    PyObject *message = fetch(c, FOREVER_SLICE_NS);
    if (message == Py_None) {
        Py_DECREF(message);
        message = shmd_py_call(self, SHMD_PY_WAIT_AND_FETCH, "(O)", Py_None);
    }
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
    ((consumer *)self)->left = 0;
    return shmd_py_none();
}

static PyObject *consumer_hold_seq(PyObject *self, PyObject *nothing)
{
    consumer *c = (consumer *)self;
    (void)nothing;
    return PyLong_FromUnsignedLongLong(c->mapping == NULL ? UINT64_MAX : shmd_py_mapping_hold_seq((shmd_py_mapping *)c->mapping));
}

static PyObject *consumer_place(PyObject *self, PyObject *bytes)
{
    Py_ssize_t n = PyLong_AsSsize_t(bytes);
    return PyErr_Occurred() ? NULL : placed((consumer *)self, n);
}

/* _fetch_records(limit, record_bytes, timeout_ns, address, bytes): how many records were found, or a negative code. */
static PyObject *consumer_fetch_records(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    consumer *c = (consumer *)self;
    uint64_t given[5];
    if (n != 5)
        return PyErr_Format(PyExc_TypeError, "_fetch_records() takes 5 arguments (%zd given)", n);
    for (int i = 0; i < 5; i++)
        given[i] = PyLong_AsUnsignedLongLong(args[i]);
    if (PyErr_Occurred())
        return NULL;
    uint64_t hold_seq = c->mapping == NULL ? UINT64_MAX : shmd_py_mapping_hold_seq((shmd_py_mapping *)c->mapping), limit = given[0], timeout_ns = given[2];
    uint32_t record_bytes = (uint32_t)given[1];
    void *out = (void *)(uintptr_t)given[3];
    int64_t found = 0;
    if (timeout_ns == 0 || !c->settles)
        found = shmd_guarded_fetch_records(c->handle.native, hold_seq, limit, record_bytes, 0, out, given[4], &c->run.batch);
    if (found == 0 && timeout_ns != 0) {
        shmd_consumer *native = c->handle.native;
        PyObject *keep = c->handle.cdata;
        Py_INCREF(keep);
        Py_BEGIN_ALLOW_THREADS
        found = shmd_guarded_fetch_records(native, hold_seq, limit, record_bytes, timeout_ns, out, given[4], &c->run.batch);
        Py_END_ALLOW_THREADS
        Py_DECREF(keep);
    }
    return PyLong_FromLongLong(found);
}

/* ---- attributes --------------------------------------------------------------------------- */

static PyObject *get_handle(PyObject *self, void *nothing)
{
    PyObject *cdata = ((consumer *)self)->handle.cdata;
    (void)nothing;
    Py_INCREF(cdata);
    return cdata;
}

static int set_handle(PyObject *self, PyObject *value, void *nothing)
{
    (void)nothing;
    return shmd_py_handle_set(&((consumer *)self)->handle, value);
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

static PyObject *get_batch_address(PyObject *self, void *nothing)
{
    (void)nothing;
    return PyLong_FromVoidPtr(&((consumer *)self)->run.batch);
}

static PyGetSetDef consumer_getters[] = {
    {"_handle", get_handle, set_handle, "The cffi pointer that owns the native handle, or None.", NULL},
    {"_mapping", get_mapping, set_mapping, "The MappingCore of the epoch that it reads, or None.", NULL},
    {"_batch_address", get_batch_address, NULL, "Where the core says what it found (shmd_batch_t).", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef consumer_members[] = {
    {"buffered", T_ULONGLONG, offsetof(consumer, left), READONLY, "How many messages were fetched and not handed out yet."},
    {"_run_limit", T_ULONGLONG, offsetof(consumer, run.limit), 0, "How many messages are fetched at once, at most 65535."},
    {"_found_serial", T_ULONGLONG, offsetof(consumer, run.batch.mapping_serial), READONLY, "Which mapping the records lie in that were found."},
    {"_found_stride", T_UINT, offsetof(consumer, run.batch.stride), READONLY, "Bytes from one of them to the next."},
    {"_found_copies", T_UINT, offsetof(consumer, run.batch.copied), READONLY, "Whether they were copied out."},
    {"_settles", T_INT, offsetof(consumer, settles), 0, "Whether the core is told that a run is used up."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef consumer_methods[] = {
    {"read", (PyCFunction)(void (*)(void))consumer_read, METH_FASTCALL | METH_KEYWORDS,
     "read($self, timeout=None)\n--\n\n"
     "The next message; None when none came within ``timeout`` seconds (None: for ever, 0: no waiting).\n\n"
     "Raises EndOfStream at the clean end, ProducerLost at an aborted one, LeaseRevoked, ViewsHeld."},
    {"_fetch", consumer_fetch, METH_O, "The next message, None when none came within that many ns."},
    {"_take", consumer_take, METH_NOARGS, "The next message that was fetched already, or None."},
    {"_fetch_records", (PyCFunction)(void (*)(void))consumer_fetch_records, METH_FASTCALL, "How many records were found, or a negative code."},
    {"_drop_run", consumer_drop_run, METH_NOARGS, "Forgets what was fetched and not handed out."},
    {"_hold_seq", consumer_hold_seq, METH_NOARGS, "The oldest seq that something refers to; 2**64 - 1: none."},
    {"_place", consumer_place, METH_O, "That many bytes from the place that the core has just found, as a message."},
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
    c->run.limit = RUN_MAX;
    if (use_buffer(c, PyByteArray_FromStringAndSize(NULL, BUFFER_BYTES)) < 0)
        Py_CLEAR(c);
    return (PyObject *)c;
}

static void consumer_dealloc(PyObject *self)
{
    consumer *c = (consumer *)self;
    Py_XDECREF(c->handle.cdata);
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
