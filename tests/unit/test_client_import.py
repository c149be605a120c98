"""`import shmdriver` is cheap, and everything that it promises is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import shmdriver


@pytest.mark.parametrize("name", shmdriver.__all__)
def test_every_public_name_exists(name):
    assert getattr(shmdriver, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = shmdriver.nonsense


def test_the_client_needs_neither_numpy_nor_the_driver():
    program = (
        "import sys, shmdriver; shmdriver.connect; shmdriver.Producer;"
        "heavy = {'numpy', 'pydantic', 'transitions', 'typer', 'rich', 'shmdriver.driver'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
