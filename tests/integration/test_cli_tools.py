"""Tools that watch and steer (`stat`, `why`, `gc`, `shutdown`, ...) with a real driver, also a dead one."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shmdriver._native import ffi, lib
from shmdriver.client import Client, connect
from shmdriver.driver.collect import collect
from shmdriver.observe import Instance, diagnose
from shmdriver.observe.host import check_host
from shmdriver.observe.objects import segments_of
from tests.chaos.stage import HEALTHY_S, wait_until
from tests.segments import path_of
from tests.tool import tool, tool_json

SHMDRIVER = [sys.executable, "-m", "shmdriver"]
PATIENCE_S = 60


class DriverProcess:
    """`shmdriver run` in a process of its own."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.start()

    def start(self) -> None:
        # On a busy machine a few commands take more than the 10 s after which a stopped client would expire.
        patient = {**os.environ, "SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS": "600000"}
        command = [*SHMDRIVER, "run", "-i", self.instance]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env=patient)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if b"serves" in line:
                return
        pytest.fail("the driver did not start")

    def end(self, sent: int) -> int:
        self.process.send_signal(sent)
        self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


@pytest.fixture
def driver(instance_name: str) -> Iterator[DriverProcess]:
    process = DriverProcess(instance_name)
    yield process
    if process.process.poll() is None:
        process.process.send_signal(signal.SIGCONT)
        process.end(signal.SIGTERM)
    collect(instance_name)


@pytest.fixture
def client(driver: DriverProcess) -> Iterator[Client]:
    with connect(driver.instance, name="tester") as connected:
        yield connected


def fill(producer: Any) -> None:
    """Publish until there is no room."""
    while producer.try_publish(b"x" * 8):
        pass


def test_stat_shows_streams_clients_and_leases(driver: DriverProcess, client: Client) -> None:
    with client.producer("quotes") as producer, client.consumer("quotes") as consumer:
        producer.publish(b"one")
        producer.publish(b"two")
        assert bytes(consumer.read(timeout=60) or b"") == b"one"
        found = tool_json("stat", "-i", driver.instance)
        assert found["driver"]["status"] == "running"
        assert found["driver"]["process"]["pid"] == driver.process.pid
        (stream,) = found["streams"]
        assert stream["name"] == "quotes"
        assert stream["producer"]["client_name"] == "tester"
        (epoch,) = stream["epochs"]
        assert epoch["head"] == 2
        (gate,) = epoch["gates"]
        assert gate["pid"] == os.getpid()
        assert gate["delivery"] == "reliable"
        assert {lease["role"] for lease in found["leases"]} == {"producer", "consumer"}
        for what in ("streams", "clients", "leases", "events", "errors", "counters"):
            assert tool("stat", what, "-i", driver.instance).returncode == 0
        assert "quotes" in tool("stat", "-i", driver.instance).stdout
        kinds = {event["kind"] for event in tool_json("stat", "events", "-i", driver.instance)}
        assert {"attach_response", "stream_announce"} <= kinds


def test_check_follows_the_drivers_health(driver: DriverProcess) -> None:
    def check() -> int:
        return tool("stat", "--check", "-i", driver.instance).returncode

    wait_until(lambda: check() == 0, "the driver to be healthy", HEALTHY_S)
    assert tool("maintenance", "on", "-i", driver.instance).returncode == 0
    wait_until(lambda: check() == 1, "the state, which comes after the answer")
    assert tool("maintenance", "off", "-i", driver.instance).returncode == 0
    wait_until(lambda: check() == 0, "the driver to be healthy again", HEALTHY_S)
    driver.end(signal.SIGKILL)
    assert check() == 2


def test_stat_works_after_kill_9_of_the_driver(driver: DriverProcess, client: Client) -> None:
    with client.producer("quotes") as producer, client.consumer("quotes") as consumer:
        producer.publish(b"before")
        driver.end(signal.SIGKILL)
        producer.publish(b"after")
        found = tool_json("stat", "-i", driver.instance)
        assert found["driver"]["status"] == "dead"
        assert f"shmdriver run -i {driver.instance}" in found["driver"]["advice"]
        assert found["streams"][0]["epochs"][0]["head"] == 2
        assert "dead" in tool("stat", "-i", driver.instance).stdout
        assert [bytes(consumer.read(timeout=60) or b"") for _ in range(2)] == [b"before", b"after"]
        driver.start()
        found = tool_json("stat", "-i", driver.instance)
        assert found["driver"]["status"] == "running"
        assert found["driver"]["adoptions"] == 1
        assert len(found["leases"]) == 2


def test_a_stopped_driver_is_paused_not_dead(driver: DriverProcess) -> None:
    driver.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, driver.process.pid, os.WSTOPPED)
    with Instance(driver.instance) as view:
        assert view.driver().status == "paused"
        assert f"kill -CONT {driver.process.pid}" in view.driver().advice
        driver.process.send_signal(signal.SIGCONT)


