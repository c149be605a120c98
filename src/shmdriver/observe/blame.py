"""Who holds a producer back, and what to do about it.

The producer itself records which gate it waits for; that gate's index leads, through the driver's
lease table, to a client and its process, and /proc says what that process is doing.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmdriver.hints import command
from shmdriver.observe.instance import Instance
from shmdriver.observe.process import ProcessStatus
from shmdriver.observe.records import DriverStatus, EpochStatus, GateStatus, StreamStatus


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The answer of ``why``.

    ``verdict`` is one of no_producer, producer_gone, producer_stopped, no_consumer, consumer_gone,
    consumer_stopped, consumer_slow, views_held, idle, flowing, sealed, unreadable. ``culprit`` is the
    consumer that holds the producer back, when one does.
    """

    stream: str
    verdict: str
    summary: str
    details: tuple[str, ...]
    advice: tuple[str, ...]
    culprit: GateStatus | None
    producer: ProcessStatus | None
    driver: DriverStatus
    blocked_for_ns: int
    blocked_total_ns: int
    messages_per_second: float

    @property
    def held_back(self) -> bool:
        """Whether the producer cannot publish now."""
        return self.blocked_for_ns > 0


def diagnose(
    instance: Instance, name: str, *, before: StreamStatus | None = None, elapsed_s: float = 0.0
) -> Diagnosis:
    """Say what holds the stream's producer back.

    ``before`` is the same stream as it was seen ``elapsed_s`` seconds ago: the difference tells a
    producer that publishes from an idle one. Raises ShmDriverError when there is no such stream.
    """
    stream = instance.stream(name)
    rate = _rate(before, stream, elapsed_s) if before is not None else 0.0
    driver = instance.driver()
    verdict, summary, details, advice, culprit = _verdict(stream, driver, rate)
    epoch = stream.current
    if not driver.alive:
        details = (*details, f"{driver.explanation}: while it is down, nobody frees a dead consumer's gate")
        advice = (*advice, driver.advice)
    elif driver.status != "running":
        details, advice = (*details, driver.explanation), (*advice, driver.advice)
    return Diagnosis(
        stream=name,
        verdict=verdict,
        summary=summary,
        details=details,
        advice=tuple(line for line in advice if line),
        culprit=culprit,
        producer=stream.producer.process if stream.producer else None,
        driver=driver,
        blocked_for_ns=epoch.blocked.for_ns if epoch and epoch.blocked else 0,
        blocked_total_ns=epoch.blocked_total_ns if epoch else 0,
        messages_per_second=rate,
    )


_Verdict = tuple[str, str, tuple[str, ...], tuple[str, ...], GateStatus | None]


def _verdict(stream: StreamStatus, driver: DriverStatus, rate: float) -> _Verdict:
    epoch, producer = stream.current, stream.producer
    if epoch is None or producer is None or epoch.state != "open":
        return _without_producer(stream, driver.instance)
    who = f"{producer.client_name or 'producer'} ({producer.process.label})"
    if epoch.problem:
        return "unreadable", f"the epoch's segments cannot be read: {epoch.problem}", (), (), None
    if producer.process.dead:
        text = f"the producer {who} is {producer.process.state}; its lease ends as soon as the driver notices"
        return "producer_gone", text, (), (), None
    if producer.process.frozen:
        text = f"the producer {who} is itself {producer.process}"
        return "producer_stopped", text, (), (producer.process.resume,), None
    if producer.process.doubt:
        who += f" ({producer.process.doubt})"
    if epoch.blocked is None:
        return _unblocked(stream, epoch, who, rate)
    since = f"{epoch.blocked.for_ns / 1e9:.1f} s"
    if epoch.blocked.no_consumer:
        have = sum(1 for gate in epoch.gates if gate.reliable)
        needs = f"{have} of {producer.min_consumers} reliable consumers are attached"
        text = f"the producer {who} has waited {since} for its consumers: {needs}"
        advice = (f"attach one: {command('sub', stream.name, instance=driver.instance)}",)
        return "no_consumer", text, (), advice, None
    culprit = next((gate for gate in epoch.gates if gate.gate == epoch.blocked.gate), None)
    if culprit is None:
        text = f"the producer {who} waits {since} for gate {epoch.blocked.gate}, whose consumer has just left"
        return "flowing", text, (), ("ask again",), None
    return _blocked(stream, epoch, culprit, since, driver.instance)


