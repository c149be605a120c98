"""Each client's control segment read: garbage, floods, forged ids, notes; who may shut a driver down."""

from __future__ import annotations

import os
import random

import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver.authentication import create_token, read_token, sign_request
from shmdriver.errors import Code, Reason, ShmDriverError
from tests.driver_rig import Requester, Rig

CONSUMER = lib.SHMD_ROLE_CONSUMER


def is_known(rig: Rig, client: Requester) -> bool:
    return rig.client_state(client) in (lib.SHMD_CLIENT_ALIVE, lib.SHMD_CLIENT_STALLED)


def test_wrong_checksum_is_counted_and_passed_over(rig: Rig) -> None:
    client, other = rig.client(), rig.client()
    client.put(client.attach_request("s", CONSUMER), checksum=1)
    assert client.consume().code == Code.OK
    assert rig.counter("REQUESTS_CORRUPT") == 1
    assert other.consume().code == Code.OK


@pytest.mark.fault(23, how="random bytes in every slot of a client's control ring")
def test_bytes_of_garbage_in_every_slot_are_survived(rig: Rig) -> None:
    client, other = rig.client(), rig.client()
    chance = random.Random(7)
    for number in range(200):
        control = client.control
        slot = ffi.addressof(control.requests, int(control.tail) % lib.SHMD_CLIENT_REQUESTS)
        ffi.memmove(slot, chance.randbytes(ffi.sizeof("shmd_request_t")), ffi.sizeof("shmd_request_t"))
        control.tail += 1
        client.ring()
        client.beat()
        other.beat()
        rig.tick(20)  # a client is heard again and again, but not at every byte
        assert rig.counter("REQUESTS_CORRUPT") == number + 1
    assert client.consume().code == Code.OK, "what comes after garbage is heard"
    assert other.consume().code == Code.OK
    assert rig.driver.state.value == "running.healthy"


@pytest.mark.fault(47, how="random bytes over a whole control segment of its own")
@pytest.mark.parametrize("seed", range(8))
def test_client_that_writes_over_its_own_segment_harms_itself_alone(rig: Rig, seed: int) -> None:
    client, other = rig.client(), rig.client()
    lost, kept = client.produce("a"), other.produce("b")
    size = ffi.sizeof("shmd_control_t")
    ffi.memmove(client.control, random.Random(seed).randbytes(size), size)
    client.ring()
    rig.tick(500)
    assert not is_known(rig, client)
    assert client.hear() is None
    assert rig.lease_state(lost) == lib.SHMD_LEASE_REVOKED
    assert rig.lease(lost).end_reason == Reason.EXPELLED
    assert rig.lease_state(kept) == lib.SHMD_LEASE_ACTIVE
    assert other.produce("c").code == Code.OK
    told = [event.text for event in rig.events_of(lib.SHMD_EVENT_LEASE_REVOKED)]
    assert len(told) == 1
    assert f"(pid {client.pid}), uid {os.geteuid()}, is expelled" in told[0]
    assert told[0] in rig.logged


@pytest.mark.parametrize("tail", [5, 2**63, 2**64 - 1])
def test_impossible_tail_expels_its_client(rig: Rig, tail: int) -> None:
    client = rig.client()
    client.control.tail = tail
    client.ring()
    rig.tick()
    assert not is_known(rig, client)
    assert rig.counter("REQUESTS_CORRUPT") == 1
    assert rig.client().consume().code == Code.OK


@pytest.mark.fault(7, how="a client truncates its own control segment")
def test_client_that_truncates_its_segment_is_expelled(rig: Rig) -> None:
    client, other = rig.client(), rig.client()
    lost, kept = client.produce("a"), other.produce("b")
    os.truncate(rig.control_path(client), 0)
    rig.tick(500)
    assert not is_known(rig, client)
    assert rig.lease(lost).end_reason == Reason.EXPELLED
    assert rig.lease_state(kept) == lib.SHMD_LEASE_ACTIVE
    assert any("truncated" in line and "is expelled" in line for line in rig.logged)


