"""reconnect=True: handles that attach anew, after a revocation or to the next driver; the gap is exact."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.client import link
from shmdriver.driver.config import Config
from shmdriver.driver.control import Request
from shmdriver.driver.driver import Driver
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.errors import AttachRejected, DriverUnavailable, LeaseRevoked, ProducerLost, Reason

TICK = np.dtype([("n", "<i8")])
PATIENCE_S = 60
SHORT = {"policies.shutdown_timeout_ms": 100}


class Instance:
    """One instance's drivers, one after another, in threads of this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.embedded: EmbeddedDriver | None = None

    def start(self, **overrides: Any) -> Driver:
        config = Config.load(env={}, overrides={**SHORT, **overrides})
        self.embedded = EmbeddedDriver(self.name, config)
        self.embedded.start()
        assert self.embedded._driver is not None
        return self.embedded._driver

    def end(self) -> None:
        """For good: sealed, unlinked."""
        if self.embedded is not None:
            self.embedded.stop()
        self.embedded = None

    @property
    def driver(self) -> Driver:
        assert self.embedded is not None
        assert self.embedded._driver is not None
        return self.embedded._driver


@pytest.fixture
def instance(instance_name: str) -> Iterator[Instance]:
    instance = Instance(instance_name)
    instance.start()
    yield instance
    instance.end()


@pytest.fixture
def client(instance: Instance) -> Iterator[shmdriver.Client]:
    with shmdriver.connect(instance.name, reconnect=True, timeout=PATIENCE_S) as client:
        yield client


def in_its_thread(driver: Driver, act: Callable[[int], object]) -> None:
    """Runs ``act`` at the driver's next tick, in its own thread; awaited."""
    done = threading.Event()
    take = driver._ring.take

    def act_and_take(now_ns: int) -> Iterator[Request]:
        if not done.is_set():
            act(now_ns)
            done.set()
        return take(now_ns)

    driver._ring.take = act_and_take  # type: ignore[method-assign]
    driver.wake()
    assert done.wait(PATIENCE_S)
    driver._ring.take = take  # type: ignore[method-assign]


def revoke(instance: Instance, lease_id: int) -> None:
    """As an administrator does."""
    driver = instance.driver
    lease = driver.tables.leases.live(lease_id)
    assert lease is not None
    in_its_thread(driver, lambda now_ns: driver.tables.tenure.revoke(lease, Reason.REVOKED, "a test", now_ns))


def lease_of(handle: Any) -> int:
    return int(handle._info().lease_id)


def texts(consumer: shmdriver.Consumer, count: int) -> list[bytes]:
    return [bytes(consumer.read()) for _ in range(count)]


