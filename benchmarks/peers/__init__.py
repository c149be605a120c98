"""The systems that are compared, a Channel in a module each. Add one: a module, and a line here."""

from __future__ import annotations

from importlib import import_module

from shmdriver.bench.channel import Channel
from shmdriver.bench.stream_channel import StreamChannel

__all__ = ["OURS", "PEERS", "available"]

OURS = StreamChannel.name
# name: (module, class, how to get it)
PEERS = {
    "Pipe": ("pipe", "PipeChannel", "Python's own"),
    "Queue": ("queue", "QueueChannel", "Python's own"),
    "pyzmq": ("zeromq", "ZeromqChannel", "pip install pyzmq"),
    "faster-fifo": ("fasterfifo", "FasterFifoChannel", "pip install faster-fifo (compiles)"),
    "iceoryx2": ("iceoryx2", "Iceoryx2Channel", "pip install iceoryx2"),
    "tachyon": (
        "tachyon",
        "TachyonChannel",
        "pip install tachyon-ipc (builds with GCC 14, Clang 17 or newer)",
    ),
}


def available() -> tuple[dict[str, type[Channel]], dict[str, str]]:
    """What can be measured here, ours first, and why the rest cannot: both by name."""
    found: dict[str, type[Channel]] = {OURS: StreamChannel}
    missing: dict[str, str] = {}
    for name, (module, kind, how) in PEERS.items():
        try:
            found[name] = getattr(import_module(f"benchmarks.peers.{module}"), kind)
        except Exception as error:  # an import may fail in any way; which one is part of the report
            missing[name] = f"{type(error).__name__}: {error} ({how})"
    return found, missing
