"""Every exception that shmdriver raises, and the two enumerations that say why.

    ShmDriverError
    ├── DriverUnavailable   (ConnectionError)  no driver answers: messages still flow, attaching does not
    ├── DriverAlreadyRunning                   another process holds this instance
    ├── ProducerLost        (ConnectionError)  the stream ended without its producer's close()
    ├── AttachRejected                         the driver said no: .code .reason .text
    │   └── SchemaMismatch                     ... because the two sides describe records differently
    ├── AttachTimeout       (TimeoutError)     no answer to an attach in time
    ├── BackPressured       (TimeoutError)     no room in time: .stream .published .consumer .pid .lag
    ├── EndOfStream         (EOFError)         the producer closed, and everything was delivered
    ├── LeaseRevoked                           this handle's permission has ended: .reason .sealed_seq
    │   └── ObjectsLost                        ... with objects in a queue that nobody had got: .lost
    ├── ViewsHeld                              the consumer's own views fill the ring
    ├── MessageTooLarge     (ValueError)       .length .limit
    ├── LayoutMismatch                         a segment is not what it should be: .found .expected
    ├── ConcurrentUseError  (RuntimeError)     two threads inside one handle
    ├── ForkedHandleError   (RuntimeError)     a handle used in a child of the process that made it
    ├── HandleClosed        (ValueError)       a handle used after its close()
    ├── ClaimError          (RuntimeError)     a claim already open, or none open
    ├── ConfigError         (ValueError)       .key .source .nearest .problems
    └── LifecycleError      (RuntimeError)     an event that the driver's state does not list

Each takes one text and optional keyword attributes, so that all of them can be pickled, copied and
raised by hand. A text names the object, what was found, what was expected and what to do next.
"""
# ruff: noqa: N818 -- these are names of the API, and most say more than an "Error" at their end would

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, unique
from typing import TypeVar

from shmdriver.late import LATE_IMPORT
from shmdriver.shown import shown

__all__ = [
    "AttachRejected",
    "AttachTimeout",
    "BackPressured",
    "ClaimError",
    "Code",
    "ConcurrentUseError",
    "ConfigError",
    "DriverAlreadyRunning",
    "DriverUnavailable",
    "EndOfStream",
    "ForkedHandleError",
    "HandleClosed",
    "LayoutMismatch",
    "LeaseRevoked",
    "LifecycleError",
    "MessageTooLarge",
    "ObjectsLost",
    "ProducerLost",
    "Reason",
    "SchemaMismatch",
    "ShmDriverError",
    "ViewsHeld",
]


MESSAGE_BYTES_MAX = 2**32 - 2  # the length of a message has 32 bits

_Number = TypeVar("_Number", bound=IntEnum)


def _unknown(kind: type[_Number], value: object) -> _Number | None:
    """A member for a number of a newer driver; None (ValueError) for what is no such number."""
    if not isinstance(value, int) or not 0 <= value < 2**32:
        return None
    member = int.__new__(kind, value)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


@unique
class Code(IntEnum):
    """The driver's answer to a request (``SHMD_CODE_*``)."""

    OK = 0
    UNSUPPORTED = 1
    INVALID_PARAMS = 2
    REJECTED = 3
    INTERNAL_ERROR = 4

    @classmethod
    def _missing_(cls, value: object) -> Code | None:
        return _unknown(cls, value)


@unique
class Reason(IntEnum):
    """Why a request was refused, or how a lease or an epoch ended (``SHMD_REASON_*``).

    Programs branch on this; people read :attr:`words` or the driver's own text.
    """

    NONE = 0
    # Refusals.
    DRAINING = 1
    MAINTENANCE = 2
    STOPPED = 3
    LIMIT = 4
    PRODUCER_EXISTS = 5
    UNKNOWN_STREAM = 6
    SCHEMA = 7
    LAYOUT = 8
    NO_MEMORY = 9
    BAD_NAME = 10
    UNDRAINED = 11
    NOT_OWNER = 12
    UNKNOWN_CLIENT = 13
    REFUSED_RELIABLE = 14
    TOKEN = 15
    RATE = 16
    SIZE = 17
    DRIVER_DIED = 18
    # Ends.
    CLOSED = 32
    ABORTED = 33
    DIED = 34
    EXPIRED = 35
    EVICTED = 36
    REVOKED = 37
    BAD_GATE = 38
    UNCONFIRMED = 39
    SHUTDOWN = 40
    DELIVERED = 41
    SUPERSEDED = 42
    TRUNCATED = 43
    EXPELLED = 44

    @property
    def words(self) -> str:
        """The reason in a few words, for the middle of a sentence; those of the C core."""
        with LATE_IMPORT:
            from shmdriver._native import ffi, lib

        return str(ffi.string(lib.shmd_reason_text(self)).decode())

    @classmethod
    def _missing_(cls, value: object) -> Reason | None:
        return _unknown(cls, value)


