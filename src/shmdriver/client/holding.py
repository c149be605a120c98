"""Who holds a queue until somebody gets: its lease, and the thread that notices what changes."""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from shmdriver import errors
from shmdriver.client.events import DriverEvent, listen
from shmdriver.client.lanes import stream_name
from shmdriver.client.log import tell
from shmdriver.client.outlet import come_back, has_ended
from shmdriver.client.reattach import OrphanLook

if TYPE_CHECKING:
    from shmdriver.client.client import Client
    from shmdriver.client.link import Link
    from shmdriver.client.producer import Producer
    from shmdriver.client.queue import Queue

__all__ = ["Holder"]

AGAIN_S = 0.05  # the getter makes room without telling, and nobody tells of a driver that comes
LOOK_S = 1.0


class Holder:
    """Of one queue, as long as that lives. A thread has it look when its streams may have changed."""

    __slots__ = ("_again", "_client", "_link", "_look", "_prefix", "_queue", "_stop", "_told", "lease")

    def __init__(self, client: Client, queue: Queue) -> None:
        """Raises AttachRejected (PRODUCER_EXISTS: another process holds it), DriverUnavailable."""
        self._client = client
        self._queue = weakref.ref(queue)
        self._again = False
        self._told = ""
        self._prefix = stream_name(queue.name, "")
        self._look = OrphanLook(client)
        self.lease: Producer = client.producer(stream_name(queue.name, "keep"), slots=2, arena=0)
        self._link: Link = self.lease._link
        self._stop = listen(self._link, self._heard, self._idle)

    @property
    def is_over(self) -> bool:
        """Whether it holds nothing any more."""
        return self.lease.closed

    def stop(self) -> None:
        """Notices nothing any more."""
        self._stop()

    def close(self) -> None:
        """Another process may hold the queue."""
        self._stop()
        self.lease.close()

    def abandon(self) -> None:
        """As close(), without a wait: the thread ends by itself."""
        self.lease._abandon()

    def _heard(self, event: DriverEvent) -> None:
        if event.stream.startswith(self._prefix) or event.missed:
            self._turn()

    def _idle(self) -> float:
        """Now and then: a driver that was removed says nothing, and one that is waited for neither.

        After how many seconds to look again; 0: it is over.
        """
        comeback = self.lease._comeback
        if self._queue() is None:
            self.abandon()  # its finaliser may have been interrupted
        if self.lease.closed:
            return 0
        if self._again or self._look.is_due or (comeback is not None and comeback.left is not None):
            self._turn()
        is_soon = self._again or (comeback is not None and comeback.left is not None)
        return AGAIN_S if is_soon else LOOK_S

    def _turn(self) -> None:
        try:
            queue = self._queue()
            self._again = (
                queue is not None
                and self._holds_on()
                and queue._look_for_a_getter()
                and not queue._gets  # such a getter, which may wait inside, discovers lanes by itself
            )
        except errors.HandleClosed:
            self._again = False
        except errors.ShmDriverError as error:
            # A refusal, or a driver that goes. The next turn tries again; putters that wait say so.
            self._again = True
            if str(error) != self._told and not self._client.closed:
                self._told = str(error)
                tell("WARNING", "queue holder: %s", error)  # this thread holds no lock of the queue

    def _holds_on(self) -> bool:
        """Whether its lease stands, perhaps anew, and perhaps with another driver."""
        lease = self.lease
        if lease.closed:
            return False
        is_orphan = self._look.is_orphan(self._link)
        if not is_orphan and not has_ended(lease):
            return True
        if lease._comeback is None:
            return False  # get() and put() of this process say why
        try:
            if not come_back(lease):
                return False
        except errors.AttachRejected as error:
            if error.reason != errors.Reason.PRODUCER_EXISTS:
                raise
            self.close()
            return False
        if lease._link is not self._link:
            stop = self._stop
            self._link = lease._link
            self._stop = listen(self._link, self._heard, self._idle)
            stop()
        return True
