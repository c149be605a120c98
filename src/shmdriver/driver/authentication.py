"""Who may shut a driver down: an HMAC over the request under a token that only the permitted know.

The code covers the instance's name, the boot id (a recorded request is worthless after a restart with
``--fresh``) and every byte of the request but its place in the ring, which the sending core fills in by
itself: checksum and position. A nonce that must increase makes each request good for one use. The signed
deadline makes a request that nobody has served worthless, so nobody else can have it executed later.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.instance_lock import write_aside
from shmdriver.driver.rejection import Rejection
from shmdriver.errors import Reason, ShmDriverError
from shmdriver.os_errors import errno_text
from shmdriver.runtime_folder import RuntimeFolder

__all__ = [
    "TOKEN_NAME",
    "Authentication",
    "FolderToken",
    "create_token",
    "read_token",
    "sign_request",
]

TOKEN_BYTES_MIN = 16
REFUSALS_PER_SECOND = 5
TOKEN_NAME = "token"  # noqa: S105 -- of the file in a runtime folder
TOKEN_BYTES_MAX = 4096
SECOND_NS = 1_000_000_000
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
# Filled by the sending core after signing, so not covered.
_FILLED_LATER = ("checksum", "position", "hmac")


def authentication_code(token: bytes, instance: str, boot_id: int, request: Any) -> bytes:
    """HMAC-SHA256 of a request (``shmd_request_t *``) whose other fields are final."""
    size = ffi.sizeof("shmd_request_t")
    data = bytearray(ffi.buffer(request, size))
    for field in _FILLED_LATER:
        start = ffi.offsetof("shmd_request_t", field)
        end = start + ffi.sizeof(ffi.addressof(request, field)[0]) if field == "hmac" else start + 8
        data[start:end] = bytes(end - start)
    covered = instance.encode() + b"\0" + boot_id.to_bytes(8, "little") + bytes(data)
    return hmac.new(token, covered, hashlib.sha256).digest()


def sign_request(
    request: Any, token: bytes, *, instance: str, boot_id: int, client_id: int, nonce: int
) -> None:
    """Fills client id, layout version, nonce and HMAC of a Shutdown or Admin request, last of all.

    ``nonce`` must be larger than the last one that the driver accepted: ``time.time_ns()`` will do. The
    request has its deadline already, by ``shmd_now_ns``: it is not executed later than that. A correlation
    id is drawn when it has none.
    """
    request.client_id = client_id
    request.layout_version = lib.SHMD_LAYOUT_VERSION
    request.correlation_id = request.correlation_id or int.from_bytes(os.urandom(8), "little") | 1
    request.nonce = nonce
    code = authentication_code(token, instance, boot_id, request)
    ffi.memmove(request.hmac, code, lib.SHMD_HMAC_BYTES)


class Authentication:
    """The driver's side: one token, the last nonce, and how many refusals were lately."""

    def __init__(self, authority: Authority, token: bytes | None, note: Callable[[str], None]) -> None:
        self._authority = authority
        self._token = token
        self._note = note
        self._window_ns = 0
        self._refusals: Counter[int] = Counter()  # in this second, by client: none locks another one out

    def check(self, request: Any, now_ns: int) -> None:
        """Raises Rejection unless the request was signed with the token, for the first time.

        The nonce is stored before anybody acts on the request.
        """
        client = int(request.client_id)
        if now_ns - self._window_ns >= SECOND_NS:
            self._window_ns = now_ns
            self._refusals.clear()
        if self._refusals[client] >= REFUSALS_PER_SECOND:
            text = "too many refused requests of this client in this second: wait, and check the token"
            self._refuse(client, Reason.RATE, text)
        if self._token is None:
            self._refuse(
                client,
                Reason.TOKEN,
                "this driver has no shutdown token, so it takes no such request: set "
                "policies.shutdown_token_file, "
                "or send it SIGTERM",
            )
        else:
            authority = self._authority
            expected = authentication_code(self._token, authority.instance, authority.boot_id, request)
            found = bytes(ffi.buffer(request.hmac, lib.SHMD_HMAC_BYTES))
            if not hmac.compare_digest(expected, found):
                text = "wrong shutdown token: use the file that this driver was started with"
                self._refuse(client, Reason.TOKEN, text)
        last = int(self._authority.base.last_nonce)
        if int(request.nonce) <= last:
            text = f"nonce {int(request.nonce)} was used already; expected more than {last}"
            self._refuse(client, Reason.TOKEN, text)
        self._authority.store("last_nonce", int(request.nonce))
        failpoint("nonce.stored")

    def _refuse(self, client: int, reason: Reason, text: str) -> None:
        self._refusals[client] += 1
        self._authority.count(lib.SHMD_COUNTER_AUTH_REFUSED)
        self._note(text)
        raise Rejection(reason, text)