class ShmDriverError(Exception):
    """The base of everything that shmdriver raises on its own account. What no terminal shows is escaped."""

    def __init__(self, text: str = "") -> None:
        super().__init__(shown(text))


class DriverUnavailable(ShmDriverError, ConnectionError):
    """No driver answers. Attached streams go on; attaching and detaching wait for the next driver.

    ``instance`` is the driver's instance name, None when it is not known.
    """

    def __init__(self, text: str = "", *, instance: str | None = None) -> None:
        super().__init__(text)
        self.instance = instance


class DriverAlreadyRunning(ShmDriverError):
    """Another process holds the lock of this instance; ``pid`` is as it sees itself, 0 when not known."""

    def __init__(self, text: str = "", *, instance: str | None = None, pid: int = 0) -> None:
        super().__init__(text)
        self.instance = instance
        self.pid = pid


class ProducerLost(ShmDriverError, ConnectionError):
    """The stream ended without a clean close; what was committed has been delivered.

    ``reason`` is a :class:`Reason`; ``sealed_seq`` is the number of messages that the epoch has,
    None when it is not known.
    """

    def __init__(
        self,
        text: str = "",
        *,
        stream: str | None = None,
        reason: int = Reason.NONE,
        epoch: int = 0,
        sealed_seq: int | None = None,
    ) -> None:
        super().__init__(text)
        self.stream = stream
        self.reason = Reason(reason)
        self.epoch = epoch
        self.sealed_seq = sealed_seq


