"""Processes that cannot be looked at: they are unknown, and nothing of theirs is freed.

The driver is killed and started again among clients whose /proc entry is hidden, foreign, a zombie's, or for
which no descriptor is left. Whatever is really dead is proved dead as soon as that is possible.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.driver.collect import collect
from shmdriver.observe import Instance
from tests.chaos.stage import HEALTHY_S, PATIENCE_S, ROOT, wait_until

# Silence ends nobody here: only proofs do.
ENDLESS = {"policies.lease_timeout_ms": "600000", "profiles.default.max_consumers": "64"}
DRIVER = """
import sys
from shmdriver.driver.config import Config
from shmdriver.driver.process import run_driver
sys.exit(run_driver(Config.load(overrides=dict(pair.split("=", 1) for pair in sys.argv[1:]))))
"""
# A client of `count` connections, each a reliable consumer, and of a producer. For each line of its input it
# publishes, reads, and says how many messages were lost.
CROWD = """
import sys, shmdriver
instance, count = sys.argv[1], int(sys.argv[2])
clients = [shmdriver.connect(instance, timeout=60) for _ in range(count)]
producer = clients[0].producer("s", slots=64)
consumers = [client.consumer("s") for client in clients]
print("attached", flush=True)
for line in sys.stdin:
    for number in range(100):
        producer.publish(b"%d" % number, timeout=60)
        for consumer in consumers:
            assert bytes(consumer.read(timeout=60)) == b"%d" % number
    print("read", sum(consumer.lost for consumer in consumers), flush=True)
"""
# The main thread leaves by pthread_exit; the second one goes on.
LEADERLESS = """
import ctypes, sys, threading
def work():
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    exec(SCRIPT, {"__name__": "crowd"})
SCRIPT = CROWD
threading.Thread(target=work).start()
ctypes.CDLL(None).pthread_exit(None)
""".replace("CROWD", repr(CROWD))


class Drivers:
    """One driver after another of one instance."""

    def __init__(self, instance: str, runtime: Path) -> None:
        self.instance = instance
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
        self.log = ""

    def start(self, *prefix: str, **settings: str) -> subprocess.Popen[str]:
        pairs = {"driver.instance": self.instance, **ENDLESS, **settings}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", DRIVER, *(f"{key}={value}" for key, value in pairs.items())],
            stderr=subprocess.PIPE, text=True, cwd=ROOT, env=self.environment,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.log = ""
        for line in self.process.stderr:
            self.log += line
            if " serves: " in line:
                return self.process
        raise AssertionError(f"the driver did not start: {self.log}")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def restart(self, *prefix: str, **settings: str) -> None:
        self.kill()
        self.start(*prefix, **settings)

    def live(self) -> int:
        """How many leases are live."""
        with Instance(self.instance) as view:
            return len(view.leases())

    def ends(self) -> list[str]:
        with Instance(self.instance) as view:
            return [lease.end_reason for lease in view.leases(ended=True) if not lease.live]


@pytest.fixture
def drivers(instance_name: str, tmp_path: Path) -> Iterator[Drivers]:
    drivers = Drivers(instance_name, tmp_path)
    drivers.start()
    yield drivers
    drivers.kill()
    collect(instance_name)


@contextmanager
def running(script: str, *arguments: str, prefix: tuple[str, ...] = (), **more: Any) -> Iterator[Any]:
    """A client's process, killed at the end."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, **more,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def attached(process: Any) -> None:
    assert process.stdout.readline() == "attached\n"


def goes_on(process: Any) -> None:
    """Its producer publishes, and each of its consumers reads everything."""
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "read 0\n"


def needs(*command: str) -> None:
    """Skips the test where that command does not work."""
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"this machine does not let us: {' '.join(command)}")


