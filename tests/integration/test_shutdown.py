"""Ending a driver that is in use: what its clients see, who may ask for it, what the tools say meanwhile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver._native import ffi, lib
from shmdriver.cli.admin import send, signed_request, token_of
from shmdriver.driver.collect import collect
from shmdriver.errors import (
    AttachRejected,
    DriverUnavailable,
    LeaseRevoked,
    ProducerLost,
    Reason,
    ShmDriverError,
)
from shmdriver.observe import Instance
from tests.chaos.stage import HEALTHY_S, wait_until
from tests.tool import tool

PATIENCE_S = 60
RUNNING = ("healthy", "degraded")  # the latter for some seconds after a tick that a busy machine held up
SHMDRIVER = [sys.executable, "-m", "shmdriver"]


SOON = "policies.shutdown_timeout_ms=600"
DRAINED_BEFORE = (
    "policies.shutdown_timeout_ms=3600000"  # it ends because nobody holds it any more, or the test hangs
)


class DriverProcess:
    """``shmdriver run`` of one instance, and commands for it, with a runtime directory of their own."""

    def __init__(self, instance: str, runtime: Path) -> None:
        self.instance = instance
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}

    def start(self, *settings: str) -> None:
        options = [word for setting in settings for word in ("--set", setting)]
        self.process = subprocess.Popen(
            [*SHMDRIVER, "run", "-i", self.instance, *options],
            stderr=subprocess.PIPE, text=True, env=self.environment,
        )  # fmt: skip
        assert self.process.stderr is not None
        assert any(" serves: " in line for line in self.process.stderr)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", self.environment["XDG_RUNTIME_DIR"])
            return tool(*arguments, "-i", self.instance)

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all output of a command."""
        done = self.command(*arguments)
        return done.returncode, done.stdout + done.stderr

    def join(self) -> int:
        """Awaits its end; its exit code."""
        _, self.log = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


@pytest.fixture
def driver(instance_name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DriverProcess]:
    driver = DriverProcess(instance_name, tmp_path)
    driver.start(getattr(request, "param", SOON))
    yield driver
    if driver.process.poll() is None:
        driver.process.kill()
        driver.join()
    collect(instance_name)


def segments(instance: str) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"shmd.{instance}.*")]