def test_why_names_a_stopped_consumer(driver: DriverProcess, client: Client) -> None:
    with client.producer("quotes", slots=64) as producer:
        sub = subprocess.Popen(
            [*SHMDRIVER, "sub", "quotes", "-i", driver.instance],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            # Wired is not enough: stopped before it has confirmed, its lease ends at its attach's deadline.
            wait_until(lambda: [lease.state for lease in client.leases()] == ["active"] * 2, "both leases")
            sub.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, sub.pid, os.WSTOPPED)
            fill(producer)
            found = tool_json("why", "quotes", "-i", driver.instance)
            assert found["verdict"] == "consumer_stopped"
            assert found["culprit"]["pid"] == sub.pid
            assert found["culprit"]["behind"] >= 64
            said = tool("why", "quotes", "-i", driver.instance)
            assert said.returncode == 0
            assert f"(pid {sub.pid}" in said.stdout
            assert "stopped" in said.stdout
            assert f"kill -CONT {sub.pid}" in said.stdout
            assert f"({sub.pid})" in tool("stat", "-i", driver.instance).stdout
            driver.end(signal.SIGKILL)
            said = tool("why", "quotes", "-i", driver.instance)
            assert str(sub.pid) in said.stdout
            assert "while it is down" in said.stdout
        finally:
            sub.kill()
            sub.communicate(timeout=PATIENCE_S)


def test_why_tells_views_from_slowness(driver: DriverProcess, client: Client) -> None:
    with (
        client.producer("frames", slots=16, max_message=1000) as producer,
        client.consumer("frames") as consumer,
        Instance(driver.instance) as view,
    ):
        fill(producer)
        assert diagnose(view, "frames").verdict == "consumer_slow"
    with (
        client.producer("large", slots=4, max_message=100_000) as producer,
        client.consumer("large") as consumer,
        Instance(driver.instance) as view,
    ):
        held = []
        while producer.try_publish(bytes(100_000)):
            held.append(consumer.read(timeout=60))
        found = diagnose(view, "large")
        assert found.verdict == "views_held"
        assert found.culprit is not None
        assert found.culprit.pid == os.getpid()
        assert found.culprit.held == len(held)
        held.clear()


def test_why_of_streams_that_nobody_holds_back(driver: DriverProcess, client: Client) -> None:
    with Instance(driver.instance) as view:
        with client.consumer("waiting"):
            assert diagnose(view, "waiting").verdict == "no_producer"
        with client.producer("lonely", min_consumers=1) as producer:
            assert not producer.try_publish(b"x")
            assert diagnose(view, "lonely").verdict == "no_consumer"
        with client.producer("idle"):
            assert diagnose(view, "idle", before=view.stream("idle"), elapsed_s=1).verdict == "idle"
        with client.producer("busy") as producer:
            before = view.stream("busy")
            producer.publish(b"x")
            found = diagnose(view, "busy", before=before, elapsed_s=0.5)
            assert found.verdict == "flowing"
            assert found.messages_per_second == 2


def test_an_unknown_stream_names_the_nearest(driver: DriverProcess, client: Client) -> None:
    with client.producer("quotes"):
        done = tool("why", "qoutes", "-i", driver.instance)
    assert done.returncode == 1
    assert "did you mean 'quotes'?" in done.stderr


def test_gc_leaves_the_living_and_the_adoptable(driver: DriverProcess, client: Client) -> None:
    with client.producer("s"):
        (outcome,) = tool_json("gc", "-i", driver.instance)
        assert outcome["action"] == "left"
        driver.end(signal.SIGKILL)
        (outcome,) = tool_json("gc", "-i", driver.instance)
        assert outcome["action"] == "left"
        assert str(os.getpid()) in outcome["reason"]
    client.close()


def test_gc_removes_what_a_killed_driver_left(driver: DriverProcess) -> None:
    driver.end(signal.SIGKILL)
    left = segments_of(driver.instance, os.geteuid())
    assert left
    (outcome,) = tool_json("gc", "--dry-run", "-i", driver.instance)
    assert outcome["action"] == "would remove"
    assert segments_of(driver.instance, os.geteuid()) == left
    (outcome,) = tool_json("gc", "-i", driver.instance)
    assert (outcome["action"], outcome["segments"]) == ("removed", len(left))
    assert not segments_of(driver.instance, os.geteuid())


