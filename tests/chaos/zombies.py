"""Producers that are stopped in the middle of a write, replaced, and woken up again."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

from shmdriver._native import ffi, lib
from shmdriver.driver.authentication import read_token, sign_request
from shmdriver.observe import Instance
from tests.chaos.lanes import ProducerLane, Tally
from tests.chaos.payload import Board
from tests.chaos.plan import PRODUCER, Fate, Place
from tests.chaos.stage import Actor, Stage, wait_until
from tests.segments import runtime_folder_of

FIRST_WRITER = 0x5EED_0000_0000_0000  # a number that stands in no segment by chance
MID_WRITE = frozenset(
    {"slot.claimed", "slot.open", "slot.written", "slot.committed", "head.stored", "copy.word"}
    | {"arena.intent", "arena.reference", "claim.open"}
)
STOPS = tuple(place for place in PRODUCER if place.name in MID_WRITE)
SHORT_LEASES = {
    "policies.lease_timeout_ms": 4000, "policies.heartbeat_interval_ms": 100,
    "policies.lease_check_interval_ms": 20,
}  # fmt: skip
EXPIRE_EVERY = 100  # cycles: that one waits for the lease to expire, the others are revoked


class Administrator:
    """Revokes leases, with the token of a stage's driver."""

    def __init__(self, stage: Stage) -> None:
        self._instance = stage.instance
        self._token = read_token(runtime_folder_of(stage.instance, stage.zygote.runtime) / "token")
        self._link = ffi.new("shmd_client **")
        code = lib.shmd_connect(stage.instance.encode(), 10**10, self._link)
        assert code == 0, ffi.string(lib.shmd_last_error())

    def revoke(self, lease_id: int) -> None:
        client = self._link[0]
        request, answer = ffi.new("shmd_request_t *"), ffi.new("shmd_event_t *")
        request.kind, request.admin, request.lease_id = (
            lib.SHMD_REQUEST_ADMIN,
            lib.SHMD_ADMIN_REVOKE,
            lease_id,
        )
        request.deadline_ns = 2**64 - 1
        sign_request(
            request,
            self._token,
            instance=self._instance,
            boot_id=int(lib.shmd_client_boot_id(client)),
            client_id=int(lib.shmd_client_id(client)),
            nonce=time.time_ns(),
        )
        code = lib.shmd_client_request(client, request, answer, 10**10)
        assert code == 0, ffi.string(lib.shmd_last_error())

    def close(self) -> None:
        lib.shmd_disconnect(self._link[0])


class ZombieLane(ProducerLane):
    """Each producer is stopped in mid-write; the next one attaches; then the stopped one wakes.

    Nothing of it may stand in the new epoch, and its next call raises LeaseRevoked with the seal.
    """

    SETTINGS = SHORT_LEASES

    def __init__(self, stage: Stage, stream: str, tally: Tally, rng: Random) -> None:
        super().__init__(stage, stream, tally, rng, first=FIRST_WRITER)
        self._admin = Administrator(stage)

    def run(self, places: Iterable[Place]) -> None:
        """One zombie a place; then a producer that ends cleanly, and the account."""
        before: tuple[Actor, Place, int] | None = None
        for number, place in enumerate(places, 1):
            self.last = place
            zombie = self._stopped(place)
            if before is not None:
                self._wake(*before)
            self._end_lease(expire=number % EXPIRE_EVERY == 0)
            before = (zombie, place, self.writer - 1)
            self.watch()
        end = self.stage.producer(self.stream, self.writer, count=10, options={"slots": 64}, linger=True)
        if before is not None:
            self._wake(*before)
        end.say("stop")
        end.wait_for("closed")
        self.finish(self.writer, 9)
        self.stage.dismiss(end)
        self.account()
        self._admin.close()

    def _stopped(self, place: Place) -> Actor:
        """A producer that is stopped at the place, and what of it has to come."""
        zombie = self.stage.producer(
            self.stream, self.writer, failpoint=place.spec(self.rng, "stop"), **place.options
        )
        wait_until(lambda: zombie.is_stopped, f"{zombie} to be stopped at {place.label}: {zombie.heard}")
        sent = zombie.board[Board.SENT] + (place.fate is Fate.SEEN)
        self._killed[self.writer] = (place, sent, sent)
        self.writer += 1
        return zombie

    def _end_lease(self, *, expire: bool) -> None:
        def producers() -> list[int]:
            leases = [lease for lease in self.stage.leases() if lease.role == "producer"]
            return [lease.lease_id for lease in leases if lease.stream == self.stream]

        if not expire:
            self._admin.revoke(producers()[0])
        wait_until(lambda: not producers(), "the stopped producer's lease to end")

    def _wake(self, zombie: Actor, place: Place, writer: int) -> None:
        zombie.go_on()
        woken = zombie.wait_for("error")
        assert woken["error"] == "LeaseRevoked", f"{place.label}: {woken}"
        sealed = self._killed[writer][1]
        assert woken["sealed_seq"] == sealed, f"{place.label}: sealed at {woken['sealed_seq']}, sent {sealed}"
        found = self._bytes_of(writer)
        if found:
            self.tally.defect(place, "torn", f"the zombie wrote into the new epoch: {found}")
        zombie.join()
        self.stage.dismiss(zombie)
        self.tally.done(place, "stops")

    def _bytes_of(self, writer: int) -> list[str]:
        """The open epoch's segments in which a writer's number stands."""
        with Instance(self.stage.instance) as view:
            stream = next(stream for stream in view.streams() if stream.name == self.stream)
            epoch = stream.epochs[-1]
        assert epoch.state == "open", epoch.state
        trace = struct.pack("<Q", writer)
        names = (epoch.data_name, epoch.gates_name)
        return [name for name in names if trace in (Path("/dev/shm") / name.strip("/")).read_bytes()]
