/* shmd_py_boundary.c: an exception that leaves this package keeps nothing alive. A program may keep an exception for ever.
 * Its traceback refers to frames, and a frame refers to its locals: handles, messages, buffers. So the locals of our frames
 * are cleared before the exception reaches the program's own frame. The lines of the traceback stay.
 *
 * C does this, because a signal's handler can raise between any two steps of Python, also within an `except`. */
#include "shmd_python.h"

/* Whether the frame runs code of a package whose frames are cleared: ours, or one that ours calls. */
static int is_ours(PyObject *frame)
{
    PyObject *globals = shmd_py_attribute(frame, SHMD_PY_F_GLOBALS);
    PyObject *name = globals == NULL ? NULL : shmd_py_global(globals, SHMD_PY_MODULE_NAME);
    Py_ssize_t dot = name == NULL || !PyUnicode_Check(name) ? -2 : PyUnicode_FindChar(name, '.', 0, PyUnicode_GetLength(name), 1);
    PyObject *package = dot == -2 ? NULL : PyUnicode_Substring(name, 0, dot < 0 ? PyUnicode_GetLength(name) : dot);
    int found = package == NULL || shmd_py.packages == NULL ? 0 : PySet_Contains(shmd_py.packages, package);
    Py_XDECREF(package);
    Py_XDECREF(globals);
    return found > 0;
}

/* A frame that still runs, further out, refuses: it is cleared when the exception leaves it. */
static void clear_frame(PyObject *frame)
{
    PyObject *cleared = is_ours(frame) ? shmd_py_call(frame, SHMD_PY_CLEAR, NULL) : NULL;
    Py_XDECREF(cleared);
    if (!PyErr_Occurred())
        return;
    if (PyErr_ExceptionMatches(PyExc_RuntimeError))
        PyErr_Clear();
    else
        PyErr_WriteUnraisable(frame);
}

static void clear_traceback(PyObject *trace) /* takes the reference */
{
    while (trace != NULL && trace != Py_None) {
        PyObject *frame = shmd_py_attribute(trace, SHMD_PY_TB_FRAME);
        PyObject *next = shmd_py_attribute(trace, SHMD_PY_TB_NEXT);
        if (frame != NULL)
            clear_frame(frame);
        Py_XDECREF(frame);
        Py_DECREF(trace);
        trace = next;
    }
    Py_XDECREF(trace);
}

void shmd_py_clear_frames(PyObject *error)
{
    enum { CONTEXTS_MAX = 100 }; /* an exception that was raised while another one was handled refers to that one */
    Py_XINCREF(error);
    for (int i = 0; error != NULL && i < CONTEXTS_MAX; i++) {
        PyObject *before = PyException_GetContext(error);
        clear_traceback(PyException_GetTraceback(error));
        Py_DECREF(error);
        error = before;
    }
    Py_XDECREF(error);
}

void shmd_py_clear_raised(void)
{
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    PyErr_NormalizeException(&kind, &error, &trace);
    Py_XINCREF(trace);
    clear_traceback(trace);
    PyObject *context = error == NULL ? NULL : PyException_GetContext(error);
    shmd_py_clear_frames(context);
    Py_XDECREF(context);
    PyErr_Restore(kind, error, trace);
}

/* ---- the type ----------------------------------------------------------------------------- */

typedef struct boundary {
    PyObject_HEAD
    PyObject *function;
} boundary;

/* Boundary(function) */
static PyObject *boundary_make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *function;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "O:Boundary", &function))
        return NULL;
    boundary *b = (boundary *)(void *)PyType_GenericAlloc(type, 0);
    if (b == NULL)
        return NULL;
    Py_INCREF(function);
    b->function = function;
    return (PyObject *)b;
}

static PyObject *boundary_call(PyObject *self, PyObject *args, PyObject *keywords)
{
    PyObject *result = PyObject_Call(((boundary *)self)->function, args, keywords);
    if (result == NULL)
        shmd_py_clear_raised();
    return result;
}

static PyObject *boundary_bind(PyObject *self, PyObject *object, PyObject *type)
{
    (void)type;
    if (object != NULL && object != Py_None)
        return PyObject_CallFunctionObjArgs(shmd_py.method, self, object, NULL);
    Py_INCREF(self);
    return self;
}

/* Its documentation, name and module are the function's. */
static PyObject *boundary_attribute(PyObject *self, PyObject *name)
{
    PyObject *function = ((boundary *)self)->function;
    if (PyUnicode_CompareWithASCIIString(name, "__doc__") != 0 && PyUnicode_CompareWithASCIIString(name, "__module__") != 0) {
        PyObject *found = PyObject_GenericGetAttr(self, name);
        if (found != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError))
            return found;
        PyErr_Clear();
    }
    return PyObject_GetAttr(function, name);
}

static int boundary_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE(self));
    Py_VISIT(((boundary *)self)->function);
    return 0;
}

static void boundary_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(((boundary *)self)->function);
    shmd_py_free(self);
}

static PyMemberDef boundary_members[] = {
    {"__wrapped__", T_OBJECT_EX, offsetof(boundary, function), READONLY, "The function that it calls."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot boundary_slots[] = {
    {Py_tp_doc, "A function of the public interface: what it raises keeps none of this package's locals."},
    {Py_tp_new, boundary_make},
    {Py_tp_call, boundary_call},
    {Py_tp_descr_get, boundary_bind},
    {Py_tp_getattro, boundary_attribute},
    {Py_tp_traverse, boundary_traverse},
    {Py_tp_dealloc, boundary_dealloc},
    {Py_tp_members, boundary_members},
    {0, NULL},
};

PyType_Spec shmd_py_boundary_spec = {
    .name = "shmdriver._hotpath.Boundary",
    .basicsize = (int)sizeof(boundary),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .slots = boundary_slots,
};