def gc_and_doctor(instance: str, *options: str) -> tuple[str, str, str]:
    """What a dry run would do, and why; then what doctor says."""
    (outcome,) = tool_json("gc", "--dry-run", "-i", instance, *options)
    (check,) = (each for each in check_host() if each.name == "instances")
    return outcome["action"], outcome["reason"], f"{check.level} {check.found}; {check.advice}"


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_what_cannot_be_looked_at_is_not_said_to_have_no_driver(
    driver: DriverProcess, options: tuple[str, ...]
) -> None:
    authority = path_of(driver.instance, "authority")
    assert gc_and_doctor(driver.instance, *options)[0] == "left"

    def put_version(version: int) -> None:
        with authority.open("r+b") as file:
            file.seek(ffi.offsetof("shmd_header_t", "layout_version"))
            file.write(version.to_bytes(4, sys.byteorder))

    put_version(lib.SHMD_LAYOUT_VERSION + 1)
    try:
        action, reason, said = gc_and_doctor(driver.instance, *options)
    finally:
        put_version(lib.SHMD_LAYOUT_VERSION)
    assert action == "may remove"
    assert reason.startswith("cannot be looked at: ")
    assert "layout version" in reason
    assert said.startswith("warn 0 with a driver")
    assert f"cannot be looked at: {driver.instance} (" in said
    assert "without one" not in said
    assert "remove them" not in said


def test_segments_without_an_authority_have_no_driver(driver: DriverProcess) -> None:
    with connect(driver.instance) as client:
        client.producer("s")
        driver.end(signal.SIGKILL)
        path_of(driver.instance, "authority").unlink()
    action, reason, said = gc_and_doctor(driver.instance)
    assert (action, reason) == ("would remove", "no driver holds it")
    assert f"without one: {driver.instance} (" in said


def test_shutdown_ends_the_driver_and_leaves_nothing(driver: DriverProcess) -> None:
    done = tool("shutdown", "-i", driver.instance)
    assert done.returncode == 0, done.stderr
    driver.process.communicate(timeout=PATIENCE_S)
    assert driver.process.returncode == 0
    assert not segments_of(driver.instance, os.geteuid())


def test_handover_leaves_streams_to_the_next_driver(driver: DriverProcess, client: Client) -> None:
    with client.producer("s") as producer, client.consumer("s") as consumer:
        producer.publish(b"before")
        found = tool_json("shutdown", "--handover", "-i", driver.instance)
        assert found["ended"]
        driver.process.communicate(timeout=PATIENCE_S)
        (outcome,) = tool_json("gc", "-i", driver.instance)
        assert outcome["action"] == "left"
        producer.publish(b"between")
        driver.start()
        producer.publish(b"after")
        assert [bytes(consumer.read(timeout=60) or b"") for _ in range(3)] == [
            b"before",
            b"between",
            b"after",
        ]


def test_drain_refuses_newcomers(driver: DriverProcess, client: Client) -> None:
    with client.producer("s"):
        assert tool("drain", "-i", driver.instance).returncode == 0
        done = tool("sub", "s", "-i", driver.instance)
        assert done.returncode == 1
        assert "draining" in done.stderr
    driver.process.communicate(timeout=PATIENCE_S)
    assert driver.process.returncode == 0


@pytest.mark.fault(29, how="wrong token on the command line")
def test_a_wrong_token_is_refused(driver: DriverProcess, tmp_path: Any) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    done = tool("shutdown", "--token-file", str(token), "-i", driver.instance)
    assert done.returncode == 1
    assert "token" in done.stderr
    assert driver.process.poll() is None
    assert tool_json("stat", "counters", "-i", driver.instance)["auth_refused"] == 1


def test_config_shows_what_the_driver_runs_with(driver: DriverProcess) -> None:
    done = tool("config", "-i", driver.instance)
    assert f'instance = "{driver.instance}"' in done.stdout
    assert tool_json("config", "-i", driver.instance)["driver"]["instance"] == driver.instance


def test_a_second_driver_is_refused_naming_the_first(driver: DriverProcess) -> None:
    done = subprocess.run(
        [*SHMDRIVER, "run", "-i", driver.instance],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert str(driver.process.pid) in done.stderr
    assert "Traceback" not in done.stderr


def test_watch_is_page_after_page_in_a_pipe_until_ctrl_c(driver: DriverProcess) -> None:
    watch = subprocess.Popen(
        [*SHMDRIVER, "stat", "--watch", "--interval", "0.05", "-i", driver.instance],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert watch.stdout is not None
    assert driver.instance.encode() in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=PATIENCE_S)
    assert b"Traceback" not in err
    assert watch.returncode == 0


def test_watch_is_a_live_screen_on_a_terminal_and_gives_it_back(driver: DriverProcess) -> None:
    ours, theirs = pty.openpty()
    watch = subprocess.Popen(
        [*SHMDRIVER, "stat", "--watch", "--interval", "0.05", "-i", driver.instance],
        stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm", "COLUMNS": "90"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while shown.count(b"Ctrl-C ends") < 1 or shown.count(b"heartbeat") < 3:
            shown += os.read(ours, 65536)
        watch.send_signal(signal.SIGINT)
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # EIO: nobody has the other end any more
            pass
        _, err = watch.communicate(timeout=PATIENCE_S)
    finally:
        os.close(ours)
    assert shown.startswith(b"\x1b[?1049h")
    assert shown.endswith(b"\x1b[?25h\x1b[?1049l")
    assert shown.count(b": none") == 1  # what stays as it is is written once
    assert b"Traceback" not in err
    assert watch.returncode == 0
