"""The driver inside a process: its configuration, its crash, and processes whose threads are none."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.driver.collect import collect
from shmdriver.driver.config import Config
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.errors import ConfigError, DriverUnavailable, ShmDriverError
from shmdriver.threads import check_threads
from tests.chaos.stage import wait_until

PATIENCE_S = 60.0

# ---- its configuration


@pytest.mark.parametrize("how", ["sections", "dotted", "path", "text", "loaded"])
def test_configuration_is_a_mapping_or_a_path(tmp_path: Path, how: str) -> None:
    path = tmp_path / "shmdriver.toml"
    path.write_text("[policies.limits]\nstreams = 3\n")
    config: dict[str, Any] = {
        "sections": {"policies": {"limits": {"streams": 3}}},
        "dotted": {"policies.limits.streams": 3},
        "path": path,
        "text": str(path),
        "loaded": Config.load(path),
    }
    with shmdriver.embedded(config=config[how]) as client:
        kept = [client.consumer(f"s{n}") for n in range(3)]
        with pytest.raises(shmdriver.AttachRejected, match="3 of 3 streams"):
            client.consumer("too-many")
        del kept


@pytest.mark.parametrize("config", [3, {"policies": {1: 2}}, ["shm"], object()])
def test_anything_else_is_told_what_is_expected(config: Any) -> None:
    with pytest.raises(ConfigError, match="expected a mapping"), shmdriver.embedded(config=config):
        pass


def test_errors_of_a_mapping_name_it() -> None:
    with pytest.raises(ConfigError, match="lease_timeout_ms") as told:
        EmbeddedDriver(config={"policies": {"lease_timeout": 3}})
    assert "command line" not in str(told.value)
    assert "config=" in str(told.value)


# ---- its start in an event loop


IN_A_LOOP = """
import asyncio, contextlib, sys, shmdriver

async def main():
    stack = contextlib.ExitStack()
    client = await asyncio.to_thread(stack.enter_context, shmdriver.embedded(sys.argv[1]))
    try:
        async with await client.aconsumer("s") as reader, await client.aproducer("s") as out:
            out.publish(b"x")
            print(bytes(await reader.aread()), flush=True)
            await asyncio.get_running_loop().create_future()
    finally:
        await asyncio.to_thread(stack.close)

with shmdriver.stop_on_signals() if sys.argv[2] == "recipe" else contextlib.nullcontext():
    asyncio.run(main())