def test_request_rung_by_nobody_is_found_by_the_next_lease_check(rig: Rig) -> None:
    client = rig.client()
    raw = client.attach_request("s", CONSUMER)
    client.put(raw)
    rig.tick()
    assert not [event for event in rig.events if event.correlation_id == raw.correlation_id]
    rig.tick(200)
    assert rig.answer(raw.correlation_id).code == Code.OK


def test_request_that_was_left_while_no_driver_lived_is_served_by_the_next(rig: Rig) -> None:
    client = rig.client()
    lease = client.consume()
    rig.crash()
    client.send(client.detach_request(lease))
    rig.start(alone=True)
    rig.tick(200)
    assert rig.lease(lease).end_reason == Reason.CLOSED


# ---- notes of leases, which wait for no answer


@pytest.mark.parametrize(
    ("how", "reason"),
    [(lib.SHMD_ENTRY_DETACHED, Reason.CLOSED), (lib.SHMD_ENTRY_ABORTED, Reason.ABORTED)],
)
def test_lease_that_its_client_notes_as_left_ends_at_once(rig: Rig, how: int, reason: Reason) -> None:
    client = rig.client()
    lease = client.produce()
    client.leave(lease, how)
    rig.tick()
    assert rig.lease_state(lease) == lib.SHMD_LEASE_DETACHED
    assert rig.lease(lease).end_reason == reason
    assert client.produce().code == Code.OK


def test_clean_end_while_no_driver_lived_is_no_death(rig: Rig) -> None:
    visitor = rig.visitor()
    client = rig.client(visitor=visitor)
    lease, other = client.produce(), client.consume("t")
    rig.crash()
    client.leave(lease)
    visitor.kill()
    rig.start()
    assert rig.epoch(lease).end_reason == Reason.CLOSED
    assert rig.lease(other).end_reason == Reason.DIED


def test_note_of_an_earlier_lease_says_nothing_of_a_later_one_in_its_entry(rig: Rig) -> None:
    client = rig.client()
    first = client.consume()
    client.leave(first)
    rig.tick()
    second = client.consume()
    assert second.entry == first.entry
    rig.tick(500)
    assert rig.lease_state(second) == lib.SHMD_LEASE_ACTIVE


def test_client_with_too_many_leases_is_refused_by_number(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__leases=500, profiles__default__max_consumers=64)
    try:
        client = rig.client()
        most = int(lib.SHMD_CLIENT_LEASES)
        for number in range(most):
            assert client.consume(f"s{number // 64}").entry == number
            rig.clock.advance_ms(1)  # its doorbell is heard so often in a while, and not without end
        answer = client.consume("s")
        assert answer.reason == Reason.LIMIT
        assert f"has {most} leases" in answer.text
        assert rig.client().consume("s").code == Code.OK
    finally:
        rig.close()


# ---- requests


@pytest.mark.fault(23, how="values out of range in requests")
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"role": 9}, "role"),
        ({"delivery": 0}, "delivery"),
        ({"stream": b"no spaces please"}, "name"),
        ({"stream": b"../etc"}, "name"),
        ({"slots": 2**31, "role": lib.SHMD_ROLE_PRODUCER}, "slots"),
        ({"flags": 0x8000}, "flags"),
        ({"layout_version": 99}, "layout version"),
    ],
)
def test_invalid_values_are_answered_with_what_is_allowed(rig: Rig, fields, words) -> None:
    client = rig.client()
    raw = client.attach_request("s", fields.get("role", lib.SHMD_ROLE_CONSUMER))
    for name, value in fields.items():
        setattr(raw, name, value)
    answer = client.ask(raw)
    assert answer.code in (lib.SHMD_CODE_INVALID_PARAMS, lib.SHMD_CODE_UNSUPPORTED)
    assert words in answer.text


