"""The driver as a process: signals, kill -9 under load, races at the start, a supervisor, an idle core."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.driver.collect import collect
from shmdriver.errors import AttachRejected, DriverUnavailable, LeaseRevoked, ProducerLost, Reason
from shmdriver.observe import Instance
from tests.chaos.stage import wait_until
from tests.segments import runtime_folder_of
from tests.small_mount import in_small_mount

PATIENCE_S = 60
RUN = """
import sys
from shmdriver.driver.config import Config
from shmdriver.driver.process import run_driver
sys.exit(run_driver(Config.load(overrides=dict(pair.split("=", 1) for pair in sys.argv[1:]))))
"""
PRODUCE = """
import sys, shmdriver
with shmdriver.connect(sys.argv[1]) as client:
    out = client.producer("s")
    print(f"attached {client.pid if hasattr(client, 'pid') else 0}", flush=True)
    number = 0
    while True:
        out.publish(b"%d" % number)
        number += 1
"""


class Process:
    """A driver process, and others after it, of one instance."""

    def __init__(self, instance: str, runtime: Path) -> None:
        self.instance = instance
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
        self.log: list[str] = []

    def start(self, *settings: str) -> subprocess.Popen[str]:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", RUN, f"driver.instance={self.instance}", *settings],
            stderr=subprocess.PIPE, text=True, env=self.environment,
        )  # fmt: skip
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log.append(line)
            if " serves: " in line:
                return self.popen
        pytest.fail(f"the driver did not start: {''.join(self.log)}")

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate(timeout=PATIENCE_S)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        _, rest = self.popen.communicate(timeout=PATIENCE_S)
        self.log += rest.splitlines()
        return self.popen.returncode


@pytest.fixture
def driver(instance_name: str, tmp_path: Path) -> Iterator[Process]:
    process = Process(instance_name, tmp_path)
    process.start()
    yield process
    if process.popen.poll() is None:
        process.end()
        if process.popen.returncode != 0:
            process.kill()
    collect(instance_name)


@pytest.fixture
def producing(driver: Process) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Processes that publish counting numbers until they are killed."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PRODUCE, driver.instance], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("attached")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def text_of(consumer: shmdriver.Consumer) -> bytes:
    """The next message; None would be a timeout."""
    message = consumer.read(timeout=PATIENCE_S)
    assert message is not None
    return bytes(message)


def segments(instance: str) -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").glob(f"shmd.{instance}.*"))


def test_sigterm_with_nobody_attached_stops_at_once_and_leaves_nothing(driver: Process) -> None:
    assert driver.end() == 0
    assert segments(driver.instance) == []


def test_second_signal_stops_a_driver_that_drains(driver: Process) -> None:
    with shmdriver.connect(driver.instance) as client:
        producer = client.producer("s")
        driver.popen.send_signal(signal.SIGTERM)
        assert driver.popen.stderr is not None
        for line in driver.popen.stderr:
            if "draining" in line and "end" in line:
                break
        assert driver.end(signal.SIGINT) == 0
        with pytest.raises((LeaseRevoked, DriverUnavailable)):
            for _ in range(1 << 20):
                producer.publish(b"x", timeout=0)


def test_sighup_logs_the_configuration_and_nothing_else_happens(driver: Process) -> None:
    driver.popen.send_signal(signal.SIGHUP)
    assert driver.popen.stderr is not None
    for line in driver.popen.stderr:
        if "config: instance" in line:
            assert driver.instance in line
            break
    with shmdriver.connect(driver.instance):
        pass


@pytest.mark.fault(14)
def test_second_driver_exits_with_its_own_code(driver: Process) -> None:
    second = subprocess.run(
        [sys.executable, "-c", RUN, f"driver.instance={driver.instance}"],
        capture_output=True, text=True, env=driver.environment, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert second.returncode == 3
    assert f"pid {driver.popen.pid}" in second.stderr


@pytest.mark.fault(14)
def test_one_of_many_drivers_started_at_once_lives(instance_name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, f"driver.instance={instance_name}"],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(8)
    ]  # fmt: skip
    ended: list[int] = []

    def follow(racer: subprocess.Popen[str]) -> None:
        assert racer.stderr is not None
        for line in racer.stderr:
            if " serves: " in line:
                return
        ended.append(racer.wait(PATIENCE_S))

    threads = [threading.Thread(target=follow, args=(racer,)) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert ended == [3] * 7
    for racer in racers:
        if racer.poll() is None:
            racer.send_signal(signal.SIGTERM)
            racer.communicate(timeout=PATIENCE_S)
            assert racer.returncode == 0
    assert segments(instance_name) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGUSR1])
def test_messages_flow_on_over_restarts_of_the_driver(driver: Process, producing, how: int) -> None:
    with shmdriver.connect(driver.instance) as client:
        consumer = client.consumer("s")
        producing()
        expected = 0
        for _ in range(4):
            for _ in range(3000):
                assert text_of(consumer) == b"%d" % expected
                expected += 1
            if how == signal.SIGKILL:
                driver.kill()
            else:
                assert driver.end(how) == 0
            for _ in range(3000):
                assert text_of(consumer) == b"%d" % expected
                expected += 1
            driver.start()
        with Instance(driver.instance) as view:
            assert view.driver().adoptions == 4
        assert consumer.lost == 0
        client.producer("another").close()


def test_killed_producer_is_drained_and_replaced_at_once(driver: Process, producing) -> None:
    with shmdriver.connect(driver.instance) as client:
        consumer = client.consumer("s", follow=False)
        first = producing()
        for number in range(2000):
            assert text_of(consumer) == b"%d" % number
        first.kill()
        first.wait()
        number = 2000
        with pytest.raises(ProducerLost) as lost:
            while True:
                assert text_of(consumer) == b"%d" % number
                number += 1
        assert lost.value.reason == Reason.DIED
        producing()
        fresh = client.consumer("s")
        fresh.read(timeout=PATIENCE_S)


def test_killed_consumer_frees_the_producer_without_its_lease_being_over(driver: Process) -> None:
    driver.end()
    driver.start("policies.lease_timeout_ms=86400000")  # only the proof of its death ends it within this test
    script = (
        "import sys, shmdriver\n"
        "consumer = shmdriver.connect(sys.argv[1]).consumer('s')\n"
        "print('attached', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with shmdriver.connect(driver.instance) as client:
        producer = client.producer("s")
        holder = subprocess.Popen(
            [sys.executable, "-c", script, driver.instance], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"attached\n"
        while producer.try_publish(b"x" * 50):
            pass
        holder.kill()
        producer.publish(b"room", timeout=PATIENCE_S)
        holder.communicate(timeout=PATIENCE_S)


def test_supervisor_is_told(instance_name: str, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(PATIENCE_S)
        process = Process(instance_name, tmp_path)
        process.environment |= {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        process.start()
        assert sock.recv(256).startswith(b"READY=1")
        assert sock.recv(256) == b"WATCHDOG=1"
        assert process.end() == 0
        while sock.recv(256) != b"STOPPING=1":
            pass


def test_shutdown_token_is_made_for_this_user_alone(driver: Process, tmp_path: Path) -> None:
    token = runtime_folder_of(driver.instance, tmp_path) / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700


def test_idle_driver_takes_less_than_half_a_percent_of_a_core(driver: Process) -> None:
    def used_s() -> float:
        fields = Path(f"/proc/{driver.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with shmdriver.connect(driver.instance) as client:
        client.consumer("s")
        before_s, before_ns = used_s(), lib.shmd_now_ns()
        with Instance(driver.instance) as view:
            checks = view.counters()["idle_checks"]
            while view.counters()["idle_checks"] < checks + 50:  # some seconds, in the driver's own measure
                threading.Event().wait(0.2)
        share = (used_s() - before_s) / ((lib.shmd_now_ns() - before_ns) / 1e9)
    assert share < 0.005 + 2 / os.sysconf("SC_CLK_TCK") / 5, f"{share:.2%} of a core"


@pytest.mark.fault(18)
def test_small_mount_refuses_an_attach_with_numbers_and_the_driver_lives(tmp_path: Path) -> None:
    script = (
        "import shmdriver\n"
        "from shmdriver.driver.config import Config\n"
        "config = Config.load(overrides={'policies.limits.streams': 8, 'shm.max_bytes': 1 << 30})\n"
        "with shmdriver.embedded(config=config) as client:\n"
        "    for slots in (64, 1 << 16, 64):\n"
        "        try:\n"
        "            client.producer(f's{slots}', slots=slots, max_message=100).close()\n"
        "            print('attached')\n"
        "        except shmdriver.AttachRejected as error:\n"
        "            print(int(error.reason), error)\n"
    )
    lines = in_small_mount("size=4m", script)
    assert lines[0] == lines[2] == "attached"
    assert lines[1].startswith(f"{int(Reason.NO_MEMORY)} ")
    assert "/dev/shm leaves" in lines[1]


def test_attach_of_an_unknown_stream_names_the_nearest(driver: Process) -> None:
    with shmdriver.connect(driver.instance) as client:
        producer = client.producer("ticks")
        with pytest.raises(AttachRejected, match="nearest: 'ticks'"):
            client.consumer("tick", create=False)
        producer.close()


def test_kill_dash_nine_over_and_over_leaves_the_same_segments(driver: Process) -> None:
    with shmdriver.connect(driver.instance) as client:
        producer = client.producer("s")
        before = segments(driver.instance)
        for _ in range(4):
            driver.kill()
            driver.start()
        assert segments(driver.instance) == before
        producer.close()
    assert driver.end() == 0
    assert segments(driver.instance) == []


def test_open_files_of_the_driver_do_not_grow(driver: Process) -> None:
    def open_files() -> int:
        return len(list(Path(f"/proc/{driver.popen.pid}/fd").iterdir()))

    def come_and_go() -> None:
        with shmdriver.connect(driver.instance) as client, client.producer("s"):
            pass

    come_and_go()
    before = open_files()
    for _ in range(20):
        come_and_go()
    wait_until(lambda: open_files() <= before + 1, f"about {before} files to be open, not {open_files()}")
    assert before < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
