"""What the README shows runs as it stands: the Python blocks, and the C block in a program around it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shmdriver
from shmdriver._native import ffi, lib
from shmdriver.observe import Instance, LeaseStatus

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


PYTHON = blocks("python")
PRINTS = ["hello, shared memory", "1000", "(1080, 1920, 3)", "b'done'", "700", "[0, 1, 4, 9]"]


def test_readme_has_the_blocks_that_are_tested() -> None:
    assert len(PYTHON) == len(PRINTS)
    assert len(blocks("c")) == 1


@pytest.mark.parametrize(("block", "printed"), list(zip(PYTHON, PRINTS, strict=True)))
def test_python_block_runs_as_it_stands(block: str, printed: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")


@pytest.mark.parametrize(
    ("compiler", "standard"), [("cc", "c11"), ("cc", "c17"), ("c++", "c++11"), ("c++", "c++20")]
)
def test_c_block_compiles_against_the_installed_package_and_moves_a_message(
    compiler: str, standard: str, instance_name: str, tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    includes, body = blocks("c")[0].split("\n", 1)
    body = body.replace("shmd_connect(NULL,", f'shmd_connect("{instance_name}",')
    source = tmp_path / ("app.cc" if compiler == "c++" else "app.c")
    source.write_text(
        f"#include <stdio.h>\n{includes}\nint main(void) {{\n{body}\n"
        'printf("%.4s %u\\n", (const char *)message.data, message.length);\n'
        "shmd_producer_close(out); shmd_consumer_close(in); shmd_disconnect(client); return 0; }\n"
    )
    flags = subprocess.run(
        [sys.executable, "-m", "shmdriver", "config", "--cflags", "--libs"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split()  # fmt: skip
    program = tmp_path / "app"
    command = [compiler, f"-std={standard}", *STRICT, str(source), "-o", str(program), *flags]
    subprocess.run(command, check=True, timeout=60)
    with shmdriver.embedded(instance_name):
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "tick 4\n"), done.stderr


def test_options_left_empty_are_the_defaults_and_a_wrong_one_is_refused_in_words(
    instance_name: str,
) -> None:
    with shmdriver.embedded(instance_name):
        client, consumer = ffi.new("shmd_client **"), ffi.new("shmd_consumer **")
        assert lib.shmd_connect(instance_name.encode(), 10**9, client) == 0
        empty = ffi.new("shmd_consumer_options *", {"timeout_ns": 10**9})
        assert lib.shmd_consumer_attach(client[0], b"nothing", empty, consumer) == lib.SHMD_E_REJECTED
        assert "nothing" in ffi.string(lib.shmd_last_error()).decode()  # without CREATE it must exist
        assert lib.shmd_consumer_attach(client[0], b"words", ffi.NULL, consumer) == 0
        record = observed_lease(instance_name)
        assert (record.delivery, record.role) == ("reliable", "consumer")
        empty.delivery = 77
        second = ffi.new("shmd_consumer **")
        assert lib.shmd_consumer_attach(client[0], b"words", empty, second) == lib.SHMD_E_REJECTED
        assert "77" in ffi.string(lib.shmd_last_error()).decode()
        assert lib.shmd_consumer_close(consumer[0]) == 0
        assert lib.shmd_disconnect(client[0]) == 0


def observed_lease(instance: str) -> LeaseStatus:
    with Instance(instance) as shown:
        (lease,) = shown.leases()
    return lease
