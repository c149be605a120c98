"""Attaching anew, for clients with ``reconnect=True``: after a revocation, and to another driver.

A handle that is told that its lease has ended leaves (its lines are free for others), and from then on each
call has it attached again: in the same role, with the same arguments, to whichever driver serves. A thread of
the client does that (attempts.py), because a driver may not answer; calls that may wait wait for it, others
find at a later call that it is done. The native handle behind the Python object changes; the object stays.

What was missed is counted from what both sides know, the end of the epoch that was left and the place where
reading goes on, so it is exact, or said to be unknown (None), never guessed.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from shmdriver import errors
from shmdriver._native import lib
from shmdriver.client import directory
from shmdriver.client.aio import silence
from shmdriver.client.attach import acquire
from shmdriver.client.attempts import Attempt, change_news
from shmdriver.client.link import TRY_AGAIN_NS, nap
from shmdriver.client.log import tell_of
from shmdriver.client.message import LostRange
from shmdriver.errors import Code, Reason
from shmdriver.late import LATE_IMPORT

if TYPE_CHECKING:
    from shmdriver.client.attach import AttachSpec
    from shmdriver.client.client import Client
    from shmdriver.client.consumer import Consumer
    from shmdriver.client.link import Link
    from shmdriver.client.producer import Producer

__all__ = [
    "ConsumerComeback",
    "OrphanLook",
    "ProducerComeback",
    "Reattachment",
    "epoch_before",
    "left_behind",
    "removed_error",
]

KEPT = int(lib.SHMD_LOST_RANGES)
ORPHAN_LOOK_NS = 1_000_000_000
SEAL_NS = 1_000_000_000  # sealing takes microseconds, but the driver may have to wait for a core
ATTACH_S = 1.0  # an attach takes microseconds: a driver that has not answered by then hangs
GRACE_NS = 100_000_000  # the first call waits so long: a driver that serves answers far sooner
UNKNOWN_SEQ = 2**64 - 1
DRIVER_ENDS = (Reason.SHUTDOWN, Reason.SUPERSEDED)
NOT_YET = (Reason.NONE, Reason.DRAINING, Reason.MAINTENANCE, Reason.STOPPED, Reason.UNKNOWN_CLIENT)


class Reattachment(NamedTuple):
    """One time that a handle was attached anew.

    ``reason`` is why its lease before had ended, ``boot_id`` the driver's
    incarnation now. Before, it had come to ``old_seq`` of epoch ``old_epoch`` (a consumer: the next message
    that it would have read; a producer: how many it had published); now it goes on at ``seq`` of ``epoch``
    (epoch 0: with the next producer). ``lost`` messages in between are missing: a consumer never gets
    them; of a producer's own nobody gets them. None: it cannot be told.
    """

    reason: Reason
    boot_id: int
    old_epoch: int
    old_seq: int
    epoch: int
    seq: int
    lost: int | None


class OrphanLook:
    """Finds out, for a handle that waits, that its segments went with a dead driver; looks once a second."""

    __slots__ = ("__weakref__", "_attempt", "_client", "_looked_ns")

    closed = False  # its owner drops it, and with it its attempt

    def __init__(self, client: Client) -> None:
        self._client = client
        self._looked_ns = time.monotonic_ns()
        self._attempt: Attempt | None = None  # to connect to another driver

    @property
    def is_due(self) -> bool:
        """Whether the next look is one."""
        return self._attempt is not None or time.monotonic_ns() - self._looked_ns >= ORPHAN_LOOK_NS

    @property
    def reconnects(self) -> bool:
        """Whether the handle goes over to another driver."""
        return self._client.reconnect

    def is_orphan(self, link: Link) -> bool:
        """Whether nobody will ever adopt what ``link`` is mapped to. Never waits for a driver.

        With ``reconnect=True`` only when another driver serves, and once the client is connected to that.
        """
        if not self.is_due:
            return False
        attempt = self._attempt
        if attempt is None:
            self._looked_ns = time.monotonic_ns()
            if link.driver_alive():
                return False
            if not self._client.reconnect:
                return _was_removed(link)
            attempt = self._attempt = Attempt(self, partial(_goes_over, self._client, link))
        self._client._attempts_here.see_to(attempt)
        if not attempt.is_over:
            return False
        self._attempt = None
        return bool(attempt.take())


def _goes_over(client: Client, link: Link) -> bool:
    """Connects ``client`` to another driver than that of ``link``, if one serves. Whether it is connected."""
    try:
        return client._connected(ATTACH_S) is not link
    except (errors.DriverUnavailable, errors.AttachTimeout, errors.AttachRejected, errors.LayoutMismatch):
        return False


def _was_removed(link: Link) -> bool:
    """Whether the instance has other segments by now, or none. Those of another layout version are others."""
    with LATE_IMPORT:
        from shmdriver.observe import Instance

    try:
        with Instance(link.instance, link.owner) as instance:
            return instance.boot_id != link.boot_id
    except (errors.DriverUnavailable, errors.LayoutMismatch):  # ours were complete, and of this version
        return True
    except errors.ShmDriverError:
        return False  # it cannot be told now


def removed_error(link: Link, who: str) -> errors.DriverUnavailable:
    """For whoever finds itself an orphan and does not reconnect."""
    return errors.DriverUnavailable(
        f"{who}: its driver has gone and its segments were removed, so that nobody new can come; connect "
        "again, or with reconnect=True",
        instance=link.instance,
    )


class _Left(NamedTuple):
    """Where a handle was when it left."""

    reason: Reason
    boot_id: int
    stream_id: int
    epoch: int
    seq: int
    end_seq: int  # of that epoch, as far as it goes
    unseen: dict[int, int | None]  # how many messages each later epoch of that boot has; None: not known


class _Comeback:
    """Of one handle: how to attach it anew, and what became of the times before."""

    __slots__ = ("_attempt", "_look", "history", "left", "prepare", "spec")

    def __init__(self, spec: AttachSpec) -> None:
        self.spec = spec
        self.left: _Left | None = None  # it has left, and is not attached
        self.history: deque[Reattachment] = deque(maxlen=KEPT)
        self._attempt: Attempt | None = None  # to attach anew, after it has left
        self._look = OrphanLook(spec.client)
        self.prepare: Callable[[Any], object] | None = None  # what a new native handle is told first

    def note(self, again: Reattachment) -> None:
        """It is attached anew."""
        self.history.append(again)
        role = "its producer" if self.spec.is_producer else "a consumer"
        lost = "an unknown number of" if again.lost is None else again.lost
        text = (
            "attached anew as %s, because its lease had ended (%s): at seq %d of epoch %d, %s messages lost"
        )
        why = again.reason.words
        tell_of(self.spec.stream, "WARNING", text, role, why, again.seq, again.epoch, lost)

    def covers(self, error: Exception) -> bool:
        """Whether attaching anew is the answer to ``error``."""
        if isinstance(error, errors.LeaseRevoked):
            return True
        if isinstance(error, errors.ProducerLost):
            return error.reason in DRIVER_ENDS
        return isinstance(error, errors.HandleClosed) and self.left is not None

    def is_orphan(self, link: Link) -> bool:
        """Whether to leave ``link``, whose driver has gone, for another one, which serves."""
        return self.left is None and self._look.is_orphan(link)

    def give_up(self) -> None:
        """Its handle was closed: what is attached in vain ends at once."""
        self._attempt = None
        change_news()  # whoever waits for it beside others looks again

    def _attached(self, handle: Consumer | Producer, wait_ns: int, fd_owner: Consumer | None = None) -> Any:
        """What was attached anew, as of acquire(), or None: not yet. ``wait_ns`` at most were waited.

        The first call waits up to GRACE_NS, unless the handle is read by way of ``fd_owner``'s fd: then the
        fd tells when it is time to call again. Raises AttachRejected for good reasons, HandleClosed.
        """
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = Attempt(handle, self._try_once)
            wait_ns = wait_ns if fd_owner is not None else wait_ns or GRACE_NS
        if fd_owner is not None and attempt.ring is None:
            attempt.ring = silence(fd_owner)
        self.spec.client._attempts_here.see_to(attempt)
        if wait_ns > 0:
            attempt.wait(wait_ns)
        if handle._handle is None:
            handle._check_open()
        if not attempt.is_over:
            return None
        self._attempt = None
        return attempt.take()

    def _try_once(self) -> tuple[Any, Link] | None:
        """One attach, made in the client's attach thread. Returns None when it has to be tried again.

        Raises AttachRejected when the driver refuses for good, HandleClosed.
        """
        try:
            found = acquire(self.spec, ATTACH_S, waits=False)
            if self.prepare is not None:
                self.prepare(found[0])
            return found
        except (errors.DriverUnavailable, errors.AttachTimeout, errors.LeaseRevoked):
            pass
        except errors.AttachRejected as error:
            if error.code != Code.REJECTED or error.reason not in NOT_YET:
                raise
        return None


class ConsumerComeback(_Comeback):
    """A consumer's: what it has lost before is kept here, because a native handle counts for itself."""

    __slots__ = ("_base_epoch", "lost", "ranges", "skipped")

    def __init__(self, spec: AttachSpec) -> None:
        super().__init__(spec)
        self.lost = 0
        self.skipped = 0
        self.ranges: deque[LostRange] = deque(maxlen=KEPT)
        self._base_epoch = 0

    def note_base(self, consumer: Consumer) -> None:
        """After an attach: remembers the last epoch before it. Messages up to there do not count as lost."""
        self._base_epoch = epoch_before(consumer)

    def come_back(self, consumer: Consumer, reason: int, wait_ns: int, spoilt: int = 0) -> None:
        """Attaches ``consumer`` anew, or begins to: then it has another native handle, or waits still.

        ``spoilt``: how many of the last messages were overwritten before they were used.
        """
        left = self.left or self._leave(consumer, reason, spoilt)
        found = self._attached(consumer, wait_ns, consumer if consumer._settles else None)
        if found is None:
            return
        if consumer._handle is None:
            consumer._check_open()
        consumer._handle, consumer._link = found  # no call in between: what is closed stays so
        info = consumer._info()
        is_same = (consumer._link.boot_id, int(info.stream_id)) == (left.boot_id, left.stream_id)
        if is_same and int(info.epoch) == left.epoch:
            lib.shmd_consumer_begin_at(found[0], left.epoch, left.seq)
            info = consumer._info()
        consumer._watch_again()
        lost = 0 if consumer.delivery == "latest" else self._count(consumer, left, info, is_same=is_same)
        self.left = None
        self.note_base(consumer)
        boot_id = consumer._link.boot_id
        seq = int(info.position)
        self.note(Reattachment(left.reason, boot_id, left.epoch, left.seq, int(info.epoch), seq, lost))

    def _leave(self, consumer: Consumer, reason: int, spoilt: int) -> _Left:
        info = consumer._info()
        epoch = int(info.epoch) or self._base_epoch
        end_seq = int(lib.shmd_consumer_end_seq(consumer._last_handle))
        unseen = _epochs_after(consumer, epoch)
        boot_id, stream_id = consumer._link.boot_id, int(info.stream_id)
        seq = int(info.position) - spoilt
        left = _Left(Reason(reason), boot_id, stream_id, epoch, seq, end_seq, unseen)
        self.ranges.extend(consumer._own_lost_ranges())
        self.lost += int(info.lost)
        self.skipped += int(info.skipped)
        self.left = left
        consumer._leave()
        return left

    def _count(self, consumer: Consumer, left: _Left, info: Any, *, is_same: bool) -> int | None:
        """Notes what lies between where it was and where it goes on; how much, None when not all is known."""
        epoch, seq = int(info.epoch), int(info.position)
        if is_same and epoch == left.epoch and epoch:
            return self._note(epoch, left.seq, seq)
        index = int(info.stream_index)
        authority = consumer._link.authority
        sealed = directory.sealed_epochs(authority, index)
        until = epoch or directory.first_wired_epoch(authority, index, int(info.gate_index))
        # It may have gone on after this consumer had left, and been sealed since.
        end_seq = sealed.get(left.epoch, left.end_seq) if is_same else left.end_seq
        lost = self._note(left.epoch, left.seq, end_seq) if left.epoch else 0
        missed: list[tuple[int, int | None]] = [] if is_same else list(left.unseen.items())
        after = left.epoch if is_same else directory.epochs_before(authority, index)
        missed += [(number, sealed.get(number)) for number in range(after + 1, until)]
        for number, count in missed:
            lost += self._note(number, 0, count or 0)
        lost += self._note(epoch, 0, seq) if epoch else 0
        return None if any(count is None for _, count in missed) else lost

    def _note(self, epoch: int, first: int, end: int) -> int:
        own = range(first, end)
        shards = int(self.spec.options.shards)
        if shards > 1:
            first += (int(self.spec.options.shard) - first) % shards
            own = range(first, end, shards)
        if own:
            self.lost += len(own)
            self.ranges.append(LostRange(epoch, own[0], own[-1]))
        return len(own)


