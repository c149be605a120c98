"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from shmdriver.errors import ShmDriverError

__all__ = ["cores", "describe", "line", "versions"]

_FOLDER = Path(__file__).resolve().parent
_PACKAGES = ("shmdriver", "numpy", "cffi", "hdrhistogram")


def describe() -> dict[str, Any]:
    """Processor, kernel, compiler, commit (empty: not a checkout), versions, load."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": _is_virtual(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiler": _first_line(*shlex.split(os.environ.get("CC", "cc")), "--version"),
        "commit": _first_line("git", "-C", str(_FOLDER), "rev-parse", "--short", "HEAD"),
        "dirty": bool(_first_line("git", "-C", str(_FOLDER), "status", "--porcelain", "-uno")),
        "packages": versions(_PACKAGES),
        "load": round(os.getloadavg()[0], 2),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of what is installed of these."""
    return {name: found for name in packages if (found := _version(name))}


def line(machine: dict[str, Any]) -> str:
    """All of it that fits on a line."""
    commit = machine.get("commit") or "an installed package"
    return (
        f"{machine['cpu']}, {machine['cores']} cores{' (virtual)' if machine.get('virtual') else ''}, "
        f"Linux {machine['kernel']}, Python {machine['python']}, {machine['compiler']}, "
        f"commit {commit}{' and changes' if machine.get('dirty') else ''}"
    )


def cores(wanted: str | None = None) -> tuple[int, int]:
    """A core for the producer and one for the consumer ("2,3"); the same one when there is no other.

    ShmDriverError when what is wanted is no pair of cores of this process.
    """
    usable = sorted(os.sched_getaffinity(0))
    if wanted is None:
        return usable[0], usable[1 % len(usable)]
    words = wanted.split(",")
    if len(words) != 2 or not all(word.strip().isdigit() and int(word) in usable for word in words):
        raise ShmDriverError(
            f"cores {wanted!r}: expected two of {', '.join(map(str, usable))}, with a comma between them"
        )
    return int(words[0]), int(words[1])


def _cpu() -> str:
    for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.machine()


def _is_virtual() -> bool:
    return " hypervisor" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.splitlines()[0] if done.stdout and done.returncode == 0 else ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
