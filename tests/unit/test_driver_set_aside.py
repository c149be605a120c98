"""What is set aside for clients whose end nobody proves: what they may have mapped, and not for ever."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from shmdriver._native import lib
from shmdriver.driver.authentication import sign_request
from shmdriver.errors import Code, Reason
from tests.driver_rig import Requester, Rig

FOLLOW: dict[str, Any] = {"flags": lib.SHMD_ATTACH_CREATE | lib.SHMD_ATTACH_FOLLOW}
SILENT_MS = 12_000


def expires(rig: Rig, silent: Requester, *beating: Requester) -> None:
    """Time passes until the silent one has expired; the others beat."""
    for _ in range(SILENT_MS // 1000):
        for client in beating:
            client.beat()
        rig.tick(1000)
    assert rig.client_state(silent) in (lib.SHMD_CLIENT_GONE, lib.SHMD_CLIENT_FREE)


def set_aside(rig: Rig) -> list[int]:
    return [lease.lease_id for lease in rig.driver.tables.leases.all_quarantined]


def test_gate_is_set_aside_while_an_epoch_is_there_that_its_owner_may_have_mapped(rig: Rig) -> None:
    writer, lost, reader = rig.client(), rig.client(is_elsewhere=True), rig.client()
    first = writer.produce()
    gone = lost.consume(**FOLLOW)
    expires(rig, lost, writer, reader)
    assert rig.client_state(lost) == lib.SHMD_CLIENT_GONE
    assert set_aside(rig) == [gone.lease_id]
    other = reader.consume()
    assert other.gate != gone.gate, "it may still write there"
    reader.detach(other)
    writer.detach(first)
    second = writer.produce()
    assert second.epoch == first.epoch + 1
    assert rig.epoch(first) is not None
    later = reader.consume(**FOLLOW)
    assert later.gate == gone.gate, "in an epoch that it never had mapped nothing is its own"
    assert set_aside(rig) == [gone.lease_id]
    for _ in range(12):  # policies.grace_ms, after which the first epoch is retired
        writer.beat()
        reader.beat()
        rig.tick(1000)
    assert rig.epoch(first) is None
    assert set_aside(rig) == []
    assert rig.client_state(lost) == lib.SHMD_CLIENT_FREE
    assert rig.stream_record(second).gates_used >> later.gate & 1, "that of the present owner"


def test_deploys_whose_ends_nobody_proves_are_not_refused_in_the_end(instance_name: str) -> None:
    """Twenty of them, where four gates and eight clients are there."""
    rig = Rig(
        instance_name, policies__limits__clients=8, policies__grace_ms=500,
        profiles__default__max_consumers=4,
    )  # fmt: skip
    try:
        writer = rig.client()
        for _ in range(20):
            deployed = rig.client(is_elsewhere=True)
            producer = writer.produce()
            answer = deployed.consume(**FOLLOW)
            assert answer.code == Code.OK, answer.text
            expires(rig, deployed, writer)
            writer.detach(producer)
        assert len(rig.driver.tables.clients) <= 2
    finally:
        rig.close()


def test_set_aside_lines_are_adopted_with_the_epochs_that_they_are_in(rig: Rig) -> None:
    writer, lost, reader = rig.client(), rig.client(is_elsewhere=True), rig.client()
    first = writer.produce()
    gone = lost.consume(**FOLLOW)
    expires(rig, lost, writer, reader)
    rig.restart()
    rig.tick()
    assert set_aside(rig) == [gone.lease_id]
    assert reader.consume().gate != gone.gate
    writer.detach(first)
    writer.produce()
    rig.restart()
    rig.tick()
    assert reader.consume(**FOLLOW).gate == gone.gate
    rig.restart()
    assert set_aside(rig) == [gone.lease_id]


def test_client_that_comes_back_frees_what_was_set_aside_by_its_note(rig: Rig) -> None:
    writer, slow = rig.client(), rig.client(is_elsewhere=True)
    writer.produce()
    gone = slow.consume()
    expires(rig, slow, writer)
    assert set_aside(rig) == [gone.lease_id]
    slow.leave(gone)
    rig.tick(200)
    assert set_aside(rig) == []


@pytest.mark.parametrize("comes", ["tick", "successor"])
def test_client_that_has_expired_is_forgotten_once_it_has_noted_what_it_left(rig: Rig, comes: str) -> None:
    writer, late = rig.client(), rig.client(is_elsewhere=True)
    writer.produce()
    held = [late.consume(), late.consume()]
    expires(rig, late, writer)
    late.leave(held[0])
    rig.tick(1000)
    assert set_aside(rig) == [held[1].lease_id]
    assert rig.client_state(late) == lib.SHMD_CLIENT_GONE
    late.leave(held[1])
    if comes == "successor":
        rig.restart()
    else:
        rig.tick(1000)
    assert set_aside(rig) == []
    assert rig.client_state(late) == lib.SHMD_CLIENT_FREE


def test_administrator_forgets_a_client_that_is_gone(rig: Rig) -> None:
    writer, lost = rig.client(), rig.client(is_elsewhere=True)
    writer.produce()
    gone = lost.consume()
    token = rig.token
    assert token is not None

    nonces = count(1)

    def forget(client_id: int) -> SimpleNamespace:
        raw = writer.request(
            lib.SHMD_REQUEST_ADMIN, admin=lib.SHMD_ADMIN_FORGET, lease_id=client_id, text=b"it was rebuilt"
        )
        nonce = next(nonces)
        sign_request(
            raw,
            token,
            instance=rig.instance,
            boot_id=rig.boot_id,
            client_id=writer.client_id,
            nonce=nonce,
        )
        return writer.ask(raw)

    refused = forget(lost.client_id)
    assert refused.reason == Reason.NOT_OWNER
    assert "beats and is not gone" in refused.text
    expires(rig, lost, writer)
    assert set_aside(rig) == [gone.lease_id]
    assert forget(lost.client_id).code == Code.OK
    assert set_aside(rig) == []
    assert rig.client_state(lost) == lib.SHMD_CLIENT_FREE
    assert any("it was rebuilt" in line for line in rig.logged)
    assert "there is no client 999" in forget(999).text


def test_hello_from_before_exec_that_is_heard_late_ends_nobody(rig: Rig) -> None:
    visitor = rig.visitor(sockets=2)
    early = Requester(rig, visitor=visitor)
    late_hello = early.hello_message(image=5)
    present = rig.client(visitor=visitor, image=6, serial=2)
    early.say(late_hello)
    rig.tick()
    assert early.hear() is None
    assert rig.client_state(present) == lib.SHMD_CLIENT_ALIVE
    assert len(rig.driver.tables.clients) == 1


@pytest.mark.parametrize("need", ["bytes"])
def test_client_without_memory_for_its_segment_is_refused_with_the_numbers(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, need: str
) -> None:
    from shmdriver.driver.limits import ShmSpace

    rig.client()
    small = ShmSpace(total=1 << 20, free=4096, inodes=1000)
    with monkeypatch.context() as patch:
        patch.setattr(ShmSpace, "known", classmethod(lambda _cls: small))
        answer = Requester(rig).hello()
    assert answer.reason == Reason.NO_MEMORY
    assert "16384 bytes each" in answer.text, need
    assert rig.client().consume().code == Code.OK
