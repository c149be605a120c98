"""Claims: each has an owner at every moment, and after its end its memory is the readers' alone."""

from __future__ import annotations

import ctypes
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.client.tensor import FLAG
from tests.integration.test_client_reconnect import (  # the fixtures by name
    PATIENCE_S,
    client,
    instance,
    lease_of,
    revoke,
)

__all__ = ["client", "instance"]

LENGTHS = (64, 6000)  # in a slot, in the arena
SLOTS = 16
MARK = b"a whole message"


@pytest.fixture
def reader(client: shmdriver.Client) -> shmdriver.Consumer:
    return client.consumer("s")


@pytest.fixture
def out(client: shmdriver.Client, reader: shmdriver.Consumer) -> Iterator[shmdriver.Producer]:
    with client.producer("s", slots=SLOTS, max_message=8192) as out:
        yield out


# ---- interrupted


class Alarm(Exception):
    """Raised by a signal's handler."""


class Interrupting:
    """Runs a function again and again until a signal's handler raises in it."""

    def __init__(self) -> None:
        self.is_armed = False
        self.count = 0

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_armed:
            raise Alarm

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGALRM, self._before)

    def run(self, function: Callable[[], object], delay_s: float) -> Alarm:
        try:
            try:
                self.is_armed = True
                # Again and again: what a handler raises within a finaliser goes nowhere.
                signal.setitimer(signal.ITIMER_REAL, delay_s, 0.01)
                while True:
                    function()
            finally:
                self.is_armed = False
        except Alarm as error:
            self.is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.count += 1
            return error


def with_claim(out: shmdriver.Producer, length: int, number: int) -> None:
    with out.claim(length) as place:
        place.view[:] = bytes([number]) * length


def with_claim_unnamed(out: shmdriver.Producer, length: int, number: int) -> None:
    del number
    with out.claim(length):
        pass


def claim_and_commit(out: shmdriver.Producer, length: int, number: int) -> None:
    place = out.claim(length)
    place.view[:] = bytes([number]) * length
    place.commit()


def claim_and_abort(out: shmdriver.Producer, length: int, number: int) -> None:
    place = out.claim(length)
    place.view[:] = bytes([number]) * length
    place.abort()


