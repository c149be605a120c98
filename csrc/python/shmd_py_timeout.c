/* shmd_py_timeout.c: the one reader of timeouts, which every call that takes one goes by. */
#include "shmd_python.h"

enum { FOREVER_S = 1000000000 }; /* 31 years: that and more has no end */

/* After PyFloat_AsDouble has failed: the exception for what is no number of seconds. An int that no double holds is one. */
static double refuse(PyObject *timeout, const char *argument)
{
    if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        PyObject *zero = PyLong_FromLong(0);
        int is_negative = zero == NULL ? -1 : PyObject_RichCompareBool(timeout, zero, Py_LT);
        Py_XDECREF(zero);
        return is_negative < 0 ? -1 : is_negative ? 0 : FOREVER_S;
    }
    if (PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s=%R: expected seconds, or None to wait for ever", argument, timeout);
    }
    return -1;
}

uint64_t shmd_py_deadline(PyObject *timeout, const char *argument)
{
    if (timeout == Py_None)
        return UINT64_MAX;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1 && PyErr_Occurred())
        seconds = refuse(timeout, argument);
    if (PyErr_Occurred())
        return 0;
    if (seconds != seconds) {
        PyErr_Format(PyExc_ValueError, "%s=nan: expected seconds, or None to wait for ever", argument);
        return 0;
    }
    uint64_t now = shmd_now_ns();
    return seconds <= 0 ? now : seconds < FOREVER_S ? now + (uint64_t)(seconds * 1e9) : UINT64_MAX;
}