@pytest.mark.fault(28, how="a ring that is always full")
def test_flood_of_one_client_does_not_hold_up_another(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__attaches_per_tick=8)  # a share of one request a tick
    try:
        flooder, client = rig.client(), rig.client()
        for number in range(lib.SHMD_CLIENT_REQUESTS):
            flooder.send(flooder.attach_request(f"s{number}", CONSUMER))
        with pytest.raises(AssertionError, match="its ring is full"):
            flooder.put(flooder.attach_request("s", CONSUMER))
        correlation = client.send(client.attach_request("t", CONSUMER))
        rig.tick()
        assert rig.answer(correlation).code == Code.OK
        assert len(rig.driver.tables.leases) == 2
        assert rig.driver.next_deadline_ns() == rig.clock.now_ns  # the rest waits, so the loop does not sleep
        for _ in range(lib.SHMD_CLIENT_REQUESTS):
            rig.tick()
        assert len(rig.driver.tables.leases) == 1 + lib.SHMD_CLIENT_REQUESTS
    finally:
        rig.close()


def test_small_budget_leaves_the_rest_to_the_next_tick_at_once(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__attaches_per_tick=1)
    try:
        client = rig.client()
        sent = [client.send(client.attach_request(f"s{n}", CONSUMER)) for n in range(4)]
        for _ in sent:
            rig.tick()
            assert rig.driver.next_deadline_ns() <= rig.clock.now_ns or len(rig.driver.tables.leases) == 4
        assert all(rig.answer(correlation).code == Code.OK for correlation in sent)
    finally:
        rig.close()


@pytest.mark.fault(25, how="another client's id")
def test_forged_client_id_is_no_client(rig: Rig) -> None:
    client, other = rig.client(), rig.client()
    raw = client.attach_request("s", lib.SHMD_ROLE_CONSUMER, client_id=other.client_id)
    client.send(raw)
    rig.tick()
    assert rig.counter("REQUESTS_CORRUPT") == 1
    assert len(rig.driver.tables.leases) == 0


def test_more_requests_than_slots_are_served_over_laps(rig: Rig) -> None:
    client = rig.client()
    for _ in range(3 * lib.SHMD_CLIENT_REQUESTS):
        client.detach(client.consume())
    assert rig.counter("REQUESTS") == 1 + 6 * lib.SHMD_CLIENT_REQUESTS


# ---- authentication


def state_of(rig: Rig) -> str:
    return rig.driver.state.value


def _signed(
    client: Requester, kind: int, admin: int, *, nonce: int = 1, token: bytes | None = None, **fields
):
    raw = client.request(kind, admin=admin, **fields)
    sign_request(
        raw,
        token if token is not None else client.rig.token or b"",
        instance=client.rig.instance,
        boot_id=int(client.rig.view.authority.header.boot_id),
        client_id=client.client_id,
        nonce=nonce,
    )
    return raw


def test_signed_shutdown_drains_and_stops(rig: Rig) -> None:
    client = rig.client()
    answer = client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END, text=b"over"))
    assert answer.code == lib.SHMD_CODE_OK
    assert rig.driver.state.value == "stopped"


@pytest.mark.fault(29, how="a signed request, changed")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: setattr(raw, "nonce", 2),
        lambda raw: setattr(raw, "admin", lib.SHMD_SHUTDOWN_HANDOVER),
        lambda raw: setattr(raw, "text", b"other words"),
        lambda raw: setattr(raw, "correlation_id", int(raw.correlation_id) ^ 2),
        lambda raw: setattr(raw, "deadline_ns", int(raw.deadline_ns) + 1),
        lambda raw: ffi.memmove(raw.hmac, bytes(32), 32),
    ],
)
@pytest.mark.fault(29)
def test_changed_request_is_refused(rig: Rig, spoil) -> None:
    client = rig.client()
    raw = _signed(client, lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END)
    spoil(raw)
    assert client.ask(raw).reason == Reason.TOKEN
    assert rig.counter("AUTH_REFUSED") == 1
    assert rig.driver.state.value == "running.healthy"


