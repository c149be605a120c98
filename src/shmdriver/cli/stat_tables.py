"""The tables of ``stat``: what is known of an instance, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from shmdriver.cli.output import bytes_text, count_text, span_text
from shmdriver.cli.screen import Cell, Line, Page, Styled, Table

if TYPE_CHECKING:
    from shmdriver.observe import DriverStatus, EventRecord, GateStatus, Instance, LeaseStatus, StreamStatus
    from shmdriver.observe.process import ProcessStatus
    from shmdriver.observe.rates import Rate

_COLOURS = {"running": "green", "starting": "yellow", "stopped": "yellow", "handover": "yellow"}
_ODD = ("stopped", "zombie", "gone", "traced", "frozen", "reused")
EVENTS_SHOWN = 30


def driver_lines(driver: DriverStatus) -> list[Line]:
    """The driver in one line, and what to do about it in a second one when there is something."""
    parts: list[Cell] = [
        Styled(f"{driver.instance}  ", "bold"),
        Styled(driver.status, _COLOURS.get(driver.status, "bold red")),
    ]
    if driver.status == "running":
        adopted = f", adopted {driver.adoptions} times" if driver.adoptions else ""
        parts.append(
            f"  {driver.lifecycle}  {driver.process.label}  up {span_text(driver.uptime_ns)}{adopted}"
            f"  heartbeat {span_text(driver.heartbeat_age_ns)} ago"
        )
        if driver.degraded:
            parts.append(Styled(f"  degraded by {', '.join(driver.degraded)}", "yellow"))
    else:
        parts.append(f"  {driver.explanation}")
    return [tuple(parts), *([(f"→ {driver.advice}",)] if driver.advice else [])]


def _who(name: str, process: ProcessStatus) -> Cell:
    pid = "elsewhere" if process.state == "elsewhere" else process.pid
    text = f"{name or 'unnamed'} ({pid})"
    return Styled(f"{text} {process.state}", "red") if process.state in _ODD else text


def _blocked_cell(stream: StreamStatus) -> Cell:
    epoch = stream.current
    if epoch is None or epoch.blocked is None:
        return ""
    if epoch.blocked.no_consumer:
        return Styled(f"no consumer, {span_text(epoch.blocked.for_ns)}", "yellow")
    holder = next((gate for gate in epoch.gates if gate.gate == epoch.blocked.gate), None)
    who = _who(holder.client_name, holder.process) if holder else f"gate {epoch.blocked.gate}"
    text = who.text if isinstance(who, Styled) else who
    return Styled(f"by {text}, {span_text(epoch.blocked.for_ns)}", "red")


def streams_table(streams: tuple[StreamStatus, ...], rates: dict[str, Rate]) -> Table:
    """One row a stream."""
    rows = []
    for stream in streams:
        epoch, producer, rate = stream.current, stream.producer, rates.get(stream.name)
        slowest = epoch.slowest if epoch else None
        lag = (
            f"{count_text(slowest.behind)} ({100 * slowest.behind // max(1, epoch.slots)} %)"
            if slowest and epoch
            else ""
        )
        rows.append(
            (
                stream.name,
                stream.state if epoch is None or epoch.state != "sealed" else f"sealed ({epoch.end_reason})",
                _who(producer.client_name, producer.process) if producer else "-",
                str(stream.epoch_count),
                count_text(epoch.head) if epoch else "",
                count_text(rate.messages) if rate else "",
                f"{bytes_text(rate.bytes)}/s" if rate else "",
                str(len(stream.consumers)),
                lag,
                _blocked_cell(stream),
                bytes_text(stream.shm_bytes),
            )
        )
    columns = (
        "stream",
        "state",
        "producer (pid)",
        ">epoch",
        ">messages",
        ">/s",
        ">bytes/s",
        ">cons",
        ">worst lag",
    )
    return Table("streams", (*columns, "held back", ">shm"), rows)


def _frozen_clients(instance: Instance) -> list[Line]:
    """A line about each client that cannot run."""
    return [
        (f"{client.name} ({client.process.label}) is {client.process} → {client.process.resume}",)
        for client in instance.clients()
        if client.process.frozen
    ]


def clients_table(instance: Instance) -> Table:
    """One row a client; also of one that is gone, as long as something is set aside for it."""
    leases, aside = Counter[int](), Counter[int]()
    for lease in instance.leases(ended=True):
        if lease.live or lease.quarantined:
            (leases if lease.live else aside)[lease.client_id] += 1
    rows = [
        (
            str(client.client_id),
            client.name,
            str(client.pid),
            client.process.state,
            client.state,
            span_text(client.seen_age_ns),
            "yes" if client.provable else "no",
            str(leases[client.client_id]),
            str(aside[client.client_id]),
            client.process.command[:60],
        )
        for client in instance.clients(gone=True)
    ]
    columns = (
        ">id", "name", ">pid", "process", "state", ">seen", "provable", ">leases", ">set aside", "command",
    )  # fmt: skip
    return Table("clients", columns, rows)


def _gates(streams: tuple[StreamStatus, ...]) -> dict[int, GateStatus]:
    """The newest gate of each consumer lease."""
    return {
        gate.lease_id: gate
        for stream in streams
        for epoch in stream.epochs
        for gate in epoch.gates
        if not gate.left
    }


def _lease_row(lease: LeaseStatus, gate: GateStatus | None) -> tuple[Cell, ...]:
    return (
        str(lease.lease_id),
        lease.stream,
        lease.role,
        lease.state,
        _who(lease.client_name, lease.process),
        lease.delivery if lease.role == "consumer" else lease.slow_consumer,
        str(lease.epoch) if lease.role == "producer" else f"gate {lease.gate}",
        str(gate.cursor) if gate else "",
        count_text(gate.lag) if gate else "",
        count_text(gate.held) if gate else "",
        count_text(gate.lost) if gate else "",
        "yes" if gate and gate.sleeping else "",
    )


def _latency_cells(gate: GateStatus | None) -> tuple[str, str, str]:
    """Publish to read; blank without timestamps."""
    latency = gate.latency if gate else None
    if latency is None:
        return "", "", ""
    return span_text(latency.p50_ns), span_text(latency.p99_ns), span_text(latency.p999_ns)


def leases_table(instance: Instance) -> Table:
    """One row a live lease, with where it stands."""
    gates = _gates(instance.streams())
    leases = instance.leases()
    rows = [_lease_row(lease, gates.get(lease.lease_id)) for lease in leases]
    timed: tuple[str, ...] = ()
    if any(gate.latency for gate in gates.values()):
        timed = (">p50", ">p99", ">p99.9")
        rows = [
            (*row, *_latency_cells(gates.get(lease.lease_id)))
            for row, lease in zip(rows, leases, strict=True)
        ]
    columns = (
        ">id",
        "stream",
        "role",
        "state",
        "client (pid)",
        "delivery/policy",
        "epoch/gate",
        ">at",
        ">lag",
        ">held",
    )
    return Table("leases", (*columns, ">lost", "asleep", *timed), rows)


def events_table(events: tuple[EventRecord, ...]) -> Table:
    """The newest events, oldest first."""
    rows = [
        (
            str(event.seq),
            span_text(event.age_ns),
            event.kind,
            "" if event.code == "ok" else event.code,
            "" if event.reason == "none" else event.reason,
            event.stream,
            event.text[:100],
        )
        for event in events[-EVENTS_SHOWN:]
    ]
    return Table("events", (">seq", ">age", "kind", "code", "reason", "stream", "text"), rows)


def errors_table(instance: Instance) -> Table:
    """The driver's distinct errors."""
    rows = [
        (str(error.count), span_text(error.last_age_ns), span_text(error.first_age_ns), error.text)
        for error in instance.errors()
    ]
    return Table("errors", (">times", ">last", ">first", "text"), rows)


