"""``shmdriver maintenance``, ``forget``, ``drain``, ``shutdown``: requests that need the driver's token."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shmdriver.cli.options import ERROR, OK, ConnectOption, InstanceOption, JsonOption, OwnerOption
from shmdriver.cli.output import note, print_json, say
from shmdriver.errors import AttachRejected, ConfigError, DriverUnavailable, ShmDriverError

if TYPE_CHECKING:
    from shmdriver.observe import Instance
    from shmdriver.observe.process import ProcessStatus

_WHO_MAY = """

Needs the driver's token: --token-file, else the file that policies.shutdown_token_file names in this user's
configuration of the same instance (SHMDRIVER_CONFIG, environment), else the one that `run` made in the
driver's runtime folder. A file that only the driver names is not opened. Others are refused, and counted.
"""
_MAINTENANCE = (
    """Turn maintenance on or off: while it is on, everything attached goes on, and nobody new may attach.

    $ shmdriver maintenance on --reason "moving to the new host"
    $ shmdriver maintenance off
"""
    + _WHO_MAY
)
_FORGET = (
    """Say that a client is gone for good, so that the driver frees what it still sets aside for it.

    $ shmdriver stat clients                       # one that is "gone", and whose end nobody can prove
    $ shmdriver forget 17 --reason "that host was rebuilt"

A client that lives and only was stopped would then write into lines that are somebody else's. So one that
still beats is not forgotten.
"""
    + _WHO_MAY
)
_DRAIN = (
    """Ask the driver to drain, and return: nobody new may attach, what is attached goes on.

    $ shmdriver drain && shmdriver stat --watch

The driver ends as soon as the last lease has ended, at the latest after policies.shutdown_timeout_ms.
"""
    + _WHO_MAY
)
_SHUTDOWN = (
    """End the driver and wait until it has gone.

    $ shmdriver shutdown                           # drain, seal all streams, remove all segments
    $ shmdriver shutdown --handover                # leave everything to the next driver, which adopts it

