"""The boundary to the program: exceptions that leave this package keep nothing of it alive.

A program may keep an exception, and with it the traceback, its frames and their locals. So each public
function is called by way of C (csrc/python/shmd_py_boundary.c). What it raises has the locals of this
package's frames cleared: no handle, message or buffer stays alive with it. Coroutines call
:func:`clear_frames` themselves.
"""

from __future__ import annotations

import sys
from inspect import iscoroutinefunction
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shmdriver.client.hotpath import Boundary, clear_frames

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PACKAGES", "boundary", "clear_frames", "outcome_of", "public"]

_Class = TypeVar("_Class", bound=type)
_Function = TypeVar("_Function", bound="Callable[..., Any]")

# The packages whose frames are cleared: this one, and those that it calls with its own objects.
PACKAGES = frozenset({"shmdriver", "numpy", *sys.stdlib_module_names})

# What makes an object is called by the function that hands it out. A finaliser's exceptions go nowhere.
_INSIDE = ("__new__", "__init__", "__del__", "__init_subclass__", "__class_getitem__")


def boundary(function: _Function) -> _Function:
    """Makes a function a boundary. For use as a decorator."""
    return cast("_Function", Boundary(function))


def outcome_of(act: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """The result of ``act``, or its error, for another thread to raise: no frame of this one stands in it."""
    found, error = _tried(act)
    if error is not None:
        clear_frames(error)
    return found, error


def _tried(act: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return act(), None
    except BaseException as error:
        return None, error


def public(cls: _Class) -> _Class:
    """Makes each public function and property of a class a boundary. For use as a decorator."""
    for name, member in list(vars(cls).items()):
        if name in _INSIDE or (name.startswith("_") and not name.endswith("__")):
            continue
        if isinstance(member, property) and member.fget is not None:
            setattr(cls, name, member.getter(boundary(member.fget)))
        elif isinstance(member, FunctionType) and not iscoroutinefunction(member):
            setattr(cls, name, boundary(member))
    return cls
