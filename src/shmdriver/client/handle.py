"""What producers and consumers have in common as handles: open until they are closed."""

from __future__ import annotations

from typing import Any

from shmdriver._native import lib
from shmdriver.client._raise import raise_for
from shmdriver.client.coroutines import AsyncClosing

__all__ = ["StreamHandle"]


class StreamHandle(AsyncClosing):
    """Beside a C class that has ``_handle``: None once it is closed."""

    __slots__ = ()

    _handle: Any
    stream: str

    @property
    def _open_handle(self) -> Any:
        """The handle, whose memory stays while the caller has it, closed or not. Raises HandleClosed."""
        handle = self._handle
        if handle is None:
            raise_for(lib.SHMD_E_CLOSED, stream=self.stream)
        return handle

    def _check_open(self) -> None:
        _ = self._open_handle
