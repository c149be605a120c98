"""A client that waits until its control segment is mended is told when its driver goes meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from shmdriver._native import ffi, lib
from shmdriver.driver.segments import authority_name, control_name
from tests.chaos.stage import wait_until
from tests.driver_rig import Rig

PATIENCE_NS = 60_000_000_000


def test_connecting_ends_when_the_driver_lets_its_lock_go_although_its_process_lives(rig: Rig) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(authority_name(rig.instance))

    def connect() -> None:
        codes.append(lib.shmd_connect(rig.instance.encode(), PATIENCE_NS, ffi.new("shmd_client **")))

    codes: list[int] = []
    os.truncate(f"/dev/shm{control_name(rig.instance)}", 64)
    before = mapped()
    client = threading.Thread(target=connect)
    client.start()
    wait_until(lambda: mapped() > before, "the client to have found its driver")
    rig.crash()
    client.join()
    assert codes == [lib.SHMD_E_DRIVER_UNAVAILABLE]
