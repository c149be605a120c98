"""Queues of others in C, C++ and Rust, where they can be had: compiled here, measured like our streams.

The first three carry bytes between two processes that share memory (libzmq: a socket) and nothing else: none
of them has leases, several readers, or an answer to a process that dies. cargo_peers.py gets the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import shmdriver
from benchmarks import cargo_peers
from benchmarks.cargo_peers import BUILD, call
from shmdriver.bench import native
from shmdriver.bench.case import Case
from shmdriver.bench.cases import MESSAGES, NATIVE_TRIP, Wanted
from shmdriver.bench.native import Outcome

__all__ = ["GROUP", "native_peer_cases"]

GROUP = "native peers"
SOURCES = Path(__file__).resolve().parent / "peers" / "native"
PACKAGE = Path(shmdriver.__file__).resolve().parent
SIZES = (40, 64, 256)


@dataclass(frozen=True, slots=True)
class Peer:
    """How one is built. ``part`` gives, for a size of message, what peer.o is linked with."""

    part: Callable[[int], str]
    linker: str
    place: str


def _c(source: str, compiler: str, libraries: str = "") -> Callable[[int], str]:
    return lambda size: f"{_object(source, compiler, size)} {libraries}"


def _rust(name: str) -> Callable[[int], str]:
    return lambda size: f"{cargo_peers.rust_library(name, size)} -ldl -lm"


def _aeron(size: int) -> str:
    headers, libraries = cargo_peers.aeron()
    made = _object("aeron.c", " ".join(("cc -std=c11", *(f"-I{path}" for path in headers))), size)
    return f"{made} {' '.join(map(str, libraries))} -lbsd -luuid -lm -ldl"


PEERS = {
    "boost spsc": Peer(_c("boost_spsc.cpp", "c++ -std=c++17"), "c++", "Debian: libboost-dev and g++"),
    "ck ring": Peer(_c("ck.c", "cc -std=c11"), "cc", "Debian: libck-dev"),
    "libzmq": Peer(_c("zmq.c", "cc -std=c11", "-lzmq"), "cc", "Debian: libzmq3-dev"),
    "tachyon": Peer(_rust("tachyon"), "c++", "cargo, clang++-19 (Debian: clang-19) and, once, the network"),
    "iceoryx2": Peer(_rust("iceoryx2"), "cc", "cargo and, once, the network"),
    "Aeron": Peer(
        _aeron, "cc", "cargo, cmake 3.30 (pip install cmake), Debian: libbsd-dev, uuid-dev; once, the network"
    ),
}


def native_peer_cases(wanted: Wanted) -> tuple[list[Case], dict[str, str]]:
    """One by one, in batches and there and back; and why a peer is missing, by name."""
    made: list[Case] = []
    missing: dict[str, str] = {}
    for who, peer in PEERS.items():
        try:
            programs = {size: _linked(who, peer, size) for size in SIZES}
        except (OSError, RuntimeError) as error:
            missing[f"{who}, C to C"] = f"{error} ({peer.place})"
            continue
        for size, program in programs.items():
            one, many = f"{size} B one by one", f"{size} B in batches of {wanted.batch}"
            made.append(Case(GROUP, "native", one, _run(program, wanted, "single"), (MESSAGES,), who))
            made.append(Case(GROUP, "native", many, _run(program, wanted, "batch"), (MESSAGES,), who))
        trip = _run(programs[64], wanted, "roundtrip")
        made.append(Case(GROUP, "native", "round trip 64 B", trip, NATIVE_TRIP, who))
    return made, missing


def _run(program: Path, wanted: Wanted, mode: str) -> Callable[[str], Outcome]:
    arguments = wanted.native(mode=mode, batch=wanted.batch)
    return lambda _instance: native.run(str(program), arguments)


def _linked(who: str, peer: Peer, size: int) -> Path:
    """The program for messages of ``size`` bytes. RuntimeError with the first words of what failed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / f"{who.split()[0]}-{size}"
    main = _object("peer.c", "cc -std=c11", size)
    library = PACKAGE / "native" / "lib" / "libshmdriver.a"
    call(f"{peer.linker} {main} {peer.part(size)} {library} -pthread -lrt -o {program}")
    return program


def _object(source: str, compiler: str, size: int) -> Path:
    made = BUILD / f"{Path(source).stem}-{size}.o"
    include = f"-I{PACKAGE / 'native' / 'include'} -I{SOURCES} -I{PACKAGE / 'bench' / 'programs'}"
    call(f"{compiler} -D_GNU_SOURCE= -O3 -DPEER_BYTES={size} {include} -c {SOURCES / source} -o {made}")
    return made