# ---- token files -------------------------------------------------------------------------------


class FolderToken:
    """The token that ``shmdriver run`` makes in the runtime folder when none is configured.

    Only the instance's driver may call it. It is kept across restarts: who has read it stays able to shut
    down. In a folder that was made anew it is written again.
    """

    def __init__(self) -> None:
        self._token = b""

    def __call__(self, folder: RuntimeFolder) -> bytes:
        """The token, which stands in the folder now. Raises ShmDriverError."""
        path = folder.path / TOKEN_NAME
        try:
            self._token = read_token(path, dir_fd=folder.fd, mode_max=0o600)
        except ShmDriverError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            self._token = create_token(path, dir_fd=folder.fd, token=self._token)
        return self._token


def create_token(path: Path, *, dir_fd: int | None = None, token: bytes = b"") -> bytes:
    """Writes a token, by default a new random one, readable by this user alone, and returns it.

    ``dir_fd``: of the folder that ``path`` stands in. Raises ShmDriverError.
    """
    token = token or os.urandom(32).hex().encode()
    try:
        folder = (
            os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if dir_fd is None else dir_fd
        )
        try:
            write_aside(folder, path.name, token + b"\n", 0o600)
        finally:
            if dir_fd is None:
                os.close(folder)
    except OSError as error:
        raise ShmDriverError(_not_writable(f"shutdown token {path}", error)) from error
    return token


def _not_writable(what: str, error: OSError) -> str:
    return f"{what} cannot be written as uid {os.geteuid()}: {errno_text(error, lib.SHMD_CALL_RUNTIME)}"


def read_token(
    path: Path, *, dir_fd: int | None = None, owners: Collection[int] = (), mode_max: int = 0o640
) -> bytes:
    """The token in a file. Never waits, whatever stands there.

    ``dir_fd``: of the folder that ``path`` stands in, which was checked when it was opened.
    It is a regular file of this user, of root or of one of ``owners``, with permissions within ``mode_max``:
    who could write it would choose the token. Raises ShmDriverError.
    """
    try:
        named = path if dir_fd is None else path.name
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(named, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise ShmDriverError(_not_taken(path, "is a symlink", "name the file that it leads to")) from None
        raise ShmDriverError(f"shutdown token {path}: {errno_text(error, lib.SHMD_CALL_READ)}") from error
    try:
        found = os.fstat(fd)
        mode, kind = stat.S_IMODE(found.st_mode), stat.S_IFMT(found.st_mode)
        if kind != stat.S_IFREG:
            kind_text = f"is {_KINDS.get(kind, 'a special file')}"
            raise ShmDriverError(_not_taken(path, kind_text, "remove it, or name another file"))
        if found.st_uid not in (os.geteuid(), 0, *owners):
            owner_text = f"belongs to uid {found.st_uid}"
            raise ShmDriverError(_not_taken(path, owner_text, "make a new token in a file of this user"))
        if mode & 0o777 & ~mode_max & ~0o700:
            mode_text = f"has mode {mode:04o}, so others may know or choose it"
            advice = f"make a new token, and chmod {mode_max:04o} it"
            raise ShmDriverError(_not_taken(path, mode_text, advice, mode_max))
        token = os.read(fd, TOKEN_BYTES_MAX).strip()
    finally:
        os.close(fd)
    if len(token) < TOKEN_BYTES_MIN:
        raise ShmDriverError(
            f"shutdown token {path} has {len(token)} bytes, expected at least {TOKEN_BYTES_MIN}"
        )
    return token


def _not_taken(path: Path, found: str, advice: str, mode_max: int = 0o640) -> str:
    return (
        f"shutdown token {path} {found}; expected a regular file of uid {os.geteuid()} or root with mode "
        f"{mode_max:04o} at most: {advice}"
    )