With [bold]--handover[/bold] (an upgrade, a restart) messages keep flowing; start the next driver soon. Exit
code 1 when the driver has not ended within --timeout.
"""
    + _WHO_MAY
)

TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="Default: policies.shutdown_token_file of the configuration here, else what `run` made here.",
        show_default=False,
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Goes into the driver's log.")]


class Switch(StrEnum):
    """On or off."""

    on = "on"
    off = "off"


def token_of(view: Instance, given: Path | None) -> bytes:
    """The token of the running driver. Raises ConfigError when none is known here, ShmDriverError.

    Nothing of this is read from a segment: its owner could name the token of another driver. The runtime
    folder is searched for by the instance's name and the driver's user.
    """
    from shmdriver.driver.authentication import TOKEN_NAME, read_token
    from shmdriver.driver.config import Config
    from shmdriver.runtime_folder import find

    if given is not None:
        return read_token(given, owners=(view.owner,))
    config = Config.load()
    if config.driver.instance == view.name and config.policies.shutdown_token_file is not None:
        return read_token(config.policies.shutdown_token_file, owners=(view.owner,))
    looked = []
    for folder in find(view.name, view.owner):
        with folder:
            path = folder.path / TOKEN_NAME
            try:
                return read_token(path, dir_fd=folder.fd, owners=(view.owner,), mode_max=0o600)
            except ShmDriverError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
            looked.append(str(path))
    where = f"there is no {' and no '.join(looked)}" if looked else "it has no runtime folder here"
    raise ConfigError(
        f"no shutdown token of instance {view.name!r} is known here: {where}. Name the file "
        "that its driver was started with (--token-file, or policies.shutdown_token_file in the "
        f"configuration here), or stop it by a signal: {_kill(view.driver().process)}",
        key="policies.shutdown_token_file",
    )


def _kill(process: ProcessStatus) -> str:
    """The command that ends a driver, or where its number is known."""
    resume = f"{process.resume}; then " if process.resume else ""
    return f"{resume}{process.kill('TERM')}"


def signed_request(
    view: Instance,
    token: bytes,
    kind: int,
    what: int,
    reason: str,
    client_id: int,
    timeout_ns: int,
    subject: int = 0,
) -> Any:
    """A shutdown or admin request, complete and signed, to be served within ``timeout_ns``.

    ``subject``: the lease or client that it is about.
    """
    from shmdriver._native import ffi, lib
    from shmdriver.driver.authentication import sign_request

    request = ffi.new("shmd_request_t *")
    request.kind, request.admin, request.lease_id = kind, what, subject
    request.text = reason.encode()[: lib.SHMD_REASON_BYTES - 1].decode(errors="ignore").encode()
    nonce = max(view.driver().last_nonce + 1, time.time_ns())
    request.deadline_ns = min(int(lib.shmd_now_ns()) + timeout_ns, 2**64 - 1)
    sign_request(request, token, instance=view.name, boot_id=view.boot_id, client_id=client_id, nonce=nonce)
    return request


def send(
    view: Instance,
    kind: int,
    what: int,
    *,
    reason: str,
    token_file: Path | None,
    timeout_s: float,
    subject: int = 0,
) -> str:
    """Send one authenticated request; the driver's answer. ``subject``: the lease or client that it is about.

    Raises ConfigError (no token), DriverUnavailable, AttachRejected (the driver said no), AttachTimeout;
    ShmDriverError when the driver cannot be asked (no descriptor, no permission, no memory).
    """
    from shmdriver._native import ffi, lib
    from shmdriver.client.link import Deadline
    from shmdriver.os_errors import last_error

    driver = view.driver()
    if driver.status not in ("running", "starting"):
        raise DriverUnavailable(f"{driver.explanation}; {driver.advice}", instance=view.name)
    token = token_of(view, token_file)
    out = ffi.new("shmd_client **")
    timeout_ns = Deadline(timeout_s, "--connect-timeout").rest_ns()
    name, owner = ffi.new("char[]", b"shmdriver admin"), ffi.new("char[]", str(view.owner).encode())
    options = ffi.new("shmd_client_options *", {"name": name, "owner": owner, "timeout_ns": timeout_ns})
    code = lib.shmd_client_connect(view.name.encode(), options, out)
    if code < 0:
        raise _failure(view, code, timeout_s)
    try:
        client_id = int(lib.shmd_client_id(out[0]))
        request = signed_request(view, token, kind, what, reason, client_id, timeout_ns, subject)
        answer = ffi.new("shmd_event_t *")
        code = lib.shmd_client_request(out[0], request, answer, timeout_ns)
        if code == lib.SHMD_E_REJECTED:
            raise AttachRejected(last_error(), code=int(answer.code), reason=int(answer.reason))
        if code < 0:
            raise _failure(view, code, timeout_s)
        text: bytes = ffi.string(answer.text)
        return text.decode("utf-8", "replace")
    finally:
        lib.shmd_disconnect(out[0])


def _failure(view: Instance, code: int, timeout_s: float) -> Exception:
    """The exception for a C call that has just failed with ``code``."""
    from shmdriver._native import lib
    from shmdriver.client._raise import failure_of
    from shmdriver.os_errors import last_error

    if code == lib.SHMD_E_DRIVER_UNAVAILABLE:
        return DriverUnavailable(last_error(), instance=view.name)
    return failure_of(code, instance=view.name, timeout_s=timeout_s)


def wait_for_end(view: Instance, timeout_s: float) -> bool:
    """Whether the driver has ended within ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while view.driver().alive:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        view.wait(min(left, 0.1))
    return True


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command("maintenance", help=_MAINTENANCE)
    def maintenance(
        state: Annotated[Switch, typer.Argument(help="on or off.", show_default=False)],
        *,
        reason: ReasonOption = "",
        token_file: TokenOption = None,
        timeout: ConnectOption = 5.0,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        json: JsonOption = False,
    ) -> None:
        from shmdriver._native import lib
        from shmdriver.observe import Instance

        what = lib.SHMD_ADMIN_MAINTENANCE_ON if state is Switch.on else lib.SHMD_ADMIN_MAINTENANCE_OFF
        with Instance(instance, owner) as view:
            text = send(
                view, lib.SHMD_REQUEST_ADMIN, what, reason=reason, token_file=token_file, timeout_s=timeout
            )
            lifecycle = view.driver().lifecycle
        if json:
            print_json({"maintenance": state.value, "lifecycle": lifecycle, "text": text})
        else:
            say(text or f"maintenance is {state.value}")

    @app.command("forget", help=_FORGET)
    def forget(
        client: Annotated[int, typer.Argument(help="Its number, as `stat` shows it.", show_default=False)],
        *,
        reason: ReasonOption = "",
        token_file: TokenOption = None,
        timeout: ConnectOption = 5.0,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        json: JsonOption = False,
    ) -> None:
        from shmdriver._native import lib
        from shmdriver.observe import Instance

        with Instance(instance, owner) as view:
            text = send(
                view,
                lib.SHMD_REQUEST_ADMIN,
                lib.SHMD_ADMIN_FORGET,
                reason=reason,
                token_file=token_file,
                timeout_s=timeout,
                subject=client,
            )
        if json:
            print_json({"client": client, "text": text})
        else:
            say(text)

    @app.command("drain", help=_DRAIN)
    def drain(
        *,
        reason: ReasonOption = "drain",
        token_file: TokenOption = None,
        timeout: ConnectOption = 5.0,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        json: JsonOption = False,
    ) -> None:
        _shut_down(instance, owner, reason, token_file, timeout, handover=False, wait_s=0.0, json=json)

    @app.command("shutdown", help=_SHUTDOWN)
    def shutdown(
        *,
        handover: Annotated[
            bool, typer.Option("--handover", help="Leave segments and leases to the next driver.")
        ] = False,
        wait: Annotated[
            float, typer.Option("--timeout", "-t", metavar="SECONDS", help="How long to wait for its end.")
        ] = 15.0,
        reason: ReasonOption = "shutdown",
        token_file: TokenOption = None,
        timeout: ConnectOption = 5.0,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        json: JsonOption = False,
    ) -> None:
        _shut_down(instance, owner, reason, token_file, timeout, handover=handover, wait_s=wait, json=json)


