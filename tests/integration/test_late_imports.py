"""A fork in the middle of an import that this package does late: the child imports that module, too."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging, os, sys, threading  # logging holds its own lock over a fork

late, act = sys.argv[1:]

class Slow:
    "Finds the late module, and has its import take long enough for a fork in the middle of it."

    def __init__(self):
        self.began, self.may_end = threading.Event(), threading.Event()

    def find_spec(self, name, path, target=None):
        if name != late or self.began.is_set():
            return None
        spec = next(filter(None, (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)))
        run = spec.loader.exec_module

        def run_slowly(module):
            self.began.set()
            self.may_end.wait()
            run(module)

        spec.loader.exec_module = run_slowly
        return spec

import shmdriver
scope = {"shmdriver": shmdriver}
if late != "shmdriver.driver.embedded":
    embedded = shmdriver.embedded()
    scope["client"] = embedded.__enter__()
slow = Slow()
assert late not in sys.modules
sys.meta_path.insert(0, slow)
thread = threading.Thread(target=exec, args=(act, scope))
thread.start()
slow.began.wait()
threading.Timer(0.3, slow.may_end.set).start()
child = os.fork()
if child == 0:
    __import__(late)
    os._exit(0)
thread.join()
assert os.waitpid(child, 0)[1] == 0
print("fine")
"""


@pytest.mark.parametrize(
    ("late", "act"),
    [
        ("shmdriver.observe", "client.streams()"),
        ("shmdriver.client.queue", "client.queue('q')"),
        ("shmdriver.client.records", "client.consumer('s', dtype='<i8')"),
        ("shmdriver.client.record_producer", "client.producer('s', dtype='<i8').close()"),
        ("shmdriver.client.events", "client.on_event(print)()"),
        ("shmdriver.client.dropin", "shmdriver.Queue"),
        ("shmdriver.driver.embedded", "shmdriver.embedded().__enter__()"),
    ],
)
def test_child_forked_in_the_middle_of_a_late_import_does_not_hang(late: str, act: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, late, act], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
