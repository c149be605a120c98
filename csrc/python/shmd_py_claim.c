/* shmd_py_claim.c: a message that is written in place, in shared memory, and then committed or aborted. A claim that is
 * dropped aborts itself, and no other: its producer knows which claim is open. After its end the memory is the readers'. */
#include "shmd_python.h"

shmd_py_claim *shmd_py_claim_new(PyTypeObject *type, Py_ssize_t length, uint16_t message_type)
{
    shmd_py_claim *c = (shmd_py_claim *)(void *)PyType_GenericAlloc(type, 0);
    if (c != NULL) {
        c->length = length;
        c->type = message_type;
    }
    return c;
}

PyObject *shmd_py_fail(PyObject *producer, int64_t code, Py_ssize_t length)
{
    PyObject *error = shmd_py_call(producer, SHMD_PY_FAILURE, "(Ln)", (long long)code, length);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    return NULL;
}

/* ---- taking the memory back --------------------------------------------------------------- */

/* The claim's own view is released. 1: something that was made of it is still there; -1: an exception. */
static int end_view(shmd_py_claim *c)
{
    if (c->view == NULL)
        return 0;
    PyObject *done = shmd_py_call(c->view, SHMD_PY_RELEASE, NULL);
    Py_XDECREF(done);
    if (done != NULL)
        return Py_REFCNT(c->view) > 2; /* one more is the program's variable: released, it reads and writes nothing */
    if (!PyErr_ExceptionMatches(PyExc_BufferError))
        return -1;
    PyErr_Clear(); /* an array looks at it */
    return 1;
}

