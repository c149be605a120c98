"""What tools print, and how they take their arguments; no driver needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shmdriver.cli import output
from shmdriver.cli.app import run
from shmdriver.cli.run_command import overrides_of
from shmdriver.cli.tail import record_preview, text_preview
from shmdriver.errors import ConfigError
from shmdriver.observe import process_status

COMMANDS = [
    "run",
    "pub",
    "sub",
    "tail",
    "stat",
    "why",
    "doctor",
    "gc",
    "maintenance",
    "forget",
    "drain",
    "shutdown",
    "config",
]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (8 << 20, "8.0 MiB"), (3 << 40, "3.0 TiB")],
)
def test_bytes_text(number: int, text: str) -> None:
    assert output.bytes_text(number) == text


@pytest.mark.parametrize(
    ("span_ns", "text"),
    [
        (-1, "never"),
        (0, "0 ns"),
        (1500, "1.5 µs"),
        (350_000, "350 µs"),
        (4_500_000, "4.5 ms"),
        (61e9, "61.0 s"),
        (300e9, "5 min"),
        (7560e9, "2.1 h"),
    ],
)
def test_span_text(span_ns: float, text: str) -> None:
    assert output.span_text(span_ns) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (9999, "9999"), (12_345, "12.3 k"), (1.25e6, "1.2 M"), (3e9, "3.0 G")]
)
def test_count_text(number: float, text: str) -> None:
    assert output.count_text(number) == text


def test_plain_turns_dataclasses_into_json() -> None:
    status = process_status(os.getpid())
    data = json.loads(json.dumps(output.plain({"process": status, "some": {b"\1"}, 3: (None, 1.5)})))
    assert data["process"]["pid"] == os.getpid()
    assert data["process"]["dead"] is False
    assert data["some"] == ["01"]
    assert data["3"] == [None, 1.5]


@pytest.mark.parametrize(
    ("data", "width", "text"),
    [
        (b"hello\n", 60, "'hello\\n'"),
        (b"", 60, "''"),
        (b"x" * 20, 8, "'xxxxxxxx'..."),
        ("grüße".encode(), 60, "'grüße'"),
        ("aé".encode() * 4, 8, "'aéaéa'..."),
        (b"\0\1\2\3\4", 60, "00010203 04"),
        (bytes(100), 8, "00000000..."),
    ],
)
def test_text_preview(data: bytes, width: int, text: str) -> None:
    assert text_preview(data, width) == text or text_preview(data, width).replace(" ", "") == text.replace(
        " ", ""
    )


def test_record_preview_names_the_fields() -> None:
    dtype = np.dtype([("px", "<f8"), ("qty", "<i4")])
    assert record_preview(np.array([(1.5, 7)], dtype).tobytes(), dtype) == "px=1.5 qty=7"


def test_set_options_become_overrides() -> None:
    found = overrides_of(["policies.grace_ms=5", "shm.mode = 0600"], "md", fresh=True)
    assert found == {
        "policies.grace_ms": "5",
        "shm.mode": "0600",
        "driver.instance": "md",
        "driver.boot": "fresh",
    }


@pytest.mark.parametrize("setting", ["policies.grace_ms", "=5", " = 5"])
def test_malformed_set_options_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        overrides_of([setting], None, fresh=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"$ shmdriver {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_every_command_prints_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_help_starts_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from shmdriver.cli.app import run; run(['--help']); "
        "print([name for name in ('numpy', 'pydantic', 'transitions', 'posix_ipc') if name in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - began < 5, "typically 0.15 s; the bound is for a loaded machine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["why", "s"],
        ["sub", "s", "--connect-timeout", "0"],
        ["stat"],
        ["shutdown"],
        ["drain"],
        ["maintenance", "on"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_a_driver_there_is_one_clear_line(
    arguments: list[str], instance_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "-i", instance_name]) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert instance_name in errors
    assert "shmdriver run" in errors


def test_bad_instance_name_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["stat", "-i", "no spaces"]) == 1
    assert "instance name 'no spaces'" in capfd.readouterr().err


def test_debug_shows_the_traceback(instance_name: str) -> None:
    with pytest.raises(ConnectionError):
        run(["stat", "--debug", "-i", instance_name])


def test_check_of_a_missing_instance_is_critical(
    instance_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stat", "--check", "-i", instance_name]) == 2
    assert capsys.readouterr().out.startswith("critical: ")


def test_two_formats_at_once_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["sub", "s", "--lines", "--npy"]) == 2
    assert "choose one format" in capfd.readouterr().err.replace("\n", " ")


def test_config_prints_what_run_would_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "--local", "--json", "--set", "policies.grace_ms=77", "-i", "other"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["policies"]["grace_ms"] == 77
    assert config["driver"]["instance"] == "other"


def test_unknown_configuration_key_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "--set", "policies.grace_mss=77"]) == 1
    assert "policies.grace_ms" in capfd.readouterr().err


def test_compiler_flags_point_at_the_header(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "--cflags", "--libs"]) == 0
    flags = capsys.readouterr().out.split()
    include = next(flag.removeprefix("-I") for flag in flags if flag.startswith("-I"))
    assert (Path(include) / "shmdriver.h").exists()
    assert "-lshmdriver" in flags


def test_doctor_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    run(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {
        "shared memory",
        "locked memory",
        "RemoveIPC",
        "PID namespace",
        "kernel",
        "cores",
    } <= checks.keys()
    assert all(check["level"] in ("ok", "warn", "fail") and check["found"] for check in checks.values())
    assert all(check["advice"] for check in checks.values() if check["level"] != "ok")
