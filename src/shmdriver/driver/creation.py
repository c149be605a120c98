"""How an authority is made, or mapped when another driver process left it.

Called by boot.py under the instance's lock. What is made has no magic yet: ``Authority.complete`` stores it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority, TableSizes, text_of
from shmdriver.driver.authority_file import AuthorityFile
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.instance_lock import InstanceLock
from shmdriver.driver.shm import Modes
from shmdriver.errors import LayoutMismatch, ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["adopt_authority", "create_authority", "segment_names_of"]

EVENT_SLOTS = 1024  # at least; twice as many as streams, so that all of them can be announced at once
CONFIG_BYTES = 64 << 10  # at least so much room for the configuration's text, so that a later one fits, too
CONFIG_BYTES_MAX = 1 << 20
ERROR_RECORDS = 64


def create_authority(
    lock: InstanceLock,
    sizes: TableSizes,
    modes: Modes,
    *,
    now_ns: int,
    heartbeat_interval_ns: int,
    lease_timeout_ns: int,
    config_bytes: int,
    check: Callable[[AuthorityFile], None],
    tell: Callable[[str], None],
) -> Authority:
    """Builds the authority of a new boot id; its magic is stored last of all.

    ``config_bytes``: of the text that ``store_config`` gets first. ``check`` is called as soon as the
    object shows life. ``tell`` is told of names that were taken. Raises ShmSpaceError, ShmDriverError,
    and what ``check`` raises; then no name of it is left.
    """
    name = ffi.new("char[]", lock.instance.encode())
    params = ffi.new("shmd_authority_params_t *")
    params.instance = name
    params.boot_id = int.from_bytes(os.urandom(8), "little") | 1
    params.now_ns = now_ns
    params.heartbeat_interval_ns = heartbeat_interval_ns
    params.lease_timeout_ns = lease_timeout_ns
    params.client_max, params.lease_max, params.stream_max = sizes.clients, sizes.leases, sizes.streams
    params.event_slots = max(EVENT_SLOTS, 1 << (2 * sizes.streams - 1).bit_length())
    params.error_max = ERROR_RECORDS
    params.config_bytes = min(max(CONFIG_BYTES, 2 * config_bytes // 4096 * 4096), CONFIG_BYTES_MAX)
    size = int(lib.shmd_authority_footprint(params))
    if size == 0:
        raise ShmDriverError(f"policies.limits are out of the layout's range: {last_error() or sizes}")
    with ExitStack() as undo:
        file = AuthorityFile.create(lock.instance, size, tell)
        undo.callback(file.close)
        undo.callback(file.remove)
        check(file)
        failpoint("create.allocated")
        authority_map = file.mapping(size, writable=True, prefault=modes.prefault)
        undo.callback(authority_map.close)
        if lib.shmd_authority_init(authority_map.base, size, params) != 0:
            raise ShmDriverError(last_error())
        failpoint("create.filled")
        authority = Authority(lock, file, authority_map)
        undo.pop_all()
    return authority


def adopt_authority(lock: InstanceLock, file: AuthorityFile, modes: Modes) -> Authority:
    """Maps the authority that another driver process left. Raises LayoutMismatch, changing nothing."""
    size = file.size
    with ExitStack() as undo:
        mapped = file.mapping(size, writable=True, prefault=modes.prefault)
        undo.callback(mapped.close)
        if (
            lib.shmd_header_check(mapped.base, size, lib.SHMD_SEGMENT_AUTHORITY, 0, 0, 0) != 0
            or lib.shmd_authority_check(mapped.base, size) != 0
        ):
            raise LayoutMismatch(f"{file.name}: {last_error()}", segment=file.name)
        authority = Authority(lock, file, mapped)
        undo.pop_all()
    return authority


def segment_names_of(file: AuthorityFile) -> list[str]:
    """The names of the segments in an authority's tables; [] when it is damaged."""
    size = file.size
    mapped = file.mapping(size, writable=False)
    try:
        if (
            lib.shmd_header_check(mapped.base, size, lib.SHMD_SEGMENT_AUTHORITY, 0, 0, 0) != 0
            or lib.shmd_authority_check(mapped.base, size) != 0
        ):
            return []
        base = mapped.view("shmd_authority_t *")
        streams = (lib.shmd_authority_stream(base, index) for index in range(base.stream_max))
        fields = [
            name
            for stream in streams
            for epoch in stream.epochs
            for name in (epoch.data_name, epoch.gates_name)
        ]
        clients = (lib.shmd_authority_client(base, index) for index in range(base.client_max))
        names = [text_of(name) for name in [*fields, *(client.control_name for client in clients)]]
    finally:
        mapped.close()
    return [name for name in names if name]