def counters_table(instance: Instance) -> Table:
    """The driver's counters that are not zero."""
    rows = [(name, str(value)) for name, value in instance.counters().items() if value]
    return Table("counters", ("counter", ">value"), rows)


def overview(instance: Instance, rates: dict[str, Rate], streams: tuple[StreamStatus, ...]) -> Page:
    """Everything on one screen."""
    clients, errors = instance.clients(), instance.errors()
    total = sum(stream.shm_bytes for stream in streams)
    stalled = sum(1 for client in clients if client.state == "stalled")
    leases = sum(len(stream.consumers) + (stream.producer is not None) for stream in streams)
    summary = (
        f"{len(clients)} clients ({stalled} stalled), {leases} leases, "
        f"{len(streams)} streams with {bytes_text(total)}, {sum(error.count for error in errors)} errors"
    )
    page: list[Line | Table] = [*driver_lines(instance.driver()), streams_table(streams, rates), (summary,)]
    if errors:
        last = f"last error, {span_text(errors[0].last_age_ns)} ago: {errors[0].text}"
        page.append((Styled(last, "yellow"),))
    return page


def build(what: str, instance: Instance, rates: dict[str, Rate], streams: tuple[StreamStatus, ...]) -> Page:
    """The page that ``stat WHAT`` shows; ``what`` "" is the overview."""
    if not what:
        return overview(instance, rates, streams)
    tables: dict[str, Callable[[], Table]] = {
        "streams": lambda: streams_table(streams, rates),
        "clients": lambda: clients_table(instance),
        "leases": lambda: leases_table(instance),
        "events": lambda: events_table(instance.events()),
        "errors": lambda: errors_table(instance),
        "counters": lambda: counters_table(instance),
    }
    return (tables[what](), *(_frozen_clients(instance) if what == "clients" else ()))
