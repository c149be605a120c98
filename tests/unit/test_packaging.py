"""The files for systemd: valid, and what the driver understands."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shmdriver.driver.config import Config
from shmdriver.observe.names import COUNTERS

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging" / "shmdriver.service"


def setting(key: str) -> str:
    found = re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert len(found) == 1, key
    return str(found[0])


def test_example_configuration_is_one() -> None:
    config = Config.load(ROOT / "packaging" / "shmdriver.toml", env={})
    assert config.shm.mode == "0660"
    assert config.shm.max_bytes == 2 << 30


def test_unit_hands_over_and_is_told() -> None:
    assert setting("Type") == "notify"
    assert setting("KillSignal") == "SIGUSR1"
    assert setting("RestartPreventExitStatus") == "3"
    assert " run " in setting("ExecStart")


def test_operators_page_names_commands_and_counters_that_exist() -> None:
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    commands = {path.stem for path in (ROOT / "src" / "shmdriver" / "cli").glob("*.py")}
    commands |= {"run", "shutdown", "drain", "forget", "maintenance"}
    named = set(re.findall(r"`shmdriver ([a-z]+)", text))
    assert len(named) >= 5
    assert named <= commands
    alarm = text.split("Worth an alarm", 1)[1].split("\n\n", 1)[0]
    assert set(re.findall(r"`([a-z]+_[a-z_]+)`", alarm)) <= set(COUNTERS.values())


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "shmdriver@default.service"
    unit.write_text(
        UNIT.read_text()
        .replace("/usr/local/bin/shmdriver", "/bin/true")
        .replace("User=shmdriver", "User=root")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    problems = [line for line in done.stderr.splitlines() if "shmdriver" in line]
    assert problems == []
