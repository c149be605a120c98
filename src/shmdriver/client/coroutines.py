"""Blocking calls as coroutines (``coroutine_of``), context managers for ``async with`` (``AsyncClosing``).

Each call runs in a thread of its own, so the event loop goes on meanwhile.

The loop's executor is not used: its threads would stay, and its end would wait for a driver that does not
answer. A call whose coroutine was cancelled is given up: its thread drops what it still makes, and ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from shmdriver.client.boundary import clear_frames, outcome_of
from shmdriver.stopping import ends_in_order

if TYPE_CHECKING:
    import asyncio

__all__ = ["AsyncClosing", "coroutine_of"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class _Call(threading.Thread):
    """One call. ``is_cancelled``: nobody waits for it; a wait for a driver to come ends then (link.py)."""

    def __init__(
        self, act: Callable[[], Any], drop: Callable[[Any], object] | None, done: asyncio.Future[Any]
    ) -> None:
        super().__init__(name="shmdriver-call", daemon=True)
        self._act = act
        self._drop = drop
        self._done = done
        self._loop = done.get_loop()
        self.is_cancelled = False

    def run(self) -> None:
        found, error = outcome_of(self._act)
        try:
            self._loop.call_soon_threadsafe(self._tell, found, error)
        except RuntimeError:  # the loop is closed
            self._let_go(found)

    def give_up(self) -> None:
        """Nobody takes the result. It may be there: a task can be cancelled as it is about to wake."""
        self.is_cancelled = True
        done = self._done
        if done.done() and not done.cancelled() and done.exception() is None:
            self._let_go(done.result())

    def _tell(self, found: Any, error: BaseException | None) -> None:
        done = self._done
        if done.done():
            self._let_go(found)
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(found)

    def _let_go(self, found: Any) -> None:
        if found is not None and self._drop is not None:
            self._drop(found)


async def _in_thread(act: Callable[[], Any], drop: Callable[[Any], object] | None = None) -> Any:
    """The result of ``act``. ``drop`` never waits, and gets a result that nobody takes."""
    from asyncio import get_running_loop

    call = _Call(act, drop, get_running_loop().create_future())
    call.start()
    try:
        return await call._done  # noqa: SLF001 -- this module's own
    except BaseException:
        call.give_up()
        raise


def coroutine_of(
    blocking: Callable[_Arguments, _Result], drop: Callable[[Any], object] | None = None
) -> Callable[_Arguments, Coroutine[Any, Any, _Result]]:
    """``blocking`` as a coroutine function with the same parameters, results and errors.

    ``drop`` never waits: it ends a result that nobody takes, because the coroutine was cancelled.
    """

    @wraps(blocking)
    async def awaited(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        act = partial(blocking, *arguments, **options)
        try:
            found: _Result = await _in_thread(act, drop)
        except BaseException as error:
            clear_frames(error)
            del arguments, options, act
            raise
        return found

    name = awaited.__name__
    awaited.__qualname__ = f"{awaited.__qualname__.removesuffix(name)}a{name}"
    awaited.__name__ = f"a{name}"
    awaited.__doc__ = (
        f":func:`{name}` for asyncio: made in a thread, so the loop goes on while the driver answers.\n\n"
        "Cancelled, it leaves nothing: its thread drops what was still made, and ends with the driver's\n"
        "answer or at the timeout."
    )
    return awaited


class AsyncClosing:
    """For what has ``close`` and is a context manager: the same for ``async with``."""

    __slots__ = ()

    if TYPE_CHECKING:

        def close(self) -> None: ...

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None: ...

    async def aclose(self) -> None:
        """:meth:`close` for asyncio, which goes on when this is cancelled."""
        try:
            await _in_thread(self.close)
        except BaseException as error:
            clear_frames(error)
            del self
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kind = None if ends_in_order(kind, error) else kind
        try:
            await _in_thread(partial(self.__exit__, kind, None, None))
        except BaseException as raised:
            clear_frames(raised)
            del self
            raise
