/* shmd_python.h: the Python objects that a program touches once a message, in C because a call by way of cffi costs more
 * than a message. What happens now and then (attaching, waiting, failing) is Python: the classes in src/shmdriver/client
 * derive from these and are called back by name. Everything here is called with the GIL held. */
#ifndef SHMD_PYTHON_H
#define SHMD_PYTHON_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <structmember.h>

#include "shmd_abi.h"

#include <limits.h>

/* Above this many bytes a copy lets other threads run meanwhile. */
enum { SHMD_PY_UNLOCKED_BYTES = 32768 };

/* The end of every tp_dealloc. */
static inline void shmd_py_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static inline PyObject *shmd_py_none(void)
{
    Py_INCREF(Py_None);
    return Py_None;
}

/* ---- memory that stays mapped while Python refers to it (shmd_py_mapping.c) -------------- */

typedef struct shmd_py_hold {
    uint64_t seq;
    uint64_t is_held;
} shmd_py_hold;

/* One hold of a native mapping, and which places in it are referred to: an entry each, oldest first. */
typedef struct shmd_py_mapping {
    PyObject_HEAD
    shmd_mapping *native;
    uint64_t serial;
    shmd_py_hold *holds; /* a ring of mask + 1 entries, numbered from first to end - 1 */
    uint64_t mask;
    uint64_t first;
    uint64_t end;
    uint64_t held;
} shmd_py_mapping;

int shmd_py_mapping_add(shmd_py_mapping *mapping, uint64_t seq, uint64_t *number); /* -1: no memory, an exception is set */
void shmd_py_mapping_drop(shmd_py_mapping *mapping, uint64_t number);
uint64_t shmd_py_mapping_hold_seq(shmd_py_mapping *mapping); /* the oldest seq that is referred to; UINT64_MAX: none */

/* ---- messages (shmd_py_message.c) --------------------------------------------------------- */

/* The payload is in the object itself, or elsewhere while `owner` lives: in a private buffer, or in shared memory, where
 * the message is a place that its mapping's holds know. It exports its payload as a read-only buffer; of an array, its elements. */
typedef struct shmd_py_message {
    PyObject_VAR_HEAD
    uint64_t seq;
    uint64_t timestamp_ns;
    uint64_t hold; /* its number in the owner's holds, when placed */
    PyObject *owner;
    const unsigned char *data;
    Py_ssize_t length;
    uint32_t wire_head_bytes; /* they stand right before data */
    uint16_t type;
    uint16_t flags;
    uint64_t is_placed; /* a word, so that what follows is aligned to one */
    unsigned char payload[];
} shmd_py_message;

enum {
    SHMD_PY_HEAD_BYTES = 20, /* of a packed record: shmd_batch_t says what it holds */
    SHMD_PY_ALIGNED = 64,    /* where an array's elements begin, also those of a copy */
};

PyObject *shmd_py_message_packed(const unsigned char *record, Py_ssize_t length);                   /* copies it */
PyObject *shmd_py_message_private(const unsigned char *record, Py_ssize_t length, PyObject *owner); /* keeps a reference to owner */
PyObject *shmd_py_message_placed(const shmd_batch_t *batch, Py_ssize_t length, shmd_py_mapping *mapping);

/* ---- handles ------------------------------------------------------------------------------ */

/* `_handle`: the cffi pointer that owns the native handle, or None, and its address. `_last_handle`: that pointer, also after
 * `_handle` was set to None: a closed handle's figures stay readable. */
typedef struct shmd_py_handle {
    PyObject *cdata;
    void *native;
    PyObject *last; /* NULL: there was none */
} shmd_py_handle;

/* What every object with a handle begins with. */
typedef struct shmd_py_handled {
    PyObject_HEAD
    shmd_py_handle handle;
} shmd_py_handled;

PyObject *shmd_py_handle_get(PyObject *self, void *nothing); /* the getter of `_handle` */
PyObject *shmd_py_handle_last(PyObject *self, void *nothing);
void shmd_py_handle_drop(shmd_py_handle *handle);
int shmd_py_handle_set(shmd_py_handle *handle, PyObject *value, const char *type); /* None, or a cffi pointer of that type */

/* Lets other threads run during `call`; one of them may close this handle meanwhile, and its memory stays until the call is over.
 * What the call needs of the Python object is read before. */
#define SHMD_PY_UNLOCKED(handle, call) \
    do { \
        PyObject *keep = (handle).cdata; \
        Py_INCREF(keep); \
        Py_BEGIN_ALLOW_THREADS \
        call; \
        Py_END_ALLOW_THREADS \
        Py_DECREF(keep); \
    } while (0)

typedef struct shmd_py_claim shmd_py_claim;

typedef struct shmd_py_producer {
    PyObject_HEAD
    shmd_py_handle handle;
    shmd_py_claim *open_claim; /* borrowed: the claim that the core has open for this handle, or NULL */
    PyObject *windows[2];      /* through which claims are written: of the slots, of the arena. NULL: none was made yet */
    int has_taken_back;        /* from a claim of which something was kept: its windows are used up soon, and prefaulted claim by claim */
    int64_t inline_max;        /* the longest message that lies in its slot; -1: not known yet */
} shmd_py_producer;

