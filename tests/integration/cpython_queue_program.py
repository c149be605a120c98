"""Runs CPython's own tests of queues against shmdriver.Queue, and prints how each one ended.

python cpython_queue_program.py fork|spawn|forkserver TEST ...
python cpython_queue_program.py logging TEST ...
"""

from __future__ import annotations

import importlib
import json
import logging.handlers
import multiprocessing
import sys
import unittest
from typing import Any

import shmdriver

_processes: Any = importlib.import_module("test._test_multiprocessing")
_logging: Any = importlib.import_module("test.test_logging")


def _set_up(self: Any) -> None:
    _logging.QueueHandlerTest.setUp(self)
    self.que_logger.removeHandler(self.que_hdlr)
    self.queue = shmdriver.Queue()
    self.que_hdlr = logging.handlers.QueueHandler(self.queue)
    self.que_logger.addHandler(self.que_hdlr)


# Children look them up here.
_bases = (_processes._TestQueue, _processes.ProcessesMixin, unittest.TestCase)
Queues: Any = type("Queues", _bases, {"Queue": staticmethod(shmdriver.Queue)})
Handlers: Any = type("Handlers", (_logging.QueueHandlerTest,), {"setUp": _set_up})
Listeners: Any = type("Listeners", (_logging.QueueListenerTest,), {})


def main() -> None:
    how, *names = sys.argv[1:]
    if how != "logging":
        multiprocessing.set_start_method(how, force=True)
    # Tests that name the function make ours; of a JoinableQueue they only see that a closed one refuses.
    package: Any = multiprocessing
    package.Queue = package.JoinableQueue = shmdriver.Queue
    ended = {}
    for name in names:
        result = unittest.TestResult()
        case, _, method = name.partition(".")
        globals()[case](method).run(result)
        told = [text for _, text in [*result.errors, *result.failures]]
        told += [f"skipped: {why}" for _, why in result.skipped]
        ended[name] = "\n".join(told)
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
