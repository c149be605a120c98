"""Who connects: Hellos are heard, answered, and become clients; connections that end are hints to look.

A client has one connection, that of its newest Hello (by serial): any other one is closed. Who expires,
leaves or is proved dead is disconnected. The end of a connection proves nothing, because a process can close
it, or hand it to another: it only makes the driver look for deaths.

Hellos are heard in every state in which the driver serves requests, also in maintenance and while it drains:
a client that goes over to this driver keeps what it has, and one that comes anew is refused when it attaches.

A Hello is noted while it is in work, as requests are (work.py), under its nonce.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import put_text
from shmdriver.driver.clients import Client
from shmdriver.driver.door import Door
from shmdriver.driver.identity import DESCRIPTORS_EACH, RESERVED_DESCRIPTORS, descriptors_left
from shmdriver.driver.rejection import Rejection
from shmdriver.driver.sleeper import Woken
from shmdriver.driver.tables import Tables
from shmdriver.driver.work import Work
from shmdriver.errors import Code, LayoutMismatch, Reason
from shmdriver.os_errors import last_error, remedy

__all__ = ["Connections"]

EXEC = "its process runs another program now (exec)"


class _Greeting:
    """A Hello as work.py notes it."""

    __slots__ = ("attach_hash", "client_id", "correlation_id", "kind")

    def __init__(self, hello: Any) -> None:
        self.kind = self.attach_hash = 0
        self.client_id, self.correlation_id = int(hello.client_id), int(hello.nonce)


class Connections:
    """All connections of one driver. The driver polls it in its ticks."""

    def __init__(
        self,
        tables: Tables,
        door: Door,
        notes: Work,
        *,
        budget: int,
        ring: Callable[[Client], None],
        look_for_deaths: Callable[[int], None],
        log: Callable[[str], None],
    ) -> None:
        """``ring`` is told of clients that have rung."""
        self._ring = ring
        self._tables = tables
        self._door = door
        self._notes = notes
        self._budget = budget
        self._look_for_deaths = look_for_deaths
        self._log = log
        self._fds: dict[int, int] = {}  # by client id
        self._is_failing = False  # nobody can be accepted: the next tick tries again, not at once
        tables.clients.on_gone = self._forget

    @property
    def is_quiet(self) -> bool:
        """Whether nobody is at the door whom only ticks see to: whose time for a Hello runs, or who waits."""
        return not self._is_failing and not self._door.silent

    def take(self, now_ns: int, woken: Collection[Woken]) -> int:
        """Hears whoever has come, rung or left, as the sleeper says; how many Hellos there were."""
        is_called, has_ended = self._is_failing or self._door.silent > 0, False
        for each in woken:
            if each.kind == lib.SHMD_SLEEPER_READ:
                is_called = True
            elif each.kind == lib.SHMD_SLEEPER_DOORBELL and each.key in self._fds:
                client = self._tables.clients.by_id(each.key)
                assert client is not None, "who is gone has no connection"
                self._ring(client)
                if each.what & lib.SHMD_WOKEN_ENDED:
                    has_ended = True
                    self._forget(client)
        if has_ended:
            self._look_for_deaths(now_ns)
        return self._hear(now_ns) if is_called else 0

    def check(self, now_ns: int) -> bool:
        """Whether clients find the socket; one that is missing is made anew."""
        is_found, text = self._door.check()
        if text:
            self._tables.authority.log_error(text, now_ns)
        return is_found

    # -- inner

    def _hear(self, now_ns: int) -> int:
        authority = self._tables.authority
        self._is_failing = self._door.accept(now_ns, self._budget) < 0
        if self._is_failing:
            authority.log_error(f"nobody can connect: {last_error()}", now_ns)
        heard = 0
        while heard < self._budget:
            found, peer, hello = self._door.hello(now_ns)
            if found == 0:
                break
            if found < 0:
                self._note_refused(found, now_ns)
                continue
            heard += 1
            authority.count(lib.SHMD_COUNTER_REQUESTS)
            greeting = _Greeting(hello)
            refusal = self._notes.refusal(greeting)
            with self._notes.serving(greeting):
                self._answer(peer, hello, refusal, now_ns)
        return heard

    def _note_refused(self, found: int, now_ns: int) -> None:
        """The core has refused somebody who says no Hello of this layout, or none in time."""
        authority = self._tables.authority
        if found == lib.SHMD_E_CLOSED:
            return
        authority.count(
            lib.SHMD_COUNTER_REQUESTS_CORRUPT
            if found == lib.SHMD_E_INVALID
            else lib.SHMD_COUNTER_REQUESTS_REJECTED
        )
        authority.log_error(f"a connection was closed: {last_error()}", now_ns)

    def _answer(self, peer: Any, hello: Any, refusal: str, now_ns: int) -> None:
        """Whatever goes wrong becomes the answer, and the driver goes on. What is not kept is closed."""
        try:
            if refusal:
                raise Rejection(Reason.DRIVER_DIED, refusal)
            client, is_new = self._greet(peer, hello, now_ns)
            is_heard = client is None or self._welcome(client, peer, now_ns)
            is_unknown = client is not None and is_new and not is_heard  # nobody says Goodbye for it
            # Not if its death was seen just now: its record is free already, and must not become so twice.
            if client is not None and is_unknown and self._tables.clients.by_id(client.client_id) is client:
                self._tables.tenure.client_left(client, now_ns)
        except Rejection as rejection:
            self._refuse(peer, rejection.code, rejection.reason, rejection.text)
        except Exception as error:
            text = f"the driver failed at this Hello: {error!r}{remedy(error)}"
            self._tables.authority.log_error(text, now_ns)
            self._refuse(peer, Code.INTERNAL_ERROR, Reason.NONE, text)
        if peer.fd >= 0:
            self._door.forget(int(peer.fd))
        if peer.pidfd >= 0:
            os.close(peer.pidfd)

    def _greet(self, peer: Any, hello: Any, now_ns: int) -> tuple[Client | None, bool]:
        """The client that says Hello, and whether it is a new one; None: this is not its newest Hello.

        Raises Rejection.
        """
        clients, tenure = self._tables.clients, self._tables.tenure
        client = clients.returning(hello, peer)
        if client is not None and hello.serial <= client.record.serial:
            return None, False
        formers = clients.former_images(hello, peer)
        if any(former.record.serial > hello.serial for former in formers):
            return None, False  # it was said before its process called exec, and is heard only now
        for former in formers:
            self._log(f"client {former.label} has ended: {EXEC}")
            tenure.client_died(former, now_ns, EXEC)
        if client is not None:
            clients.renew(client, hello, peer, now_ns)
            return client, False
        if not clients.has_room:
            tenure.reap_dead(now_ns)
        if descriptors_left(max(peer.fd, peer.pidfd)) < 0:
            raise Rejection(
                Reason.LIMIT,
                f"{len(clients)} clients are connected, and no descriptors are left for another one, which "
                f"takes {DESCRIPTORS_EACH} (the driver itself needs {RESERVED_DESCRIPTORS}): close some, or "
                "raise RLIMIT_NOFILE of the driver (LimitNOFILE= of the unit, ulimit -n) and restart it",
            )
        return clients.admit(hello, peer, now_ns), True

    def _refuse(self, peer: Any, code: Code, reason: Reason, text: str) -> None:
        self._tables.authority.count(lib.SHMD_COUNTER_REQUESTS_REJECTED)
        welcome = self._letter(code, reason)
        welcome.text_bytes = put_text(welcome.text, text)
        self._door.answer(peer.fd, welcome)  # who has left does not hear it

    def _welcome(self, client: Client, peer: Any, now_ns: int) -> bool:
        """The connection is the client's only one from now on; whether it was told so.

        Raises Rejection: it cannot go on.
        """
        record, control = client.record, client.control
        assert control is not None, "a client without a control segment is expelled"
        welcome = self._letter(Code.OK, Reason.NONE)
        welcome.client_id, welcome.client_index = record.client_id, record.index
        welcome.authority_bytes, welcome.control_bytes = self._tables.authority.map.size, control.size
        try:
            segment = control.descriptor()
        except LayoutMismatch as error:
            self._log(self._tables.tenure.expel(client, str(error), now_ns))
            raise Rejection(Reason.EXPELLED, f"{error}: connect again, as a new client") from error
        fd = int(peer.fd)
        try:
            self._forget(client)
            self._door.keep(fd, client.client_id)
            is_heard = self._door.answer(fd, welcome, segment)
        finally:
            os.close(segment)
        if not is_heard:  # it has left already, or will ask again
            self._look_for_deaths(now_ns)
            return False
        self._fds[client.client_id], peer.fd = fd, -1
        record.connected = 1
        self._ring(client)  # what it has asked for meanwhile
        return True

    def _letter(self, code: Code, reason: Reason) -> Any:
        welcome = ffi.new("shmd_welcome_t *")
        welcome.code, welcome.reason, welcome.boot_id = code, reason, self._tables.authority.boot_id
        return welcome

    def _forget(self, client: Client) -> None:
        fd = self._fds.pop(client.client_id, -1)
        if fd >= 0:
            client.record.connected = 0
            self._door.forget(fd)
