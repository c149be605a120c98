/* shmd_py_message.c: a message as a consumer hands it out. One object: the payload of a small one stands in it, a larger
 * one is a place in shared memory, or in a private buffer, that lives as long as it does. */
#include "shmd_python.h"

#include <string.h>

_Static_assert(offsetof(shmd_py_message, payload) % 8 == 0, "a copied payload is aligned to a word");

/* ---- making them -------------------------------------------------------------------------- */

static shmd_py_message *allocate(PyTypeObject *type, Py_ssize_t inline_bytes, Py_ssize_t length)
{
    shmd_py_message *m = (shmd_py_message *)(void *)PyType_GenericAlloc(type, inline_bytes);
    if (m != NULL) {
        m->data = m->payload;
        m->length = length;
    }
    return m;
}

static void unpack_head(shmd_py_message *m, const unsigned char *record)
{
    memcpy(&m->seq, record, 8);
    memcpy(&m->timestamp_ns, record + 8, 8);
    memcpy(&m->type, record + 16, 2);
    memcpy(&m->flags, record + 18, 2);
}

/* An array's payload begins with what the wire says of it (shmd_tensor_t), which is no part of its bytes. One that is impossible
 * stays where it is, and message.array says so. */
static void pass_wire_head(shmd_py_message *m)
{
    uint32_t bytes; /* of shared memory perhaps, and then loaded once */
    if ((m->flags & SHMD_FLAG_TENSOR) == 0 || m->length < SHMD_PY_ALIGNED)
        return;
    memcpy(&bytes, m->data, sizeof bytes);
    if (bytes < SHMD_PY_ALIGNED || bytes % SHMD_PY_ALIGNED != 0 || (Py_ssize_t)bytes > m->length)
        return;
    m->wire_head_bytes = bytes;
    m->data += bytes;
    m->length -= bytes;
}

/* A copy in the object itself. An array's head is a multiple of what its elements are aligned to; other payloads cost no padding. */
static shmd_py_message *copied(PyTypeObject *type, uint16_t flags, const void *payload, Py_ssize_t length)
{
    int is_array = (flags & SHMD_FLAG_TENSOR) != 0;
    shmd_py_message *m = allocate(type, length + (is_array ? SHMD_PY_ALIGNED - 1 : 0), length);
    if (m == NULL)
        return NULL;
    unsigned char *place = m->payload + (is_array ? -(uintptr_t)m->payload % SHMD_PY_ALIGNED : 0);
    memcpy(place, payload, (size_t)length);
    m->data = place;
    m->flags = flags;
    pass_wire_head(m);
    return m;
}

PyObject *shmd_py_message_packed(const unsigned char *record, Py_ssize_t length)
{
    uint16_t flags;
    memcpy(&flags, record + 18, sizeof flags);
    shmd_py_message *m = copied(shmd_py.message, flags, record + SHMD_PY_HEAD_BYTES, length);
    if (m != NULL)
        unpack_head(m, record);
    return (PyObject *)m;
}

PyObject *shmd_py_message_private(const unsigned char *record, Py_ssize_t length, PyObject *owner)
{
    shmd_py_message *m = allocate(shmd_py.message, 0, length);
    if (m == NULL)
        return NULL;
    unpack_head(m, record);
    m->data = record + SHMD_PY_HEAD_BYTES;
    pass_wire_head(m);
    Py_INCREF(owner);
    m->owner = owner;
    return (PyObject *)m;
}

PyObject *shmd_py_message_placed(const shmd_batch_t *batch, Py_ssize_t length, shmd_py_mapping *mapping)
{
    uint64_t hold;
    shmd_py_message *m = allocate(shmd_py.message, 0, length);
    if (m == NULL)
        return NULL;
    if (shmd_py_mapping_add(mapping, batch->seq, &hold) < 0) {
        Py_DECREF((PyObject *)m);
        return NULL;
    }
    m->seq = batch->seq;
    m->timestamp_ns = batch->timestamp_ns;
    m->type = batch->type;
    m->flags = batch->flags;
    m->data = batch->data;
    pass_wire_head(m);
    Py_INCREF((PyObject *)mapping);
    m->owner = (PyObject *)mapping;
    m->hold = hold;
    m->is_placed = 1;
    return (PyObject *)m;
}

static int unsigned_of(PyObject *value, uint64_t most, uint64_t *out)
{
    *out = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred())
        return -1;
    if (*out <= most)
        return 0;
    PyErr_Format(PyExc_OverflowError, "%R is more than %llu", value, (unsigned long long)most);
    return -1;
}