static int make_read_only(PyObject *array)
{
    PyObject *done = shmd_py_call(array, SHMD_PY_SETFLAGS, "(i)", 0);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The claim's own arrays become read-only, for good, because the place exports itself no more. numpy has every array that
 * is made of them refer to `elements`. One reference more to `array` is the program's variable. */
static int end_array(shmd_py_claim *c)
{
    if (c->array == NULL)
        return 0;
    if (make_read_only(c->array) < 0 || make_read_only(c->elements) < 0)
        return -1;
    return Py_REFCNT(c->array) > 2 || Py_REFCNT(c->elements) > 2;
}

/* From now on nobody writes where this claim's message lies: 0, or -1 with an exception, and the claim is still open. */
static int take_back(shmd_py_claim *c)
{
    shmd_py_place *place = (shmd_py_place *)c->place;
    if (place == NULL)
        return 0;
    place->is_over = 1;
    int has_view = end_view(c);
    int has_array = has_view < 0 ? -1 : end_array(c);
    if (has_array < 0)
        return -1;
    Py_ssize_t own = c->elements == NULL ? 1 : 2;
    if (!has_view && !has_array && place->exports == 0 && Py_REFCNT(c->place) == own)
        return 0;
    if (shmd_py_place_take_back(place) < 0)
        return -1;
    PyObject **windows = c->producer->windows;
    c->producer->has_taken_back = 1;
    for (int i = 0; i < 2; i++)
        if (windows[i] == place->window)
            Py_CLEAR(windows[i]);
    return 0;
}

/* ---- ending ------------------------------------------------------------------------------- */

/* Commits or aborts the claim in the core and returns its code. `is_open`: this is the claim that the core has open. */
static int end_in_core(shmd_py_claim *c, void *native, int is_open, Py_ssize_t length)
{
    if (length >= 0)
        return is_open || native == NULL ? shmd_guarded_commit(native, (uint32_t)length, c->type, c->flags) : SHMD_E_CLAIM;
    int code = is_open ? shmd_guarded_abort(native) : SHMD_OK; /* closing its producer has aborted it */
    return code == SHMD_E_REVOKED ? SHMD_OK : code;
}

/* Ends it: with the first `length` bytes as a message, or -1: without one. */
static PyObject *end(shmd_py_claim *c, Py_ssize_t length)
{
    if (c->producer != NULL && take_back(c) < 0)
        return NULL;
    shmd_py_producer *producer = c->producer;
    if (producer == NULL) /* it was over, or a finaliser ended it just now */
        return shmd_py_call((PyObject *)c, SHMD_PY_OVER, NULL);
    int is_open = producer->open_claim == c;
    int code = end_in_core(c, producer->handle.native, is_open, length);
    if (code == SHMD_E_CONCURRENT) /* it is still open */
        return shmd_py_fail((PyObject *)producer, code, 0);
    c->producer = NULL;
    if (is_open)
        producer->open_claim = NULL;
    PyObject *done = code == SHMD_OK ? shmd_py_none() : NULL;
    if (code == SHMD_E_CLAIM) /* its producer was attached anew, or closed */
        done = shmd_py_call((PyObject *)c, SHMD_PY_OVER, NULL);
    else if (code != SHMD_OK)
        (void)shmd_py_fail((PyObject *)producer, code, length < 0 ? 0 : length);
    Py_DECREF((PyObject *)producer);
    return done;
}

static void claim_dealloc(PyObject *self)
{
    shmd_py_claim *c = (shmd_py_claim *)self;
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    if (c->producer != NULL) {
        if (take_back(c) < 0)
            PyErr_WriteUnraisable(NULL);
        if (c->producer->open_claim == c) { /* where a thread is inside the producer, its next call aborts it */
            c->producer->open_claim = NULL;
            (void)shmd_guarded_abort(c->producer->handle.native);
        }
    }
    Py_XDECREF((PyObject *)c->producer);
    Py_XDECREF(c->view);
    Py_XDECREF(c->array);
    Py_XDECREF(c->elements);
    Py_XDECREF(c->place);
    PyErr_Restore(kind, error, trace);
    shmd_py_free(self);
}

/* ---- methods ------------------------------------------------------------------------------ */

static PyObject *claim_commit(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *keywords)
{
    static const char *const names[] = {"length", NULL};
    shmd_py_claim *c = (shmd_py_claim *)self;
    PyObject *given;
    if (shmd_py_arguments("commit", names, c->array == NULL, 0, args, n, keywords, &given) < 0)
        return NULL;
    if (c->producer == NULL || given == NULL || given == Py_None)
        return end(c, c->length);
    Py_ssize_t length = PyNumber_AsSsize_t(given, NULL);
    if (PyErr_Occurred())
        return NULL;
    if (length < 0 || length > c->length || c->array != NULL)
        return PyErr_Format(PyExc_ValueError, "commit of %zd bytes of a claim of %zd", length, c->length);
    return end(c, length);
}

static PyObject *claim_abort(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    return end((shmd_py_claim *)self, -1);
}

static PyObject *claim_enter(PyObject *self, PyObject *nothing)
{
    PyObject *entered = ((shmd_py_claim *)self)->array;
    (void)nothing;
    entered = entered == NULL ? self : entered;
    Py_INCREF(entered);
    return entered;
}

static PyObject *claim_exit(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    shmd_py_claim *c = (shmd_py_claim *)self;
    if (c->producer == NULL)
        return shmd_py_none();
    return end(c, n > 0 && args[0] != Py_None ? -1 : c->length);
}

static PyObject *claim_is_open(PyObject *self, void *nothing)
{
    (void)nothing;
    return PyBool_FromLong(((shmd_py_claim *)self)->producer != NULL);
}

/* A released one, when it is asked for only after the end. */
static PyObject *no_view(void)
{
    PyObject *empty = PyBytes_FromStringAndSize(NULL, 0);
    PyObject *view = empty == NULL ? NULL : PyMemoryView_FromObject(empty);
    PyObject *done = view == NULL ? NULL : shmd_py_call(view, SHMD_PY_RELEASE, NULL);
    if (done == NULL)
        Py_CLEAR(view);
    Py_XDECREF(done);
    Py_XDECREF(empty);
    return view;
}

static PyObject *claim_view(PyObject *self, void *nothing)
{
    shmd_py_claim *c = (shmd_py_claim *)self;
    (void)nothing;
    if (c->view == NULL) {
        PyObject *view = c->producer == NULL || c->place == NULL ? no_view() : PyMemoryView_FromObject(c->place);
        if (view == NULL || c->view != NULL) /* a finaliser may have asked meanwhile */
            Py_XDECREF(view);
        else
            c->view = view;
    }
    Py_XINCREF(c->view);
    return c->view;
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
    {"array", T_OBJECT_EX, offsetof(shmd_py_claim, array), READONLY, "The array, whose elements are what the place last held; read-only after the end."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef claim_getters[] = {
    {"open", claim_is_open, NULL, "Whether it was neither committed nor aborted.", NULL},
    {"view", claim_view, NULL, "The place: a writable memoryview, which nobody reads before the commit. Released at the end.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

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
    .basicsize = (int)sizeof(shmd_py_claim),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = claim_slots,
};
