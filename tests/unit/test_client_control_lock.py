"""A client that waits until its control segment is mended is told when its driver goes meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from shmdriver._native import ffi, lib
from tests.chaos.stage import wait_until
from tests.driver_rig import Rig
from tests.segments import path_of

PATIENCE_NS = 60_000_000_000


def test_connecting_ends_when_the_driver_lets_its_lock_go_although_its_process_lives(rig: Rig) -> None:
    authority = path_of(rig.instance, "authority").name

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(authority)

    def connect() -> None:
        codes.append(lib.shmd_connect(rig.instance.encode(), PATIENCE_NS, ffi.new("shmd_client **")))

    codes: list[int] = []
    os.truncate(path_of(rig.instance, "control"), 64)
    before = mapped()
    client = threading.Thread(target=connect)
    client.start()
    wait_until(lambda: mapped() > before, "the client to have found its driver")
    rig.crash()
    client.join()
    assert codes == [lib.SHMD_E_DRIVER_UNAVAILABLE]