/* Message(seq, timestamp_ns, type, flags, payload): a private copy, for tests and for pickle. */
static PyObject *message_make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *number[4];
    uint64_t value[4];
    Py_buffer payload;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "OOOOy*:Message", &number[0], &number[1], &number[2], &number[3], &payload))
        return NULL;
    int is_bad = 0;
    for (int i = 0; i < 4 && !is_bad; i++)
        is_bad = unsigned_of(number[i], i < 2 ? UINT64_MAX : UINT16_MAX, &value[i]) < 0;
    shmd_py_message *m = is_bad ? NULL : copied(type, (uint16_t)value[3], payload.buf, payload.len);
    if (m != NULL) {
        m->seq = value[0];
        m->timestamp_ns = value[1];
        m->type = (uint16_t)value[2];
    }
    PyBuffer_Release(&payload);
    return (PyObject *)m;
}

static void message_dealloc(PyObject *self)
{
    shmd_py_message *m = (shmd_py_message *)self;
    if (m->is_placed)
        shmd_py_mapping_drop((shmd_py_mapping *)m->owner, m->hold);
    Py_XDECREF(m->owner);
    shmd_py_free(self);
}

/* ---- what they are to Python -------------------------------------------------------------- */

static int message_buffer(PyObject *self, Py_buffer *view, int flags)
{
    shmd_py_message *m = (shmd_py_message *)self;
    return PyBuffer_FillInfo(view, self, (void *)(uintptr_t)m->data, m->length, 1, flags);
}

static Py_ssize_t message_length(PyObject *self) { return ((shmd_py_message *)self)->length; }

static int message_bool(PyObject *self)
{
    (void)self;
    return 1;
}

static PyObject *message_bytes(PyObject *self, PyObject *nothing)
{
    shmd_py_message *m = (shmd_py_message *)self;
    (void)nothing;
    return PyBytes_FromStringAndSize((const char *)m->data, m->length);
}

static PyObject *message_data(PyObject *self, void *nothing)
{
    (void)nothing;
    return PyMemoryView_FromObject(self);
}

static PyObject *message_wire_head(PyObject *self, void *nothing)
{
    shmd_py_message *m = (shmd_py_message *)self;
    (void)nothing;
    return PyBytes_FromStringAndSize((const char *)m->data - m->wire_head_bytes, m->wire_head_bytes);
}

static PyObject *message_mapping(PyObject *self, void *nothing)
{
    shmd_py_message *m = (shmd_py_message *)self;
    PyObject *mapping = m->is_placed ? m->owner : Py_None;
    (void)nothing;
    Py_INCREF(mapping);
    return mapping;
}

static PyMemberDef message_members[] = {
    {"seq", T_ULONGLONG, offsetof(shmd_py_message, seq), READONLY, "Its number within the producer's epoch, from 0."},
    {"timestamp_ns", T_ULONGLONG, offsetof(shmd_py_message, timestamp_ns), READONLY, "When it was published (CLOCK_MONOTONIC); 0: timestamps are off."},
    {"type", T_USHORT, offsetof(shmd_py_message, type), READONLY, "The publisher's message type, 0 to 65535."},
    {"flags", T_USHORT, offsetof(shmd_py_message, flags), READONLY, "How the payload is stored (SHMD_FLAG_...)."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef message_getters[] = {
    {"data", message_data, NULL, "The payload, read-only, not copied; of an array its elements, as they lie in memory.", NULL},
    {"_wire_head", message_wire_head, NULL, "What stands before an array's elements: a shmd_tensor_t with its tail; b\"\": none.", NULL},
    {"_mapping", message_mapping, NULL, "The shared memory that it lies in; None when it was copied.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef message_methods[] = {
    {"__bytes__", message_bytes, METH_NOARGS, "The payload, copied."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot message_slots[] = {
    {Py_tp_doc, "A message's number, time, type and payload."},
    {Py_tp_new, message_make},
    {Py_tp_dealloc, message_dealloc},
    {Py_tp_members, message_members},
    {Py_tp_getset, message_getters},
    {Py_tp_methods, message_methods},
    {Py_bf_getbuffer, message_buffer},
    {Py_sq_length, message_length},
    {Py_nb_bool, message_bool},
    {0, NULL},
};

PyType_Spec shmd_py_message_spec = {
    .name = "shmdriver._hotpath.MessageCore",
    .basicsize = (int)offsetof(shmd_py_message, payload),
    .itemsize = 1,
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = message_slots,
};
