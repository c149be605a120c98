"""Queues of others in C and C++, where their headers are installed: compiled here, measured like our streams.

They carry bytes between two processes that share memory (libzmq: a socket) and nothing else: none of them has
leases, several readers, or an answer to a process that dies.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import shmdriver
from shmdriver.bench import native
from shmdriver.bench.case import Case
from shmdriver.bench.cases import MESSAGES, NATIVE_TRIP, Wanted
from shmdriver.bench.native import Outcome

__all__ = ["GROUP", "native_peer_cases"]

GROUP = "native peers"
SOURCES = Path(__file__).resolve().parent / "peers" / "native"
BUILD = SOURCES.parents[2] / "build" / "bench" / "native-peers"
PACKAGE = Path(shmdriver.__file__).resolve().parent
SIZES = (40, 64, 256)
# name: (source, compiler, libraries, how to get it)
PEERS = {
    "boost spsc": ("boost_spsc.cpp", "c++ -std=c++17", "", "Debian: libboost-dev and g++"),
    "ck ring": ("ck.c", "cc -std=c11", "", "Debian: libck-dev"),
    "libzmq": ("zmq.c", "cc -std=c11", "-lzmq", "Debian: libzmq3-dev"),
}


def native_peer_cases(wanted: Wanted) -> tuple[list[Case], dict[str, str]]:
    """One by one, in batches and there and back; and why a peer is missing, by name."""
    made: list[Case] = []
    missing: dict[str, str] = {}
    for who, (source, compiler, libraries, place) in PEERS.items():
        try:
            programs = {size: _compiled(source, compiler, libraries, size) for size in SIZES}
        except (OSError, RuntimeError) as error:
            missing[who] = f"{error} ({place})"
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


def _compiled(source: str, compiler: str, libraries: str, size: int) -> Path:
    """The program for messages of ``size`` bytes. RuntimeError with the compiler's first words."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / f"{Path(source).stem}-{size}"
    common = f"-D_GNU_SOURCE= -O3 -DPEER_BYTES={size} -I{PACKAGE / 'native' / 'include'} -I{SOURCES}"
    main = BUILD / f"peer-{size}.o"
    _call(f"cc -std=c11 {common} -I{PACKAGE / 'bench' / 'programs'} -c {SOURCES / 'peer.c'} -o {main}")
    _call(f"{compiler} {common} -c {SOURCES / source} -o {program}.o")
    linker = compiler.split()[0]
    library = PACKAGE / "native" / "lib" / "libshmdriver.a"
    _call(f"{linker} {main} {program}.o {library} {libraries} -pthread -lrt -o {program}")
    return program


def _call(command: str) -> None:
    words = shlex.split(command)
    if shutil.which(words[0]) is None:
        raise RuntimeError(f"no {words[0]}")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
        raise RuntimeError(errors[0][-200:])
