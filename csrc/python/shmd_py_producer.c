/* shmd_py_producer.c: publishing, and claiming a place to write in. What does not succeed at once goes to Python. */
#include "shmd_python.h"

/* The parts of ClaimCore that a producer fills in (shmd_py_claim.c). */
PyObject *shmd_py_claim_new(shmd_py_producer *producer, PyObject *view, Py_ssize_t length, uint16_t type);

/* The message type in `value` (NULL: 0); -1: it is none, and no exception is set. */
static int type_of(PyObject *value)
{
    Py_ssize_t type = value == NULL ? 0 : PyNumber_AsSsize_t(value, NULL);
    if (type >= 0 && type <= UINT16_MAX)
        return (int)type;
    PyErr_Clear();
    return -1;
}

static int publish_bytes(shmd_py_producer *p, const void *data, Py_ssize_t length, uint16_t type)
{
    int code;
    if (length < SHMD_PY_UNLOCKED_BYTES)
        return shmd_guarded_publish(p->handle.native, data, (uint32_t)length, type);
    if (length > UINT32_MAX)
        return SHMD_E_TOO_LARGE;
    shmd_producer *native = p->handle.native;
    SHMD_PY_UNLOCKED(p->handle, code = shmd_guarded_publish(native, data, (uint32_t)length, type));
    return code;
}

/* 0, SHMD_BACK_PRESSURED, or another code when Python has to look at it: at what is no buffer, too. */
static int publish(shmd_py_producer *p, PyObject *data, int type)
{
    Py_buffer view;
    if (type < 0)
        return SHMD_E_INVALID;
    if (PyBytes_CheckExact(data))
        return publish_bytes(p, PyBytes_AsString(data), PyBytes_Size(data), (uint16_t)type);
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        PyErr_Clear();
        return SHMD_E_INVALID;
    }
    int code = publish_bytes(p, view.buf, view.len, (uint16_t)type);
    PyBuffer_Release(&view);
    return code;
}

static PyObject *producer_publish(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"data", "type", "timeout", NULL};
    PyObject *given[3] = {n == 1 ? args[0] : NULL};
    if ((n != 1 || keywords != NULL) && shmd_py_arguments("publish", names, 3, 1, args, n, keywords, given) < 0)
        return NULL;
    if (publish((shmd_py_producer *)self, given[0], type_of(given[1])) == 0)
        return shmd_py_none();
    PyObject *timeout = given[2] == NULL ? Py_None : given[2];
    return given[1] == NULL ? shmd_py_call(self, SHMD_PY_PUBLISH_SLOW, "(OiO)", given[0], 0, timeout)
                            : shmd_py_call(self, SHMD_PY_PUBLISH_SLOW, "(OOO)", given[0], given[1], timeout);
}

static PyObject *producer_try_publish(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"data", "type", NULL};
    PyObject *given[2];
    if (shmd_py_arguments("try_publish", names, 2, 1, args, n, keywords, given) < 0)
        return NULL;
    int code = publish((shmd_py_producer *)self, given[0], type_of(given[1]));
    if (code == 0 || code == SHMD_BACK_PRESSURED)
        return PyLong_FromLong(code == 0);
    return given[1] == NULL ? shmd_py_call(self, SHMD_PY_TRY_PUBLISH_SLOW, "(Oi)", given[0], 0)
                            : shmd_py_call(self, SHMD_PY_TRY_PUBLISH_SLOW, "(OO)", given[0], given[1]);
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
    shmd_producer *native = p->handle.native;
    int64_t done;
    if (timeout_ns == 0 && view.len < SHMD_PY_UNLOCKED_BYTES)
        done = shmd_guarded_publish_records(native, view.buf, (uint32_t)view.itemsize, stride, count, 0);
    else
        SHMD_PY_UNLOCKED(p->handle, done = shmd_guarded_publish_records(native, view.buf, (uint32_t)view.itemsize, stride, count, timeout_ns));
    PyBuffer_Release(&view);
    return PyLong_FromLongLong(done);
}

/* ---- claims ------------------------------------------------------------------------------- */

static void forget_memory(shmd_py_producer *p)
{
    Py_CLEAR(p->memory[0]);
    Py_CLEAR(p->memory[1]);
    Py_CLEAR(p->mapping);
    p->inline_max = -1;
}

static int look_at_memory(shmd_py_producer *p, Py_ssize_t length)
{
    shmd_memory_t found;
    int code = shmd_guarded_memory(p->handle.native, &found);
    if (code != SHMD_OK) { /* it was closed a moment ago */
        (void)shmd_py_fail((PyObject *)p, code, length);
        return -1;
    }
    PyObject *mapping = shmd_py_mapping_new(found.mapping);
    PyObject *slots = mapping == NULL ? NULL : shmd_py_region_view(mapping, found.slots, found.slots_bytes);
    PyObject *arena = slots == NULL ? NULL : shmd_py_region_view(mapping, found.arena, found.arena_bytes);
    if (arena == NULL) {
        Py_XDECREF(slots);
        Py_XDECREF(mapping);
        return -1;
    }
    forget_memory(p);
    p->mapping = mapping;
    p->memory[0] = slots;
    p->memory[1] = arena;
    p->inline_max = (int64_t)found.inline_max;
    return 0;
}

