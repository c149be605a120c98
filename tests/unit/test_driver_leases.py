"""Leases under a fake clock: how they begin, live and end, and what each end means for the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shmdriver._native import lib
from shmdriver.errors import Reason
from tests.driver_rig import MS, Requester, Rig


def test_attach_becomes_active_when_its_client_confirms(rig: Rig) -> None:
    client = rig.client()
    answer = client.consume(confirm=False)
    assert rig.lease_state(answer) == lib.SHMD_LEASE_ATTACHED
    client.confirm(answer)
    rig.tick(200)
    assert rig.lease_state(answer) == lib.SHMD_LEASE_ACTIVE


def test_unconfirmed_attach_is_detached_at_its_deadline_and_its_gate_waits_for_proof(rig: Rig) -> None:
    client, writer = rig.client(), rig.client()
    writer.produce()
    answer = client.consume(confirm=False)
    for _ in range(8):
        client.beat()
        writer.beat()
        rig.tick(1000)
    record = rig.lease(answer)
    assert rig.lease_state(answer) == lib.SHMD_LEASE_DETACHED
    assert (record.end_reason, record.quarantined) == (Reason.UNCONFIRMED, 1)
    assert rig.stream_record(answer).gates_used == 1 << answer.gate
    client.goodbye()
    assert rig.stream_record(answer).gates_used == 0


def test_repeated_attach_gets_the_same_lease(rig: Rig) -> None:
    client = rig.client()
    raw = client.attach_request("s", lib.SHMD_ROLE_CONSUMER)
    first, second = client.ask(raw), client.ask(raw)
    assert first.lease_id == second.lease_id
    assert len(rig.driver.tables.leases) == 1


def test_attach_repeated_after_its_end_is_told_so(rig: Rig) -> None:
    client = rig.client()
    raw = client.attach_request("s", lib.SHMD_ROLE_CONSUMER)
    answer = client.ask(raw)
    client.detach(answer)
    again = client.ask(raw)
    assert (again.code, again.reason) == (lib.SHMD_CODE_REJECTED, Reason.CLOSED)


def test_request_past_its_deadline_is_dropped_and_counted(rig: Rig) -> None:
    client = rig.client()
    raw = client.attach_request("s", lib.SHMD_ROLE_CONSUMER, deadline_ns=rig.clock.now_ns - 1)
    client.send(raw)
    rig.tick()
    assert rig.counter("REQUESTS_EXPIRED") == 1
    assert len(rig.driver.tables.leases) == 0


def test_detach_is_idempotent_and_frees_the_gate(rig: Rig) -> None:
    client = rig.client()
    answer = client.consume()
    assert client.detach(answer).state == lib.SHMD_LEASE_DETACHED
    assert client.detach(answer).code == lib.SHMD_CODE_OK
    assert rig.stream_record(answer).gates_used == 0


def test_detach_by_correlation_id_undoes_an_attach(rig: Rig) -> None:
    client = rig.client()
    raw = client.attach_request("s", lib.SHMD_ROLE_CONSUMER)
    answer = client.ask(raw)
    client.ask(client.detach_request(answer, lease_id=0, target_correlation_id=raw.correlation_id))
    assert rig.lease_state(answer) == lib.SHMD_LEASE_DETACHED
    assert rig.lease(answer).end_reason == Reason.ABORTED


@pytest.mark.fault(25, how="detach of another client's lease")
def test_detach_of_anothers_lease_is_refused(rig: Rig) -> None:
    owner, thief = rig.client(), rig.client()
    answer = owner.consume()
    refused = thief.detach(answer)
    assert refused.reason == Reason.NOT_OWNER
    for wrong in ({"role": lib.SHMD_ROLE_PRODUCER}, {"stream": b"other"}):
        assert owner.ask(owner.detach_request(answer, **wrong)).code == lib.SHMD_CODE_INVALID_PARAMS
    assert rig.lease_state(answer) == lib.SHMD_LEASE_ATTACHED


@pytest.mark.fault(32)
def test_silent_client_is_stalled_then_recovers(rig: Rig) -> None:
    client = rig.client()
    answer = client.consume()
    rig.tick(200)
    rig.tick(2000)
    assert rig.client_state(client) == lib.SHMD_CLIENT_STALLED
    assert rig.lease_state(answer) == lib.SHMD_LEASE_STALLED
    assert rig.view.authority.degraded != 0
    client.beat()
    rig.tick(200)
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE
    assert rig.lease_state(answer) == lib.SHMD_LEASE_ACTIVE
    client.beat()
    rig.tick(1200)
    assert rig.view.authority.degraded == 0


def test_silence_past_the_deadline_expires_and_quarantines(rig: Rig) -> None:
    client = rig.client()
    answer = client.produce()
    rig.tick(11_000)
    assert rig.client_state(client) == lib.SHMD_CLIENT_GONE
    assert rig.lease_state(answer) == lib.SHMD_LEASE_EXPIRED
    assert rig.lease(answer).quarantined == 1
    record = rig.epoch(answer)
    assert record.hot.state & 0xFF == lib.SHMD_EPOCH_SEALED
    assert (record.end_reason, record.unproven) == (Reason.EXPIRED, 1)
    revoked = rig.events_of(lib.SHMD_EVENT_LEASE_REVOKED)
    assert [event.lease_id for event in revoked] == [answer.lease_id]
    assert "was silent for" in revoked[0].text


def test_death_is_proved_by_pidfd_and_ends_everything_at_once(rig: Rig) -> None:
    visitor = rig.visitor()
    client = rig.client(visitor=visitor)
    producer, consumer = client.produce("a"), client.consume("b")
    visitor.kill()
    rig.tick(150)
    assert rig.lease_state(producer) == rig.lease_state(consumer) == lib.SHMD_LEASE_EXPIRED
    assert rig.lease(producer).end_reason == Reason.DIED
    assert rig.lease(producer).quarantined == 0
    assert rig.client_state(client) == lib.SHMD_CLIENT_FREE
    assert rig.counter("CLIENTS_DIED") == 1


@pytest.mark.fault(37)
def test_unreaped_zombie_counts_as_dead(rig: Rig) -> None:
    visitor = rig.visitor()
    client = rig.client(visitor=visitor)
    visitor.process.kill()
    while rig.client_state(client) != lib.SHMD_CLIENT_FREE:  # nobody waits for it meanwhile
        rig.tick(100)
    assert visitor.process.returncode is None


def test_client_whose_last_beat_and_death_are_seen_in_one_check_leaves_no_record(rig: Rig) -> None:
    visitor = rig.visitor()
    client = rig.client(visitor=visitor)
    while rig.client_state(client) != lib.SHMD_CLIENT_STALLED:
        rig.tick(100)
    client.beat()
    visitor.kill()
    rig.tick(200)
    assert rig.client_state(client) == lib.SHMD_CLIENT_FREE


def test_dead_producer_is_reaped_before_a_second_one_is_refused(rig: Rig) -> None:
    visitor = rig.visitor()
    first = rig.client(visitor=visitor).produce()
    visitor.kill()
    second = rig.client().produce()  # no time passes
    assert second.code == lib.SHMD_CODE_OK
    assert second.epoch == first.epoch + 1


def test_last_request_of_a_dead_client_gets_nothing(rig: Rig) -> None:
    visitor = rig.visitor()
    client = rig.client(visitor=visitor)
    client.produce()
    client.send(client.attach_request("t", lib.SHMD_ROLE_PRODUCER))
    visitor.kill()
    rig.tick()
    assert rig.client_state(client) == lib.SHMD_CLIENT_FREE
    assert len(rig.driver.tables.leases) == 0


def test_goodbye_ends_what_is_open_as_aborted(rig: Rig) -> None:
    client = rig.client()
    answer = client.produce()
    consumer = rig.client().consume()
    client.goodbye()
    assert rig.epoch(consumer, answer.epoch).end_reason == Reason.ABORTED
    assert rig.client_state(client) == lib.SHMD_CLIENT_FREE


@pytest.mark.fault(31)
def test_pause_of_the_driver_expires_nobody(rig: Rig) -> None:
    client = rig.client()
    answer = client.consume()
    rig.clock.advance_ms(60_000)
    rig.tick(500)
    assert rig.lease_state(answer) == lib.SHMD_LEASE_ACTIVE


def test_limits_are_refused_with_a_number(instance_name: str) -> None:
    rig = Rig(
        instance_name,
        policies__limits__clients=1, policies__limits__leases=2, policies__limits__streams=2,
        profiles__default__max_consumers=1,
    )  # fmt: skip
    try:
        client = rig.client()
        answer = Requester(rig).hello()
        assert answer.reason == Reason.LIMIT
        assert "1 of 1 clients" in answer.text
        assert client.consume("a").code == lib.SHMD_CODE_OK
        assert "has 1 consumers" in client.consume("a").text
        assert client.consume("b").code == lib.SHMD_CODE_OK
        refused = client.consume("c")
        assert (refused.reason, "2 of 2 streams" in refused.text) == (Reason.LIMIT, True)
        assert "2 leases are live" in client.produce("a").text
    finally:
        rig.close()


def test_lease_ids_are_never_given_twice_even_across_restarts(rig: Rig) -> None:
    client = rig.client()
    first = client.consume()
    client.detach(first)
    rig.restart()
    assert client.consume().lease_id > first.lease_id


def test_revoked_client_line_waits_until_its_owner_detaches(rig: Rig) -> None:
    client = rig.client()
    client.produce()
    answer = client.consume()
    lease = rig.driver.tables.leases.live(answer.lease_id)
    assert lease is not None
    rig.driver.tables.tenure.revoke(lease, Reason.REVOKED, "test", rig.clock.now_ns)
    assert rig.stream_record(answer).gates_used == 1
    client.detach(answer)
    assert rig.stream_record(answer).gates_used == 0
    assert rig.lease(answer).quarantined == 0


def test_confirmation_deadline_allows_time_to_map(rig: Rig) -> None:
    client = rig.client()
    raw = client.attach_request("s", lib.SHMD_ROLE_CONSUMER, deadline_ns=rig.clock.now_ns + 1 * MS)
    answer = client.ask(raw)
    rig.tick(500)
    assert rig.lease_state(answer) == lib.SHMD_LEASE_ATTACHED


def test_changes_wake_those_that_wait_and_answers_do_not(rig: Rig) -> None:
    def wakes(act: Callable[[], object]) -> bool:
        before = int(rig.view.authority.change_word)
        act()
        return int(rig.view.authority.change_word) != before

    client = rig.client()
    answers: list[Any] = []
    assert wakes(lambda: answers.append(client.produce()))  # an epoch begins
    for _ in range(3):
        assert not wakes(lambda: answers.append(client.consume()))
    assert not wakes(rig.client)
    assert not wakes(rig.driver.announce)
    assert wakes(lambda: client.detach(answers[1]))  # its producer may wait for it
    assert wakes(rig.restart)  # the one before may have been killed before it told of a change
    lease = rig.driver.tables.leases.live(answers[2].lease_id)
    assert lease is not None
    now_ns = rig.clock.now_ns
    assert wakes(lambda: rig.driver.tables.tenure.revoke(lease, Reason.EVICTED, "slow", now_ns))
    assert wakes(lambda: client.detach(answers[0]))  # a seal
