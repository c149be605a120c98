/* shmd_py_place.c: the memory that a claim is written in. A claim's place lies in a window, a mapping that the core itself
 * never writes through. When a claim ends while views or arrays of its place live, the window's pages there become a
 * private copy for them, and later claims get another window. */
#include "shmd_python.h"

/* ---- windows ------------------------------------------------------------------------------ */

typedef struct window {
    PyObject_HEAD
    shmd_window_t native;
} window;

PyObject *shmd_py_window_open(shmd_py_producer *p, Py_ssize_t length)
{
    PyObject **known = &p->windows[p->inline_max >= 0 && length > p->inline_max];
    if (p->inline_max >= 0 && *known != NULL)
        return *known;
    window *w = (window *)(void *)PyType_GenericAlloc(shmd_py.window, 0);
    if (w == NULL)
        return NULL;
    int code = shmd_guarded_window(p->handle.native, (uint64_t)length, &w->native);
    if (code != SHMD_OK) { /* no memory, or it was closed a moment ago */
        Py_DECREF((PyObject *)w);
        return shmd_py_fail((PyObject *)p, code, length);
    }
    if (!p->has_taken_back && w->native.prefaults)
        shmd_window_prefault(w->native.start, w->native.bytes);
    p->inline_max = (int64_t)w->native.inline_max;
    known = &p->windows[length > p->inline_max];
    PyObject *before = *known; /* a finaliser may have opened one meanwhile */
    *known = (PyObject *)w;
    Py_XDECREF(before);
    return *known;
}

static void window_dealloc(PyObject *self)
{
    window *w = (window *)self;
    if (w->native.start != NULL) {
        Py_BEGIN_ALLOW_THREADS /* unmapping takes long for much memory */
        shmd_window_close(&w->native);
        Py_END_ALLOW_THREADS
    }
    shmd_py_free(self);
}

static PyType_Slot window_slots[] = {
    {Py_tp_doc, "A mapping of a producer's slots or arena, which stays while a place in it lives."},
    {Py_tp_dealloc, window_dealloc},
    {0, NULL},
};

PyType_Spec shmd_py_window_spec = {
    .name = "shmdriver._hotpath.Window",
    .basicsize = (int)sizeof(window),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = window_slots,
};

/* ---- places ------------------------------------------------------------------------------- */

PyObject *shmd_py_place_new(PyObject *of, Py_ssize_t offset, Py_ssize_t bytes, int prefault)
{
    const window *w = (const window *)of;
    if (offset < 0 || (uint64_t)offset + (uint64_t)bytes > w->native.bytes)
        return PyErr_Format(PyExc_SystemError, "a claim of %zd bytes at %zd lies outside its window", bytes, offset);
    shmd_py_place *place = (shmd_py_place *)(void *)PyType_GenericAlloc(shmd_py.place, 0);
    if (place == NULL)
        return NULL;
    Py_INCREF(of);
    place->window = of;
    place->start = (unsigned char *)w->native.start + offset;
    place->bytes = bytes;
    if (prefault)
        shmd_window_prefault(place->start, (uint64_t)bytes);
    return (PyObject *)place;
}

int shmd_py_place_take_back(shmd_py_place *place)
{
    if (place->bytes == 0 || shmd_window_take_back(place->start, (uint64_t)place->bytes) == SHMD_OK)
        return 0;
    PyErr_Format(PyExc_MemoryError, "this claim cannot end while views or arrays of it live: %s; drop them, then commit or abort it", shmd_last_error());
    return -1;
}

static int place_export(PyObject *self, Py_buffer *view, int flags)
{
    shmd_py_place *place = (shmd_py_place *)self;
    if (place->is_over) { /* numpy asks, when an array is to be made writable again */
        PyErr_SetString(PyExc_BufferError, "this claim is over: its memory is the readers'");
        view->obj = NULL;
        return -1;
    }
    if (PyBuffer_FillInfo(view, self, place->start, place->bytes, 0, flags) < 0)
        return -1;
    place->exports++;
    return 0;
}

static void place_release(PyObject *self, Py_buffer *view)
{
    (void)view;
    ((shmd_py_place *)self)->exports--;
}

static void place_dealloc(PyObject *self)
{
    Py_XDECREF(((shmd_py_place *)self)->window);
    shmd_py_free(self);
}

static PyType_Slot place_slots[] = {
    {Py_tp_doc, "The memory of one claim, writable until it is over."},
    {Py_tp_dealloc, place_dealloc},
    {Py_bf_getbuffer, place_export},
    {Py_bf_releasebuffer, place_release},
    {0, NULL},
};

PyType_Spec shmd_py_place_spec = {
    .name = "shmdriver._hotpath.Place",
    .basicsize = (int)sizeof(shmd_py_place),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = place_slots,
};
