"""The native programs: compiled once against the installed library, run, and their JSON read.

Their sources are part of the package. They need a C compiler ($CC, else cc); what was compiled stays in
the user's cache folder, under a name that changes with sources, library, compiler and flags.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shmdriver.errors import ShmDriverError

__all__ = ["Outcome", "compiler", "folder", "run"]

SOURCES = Path(__file__).resolve().parent / "programs"
_NATIVE = Path(__file__).resolve().parent.parent / "native"
FLAGS = "-std=c11 -D_GNU_SOURCE= -O3 -g1 -Wall -Wextra -Wpedantic -Wconversion -Werror"
_NO_SAMPLES: np.ndarray[Any, Any] = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run found. ``preempted``: how often its processes lost their cores to somebody else."""

    values: dict[str, float]
    samples_ns: np.ndarray[Any, Any] = field(default_factory=lambda: _NO_SAMPLES)
    preempted: int = 0


def compiler() -> list[str]:
    """The command. ShmDriverError when there is none."""
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        raise ShmDriverError(
            f"native benchmarks are compiled when they are first run, and there is no C compiler "
            f"({' '.join(command) or 'CC is empty'}): install gcc, set CC, or measure with --side python"
        )
    return command


def folder() -> Path:
    """Where the compiled programs are; compiles what is missing. ShmDriverError with the compiler's words."""
    command, library = compiler(), _NATIVE / "lib" / "libshmdriver.a"
    if not library.exists():
        raise ShmDriverError(
            f"the native library is not built: {library} is missing; run make build, or install shmdriver"
        )
    sources = sorted(SOURCES.iterdir())
    digest = hashlib.sha256(" ".join((*command, FLAGS)).encode())
    for path in (*sources, library, *sorted((_NATIVE / "include").iterdir())):
        digest.update(path.read_bytes())
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise ShmDriverError(
            "this user has no home directory for what is compiled: set XDG_CACHE_HOME"
        ) from None
    ready = home / "shmdriver" / f"bench-{digest.hexdigest()[:16]}"
    if not ready.is_dir():
        _compile(command, [path for path in sources if path.suffix == ".c"], library, ready)
    return ready


def _compile(command: list[str], sources: list[Path], library: Path, ready: Path) -> None:
    ready.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ready.parent) as place:
        for source in sources:
            words = [*command, *FLAGS.split(), f"-I{_NATIVE / 'include'}"]
            words += ["-o", str(Path(place, source.stem)), str(source), str(library), "-pthread", "-lrt"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise ShmDriverError(f"{shlex.join(words)} failed: {' '.join(done.stderr.split())}")
        made = Path(place) / "made"
        made.mkdir()
        for source in sources:
            (Path(place) / source.stem).rename(made / source.stem)
        try:
            made.rename(ready)  # all of them or none
        except OSError:
            if not ready.is_dir():  # somebody else was faster
                raise


@contextmanager
def _samples_file(wanted: bool) -> Iterator[Path | None]:
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="shmdriver-bench-") as place:
        yield Path(place, "samples")


def run(program: str, arguments: Mapping[str, object], *, samples: bool = False) -> Outcome:
    """One run of a program with NAME=VALUE arguments. RuntimeError when it failed or a message was wrong."""
    with _samples_file(samples) as file:
        words = [str(folder() / program), *(f"{name}={value}" for name, value in arguments.items())]
        if file is not None:
            words.append(f"samples={file}")
        out, errors, code, preempted = _finish(words)
        if code != 0:
            text = errors.strip() or out.strip() or f"exit code {code}"
            raise RuntimeError(f"{program} {' '.join(words[1:])}: {text}")
        found = np.fromfile(file, np.uint64) if file is not None else _NO_SAMPLES
    return Outcome(json.loads(out), found, preempted)


def _finish(words: list[str]) -> tuple[str, str, int, int]:
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(words, stdout=out, stderr=errors) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return texts[0], texts[1], process.returncode, usage.ru_nivcsw
