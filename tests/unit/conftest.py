"""What many unit tests of the driver need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.driver_rig import Rig


@pytest.fixture
def rig(instance_name: str) -> Iterator[Rig]:
    """An instance whose driver runs tick by tick under a fake clock; closed afterwards."""
    rig = Rig(instance_name)
    yield rig
    rig.close()
