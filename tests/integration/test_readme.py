"""What the README shows runs as it stands: the Python blocks, and the C block in a program around it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


PYTHON = blocks("python")
PRINTS = ["hello, shared memory", "1000", "(1080, 1920, 3)", "b'done'"]


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


def test_c_block_compiles_against_the_installed_package_and_moves_a_message(
    instance_name: str, tmp_path: Path
) -> None:
    includes, body = blocks("c")[0].split("\n", 1)
    body = body.replace("shmd_connect(NULL,", f'shmd_connect("{instance_name}",')
    source = tmp_path / "app.c"
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
    subprocess.run(
        ["cc", "-std=c11", "-Wall", str(source), "-o", str(program), *flags], check=True, timeout=60
    )
    from shmdriver.driver.embedded import EmbeddedDriver

    driver = EmbeddedDriver(instance_name)
    driver.start()
    try:
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    finally:
        driver.stop()
    assert (done.returncode, done.stdout) == (0, "tick 4\n"), done.stderr