PyObject *shmd_py_fail(PyObject *producer, int64_t code, Py_ssize_t length); /* NULL, with the exception that it stands for */

/* ---- claims (shmd_py_claim.c) ------------------------------------------------------------- */

/* Made before the core's claim is taken, which it owns from then on: whatever becomes of it, its end gives the claim back. */
struct shmd_py_claim {
    PyObject_HEAD
    shmd_py_producer *producer; /* NULL: over, or nothing was claimed yet */
    PyObject *place;            /* the memory; NULL: none yet */
    PyObject *view;             /* a memoryview of the place; NULL: nobody has asked for it */
    PyObject *array;            /* what a claimed array is, and the array of bytes below it; NULL: a claim of bytes */
    PyObject *elements;
    Py_ssize_t length;
    uint16_t type;
    uint16_t flags;
};

shmd_py_claim *shmd_py_claim_new(PyTypeObject *type, Py_ssize_t length, uint16_t message_type);

/* The memory of one claim (shmd_py_place.c). It exports itself as a writable buffer until the claim is over. */
typedef struct shmd_py_place {
    PyObject_HEAD
    PyObject *window;
    unsigned char *start;
    Py_ssize_t bytes;
    Py_ssize_t exports;
    int is_over;
} shmd_py_place;

PyObject *shmd_py_window_open(shmd_py_producer *producer, Py_ssize_t length); /* the one in which a claim of that length lies; borrowed */
PyObject *shmd_py_place_new(PyObject *window, Py_ssize_t offset, Py_ssize_t bytes, int prefault);
int shmd_py_place_take_back(shmd_py_place *place); /* what still refers to it keeps a private copy. -1 with an exception */

/* ---- exceptions (shmd_py_boundary.c) ------------------------------------------------------ */

void shmd_py_clear_frames(PyObject *error); /* the locals of our frames in its traceback, and in those of its contexts */
void shmd_py_clear_raised(void);            /* likewise of the exception that is set */

/* ---- the module (shmd_py_module.c) -------------------------------------------------------- */

extern PyType_Spec shmd_py_mapping_spec, shmd_py_message_spec, shmd_py_consumer_spec, shmd_py_producer_spec, shmd_py_claim_spec, shmd_py_place_spec, shmd_py_window_spec,
    shmd_py_boundary_spec;

/* The types made here, and Python's classes and functions as _hotpath.setup() was told. */
typedef struct shmd_py_hooks {
    PyTypeObject *mapping;
    PyTypeObject *window;
    PyTypeObject *place;
    PyTypeObject *message;
    PyTypeObject *claim;
    PyTypeObject *array_claim;
    PyObject *end_of_stream;
    PyObject *address_of;
    PyObject *method;   /* makes bound methods */
    PyObject *packages; /* a set: the names of packages whose frames are cleared */
} shmd_py_hooks;

/* What Python is called by. */
typedef enum shmd_py_name {
    SHMD_PY_CLEAR,
    SHMD_PY_FAILURE,
    SHMD_PY_F_GLOBALS,
    SHMD_PY_IDLE,
    SHMD_PY_MAKE_ROOM,
    SHMD_PY_MAP,
    SHMD_PY_MODULE_NAME,
    SHMD_PY_OVER,
    SHMD_PY_RECOVER,
    SHMD_PY_RELEASE,
    SHMD_PY_SETFLAGS,
    SHMD_PY_TB_FRAME,
    SHMD_PY_TB_NEXT,
    SHMD_PY_TOBYTES,
    SHMD_PY_NAMES
} shmd_py_name;

/* Calls that method of `self`; `format` (of Py_BuildValue) makes a tuple of arguments; NULL: there are none. A new reference, or NULL with an exception,
 * which keeps nothing of ours alive. */
PyObject *shmd_py_call(PyObject *self, shmd_py_name name, const char *format, ...);

PyObject *shmd_py_attribute(PyObject *self, shmd_py_name name);  /* a new reference */
PyObject *shmd_py_global(PyObject *globals, shmd_py_name name);  /* borrowed; NULL: there is none */

extern shmd_py_hooks shmd_py;

/* When `timeout` seconds (None: never) from now are over, in ns of CLOCK_MONOTONIC; UINT64_MAX: never. 0, with an exception that names
 * `argument`, when that is no time. */
uint64_t shmd_py_deadline(PyObject *timeout, const char *argument);

/* The values of the parameters `names` (ends with NULL), borrowed, NULL where none was passed. `positional`: how many can be
 * passed by position; the first `required` must be there. */
int shmd_py_arguments(const char *function, const char *const *names, Py_ssize_t positional, Py_ssize_t required, PyObject *const *args, Py_ssize_t n,
                      PyObject *keywords, PyObject **out);

#endif
