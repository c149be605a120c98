/* shmd_py_producer.c: publishing, and claiming a place to write in. What does not succeed at once goes to Python. */
#include "shmd_python.h"

#include <string.h>

/* ---- arguments ---------------------------------------------------------------------------- */

/* The message type in `value` (NULL: 0); -1 with an exception. */
static int type_of(PyObject *value)
{
    int is_huge = 0;
    if (value == NULL)
        return 0;
    if (!PyIndex_Check(value)) {
        PyErr_Format(PyExc_TypeError, "type=%R: expected an int from 0 to 65535", value);
        return -1;
    }
    PyObject *number = PyNumber_Index(value);
    long type = number == NULL ? -1 : PyLong_AsLongAndOverflow(number, &is_huge);
    if (number != NULL && (is_huge || type < 0 || type > UINT16_MAX)) {
        PyErr_Format(PyExc_ValueError, "type=%S: expected 0 to 65535", number);
        type = -1;
    }
    Py_XDECREF(number);
    return (int)type;
}

/* The bytes to claim (what fits no C number is cut); -1 with an exception. */
static Py_ssize_t length_of(PyObject *value)
{
    PyObject *number = PyNumber_Index(value);
    Py_ssize_t length = number == NULL ? -1 : PyNumber_AsSsize_t(number, NULL);
    if (number != NULL && length < 0)
        PyErr_Format(PyExc_ValueError, "claim of %S bytes: expected 0 or more", number);
    Py_XDECREF(number);
    return length;
}

/* ---- what is published -------------------------------------------------------------------- */

/* A message's bytes. They are held from take_payload to drop_payload, which comes before anything is raised. */
typedef struct payload {
    const void *head; /* of an array; NULL: a message of bytes */
    Py_ssize_t head_bytes;
    const void *data;
    Py_ssize_t length;
    PyObject *copy;   /* of what is not contiguous */
    Py_buffer view;
    int has_view;
    uint16_t type;
    uint16_t flags;
} payload;

static void drop_payload(payload *what)
{
    Py_CLEAR(what->copy);
    if (what->has_view)
        PyBuffer_Release(&what->view);
    what->has_view = 0;
}

static int copy_payload(payload *what)
{
    PyObject *view = PyMemoryView_FromBuffer(&what->view);
    what->copy = view == NULL ? NULL : shmd_py_call(view, SHMD_PY_TOBYTES, NULL);
    Py_XDECREF(view);
    PyBuffer_Release(&what->view);
    what->has_view = 0;
    if (what->copy == NULL)
        return -1;
    what->data = PyBytes_AsString(what->copy);
    what->length = PyBytes_Size(what->copy);
    return 0;
}

/* `order`: how its elements must lie, else they are copied: 'C', or 'A' for an array, whose head says which it is. */
static int take_payload(payload *what, PyObject *data, char order)
{
    what->head = NULL;
    what->head_bytes = 0;
    what->copy = NULL;
    what->has_view = 0;
    what->flags = 0;
    if (PyBytes_CheckExact(data)) {
        what->data = PyBytes_AsString(data);
        what->length = PyBytes_Size(data);
        return 0;
    }
    if (!PyObject_CheckBuffer(data)) {
        PyObject *name = PyType_GetName(Py_TYPE(data));
        if (name != NULL)
            PyErr_Format(PyExc_TypeError, "publish takes bytes, bytearray, memoryview or another buffer, found %U%s", name,
                         PyUnicode_Check(data) ? "; encode text first: text.encode()" : "");
        Py_XDECREF(name);
        return -1;
    }
    if (PyObject_GetBuffer(data, &what->view, PyBUF_INDIRECT) < 0)
        return -1;
    what->has_view = 1;
    if (!PyBuffer_IsContiguous(&what->view, order))
        return copy_payload(what);
    what->data = what->view.buf;
    what->length = what->view.len;
    return 0;
}

/* ---- publishing --------------------------------------------------------------------------- */

/* After SHMD_E_CLAIM. Whether a claim is open whose object is gone: it could not abort it, because a thread was inside. It is over now. */
static int ends_orphaned_claim(const shmd_py_producer *p)
{
    return p->open_claim == NULL && shmd_guarded_abort(p->handle.native) == SHMD_OK;
}

static int call_core(shmd_producer *native, const payload *what)
{
    if (what->head != NULL)
        return shmd_guarded_publish_flags(native, what->head, (uint32_t)what->head_bytes, what->data, (uint64_t)what->length, what->type, what->flags);
    return what->length > UINT32_MAX ? SHMD_E_TOO_LARGE : shmd_guarded_publish(native, what->data, (uint32_t)what->length, what->type);
}