def _shut_down(
    instance: str | None,
    owner: str | None,
    reason: str,
    token_file: Path | None,
    timeout_s: float,
    *,
    handover: bool,
    wait_s: float,
    json: bool,
) -> None:
    from shmdriver._native import lib
    from shmdriver.observe import Instance

    mode = lib.SHMD_SHUTDOWN_HANDOVER if handover else lib.SHMD_SHUTDOWN_END
    with Instance(instance, owner) as view:
        process = view.driver().process
        kind = lib.SHMD_REQUEST_SHUTDOWN
        text = send(view, kind, mode, reason=reason, token_file=token_file, timeout_s=timeout_s)
        ended = wait_for_end(view, wait_s) if wait_s else False
        now, leases = view.driver(), len(view.leases())
    if json:
        print_json({"pid": process.pid, "ended": ended, "status": now.status, "leases": leases, "text": text})
    elif ended:
        say(f"the driver ({process.label}) has ended: {now.status}")
    elif not wait_s:
        say(text or f"the driver ({process.label}) drains: {leases} leases left")
    if wait_s and not ended:
        what = f"the driver ({process.label}) lives after {wait_s:g} s: {leases} leases left"
        note(f"{what}; to end it: {_kill(now.process)}")
    raise typer.Exit(OK if ended or not wait_s else ERROR)
