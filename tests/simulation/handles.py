"""Handles of simulated processes. What is read is compared with what was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmdriver._native import lib
from shmdriver.errors import Reason
from tests.simulation.model import OPEN, RETIRED, SEALED, SEALING, LeaseModel
from tests.simulation.native import ffi
from tests.simulation.rules import demand

if TYPE_CHECKING:
    from tests.simulation.actors import Process

POLL_MAX = 256
FOLLOW = int(lib.SHMD_ATTACH_FOLLOW)
_rc = ffi.new("int *")
_messages = ffi.new("sim_message_t[]", POLL_MAX)
_state = ffi.new("uint64_t[8]")


class Producer:
    """A producer's handle."""

    def __init__(self, process: Process, handle: int, model: LeaseModel) -> None:
        self.process, self.handle, self.model = process, handle, model
        self.epoch = process.boot.epochs[(model.record.stream_id, model.record.epoch)]
        self.claimed = self.over = False

    def _note(self, done: int, rc: int) -> None:
        boot = self.process.boot
        self.epoch.committed += done
        if done:
            demand(self.epoch.sealed is None, "nothing is committed past a seal that stands", self.model)
        if rc == lib.SHMD_E_REVOKED:
            self.over = True
            demand(
                not self.model.live or not boot.settled, "only an ended lease stops a producer", self.model
            )
        else:
            demand(rc in (0, lib.SHMD_BACK_PRESSURED, lib.SHMD_E_CLAIM), "a publish has a known outcome", rc)

    def publish(self, size: int, count: int, in_place: bool) -> tuple[int, int]:
        done = int(self.process.native.sim_publish(self.handle, size, count, int(in_place), _rc))
        self._note(done, _rc[0])
        return done, int(_rc[0])

    def publish_headless(self, count: int) -> int:
        done = int(self.process.native.sim_publish_headless(self.handle, count))
        self.epoch.committed += done
        return done

    def claim(self, size: int) -> int:
        rc = int(self.process.native.sim_claim(self.handle, size))
        self.claimed = rc == 0
        self._note(0, rc)
        return rc

    def finish_claim(self, commit: bool) -> int:
        self.claimed = False
        if not commit:
            return int(self.process.native.sim_abort(self.handle))
        rc = int(self.process.native.sim_commit(self.handle))
        self._note(int(rc == 0), rc)
        return rc


