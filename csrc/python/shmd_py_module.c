/* shmd_py_module.c: the module shmdriver._hotpath. It lives in the file of cffi's module, so that both call the same core. */
#include "shmd_python.h"

shmd_py_hooks shmd_py;

static PyObject *names[SHMD_PY_NAMES]; /* interned: the cache of method lookups goes by the name's address */
static const char *const spelled[SHMD_PY_NAMES] = {
    [SHMD_PY_CLEAR] = "clear",
    [SHMD_PY_FAILURE] = "_failure",
    [SHMD_PY_F_GLOBALS] = "f_globals",
    [SHMD_PY_IDLE] = "_idle",
    [SHMD_PY_MAKE_ROOM] = "_make_room",
    [SHMD_PY_MAP] = "_map",
    [SHMD_PY_MODULE_NAME] = "__name__",
    [SHMD_PY_OVER] = "_over",
    [SHMD_PY_RECOVER] = "_recover",
    [SHMD_PY_RELEASE] = "release",
    [SHMD_PY_SETFLAGS] = "setflags",
    [SHMD_PY_TB_FRAME] = "tb_frame",
    [SHMD_PY_TB_NEXT] = "tb_next",
    [SHMD_PY_TOBYTES] = "tobytes",
};

PyObject *shmd_py_attribute(PyObject *self, shmd_py_name name) { return PyObject_GetAttr(self, names[name]); }

PyObject *shmd_py_global(PyObject *globals, shmd_py_name name) { return PyDict_GetItem(globals, names[name]); }

PyObject *shmd_py_call(PyObject *self, shmd_py_name name, const char *format, ...)
{
    va_list values;
    PyObject *result;
    if (format == NULL) {
        result = PyObject_CallMethodObjArgs(self, names[name], NULL);
    } else {
        va_start(values, format);
        PyObject *arguments = Py_VaBuildValue(format, values);
        va_end(values);
        PyObject *method = arguments == NULL ? NULL : PyObject_GetAttr(self, names[name]);
        result = method == NULL ? NULL : PyObject_CallObject(method, arguments);
        Py_XDECREF(method);
        Py_XDECREF(arguments);
    }
    if (result == NULL && name != SHMD_PY_CLEAR)
        shmd_py_clear_raised();
    return result;
}

static int intern_names(void)
{
    for (int i = 0; i < SHMD_PY_NAMES; i++)
        if ((names[i] = PyUnicode_InternFromString(spelled[i])) == NULL)
            return -1;
    return 0;
}

PyObject *shmd_py_handle_get(PyObject *self, void *nothing)
{
    PyObject *cdata = ((shmd_py_handled *)self)->handle.cdata;
    (void)nothing;
    Py_INCREF(cdata);
    return cdata;
}

PyObject *shmd_py_handle_last(PyObject *self, void *nothing)
{
    PyObject *last = ((shmd_py_handled *)self)->handle.last;
    (void)nothing;
    last = last == NULL ? Py_None : last;
    Py_INCREF(last);
    return last;
}

void shmd_py_handle_drop(shmd_py_handle *handle)
{
    Py_CLEAR(handle->cdata);
    Py_CLEAR(handle->last);
}

int shmd_py_handle_set(shmd_py_handle *handle, PyObject *value, const char *type)
{
    void *native = NULL;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a handle cannot be deleted; set it to None");
        return -1;
    }
    if (value != Py_None) {
        PyObject *address = PyObject_CallFunction(shmd_py.address_of, "Os", value, type);
        native = address == NULL ? NULL : PyLong_AsVoidPtr(address);
        Py_XDECREF(address);
        if (PyErr_Occurred())
            return -1;
    }
    PyObject *before = handle->cdata, *last = handle->last;
    Py_INCREF(value);
    handle->cdata = value;
    handle->native = native;
    if (value != Py_None) {
        Py_INCREF(value);
        handle->last = value;
        Py_XDECREF(last);
    }
    Py_XDECREF(before); /* at the end: it may free the handle, and run code */
    return 0;
}

static int take_keyword(const char *function, const char *const *names, PyObject *name, PyObject *value, PyObject **out)
{
    for (Py_ssize_t i = 0; names[i] != NULL; i++) {
        if (PyUnicode_CompareWithASCIIString(name, names[i]) != 0)
            continue;
        if (out[i] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%s'", function, names[i]);
            return -1;
        }
        out[i] = value;
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, name);
    return -1;
}