def cli(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "shmdriver", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def healthy_text(instance: str) -> str:
    """What ``stat --check`` says of a healthy driver; "" while a tick that came late degrades it."""
    code, said = cli("stat", "--check", "-i", instance)
    return said if code == 0 else ""


@pytest.mark.fault(44, how="main thread left by pthread_exit: state Z with living threads")
def test_client_whose_main_thread_has_exited_outlives_a_driver_and_its_death_is_proved(
    drivers: Drivers,
) -> None:
    with running(LEADERLESS, drivers.instance, "2") as client:
        attached(client)
        stat = Path(f"/proc/{client.pid}/stat").read_text().rpartition(")")[2]
        assert stat.split()[0] == "Z"
        drivers.restart()
        goes_on(client)
        assert drivers.live() == 3
        with Instance(drivers.instance) as view:
            assert {seen.process.state for seen in view.clients()} == {"running"}
        drivers.kill()
        code, said = cli("gc", "-i", drivers.instance)
        assert code == 0
        assert "2 of its clients live" in said
        drivers.start()
        goes_on(client)
        client.kill()
        client.wait()
        wait_until(lambda: not drivers.live(), "the leases of the dead to end")
        assert drivers.ends() == ["died"] * 3


@pytest.mark.fault(44, how="RLIMIT_NOFILE of the adopting driver below the number of its clients")
def test_driver_short_of_descriptors_ends_no_living_client_and_proves_deaths_later(drivers: Drivers) -> None:
    with running(CROWD, drivers.instance, "60") as client:
        attached(client)
        drivers.restart("prlimit", "--nofile=90:90")
        assert "RLIMIT_NOFILE is 90" in drivers.log
        goes_on(client)
        with Instance(drivers.instance) as view:
            provable = sum(seen.provable for seen in view.clients())
            assert 0 < provable < 60
            assert any("no descriptor" in error.text for error in view.errors())
        client.kill()
        client.wait()
        wait_until(lambda: not drivers.live(), "descriptors to come back, and all deaths to be proved")
        assert set(drivers.ends()) == {"died"}
        assert drivers.process.poll() is None


@pytest.mark.fault(44, how="RLIMIT_NOFILE lowered under a driver that runs")
def test_driver_that_runs_out_of_descriptors_lives_on(drivers: Drivers) -> None:
    with running(CROWD, drivers.instance, "40") as client:
        attached(client)
        hard = resource.prlimit(drivers.process.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(drivers.process.pid, resource.RLIMIT_NOFILE, (5, hard))
        goes_on(client)
        newest = max(int(path.name) for path in Path(f"/proc/{drivers.process.pid}/fd").iterdir())
        resource.prlimit(drivers.process.pid, resource.RLIMIT_NOFILE, (newest + 1, hard))
        with pytest.raises(shmdriver.AttachRejected, match=r"no descriptors? (are )?left .*LimitNOFILE"):
            shmdriver.connect(drivers.instance, timeout=60)
        client.kill()
        client.wait()
        wait_until(lambda: not drivers.live(), "the leases of the dead to end")
        resource.prlimit(drivers.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
        with shmdriver.connect(drivers.instance, timeout=60) as late:
            late.producer("t", attach_timeout=60).close()
        assert drivers.process.poll() is None


@pytest.mark.fault(44, how="RLIMIT_NOFILE raised at the driver's start")
def test_driver_raises_its_soft_limit_of_descriptors(drivers: Drivers) -> None:
    drivers.restart("prlimit", "--nofile=100:2000")
    limits = Path(f"/proc/{drivers.process.pid}/limits").read_text()
    assert next(line.split()[3:5] for line in limits.splitlines() if "open files" in line) == ["2000", "2000"]


SHORT_CLIENT = """
import os, resource, sys, shmdriver
client = shmdriver.connect(sys.argv[1], timeout=60)
producer, consumer = client.producer("s"), client.consumer("s")
spare = os.open("/dev/null", os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (spare, 4096))
assert client.driver_alive
producer.publish(b"goes on")
assert bytes(consumer.read(timeout=60)) == b"goes on"
try:
    client.consumer("t", attach_timeout=1)
except shmdriver.ShmDriverError as error:
    assert "is dead" not in str(error), error
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
assert client.consumer("t")
print("attached", flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_NOFILE, (spare, 4096))
assert not client.driver_alive
print("dead", flush=True)
"""


@pytest.mark.fault(44, how="EMFILE in a client that looks at its driver")
def test_client_without_descriptors_takes_no_living_driver_for_dead(drivers: Drivers) -> None:
    with running(SHORT_CLIENT, drivers.instance) as client:
        attached(client)
        drivers.kill()
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "dead\n", (
            "a number without a process proves it, and so does a free lock"
        )
        drivers.start()


HIDDEN = (
    "unshare", "--mount", "--propagation", "private", "sh", "-c",
    ('mount -t proc -o hidepid=2 proc /proc &&'
     ' exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'), "sh",
)  # fmt: skip


@pytest.mark.fault(44, how="hidepid=2, clients of another user")
def test_driver_to_which_proc_is_hidden_ends_nobody_and_proves_deaths(
    instance_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMDRIVER_TRUST_OWNERS", "65534")
    needs(*HIDDEN, sys.executable, "-c", "import shmdriver")
    runtime = Path(tempfile.mkdtemp(prefix="shmdriver-test-"))
    os.chown(runtime, 65534, 65534)
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(runtime))  # the client looks there, too
    drivers = Drivers(instance_name, runtime)
    drivers.start(*HIDDEN)
    try:
        with running(CROWD, instance_name, "2") as client:
            attached(client)
            drivers.restart(*HIDDEN)
            goes_on(client)
            assert drivers.live() == 3
            client.kill()
            client.wait()
            wait_until(lambda: not drivers.live(), "the leases of the dead to end")
            assert drivers.ends() == ["died"] * 3
    finally:
        drivers.kill()
        shutil.rmtree(runtime)
        for path in Path("/dev/shm").glob(f"shmd.{instance_name}.*"):
            path.unlink()  # another user's: collect() refuses


PAIR = """
import sys
from pathlib import Path
from tests.chaos.test_unknown_processes import pair_without_its_own_proc
pair_without_its_own_proc(*sys.argv[1:])
"""


def pair_without_its_own_proc(instance: str, runtime: str) -> None:
    """A driver and its client in a PID namespace, under the /proc of another one."""
    drivers = Drivers(instance, Path(runtime))
    drivers.start()
    with running(CROWD, instance, "2") as client:
        attached(client)
        drivers.restart()
        goes_on(client)
        assert drivers.live() == 3
        with Instance(instance) as view:
            assert view.driver().status == "running"
        client.kill()
        client.wait()
        wait_until(lambda: not drivers.live(), "the leases of the dead to end")
        assert drivers.ends() == ["died"] * 3
    drivers.process.send_signal(signal.SIGTERM)
    assert drivers.process.wait(PATIENCE_S) == 0
    print("as it should be", flush=True)


@pytest.mark.fault(44, how="unshare --pid --fork without a /proc of its own")
def test_foreign_proc_proves_nothing(instance_name: str, tmp_path: Path) -> None:
    prefix = ("unshare", "--pid", "--fork", "--kill-child")
    needs(*prefix, "true")
    try:
        with running(PAIR, instance_name, str(tmp_path), prefix=prefix, stderr=subprocess.PIPE) as pair:
            out, err = pair.communicate(timeout=PATIENCE_S)
            assert out == "as it should be\n", err
    finally:
        collect(instance_name)


GETS = """
import sys
import shmdriver

client = shmdriver.connect(sys.argv[1])
queue = client.queue("q")
print("attached", flush=True)
sys.stdin.readline()
for expected in range(int(sys.argv[2])):
    assert queue.get(timeout=60) == expected
print("all", flush=True)
"""
PUTS = """
import sys
import shmdriver

with shmdriver.connect(sys.argv[1]) as client:
    queue = client.queue("q")
    for number in range(int(sys.argv[2])):
        queue.put(number)
    print("attached", flush=True)
"""


@pytest.mark.fault(44, how="a queue's ends in two PID namespaces, each process 1 of its own")
def test_a_putter_waits_for_a_reader_that_has_its_own_pid_in_another_namespace(drivers: Drivers) -> None:
    prefix = ("unshare", "--pid", "--fork", "--kill-child")
    needs(*prefix, "true")
    count = "20000"  # more than the lane has room for
    with running(GETS, drivers.instance, count, prefix=prefix) as getter:
        attached(getter)
        with running(PUTS, drivers.instance, count, prefix=prefix, stderr=subprocess.PIPE) as putter:
            attached(putter)
            getter.stdin.write("\n")
            getter.stdin.flush()
            assert putter.communicate(timeout=PATIENCE_S) == ("", "")
        assert getter.stdout.readline() == "all\n"


@pytest.mark.fault(44, how="unshare --time: start times differ between time namespaces")
def test_client_of_another_time_namespace_is_admitted_and_outlives_a_driver(drivers: Drivers) -> None:
    """Its start time is read by the driver, so tools compare it."""
    prefix = ("unshare", "--time", "--boottime", "100000", "--fork", "--kill-child")
    needs(*prefix, "true")
    with running(CROWD, drivers.instance, "2", prefix=prefix) as client:
        attached(client)
        drivers.restart()
        goes_on(client)
        assert drivers.live() == 3
        said = wait_until(lambda: healthy_text(drivers.instance), "the driver to be healthy", HEALTHY_S)
        assert "cannot be proved" not in said
        client.kill()
        client.wait()
        wait_until(lambda: not drivers.live(), "the leases of the dead to end")
        assert drivers.ends() == ["died"] * 3


@pytest.mark.fault(44, how="a driver in another PID namespace, killed: the lock of its authority is free")
def test_free_lock_proves_a_drivers_death_across_namespaces(instance_name: str, tmp_path: Path) -> None:
    prefix = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    needs(*prefix, "true")
    drivers = Drivers(instance_name, tmp_path)
    drivers.start(*prefix)
    try:
        with shmdriver.connect(instance_name, timeout=60) as client, Instance(instance_name) as view:
            assert client.driver_alive
            assert view.driver().alive
            assert "cannot be proved" in view.driver().explanation
            drivers.kill()
            wait_until(lambda: not client.driver_alive, "the driver's death to be proved")
            assert view.driver().status == "dead"
            drivers.start(*prefix)
            assert client.driver_alive
    finally:
        drivers.kill()
        wait_until(lambda: _is_collected(instance_name), "its lock to be free")


def _is_collected(instance: str) -> bool:
    try:
        collect(instance)
    except shmdriver.errors.DriverAlreadyRunning:
        return False
    return True


# ---- over and over


def restart_with_descriptors_for_half(drivers: Drivers, cycles: int) -> None:
    """Driver after driver that can watch half of its clients only: none of them is ended."""
    with running(CROWD, drivers.instance, "60") as client:
        attached(client)
        for cycle in range(cycles):
            drivers.restart("prlimit", "--nofile=90:90")
            if cycle % 10 == 0 or cycle == cycles - 1:
                goes_on(client)
            assert drivers.live() == 61
        assert drivers.ends() == []


@pytest.mark.fault(44, how="kill -9 and adoption, with descriptors for half of the clients")
def test_ten_restarts_with_descriptors_for_half_of_the_clients_end_nobody(
    drivers: Drivers, fault_cycles: Callable[[int], None]
) -> None:
    restart_with_descriptors_for_half(drivers, 10)
    fault_cycles(10)


@pytest.mark.fault(44, how="kill -9 and adoption, with descriptors for half of the clients")
@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_thousand_restarts_with_descriptors_for_half_of_the_clients_end_nobody(
    drivers: Drivers, fault_cycles: Callable[[int], None]
) -> None:
    restart_with_descriptors_for_half(drivers, 1000)
    fault_cycles(1000)
