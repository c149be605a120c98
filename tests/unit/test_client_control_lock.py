"""A client that waits for its welcome is told when its driver goes meanwhile."""

from __future__ import annotations

import threading

from shmdriver._native import ffi, lib
from tests.chaos.stage import wait_until
from tests.driver_rig import Rig

PATIENCE_NS = 60_000_000_000


def test_connecting_ends_when_the_driver_goes_although_its_process_lives(rig: Rig) -> None:
    def connect() -> None:
        codes.append(lib.shmd_connect(rig.instance.encode(), PATIENCE_NS, ffi.new("shmd_client **")))

    codes: list[int] = []
    client = threading.Thread(target=connect)
    client.start()
    wait_until(rig.driver.sleeper.look, "the client to stand at the driver's socket")
    rig.crash()
    client.join()
    assert codes == [lib.SHMD_E_DRIVER_UNAVAILABLE]
