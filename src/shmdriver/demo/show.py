"""The whole demo, one part after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shmdriver.demo import files, frames, hello, quotes, records, report, roundtrip
from shmdriver.demo.processes import DriverProcess
from shmdriver.demo.screen import Screen
from shmdriver.demo.shm_meter import LIMIT_BYTES, STREAM_BYTES, ShmMeter, free_bytes
from shmdriver.demo.stage import DemoFailed, Stage
from shmdriver.demo.survive import Survive
from shmdriver.hints import command

__all__ = ["run"]


def run(*, quote_files: Sequence[Path] = (), quick: bool = False, stay: bool = False) -> int:
    """Runs the demo; 0 when everything arrived, else 1."""
    screen = Screen()
    started_s = time.monotonic()
    free = free_bytes()
    if free < LIMIT_BYTES:
        screen.line(
            f"/dev/shm has {free >> 20} MiB left, the demo needs {LIMIT_BYTES >> 20} MiB: free some "
            f"({command('gc', instance=None)}), or give the container more (docker run --shm-size=128m)",
            "✗",
        )
        return 1
    prefix = f"demo-{os.getpid()}"
    with ShmMeter(prefix) as meter:
        try:
            stage = Stage(screen, prefix, _quotes(screen, quote_files), quick)
            _measure(stage)
            _survive(stage, f"{prefix}-survive", stay=stay)
            hello.run(stage)
        except (DemoFailed, ValueError) as failure:
            screen.line(str(failure), "✗")
            return 1
        except KeyboardInterrupt:
            screen.line("interrupted", "✗")
            return 130
        left = meter.now_bytes()
    screen.print()
    screen.print(report.table(stage.rows))
    lost = sum(row.lost for row in stage.rows)
    peak_mib = meter.peak_bytes / 2**20
    good = lost == 0 and left == 0 and meter.peak_bytes <= LIMIT_BYTES
    screen.line(
        f"{time.monotonic() - started_s:.0f} s; /dev/shm: at most {peak_mib:.1f} of {LIMIT_BYTES >> 20} MiB, "
        f"{left} bytes now; lost {lost}",
        "✓" if good else "✗",
    )
    screen.heading("Three commands to try")
    for line in (
        "shmdriver run                            # a driver; then, in other terminals:",
        "shmdriver sub words | tee copy           # a consumer",
        "shmdriver pub words < /etc/services      # a producer; and: shmdriver stat --watch",
    ):
        screen.line(line, "$")
    return 0 if good else 1


def _quotes(screen: Screen, paths: Sequence[Path]) -> np.ndarray[Any, Any]:
    found = quotes.load(paths) if paths else quotes.sample()
    source = ", ".join(path.name for path in paths) or "a sample of our own"
    count = len(os.sched_getaffinity(0))
    screen.line(f"{count} cores; quotes: {len(found):,} from {source}")
    return found


def _measure(stage: Stage) -> None:
    screen = stage.screen
    with DriverProcess(stage.instance, STREAM_BYTES):
        screen.heading("1  The Python standard library through one reliable stream, to two processes")
        files.run(stage)
        screen.heading("2  Market quotes, as fast as they go, against multiprocessing")
        records.run(stage)
        roundtrip.run(stage)
        screen.heading("3  Video frames of 6.2 MB")
        frames.run(stage)


def _survive(stage: Stage, instance: str, *, stay: bool) -> None:
    stage.screen.heading("4  What survives")
    with DriverProcess(instance, STREAM_BYTES) as driver:
        show = Survive(stage, driver)
        try:
            show.run()
            if stay:
                show.stay()
            show.finish()
        finally:
            show.end()
