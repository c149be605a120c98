"""Who is alive, with real processes: proofs of death, silence, pauses, other namespaces, clocks that jump."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.cli.stat import health
from shmdriver.driver.collect import collect
from shmdriver.observe import Instance, LeaseStatus
from tests.chaos.stage import (
    HEALTHY_S,
    PATIENCE_S,
    ROOT,
    Actor,
    Stage,
    lease_checks,
    moves_on,
    received,
    wait_until,
)
from tests.segments import path_of

SMALL = {"slots": 256}
SHORT_MS = 1200
SHORT = {
    "policies.lease_timeout_ms": SHORT_MS,
    "policies.heartbeat_interval_ms": 100,
    "policies.lease_check_interval_ms": 20,
}
SECOND_NS = 1_000_000_000


def lease_of(stage: Stage, actor: Actor) -> int:
    (found,) = [lease.lease_id for lease in stage.leases() if lease.pid == actor.pid]
    return found


def lease(stage: Stage, lease_id: int) -> LeaseStatus:
    (found,) = [lease for lease in stage.leases(ended=True) if lease.lease_id == lease_id]
    return found


def state_of(stage: Stage, actor: Actor) -> str:
    return lease(stage, lease_of(stage, actor)).state


def await_active(stage: Stage, *actors: Actor) -> None:
    """Their leases live, and soon nobody is shown as stalled: a busy machine delays a few heartbeats."""
    for actor in actors:
        wait_until(lambda actor=actor: state_of(stage, actor) == "active", f"{actor} to be active")  # type: ignore[misc]


def check(stage: Stage) -> tuple[int, str]:
    """What ``stat --check`` says."""
    with Instance(stage.instance) as view:
        return health(view.driver(), view.streams(), view.leases())


def time_passes(milliseconds: int) -> None:
    """Not to synchronise with anything: so much silence is what the test is about."""
    end_ns = lib.shmd_now_ns() + milliseconds * 1_000_000
    wait_until(lambda: lib.shmd_now_ns() >= end_ns, "time to pass")


# ---- proof of death


@pytest.mark.parametrize("is_reaped", [True, False], ids=["reaped", "zombie"])
@pytest.mark.fault(37, how="kill -9 of a child that its parent does not wait for")
def test_death_is_proved_long_before_the_next_lease_check(make_stage, is_reaped: bool) -> None:
    stage = make_stage({"policies.lease_check_interval_ms": 50_000, "policies.lease_timeout_ms": 100_000})
    consumer = stage.consumer("s")
    other = stage.consumer("s")
    lease_id = lease_of(stage, consumer)
    began_ns = lib.shmd_now_ns()
    consumer.send_signal(signal.SIGKILL)
    if is_reaped:
        consumer.join()
    wait_until(lambda: lease(stage, lease_id).state == "expired", "the death to be noticed")
    assert lib.shmd_now_ns() - began_ns < 40 * SECOND_NS
    if not is_reaped:
        stat = Path(f"/proc/{consumer.pid}/stat").read_text()
        assert stat.rpartition(")")[2].split()[0] == "Z"
    assert lease(stage, lease_id).end_reason == "died"
    assert state_of(stage, other) in ("attached", "active")


# ---- silence


@pytest.mark.fault(32, how="SIGSTOP for less than the deadline")
def test_silent_client_is_shown_as_stalled_and_recovers(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({**SHORT, "policies.lease_timeout_ms": 60_000})
    consumer = stage.consumer("s", name="sleeper")
    producer = stage.producer("s", 1, options=SMALL)
    received(consumer, 100, 1)
    consumer.stop()
    wait_until(lambda: state_of(stage, consumer) == "stalled", "it to be shown as stalled")
    code, text = wait_until(
        lambda: (c := check(stage))[0] == 1 and "stalled_clients" in c[1] and c, "a warning"
    ) or (0, "")  # on a busy machine a driver may be degraded by a late tick as well, and before
    assert (code, "stalled: sleeper" in text, "degraded" in text) == (1, True, True)
    await_active(stage, producer)
    consumer.go_on()
    await_active(stage, consumer)
    wait_until(lambda: check(stage)[0] == 0, "the driver to be healthy again", HEALTHY_S)
    moves_on(consumer)
    assert consumer.words("failure") == []


@pytest.mark.fault(33, how="a C call that holds the GIL for twice the lease timeout")
def test_client_that_holds_the_gil_keeps_its_lease(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(SHORT)
    busy = stage.actor("gil_holder", stream="s", seconds=2.5 * SHORT_MS / 1000)
    busy.wait_for("attached")
    producer = stage.producer("s", 1, options=SMALL, timeout=60)
    busy.wait_for("held")
    await_active(stage, busy)
    busy.say("stop")
    assert busy.join() == 0, busy.log_text()
    assert stage.counters()["leases_expired"] == 0
    assert producer.alive


# ---- the driver's own pauses


@pytest.mark.parametrize("who", ["driver", "everybody"])
@pytest.mark.fault(31, how="SIGSTOP of the driver, or of all, for twice the lease timeout")
def test_pause_of_the_driver_counts_against_nobody(make_stage, who: str) -> None:
    stage = make_stage(SHORT)
    consumer = stage.consumer("s")
    producer = stage.producer("s", 1, options=SMALL)
    driver = stage.driver
    assert driver is not None
    received(consumer, 100, 1)
    actors = [driver, consumer, producer] if who == "everybody" else [driver]
    for actor in actors:
        actor.stop()
    time_passes(2 * SHORT_MS)
    driver.go_on()
    with Instance(stage.instance) as view:
        checks = lease_checks(view)
        wait_until(lambda: lease_checks(view) > checks + 10, "the driver to check leases again")
    for actor in actors:
        actor.go_on()
    moves_on(consumer)
    counters = stage.counters()
    assert (counters["leases_expired"], counters["clients_died"]) == (0, 0)
    await_active(stage, consumer, producer)


# ---- processes outside the fork server


def python(
    script: str, *arguments: str, prefix: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> Any:
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, **(environment or {})},
    )  # fmt: skip


@contextmanager
def ended(process: Any) -> Iterator[Any]:
    """The process, and its end by its standard input's; killed when that takes too long."""
    try:
        yield process
    finally:
        try:
            process.communicate("", timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def may_unshare(*flags: str) -> bool:
    return subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False).returncode == 0