def test_a_driver_that_cannot_be_asked_is_not_told_to_be_gone(
    driver: DriverProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", driver.environment["XDG_RUNTIME_DIR"])
    with Instance(driver.instance) as view:
        folder = ffi.string(view._mapped().folder).decode()
        socket = Path(folder) / "socket"
        socket.unlink()
        socket.symlink_to("nowhere")
        with pytest.raises(ShmDriverError, match=r"it lives.*no driver's socket stands in") as told:
            send(view, lib.SHMD_REQUEST_ADMIN, 0, reason="", token_file=None, timeout_s=0.2)
    assert told.type is not DriverUnavailable


# ---- clients that hold on


def test_everybody_learns_of_the_end_at_the_next_call_and_drains_what_was_committed(
    driver: DriverProcess,
) -> None:
    with shmdriver.connect(driver.instance) as client:
        stays, follows = client.consumer("s"), client.consumer("s", follow=True)
        lossy = client.consumer("s", delivery="lossy")
        producer = client.producer("s", slots=64, max_message=100_000)
        for number in range(20):
            producer.publish(bytes([number]) * (10 if number % 2 else 50_000))
        for consumer in (stays, follows, lossy):
            assert consumer.lag == 20, "each has looked, so that it has mapped what it is to drain"
        driver.process.send_signal(signal.SIGTERM)
        assert driver.join() == 0
        assert segments(driver.instance) == []
        with pytest.raises(LeaseRevoked) as revoked:
            producer.publish(b"one more")
        assert revoked.value.reason == Reason.SHUTDOWN
        assert revoked.value.sealed_seq == 20
        for consumer in (stays, follows, lossy):
            for number in range(20):
                message = consumer.read(timeout=0)
                assert message is not None
                assert message.data[0] == number
            with pytest.raises((ProducerLost, LeaseRevoked)) as over:
                consumer.read(timeout=0)
            assert getattr(over.value, "reason", None) == Reason.SHUTDOWN
            assert consumer.lost == 0
        with pytest.raises(DriverUnavailable):
            client.consumer("s", attach_timeout=1)


@pytest.mark.parametrize("wait", ["adaptive", "sleep"])
@pytest.mark.parametrize("has_producer", [True, False])
def test_who_waits_is_woken_by_the_end(driver: DriverProcess, wait: Any, has_producer: bool) -> None:
    with shmdriver.connect(driver.instance) as client, shmdriver.connect(driver.instance) as other:
        consumer = client.consumer("s", wait=wait)
        producer = other.producer("s") if has_producer else None
        told: list[BaseException] = []

        def read() -> None:
            try:
                consumer.read()
            except shmdriver.ShmDriverError as error:
                told.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        driver.process.send_signal(signal.SIGTERM)
        assert driver.join() == 0
        thread.join(PATIENCE_S)
        assert [getattr(error, "reason", None) for error in told] == [Reason.SHUTDOWN]
        del producer


def test_a_blocked_publish_is_woken_by_the_end(driver: DriverProcess) -> None:
    with shmdriver.connect(driver.instance) as client, shmdriver.connect(driver.instance) as other:
        consumer = other.consumer("s")
        producer = client.producer("s", slots=64)
        while producer.try_publish(b"x"):
            pass
        told: list[BaseException] = []

        def publish() -> None:
            try:
                producer.publish(b"one more")
            except shmdriver.ShmDriverError as error:
                told.append(error)

        thread = threading.Thread(target=publish)
        thread.start()
        driver.process.send_signal(signal.SIGTERM)
        assert driver.join() == 0
        thread.join(PATIENCE_S)
        assert [getattr(error, "reason", None) for error in told] == [Reason.SHUTDOWN]
        assert [getattr(error, "sealed_seq", None) for error in told] == [64]
        del consumer


def test_notice_tells_reason_and_mode(driver: DriverProcess) -> None:
    with shmdriver.connect(driver.instance) as client, client.consumer("s"):
        events: list[Any] = []
        over = threading.Event()

        def note(event: Any) -> None:
            events.append(event)
            if event.kind == "driver_shutdown":
                over.set()

        client.on_event(note)
        assert driver.ask("shutdown", "--reason", "moving house")[0] == 0
        assert over.wait(PATIENCE_S)
        kinds = [event.kind for event in events]
        changes = [event.text for event in events if event.kind == "lifecycle_changed"]
        # On a busy machine a late tick may degrade the driver before: then it drains from there.
        drains, stops = [text for text in changes if "draining" in text]
        assert re.match(r"running\.(healthy|degraded) -> draining; requests ", drains)
        assert stops == "draining -> stopped"
        assert "stream_announce" in kinds[kinds.index("lifecycle_changed") :]
        notice = next(event for event in events if event.kind == "driver_shutdown")
        assert (notice.reason, notice.value) == (Reason.SHUTDOWN, lib.SHMD_SHUTDOWN_END)
        assert "moving house" in notice.text


@pytest.mark.parametrize("driver", [DRAINED_BEFORE], indirect=True)
def test_draining_lets_everybody_finish(driver: DriverProcess) -> None:
    with shmdriver.connect(driver.instance) as client:
        consumer, producer = client.consumer("s"), client.producer("s")
        assert driver.ask("drain")[0] == 0
        with Instance(driver.instance) as view:
            wait_until(lambda: view.driver().lifecycle == "draining", "the state, after the answer")
        with pytest.raises(AttachRejected) as refused:
            client.consumer("s")
        assert refused.value.reason == Reason.DRAINING
        producer.publish(b"last words")
        producer.close()
        assert [bytes(message) for message in consumer] == [b"last words"]
        consumer.close()
    assert driver.join() == 0


def test_killed_while_draining_the_next_driver_ends_it_by_the_same_deadline(
    instance_name: str, tmp_path: Path
) -> None:
    driver = DriverProcess(instance_name, tmp_path)
    driver.start(DRAINED_BEFORE)
    with shmdriver.connect(instance_name) as client, shmdriver.connect(instance_name) as other:
        consumer, producer = client.consumer("s"), other.producer("s")
        producer.publish(b"kept")
        assert driver.ask("drain")[0] == 0
        with Instance(instance_name) as view:
            # The driver answers before it is in the state that it announces.
            deadline_ns = wait_until(lambda: view.driver().shutdown_deadline_ns, "the driver to drain")
            driver.process.kill()
            driver.join()
            driver.start(DRAINED_BEFORE)
            found = view.driver()
            assert (found.lifecycle, found.shutdown_deadline_ns) == ("draining", deadline_ns)
        code, text = driver.ask("stat", "--check")
        assert (code, "draining" in text) == (1, True)
        with pytest.raises(AttachRejected, match="draining"):
            client.consumer("t")
        assert bytes(consumer.read() or b"") == b"kept"
        producer.close()
        consumer.close()
        assert driver.join() == 0
    assert segments(instance_name) == []


# ---- who may ask


COMMANDS = {
    "maintenance": ["maintenance", "on"],
    "drain": ["drain"],
    "shutdown": ["shutdown", "--timeout", "0"],
    "handover": ["shutdown", "--handover", "--timeout", "0"],
}


def test_commands_without_the_right_token_change_nothing_and_are_counted(
    driver: DriverProcess, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    wrong.chmod(0o600)
    missing = tmp_path / "missing"
    asked = {
        (name, path): driver.command(*command, "--token-file", str(path))
        for name, command in COMMANDS.items()
        for path in ((wrong, missing) if name == "shutdown" else (wrong,))
    }
    for (_, path), done in asked.items():
        assert done.returncode == 1
        assert done.stdout == ""
        assert ("wrong shutdown token" if path is wrong else str(missing)) in done.stderr
        assert len(done.stderr.splitlines()) == 1
    with Instance(driver.instance) as view:
        assert view.counters()["auth_refused"] == len(COMMANDS)
        assert view.driver().lifecycle in RUNNING
        (error,) = view.errors()
        assert (error.count, error.text) == (
            4,
            "wrong shutdown token: use the file that this driver was started with",
        )
        refusals = [event for event in view.events() if event.kind == "admin_response"]
        assert [event.reason for event in refusals] == ["token"] * 4
    wait_until(lambda: driver.ask("stat", "--check")[0] == 0, "the driver to be healthy", HEALTHY_S)


@pytest.mark.parametrize("driver", [DRAINED_BEFORE], indirect=True)
def test_replayed_request_of_every_kind_is_refused(driver: DriverProcess) -> None:
    out = ffi.new("shmd_client **")
    assert lib.shmd_connect(driver.instance.encode(), 5_000_000_000, out) == 0
    answer = ffi.new("shmd_event_t *")
    with pytest.MonkeyPatch.context() as patch, Instance(driver.instance) as view:
        patch.setenv("XDG_RUNTIME_DIR", driver.environment["XDG_RUNTIME_DIR"])
        token = token_of(view, None)
        client_id = int(lib.shmd_client_id(out[0]))
        kinds = [
            (lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_MAINTENANCE_ON),
            (lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_SNAPSHOT),
            (lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_MAINTENANCE_OFF),
            (lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END),
        ]
        with shmdriver.connect(driver.instance) as holder, holder.consumer("s"):
            for kind, what in kinds:
                request = signed_request(view, token, kind, what, "a test", client_id, 5_000_000_000)
                for text in (b"", b"was used already"):
                    code = lib.shmd_client_request(out[0], request, answer, 5_000_000_000)
                    if text:  # as somebody does who recorded it
                        assert (code, int(answer.reason)) == (lib.SHMD_E_REJECTED, Reason.TOKEN)
                        assert text in ffi.string(answer.text)
                    else:
                        assert code == 0
            while view.driver().lifecycle in RUNNING:
                assert driver.process.poll() is None, "it drains, for its consumer's sake"
                os.sched_yield()  # the answer comes before the state that it announces
            assert view.driver().lifecycle == "draining", "the replay did not stop it at once"
            assert view.counters()["auth_refused"] == len(kinds)
    lib.shmd_disconnect(out[0])
    assert driver.join() == 0


def test_commands_with_the_token_do_what_they_say(driver: DriverProcess) -> None:
    with shmdriver.connect(driver.instance) as client:
        consumer, producer = client.consumer("s"), client.producer("s")
        assert driver.ask("maintenance", "on", "--reason", "a move")[0] == 0

        def is_in_maintenance() -> bool:
            code, text = driver.ask("stat", "--check")
            return code == 1 and "maintenance" in text

        wait_until(is_in_maintenance, "the state, after the answer")
        with pytest.raises(AttachRejected) as refused:
            client.consumer("t")
        assert refused.value.reason == Reason.MAINTENANCE
        producer.publish(b"goes on")
        assert bytes(consumer.read() or b"") == b"goes on"
        driver.process.kill()
        driver.join()
        driver.start(SOON)
        with Instance(driver.instance) as view:
            assert view.driver().lifecycle == "maintenance", "it outlives the driver"
        assert driver.ask("maintenance", "off")[0] == 0
        client.consumer("t").close()
        assert driver.ask("shutdown", "--handover")[0] == 0
        assert driver.join() == 0
        assert driver.ask("stat", "--check")[0] == 2
        producer.publish(b"between")
        driver.start(SOON)
        assert bytes(consumer.read() or b"") == b"between"
        assert driver.ask("shutdown")[0] == 0
        assert driver.join() == 0
        assert segments(driver.instance) == []
