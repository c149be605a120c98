"""A program written for multiprocessing.Queue, switched by one line.

The line is the import. ``Queue()`` finds the driver that runs on this machine, or starts one inside this
process. What differs: objects are pickled when they are put, not later; arrays come past the pickle; a
worker that is killed in the middle of a get or a put leaves no lock behind that would block the others; one
process gets from a queue.

Prints: 20 frames, brightest is 19
"""

from __future__ import annotations

from multiprocessing import get_context
from typing import Any

import numpy as np

from shmdriver import Queue  # was: from multiprocessing import Queue


def measure(frames: Any, answers: Any) -> None:
    while (item := frames.get()) is not None:
        number, frame = item
        answers.put((number, float(frame.mean())))


def main() -> None:
    frames, answers = Queue(maxsize=8), Queue()
    worker = get_context("spawn").Process(target=measure, args=(frames, answers))
    worker.start()
    for number in range(20):
        frames.put((number, np.full((720, 1280), number, np.uint8)))
    frames.put(None)
    measured = dict(answers.get() for _ in range(20))
    worker.join()
    print(f"{len(measured)} frames, brightest is {max(measured, key=lambda number: measured[number])}")


if __name__ == "__main__":
    main()