/* The place of a claim as a slice of a view of all the slots, or of all the arena: however derived, it keeps the memory mapped. */
static PyObject *view_of(shmd_py_producer *p, Py_ssize_t offset, Py_ssize_t length)
{
    if (p->inline_max < 0 && look_at_memory(p, length) < 0)
        return NULL;
    PyObject *memory = p->memory[length > p->inline_max];
    Py_INCREF(memory); /* a finaliser that runs meanwhile may close this producer */
    PyObject *view = PySequence_GetSlice(memory, offset, offset + length);
    Py_DECREF(memory);
    return view;
}

/* The claim that the core has open; it is given back when there is no memory for it. */
static PyObject *claimed(shmd_py_producer *p, Py_ssize_t offset, Py_ssize_t length, uint16_t type)
{
    PyObject *view = view_of(p, offset, length);
    PyObject *claim = view == NULL ? NULL : shmd_py_claim_new(p, view, length, type);
    if (claim == NULL) {
        PyObject *kind, *error, *trace;
        PyErr_Fetch(&kind, &error, &trace);
        (void)shmd_guarded_abort(p->handle.native);
        PyErr_Restore(kind, error, trace);
    }
    return claim;
}

static int64_t claim_slowly(PyObject *self, int64_t code, Py_ssize_t length, PyObject *timeout)
{
    PyObject *offset = shmd_py_call(self, SHMD_PY_CLAIM_SLOW, "(LnO)", (long long)code, length, timeout == NULL ? Py_None : timeout);
    long long found = offset == NULL ? -1 : PyLong_AsLongLong(offset);
    Py_XDECREF(offset);
    return found;
}

/* The bytes to claim (what fits no C number is cut); -1: that is none, or the type is none, and an exception says so. */
static Py_ssize_t length_of_claim(PyObject *self, PyObject *length, PyObject *type, int type_found)
{
    Py_ssize_t found = type_found < 0 ? -1 : PyNumber_AsSsize_t(length, NULL);
    if (found < 0) {
        PyErr_Clear();
        Py_XDECREF(type == NULL ? shmd_py_call(self, SHMD_PY_REFUSE_CLAIM, "(Oi)", length, 0) : shmd_py_call(self, SHMD_PY_REFUSE_CLAIM, "(OO)", length, type));
    }
    return found;
}

static PyObject *producer_claim(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"length", "type", "timeout", NULL};
    shmd_py_producer *p = (shmd_py_producer *)self;
    PyObject *given[3] = {n == 1 ? args[0] : NULL};
    if ((n != 1 || keywords != NULL) && shmd_py_arguments("claim", names, 1, 1, args, n, keywords, given) < 0)
        return NULL;
    int type = type_of(given[1]);
    Py_ssize_t length = length_of_claim(self, given[0], given[1], type);
    if (length < 0)
        return NULL;
    int64_t offset = length > UINT32_MAX ? SHMD_E_TOO_LARGE : shmd_guarded_claim(p->handle.native, (uint32_t)length);
    if (offset < 0)
        offset = claim_slowly(self, offset, length, given[2]);
    return offset < 0 ? NULL : claimed(p, (Py_ssize_t)offset, length, (uint16_t)type);
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
    return shmd_py_handle_set(&((shmd_py_producer *)self)->handle, value, "struct shmd_producer *");
}

static PyGetSetDef producer_getters[] = {
    {"_handle", shmd_py_handle_get, set_handle, "The cffi pointer that owns the native handle, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef producer_methods[] = {
    {"publish", (PyCFunction)(void (*)(void))producer_publish, METH_FASTCALL | METH_KEYWORDS,
     "publish($self, data, type=0, timeout=None)\n--\n\n"
     "Publishes one message of ``data``'s bytes.\n\n"
     "Waits up to ``timeout`` seconds for room (None: for ever, 0: not at all). ``type`` (0 to 65535) is\n"
     "the user's. Raises BackPressured, MessageTooLarge, LeaseRevoked."},
    {"try_publish", (PyCFunction)(void (*)(void))producer_try_publish, METH_FASTCALL | METH_KEYWORDS,
     "try_publish($self, data, type=0)\n--\n\n"
     "Publishes when there is room now. How many messages went in: 0 or 1."},
    {"claim", (PyCFunction)(void (*)(void))producer_claim, METH_FASTCALL | METH_KEYWORDS,
     "claim($self, length, *, type=0, timeout=None)\n--\n\n"
     "A place for ``length`` bytes in shared memory, to be written by way of its ``view`` and committed.\n\n"
     "A context manager: commits on exit, aborts on an exception. One open claim a producer (ClaimError)."},
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
    Py_XDECREF(p->handle.cdata);
    shmd_py_free(self);
}

static PyType_Slot producer_slots[] = {
    {Py_tp_doc, "What publishes: a native handle, and views of the memory that claims lie in."},
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