def later(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


# ---- consumers


def test_revoked_consumer_goes_on_where_it_was_when_nothing_was_overwritten(instance, client) -> None:
    consumer = client.consumer("s")
    producer = client.producer("s", slots=64, max_message=16)
    for number in range(20):
        producer.publish(b"%d" % number)
    assert texts(consumer, 20) == [b"%d" % number for number in range(20)]
    revoke(instance, lease_of(consumer))
    for number in range(20, 60):
        producer.publish(b"%d" % number)
    assert texts(consumer, 40) == [b"%d" % number for number in range(20, 60)]
    assert (consumer.lost, consumer.lost_ranges) == (0, [])
    (again,) = consumer.reattachments
    assert again == (Reason.REVOKED, client.boot_id, 1, 20, 1, 20, 0)
    assert producer.consumers == 1


def test_revoked_consumer_tells_exactly_what_was_overwritten_meanwhile(instance, client) -> None:
    consumer = client.consumer("s")
    producer = client.producer("s", slots=64, max_message=16)
    for number in range(10):
        producer.publish(b"%d" % number)
    texts(consumer, 10)
    revoke(instance, lease_of(consumer))
    for number in range(10, 300):
        producer.publish(b"%d" % number)
    found = [int(bytes(consumer.read()))]
    while found[-1] < 299:
        found.append(int(bytes(consumer.read())))
    assert found == list(range(found[0], 300))
    assert found[0] > 10
    assert consumer.lost == found[0] - 10
    assert consumer.lost_ranges[0].first == 10
    assert consumer.lost_ranges[-1].last == found[0] - 1
    assert sum(gap.last - gap.first + 1 for gap in consumer.lost_ranges) == consumer.lost


def test_revoked_consumer_counts_the_epochs_that_it_missed(instance, client) -> None:
    consumer = client.consumer("s", follow=True)
    for epoch in (1, 2, 3):
        with client.producer("s", max_message=16) as producer:
            for number in range(5):
                producer.publish(b"%d" % number)
            if epoch == 1:
                texts(consumer, 3)
                assert consumer.buffered == 2
                revoke(instance, lease_of(consumer))
    with client.producer("s", max_message=16) as producer:
        producer.publish(b"now")
        assert texts(consumer, 3) == [b"3", b"4", b"now"]
    (again,) = consumer.reattachments
    assert (again.old_epoch, again.old_seq, again.epoch, again.seq) == (1, 5, 4, 0)
    assert again.lost == consumer.lost == 10
    assert consumer.lost_ranges == [(2, 0, 4), (3, 0, 4)]


def test_views_of_a_revoked_consumer_are_not_valid_any_more(instance, client) -> None:
    consumer = client.consumer("s")
    producer = client.producer("s", slots=8, max_message=100_000)
    for number in range(4):
        producer.publish(bytes([number]) * 50_000)
    kept = consumer.read()
    assert kept.valid()
    revoke(instance, lease_of(consumer))
    producer.publish(b"more")
    rest = [consumer.read() for _ in range(4)]
    assert [(message.seq, len(message)) for message in rest] == [
        (1, 50_000),
        (2, 50_000),
        (3, 50_000),
        (4, 4),
    ]
    assert not kept.valid()
    assert len(kept.data) == 50_000  # still mapped
    assert consumer.lost == 0


def test_record_batches_go_on_after_a_revocation(instance, client) -> None:
    consumer = client.consumer("s", dtype=TICK)
    producer = client.producer("s", dtype=TICK, slots=64)
    producer.publish(np.arange(10).astype(TICK))
    assert list(consumer.read_batch()["n"]) == list(range(10))
    revoke(instance, lease_of(consumer))
    producer.publish(np.arange(10, 30).astype(TICK))
    found: list[int] = []
    while len(found) < 20:
        found += list(consumer.read_batch()["n"])
    assert found == list(range(10, 30))
    assert consumer.lost == 0


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("boot", ["adopt", "fresh"])
def test_consumer_drains_the_old_driver_and_goes_over_to_the_next(instance, follow: bool, boot: str) -> None:
    with (
        shmdriver.connect(instance.name, reconnect=True, timeout=PATIENCE_S) as reader,
        shmdriver.connect(instance.name, reconnect=True, timeout=PATIENCE_S) as writer,
    ):
        consumer = reader.consumer("s", follow=follow)
        producer = writer.producer("s", max_message=16)
        for number in range(10):
            producer.publish(b"%d" % number)
        texts(consumer, 4)
        before = reader.boot_id
        instance.end()
        assert texts(consumer, 6) == [b"%d" % number for number in range(4, 10)]
        assert consumer.read(timeout=0.05) is None
        with pytest.raises(DriverUnavailable, match="none of instance"):
            producer.publish(b"x", timeout=0.05)
        assert producer.try_publish(b"x") == 0
        instance.start(**{"driver.boot": boot})
        producer.publish(b"10", timeout=PATIENCE_S)
        assert texts(consumer, 1) == [b"10"]
        assert reader.boot_id == writer.boot_id != before
        assert consumer.lost == 0
        (again,) = consumer.reattachments
        assert (again.reason, again.old_epoch, again.old_seq, again.lost) == (Reason.SHUTDOWN, 1, 10, 0)
        assert again.boot_id == reader.boot_id
        assert producer.reattachments == ((Reason.SHUTDOWN, writer.boot_id, 1, 10, 1, 0, 0),)


def test_consumer_that_comes_back_late_tells_what_the_new_driver_let_go(instance, client) -> None:
    consumer = client.consumer("s")
    with shmdriver.connect(instance.name) as other:
        producer = other.producer("s", max_message=16)
        producer.publish(b"before")
        texts(consumer, 1)
        instance.end()
    instance.start()
    with shmdriver.connect(instance.name) as other:
        producer = other.producer("s", slots=64, max_message=16)
        for number in range(100):
            producer.publish(b"%d" % number)
        first = consumer.read()
        assert first.seq == int(bytes(first))
        (again,) = consumer.reattachments
        assert again.old_seq == 1
        assert again.lost == 100 - 64
        assert consumer.lost == first.seq
        producer.close()


def test_consumer_that_never_looked_tells_what_went_with_the_old_driver(instance, client) -> None:
    consumer = client.consumer("s")
    with shmdriver.connect(instance.name) as other:
        producer = other.producer("s", max_message=16)
        for number in range(7):
            producer.publish(b"%d" % number)
        instance.end()  # the names are gone before this consumer mapped anything
    instance.start()
    while not consumer.reattachments:
        assert consumer.read(timeout=0.05) is None
    (again,) = consumer.reattachments
    assert (again.reason, again.old_epoch, again.old_seq, again.lost) == (Reason.SHUTDOWN, 0, 0, 7)
    assert consumer.lost_ranges == [(1, 0, 6)]


def test_iteration_goes_on_over_drivers(instance, client) -> None:
    consumer = client.consumer("s")
    found: list[bytes] = []
    thread = later(lambda: found.extend(bytes(message) for message in consumer))
    for boot in range(3):
        with shmdriver.connect(instance.name) as other, other.producer("s", max_message=16) as producer:
            producer.wait_for_consumers(1)
            producer.publish(b"%d" % boot)
            if boot < 2:
                instance.end()
                with pytest.raises((LeaseRevoked, DriverUnavailable)):
                    producer.publish(b"never", timeout=PATIENCE_S)
                instance.start()
    thread.join(PATIENCE_S)  # the last one was closed: that is an end
    assert found == [b"0", b"1", b"2"]


def test_clean_end_and_a_lost_producer_are_what_they_are(client) -> None:
    consumer, other = client.consumer("s"), client.consumer("t")
    with client.producer("s") as producer:
        producer.publish(b"x")
    assert list(map(bytes, consumer)) == [b"x"]
    client.producer("t").abort()
    with pytest.raises(ProducerLost):
        other.read()
    assert consumer.reattachments == other.reattachments == ()


# ---- producers


def test_revoked_producer_goes_on_in_a_new_epoch_and_knows_what_was_delivered(instance, client) -> None:
    consumer = client.consumer("s", follow=True)
    producer = client.producer("s", max_message=16)
    for number in range(10):
        producer.publish(b"%d" % number)
    revoke(instance, lease_of(producer))
    for number in range(10, 20):
        producer.publish(b"%d" % number)
    assert texts(consumer, 20) == [b"%d" % number for number in range(20)]
    assert producer.reattachments == ((Reason.REVOKED, client.boot_id, 1, 10, 2, 0, 0),)
    assert (producer.epoch, producer.seq) == (2, 10)


def test_record_producer_goes_on_in_a_new_epoch(instance, client) -> None:
    consumer = client.consumer("s", follow=True, dtype=TICK)
    producer = client.producer("s", dtype=TICK, slots=64)
    producer.publish(np.arange(10).astype(TICK))
    revoke(instance, lease_of(producer))
    producer.publish(np.arange(10, 40).astype(TICK))
    found: list[int] = []
    while len(found) < 40:
        found += list(consumer.read_batch()["n"])
    assert found == list(range(40))


def test_open_claim_of_a_revoked_producer_is_lost_and_said_so(instance, client) -> None:
    producer = client.producer("s", max_message=100_000)
    claim = producer.claim(50_000)
    claim.view[:5] = b"hello"
    revoke(instance, lease_of(producer))
    with pytest.raises(LeaseRevoked):
        claim.commit()
    with producer.claim(50_000) as claim:
        claim.view[:5] = b"again"
    assert producer.epoch == 2


def test_producer_whose_stream_another_has_taken_is_told_so(instance, client) -> None:
    producer = client.producer("s")
    revoke(instance, lease_of(producer))
    with shmdriver.connect(instance.name) as other:
        taken = other.producer("s")
        with pytest.raises(AttachRejected) as refused:
            producer.publish(b"x")
        assert refused.value.reason == Reason.PRODUCER_EXISTS
        taken.close()
        producer.publish(b"x")
        assert producer.epoch == 3


# ---- clients


def test_control_calls_wait_for_the_next_driver(instance, client) -> None:
    instance.end()
    starter = threading.Timer(0.2, instance.start)
    starter.start()
    with client.producer("s", attach_timeout=PATIENCE_S) as producer:
        assert producer.epoch == 1
    starter.join()
    instance.end()
    with pytest.raises(DriverUnavailable):
        client.producer("s", attach_timeout=0.1)


def test_connecting_waits_for_a_driver_only_when_asked(instance_name: str) -> None:
    with pytest.raises(DriverUnavailable):
        shmdriver.connect(instance_name, timeout=PATIENCE_S)
    with pytest.raises(DriverUnavailable):
        shmdriver.connect(instance_name, timeout=0.1, reconnect=True)
    instance = Instance(instance_name)
    starter = threading.Timer(0.2, instance.start)
    starter.start()
    with shmdriver.connect(instance_name, timeout=PATIENCE_S, reconnect=True) as client:
        assert client.driver_alive
    starter.join()
    instance.end()


def test_maintenance_is_waited_out(instance, client) -> None:
    consumer = client.consumer("s")
    driver = instance.driver
    revoke(instance, lease_of(consumer))
    in_its_thread(driver, lambda _now_ns: driver.set_maintenance(True, "a test"))
    assert consumer.read(timeout=0.1) is None
    assert consumer.reattachments == ()
    in_its_thread(driver, lambda _now_ns: driver.set_maintenance(False, "a test"))
    while not consumer.reattachments:
        assert consumer.read(timeout=0.05) is None
    with shmdriver.connect(instance.name) as other, other.producer("s") as producer:
        producer.publish(b"x")
        assert bytes(consumer.read()) == b"x"


def test_waiting_for_several_goes_on_over_a_revocation(instance, client) -> None:
    first, second = client.consumer("s"), client.consumer("t")
    producer = client.producer("s")
    revoke(instance, lease_of(first))
    revoke(instance, lease_of(second))
    producer.publish(b"x")
    assert shmdriver.wait([second, first], PATIENCE_S) == [first]
    assert bytes(first.read()) == b"x"
    assert shmdriver.wait([second, first], 0.1) == []
    instance.end()
    assert shmdriver.wait([second, first], 0.1) == []
    instance.start()
    with shmdriver.connect(instance.name) as other, other.producer("t") as again:
        again.publish(b"y")
        assert shmdriver.wait([second, first], PATIENCE_S) == [second]


def test_without_reconnect_handles_say_what_happened(instance) -> None:
    with shmdriver.connect(instance.name) as plain:
        consumer, producer = plain.consumer("s"), plain.producer("s")
        revoke(instance, lease_of(consumer))
        revoke(instance, lease_of(producer))
        with pytest.raises(LeaseRevoked):
            consumer.read()
        with pytest.raises(LeaseRevoked):
            producer.publish(b"x")
        assert consumer.reattachments == producer.reattachments == ()


def test_closing_while_no_driver_is_there_is_clean(instance, client) -> None:
    consumer, producer = client.consumer("s"), client.producer("s")
    instance.end()
    assert consumer.read(timeout=0.05) is None
    assert producer.try_publish(b"x") == 0
    producer.close()
    consumer.close()
    assert consumer.closed
    assert producer.closed


@pytest.mark.fault(46, how="a handle is closed by another thread while it waits for a driver")
def test_a_close_ends_a_wait_for_several_that_wait_for_a_driver(
    instance, client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "FOREVER_SLICE_NS", 10**17)  # only a wake-up ends a sleep
    consumer = client.consumer("s")
    instance.end()
    while not consumer._is_away:
        shmdriver.wait([consumer], 0.01)
    errors: list[Exception] = []

    def wait() -> None:
        with pytest.raises(shmdriver.HandleClosed) as raised:
            shmdriver.wait([consumer])
        errors.append(raised.value)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    threading.Event().wait(0.2)  # it sleeps, most likely
    consumer.close()
    thread.join(PATIENCE_S)
    assert len(errors) == 1