@pytest.mark.fault(29, how="replay")
def test_replayed_request_is_refused_also_by_a_successor(rig: Rig) -> None:
    client = rig.client()
    on = _signed(client, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_MAINTENANCE_ON, nonce=5)
    assert client.ask(on).code == lib.SHMD_CODE_OK
    assert client.ask(on).reason == Reason.TOKEN
    rig.restart()
    assert client.ask(on).reason == Reason.TOKEN


@pytest.mark.fault(29, how="an order that timed out, sent again by another client under its id")
def test_order_that_timed_out_is_executed_by_nobody(rig: Rig) -> None:
    client, thief = rig.client(), rig.client()
    order = _signed(client, lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END)
    rig.tick(6000)
    thief.send(order)  # in its own name: garbage
    client.send(order)
    rig.tick()
    assert rig.counter("REQUESTS_EXPIRED") == 1
    order.deadline_ns = rig.clock.now_ns + 1_000_000_000
    assert client.ask(order).reason == Reason.TOKEN
    assert state_of(rig).startswith("running.")


@pytest.mark.fault(29, how="an order for another instance with the same token")
def test_order_for_another_instance_is_refused(rig: Rig) -> None:
    client = rig.client()
    order = client.request(lib.SHMD_REQUEST_SHUTDOWN, admin=lib.SHMD_SHUTDOWN_END)
    sign_request(
        order,
        rig.token or b"",
        instance="another",
        boot_id=int(rig.view.authority.header.boot_id),
        client_id=client.client_id,
        nonce=1,
    )
    assert client.ask(order).reason == Reason.TOKEN
    assert state_of(rig) == "running.healthy"


@pytest.mark.fault(29, how="no token")
def test_without_a_token_nobody_shuts_down(rig: Rig) -> None:
    rig.token = None
    rig.restart()
    client = rig.client()
    refused = client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END, token=b"x" * 32))
    assert refused.reason == Reason.TOKEN
    assert "no shutdown token" in refused.text


@pytest.mark.fault(29, how="wrong tokens, many")
def test_refusals_are_rate_limited(rig: Rig) -> None:
    client = rig.client()
    reasons = [
        client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, 1, token=b"wrong" * 8)).reason for _ in range(7)
    ]
    assert reasons == [Reason.TOKEN] * 5 + [Reason.RATE] * 2
    rig.tick(1000)
    assert client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, 1)).code == lib.SHMD_CODE_OK


@pytest.mark.fault(29, how="wrong tokens of one client, many a second, beside the administrator")
def test_refusals_of_one_client_lock_nobody_else_out(rig: Rig) -> None:
    client, admin = rig.client(), rig.client()
    for _ in range(20):
        client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, 1, token=b"wrong" * 8))
    assert client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, 1)).reason == Reason.RATE
    snapshot = _signed(admin, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_SNAPSHOT, nonce=1)
    assert admin.ask(snapshot).code == lib.SHMD_CODE_OK


def test_maintenance_refuses_attaches_and_ends(rig: Rig) -> None:
    client = rig.client()
    attached = client.consume()
    client.ask(_signed(client, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_MAINTENANCE_ON, nonce=1))
    assert client.consume("t").reason == Reason.MAINTENANCE
    assert client.detach(attached).code == lib.SHMD_CODE_OK
    client.ask(_signed(client, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_MAINTENANCE_OFF, nonce=2))
    assert client.consume("t").code == lib.SHMD_CODE_OK


def test_draining_driver_refuses_what_would_be_a_lie(rig: Rig) -> None:
    client = rig.client()
    client.consume()
    asked = _signed(client, lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END, nonce=1, text=b"over")
    assert client.ask(asked).code == lib.SHMD_CODE_OK
    assert state_of(rig) == "draining"
    refused = [
        client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_HANDOVER, nonce=2)),
        client.ask(_signed(client, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_MAINTENANCE_ON, nonce=3)),
        client.ask(_signed(client, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_MAINTENANCE_OFF, nonce=4)),
        client.consume("t"),
        client.produce("t"),
    ]
    assert [answer.reason for answer in refused] == [Reason.DRAINING] * 5
    assert all(answer.text.startswith("driver draining") for answer in refused)
    assert state_of(rig) == "draining"
    assert rig.client().client_id, "whoever wants to look, or to send a signed request, is a client too"
    snapshot = client.ask(_signed(client, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_SNAPSHOT, nonce=5))
    assert snapshot.text.startswith("draining: ")
    again = client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END, nonce=6))
    assert "now" in again.text
    assert state_of(rig) == "stopped"