class AttachRejected(ShmDriverError):
    """The driver refused: ``code`` is a :class:`Code`, ``reason`` a :class:`Reason`, ``text`` its words."""

    def __init__(
        self,
        text: str = "",
        *,
        code: int = Code.REJECTED,
        reason: int = Reason.NONE,
        stream: str | None = None,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.code = Code(code)
        self.reason = Reason(reason)
        self.stream = stream


class SchemaMismatch(AttachRejected):
    """The stream's records and the attaching side's dtype differ; the text is the field diff.

    ``found`` is the stream's schema, ``expected`` the caller's (canonical texts, None when unknown).
    """

    def __init__(
        self,
        text: str = "",
        *,
        code: int = Code.REJECTED,
        reason: int = Reason.SCHEMA,
        stream: str | None = None,
        found: str | None = None,
        expected: str | None = None,
    ) -> None:
        super().__init__(text, code=code, reason=reason, stream=stream)
        self.found = found
        self.expected = expected


class AttachTimeout(ShmDriverError, TimeoutError):
    """A driver runs, but it did not answer in ``timeout_s`` seconds."""

    def __init__(self, text: str = "", *, stream: str | None = None, timeout_s: float = 0.0) -> None:
        super().__init__(text)
        self.stream = stream
        self.timeout_s = timeout_s


class BackPressured(ShmDriverError, TimeoutError):
    """No room in time.

    ``published`` messages of the call went in; ``consumer`` (its client's name), ``pid`` and ``lag``
    (messages behind head) tell who holds the producer back, as far as it is known. ``pid`` is 0 when
    that process is in another PID namespace.
    """

    def __init__(
        self,
        text: str = "",
        *,
        stream: str | None = None,
        published: int = 0,
        consumer: str | None = None,
        pid: int = 0,
        lag: int = 0,
    ) -> None:
        super().__init__(text)
        self.stream = stream
        self.published = published
        self.consumer = consumer
        self.pid = pid
        self.lag = lag


class EndOfStream(ShmDriverError, EOFError):
    """The producer closed the stream, and this consumer has had all of it."""

    def __init__(self, text: str = "", *, stream: str | None = None, epoch: int = 0) -> None:
        super().__init__(text)
        self.stream = stream
        self.epoch = epoch


class LeaseRevoked(ShmDriverError):
    """This handle's permission has ended: nothing more through it. Attach again.

    ``sealed_seq`` tells a producer how many of its messages will be delivered, None for consumers.
    """

    def __init__(
        self,
        text: str = "",
        *,
        stream: str | None = None,
        reason: int = Reason.NONE,
        lease_id: int = 0,
        sealed_seq: int | None = None,
    ) -> None:
        super().__init__(text)
        self.stream = stream
        self.reason = Reason(reason)
        self.lease_id = lease_id
        self.sealed_seq = sealed_seq


class ObjectsLost(LeaseRevoked):
    """Objects that had been put into a queue are gone, because leases of it had ended before they were got.

    ``lost`` is how many (the parts of a very large one count each), None when that is not known. Raised
    once for each such loss; with ``reconnect=True`` the queue goes on with the next call.
    """

    def __init__(self, text: str = "", *, lost: int | None = None, stream: str | None = None) -> None:
        super().__init__(text, stream=stream)
        self.lost = lost


class ViewsHeld(ShmDriverError):
    """The consumer's own live views fill the ring, so that nothing new can arrive. Drop or copy some."""

    def __init__(self, text: str = "", *, stream: str | None = None, held: int = 0) -> None:
        super().__init__(text)
        self.stream = stream
        self.held = held


class MessageTooLarge(ShmDriverError, ValueError):
    """A message of ``length`` bytes, and at most ``limit`` fit; the text names the argument to pass."""

    def __init__(self, text: str = "", *, stream: str | None = None, length: int = 0, limit: int = 0) -> None:
        limit = min(limit, MESSAGE_BYTES_MAX)
        where = f"stream {stream!r}" if stream else "this stream"
        advice = f"create its producer with max_message={length} (or more)"
        if length > MESSAGE_BYTES_MAX:
            advice = f"no message has more than {MESSAGE_BYTES_MAX}: publish it in parts"
        super().__init__(text or f"message of {length} bytes, but {where} carries at most {limit}: {advice}")
        self.stream = stream
        self.length = length
        self.limit = limit


class LayoutMismatch(ShmDriverError):
    """A segment has another layout version, size or magic than this build. It is left as it is."""

    def __init__(
        self,
        text: str = "",
        *,
        segment: str | None = None,
        found: int | str | None = None,
        expected: int | str | None = None,
    ) -> None:
        super().__init__(text)
        self.segment = segment
        self.found = found
        self.expected = expected


class ConcurrentUseError(ShmDriverError, RuntimeError):
    """A second thread entered a handle that is in use. Give each thread its own."""


class ForkedHandleError(ShmDriverError, RuntimeError):
    """A producer or consumer used in a child of the process that made it. Pass the Client instead."""


class HandleClosed(ShmDriverError, ValueError):
    """A client, producer or consumer used after its close()."""


class ClaimError(ShmDriverError, RuntimeError):
    """A claim is open already (a producer has one at a time), or the one in hand is over."""


class ConfigError(ShmDriverError, ValueError):
    """A configuration that cannot be used.

    ``key`` (dotted), ``source`` (the file, environment variable or option) and ``nearest`` (a known
    key, None when nothing is near) are those of the first of ``problems``, which lists them all.
    """

    def __init__(
        self,
        text: str = "",
        *,
        key: str | None = None,
        source: str | None = None,
        nearest: str | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__(text)
        self.key = key
        self.source = source
        self.nearest = nearest
        self.problems = tuple(problems) or ((text,) if text else ())


class LifecycleError(ShmDriverError, RuntimeError):
    """An event that the driver's present state does not list: a defect of the driver, never of a client."""

    def __init__(self, text: str = "", *, state: str | None = None, event: str | None = None) -> None:
        super().__init__(text)
        self.state = state
        self.event = event
