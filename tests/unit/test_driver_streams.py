"""Streams under a fake clock: epochs, wiring, seals, retiring, schemas, slow consumers, impossible gates."""

from __future__ import annotations

from typing import Any

import pytest

from shmdriver._native import ffi, lib
from shmdriver.errors import Reason
from tests.driver_rig import Rig, rests

OLDEST: dict[str, Any] = {"start": lib.SHMD_START_OLDEST}
FOLLOW: dict[str, Any] = {"flags": lib.SHMD_ATTACH_CREATE | lib.SHMD_ATTACH_FOLLOW}
TICK = b"[('ts', '<i8'), ('px', '<f8')]"
TICK4 = b"[('ts', '<i8'), ('px', '<f4')]"


def test_consumer_before_any_producer_gets_its_first_message(rig: Rig) -> None:
    client = rig.client()
    consumer = client.consume()
    assert (consumer.epoch, consumer.start_seq) == (0, 0)
    producer = client.produce()
    hot = rig.epoch(producer).hot
    bit = 1 << consumer.gate
    assert (hot.wired_mask, hot.gate_mask, hot.sleep_mask) == (bit, bit, bit)
    assert rig.lease(consumer).first_epoch == producer.epoch
    with rig.epoch_memory(producer) as memory:
        assert (memory.gate(consumer.gate).position, memory.gate(consumer.gate).lease_id) == (
            0,
            consumer.lease_id,
        )