static int publish_once(shmd_py_producer *p, const payload *what)
{
    int code;
    do {
        shmd_producer *native = p->handle.native;
        if (what->length < SHMD_PY_UNLOCKED_BYTES)
            code = call_core(native, what);
        else
            SHMD_PY_UNLOCKED(p->handle, code = call_core(native, what));
    } while (code == SHMD_E_CLAIM && ends_orphaned_claim(p));
    return code;
}

/* Recovers from a call that found no room or failed. Returns the next call's deadline, or NULL with an exception. Takes `deadline`. */
static PyObject *make_room(PyObject *self, int64_t code, Py_ssize_t length, PyObject *timeout, PyObject *deadline)
{
    PyObject *next = shmd_py_call(self, SHMD_PY_MAKE_ROOM, "(LnOO)", (long long)code, length, timeout == NULL ? Py_None : timeout,
                                  deadline == NULL ? Py_None : deadline);
    Py_XDECREF(deadline);
    return next;
}

/* Publishes, waiting for room, and drops the payload. None, or NULL with an exception. */
static PyObject *publish(PyObject *self, payload *what, PyObject *timeout)
{
    int code;
    PyObject *deadline = NULL;
    while ((code = publish_once((shmd_py_producer *)self, what)) != SHMD_OK)
        if ((deadline = make_room(self, code, what->head_bytes + what->length, timeout, deadline)) == NULL)
            break;
    Py_XDECREF(deadline);
    drop_payload(what);
    return code == SHMD_OK ? shmd_py_none() : NULL;
}

static PyObject *producer_publish(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"data", "type", "timeout", NULL};
    PyObject *given[3] = {n == 1 ? args[0] : NULL};
    payload what;
    if ((n != 1 || keywords != NULL) && shmd_py_arguments("publish", names, 3, 1, args, n, keywords, given) < 0)
        return NULL;
    int type = type_of(given[1]);
    if (type < 0 || take_payload(&what, given[0], 'C') < 0)
        return NULL;
    what.type = (uint16_t)type;
    return publish(self, &what, given[2]);
}

static PyObject *producer_try_publish(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"data", "type", NULL};
    PyObject *given[2];
    payload what;
    if (shmd_py_arguments("try_publish", names, 2, 1, args, n, keywords, given) < 0)
        return NULL;
    int type = type_of(given[1]);
    if (type < 0 || take_payload(&what, given[0], 'C') < 0)
        return NULL;
    what.type = (uint16_t)type;
    int code = publish_once((shmd_py_producer *)self, &what);
    Py_ssize_t length = what.length;
    drop_payload(&what);
    if (code == SHMD_OK || code == SHMD_BACK_PRESSURED)
        return PyLong_FromLong(code == SHMD_OK);
    PyObject *recovered = shmd_py_call(self, SHMD_PY_RECOVER, "(ini)", code, length, 0);
    Py_XDECREF(recovered);
    return recovered == NULL ? NULL : PyLong_FromLong(0);
}

/* _publish_array(head, elements, flags, type, timeout): the elements lie as the head says, in a row. */
static PyObject *producer_publish_array(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    payload what;
    if (n != 5 || !PyBytes_CheckExact(args[0]))
        return PyErr_Format(PyExc_TypeError, "_publish_array() takes a head and 4 arguments more");
    long flags = PyLong_AsLong(args[2]);
    int type = PyErr_Occurred() ? -1 : type_of(args[3]);
    if (type < 0 || take_payload(&what, args[1], 'A') < 0)
        return NULL;
    what.head = PyBytes_AsString(args[0]);
    what.head_bytes = PyBytes_Size(args[0]);
    what.type = (uint16_t)type;
    what.flags = (uint16_t)flags;
    return publish(self, &what, args[4]);
}