NAMESPACE = ("--pid", "--fork", "--mount-proc", "--kill-child")
CONSUME = """
import sys, shmdriver
with shmdriver.connect(sys.argv[1], name="stranger") as client:
    consumer = client.consumer("s")
    print("attached", flush=True)
    for message in consumer:
        print(len(message), flush=True)
"""


@pytest.mark.fault(35)
def test_client_of_a_pid_namespace_below_is_seen_and_its_death_is_proved(
    make_stage: Callable[..., Stage],
) -> None:
    if not may_unshare(*NAMESPACE):
        pytest.skip("no permission to make a PID namespace")
    stage = make_stage(SHORT)
    with ended(python(CONSUME, stage.instance, prefix=("unshare", *NAMESPACE))) as stranger:
        assert stranger.stdout.readline() == "attached\n"
        with shmdriver.connect(stage.instance) as client, client.producer("s", slots=256) as producer:
            producer.publish(b"hello")
            assert stranger.stdout.readline() == "5\n"
            with Instance(stage.instance) as view:
                (seen,) = [found for found in view.clients() if found.name == "stranger"]
                assert seen.provable
                assert seen.pid > 10, "its number here, as the kernel says, and not its own"
            time_passes(2 * SHORT_MS)  # its heartbeat is enough
            states = ["active"]
            wait_until(
                lambda: [le.state for le in stage.leases() if le.client_name == "stranger"] == states, "beats"
            )
            stranger.kill()
            stranger.wait()

            wait_until(lambda: stage.counters()["clients_died"] == 1, "its death to be seen")
            for _ in range(1000):
                producer.publish(b"room", timeout=PATIENCE_S)


RESERVED_PIDS = 310
REUSE = """
import os, signal, subprocess, sys
from pathlib import Path
from tests.chaos.test_liveness import pid_is_given_to_another
pid_is_given_to_another(sys.argv[1])
"""


