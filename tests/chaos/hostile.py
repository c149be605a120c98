"""A client that keeps to nothing: garbage in every byte that it can write, requests that change in flight."""

from __future__ import annotations

import mmap
import random
import threading
from typing import TYPE_CHECKING, Any

from shmdriver._native import ffi, lib
from shmdriver.observe import Instance
from tests.segments import SHM, control_of

if TYPE_CHECKING:
    from tests.chaos.ledger import Arguments, Line

GATE_BYTES = 2048
NUMBERS = (0, 1, 0xFF, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1)


def _map(name: str, *, write: bool = True) -> mmap.mmap:
    with (SHM / name.lstrip("/")).open("r+b" if write else "rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))


def _garbage(chance: random.Random, memory: mmap.mmap, start: int, end: int) -> None:
    """Up to 64 bytes somewhere in between, or one whole word with a number of note."""
    at = chance.randrange(start, end)
    if chance.random() < 0.5:
        at -= at % 8
        memory[at : at + 8] = chance.choice(NUMBERS).to_bytes(8, "little")
    else:
        size = min(chance.randint(1, 64), end - at)
        memory[at : at + size] = chance.randbytes(size)


def _flip(chance: random.Random, control: mmap.mmap) -> None:
    """A byte of a request that somebody may be reading."""
    slot = chance.randrange(int(lib.SHMD_CLIENT_REQUESTS))
    at = ffi.offsetof("shmd_control_t", "requests") + slot * ffi.sizeof("shmd_request_t")
    control[at + chance.randrange(480)] ^= chance.randrange(1, 256)


def _ask(client: Any, stop: threading.Event) -> None:
    """Real requests all the time, so that there is something to flip."""
    import shmdriver

    number = 0
    while not stop.is_set():
        number += 1
        try:
            client.consumer(f"x{number % 3}", delivery="lossy", attach_timeout=0.05).close()
        except shmdriver.ShmDriverError:
            continue


def disturb(line: Line, arguments: Arguments) -> int:
    """Attaches to the victims' stream and opens one of its own, then writes garbage until told to stop.

    Into its control segment from the first byte to the last, into its own gate of the victims' stream, into
    its own stream's data segment. What it may not write (the authority) it cannot map for writing. Only its
    tail it spares until the end, because it is expelled for that.
    """
    import shmdriver

    instance, stream = arguments["instance"], arguments["stream"]
    chance = random.Random(arguments.get("seed", 1))
    client = shmdriver.connect(instance, name="hostile", timeout=60)
    own = client.producer("bad", slots=64, max_message=4000)
    own.publish(b"a word before the noise")
    reader = client.consumer(stream)
    gate_index = next(
        lease.gate
        for lease in client.leases()
        if lease.stream == stream and lease.client_id == client.client_id
    )
    with Instance(instance) as view:
        names = {s.name: s.epochs[-1] for s in view.streams()}
        control, data = _map(control_of(view, client.client_id).name), _map(names["bad"].data_name)
        tail = ffi.offsetof("shmd_control_t", "tail")
        gates = _map(names[stream].gates_name)
        gate = int(lib.SHMD_GATES_HEADER_BYTES) + gate_index * GATE_BYTES
        line.say(attached=True, gate=gate_index)
        stop = threading.Event()
        asking = threading.Thread(target=_ask, args=(client, stop))
        asking.start()
        count = 0
        while line.heard() != "stop":
            for _ in range(200):
                count += 1
                _garbage(chance, control, 0, tail)
                _garbage(chance, control, tail + 8, len(control))
                _flip(chance, control)
                _garbage(chance, gates, gate, gate + GATE_BYTES)
                _garbage(chance, data, 0, len(data))
        stop.set()
        asking.join()
        lag, pause = reader.lag, threading.Event()
        control[tail : tail + 8] = (2**62).to_bytes(8, "little")
        while any(lease.client_id == client.client_id for lease in client.leases()):
            pause.wait(0.01)
    line.say(closed=count, lag=lag)
    return 0
