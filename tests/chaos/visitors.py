"""Actors that count what they leave behind, and one that writes where it must not."""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path
from typing import Any

from tests.chaos.ledger import Arguments, Line
from tests.chaos.payload import payload

WARM_UP = 40  # rounds after which caches and pools are as large as they get


def usage(pid: int | str = "self") -> dict[str, int]:
    """What a process holds: descriptors, threads, mappings of shared memory, resident memory in KiB."""
    base = Path(f"/proc/{pid}")
    maps = (base / "maps").read_text()
    return {
        "files": len(list((base / "fd").iterdir())),
        "threads": len(list((base / "task").iterdir())),
        "mappings": maps.count("/dev/shm/shmd."),
        "resident_kib": int((base / "statm").read_text().split()[1]) * resource.getpagesize() // 1024,
    }


def visit(line: Line, arguments: Arguments) -> int:
    """``rounds`` times: connects, attaches both roles, moves a few messages, closes all of it."""
    before: dict[str, int] = {}
    for turn in range(WARM_UP + arguments["rounds"]):
        if turn == WARM_UP:
            gc.collect()
            before = usage()
            line.say(warm=True)
            line.heard(60)  # the test looks at the driver
        _round(arguments, turn)
    gc.collect()
    line.say(before=before, after=usage())
    return 0


def _round(arguments: Arguments, turn: int) -> None:
    import shmdriver

    with shmdriver.connect(arguments["instance"], name="visitor", timeout=60) as client:
        consumer = client.consumer(arguments["stream"], attach_timeout=60)
        with client.producer(arguments["stream"], slots=64, attach_timeout=60) as out:
            for number in range(3):
                out.publish(payload(1, turn * 3 + number, 100), timeout=60)
        assert [len(bytes(message)) for message in consumer] == [len(payload(1, 0, 100))] * 3


def hoard(line: Line, arguments: Arguments) -> int:
    """A client with a producer and two consumers on each of many streams, until it is killed."""
    import shmdriver

    client = shmdriver.connect(arguments["instance"], name="hoard", timeout=60)
    kept: list[Any] = []
    for number in range(arguments["streams"]):
        stream = f"{arguments['stream']}-{number}"
        kept.append(client.producer(stream, slots=64, arena=65536, attach_timeout=60))
        kept += [client.consumer(stream, attach_timeout=60) for _ in range(2)]
    line.say(attached=len(kept))
    line.heard(600)
    return 0


def poke(line: Line, arguments: Arguments) -> int:
    """Writes into what it has read: first as Python lets it, then past Python, which the kernel answers."""
    import shmdriver

    client = shmdriver.connect(arguments["instance"], name="poke", timeout=60)
    consumer = client.consumer(arguments["stream"], attach_timeout=60)
    line.say(attached=True)
    message = consumer.read(timeout=60)
    assert message is not None
    view: Any = message.data
    assert isinstance(view, memoryview), "the message is not in shared memory"
    try:
        view[0] = 0
    except TypeError as error:
        line.say(refused=str(error))
    import numpy as np

    address = np.frombuffer(view, "u1").__array_interface__["data"][0]
    ctypes.memset(address, 0, 1)
    return 0