def pid_is_given_to_another(instance: str) -> None:
    """In a PID namespace of few numbers: a client dies unseen, and its number goes to somebody else."""
    Path("/proc/sys/kernel/pid_max").write_text("400")
    run = ("-m", "shmdriver", "run", "-i", instance)

    def start() -> Any:
        driver = subprocess.Popen([sys.executable, *run], stderr=subprocess.PIPE, text=True)
        assert driver.stderr is not None
        for line in driver.stderr:
            if " serves: " in line:
                print(line.partition(" serves: ")[2], end="", flush=True)
                return driver
        raise AssertionError("no driver")

    while (
        int(subprocess.run(["sh", "-c", "echo $$"], capture_output=True, check=True).stdout) < RESERVED_PIDS
    ):
        pass  # numbers below come only once
    driver = start()
    client = python(CONSUME, instance)
    assert client.stdout.readline() == "attached\n"
    driver.kill()
    driver.wait()
    client.kill()
    client.wait()
    while True:  # round and round, until the number comes again
        other = subprocess.Popen(["sleep", "600"])
        if other.pid == client.pid:
            break
        other.kill()
        other.wait()
    driver = start()
    with Instance(instance) as view:
        wait_until(lambda: not view.leases(), "the lease of the dead to end", 20)
        assert [lease.end_reason for lease in view.leases(ended=True)] == ["died"]
    os.kill(other.pid, 0)
    other.kill()
    driver.send_signal(signal.SIGTERM)
    driver.wait(20)
    print("as it should be", flush=True)


@pytest.mark.fault(34)
def test_pid_that_was_given_to_another_process_is_no_client(instance_name: str, tmp_path: Path) -> None:
    script = "echo 400 > /proc/sys/kernel/pid_max"
    if not may_unshare(*NAMESPACE, "--", "sh", "-c", script):
        pytest.skip("no permission to make a PID namespace with few numbers")
    process = python(
        REUSE, instance_name, prefix=("unshare", *NAMESPACE), environment={"XDG_RUNTIME_DIR": str(tmp_path)}
    )
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == "as it should be"
    finally:
        process.kill()
        process.wait()
        collect(instance_name)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

/* Every other look at the wall clock is a day earlier or later. CLOCK_MONOTONIC is left alone. */
static long jump(void) { static unsigned n; return ((long)(__sync_fetch_and_add(&n, 1) % 3) - 1) * 86400; }

int clock_gettime(clockid_t id, struct timespec *out)
{
    typedef int (*look)(clockid_t, struct timespec *);
    look real = (look)dlsym(RTLD_NEXT, "clock_gettime");
    int rc = real(id, out);
    if (rc == 0 && id == CLOCK_REALTIME)
        out->tv_sec += jump();
    return rc;
}