def test_newest_starts_at_head_and_oldest_a_ring_before(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce()
    rig.publish(producer, 100)
    newest, oldest = client.consume(), client.consume(**OLDEST)
    latest = client.consume(delivery=lib.SHMD_DELIVERY_LATEST)
    assert (newest.start_seq, newest.value) == (100, 100)
    assert (oldest.start_seq, oldest.value) == (36, 100)
    assert latest.start_seq == 99
    assert rig.epoch(producer).hot.gate_mask == 1 << newest.gate | 1 << oldest.gate


def test_spinning_consumer_and_stream_without_wakeups_need_no_waking(rig: Rig) -> None:
    client = rig.client()
    spinner = client.consume(wait=lib.SHMD_WAIT_SPIN)
    producer = client.produce()
    assert rig.epoch(producer).hot.sleep_mask == 0
    assert rig.epoch(producer).hot.wired_mask == 1 << spinner.gate
    quiet = client.produce("quiet", flags=lib.SHMD_ATTACH_CREATE | lib.SHMD_ATTACH_NO_WAKEUPS)
    client.consume("quiet")
    assert rig.epoch(quiet).hot.sleep_mask == 0


def test_second_producer_is_refused_and_the_first_is_named(rig: Rig) -> None:
    rig.client().produce()
    refused = rig.client().produce()
    assert refused.reason == Reason.PRODUCER_EXISTS
    assert "requester" in refused.text


def test_unknown_stream_without_create_is_refused_with_the_nearest_name(rig: Rig) -> None:
    client = rig.client()
    client.produce("ticks")
    refused = client.consume("tick", flags=0)
    assert refused.reason == Reason.UNKNOWN_STREAM
    assert "'ticks'" in refused.text


def test_configured_streams_only(instance_name: str) -> None:
    rig = Rig(instance_name, policies__allow_dynamic_streams=False, streams__known__profile="default")
    try:
        client = rig.client()
        assert client.consume("known", flags=0).code == lib.SHMD_CODE_OK
        assert client.consume("other").reason == Reason.UNKNOWN_STREAM
    finally:
        rig.close()


def test_clean_detach_seals_at_the_head(rig: Rig) -> None:
    client = rig.client()
    producer, _ = client.produce(), client.consume()
    rig.publish(producer, 5)
    client.detach(producer)
    record = rig.epoch(producer)
    assert (record.hot.sealed_seq, record.end_reason, record.unproven) == (5, Reason.CLOSED, 0)
    assert rig.stream_record(producer).producer_lease_id == 0


def test_unclean_seal_counts_what_was_committed_past_the_head(rig: Rig) -> None:
    client = rig.client()
    producer, _ = client.produce(), client.consume()
    rig.publish(producer, 5)
    rig.publish(producer, 2, store_head=False)
    client.detach(producer, aborted=True)
    assert rig.epoch(producer).hot.sealed_seq == 7
    assert rig.epoch(producer).end_reason == Reason.ABORTED


def test_followers_go_on_with_the_next_epoch_and_others_do_not(rig: Rig) -> None:
    client = rig.client()
    first = client.produce()
    follower, single = client.consume(**FOLLOW), client.consume()
    client.detach(first)
    second = client.produce()
    assert second.epoch == first.epoch + 1
    assert rig.epoch(second).hot.wired_mask == 1 << follower.gate
    assert rig.epoch(first).hot.wired_mask == 1 << follower.gate | 1 << single.gate


def test_epoch_stays_until_its_reliable_consumers_left_and_the_grace_is_over(rig: Rig) -> None:
    client = rig.client()
    producer, consumer = client.produce(), client.consume(**FOLLOW)
    client.detach(producer)
    for _ in range(15):
        client.beat()
        rig.tick(1000)
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_SEALED
    rig.leave(consumer, producer.epoch)
    rig.tick(200)
    assert rig.epoch(producer) is None
    assert rig.counter("EPOCHS_RETIRED") == 1
    assert rig.counter("SEGMENT_BYTES") == 0


def test_aborted_epoch_goes_as_soon_as_everybody_has_left(rig: Rig) -> None:
    client = rig.client()
    producer, consumer = client.produce(), client.consume(**FOLLOW)
    client.detach(producer, aborted=True)
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_SEALED
    rig.leave(consumer, producer.epoch)
    rig.tick(200)
    assert rig.epoch(producer) is None


def test_consumer_that_does_not_follow_is_detached_when_it_has_delivered(rig: Rig) -> None:
    client = rig.client()
    producer, consumer = client.produce(), client.consume()
    client.detach(producer)
    rig.leave(consumer, producer.epoch)
    rig.tick(200)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_DETACHED
    assert rig.lease(consumer).end_reason == Reason.DELIVERED


def test_undrained_epochs_refuse_a_further_producer_and_name_the_holder(rig: Rig) -> None:
    client = rig.client()
    client.consume(**FOLLOW)
    for _ in range(lib.SHMD_EPOCH_RECORDS):
        client.detach(client.produce())
    refused = client.produce()
    assert refused.reason == Reason.UNDRAINED
    assert "requester" in refused.text


def test_newer_epoch_takes_the_record_of_one_in_its_grace(rig: Rig) -> None:
    client = rig.client()
    for number in range(1, lib.SHMD_EPOCH_RECORDS + 3):
        answer = client.produce()
        assert (answer.code, answer.epoch) == (lib.SHMD_CODE_OK, number)
        client.detach(answer)


def test_cleanly_ended_epoch_can_be_joined_from_the_oldest_for_a_while(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce()
    rig.publish(producer, 3)
    client.detach(producer)
    late = client.consume(**OLDEST)
    assert (late.epoch, late.start_seq) == (producer.epoch, 0)
    assert client.consume().epoch == 0
    rig.leave(late, producer.epoch)
    for _ in range(11):
        client.beat()
        rig.tick(1000)
    assert client.consume(**OLDEST).epoch == 0


def test_detached_consumer_leaves_no_bit_behind(rig: Rig) -> None:
    client = rig.client()
    producer, consumer = client.produce(), client.consume()
    client.detach(consumer)
    hot = rig.epoch(producer).hot
    assert (hot.wired_mask, hot.gate_mask, hot.sleep_mask) == (0, 0, 0)


@pytest.mark.fault(55, how="the consumers leave one after another")
def test_producer_is_told_when_its_last_reliable_consumer_has_left(rig: Rig) -> None:
    client = rig.client()
    producer, first, second = client.produce(), client.consume(), client.consume()
    lossy = client.consume(delivery=lib.SHMD_DELIVERY_LOSSY)
    client.detach(first)
    client.detach(lossy)
    assert rig.events_of(lib.SHMD_EVENT_CONSUMERS_LEFT) == []
    client.detach(second)
    (told,) = rig.events_of(lib.SHMD_EVENT_CONSUMERS_LEFT)
    assert (told.stream, told.epoch, told.lease_id) == ("s", producer.epoch, producer.lease_id)
    third = client.consume()
    client.detach(producer)
    client.detach(third)
    assert len(rig.events_of(lib.SHMD_EVENT_CONSUMERS_LEFT)) == 1


@pytest.mark.fault(
    55, how="shards join while others stand far behind, also with a driver that has adopted them"
)
def test_shard_joins_where_the_slowest_of_as_many_stands(rig: Rig) -> None:
    client = rig.client()
    producer, first = client.produce(), client.consume(shards=3)
    rig.publish(producer, 40)
    second = client.consume(shards=3)
    assert (second.start_seq, second.value) == (0, 0)
    with rig.epoch_memory(producer) as memory:
        for consumer, position in ((first, 30), (second, 20)):
            lib.shmd_gates_gate(memory.gates, consumer.gate).position = position
    rig.restart()
    assert client.consume(shards=3).value == 20
    assert (client.consume(shards=3, **OLDEST).start_seq, client.consume(shards=3, **OLDEST).value) == (0, 20)
    assert client.consume().value == 40
    assert client.consume(shards=2).value == 40
    assert client.consume(shards=3, delivery=lib.SHMD_DELIVERY_LOSSY).value == 40
    refused = client.ask(client.attach_request("s", lib.SHMD_ROLE_CONSUMER, shards=65))
    assert refused.code == lib.SHMD_CODE_INVALID_PARAMS


# ---- schemas


def test_consumer_of_another_schema_is_told_field_by_field(rig: Rig) -> None:
    client = rig.client()
    client.produce(schema=TICK)
    assert client.consume(schema=TICK).code == lib.SHMD_CODE_OK
    assert client.consume().code == lib.SHMD_CODE_OK
    refused = client.consume(schema=TICK4)
    assert refused.reason == Reason.SCHEMA
    assert "px: <f8, expected <f4" in refused.text


def test_producer_of_a_schema_that_a_consumer_did_not_declare_is_refused(rig: Rig) -> None:
    client = rig.client()
    consumer = client.consume(schema=TICK)
    refused = client.produce(schema=TICK4)
    assert (refused.reason, "px: <f4, expected <f8" in refused.text) == (Reason.SCHEMA, True)
    rig.restart()
    assert client.produce(schema=TICK4).reason == Reason.SCHEMA  # the hash is enough
    client.detach(consumer)
    answer = client.produce(schema=TICK4)
    assert answer.code == lib.SHMD_CODE_OK
    stream = rig.driver.tables.streams.find("s")
    assert stream is not None
    assert stream.schema == TICK4.decode()


# ---- slow consumers


def _block(rig: Rig, producer, consumer, since_ns: int) -> None:
    with rig.epoch_memory(producer) as memory:
        memory.data.blocked_gate = consumer.gate + 1
        memory.data.blocked_since_ns = since_ns


def test_slow_consumer_is_evicted_by_the_drivers_own_clock(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce(slow_consumer=lib.SHMD_SLOW_EVICT)
    consumer = client.consume()
    _block(rig, producer, consumer, since_ns=1)  # a producer that claims an old wait evicts nobody at once
    rig.tick(500)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_ACTIVE
    rig.tick(1000)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_REVOKED
    assert rig.lease(consumer).end_reason == Reason.EVICTED
    assert rig.epoch(producer).hot.gate_mask == 0
    assert "held the producer back" in rig.events_of(lib.SHMD_EVENT_LEASE_REVOKED)[0].text


def test_blocking_stream_evicts_nobody_and_a_wait_that_ended_starts_anew(rig: Rig) -> None:
    client = rig.client()
    blocking, consumer = client.produce("a"), client.consume("a")
    evicting, other = client.produce("b", slow_consumer=lib.SHMD_SLOW_EVICT), client.consume("b")
    _block(rig, blocking, consumer, since_ns=1)
    for since_ns in range(1, 8):
        client.beat()
        _block(rig, evicting, other, since_ns=since_ns)
        rig.tick(700)
    assert rig.lease_state(consumer) == rig.lease_state(other) == lib.SHMD_LEASE_ACTIVE


@pytest.mark.parametrize("gate", [17, 64, 65, 2**32 - 1])
def test_blocked_gate_out_of_range_is_ignored(rig: Rig, gate: int) -> None:
    client = rig.client()
    producer = client.produce(slow_consumer=lib.SHMD_SLOW_EVICT)
    client.consume()
    with rig.epoch_memory(producer) as memory:
        memory.data.blocked_gate = gate
    rig.tick(1500)
    assert rig.counter("EVICTIONS") == 0


def test_refusing_stream_admits_no_reliable_consumer(rig: Rig) -> None:
    client = rig.client()
    client.produce(slow_consumer=lib.SHMD_SLOW_REFUSE)
    assert client.consume().reason == Reason.REFUSED_RELIABLE
    assert client.consume(delivery=lib.SHMD_DELIVERY_LOSSY).code == lib.SHMD_CODE_OK


@pytest.mark.fault(26, how="a gate back, or far ahead")
@pytest.mark.parametrize("position", [4, 10 + 64 + 1, 2**64 - 1])
def test_impossible_gate_revokes_its_consumer_alone(rig: Rig, position: int) -> None:
    client = rig.client()
    producer = client.produce()
    rig.publish(producer, 10)
    bad, good = client.consume(), client.consume()
    with rig.epoch_memory(producer) as memory:
        memory.gate(bad.gate).position = position
    rig.tick(700)
    assert rig.lease_state(bad) == lib.SHMD_LEASE_REVOKED
    assert rig.lease(bad).end_reason == Reason.BAD_GATE
    assert rig.lease_state(good) == lib.SHMD_LEASE_ACTIVE
    assert rig.epoch(producer).hot.gate_mask == 1 << good.gate


# ---- sizes and memory


@pytest.mark.parametrize(
    ("wishes", "slots", "slot_bytes", "arena"),
    [
        ({}, 64, 128, 65536),
        ({"max_message": 100}, 64, 128, 0),
        ({"max_message": 40}, 64, 64, 0),
        ({"max_message": 10_000}, 64, 128, 65536),
        ({"max_message": 100_000}, 64, 128, 4 * 100_032),
        ({"max_message": 100_000, "slots": 16}, 32, 128, 16 * 100_032),
        ({"slots": 100, "slot_bytes": 192}, 128, 192, 65536),
    ],
)
def test_geometry_of_a_producers_wishes(rig: Rig, wishes, slots, slot_bytes, arena) -> None:
    record = rig.epoch(rig.client().produce(**wishes))
    assert (record.slots, record.slot_bytes) == (slots, slot_bytes)
    assert record.arena_bytes == -(-arena // 4096) * 4096


def test_default_profile_takes_at_most_8_mib(instance_name: str) -> None:
    rig = Rig(instance_name, profiles__default__slots=8192, profiles__default__arena=4 << 20)
    try:
        wanted: list[dict[str, Any]] = [{}, {"slot_bytes": 4096}, {"max_message": 400}]
        for number, wishes in enumerate(wanted):
            record = rig.epoch(rig.client().produce(f"s{number}", **wishes))
            assert record.data_bytes + record.gates_bytes <= 8 << 20 if not wishes else 9 << 20
    finally:
        rig.close()


def test_epoch_past_its_limit_is_refused_with_both_numbers(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__stream_bytes=1 << 20)
    try:
        refused = rig.client().produce(max_message=1 << 20)
        assert refused.reason == Reason.SIZE
        assert "1048576" in refused.text
    finally:
        rig.close()


def test_memory_past_its_limit_is_refused_with_a_number_unless_retiring_helps(instance_name: str) -> None:
    rig = Rig(instance_name, shm__max_bytes=300_000)
    try:
        client = rig.client()
        held = client.produce("a")
        other = client.produce("b")
        refused = client.produce("c")
        assert (refused.reason, "300000 bytes" in refused.text) == (Reason.NO_MEMORY, True)
        client.detach(other)  # in its grace
        assert client.produce("c").code == lib.SHMD_CODE_OK
        assert rig.epoch_state(held) == lib.SHMD_EPOCH_OPEN
    finally:
        rig.close()


def test_announcements_name_the_newest_epoch(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce()
    rig.tick(1000)
    announced = rig.events_of(lib.SHMD_EVENT_STREAM_ANNOUNCE)[-1]
    assert (announced.stream, announced.epoch, announced.state) == ("s", producer.epoch, lib.SHMD_EPOCH_OPEN)
    client.detach(producer)
    announced = rig.events_of(lib.SHMD_EVENT_STREAM_ANNOUNCE)[-1]
    assert (announced.state, announced.reason) == (lib.SHMD_EPOCH_SEALED, Reason.CLOSED)


def test_idle_stream_records_are_used_again(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__streams=2)
    try:
        client = rig.client()
        for number in range(6):
            answer = client.consume(f"s{number}")
            assert answer.code == lib.SHMD_CODE_OK, answer.text
            client.detach(answer)
    finally:
        rig.close()


def test_a_stream_that_gets_anothers_record_goes_on_with_its_epochs_numbers(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__streams=1)
    try:
        silent = rig.client().produce("old")
        rig.publish(silent, 5)
        record = rig.stream_record(silent)
        open_word = int(record.epochs[0].hot.state)
        rig.tick(20_000)  # its lease has expired, its epoch is retired; its process may publish yet
        client = rig.client()
        words = set()
        for name in ("new", "newer"):
            client.detach(client.consume(name))  # a stream that never had an epoch
            for _ in range(lib.SHMD_EPOCH_RECORDS):
                producer = client.produce(name)
                assert producer.stream_index == silent.stream_index
                words.add(int(rig.epoch(producer).hot.state))
                client.detach(producer)
        assert words == {number << 8 | lib.SHMD_EPOCH_OPEN for number in range(2, 10)}
        assert open_word not in words
        assert (record.epochs_before, record.epoch_count) == (5, 9)
    finally:
        rig.close()


def test_how_an_epoch_ended_is_told_until_its_own_record_is_used_again(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__streams=1)
    try:
        silent = rig.client().produce("old")
        rig.publish(silent, 5)
        rig.tick(20_000)
        client = rig.client()
        assert client.produce("new").epoch == 2
        reason, seal = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        record = ffi.addressof(rig.stream_record(silent).epochs[0])
        assert lib.shmd_epoch_end(record, silent.epoch, seal, reason) == 1
        assert (reason[0], seal[0]) == (Reason.EXPIRED, 5)
    finally:
        rig.close()


# ---- many streams


@pytest.mark.fault(72, how="room for three streams")
def test_streams_that_ended_are_given_up_before_a_new_one_is_refused(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__streams=3)
    try:
        client = rig.client()
        for name in ("first", "second"):
            client.detach(client.produce(name))
            rig.tick(100)
        held = client.produce("held")
        assert client.consume("third").code == lib.SHMD_CODE_OK, "ended, and in its grace"
        client.detach(client.produce("second"))  # what ended later is there yet, and may have a successor
        assert client.consume("fourth").code == lib.SHMD_CODE_OK
        assert rig.epoch_state(held) == lib.SHMD_EPOCH_OPEN
        refused = client.consume("fifth")
        assert (refused.reason, "3 of 3 streams are in use" in refused.text) == (Reason.LIMIT, True)
    finally:
        rig.close()


@pytest.mark.fault(72, how="room for one stream, which is not drained")
def test_stream_that_ended_undrained_is_not_given_up(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__streams=1)
    try:
        client = rig.client()
        producer, _ = client.produce("kept"), client.consume("kept")
        rig.publish(producer, 3)
        client.detach(producer)
        assert client.consume("another").reason == Reason.LIMIT
    finally:
        rig.close()


@pytest.mark.fault(71, how="1,200 streams, announced in turn, and all at a start")
def test_more_streams_than_one_announce_tells_degrade_nothing_and_let_the_driver_rest(
    instance_name: str,
) -> None:
    count = 1200
    rig = Rig(
        instance_name,
        policies__limits__streams=count,
        policies__limits__leases=count,
        policies__limits__attaches_per_tick=512,
    )
    try:
        clients = [rig.client() for _ in range(10)]
        for number in range(count):
            client = clients[number % 10]
            client.send(client.attach_request(f"s{number}", lib.SHMD_ROLE_CONSUMER))
            if number % 40 == 39:
                rig.tick()
        rig.tick()
        assert rig.counter("ATTACHES") == count
        for answer in rig.events_of(lib.SHMD_EVENT_ATTACH_RESPONSE):
            clients[answer.client_id - 1].confirm(answer)
        for _ in range(12):  # longer than a reason to be degraded is held
            for client in clients:
                client.beat()
            rig.tick(1000, step_ms=100)
        assert str(rig.driver.state) == "running.healthy"
        assert rig.driver._lifecycle.reasons == set()
        told = {event.stream for event in rig.events_of(lib.SHMD_EVENT_STREAM_ANNOUNCE)}
        assert len(told) == count, "each of them had its turn"
        rig.restart()
        for client in clients:
            client.beat()
        rig.tick(100)
        assert str(rig.driver.state) == "running.healthy", "also when all are announced at a start"
        client.beat()
        rig.tick(100)
        assert rests(rig.driver, rig.clock.now_ns)
    finally:
        rig.close()