int shmd_py_arguments(const char *function, const char *const *names, Py_ssize_t positional, Py_ssize_t required, PyObject *const *args, Py_ssize_t n,
                      PyObject *keywords, PyObject **out)
{
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_Size(keywords);
    if (n > positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd positional arguments (%zd given)", function, positional, n);
        return -1;
    }
    for (Py_ssize_t i = 0; names[i] != NULL; i++)
        out[i] = i < n ? args[i] : NULL;
    for (Py_ssize_t i = 0; i < named; i++)
        if (take_keyword(function, names, PyTuple_GetItem(keywords, i), args[n + i], out) < 0)
            return -1;
    for (Py_ssize_t i = 0; i < required; i++) {
        if (out[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'", function, names[i]);
            return -1;
        }
    }
    return 0;
}

/* setup(message, claim, array_claim, end_of_stream, address_of, method, packages): shmd_py_hooks says what they are. */
static PyObject *setup(PyObject *module, PyObject *args)
{
    static PyInterpreterState *owner; /* there is one set of hooks; a second interpreter gets a copy of the module without another init */
    PyObject *message, *claim, *array_claim, *given[4];
    (void)module;
    if (owner != NULL && owner != PyInterpreterState_Get()) {
        PyErr_SetString(PyExc_ImportError, "shmdriver is in use by another interpreter of this process: sub-interpreters cannot share it");
        return NULL;
    }
    owner = PyInterpreterState_Get();
    if (!PyArg_ParseTuple(args, "O!O!O!OOOO!:setup", &PyType_Type, &message, &PyType_Type, &claim, &PyType_Type, &array_claim, &given[0], &given[1],
                          &given[2], &PyFrozenSet_Type, &given[3]))
        return NULL;
    Py_INCREF(args); /* for good, with all that is in it */
    shmd_py.message = (PyTypeObject *)(void *)message;
    shmd_py.claim = (PyTypeObject *)(void *)claim;
    shmd_py.array_claim = (PyTypeObject *)(void *)array_claim;
    shmd_py.end_of_stream = given[0];
    shmd_py.address_of = given[1];
    shmd_py.method = given[2];
    shmd_py.packages = given[3];
    Py_RETURN_NONE;
}

/* clear_frames(error): no frame of ours in its traceback, nor in those of its contexts, keeps its locals. */
static PyObject *clear_frames(PyObject *module, PyObject *error)
{
    (void)module;
    if (!PyExceptionInstance_Check(error))
        return PyErr_Format(PyExc_TypeError, "clear_frames() takes an exception");
    shmd_py_clear_frames(error);
    Py_RETURN_NONE;
}

/* deadline(timeout, argument="timeout"): when so many seconds (None: never) are over, in ns of CLOCK_MONOTONIC; 2**64 - 1: never. */
static PyObject *deadline(PyObject *module, PyObject *args)
{
    PyObject *timeout;
    const char *argument = "timeout";
    (void)module;
    if (!PyArg_ParseTuple(args, "O|s:deadline", &timeout, &argument))
        return NULL;
    uint64_t end_ns = shmd_py_deadline(timeout, argument);
    return end_ns == 0 ? NULL : PyLong_FromUnsignedLongLong(end_ns);
}

static PyObject *add_type(PyObject *module, const char *name, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type != NULL && PyModule_AddObjectRef(module, name, type) < 0)
        Py_CLEAR(type);
    return type; /* one reference stays for good */
}

static PyMethodDef functions[] = {
    {"setup", setup, METH_VARARGS, "Tells the classes to make and the functions to call."},
    {"deadline", deadline, METH_VARARGS, "When so many seconds are over: ns of CLOCK_MONOTONIC, 2**64 - 1: never."},
    {"clear_frames", clear_frames, METH_O, "Clears the locals of this package's frames in an exception's traceback."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmdriver._hotpath",
    .m_doc = "What a program touches once a message; shmdriver.client makes classes of it.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__hotpath(void);

PyMODINIT_FUNC PyInit__hotpath(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    shmd_py.mapping = (PyTypeObject *)(void *)add_type(module, "MappingCore", &shmd_py_mapping_spec);
    shmd_py.window = (PyTypeObject *)(void *)add_type(module, "Window", &shmd_py_window_spec);
    shmd_py.place = (PyTypeObject *)(void *)add_type(module, "Place", &shmd_py_place_spec);
    PyObject *cores[] = {
        add_type(module, "MessageCore", &shmd_py_message_spec),
        add_type(module, "ConsumerCore", &shmd_py_consumer_spec),
        add_type(module, "ProducerCore", &shmd_py_producer_spec),
        add_type(module, "ClaimCore", &shmd_py_claim_spec),
        add_type(module, "Boundary", &shmd_py_boundary_spec),
    };
    int is_complete = intern_names() == 0 && shmd_py.mapping != NULL && shmd_py.window != NULL && shmd_py.place != NULL;
    for (size_t i = 0; i < sizeof cores / sizeof *cores; i++)
        is_complete = is_complete && cores[i] != NULL;
    if (!is_complete)
        Py_CLEAR(module);
    return module;
}