time_t time(time_t *out)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *out, void *zone)
{
    struct timespec now;
    (void)zone;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
DRIVE = """
import sys, time
looks = [time.time() for _ in range(3)]
assert max(looks) - min(looks) > 80000, "the clock does not jump"
from shmdriver.driver.config import Config
from shmdriver.driver.process import run_driver
settings = dict(pair.split("=") for pair in sys.argv[2:])
sys.exit(run_driver(Config.load(env={}, overrides={"driver.instance": sys.argv[1], **settings})))
"""


@pytest.mark.fault(30, how="a preloaded clock that jumps by a day at every look")
def test_wall_clock_that_jumps_has_no_effect(instance_name: str, tmp_path: Path) -> None:
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(CLOCK)
    made = subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("no C compiler")
    jumping = {"LD_PRELOAD": str(library), "XDG_RUNTIME_DIR": str(tmp_path)}
    settings = [f"{key}={value}" for key, value in SHORT.items()]
    driver = python(DRIVE, instance_name, *settings, environment=jumping)
    try:
        assert any(" serves: " in line for line in driver.stderr)
        with ended(python(CONSUME, instance_name, environment=jumping)) as consumer:
            assert consumer.stdout.readline() == "attached\n"
            with shmdriver.connect(instance_name) as client, client.producer("s", slots=256) as producer:
                with Instance(instance_name) as view:
                    checks = lease_checks(view)
                    wait_until(lambda: lease_checks(view) > checks + 100, "a hundred lease checks")
                    wait_until(lambda: {lease.state for lease in view.leases()} == {"active"}, "beats")
                    counters = view.counters()
                producer.publish(b"hello", timeout=PATIENCE_S)
                assert consumer.stdout.readline() == "5\n"
        assert counters["leases_expired"] == 0
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0


FORK = """
import os, sys, time
from shmdriver.driver.embedded import EmbeddedDriver
driver = EmbeddedDriver(sys.argv[1])
driver.start()
child = os.fork()
if child == 0:
    os.close(0)
    time.sleep(600)
print(child, flush=True)
sys.stdin.read()
"""


@pytest.mark.fault(36, how="os.fork of a process with a driver, which is killed")
def test_child_of_a_killed_driver_does_not_hold_its_lock(instance_name: str, tmp_path: Path) -> None:
    parent = python(FORK, instance_name)
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        os.kill(child, 0)
        run = [sys.executable, "-m", "shmdriver", "run", "-i", instance_name]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        driver = subprocess.Popen(run, stderr=subprocess.PIPE, text=True, env=environment)
        assert driver.stderr is not None
        assert any(" serves: " in line for line in driver.stderr)
        driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=PATIENCE_S)
        assert driver.returncode == 0
    finally:
        os.kill(child, signal.SIGKILL)


# ---- one driver an instance


def serves(driver: Actor) -> bool:
    return " serves: " in driver.log_text()


def race(stage: Stage, count: int) -> None:
    """That many drivers at once where one lives already, and where none does."""
    first = stage.driver
    assert first is not None
    for holder in (first, None):
        if holder is None:
            first.kill()
        racers = [stage.actor("driver", settings=stage.settings) for _ in range(count)]
        alive = 0 if holder else 1

        def are_decided(racers: list[Actor] = racers, alive: int = alive) -> bool:
            return sum(racer.alive for racer in racers) == alive

        wait_until(are_decided, f"{count - alive} of {count} to exit")
        winners = [racer for racer in racers if racer.alive] or [first]
        (winner,) = winners
        wait_until(partial(serves, winner), "the winner to serve")
        for loser in set(racers) - {winner}:
            assert loser.join() == 3, loser.log_text()
            # The winner's pid; of a race, also that of the dead one whose authority it had not adopted yet.
            assert f"runs already (pid {winner.pid})" in loser.log_text() or (
                holder is None and f"runs already (pid {first.pid})" in loser.log_text()
            ), loser.log_text()
        stage.dismiss(*(set(racers) - {winner}))
        stage.driver = winner


@pytest.mark.fault(14, how="24 at once, against a living one and for a dead one's place")
def test_of_many_drivers_one_lives_and_the_others_name_it(
    stage: Stage, fault_cycles: Callable[[int], None]
) -> None:
    consumer = stage.consumer("s")
    producer = stage.producer("s", 1, options=SMALL)
    race(stage, 24)
    moves_on(consumer)
    assert producer.alive
    assert stage.driver_status().adoptions == 1
    fault_cycles(48)


@pytest.mark.fault(14, how="100 at once")
def test_of_a_hundred_drivers_one_lives(stage: Stage, fault_cycles: Callable[[int], None]) -> None:
    race(stage, 100)
    fault_cycles(200)


@pytest.mark.fault(15, how="rm of the authority while its driver serves")
def test_authority_removed_under_its_driver_is_told_and_harms_nobody(stage: Stage) -> None:
    consumer = stage.consumer("s")
    producer = stage.producer("s", 1, options=SMALL)
    first = stage.driver
    assert first is not None
    with Instance(stage.instance) as view:
        path_of(stage.instance, "authority").unlink()
        wait_until(lambda: "was removed while it is in use" in first.log_text(), "the driver to say so")
        assert any(".authority was removed while" in error.text for error in view.errors())
    moves_on(consumer)
    first.kill()  # what its clients have mapped goes on
    moves_on(consumer)
    second = stage.start_driver()
    assert " new" in second.log_text()
    assert producer.alive