def test_draining_announces_and_shows_its_counters_once(rig: Rig) -> None:
    client = rig.client()
    client.produce("a")
    client.consume("b")
    seen = len(rig.events)
    client.ask(_signed(client, lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END))
    news = [event for event in rig.events[seen:] if event.kind != lib.SHMD_EVENT_ADMIN_RESPONSE]
    assert [(event.kind, event.stream) for event in news] == [
        (lib.SHMD_EVENT_LIFECYCLE_CHANGED, ""),
        (lib.SHMD_EVENT_STREAM_ANNOUNCE, "a"),
        (lib.SHMD_EVENT_STREAM_ANNOUNCE, "b"),
    ]
    assert news[0].text.startswith("running.healthy -> draining; requests ")
    assert "attaches 2" in news[0].text


def test_administration_is_audited(rig: Rig) -> None:
    client = rig.client()
    client.ask(_signed(client, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_SNAPSHOT, token=b"wrong" * 8))
    client.ask(_signed(client, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_MAINTENANCE_ON, text=b"a move"))
    refused, allowed = rig.events_of(lib.SHMD_EVENT_ADMIN_RESPONSE)
    assert (refused.reason, allowed.code) == (Reason.TOKEN, lib.SHMD_CODE_OK)
    error = lib.shmd_authority_error(rig.view.authority, 0)
    assert (error.count, b"wrong shutdown token" in ffi.string(error.text)) == (1, True)
    said = "\n".join(rig.logged)
    assert f"refused a request for administration of 'requester' (pid {client.pid})" in said
    assert f"maintenance on: a move ('requester' (pid {client.pid}))" in said


def test_event_storm_degrades_until_it_has_been_quiet_for_a_while(rig: Rig) -> None:
    client = rig.client()
    client.consume("a")
    rig.tick(200)
    for _ in range(int(rig.view.authority.event_slots) + 1):
        rig.driver.tables.announce_all()
    rig.tick(100)
    assert state_of(rig) == "running.degraded"
    assert rig.driver._lifecycle.reasons == {"lost_events"}
    for _ in range(9):
        client.beat()
        rig.tick(1000)
    assert state_of(rig) == "running.degraded"
    client.beat()
    rig.tick(1500)
    assert state_of(rig) == "running.healthy"


def test_administrator_revokes_a_lease_and_takes_a_snapshot(rig: Rig) -> None:
    client, admin = rig.client(), rig.client()
    attached = client.consume()
    asked = _signed(admin, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_REVOKE, nonce=1, lease_id=attached.lease_id)
    assert admin.ask(asked).code == lib.SHMD_CODE_OK
    assert rig.lease_state(attached) == lib.SHMD_LEASE_REVOKED
    again = _signed(admin, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_REVOKE, nonce=2, lease_id=attached.lease_id)
    assert admin.ask(again).code == Code.INVALID_PARAMS
    snapshot = admin.ask(_signed(admin, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_SNAPSHOT, nonce=3))
    assert "2 clients, 0 leases" in snapshot.text


def test_token_files_are_private_and_checked(tmp_path) -> None:
    path = tmp_path / "x.token"
    token = create_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == token
    path.chmod(0o644)
    with pytest.raises(ShmDriverError, match=r"mode 0644, so others .* 0640 at most: make a new token"):
        read_token(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ShmDriverError, match="5 bytes"):
        read_token(path)
    with pytest.raises(ShmDriverError, match="No such file"):
        read_token(tmp_path / "none")
