"""Deploys that roll over PID namespaces: each kills a whole container, and the next one takes its place.

A driver, and a producer and a consumer that stay, are outside. Each container has a producer of a stream that
is read outside, and a reliable consumer of one that is written outside. Its init is killed, and with it all
that is in there. Silence ends nobody within ten minutes, so whatever ends was proved to be dead. There is
room for the clients and consumers of one container only: anything that a deploy leaves behind has the next
one refused.
"""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shmdriver._native import lib
from shmdriver.observe import Instance
from tests.chaos.payload import Board
from tests.chaos.stage import HEALTHY_S, Actor, Stage, Zygote, moves_on, wait_until
from tests.chaos.visitors import usage
from tests.segments import paths_of, runtime_folder_of
from tests.tool import tool

OUTSIDE = 3  # clients that stay: a steady pair, and the reader of what the containers write
STRICT: dict[str, Any] = {
    "policies.lease_timeout_ms": 600_000,
    "policies.limits.clients": OUTSIDE + 2,
    "profiles.default.max_consumers": 2,
}
SMALL = {"slots": 256}
CALM: dict[str, Any] = {"listen_every": 16, "rest_s": 0.001}
FIRST_WRITER = 100
MESSAGES = 50  # each way, before a container is killed


@dataclass(frozen=True)
class Holdings:
    """What may not grow, as far as it can be counted from outside."""

    clients: frozenset[int]
    leases: frozenset[int]
    kept_from_others: int
    epochs: dict[str, int]
    segments: int
    folder: frozenset[str]
    files: int
    threads: int
    mappings: int


class Deploys:
    """Containers, one after the other, and what they show."""

    def __init__(self, stage: Stage, driver: int) -> None:
        self.stage = stage
        self.driver = driver
        self.took_ms: list[float] = []  # from a kill to the end of the leases
        self.sent: dict[int, int] = {}  # by writer: what its container was known to have sent
        self.reader = stage.consumer("steady")
        self.steady = stage.producer("steady", 1, options=SMALL, **CALM)
        self.follower = stage.consumer("app", options={"follow": True})

    def run(self, count: int) -> None:
        """So many deploys. Every second one begins before the driver can have seen the end of the last."""
        self._end(self._begin())
        wait_until(lambda: not self.holdings().epochs["app"], "all that the first one sent to be read")
        before = self.holdings()
        container = self._begin()
        for number in range(1, count):
            if number % 2:
                self._end(container)
                container = self._begin()
            else:
                leases, _ = self._kill(container)
                container = self._begin()
                assert not leases & self.holdings().leases
        self._end(container)
        wait_until(lambda: self.holdings() == before, f"all to be as before: {before}")
        assert len(before.clients) == len(before.leases) == OUTSIDE
        assert before.kept_from_others == 0

    def holdings(self) -> Holdings:
        instance, used = self.stage.instance, usage(self.driver)
        folder = runtime_folder_of(instance, self.stage.zygote.runtime)
        with Instance(instance) as view:
            return Holdings(
                clients=frozenset(client.client_id for client in view.clients(gone=True)),
                leases=frozenset(lease.lease_id for lease in view.leases()),
                kept_from_others=sum(lease.quarantined for lease in view.leases(ended=True)),
                epochs={stream.name: len(stream.epochs) for stream in view.streams()},
                segments=len(paths_of(instance)),
                folder=frozenset(path.name for path in folder.iterdir()),
                files=used["files"],
                threads=used["threads"],
                mappings=used["mappings"],
            )

    def _begin(self) -> Actor:
        """A container whose producer and consumer are at work."""
        writer = FIRST_WRITER + len(self.sent)
        self.sent[writer] = 0
        roles = [
            ["producer", {"stream": "app", "writer": writer, "options": SMALL, **CALM}],
            ["consumer", {"stream": "steady", "name": f"consumer-{writer}"}],
        ]
        container = self.stage.actor("container", roles=roles)
        board = container.board

        self.follower.listen()  # it says a word a writer, and waits when nobody takes them

        def is_at_work() -> bool:
            assert container.alive, (container.listen(), container.log_text())
            return board[Board.SENT] >= MESSAGES and board[Board.WRITER] == 1

        wait_until(is_at_work, f"{container} to write and to read")
        return container

    def _kill(self, container: Actor) -> tuple[set[int], int]:
        """kill -9 of its init. The leases of those in it, and when that was, in ns."""
        writer = max(self.sent)
        names = {f"producer-{writer}", f"consumer-{writer}"}
        leases = {lease.lease_id for lease in self.stage.leases() if lease.client_name in names}
        assert len(leases) == len(names)
        killed_ns = int(lib.shmd_now_ns())
        container.kill_init()
        assert container.join() == signal.SIGKILL, container.log_text()
        self.sent[writer] = container.board[Board.SENT]
        assert container.words("failure") == []
        assert container.board[Board.FAILURES] == 0
        self.stage.dismiss(container)
        return leases, killed_ns

    def _end(self, container: Actor) -> None:
        """Killed, and its leases have ended because its processes were proved to be dead."""
        leases, killed_ns = self._kill(container)

        def ended() -> list[Any]:
            known = self.stage.leases(ended=True)
            found = [lease for lease in known if lease.lease_id in leases and not lease.live]
            return found if len(found) == len(leases) else []

        found = wait_until(ended, f"leases {leases} to end")
        assert {lease.end_reason for lease in found} == {"died"}
        self.took_ms += [(lease.ended_ns - killed_ns) / 1e6 for lease in found]

    def close(self) -> None:
        """Ends those outside in good order: they have lost nothing."""
        moves_on(self.reader)
        self.steady.say("stop")
        sent = self.steady.wait_for("closed")["closed"]
        assert self.reader.wait_for("error")["error"] == "EndOfStream"
        assert self.reader.words("writer") == [{"writer": 1, "first": 0, "next": sent}]
        self.follower.say("stop")
        assert self.follower.wait_for("closed")["lost"] == 0
        runs = {run["writer"]: (run["first"], run["next"]) for run in self.follower.words("writer")}
        assert runs.keys() == self.sent.keys()
        for writer, sent in self.sent.items():
            first, following = runs[writer]
            assert first == 0
            assert following in {sent, sent + 1}, "the last one may have been killed before it was noted"
        for actor in (self.steady, self.reader, self.follower):
            assert actor.words("failure") == []


