"""The native benchmarks: builds benchmarks/native against the release library and runs its programs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT, cores

SOURCES = ROOT / "benchmarks" / "native"
BUILD = ROOT / "build" / "bench"
LIBRARY = ROOT / "build" / "release" / "libshmdriver.a"
_FLAGS = "-std=c11 -D_GNU_SOURCE= -O3 -g1 -Wall -Wextra -Wpedantic -Wconversion -Werror"
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Run:
    """What one run printed, and how often its processes lost their cores to somebody else."""

    values: dict[str, float]
    preempted: int


@dataclass(frozen=True, slots=True)
class Case:
    """One native measurement. ``arguments`` come after the instance and before the cores."""

    name: str
    program: str
    arguments: tuple[str, ...]
    metric: str
    unit: str
    scale: float = 1.0
    lower: bool = False


MIB = 1 << 20
CASES = (
    Case("round trip 40 B, p50", "roundtrip", ("40", "200000"), "p50_ns", "ns", lower=True),
    Case("round trip 40 B, p99", "roundtrip", ("40", "200000"), "p99_ns", "ns", lower=True),
    Case("round trip 64 B, p50", "roundtrip", ("64", "200000"), "p50_ns", "ns", lower=True),
    Case("round trip 64 B, p99", "roundtrip", ("64", "200000"), "p99_ns", "ns", lower=True),
    Case("40 B one by one", "stream", ("single", "40", "30000000", "1"), "messages_s", "M/s", 1e-6),
    Case("40 B in batches of 64", "stream", ("batch", "40", "50000000", "1"), "messages_s", "M/s", 1e-6),
    Case("64 B one by one", "stream", ("single", "64", "20000000", "1"), "messages_s", "M/s", 1e-6),
    Case("64 B in batches of 64", "stream", ("batch", "64", "30000000", "1"), "messages_s", "M/s", 1e-6),
    Case("1 KiB one by one", "stream", ("single", "1024", "5000000", "1"), "messages_s", "M/s", 1e-6),
    Case("40 B to 2 consumers", "stream", ("single", "40", "20000000", "2"), "messages_s", "M/s", 1e-6),
    Case("1 MiB claimed", "stream", ("claim", str(MIB), "1000000", "1"), "messages_s", "M frames/s", 1e-6),
    Case("1 MiB copied in", "stream", ("copy", str(MIB), "8000", "1"), "gb_s", "GB/s"),
)


def build() -> None:
    """Compiles what is out of date. CalledProcessError with the compiler's words on stderr."""
    BUILD.mkdir(parents=True, exist_ok=True)
    headers = [*SOURCES.glob("*.h"), *(ROOT / "csrc").glob("*.h"), LIBRARY]
    newest = max(path.stat().st_mtime for path in headers)
    for source in sorted(SOURCES.glob("*.c")):
        target = BUILD / source.stem
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            continue
        command = [
            *shlex.split(os.environ.get("CC", "cc")),
            *_FLAGS.split(),
            f"-I{ROOT / 'csrc'}",
            *("-o", str(target), str(source), str(LIBRARY), "-pthread", "-lrt"),
        ]
        subprocess.run(command, check=True)


def floor() -> Run:
    """Two threads and one cache line, and memcpy."""
    first, second = cores()
    return _run(BUILD / "floor", str(first), str(second))


def run(case: Case, instance: str) -> Run:
    """One run of a case. RuntimeError when it failed or a message was wrong."""
    first, second = cores()
    return _run(BUILD / case.program, instance, *case.arguments, str(first), str(second))


def _run(program: Path, *arguments: str) -> Run:
    process = subprocess.Popen((str(program), *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    out, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    process.stderr.close()
    if process.returncode != 0:
        text = errors.decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise RuntimeError(f"{program.name} {' '.join(arguments)}: {text}")
    return Run(json.loads(out), usage.ru_nivcsw)
