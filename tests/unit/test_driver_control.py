"""The control ring read: garbage, dead claimers, floods, forged identities; who may shut a driver down."""

from __future__ import annotations

import random

import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver.authentication import create_token, read_token, sign_request
from shmdriver.errors import Code, Reason, ShmDriverError
from tests.driver_rig import Requester, Rig, turn


def test_wrong_checksum_is_counted_and_harms_nobody(rig: Rig) -> None:
    client = rig.client()
    raw = client.attach_request("s", lib.SHMD_ROLE_CONSUMER)
    position = rig.view.claim(client.who)
    rig.view.commit(position, client.who, raw, client.nonce + 1)
    rig.tick()
    assert rig.counter("REQUESTS_CORRUPT") == 1
    assert client.consume().code == lib.SHMD_CODE_OK


@pytest.mark.fault(23, how="random bytes in every control slot")
def test_bytes_of_garbage_in_every_slot_are_survived(rig: Rig) -> None:
    client = rig.client()
    chance = random.Random(7)
    for _ in range(200):
        position = rig.view.claim(client.who)
        slot = rig.view.slot(position)
        garbage = chance.randbytes(ffi.sizeof("shmd_request_t"))
        ffi.memmove(ffi.addressof(slot, "request"), garbage, len(garbage))
        slot.turn = turn(position, chance.choice([client.who, 0, 2**27 - 1]), lib.SHMD_TURN_COMMITTED)
        rig.tick()
    for _ in range(50):
        rig.view.slot(int(rig.view.authority.control_cursor)).turn = chance.getrandbits(64)
        rig.tick(60)
    rig.view.control.tail = 2**63
    rig.tick(500)
    client.beat()
    assert client.consume().code == lib.SHMD_CODE_OK
    assert rig.driver.state.value in ("running.healthy", "running.degraded")


def test_control_header_that_a_client_wrote_over_is_written_again(rig: Rig) -> None:
    header = bytes(ffi.buffer(rig.view.control, 256))
    ffi.memmove(rig.view.control, b"\xff" * 256, 256)
    rig.tick(200)
    assert bytes(ffi.buffer(rig.view.control, 256)) == header
    assert rig.counter("REQUESTS_CORRUPT") == 1
    rig.client()


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


@pytest.mark.fault(27, how="a claim that nobody commits")
def test_claim_that_is_never_committed_holds_others_up_only_for_its_patience(rig: Rig) -> None:
    lame, client = rig.client(), rig.client()
    held = rig.view.claim(lame.who)
    correlation = client.send(client.attach_request("s", lib.SHMD_ROLE_CONSUMER))
    rig.tick(lib.SHMD_CLAIM_PATIENCE_MS + 60, step_ms=10)
    assert rig.answer(correlation).code == lib.SHMD_CODE_OK
    assert rig.counter("CLAIMS_QUARANTINED") == 1
    quarantined = turn(held, lame.who, lib.SHMD_TURN_QUARANTINED)
    assert rig.view.slot(held).turn == quarantined  # so its late commit fails
    rig.view.slot(held).turn = turn(held, lame.who, lib.SHMD_TURN_RELEASED)
    rig.tick(200)
    assert rig.view.slot(held).turn == turn(held + lib.SHMD_CONTROL_SLOTS, 0, lib.SHMD_TURN_FREE)


@pytest.mark.fault(28, how="40 attaches at once")
def test_flood_of_one_client_does_not_hold_up_another(rig: Rig) -> None:
    flooder, client = rig.client(), rig.client()
    for number in range(40):
        flooder.send(flooder.attach_request(f"s{number}", lib.SHMD_ROLE_CONSUMER))
    correlation = client.send(client.attach_request("t", lib.SHMD_ROLE_CONSUMER))
    rig.tick()
    assert rig.answer(correlation).code == lib.SHMD_CODE_OK
    assert len(rig.driver.tables.leases) < 40
    assert rig.driver.next_deadline_ns() == rig.clock.now_ns  # the rest waits, so the loop does not sleep
    for _ in range(10):
        rig.tick()
    assert len(rig.driver.tables.leases) == 41


def test_small_budget_leaves_the_rest_to_the_next_tick_at_once(instance_name: str) -> None:
    rig = Rig(instance_name, policies__limits__attaches_per_tick=1)
    try:
        client = rig.client()
        sent = [client.send(client.attach_request(f"s{n}", lib.SHMD_ROLE_CONSUMER)) for n in range(4)]
        for _ in sent:
            rig.tick()
            assert rig.driver.next_deadline_ns() <= rig.clock.now_ns or len(rig.driver.tables.leases) == 4
        assert all(rig.answer(correlation).code == lib.SHMD_CODE_OK for correlation in sent)
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
    for _ in range(3 * lib.SHMD_CONTROL_SLOTS):
        client.detach(client.consume())
    assert rig.counter("REQUESTS") == 1 + 6 * lib.SHMD_CONTROL_SLOTS


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
