"""Instructions a message, counted by callgrind: the same on every run, whatever else the machine does.

    python -m benchmarks.instructions [FILE.json]

Each kind of work is done 4,096 and 8,192 times by programs/count.c, and only that is collected; the
difference of the two counts, divided by 4,096, is one message's. What reads is measured as publishing and
reading, less publishing.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.run import ROOT
from shmdriver.bench import native, tables
from shmdriver.demo.processes import DriverProcess

_MESSAGES = 4096
_MAX_BYTES = 64 << 20
_TOTAL = re.compile(r"Collected : (\d+)")


@dataclass(frozen=True, slots=True)
class Work:
    """``reads``: whether a row for the reading side belongs to it."""

    name: str
    arguments: tuple[str, ...]
    reads: bool = True


WORKS = (
    Work("40 B one by one", ("mode=single", "bytes=40")),
    Work("64 B one by one", ("mode=single", "bytes=64")),
    Work("256 B one by one", ("mode=single", "bytes=256")),
    Work("40 B in batches of 64", ("mode=batch", "bytes=40", "batch=64")),
    Work("1 KiB claimed, nothing written", ("mode=claim", "bytes=1024")),
    Work("64 KiB claimed in the arena", ("mode=claim", "bytes=65536")),
    Work("40 B one by one, a lossy reader", ("mode=single", "bytes=40", "delivery=lossy")),
)


def count(instance: str, work: Work, *, consumers: int, messages: int) -> int:
    """All instructions of one run. RuntimeError with valgrind's words when it fails."""
    with tempfile.TemporaryDirectory() as place:
        words = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={place}/out"]
        words += ["--toggle-collect=bench_work"]
        words += [str(native.folder() / "count"), f"instance={instance}", *work.arguments]
        words += [f"consumers={consumers}", f"messages={messages}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = _TOTAL.search(done.stderr)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return int(found[1])


def a_message(instance: str, work: Work, *, consumers: int) -> float:
    """Instructions of one message."""
    many = count(instance, work, consumers=consumers, messages=2 * _MESSAGES)
    return (many - count(instance, work, consumers=consumers, messages=_MESSAGES)) / _MESSAGES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    default = ROOT / "build" / "bench" / "instructions.json"
    parser.add_argument("file", nargs="?", type=Path, default=default, help="where the counts go, as JSON")
    target: Path = parser.parse_args(arguments).file
    if shutil.which("valgrind") is None:
        print("instruction counts need valgrind, which is not installed", file=sys.stderr)
        return 1
    found: dict[str, dict[str, float]] = {}
    with DriverProcess("bench-instructions", _MAX_BYTES) as driver:
        for work in WORKS:
            publish = a_message(driver.instance, work, consumers=0)
            both = a_message(driver.instance, work, consumers=1)
            found[work.name] = {"publish": round(publish, 1), "read": round(both - publish, 1)}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [("instructions a message", "publish", "read and advance")]
    rows += [(name, f"{each['publish']:.1f}", f"{each['read']:.1f}") for name, each in found.items()]
    print(tables.aligned(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
