"""Processes exchange messages through shared memory at memory speed; a small driver owns the memory.

    import shmdriver

    with shmdriver.embedded() as client:              # or connect(), next to `shmdriver run`
        out = client.producer("log")
        for_me = client.consumer("log")
        out.publish(b"hello")
        print(bytes(for_me.read()))

Everything here is loaded at first use, so that ``import shmdriver`` costs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if "t" in sys.abiflags:
    raise ImportError(
        "shmdriver needs a Python with the GIL, and this one is a free-threaded build (abiflags "
        f"{sys.abiflags!r}): its guards of a handle are not tested without it; use the ordinary build"
    )

from shmdriver.late import LATE_IMPORT

__version__ = "0.1.0"

if TYPE_CHECKING:
    from shmdriver.client import (
        ArrayClaim,
        Claim,
        Client,
        Consumer,
        LostRange,
        Message,
        Producer,
        Reattachment,
        aconnect,
        connect,
        embedded,
        stop_on_signals,
        wait,
    )
    from shmdriver.client.dropin import make_queue as Queue  # noqa: N812 -- as multiprocessing.Queue
    from shmdriver.errors import (
        AttachRejected,
        AttachTimeout,
        BackPressured,
        ClaimError,
        Code,
        ConcurrentUseError,
        ConfigError,
        DriverAlreadyRunning,
        DriverUnavailable,
        EndOfStream,
        ForkedHandleError,
        HandleClosed,
        LayoutMismatch,
        LeaseRevoked,
        LifecycleError,
        MessageTooLarge,
        ObjectsLost,
        ProducerLost,
        Reason,
        SchemaMismatch,
        ShmDriverError,
        ViewsHeld,
    )

__all__ = [
    "ArrayClaim",
    "AttachRejected",
    "AttachTimeout",
    "BackPressured",
    "Claim",
    "ClaimError",
    "Client",
    "Code",
    "ConcurrentUseError",
    "ConfigError",
    "Consumer",
    "DriverAlreadyRunning",
    "DriverUnavailable",
    "EndOfStream",
    "ForkedHandleError",
    "HandleClosed",
    "LayoutMismatch",
    "LeaseRevoked",
    "LifecycleError",
    "LostRange",
    "Message",
    "MessageTooLarge",
    "ObjectsLost",
    "Producer",
    "ProducerLost",
    "Queue",
    "Reason",
    "Reattachment",
    "SchemaMismatch",
    "ShmDriverError",
    "ViewsHeld",
    "__version__",
    "aconnect",
    "connect",
    "embedded",
    "stop_on_signals",
    "wait",
]

_CLIENT_NAMES = frozenset(
    (
        "ArrayClaim",
        "Claim",
        "Client",
        "Consumer",
        "LostRange",
        "Message",
        "Producer",
        "Reattachment",
        "aconnect",
        "connect",
        "embedded",
        "stop_on_signals",
        "wait",
    )
)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Queue":  # multiprocessing.Queue is a function, too
        with LATE_IMPORT:
            from shmdriver.client.dropin import make_queue

        return make_queue
    with LATE_IMPORT:
        module = importlib.import_module("shmdriver.client" if name in _CLIENT_NAMES else "shmdriver.errors")
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