"""


@pytest.mark.fault(67, how="signals, the embedded driver started and stopped by worker threads of a loop")
@pytest.mark.parametrize(
    ("how", "number", "code"),
    [("recipe", signal.SIGTERM, 0), ("recipe", signal.SIGINT, 0), ("none", signal.SIGINT, -signal.SIGINT)],
)
def test_driver_of_a_worker_thread_ends_in_order_on_signals(
    instance_name: str, how: str, number: int, code: int
) -> None:
    command = [sys.executable, "-c", IN_A_LOOP, instance_name, how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "b'x'\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors if code == 0 else "") == (code, ""), errors
    assert list(Path("/dev/shm").glob(f"shmd.{instance_name}.*")) == []


# ---- its crash


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", ["private", "given"])
@pytest.mark.fault(59, how="the thread of an embedded driver raises; its program goes on")
def test_clients_are_told_that_their_own_driver_has_crashed(instance_name: str, name: str) -> None:
    embedded = EmbeddedDriver(instance_name if name == "given" else None, Config.load(env={}))
    embedded.start()
    driver, thread = embedded._driver, embedded._thread
    assert driver is not None
    assert thread is not None
    with shmdriver.connect(embedded.instance) as client:
        consumer = client.consumer("s")

        def crash() -> int:
            raise RuntimeError("a defect of the driver")

        driver.tick = crash  # type: ignore[method-assign]
        driver.wake()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        with pytest.raises(DriverUnavailable, match="it crashed in this process"):
            client.producer("s")
        with pytest.raises(DriverUnavailable, match="it crashed in this process"):
            shmdriver.connect(embedded.instance) if name == "given" else client.consumer("t")
        if name == "private":
            with pytest.raises(DriverUnavailable):
                consumer.read(timeout=PATIENCE_S)
    embedded.stop()
    if name == "given":
        collect(instance_name)  # a driver of that name would have taken it over


@pytest.mark.parametrize("call", ["read", "read_batch"])
@pytest.mark.fault(51, how="an embedded driver that is dead, readers that never wait")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_readers_that_never_wait_are_told_of_a_dead_embedded_driver(call: str) -> None:
    told: list[Any] = []
    heard = threading.Event()

    def hear(event: Any) -> None:
        if event.kind == "driver_lost":
            told.append(event)
            heard.set()

    embedded = EmbeddedDriver(None, Config.load(env={}))
    embedded.start()
    driver, thread = embedded._driver, embedded._thread
    assert driver is not None
    assert thread is not None
    with shmdriver.connect(embedded.instance) as client:
        client.on_event(hear)
        consumer = client.consumer("s", dtype="<i8")
        driver.tick = lambda: 1 // 0  # type: ignore[method-assign]
        driver.wake()
        thread.join(PATIENCE_S)
        read: Any = getattr(consumer, call)
        with pytest.raises(DriverUnavailable, match="is dead"):
            wait_until(lambda: read(timeout=0), "an error", PATIENCE_S)
        assert heard.wait(PATIENCE_S)
        assert "is dead" in told[0].text
    embedded.stop()


# ---- threads that are none

GREENLETS = """
import _thread, sys
real = _thread.start_new_thread
def start_new_thread(*arguments):  # as gevent's and eventlet's
    return real(*arguments)
_thread.start_new_thread = _thread.start_joinable_thread = start_new_thread
import shmdriver
for act in (lambda: shmdriver.embedded().__enter__(), shmdriver.Queue, shmdriver.connect):
    try:
        act()
    except shmdriver.ShmDriverError as error:
        assert "thread=False" in str(error), error
    else:
        sys.exit("it was not refused")
print("fine")
"""
GEVENT = """
from gevent import monkey
monkey.patch_all()
""" + GREENLETS.split("= start_new_thread\n")[1]


@pytest.mark.parametrize("program", [GREENLETS, GEVENT], ids=["stand-in", "gevent"])
@pytest.mark.fault(60, how="threads replaced by greenlets, as gevent and eventlet do it")
def test_process_whose_threads_are_greenlets_is_refused(program: str) -> None:
    if program is GEVENT:
        pytest.importorskip("gevent", reason="gevent is not installed")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


class SimpleQueue:
    """As gevent's: it is not that of CPython."""


@pytest.mark.parametrize("what", ["select without epoll", "SimpleQueue"])
def test_driver_needs_what_else_gevent_replaces(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    check_threads(for_driver=True)
    if what == "SimpleQueue":
        monkeypatch.setattr("queue.SimpleQueue", SimpleQueue)
    else:
        monkeypatch.delattr("select.epoll")
    check_threads()
    with pytest.raises(ShmDriverError, match=what):
        EmbeddedDriver().start()


# ---- names of clients


def own_name(client: shmdriver.Client, names: Any) -> None:
    with client.consumer("s"):
        names.put(sorted(lease.client_name for lease in client.leases()))
    client.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_adds_its_own_name_to_its_parents_client(instance_name: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    with (
        shmdriver.embedded(instance_name),
        shmdriver.connect(instance_name, name="trainer") as client,
        client.consumer("s"),
    ):
        names = context.SimpleQueue()
        child: Any = context.Process(target=own_name, args=(client, names), name="loader-3")  # type: ignore[attr-defined]
        child.start()
        assert names.get() == ["trainer", "trainer/loader-3"]
        child.join()
