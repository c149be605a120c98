"""How an authority and its control segment are made, or mapped when another driver process left them.

Called by boot.py under the instance's lock. What is made has no magic yet: ``Authority.complete`` stores it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority, TableSizes, put_text, text_of
from shmdriver.driver.authority_file import AuthorityFile
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.instance_lock import InstanceLock
from shmdriver.driver.segment_names import draw, is_name_of
from shmdriver.driver.shm import Modes, SegmentMap, create_segment, open_segment, unlink_segment
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
    """Builds both segments of a new boot id; the authority's magic is stored last of all.

    ``config_bytes``: of the text that ``store_config`` gets first. ``check`` is called as soon as the
    object shows life. ``tell`` is told of names that were taken. Raises ShmSpaceError, ShmDriverError,
    and what ``check`` raises; then no name of either is left.
    """
    keep = [
        ffi.new("char[]", lock.instance.encode()),
        ffi.new("char[]", int(lib.SHMD_SEGMENT_NAME_BYTES)),
    ]
    params = ffi.new("shmd_authority_params_t *")
    params.instance, params.control_name = keep
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
        control, control_map = _create_control(lock.instance, sizes, modes, params, tell)
        undo.callback(unlink_segment, control)
        undo.callback(control_map.close)
        put_text(keep[1], control)
        failpoint("create.control")
        authority_map = file.mapping(size, writable=True, prefault=modes.prefault)
        undo.callback(authority_map.close)
        if lib.shmd_authority_init(authority_map.base, size, params) != 0:
            raise ShmDriverError(last_error())
        failpoint("create.filled")
        authority = Authority(lock, file, authority_map, control_map)
        undo.pop_all()
    return authority


def _create_control(
    instance: str, sizes: TableSizes, modes: Modes, params: Any, tell: Callable[[str], None]
) -> tuple[str, SegmentMap]:
    size = int(lib.shmd_control_footprint(sizes.clients, sizes.leases))
    name, fd = draw(instance, "control", lambda name: create_segment(name, size, modes), tell)
    with ExitStack() as undo:
        undo.callback(unlink_segment, name)
        try:
            mapped = SegmentMap.of(fd, size, writable=True, prefault=modes.prefault)
        finally:
            os.close(fd)
        undo.callback(mapped.close)
        failpoint("create.control_blank")
        made = lib.shmd_control_init(
            mapped.base, size, sizes.clients, sizes.leases, params.boot_id, params.now_ns
        )
        if made != 0:
            raise ShmDriverError(last_error())
        lib.shmd_segment_complete(mapped.base)
        undo.pop_all()
    return name, mapped


def adopt_authority(lock: InstanceLock, file: AuthorityFile, modes: Modes) -> Authority:
    """Maps the segments that another driver process left. Raises LayoutMismatch, changing nothing."""
    size = file.size
    with ExitStack() as undo:
        mapped = file.mapping(size, writable=True, prefault=modes.prefault)
        undo.callback(mapped.close)
        if (
            lib.shmd_header_check(mapped.base, size, lib.SHMD_SEGMENT_AUTHORITY, 0, 0, 0) != 0
            or lib.shmd_authority_check(mapped.base, size) != 0
        ):
            raise LayoutMismatch(f"{file.name}: {last_error()}", segment=file.name)
        control = _adopt_control(lock.instance, mapped.view("shmd_authority_t *"), modes)
        undo.callback(control.close)
        authority = Authority(lock, file, mapped, control)
        undo.pop_all()
    return authority


def _adopt_control(instance: str, base: Any, modes: Modes) -> SegmentMap:
    """As large as it has to be, whatever clients did to it: the first lease check makes it whole."""
    name = text_of(base.control_name)
    if not is_name_of(name, instance, "control"):
        raise LayoutMismatch(
            f"the authority of instance {instance!r} names {name!r} as its control segment, which is no "
            "such name: it is damaged. Start with --fresh",
            segment=name,
        )
    try:
        fd, _ = open_segment(name, writable=True)
    except FileNotFoundError:
        raise LayoutMismatch(
            f"{name} is gone, so its clients cannot be reached. Start with --fresh: clients with "
            "reconnect=True attach again",
            segment=name,
        ) from None
    try:
        size = int(lib.shmd_control_footprint(base.client_max, base.lease_max))
        return SegmentMap.of(fd, size, writable=True, prefault=modes.prefault)
    finally:
        os.close(fd)


def segment_names_of(file: AuthorityFile) -> list[str]:
    """The names of the segments in an authority's tables, the control segment last; [] when it is damaged."""
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
        names = [text_of(name) for name in [*fields, base.control_name]]
    finally:
        mapped.close()
    return [name for name in names if name]
