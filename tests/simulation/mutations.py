"""Defects to put into the driver, one at a time, to see that the simulation notices them.

A mutation is a text in the source of one function and what stands there instead. A text that is not found any
more is an error (tests/unit/test_simulation.py), so that the list stays true.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from shmdriver.driver import adoption, boot, clients, identity
from shmdriver.driver.admission import Admission
from shmdriver.driver.authority import Authority
from shmdriver.driver.clients import ClientTable
from shmdriver.driver.connections import Connections
from shmdriver.driver.control import ControlRings
from shmdriver.driver.driver import Driver
from shmdriver.driver.epochs import Epoch
from shmdriver.driver.leases import LeaseTable
from shmdriver.driver.leasewatch import LeaseWatch
from shmdriver.driver.lifecycle import Lifecycle
from shmdriver.driver.rest import Rest
from shmdriver.driver.streams import Stream
from shmdriver.driver.tenure import Tenure
from shmdriver.driver.work import Work


class Mutation(NamedTuple):
    owner: Any  # a class or a module
    function: str
    text: str
    instead: str


MUTATIONS = {
    "a lease id is given twice": Mutation(
        Authority, "take_id", "number + 1)", "number + (number != 5))"),
    "a draining driver admits": Mutation(
        Lifecycle, "_reject", "reason, text =",
        "if self.state is State.DRAINING:\n"
        "        return self._hooks.on_attach(occurrence.now_ns, occurrence.subject)\n"
        "    reason, text ="),
    "a revoke is not announced": Mutation(
        Tenure, "end", "self._events.lease_revoked(lease.record, stream.name, text)", "pass"),
    "a revoke of an adopted lease is not announced": Mutation(
        Tenure, "end", "self._events.lease_revoked(lease.record, stream.name, text)",
        "if lease.record.attached_ns >= self._authority.base.started_ns:\n"
        "            self._events.lease_revoked(lease.record, stream.name, text)"),
    "the announce comes before the revoke that causes it": Mutation(
        Tenure, "end", "if state == lib.SHMD_LEASE_DETACHED:",
        "if epoch: self._events.stream_announce(stream.record, epoch.record)\n"
        "    if state == lib.SHMD_LEASE_DETACHED:"),
    "a lease's state is published before its data": Mutation(
        LeaseTable, "end", "record = lease.record\n",
        'record = lease.record\n    publish_word(record, state)\n    failpoint("mutation")\n'),
    "adoption keeps the bits of ended leases": Mutation(
        Epoch, "keep_only", "stale = bits & ~live", "stale = 0"),
    "adoption leaves an open epoch without producer": Mutation(
        adoption, "_finish_epochs", "epoch.seal(Reason(reason), now_ns)", "pass"),
    "adoption leaves orphan segments": Mutation(
        boot, "remove_orphans", "if name not in known and", "if False and"),
    "a dead producer is sealed at its head": Mutation(
        Epoch, "seal", "int(self.record.end_reason == Reason.CLOSED),", "1,"),
    "a gate is free before its owner is proved gone": Mutation(
        Tenure, "_end_record", "is_kept = quarantine and stream.keeps(lease)", "is_kept = False"),
    "a gate that is set aside is given to who reads the same epoch": Mutation(
        Stream, "take_gate", "if lease.last_epoch >= first}", "if False}"),
    "a gate is set aside in the first epoch only": Mutation(
        Tenure, "_end_record", "lease.record.epoch = int(stream.record.epoch_count)",
        "lease.record.epoch = lease.record.first_epoch"),
    "who rings is not looked at": Mutation(
        Connections, "take", "self._ring(client)", "pass"),
    "who rings is not asked for notes": Mutation(
        Tenure, "hear", "if said != lib.SHMD_ENTRY_CONFIRMED:", "if False:"),
    "a lease check sees no notes": Mutation(
        LeaseWatch, "check", "if what in ENTRIES:", "if False:"),
    "who left after it had expired is not heard": Mutation(
        LeaseWatch, "check", "for lease in tables.leases.all_quarantined:", "for lease in ():"),
    "an expelled client's epochs count as lost memory": Mutation(
        Tenure, "expel", "self.revoke(lease, Reason.EXPELLED, said, now_ns)",
        "self.revoke(lease, Reason.TRUNCATED, said, now_ns)"),
    "who ruins its ring goes on": Mutation(
        ControlRings, "_read", "self._expel(client, text, now_ns)", "pass"),
    "an epoch is retired before it is drained": Mutation(
        Tenure, "may_retire", " or stream.holders(epoch, reliable_only=True)", ""),
    "a process that cannot be looked at is taken for dead": Mutation(
        ClientTable, "load", "if look.verdict is Verdict.DEAD:", "if look.verdict is not Verdict.ALIVE:"),
    "a client for which no descriptor was left is never looked at again": Mutation(
        ClientTable, "look_again", "for client in list(self._unproved.values()):", "for client in ():"),
    "a client that says Hello again brings no proof of its death": Mutation(
        ClientTable, "renew", "if client.pidfd < 0:", "if False:"),
    "an older Hello is heeded": Mutation(
        Connections, "_greet", " and hello.serial <= client.record.serial", " and False"),
    "a Hello with a wrong secret is heeded": Mutation(
        clients, "contradiction", "if digest_of(hello) != bytes(record.secret_sha256):", "if False:"),
    "another user's Hello is heeded": Mutation(
        clients, "contradiction", "if peer.uid != record.uid:", "if False:"),
    "another process's Hello is heeded": Mutation(
        clients, "contradiction", "if is_of(record, process, peer) is False:", "if False:"),
    "another program's Hello is heeded": Mutation(
        clients, "contradiction", "if hello.image != record.image:", "if False:"),
    "a process's next program leaves the former one its leases": Mutation(
        ClientTable, "former_images", "for client in self\n", "for client in ()\n"),
    "numbers of two PID namespaces are compared": Mutation(
        identity, "is_of", " or record.pid_namespace != found.pid_namespace", ""),
    "who has ended is admitted": Mutation(
        ClientTable, "admit", "if peer.pidfd_error == errno.ESRCH:", "if False:"),
    "a Hello said before exec ends the program that runs now": Mutation(
        Connections, "_greet", "former.record.serial > hello.serial", "False"),
    "a late driver takes its own lateness for a sign of life": Mutation(
        ClientTable, "excuse", "client.activity is not None and", "False and"),
    "a lost welcome makes a second client": Mutation(
        ClientTable, "returning", "else self._by_nonce.get(int(hello.nonce))", "else None"),
    "who has expired stays connected": Mutation(
        ClientTable, "mark", "self.on_gone(client)", "pass"),
    "who has left stays connected": Mutation(
        ClientTable, "remove", "self.on_gone(client)", "pass"),
    "a client's former connection stays open": Mutation(
        Connections, "_welcome", "self._forget(client)", "pass"),
    "the end of a connection is taken for a death": Mutation(
        Connections, "take", "self._forget(client)", "self._tables.tenure.client_died(client, now_ns)"),
    "a Hello at which a driver died is served again": Mutation(
        Connections, "_hear", "with self._notes.serving(greeting):", "if True:"),
    "a driver rests although a lease waits for its confirmation": Mutation(
        Rest, "_note", "and not lib.shmd_lease_unconfirmed(tables.authority.base)", ""),
    "a client that is dead is admitted": Mutation(
        Admission, "attach", "self._clients.sender(request.client_id), now_ns)  # was",
        "client, now_ns)  # was"),
    "a driver does not remember what killed its predecessor": Mutation(
        Work, "inherit", "self._remember(_key(entry), entry, int(entry.deaths) + 1, state)", "pass"),
    "what kills a driver is forgotten with its successor": Mutation(
        Work, "__init__", "if entry.state:", "if False:"),
    "what kills a driver in its grant is served again": Mutation(
        Driver, "_finish_memory", "with self._notes.serving(request):", "if True:"),
    "a request at which a driver died is served again": Mutation(
        Work, "refusal", "request.kind in SENT_ONCE or", "True or"),
    "an attach that was granted is refused for a driver's death": Mutation(
        Work, "refusal", " or self._is_granted(int(entry.correlation_id))", ""),
    "what waits for its memory counts as in work": Mutation(
        Admission, "_provision", "self._memory.submit(job)",
        "self._memory.submit(job)\n        if self._memory.pending: job.noted.__enter__()"),
}  # fmt: skip


def mutant(name: str) -> Any:
    """The function as the mutation makes it. Raises ValueError when its source is not what was expected."""
    owner, function, text, instead = MUTATIONS[name]
    original = getattr(owner, function)
    source = textwrap.dedent(inspect.getsource(original))
    if source.count(text) != 1:
        raise ValueError(
            f"{name!r}: {source.count(text)} times {text!r} in {original.__qualname__}, expected once"
        )
    space: dict[str, Any] = {}
    code = compile(
        "from __future__ import annotations\n" + source.replace(text, instead), f"<{name}>", "exec"
    )
    exec(code, vars(sys.modules[original.__module__]), space)
    return space[function]


@contextmanager
def applied(name: str) -> Iterator[None]:
    """The driver is broken in that way inside the block."""
    owner, function = MUTATIONS[name][:2]
    before = vars(owner)[function]
    setattr(owner, function, mutant(name))
    try:
        yield
    finally:
        setattr(owner, function, before)
