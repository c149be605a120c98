"""The one exception with which the driver refuses a request: it becomes the answer."""

from __future__ import annotations

from shmdriver.errors import Code, Reason

__all__ = ["Rejection"]


class Rejection(Exception):  # noqa: N818 -- an answer, not an error of the driver
    """A refused request: ``code`` and ``reason`` for programs, ``text`` for people."""

    def __init__(self, reason: Reason, text: str, code: Code = Code.REJECTED) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.code = code
