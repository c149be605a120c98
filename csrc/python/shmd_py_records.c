/* shmd_py_records.c: reading records, many at a time: in place where the consumer's gate protects them, else copied. */
#include "shmd_py_consumer.h"

typedef struct wanted_records {
    uint64_t limit;
    uint64_t record_bytes;
    uint64_t timeout_ns;
    uint64_t address; /* of private memory, for those that have to be copied */
    uint64_t bytes;
    uint64_t serial; /* of the mapping of the epoch that they are to be of */
} wanted_records;

static int64_t call_core_for_records(consumer *c, uint64_t hold_seq, const wanted_records *w)
{
    shmd_consumer *native = c->handle.native;
    void *out = (void *)(uintptr_t)w->address;
    uint64_t copies = copies_of(native);
    int64_t found = 0;
    c->run.batch.mapping_serial = w->serial;
    if (may_look(c, w->timeout_ns, copies == 0 || copies == UINT64_MAX ? copies : w->bytes)) {
        found = shmd_guarded_fetch_records(native, hold_seq, w->limit, (uint32_t)w->record_bytes, 0, out, w->bytes, &c->run.batch);
        if (found != 0 || w->timeout_ns == 0 || c->run.batch.mapping_serial != w->serial)
            return found;
    }
    SHMD_PY_UNLOCKED(c->handle, found = shmd_guarded_fetch_records(native, hold_seq, w->limit, (uint32_t)w->record_bytes, w->timeout_ns, out, w->bytes,
                                                                   &c->run.batch));
    return found;
}

/* _fetch_records(limit, record_bytes, timeout_ns, address, bytes, serial): all of them as one message where they are in place; else how
 * many were copied, or a negative code. None: what comes next is of another epoch. With limit 0: 1 when there is something. */
PyObject *shmd_py_fetch_records(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    consumer *c = (consumer *)self;
    uint64_t given[6];
    if (n != 6)
        return PyErr_Format(PyExc_TypeError, "_fetch_records() takes 6 arguments (%zd given)", n);
    for (int i = 0; i < 6; i++)
        given[i] = PyLong_AsUnsignedLongLong(args[i]);
    if (PyErr_Occurred() || take_turn(c) < 0)
        return NULL;
    if (is_forked(c))
        return PyLong_FromLong(SHMD_E_FORKED);
    if (c->is_fetching)
        return PyLong_FromLong(c->handle.native == NULL ? SHMD_E_CLOSED : SHMD_E_CONCURRENT);
    if (check_pending(c, RECORDS) < 0)
        return NULL;
    wanted_records wanted = {given[0], given[1], given[2], given[3], given[4], given[5]};
    uint64_t hold_seq = hold_of(c);
    int64_t found = c->pending == RECORDS;
    int is_other_epoch = 0;
    c->is_fetching = 1;
    if (!found) {
        found = call_core_for_records(c, hold_seq, &wanted);
        note_lost(c, found > 0);
        is_other_epoch = found == 0 && wanted.limit != 0 && c->run.batch.mapping_serial != wanted.serial;
        if (found > 0 && wanted.limit != 0 && !c->run.batch.copied)
            note_in_place(c, RECORDS, (Py_ssize_t)((uint64_t)(found - 1) * c->run.batch.stride + wanted.record_bytes));
    }
    PyObject *result = c->pending == RECORDS && wanted.limit != 0 ? shmd_py_hand_out(c) : is_other_epoch ? shmd_py_none() : PyLong_FromLongLong(found);
    c->is_fetching = 0;
    return result;
}
