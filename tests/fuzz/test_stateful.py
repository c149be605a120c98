"""The public API against a model: one stream, one producer after another, consumers of every kind.

The model knows every message of every epoch in order. Reliable consumers must get exactly what was committed
after they attached, in order, then the end that the producer chose; lossy and latest ones may miss messages,
never see one twice, out of order or changed, and what a lossy one missed is what it counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import shmdriver

SLOTS = 64
PATIENCE_S = 60.0


@dataclass
class Epoch:
    messages: list[bytes] = field(default_factory=list)
    end: str = ""  # "", clean, aborted


@dataclass
class Reader:
    handle: shmdriver.Consumer
    delivery: str
    follow: bool
    epoch: int  # index of the epoch that it reads; len(epochs): the next one
    position: int
    got: int = 0
    over: str = ""


class Streams(RuleBasedStateMachine):
    """One example: a stream of its own within one driver."""

    client: shmdriver.Client
    serial = 0

    @initialize()
    def begin(self) -> None:
        type(self).serial += 1
        self.stream = f"stream-{type(self).serial}"
        self.producer: shmdriver.Producer | None = None
        self.epochs: list[Epoch] = []
        self.readers: list[Reader] = []

    def teardown(self) -> None:
        for reader in getattr(self, "readers", []):
            reader.handle.close()
        producer = getattr(self, "producer", None)
        if producer is not None:
            producer.close()

    # -- the producer

    @precondition(lambda self: self.producer is None)
    @rule()
    def attach_producer(self) -> None:
        try:
            self.producer = self.client.producer(self.stream, slots=SLOTS, max_message=2000, arena=1 << 16)
        except shmdriver.AttachRejected as error:
            if error.reason != shmdriver.Reason.UNDRAINED:
                raise
            assert any(reader.delivery == "reliable" and not reader.over for reader in self.readers)
            return
        self.epochs.append(Epoch())

    @precondition(lambda self: self.producer is not None)
    @rule(sizes=st.lists(st.sampled_from((0, 1, 8, 39, 40, 41, 500, 2000)), min_size=1, max_size=12))
    def publish(self, sizes: list[int]) -> None:
        assert self.producer is not None
        for size in sizes:
            data = self._payload(size)
            if self.producer.try_publish(data) == 0:
                assert self._held_back(), "no room although nobody holds a full ring"
                return
            self.epochs[-1].messages.append(data)

    @precondition(lambda self: self.producer is not None)
    @rule(size=st.sampled_from((1, 40, 41, 1999)), abort=st.booleans())
    def claim(self, size: int, abort: bool) -> None:
        assert self.producer is not None
        data = self._payload(size)
        try:
            claim = self.producer.claim(size, timeout=0)
        except shmdriver.BackPressured:
            assert self._held_back()
            return
        claim.view[:] = data
        if abort:
            claim.abort()
        else:
            claim.commit()
            self.epochs[-1].messages.append(data)

    @precondition(lambda self: self.producer is not None)
    @rule(clean=st.booleans())
    def end_producer(self, clean: bool) -> None:
        assert self.producer is not None
        if clean:
            self.producer.close()
        else:
            with contextlib.suppress(ZeroDivisionError), self.producer:
                raise ZeroDivisionError
        self.producer = None
        self.epochs[-1].end = "clean" if clean else "aborted"

    # -- consumers

    @precondition(lambda self: len([reader for reader in self.readers if not reader.over]) < 5)
    @rule(delivery=st.sampled_from(("reliable", "reliable", "lossy", "latest")), follow=st.booleans())
    def attach_consumer(self, delivery: Literal["reliable", "lossy", "latest"], follow: bool) -> None:
        handle = self.client.consumer(self.stream, delivery=delivery, follow=follow)
        is_open = bool(self.epochs) and not self.epochs[-1].end
        epoch = len(self.epochs) - 1 if is_open else len(self.epochs)
        head = len(self.epochs[-1].messages) if is_open else 0
        start = (
            max(0, head - 1) if delivery == "latest" else head
        )  # latest begins with the newest that there is
        self.readers.append(Reader(handle, delivery, follow, epoch, start))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), count=st.integers(1, 100))
    def read(self, data: st.DataObject, count: int) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        read = self._read_reliable if reader.delivery == "reliable" else self._read_ungated
        for _ in range(count):
            if not read(reader):
                return

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def close_consumer(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        reader.handle.close()
        self.readers.remove(reader)

    @invariant()
    def nobody_lost_what_is_reliable(self) -> None:
        for reader in getattr(self, "readers", []):
            if reader.delivery == "reliable":
                assert reader.handle.lost == 0

    # -- what must come

    def _payload(self, size: int) -> bytes:
        number = sum(len(epoch.messages) for epoch in self.epochs)
        return (b"%d.%d;" % (len(self.epochs), number) * (size // 4 + 1))[:size]

    def _held_back(self) -> bool:
        """Whether a reliable consumer is so far behind that the ring or the arena may be full."""
        at = len(self.epochs) - 1
        unread = [
            len(self.epochs[at].messages) - (reader.position if reader.epoch == at else 0)
            for reader in self.readers
            if reader.delivery == "reliable" and reader.epoch <= at and not reader.over
        ]
        return max(unread, default=0) >= 16  # 2,000 bytes each: half an arena

    def _read_reliable(self, reader: Reader) -> bool:
        """One read; whether there may be more."""
        if reader.over:
            self._ends(reader, reader.over)
            return False
        epoch = self.epochs[reader.epoch] if reader.epoch < len(self.epochs) else None
        if epoch is not None and reader.position < len(epoch.messages):
            message = reader.handle.read(timeout=PATIENCE_S)
            assert message is not None
            assert (message.seq, bytes(message)) == (reader.position, epoch.messages[reader.position])
            reader.position += 1
            return True
        if epoch is not None and epoch.end and reader.follow and reader.epoch + 1 < len(self.epochs):
            reader.epoch, reader.position = reader.epoch + 1, 0
            return True
        if epoch is not None and epoch.end and not reader.follow:
            reader.over = epoch.end
            self._ends(reader, epoch.end)
            return False
        assert reader.handle.read(timeout=0) is None
        return False

    def _ends(self, reader: Reader, how: str) -> None:
        with pytest.raises(shmdriver.EndOfStream if how == "clean" else shmdriver.ProducerLost):
            reader.handle.read(timeout=PATIENCE_S)

    def _read_ungated(self, reader: Reader) -> bool:
        try:
            message = reader.handle.read(timeout=0)
        except (shmdriver.EndOfStream, shmdriver.ProducerLost):
            assert not reader.follow
            assert self.epochs[reader.epoch].end
            return False
        if message is None:
            return False
        places = [
            (at, message.seq)
            for at in range(reader.epoch, len(self.epochs))
            if message.seq < len(self.epochs[at].messages)
            and self.epochs[at].messages[message.seq] == bytes(message)
        ]
        later = [place for place in places if place >= (reader.epoch, reader.position)]
        assert later, (
            f"message {message.seq} is none that could come after {reader.position} of {reader.epoch}"
        )
        at, seq = later[0]
        if reader.delivery == "lossy" and at == reader.epoch and not reader.follow:
            reader.got += seq - reader.position
            assert reader.handle.lost == reader.got, "what was missed is what was counted"
        reader.epoch, reader.position = at, seq + 1
        return True


@pytest.fixture
def client() -> Iterator[shmdriver.Client]:
    with shmdriver.embedded() as client:
        yield client


def run(client: shmdriver.Client, examples: int, steps: int) -> None:
    machine = type("Streams", (Streams,), {"client": client})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None,
            suppress_health_check=list(HealthCheck), print_blob=True,
        ),
    )  # fmt: skip


def test_one_stream_behaves_as_its_model(client: shmdriver.Client) -> None:
    run(client, examples=40, steps=40)


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_one_stream_behaves_as_its_model_for_minutes(client: shmdriver.Client) -> None:
    run(client, examples=1500, steps=80)