def _without_producer(stream: StreamStatus, instance: str) -> _Verdict:
    epoch = stream.current
    advice = (f"start its producer, for example: {command('pub', stream.name, instance=instance)}",)
    waiting = len(stream.consumers)
    waits = (f"{waiting} consumer{'s' if waiting != 1 else ''} attached",)
    if epoch is None and stream.epoch_count == 0:
        return "no_producer", f"stream {stream.name!r} has never had a producer", waits, advice, None
    if epoch is None or epoch.state == "sealed":
        ended = f", which ended: {epoch.end_reason}, {epoch.sealed_seq} messages" if epoch else ""
        undrained = [gate for gate in epoch.gates if gate.reliable and not gate.left] if epoch else []
        details = tuple(f"not drained yet by {_describe(gate)}" for gate in undrained)
        text = f"stream {stream.name!r} has no producer now; epoch {stream.epoch_count} was the last{ended}"
        return ("sealed" if undrained else "no_producer"), text, (*waits, *details), advice, None
    return "sealed", f"epoch {epoch.epoch} of {stream.name!r} is {epoch.state}", waits, (), None


def _unblocked(stream: StreamStatus, epoch: EpochStatus, who: str, rate: float) -> _Verdict:
    slowest = epoch.slowest
    details = []
    if slowest is not None and epoch.slots:
        share = 100 * slowest.behind / epoch.slots
        details.append(
            f"slowest consumer: {_describe(slowest)}, {slowest.behind} messages ({share:.0f} % of the ring)"
        )
    if epoch.blocked_count:
        total = f"{epoch.blocked_total_ns / 1e9:.3f} s in total"
        details.append(f"it was held back {epoch.blocked_count} times so far, {total}")
    if not any(gate.reliable for gate in epoch.gates):
        details.append("no reliable consumer is attached: nobody can hold it back")
    if rate > 0:
        text = f"nothing holds {stream.name!r} back: {who} publishes {rate:,.0f} messages/s"
        return "flowing", text, tuple(details), (), None
    text = f"nothing holds {stream.name!r} back: {who} ({epoch.head} messages so far) publishes nothing now"
    doubtful = stream.producer is not None and stream.producer.process.doubt
    why = "where its process can be seen" if doubtful else "it is idle by its own choice"
    return "idle", text, tuple(details), (f"look at the producer: {why}",), None


def _blocked(
    stream: StreamStatus, epoch: EpochStatus, culprit: GateStatus, since: str, instance: str
) -> _Verdict:
    name = f"consumer {_describe(culprit)}"
    details = (
        f"{culprit.behind} messages behind (of {epoch.slots} slots), {culprit.held} of them read and held",
        f"it has read {culprit.consumed} messages{_last_read(culprit.last_read_age_ns)}",
        f"held back {epoch.blocked_count} times in this epoch, {epoch.blocked_total_ns / 1e9:.3f} s in total",
    )
    pid, start = culprit.pid, f"{stream.name!r} is held back for {since} by {name}"
    policy = stream.producer.slow_consumer if stream.producer else "block"
    softer = (
        "if it may miss messages: attach it with delivery='lossy' or 'latest'",
        f"the stream's policy for slow consumers is {policy!r}; 'evict' would let the producer go on",
    )
    advice: tuple[str, ...]
    if culprit.process.dead:
        look = command("stat", instance=instance)
        advice = (f"the driver frees its gate as soon as it sees the death; is it running? {look}",)
        return "consumer_gone", f"{start}, which is {culprit.process.state}", details, advice, culprit
    if culprit.process.frozen:
        end = f"or end it: {culprit.process.kill('KILL')} (its gate is freed at once)"
        advice = (culprit.process.resume, *(() if culprit.process.state == "frozen" else (end,)))
        return "consumer_stopped", f"{start}, which is {culprit.process}", details, advice, culprit
    if culprit.held and culprit.held >= culprit.lag:
        advice = (
            "it keeps views of messages that it has read: drop them, or copy what is to be kept",
            "or give the stream more room: slots= and max_message= of its producer",
        )
        return (
            "views_held",
            f"{start}, which holds views of {culprit.held} messages",
            details,
            advice,
            culprit,
        )
    advice = (f"see what it is doing: `py-spy dump --pid {pid}`", *softer)
    if culprit.process.doubt or culprit.process.mistakable:
        advice = ("look at it where its process can be seen: its own namespaces, its user or root", *softer)
    return (
        "consumer_slow",
        f"{start}, which {_lives(culprit.process)} and reads too slowly",
        details,
        advice,
        culprit,
    )


def _lives(process: ProcessStatus) -> str:
    if process.unknown:
        return f"cannot be proved alive or dead ({process.why}), so its place is not freed,"
    return f"is {process}"


def _describe(gate: GateStatus) -> str:
    shown = f", {gate.process.command}" if gate.process.command else ""
    return f"{gate.client_name or 'unnamed'} ({gate.process.label}{shown})"


def _last_read(age_ns: int) -> str:
    return "" if age_ns < 0 else f", the last {age_ns / 1e9:.1f} s ago"


def _rate(first: StreamStatus, second: StreamStatus, seconds: float) -> float:
    one, two = first.current, second.current
    if one is None or two is None or one.epoch != two.epoch or seconds <= 0:
        return 0.0
    return max(0, two.head - one.head) / seconds
