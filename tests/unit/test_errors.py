"""Exceptions: what they are to a caller that knows only the built-in ones, and that they survive a pickle."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest

from shmdriver import errors
from shmdriver.errors import Code, Reason, ShmDriverError
from shmdriver.names import instance_problem, nearest, stream_problem

CLASSES: list[type[ShmDriverError]] = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ShmDriverError)
]
ALSO = {
    "DriverUnavailable": ConnectionError,
    "ProducerLost": ConnectionError,
    "AttachTimeout": TimeoutError,
    "BackPressured": TimeoutError,
    "EndOfStream": EOFError,
    "MessageTooLarge": ValueError,
    "HandleClosed": ValueError,
    "ConfigError": ValueError,
    "ConcurrentUseError": RuntimeError,
    "ForkedHandleError": RuntimeError,
    "ClaimError": RuntimeError,
    "LifecycleError": RuntimeError,
    "SchemaMismatch": errors.AttachRejected,
}


@pytest.mark.parametrize(("name", "base"), ALSO.items())
def test_also_a_built_in_exception(name: str, base: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), base)
    assert issubclass(getattr(errors, name), ShmDriverError)


def test_all_are_exported_and_described() -> None:
    assert {c.__name__ for c in CLASSES} | {"Code", "Reason"} == set(errors.__all__)
    for exception in CLASSES:
        assert exception.__doc__
        assert exception is ShmDriverError or exception.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("exception", CLASSES, ids=lambda c: c.__name__)
def test_survives_pickle_and_copy(exception: type[ShmDriverError]) -> None:
    raised = exception("what happened")
    for name, value in vars(raised).items():
        setattr(raised, name, 7 if isinstance(value, int) else "x")
    for twin in (pickle.loads(pickle.dumps(raised)), copy.copy(raised)):
        assert type(twin) is exception
        assert str(twin) == "what happened"
        assert vars(twin) == vars(raised)


@pytest.mark.parametrize("exception", CLASSES, ids=lambda c: c.__name__)
def test_can_be_raised_with_nothing(exception: type[ShmDriverError]) -> None:
    with pytest.raises(exception):
        raise exception


def test_attributes_tell_who_and_how_far() -> None:
    raised: Any = errors.BackPressured("full", stream="ticks", published=3, consumer="slow", pid=42, lag=8192)
    seen = (raised.stream, raised.published, raised.consumer, raised.pid, raised.lag)
    assert seen == ("ticks", 3, "slow", 42, 8192)
    refused = errors.SchemaMismatch("px: <f8 is not <f4", stream="ticks", found="a", expected="b")
    assert (refused.code, refused.reason, refused.text) == (
        Code.REJECTED,
        Reason.SCHEMA,
        "px: <f8 is not <f4",
    )


def test_message_too_large_names_both_sizes_and_the_argument() -> None:
    text = str(errors.MessageTooLarge(stream="log", length=100, limit=40))
    assert all(part in text for part in ("'log'", "100", "40", "max_message=100"))


def test_every_reason_has_words() -> None:
    assert len({reason.words for reason in Reason}) == len(Reason)
    assert not [reason for reason in Reason if reason.words.startswith("reason ")]
    assert Reason(34).words == "its process died"


@pytest.mark.parametrize("kind", [Code, Reason])
def test_a_number_of_a_newer_driver_is_shown_and_not_refused(kind: Any) -> None:
    unknown = kind(999)
    assert (unknown, unknown.name, repr(unknown)) == (
        999,
        "UNKNOWN_999",
        f"<{kind.__name__}.UNKNOWN_999: 999>",
    )
    assert pickle.loads(pickle.dumps(unknown)) == unknown
    assert unknown not in list(kind)
    if kind is Reason:
        assert unknown.words == "reason 999"
    for value in ("x", -1, 2**32, None):
        with pytest.raises(ValueError, match="is not a valid"):
            kind(value)


def test_errors_say_reasons_by_name() -> None:
    assert "Reason.EVICTED" in repr(errors.LeaseRevoked("gone", reason=36).reason)
    assert "Reason.DIED" in repr(errors.ProducerLost("gone", reason=34).reason)
    refused = errors.AttachRejected("no", code=3, reason=4)
    assert "Code.REJECTED" in repr(refused.code)
    assert "Reason.LIMIT" in repr(refused.reason)


@pytest.mark.parametrize("enum", [Code, Reason])
def test_numbers_are_those_of_the_header(enum: Any) -> None:
    from shmdriver._native import lib

    prefix = f"SHMD_{enum.__name__.upper()}_"
    header = {
        name.removeprefix(prefix): getattr(lib, name)
        for name in dir(lib)
        if name.startswith(prefix) and name != "SHMD_REASON_BYTES"
    }
    assert header == {member.name: member.value for member in enum}


def test_importing_errors_imports_nothing_heavy() -> None:
    script = (
        "import sys, shmdriver.errors\n"
        "heavy = {'pydantic', 'transitions', 'typer', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["default", "md", "0", "A-b_c", "a" * 41])
def test_good_instance_names(name: str) -> None:
    assert instance_problem(name) is None


@pytest.mark.parametrize("name", ["", "-a", "_a", "a b", "a/b", "a.b", "é", "a" * 42, "a\n", "a\0"])
def test_bad_instance_names(name: str) -> None:
    problem = instance_problem(name)
    assert problem is not None
    assert repr(name) in problem


@pytest.mark.parametrize("name", ["ticks", "_x", "md.eu/EURUSD@10:1+a-b", "9", "a" * 63])
def test_good_stream_names(name: str) -> None:
    assert stream_problem(name) is None


@pytest.mark.parametrize("name", ["", "-a", ".a", "/a", "a b", "a\n", "a" * 64, "ü", "a*"])
def test_bad_stream_names(name: str) -> None:
    problem = stream_problem(name)
    assert problem is not None
    assert repr(name) in problem


def test_nearest_name() -> None:
    assert nearest("tiks", ["ticks", "orders"]) == "ticks"
    assert nearest("TICKS", ["ticks", "orders"]) == "ticks"
    assert nearest("zzz", ["ticks", "orders"]) is None
    assert nearest("x", []) is None