/* _publish_records(records, timeout_ns): how many of a one-dimensional array's elements went in, or a negative code. */
static PyObject *producer_publish_records(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    shmd_py_producer *p = (shmd_py_producer *)self;
    Py_buffer view;
    unsigned long long timeout_ns = n == 2 ? PyLong_AsUnsignedLongLong(args[1]) : 0;
    if (n != 2 || PyErr_Occurred())
        return n == 2 ? NULL : PyErr_Format(PyExc_TypeError, "_publish_records() takes 2 arguments (%zd given)", n);
    if (PyObject_GetBuffer(args[0], &view, PyBUF_STRIDED_RO) < 0)
        return NULL;
    if (view.ndim != 1 || view.itemsize > UINT32_MAX) {
        PyBuffer_Release(&view);
        return PyErr_Format(PyExc_ValueError, "records in %d dimensions: expected 1", view.ndim);
    }
    uint64_t count = (uint64_t)view.shape[0], stride = (uint64_t)(count > 1 ? view.strides[0] : view.itemsize);
    int64_t done;
    do {
        shmd_producer *native = p->handle.native;
        if (timeout_ns == 0 && view.len < SHMD_PY_UNLOCKED_BYTES)
            done = shmd_guarded_publish_records(native, view.buf, (uint32_t)view.itemsize, stride, count, 0);
        else
            SHMD_PY_UNLOCKED(p->handle, done = shmd_guarded_publish_records(native, view.buf, (uint32_t)view.itemsize, stride, count, timeout_ns));
    } while (done == SHMD_E_CLAIM && ends_orphaned_claim(p));
    PyBuffer_Release(&view);
    return PyLong_FromLongLong(done);
}

/* ---- claims ------------------------------------------------------------------------------- */

static void forget_memory(shmd_py_producer *p)
{
    Py_CLEAR(p->windows[0]);
    Py_CLEAR(p->windows[1]);
    p->inline_max = -1;
}

/* Has the core open a claim, which `c` owns from that moment on, and finds its memory. 0, or -1 with an exception. */
static int claim(shmd_py_producer *p, shmd_py_claim *c, PyObject *timeout)
{
    int64_t offset;
    PyObject *deadline = NULL;
    for (;;) {
        do
            offset = c->length > UINT32_MAX ? SHMD_E_TOO_LARGE : shmd_guarded_claim(p->handle.native, (uint32_t)c->length);
        while (offset == SHMD_E_CLAIM && ends_orphaned_claim(p));
        if (offset >= 0)
            break;
        if ((deadline = make_room((PyObject *)p, offset, c->length, timeout, deadline)) == NULL)
            return -1;
    }
    p->open_claim = c;
    Py_INCREF((PyObject *)p);
    c->producer = p;
    Py_XDECREF(deadline);
    PyObject *window = shmd_py_window_open(p, c->length);
    Py_XINCREF(window); /* a finaliser that runs meanwhile may close this producer */
    c->place = window == NULL ? NULL : shmd_py_place_new(window, (Py_ssize_t)offset, c->length, p->has_taken_back);
    Py_XDECREF(window);
    return c->place == NULL ? -1 : 0;
}

/* A claim of bytes. One that fails gives back what it has when it is dropped. */
static PyObject *producer_claim(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"length", "type", "timeout", NULL};
    PyObject *given[3] = {n == 1 ? args[0] : NULL};
    if ((n != 1 || keywords != NULL) && shmd_py_arguments("claim", names, 1, 1, args, n, keywords, given) < 0)
        return NULL;
    int type = type_of(given[1]);
    Py_ssize_t length = type < 0 ? -1 : length_of(given[0]);
    shmd_py_claim *c = length < 0 ? NULL : shmd_py_claim_new(shmd_py.claim, length, (uint16_t)type);
    if (c != NULL && claim((shmd_py_producer *)self, c, given[2]) < 0)
        Py_CLEAR(c);
    return (PyObject *)c;
}

/* Writes the head and has `make(place)` make the arrays: the one that is handed out, and the bytes that it is made of. */
static int make_array(shmd_py_claim *c, PyObject *head, PyObject *make)
{
    memcpy(((shmd_py_place *)c->place)->start, PyBytes_AsString(head), (size_t)PyBytes_Size(head));
    PyObject *made = PyObject_CallFunctionObjArgs(make, c->place, NULL);
    if (made == NULL) {
        shmd_py_clear_raised();
        return -1;
    }
    int is_pair = PyArg_ParseTuple(made, "OO:make", &c->array, &c->elements);
    Py_XINCREF(c->array);
    Py_XINCREF(c->elements);
    Py_DECREF(made);
    return is_pair ? 0 : -1;
}