def epoch_before(consumer: Consumer) -> int:
    """The last epoch before those that a consumer, attached just now, is to have."""
    info = consumer._info()
    index, gate = int(info.stream_index), int(info.gate_index)
    return directory.first_wired_epoch(consumer._link.authority, index, gate) - 1


def left_behind(consumer: Consumer, base_epoch: int) -> int | None:
    """How many messages a consumer whose lease has ended will not hand out any more; None: not known.

    Epochs up to ``base_epoch``, but for the one that it reads, do not count.
    """
    info = consumer._info()
    rest = max(0, int(lib.shmd_consumer_end_seq(consumer._last_handle)) - int(info.position))
    unseen = _epochs_after(consumer, max(int(info.epoch), base_epoch)).values()
    return None if None in unseen else rest + sum(count or 0 for count in unseen)


def _epochs_after(consumer: Consumer, epoch: int) -> dict[int, int | None]:
    """How many messages each later epoch of its stream has; None: not known."""
    index = int(consumer._info().stream_index)
    authority = consumer._link.authority
    sealed = directory.sealed_epochs(authority, index)
    later = range(epoch + 1, directory.epoch_count(authority, index) + 1)
    return {number: sealed.get(number) for number in later}


class ProducerComeback(_Comeback):
    """A producer's."""

    __slots__ = ("_met_ns",)

    def __init__(self, spec: AttachSpec) -> None:
        super().__init__(spec)
        self._met_ns = 0  # when a seal was met that was not complete

    def come_back(self, producer: Producer, reason: int, wait_ns: int) -> None:
        """Attaches ``producer`` anew, or begins to: then it has another native handle, or waits still."""
        left = self.left
        if left is None:
            info = producer._info()
            if int(info.sealed_seq) == UNKNOWN_SEQ and wait_ns > 0 and self._is_being_sealed(producer):
                nap(min(wait_ns, TRY_AGAIN_NS))  # for SEAL_NS at most; no handle is left to be woken by
                return
            self._met_ns = 0
            boot_id = producer._link.boot_id
            epoch, seq, end_seq = int(info.epoch), int(info.seq), int(info.sealed_seq)
            left = self.left = _Left(Reason(reason), boot_id, int(info.stream_id), epoch, seq, end_seq, {})
            producer._leave()
        found = self._attached(producer, wait_ns)
        if found is None:
            return
        if producer._handle is None:
            producer._check_open()
        producer._handle, producer._link = found  # as there
        self.left = None
        info = producer._info()
        lost = None if left.end_seq == UNKNOWN_SEQ else max(0, left.seq - left.end_seq)
        boot_id = producer._link.boot_id
        self.note(Reattachment(left.reason, boot_id, left.epoch, left.seq, int(info.epoch), 0, lost))

    def _is_being_sealed(self, producer: Producer) -> bool:
        """Whether the seal may still come: a driver lives, or the one that supersedes it is at work yet."""
        now_ns = time.monotonic_ns()
        self._met_ns = self._met_ns or now_ns
        return producer._link.driver_alive() or now_ns - self._met_ns < SEAL_NS