class Consumer:
    """A consumer's handle, and where it must be by what it was handed out and by its counted losses."""

    def __init__(self, process: Process, handle: int, model: LeaseModel, answer: Any) -> None:
        self.process, self.handle, self.model = process, handle, model
        self.record = model.record
        self.reliable = self.record.delivery == lib.SHMD_DELIVERY_RELIABLE
        self.follows = bool(self.record.flags & FOLLOW)
        self.over = 0
        self.read = 0
        self.lost = self.skipped = 0
        process.native.sim_consumer_state(handle, _state)
        self.epoch, self.next = int(answer.epoch), int(_state[2])
        self.first, self.joined = int(answer.epoch), int(answer.value)
        if self.epoch and self.record.delivery != lib.SHMD_DELIVERY_LATEST:
            demand(self.next == answer.start_seq, "a consumer begins where its answer says", self.model)

    def _epoch(self, number: int) -> Any:
        return self.process.boot.epochs.get((self.record.stream_id, number))

    def _rest(self, until: int) -> tuple[int, bool]:
        """How many messages stand before epoch ``until``; whether all of them were still there."""
        count, kept = 0, True
        for number in range(self.epoch or self.model.record.first_epoch or until, until):
            epoch = self._epoch(number)
            if epoch is None:  # begun and ended within one tick: empty
                continue
            end = epoch.committed if epoch.sealed is None else epoch.sealed
            demand(
                epoch.state >= SEALED or epoch.retired,
                "an epoch is left when it is sealed",
                self.model,
                number,
            )
            rest = end - (self.next if number == self.epoch else 0)
            gone = epoch.retired or epoch.state == RETIRED  # the latter: by a driver that was killed in it
            kept &= not gone or rest == 0
            count += rest
        return count, kept

    def poll(self, limit: int, runs: bool) -> tuple[int, int]:
        native = self.process.native
        count = int(native.sim_poll(self.handle, _messages, min(limit, POLL_MAX), int(runs), _rc))
        rc = int(_rc[0])
        for message in _messages[0:count]:
            self._take(message)
        native.sim_consumer_state(self.handle, _state)
        if rc < 0:
            self.over = rc
            self._ended(rc, int(_state[1]), int(_state[3]), int(_state[4]))
        elif rc == 0:
            self._idle(int(_state[1]), int(_state[3]), int(_state[4]))
        return count, rc

    def _take(self, message: Any) -> None:
        if self.model.liar:  # nothing protects what it reads
            self.read += 1
            return
        number, seq = int(message.epoch), int(message.seq)
        epoch = self._epoch(number)
        plain = (
            number == self.epoch
            and seq == self.next
            and (message.lost, message.skipped) == (self.lost, self.skipped)
        )
        right = message.bad == 0 and message.tag == self.record.stream_id << 48 | number << 32 | seq
        if plain and right and epoch is not None and seq < epoch.committed and epoch.sealed is None:
            self.read += 1
            self.next += 1
            return
        where = f"{self.model}: epoch {number} seq {seq}"
        demand(
            message.bad == 0 and message.tag == self.record.stream_id << 48 | number << 32 | seq,
            "no torn or foreign message is handed out",
            where,
            hex(message.tag),
        )
        demand(epoch is not None and seq < epoch.committed, "only committed messages are read", where)
        demand(epoch.sealed is None or seq < epoch.sealed, "nothing past the seal is read", where)
        self.read += 1
        if number == self.epoch:
            self._account(seq - self.next, True, message.lost, message.skipped, where)
        else:
            demand(number > self.epoch, "epochs come in order", where)
            rest, kept = self._rest(number)
            self._account(rest + seq, kept, message.lost, message.skipped, where)
        self.epoch, self.next = number, seq + 1

    def _account(self, gap: int, kept: bool, lost: int, skipped: int, where: str) -> None:
        counted = int(lost) - self.lost + int(skipped) - self.skipped
        if self.record.delivery == lib.SHMD_DELIVERY_LOSSY:
            demand(int(skipped) == 0, "a lossy consumer skips nothing", where)
        if self.reliable and not self.model.liar:
            free = max(self.joined - self.next, 0) if self.epoch == self.first else 0
            demand(
                0 <= gap <= free,
                "a reliable consumer gets every message once, in order",
                where,
                f"gap {gap}, next {self.next}, joined {self.joined}",
            )
        if kept and not self.model.liar:
            demand(gap == counted, "counted losses add up", where, f"gap {gap}, counted {counted}")
        else:
            self.process.boot.retired_unread += max(gap - counted, 0)
            demand(self.model.liar or gap >= counted >= 0, "no loss is counted twice", where, gap, counted)
        self.lost, self.skipped = int(lost), int(skipped)

    def _ended(self, rc: int, last: int, lost: int, skipped: int) -> None:
        boot, model = self.process.boot, self.model
        where = f"{model}: ended with {rc}"
        if rc == lib.SHMD_E_REVOKED:
            demand(not model.live or not boot.settled, "only an ended lease stops a consumer", where)
            if model.reason not in (Reason.SHUTDOWN, Reason.SUPERSEDED) or not self.reliable:
                return
        else:
            demand(rc in (lib.SHMD_E_END, lib.SHMD_E_PRODUCER_LOST), "a read has a known outcome", where)
            demand(not self.follows, "a following consumer sees no end", where)
        if not last or model.liar:
            return
        rest, kept = self._rest(last + 1)
        self._account(rest, kept, lost, skipped, where)
        self.epoch, self.next = last + 1, 0
        epoch = self._epoch(last)
        if epoch is None:  # begun and ended within one tick
            return
        if rc != lib.SHMD_E_REVOKED and (
            self.reliable or not epoch.retired
        ):  # it held, or can still see, the reason
            closed = epoch.reason == Reason.CLOSED
            demand((rc == lib.SHMD_E_END) == closed, "only a close is a clean end", where)

    def _idle(self, last: int, lost: int, skipped: int) -> None:
        """Nothing more now: then everything that it may read was read."""
        boot, model = self.process.boot, self.model
        if not boot.settled:
            return
        where = f"{model}: idle"
        demand(model.live, "a consumer whose lease has ended is told so", where, model.reason)
        bit = 1 << self.record.gate
        readable = [
            e.state >> 8
            for stream, epochs in boot.now.streams
            if stream.stream_id == self.record.stream_id
            for e in epochs
            if e.state & 0xFF in (OPEN, SEALING, SEALED) and e.wired_mask & bit
        ]
        newest = max(readable, default=0)
        demand(
            newest <= last or model.liar, "a wired epoch is entered", where, f"epoch {newest}, last {last}"
        )
        epoch = self._epoch(last)
        if epoch is None:
            return
        if last > self.epoch:
            rest, kept = self._rest(last)
            gap, number_next = rest, 0
        else:
            gap, kept, number_next = 0, True, self.next
        if epoch.state == SEALING:
            return
        end = epoch.committed if epoch.sealed is None else epoch.sealed
        self._account(gap + end - number_next, kept and not epoch.retired, lost, skipped, where)
        self.epoch, self.next = last, end
