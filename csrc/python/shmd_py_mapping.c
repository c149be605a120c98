/* shmd_py_mapping.c: which places in mapped memory live Python objects refer to, and the memory itself, which stays until
 * the last of them is gone. A reliable consumer's gate never passes the oldest such place. */
#include "shmd_python.h"

#include <stdlib.h>

enum { FIRST_HOLDS = 64 };

/* ---- holds -------------------------------------------------------------------------------- */

static int grow(shmd_py_mapping *m)
{
    uint64_t capacity = m->holds == NULL ? FIRST_HOLDS : 2 * (m->mask + 1);
    shmd_py_hold *holds = malloc(capacity * sizeof *holds);
    if (holds == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    for (uint64_t number = m->first; number != m->end; number++)
        holds[number & (capacity - 1)] = m->holds[number & m->mask];
    free(m->holds);
    m->holds = holds;
    m->mask = capacity - 1;
    return 0;
}

static void pop_dead(shmd_py_mapping *m)
{
    while (m->first != m->end && !m->holds[m->first & m->mask].is_held)
        m->first++;
}

int shmd_py_mapping_add(shmd_py_mapping *m, uint64_t seq, uint64_t *number)
{
    if (m->holds == NULL || m->end - m->first > m->mask) {
        pop_dead(m);
        if ((m->holds == NULL || m->end - m->first > m->mask) && grow(m) < 0)
            return -1;
    }
    m->holds[m->end & m->mask] = (shmd_py_hold){.seq = seq, .is_held = 1};
    m->held++;
    *number = m->end++;
    return 0;
}

void shmd_py_mapping_drop(shmd_py_mapping *m, uint64_t number)
{
    m->holds[number & m->mask].is_held = 0;
    m->held--;
}

uint64_t shmd_py_mapping_hold_seq(shmd_py_mapping *m)
{
    pop_dead(m);
    return m->first == m->end ? UINT64_MAX : m->holds[m->first & m->mask].seq;
}

/* ---- the type ----------------------------------------------------------------------------- */

/* MappingCore(address of the shmd_mapping * that owns one hold of a native mapping, and owns it no more when this has returned; serial) */
static PyObject *mapping_make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *address;
    unsigned long long serial;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "O!K:MappingCore", &PyLong_Type, &address, &serial))
        return NULL;
    shmd_mapping **slot = PyLong_AsVoidPtr(address);
    if (slot == NULL || *slot == NULL)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a mapping at address 0");
    shmd_py_mapping *m = (shmd_py_mapping *)(void *)PyType_GenericAlloc(type, 0);
    if (m == NULL)
        return NULL;
    m->native = *slot;
    m->serial = serial;
    *slot = NULL;
    return (PyObject *)m;
}

static void mapping_dealloc(PyObject *self)
{
    shmd_py_mapping *m = (shmd_py_mapping *)self;
    if (m->native != NULL) {
        Py_BEGIN_ALLOW_THREADS /* the last hold unmaps, which takes long for much memory */
        shmd_mapping_free(m->native);
        Py_END_ALLOW_THREADS
    }
    free(m->holds);
    shmd_py_free(self);
}

static PyMemberDef mapping_members[] = {
    {"serial", T_ULONGLONG, offsetof(shmd_py_mapping, serial), READONLY, "Which of its consumer's mappings it is."},
    {"held", T_ULONGLONG, offsetof(shmd_py_mapping, held), READONLY, "How many places are referred to."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_doc, "One epoch's memory, and which places in it live objects refer to."},
    {Py_tp_new, mapping_make},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_tp_members, mapping_members},
    {0, NULL},
};

PyType_Spec shmd_py_mapping_spec = {
    .name = "shmdriver._hotpath.MappingCore",
    .basicsize = (int)sizeof(shmd_py_mapping),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = mapping_slots,
};
