"""The package is replaced on the disk under a client: what it imports late is of the version that runs."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shmdriver

PACKAGE = Path(shmdriver.__file__).parent
PROGRAM = """
import shutil, sys
from pathlib import Path
import numpy as np
import shmdriver

package = Path(shmdriver.__file__).parent
assert str(package).startswith(sys.argv[1]), package
with shmdriver.connect(sys.argv[3]) as client:
    reader, out = client.consumer("s"), client.producer("s", max_message=10_000)
    if sys.argv[2] == "removed":
        shutil.rmtree(package)
    else:
        for path in package.rglob("*.py"):
            path.write_text("raise ImportError('of another version')")
            shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    for name in ("client.batches", "client.records", "client.tensor", "client.queue", "observe"):
        assert f"shmdriver.{name}" not in sys.modules
    out.publish_array(np.arange(3))
    assert reader.read().array.tolist() == [0, 1, 2]
    kind = np.dtype([("n", "<i8")])
    with client.consumer("r") as records, client.producer("r", dtype=kind) as writer:
        writer.publish(np.arange(4).astype(kind))
        assert next(records.batches())["n"].tolist() == [0, 1, 2, 3]
    assert {stream.name for stream in client.streams()} >= {"s", "r"}
    assert client.leases()
    client.on_event(print)()
    queue = client.queue("q")
    queue.put({"n": 1})
    assert queue.get() == {"n": 1}
print("fine")
"""


@pytest.mark.parametrize("how", ["replaced", "removed"])
@pytest.mark.fault(58, how="all files of the package are replaced, or removed, under a client")
def test_client_whose_package_was_replaced_goes_on(instance_name: str, tmp_path: Path, how: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "shmdriver", ignore=shutil.ignore_patterns("__pycache__"))
    with shmdriver.embedded(instance_name):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), how, instance_name],
            capture_output=True, text=True, timeout=400, check=False, env={"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_all_that_handles_import_late_is_kept() -> None:
    """Only the driver, whose modules are one start's business, is not."""
    late = set()
    for path in (PACKAGE / "client").glob("*.py"):
        tree = ast.parse(path.read_text())
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        for node in (inner for function in functions for inner in ast.walk(function)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shmdriver."):
                late.add((node.module or "").split(".")[1])
    assert "observe" in late
    assert late <= {"client", "observe", "driver"}
