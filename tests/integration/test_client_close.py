"""Closing while the driver sleeps or is dead, and while another thread waits."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import shmdriver
from shmdriver import _native
from tests.tool import tool


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def driver(instance_name):
    process = subprocess.Popen(
        [sys.executable, "-m", "shmdriver", "run", "--instance", instance_name],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    output = process.stdout
    assert output is not None
    for line in output:
        if "serves" in line:
            break
    yield process
    process.send_signal(signal.SIGCONT)
    process.terminate()
    process.wait()
    output.close()


def test_a_close_that_a_stopped_driver_reads_late_still_ends_the_lease(driver, instance_name):
    with shmdriver.connect(instance_name) as client, client.producer("s", slots=64) as out:
        reader = client.consumer("s")
        os.kill(driver.pid, signal.SIGSTOP)
        reader.close()  # not answered: the request stays in the ring
        os.kill(driver.pid, signal.SIGCONT)
        until(lambda: out.consumers == 0)
        for _ in range(1000):
            out.publish(b"nobody holds this back", timeout=5.0)


def test_a_dead_driver_that_nobody_waited_for_is_noticed_at_once(driver, instance_name):
    with shmdriver.connect(instance_name) as client:
        driver.kill()
        os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie
        with pytest.raises(shmdriver.DriverUnavailable, match="dead"):
            client.consumer("s", attach_timeout=60.0)
    driver.wait()
    again = tool("gc", "--instance", instance_name, "--force")
    assert again.returncode == 0, again.stdout + again.stderr


def test_closing_a_consumer_ends_another_threads_wait_for_several():
    with shmdriver.embedded() as client:
        readers = [client.consumer("a"), client.consumer("b")]
        failures = []

        def wait():
            try:
                shmdriver.wait(readers, timeout=60.0)
            except shmdriver.ShmDriverError as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: _is_inside(readers[0]))
        readers[0].close()
        thread.join(60)
        assert not thread.is_alive()
        assert [type(error) for error in failures] == [shmdriver.HandleClosed]
        readers[1].close()


def _is_inside(reader):
    try:
        reader.release()
    except shmdriver.ConcurrentUseError:
        return True
    return False


def test_one_consumer_named_twice_is_waited_for_once():
    with shmdriver.embedded() as client, client.producer("s") as out:
        reader = client.consumer("s")
        out.publish(b"x")
        assert shmdriver.wait([reader, reader], timeout=5.0) == [reader, reader]


def test_a_client_may_be_closed_while_other_threads_attach():
    failures: list[BaseException] = []

    def attach(client: shmdriver.Client) -> None:
        try:
            while True:
                client.consumer("s", attach_timeout=60.0).close()
        except shmdriver.HandleClosed:
            return
        except BaseException as error:
            failures.append(error)

    with shmdriver.embedded() as main:
        for number in range(60):
            client = shmdriver.connect(main.instance)
            threads = [threading.Thread(target=attach, args=(client,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for _ in range(number % 7):
                assert client.driver_alive
            client.close()
            for thread in threads:
                thread.join()
        assert failures == []
        until(lambda: not [lease for lease in main.leases() if lease.live])


LOOK_ON = """
import sys, threading, shmdriver

def look_on(act, over):
    try:
        while not over.is_set():
            act()
    except (shmdriver.HandleClosed, shmdriver.EndOfStream, shmdriver.LeaseRevoked):
        pass

for _ in range(30):
    client = shmdriver.connect(sys.argv[1])
    out, reader = client.producer("s"), client.consumer("t")
    client.on_event(lambda event: None)
    looks = [
        lambda: out.wait_for_consumers(2, timeout=0.05),
        lambda: (out.consumers, out.blocked_total_ns),
        lambda: (reader.lag, reader.lost_ranges, repr(reader)),
        lambda: reader.read(timeout=0.001),
    ]
    over = threading.Event()
    threads = [threading.Thread(target=look_on, args=(look, over)) for look in looks]
    for thread in threads:
        thread.start()
    client.close()
    over.set()
    for thread in threads:
        thread.join()
print("fine")
"""


def test_a_client_may_be_closed_while_other_threads_look_at_what_it_has(driver, instance_name):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", LOOK_ON, instance_name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_number_that_a_program_gave_to_a_file_of_its_own_is_not_closed(driver, instance_name, tmp_path):
    def authorities():
        return [
            int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.resolve().name.endswith(".authority")
        ]

    client = shmdriver.connect(instance_name)
    [fd] = authorities()
    with (tmp_path / "unnamed").open("w") as own:
        os.dup2(own.fileno(), fd)  # as when all fds were closed, and files opened
    (tmp_path / "unnamed").unlink()
    client.producer("s").close()
    os.kill(
        driver.pid, signal.SIGSTOP
    )  # asked whether anybody is there, it does not take that file for its segment
    with pytest.raises(shmdriver.AttachTimeout):
        client.producer("s", attach_timeout=0.3)
    os.kill(driver.pid, signal.SIGCONT)
    client.close()
    del client
    gc.collect()
    os.write(fd, b"still open")
    os.close(fd)


@pytest.mark.parametrize("state", ["epoch", "lost_ranges", "consumers"])
def test_a_close_in_another_thread_between_two_steps_of_a_look_is_no_type_error(monkeypatch, state):
    """The other thread is run where such a look makes room for what it finds out."""
    with shmdriver.embedded() as client:
        made = client.producer("s") if state == "consumers" else client.consumer("s")
        module = sys.modules[type(made).__module__]

        class Closing:
            def __getattr__(self, name):
                if name == "new":
                    monkeypatch.undo()
                    closer = threading.Thread(target=made.close)
                    closer.start()
                    closer.join()
                return getattr(_native.ffi, name)

        monkeypatch.setattr(module, "ffi", Closing())
        seen = getattr(made, state)
        assert made.closed
        assert getattr(made, state) == seen
