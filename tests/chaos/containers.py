"""Actors in namespaces of their own: what a container, a chroot or another mount namespace is to a process.

All of it takes root. The namespaces are made by the system calls that container engines use.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.crowd import insist
from tests.chaos.ledger import Arguments, Line, error_words
from tests.chaos.payload import check, payload
from tests.chaos.zygote import die_with

__all__ = ["contained", "enter", "make_namespaces", "wander"]

CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
SHM = "/dev/shm"

_libc = ctypes.CDLL(None, use_errno=True)
Play = Callable[[str, Arguments, Line], int]


# ---- namespaces


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    words = [word.encode() if word else None for word in (source, target, kind)]
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), f"mount {source} on {target}")


def _own_mounts() -> None:
    """Mounts of this process are its own from now on."""
    _unshare(CLONE_NEWNS)
    _mount("none", "/", flags=MS_REC | MS_PRIVATE)


def make_namespaces() -> None:
    """A mount namespace for this process, and a PID namespace for its children to come. Raises OSError."""
    _own_mounts()
    _unshare(CLONE_NEWPID)


def _bare() -> None:
    """/run cannot be written, and nothing else is named: a driver makes its folder in /dev/shm."""
    _own_mounts()
    _mount("/run", "/run", flags=MS_BIND)
    _mount("/run", "/run", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def _mounts() -> None:
    """/run is an empty one of its own; /dev/shm is everybody's."""
    _own_mounts()
    _mount("tmpfs", "/run", "tmpfs")


def _chroot() -> None:
    """Nothing is there but /dev/shm, /proc and an empty /run."""
    _mounts()
    root = Path("/run")
    for name in ("dev/shm", "proc", "run"):
        (root / name).mkdir(parents=True)
    _mount(SHM, f"{root}{SHM}", flags=MS_BIND)
    _mount("proc", f"{root}/proc", "proc")
    os.chroot(root)
    os.chdir("/")


PLACES: dict[str, Callable[[], None]] = {"bare": _bare, "mounts": _mounts, "chroot": _chroot}


def enter(place: str) -> None:
    """This process is in that place from now on, without the environment that names folders elsewhere."""
    os.environ.pop("XDG_RUNTIME_DIR", None)
    PLACES[place]()


# ---- actors


def contained(line: Line, arguments: Arguments, play: Play) -> int:
    """Plays ``roles`` (pairs of a role and its arguments) in a PID namespace with a /proc of its own.

    ``init`` is said: the number, out here, of the process whose end is the end of all others in there.
    """
    make_namespaces()
    keeper = os.pidfd_open(os.getpid())
    init = os.fork()
    if init == 0:
        _end_with(_init(keeper, line, arguments, play))
    line.say(init=init)
    _, status = os.waitpid(init, 0)
    return abs(os.waitstatus_to_exitcode(status))


def _end_with(life: Callable[[], int]) -> None:
    """A forked child's whole life; never returns."""
    code = 70
    try:
        code = life()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(code)


def _init(keeper: int, line: Line, arguments: Arguments, play: Play) -> Callable[[], int]:
    def life() -> int:
        die_with(os.getppid())  # which is 0 in here, so the keeper is looked at
        if select.select([keeper], [], [], 0)[0]:
            return 1
        _mount("proc", "/proc", "proc")
        roles = arguments["roles"]
        common = {name: arguments[name] for name in ("instance", "board")}
        for role, more in roles:
            if os.fork() == 0:
                _end_with(partial(play, role, {**common, **more}, line))
        return abs(os.waitstatus_to_exitcode(os.wait()[1]))  # who ends early ends the container

    return life


def wander(line: Line, arguments: Arguments) -> int:
    """A client that enters another place, ``before`` or after it has connected, and goes on there.

    It exchanges messages with itself: on a stream that it has, and on another one once it is told that there
    is another driver.
    """
    import shmdriver

    stream, place = arguments["stream"], arguments["place"]
    if arguments["before"]:
        enter(place)
    try:
        client = shmdriver.connect(arguments["instance"], name=place, timeout=arguments.get("timeout", 60))
    except shmdriver.ShmDriverError as error:
        line.say(**error_words(error))
        return 0
    held = _ends(client, stream)
    _exchange(held, 1)
    if not arguments["before"]:
        enter(place)
    _exchange(held, 2)
    line.say(attached=True)
    assert line.heard(60) == "another driver"
    _exchange(held, 3)
    more = insist(lambda: _ends(client, f"{stream}-2"), line)
    _exchange(more, 4)
    line.say(went_on=True)
    line.heard(60)
    return 0


def _ends(client: Any, stream: str) -> tuple[Any, Any]:
    return client.consumer(stream, attach_timeout=60), client.producer(stream, slots=64, attach_timeout=60)


def _exchange(ends: tuple[Any, Any], writer: int) -> None:
    consumer, producer = ends
    for number in range(50):
        producer.publish(payload(writer, number), timeout=60)
        assert check(bytes(consumer.read(timeout=60))) == (writer, number)
