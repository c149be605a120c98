/* shmd_py_claim.c: a message that is written in place, in shared memory, and then committed or aborted. */
#include "shmd_python.h"

PyObject *shmd_py_claim_new(shmd_py_producer *producer, PyObject *view, Py_ssize_t length, uint16_t type);

typedef struct claim {
    PyObject_HEAD
    shmd_py_producer *producer; /* NULL: over */
    PyObject *view;
    Py_ssize_t length;
    uint16_t type;
    uint16_t flags;
} claim;

/* Keeps the reference to `view`. */
PyObject *shmd_py_claim_new(shmd_py_producer *producer, PyObject *view, Py_ssize_t length, uint16_t type)
{
    claim *c = (claim *)(void *)PyType_GenericAlloc(shmd_py.claim, 0);
    if (c == NULL) {
        Py_DECREF(view);
        return NULL;
    }
    Py_INCREF((PyObject *)producer);
    c->producer = producer;
    c->view = view;
    c->length = length;
    c->type = type;
    return (PyObject *)c;
}

/* Nobody writes there by way of the view any more. An array that still looks at it keeps its exporter, and the memory. */
static int end_view(claim *c)
{
    PyObject *done = shmd_py_call(c->view, SHMD_PY_RELEASE, NULL);
    Py_XDECREF(done);
    if (done == NULL && !PyErr_ExceptionMatches(PyExc_BufferError))
        return -1;
    PyErr_Clear();
    return 0;
}

PyObject *shmd_py_fail(PyObject *producer, int64_t code, Py_ssize_t length)
{
    PyObject *error = shmd_py_call(producer, SHMD_PY_FAILURE, "(Ln)", (long long)code, length);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    return NULL;
}

/* The producer of a claim that is over from now on: the caller's reference. NULL with ClaimError: it was over. */
static shmd_py_producer *finish(claim *c)
{
    shmd_py_producer *producer = c->producer;
    c->producer = NULL;
    if (producer == NULL)
        Py_XDECREF(shmd_py_call((PyObject *)c, SHMD_PY_OVER, NULL)); /* raises */
    return producer;
}

static PyObject *commit(claim *c, Py_ssize_t length)
{
    PyObject *done = NULL;
    shmd_py_producer *producer = finish(c);
    if (producer == NULL)
        return NULL;
    int code = shmd_guarded_commit(producer->handle.native, (uint32_t)length, c->type, c->flags);
    if (end_view(c) == 0)
        done = code == 0 ? shmd_py_none() : shmd_py_fail((PyObject *)producer, code, length);
    Py_DECREF((PyObject *)producer);
    return done;
}

static PyObject *abort_it(claim *c)
{
    PyObject *done = NULL;
    shmd_py_producer *producer = finish(c);
    if (producer == NULL)
        return NULL;
    if (end_view(c) == 0) {
        int is_closed = producer->handle.native == NULL; /* closing aborted it */
        int code = is_closed ? 0 : shmd_guarded_abort(producer->handle.native);
        done = code == 0 || code == SHMD_E_REVOKED ? shmd_py_none() : shmd_py_fail((PyObject *)producer, code, 0);
    }
    Py_DECREF((PyObject *)producer);
    return done;
}

/* ---- methods ------------------------------------------------------------------------------ */

static PyObject *claim_commit(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"length", NULL};
    claim *c = (claim *)self;
    PyObject *given;
    if (shmd_py_arguments("commit", names, 1, 0, args, n, keywords, &given) < 0)
        return NULL;
    if (c->producer == NULL || given == NULL || given == Py_None)
        return commit(c, c->length);
    Py_ssize_t length = PyNumber_AsSsize_t(given, NULL);
    if (PyErr_Occurred())
        return NULL;
    if (length < 0 || length > c->length)
        return PyErr_Format(PyExc_ValueError, "commit of %zd bytes of a claim of %zd", length, c->length);
    return commit(c, length);
}

static PyObject *claim_abort(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    return abort_it((claim *)self);
}

static PyObject *claim_enter(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    Py_INCREF(self);
    return self;
}

static PyObject *claim_exit(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    claim *c = (claim *)self;
    if (c->producer == NULL)
        return shmd_py_none();
    return n > 0 && args[0] != Py_None ? abort_it(c) : commit(c, c->length);
}

static PyObject *claim_is_open(PyObject *self, void *nothing)
{
    (void)nothing;
    return PyBool_FromLong(((claim *)self)->producer != NULL);
}

static PyMethodDef claim_methods[] = {
    {"commit", (PyCFunction)(void (*)(void))claim_commit, METH_FASTCALL | METH_KEYWORDS,
     "commit($self, length=None)\n--\n\nPublishes the message; with ``length``, only that many first bytes of it."},
    {"abort", claim_abort, METH_NOARGS, "abort($self)\n--\n\nGives the place back: nobody ever sees it."},
    {"__enter__", claim_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))claim_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef claim_members[] = {
    {"view", T_OBJECT_EX, offsetof(claim, view), READONLY, "The place: a writable memoryview, which nobody reads before the commit."},
    {"_flags", T_USHORT, offsetof(claim, flags), 0, "How the payload is stored (SHMD_FLAG_...)."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef claim_getters[] = {
    {"open", claim_is_open, NULL, "Whether it was neither committed nor aborted.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static void claim_dealloc(PyObject *self)
{
    claim *c = (claim *)self;
    Py_XDECREF((PyObject *)c->producer);
    Py_XDECREF(c->view);
    shmd_py_free(self);
}

static PyType_Slot claim_slots[] = {
    {Py_tp_doc, "A place for one message."},
    {Py_tp_dealloc, claim_dealloc},
    {Py_tp_methods, claim_methods},
    {Py_tp_members, claim_members},
    {Py_tp_getset, claim_getters},
    {0, NULL},
};

PyType_Spec shmd_py_claim_spec = {
    .name = "shmdriver._hotpath.ClaimCore",
    .basicsize = (int)sizeof(claim),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = claim_slots,
};