def with_array(out: shmdriver.Producer, length: int, number: int) -> None:
    with out.claim_array((length // 8, 8), "u1") as array:
        array[:] = number


def with_kept_slice(out: shmdriver.Producer, length: int, number: int) -> None:
    with out.claim_array((length // 8, 8), "u1") as array:
        row = array[0]
        array[:] = number
        row[:] = number


def strided(out: shmdriver.Producer, length: int, number: int) -> None:
    out.publish_array(np.full((length // 8, 16), number, "u1")[:, ::2])


FORMS = [
    with_claim, with_claim_unnamed, claim_and_commit, claim_and_abort, with_array, with_kept_slice, strided,
]  # fmt: skip


def check(message: shmdriver.Message, form: Callable[..., object]) -> None:
    """What a form commits is whole: all of its bytes are equal."""
    if form is not with_claim_unnamed and bytes(message) != MARK:
        payload = message.array.tobytes() if message.flags & FLAG else bytes(message)
        assert len(set(payload)) <= 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.fault(49, how="1,000 handlers that raise in each way to claim")
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
def test_interrupted_claim_leaves_the_producer_usable_and_no_message_torn(out, reader, form, length):
    kept: list[Alarm] = []
    read = 0

    def turn() -> None:
        form(out, length, out.seq % 251)
        while reader.read(timeout=0) is not None:
            pass

    turn()  # what is imported late is there
    gc.collect()  # a handler that raises in a finaliser of earlier tests tells nothing
    with Interrupting() as interrupting:
        while interrupting.count < 1000:
            error = interrupting.run(turn, 30e-6 + 1e-6 * (interrupting.count % 100))
            if form in (with_claim_unnamed, with_array):  # no frame of the program refers to the claim
                kept.append(error)
            del error
            seq = out.seq
            out.publish(MARK, timeout=PATIENCE_S)  # ClaimError, if a claim were open still
            assert out.seq == seq + 1
            while (message := reader.read(timeout=0)) is not None:
                check(message, form)
                read = message.seq + 1
            assert read == seq + 1
    assert reader.lost == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.fault(49, how="handlers that raise in claims that wait for room, which a thread makes")
@pytest.mark.parametrize("form", [with_claim, with_claim_unnamed, with_array])
def test_claim_that_is_interrupted_while_it_waits_for_room_leaves_the_producer_usable(out, reader, form):
    is_over = threading.Event()
    seen: list[int] = []

    def read_on() -> None:
        while not is_over.is_set() or reader.lag:
            message = reader.read(timeout=0.01)
            if message is not None:
                check(message, form)
                seen.append(message.seq)

    form(out, 64, 7)  # what is imported late is there
    gc.collect()
    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        with Interrupting() as interrupting:
            while interrupting.count < 1000:
                interrupting.run(lambda: form(out, 64, 7), 200e-6 + 10e-6 * (interrupting.count % 100))
                out.publish(MARK, timeout=PATIENCE_S)
    finally:
        is_over.set()
        thread.join()
    assert seen == list(range(out.seq))


# ---- dropped


@pytest.mark.fault(49, how="claims that are dropped, and whose commit is interrupted")
@pytest.mark.parametrize("length", LENGTHS)
def test_dropped_claim_gives_its_place_back(out, reader, length):
    for call in (out.claim, out.claim_array):
        place = call(length)
        assert place.open
        del place
        out.publish(b"next")
        assert bytes(reader.read(timeout=0)) == b"next"
    assert reader.read(timeout=0) is None


@pytest.mark.parametrize("how", ["committed", "aborted", "dropped"])
def test_claim_of_an_earlier_tenure_leaves_the_present_claim_alone(instance, client, how):
    out = client.producer("s", slots=SLOTS, max_message=8192)
    first = [out.claim(8)]
    revoke(instance, lease_of(out))
    while out._comeback.left is not None or not out.reattachments:
        out._comeback.come_back(out, shmdriver.Reason.REVOKED, 0)
    reader = client.consumer("s")
    with out.claim(8) as second:
        second.view[:] = b"12345678"
        if how == "committed":
            with pytest.raises(shmdriver.ClaimError):
                first[0].commit()
        if how == "aborted":
            first[0].abort()
        first.clear()
        assert second.open
    assert bytes(reader.read()) == b"12345678"
    out.close()


def test_claim_without_an_owner_is_ended_by_the_next_call(out, reader):
    """Its object could not: a thread was inside the producer."""
    for call in (
        lambda: out.publish(b"next"),
        lambda: out.try_publish(b"next"),
        lambda: out.claim(4).commit(),
        lambda: out.publish_array(np.zeros(4)),
        lambda: out.publish(bytes(6000)),
    ):
        assert lib.shmd_guarded_claim(out._handle, 8) >= 0
        call()
        assert reader.read(timeout=0) is not None
        assert reader.read(timeout=0) is None


def test_a_claim_array_takes_no_length_at_its_commit(out):
    place = out.claim_array(10)
    with pytest.raises((TypeError, ValueError)):
        place.commit(3)
    place.abort()


# ---- after its end


class TakesAddress:
    """As tensors that are made of an array: it has the address, and a reference, but no buffer."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array
        self._address = array.ctypes.data

    def write(self, byte: int, count: int) -> None:
        ctypes.memset(self._address, byte, count)


def keep_slice(place: Any) -> Callable[[], object]:
    part = place.view[: len(place.view) // 2]
    return lambda: part.__setitem__(slice(None), b"\xff" * len(part))


def keep_cast(place: Any) -> Callable[[], object]:
    part = place.view.cast("H")
    return lambda: part.__setitem__(1, 0xFFFF)


def keep_array(place: Any) -> Callable[[], object]:
    part = np.frombuffer(place.view, "u1")
    return lambda: part.fill(255)


def keep_array_of_a_slice(place: Any) -> Callable[[], object]:
    part = np.frombuffer(place.view[8:], "u1")[::2]
    return lambda: part.fill(255)


def keep_array_without_an_export(place: Any) -> Callable[[], object]:
    part = np.ndarray((len(place.view),), "u1", place.view)
    return lambda: part.fill(255)


def keep_ctypes(place: Any) -> Callable[[], object]:
    part = (ctypes.c_ubyte * len(place.view)).from_buffer(place.view)
    return lambda: ctypes.memset(part, 255, len(part))


BYTES = [
    keep_slice, keep_cast, keep_array, keep_array_of_a_slice, keep_array_without_an_export, keep_ctypes,
]  # fmt: skip


@pytest.mark.parametrize("length", [64, 1000, 6000, 8192])
@pytest.mark.parametrize("keep", BYTES)
def test_what_is_kept_of_a_claim_changes_no_message(out, reader, keep, length):
    for _ in range(SLOTS + 3):
        place = out.claim(length)
        place.view[:] = b"\x01" * length
        write = keep(place)
        place.commit()
        message = reader.read(timeout=0)
        write()
        assert bytes(message) == b"\x01" * length
        with pytest.raises(ValueError, match="released"):
            place.view[0] = 1
        out.publish(b"\x02" * length)
        write()
        assert bytes(reader.read(timeout=0)) == b"\x02" * length


@pytest.mark.parametrize("keep", BYTES)
def test_what_is_kept_of_an_aborted_or_dropped_claim_changes_no_later_message(out, reader, keep):
    for end in (lambda place: place.abort(), lambda place: None):
        place = out.claim(6000)
        write = keep(place)
        end(place)
        del place
        out.publish(b"\x02" * 6000)
        write()
        assert bytes(reader.read(timeout=0)) == b"\x02" * 6000


ARRAYS: dict[str, Callable[[Any], Callable[[], object]]] = {
    "slice": lambda array: (lambda part: lambda: part.fill(255))(array[1:]),
    "row": lambda array: (lambda part: lambda: part.fill(255))(array[0]),
    "transposed": lambda array: (lambda part: lambda: part.fill(255))(array.T),
    "view of a slice": lambda array: (lambda part: lambda: part.fill(255))(array[::2].view("u1")),
    "subclass": lambda array: (lambda part: lambda: part.fill(255))(array.view(np.recarray)),
    "memoryview": lambda array: (
        lambda part: lambda: ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(part)), 255, 1)
    )(memoryview(array)),
    "address": lambda array: (lambda part: lambda: part.write(255, 8))(TakesAddress(array)),
    "base": lambda array: (lambda part: lambda: part.fill(255))(array.base),
}


@pytest.mark.parametrize("shape", [(4, 8), (100, 50)])
@pytest.mark.parametrize("what", ARRAYS)
def test_what_is_kept_of_a_claimed_array_changes_no_message(out, reader, what, shape):
    for _ in range(SLOTS + 3):
        with out.claim_array(shape, "u1") as array:
            array[:] = 1
            write = ARRAYS[what](array)
        message = reader.read(timeout=0)
        try:
            write()
        except ValueError:
            assert what == "base"  # read-only now
        assert (message.array == 1).all()
        assert array.sum() > 0  # readable still


def test_claimed_array_is_read_only_for_good(out, reader):
    with out.claim_array(100, "u1") as array:
        array.flags.writeable = False
        array.flags.writeable = True  # until the commit it is the program's
        array[:] = 1
    for later in (array, array[:8], array.view("i4"), np.asarray(array), array.base):
        with pytest.raises(ValueError, match="WRITEABLE"):
            later.flags.writeable = True
    assert set(reader.read().array.tolist()) == {1}


def test_what_is_kept_reads_as_it_was_at_the_end(out, reader):
    with out.claim_array(6000, "u1") as array:
        array[:] = np.arange(6000) % 251
        kept = array[10:]
    before = kept.copy()
    for _ in range(2 * SLOTS):
        out.publish(b"\xff" * 6000)
        reader.read()
    assert (kept == before).all()
    out.close()
    gc.collect()
    assert (kept == before).all()


def test_claims_without_anything_kept_stay_in_one_mapping(out, reader):
    def claims_windows() -> int:
        return Path("/proc/self/maps").read_text().count(".data")

    def turn() -> None:
        with out.claim(6000) as place:
            view = place.view
            view[:8] = b"12345678"
        with out.claim_array((10, 60)) as array:
            array[:] = 1
        while reader.read(timeout=0) is not None:
            pass
        reader.release()

    turn()
    before = claims_windows()
    for _ in range(3 * SLOTS):
        turn()
    assert claims_windows() == before
    for _ in range(SLOTS):
        with_kept_slice(out, 6000, 1)
        reader.read()
    turn()
    assert claims_windows() <= before