def roll(stage: Stage, driver: int, count: int) -> None:
    deploys = Deploys(stage, driver)
    deploys.run(count)
    wait_until(lambda: tool("stat", "--check", "-i", stage.instance).returncode == 0, "health", HEALTHY_S)
    deploys.close()
    took = sorted(deploys.took_ms)
    print(
        f"{count} deploys; from kill to the end of a lease: p50 {statistics.median(took):.2f} ms, "
        f"p99 {took[len(took) * 99 // 100]:.2f} ms, most {took[-1]:.2f} ms of {len(took)}"
    )


@pytest.mark.usefixtures("namespaces")
@pytest.mark.fault(6, 35, how="kill -9 of the init of a PID namespace, started anew")
def test_rolling_deploys_use_up_nothing_and_each_death_is_proved(
    make_stage: Callable[..., Stage], fault_cycles: Callable[[int], None]
) -> None:
    stage = make_stage(STRICT)
    assert stage.driver is not None
    roll(stage, stage.driver.pid, 40)
    fault_cycles(40)


@pytest.mark.usefixtures("namespaces", "peer_pidfds")
@pytest.mark.fault(35, how="kill -9 of the init of a PID namespace; the driver is in another one")
def test_rolling_deploys_below_a_driver_that_knows_none_of_their_pids(
    instance_name: str, tmp_path: Path, zygote: Zygote
) -> None:
    """The driver is in a container beside theirs, so that only pidfds from the kernel prove a death."""
    with Stage(instance_name, tmp_path, zygote, **STRICT) as stage:
        container = stage.actor("container", roles=[["driver", {"settings": stage.settings}]])
        wait_until(lambda: " serves: " in container.log_text() or not container.alive, "a driver to serve")
        init = container.wait_for("init")["init"]
        (driver,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        roll(stage, int(driver), 10)
        with Instance(instance_name) as view:
            assert {client.pid for client in view.clients(gone=True)} <= {0}


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("namespaces")
@pytest.mark.fault(6, 35, how="kill -9 of the init of a PID namespace, started anew")
def test_a_thousand_rolling_deploys(
    make_stage: Callable[..., Stage], fault_cycles: Callable[[int], None]
) -> None:
    stage = make_stage(STRICT)
    assert stage.driver is not None
    roll(stage, stage.driver.pid, 1000)
    fault_cycles(1000)