/* _claim_array(head, length, make, flags, type, timeout) */
static PyObject *producer_claim_array(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 6 || !PyBytes_CheckExact(args[0]))
        return PyErr_Format(PyExc_TypeError, "_claim_array() takes a head and 5 arguments more");
    long flags = PyLong_AsLong(args[3]);
    int type = PyErr_Occurred() ? -1 : type_of(args[4]);
    Py_ssize_t length = type < 0 ? -1 : length_of(args[1]);
    shmd_py_claim *c = length < 0 ? NULL : shmd_py_claim_new(shmd_py.array_claim, length, (uint16_t)type);
    if (c == NULL)
        return NULL;
    c->flags = (uint16_t)flags;
    if (length < PyBytes_Size(args[0]))
        PyErr_SetString(PyExc_SystemError, "an array's claim is shorter than its head");
    else if (claim((shmd_py_producer *)self, c, args[5]) == 0 && make_array(c, args[0], args[2]) == 0)
        return (PyObject *)c;
    Py_DECREF((PyObject *)c);
    return NULL;
}

/* ---- attributes --------------------------------------------------------------------------- */

static PyObject *producer_let_go(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    forget_memory((shmd_py_producer *)self);
    return shmd_py_none();
}

static int set_handle(PyObject *self, PyObject *value, void *nothing)
{
    (void)nothing;
    forget_memory((shmd_py_producer *)self); /* claims from now on lie elsewhere */
    ((shmd_py_producer *)self)->open_claim = NULL;
    return shmd_py_handle_set(&((shmd_py_producer *)self)->handle, value, "struct shmd_producer *");
}

static PyGetSetDef producer_getters[] = {
    {"_handle", shmd_py_handle_get, set_handle, "The cffi pointer that owns the native handle, or None.", NULL},
    {"_last_handle", shmd_py_handle_last, NULL, "The same, also after `_handle` was set to None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef producer_methods[] = {
    {"publish", (PyCFunction)(void (*)(void))producer_publish, METH_FASTCALL | METH_KEYWORDS,
     "publish($self, data, type=0, timeout=None)\n--\n\n"
     "Publishes one message of ``data``'s bytes.\n\n"
     "Waits up to ``timeout`` seconds for room (None: for ever, 0: not at all). ``type`` (0 to 65535) is\n"
     "the user's. Raises BackPressured, MessageTooLarge, LeaseRevoked, DriverUnavailable. With ``reconnect=True`` AttachRejected:\n"
     "the driver refuses to attach this producer anew."},
    {"try_publish", (PyCFunction)(void (*)(void))producer_try_publish, METH_FASTCALL | METH_KEYWORDS,
     "try_publish($self, data, type=0)\n--\n\n"
     "Publishes when there is room now. How many messages went in: 0 or 1."},
    {"claim", (PyCFunction)(void (*)(void))producer_claim, METH_FASTCALL | METH_KEYWORDS,
     "claim($self, length, *, type=0, timeout=None)\n--\n\n"
     "A place for ``length`` bytes in shared memory, to be written by way of its ``view`` and committed.\n\n"
     "A context manager: commits on exit, aborts on an exception. One open claim a producer (ClaimError)."},
    {"_publish_array", (PyCFunction)(void (*)(void))producer_publish_array, METH_FASTCALL, "publish_array(), with the head made."},
    {"_claim_array", (PyCFunction)(void (*)(void))producer_claim_array, METH_FASTCALL, "claim_array(), with the head made."},
    {"_publish_records", (PyCFunction)(void (*)(void))producer_publish_records, METH_FASTCALL, "How many of an array's elements went in, or a negative code."},
    {"_let_go_of_memory", producer_let_go, METH_NOARGS, "Claims that are over keep their memory; this producer does not."},
    {NULL, NULL, 0, NULL},
};

static PyObject *producer_make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    (void)args;
    (void)keywords;
    shmd_py_producer *p = (shmd_py_producer *)(void *)PyType_GenericAlloc(type, 0);
    if (p == NULL)
        return NULL;
    p->handle.cdata = shmd_py_none();
    p->inline_max = -1;
    return (PyObject *)p;
}

static void producer_dealloc(PyObject *self)
{
    shmd_py_producer *p = (shmd_py_producer *)self;
    forget_memory(p);
    shmd_py_handle_drop(&p->handle);
    shmd_py_free(self);
}

static PyType_Slot producer_slots[] = {
    {Py_tp_doc, "What publishes: a native handle, and the memory that claims lie in."},
    {Py_tp_new, producer_make},
    {Py_tp_dealloc, producer_dealloc},
    {Py_tp_methods, producer_methods},
    {Py_tp_getset, producer_getters},
    {0, NULL},
};

PyType_Spec shmd_py_producer_spec = {
    .name = "shmdriver._hotpath.ProducerCore",
    .basicsize = (int)sizeof(shmd_py_producer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = producer_slots,
};
