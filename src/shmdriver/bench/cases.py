"""What each command of ``shmdriver bench`` measures: cases made from its options."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from shmdriver.bench import attaching, native, paced, scenarios
from shmdriver.bench.case import Case, Metric
from shmdriver.bench.native import Outcome
from shmdriver.bench.scenarios import SCENARIOS, Run
from shmdriver.bench.stream_channel import Delivery, StreamChannel, Wait
from shmdriver.demo.processes import DriverProcess

__all__ = ["GROUPS", "Wanted", "make", "size_of", "size_text"]

KIB, MIB = 1 << 10, 1 << 20
_INLINE_BYTES = 4096
_WAKE_RATE = 200
_CHUNK, _CHUNK_WATCHED = 500, 20

MESSAGES = Metric("messages_s", "", "M/s", 1e-6)
_PRODUCED = Metric("produced_s", "producer", "M/s", 1e-6)
_PRODUCED_NS = Metric("produced_ns", "", "ns/message", lower=True)
_BANDWIDTH = Metric("gb_s", "", "GB/s", floor="memcpy_gb_s")
NATIVE_TRIP = tuple(
    Metric(f"{key}_ns", label, "ns", lower=True, floor=floor)
    for key, label, floor in (("p50", "p50", "p50_ns"), ("p99", "p99", "p99_ns"), ("p999", "p99.9", ""))
)
_PACED = tuple(
    Metric(f"{key}_ns", label, "µs", 1e-3, lower=True)
    for key, label in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"))
)
_PYTHON_TRIP = tuple(
    Metric(f"{key}_us", label, "µs", lower=True)
    for key, label in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"))
)
_PRIORITY = 50
_KILLED_BYTES = 40
_KILLED_ROOM_BYTES = 16 << 20
_IDLE = Metric("cpu_share", "", "% of a core", 100, lower=True)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of a command; an empty tuple or None is the command's own choice."""

    sides: tuple[str, ...] = ("native", "python")
    bytes_each: tuple[int, ...] = ()
    delivery: Delivery = "reliable"
    wait: Wait | None = None
    rates: tuple[int, ...] = ()
    consumers: tuple[int, ...] = ()
    batch: int = 64
    slots: int | None = None
    stalled: int = 0
    seconds: float = 0.4
    warm_s: float = 0.1
    cores: tuple[int, int] = (0, 1)
    quick: bool = False

    @property
    def how(self) -> Run:
        """For Python processes. A consumer that may miss messages looks at the clock more often."""
        chunk = _CHUNK if self.delivery == "reliable" else _CHUNK_WATCHED
        return Run(self.seconds, self.warm_s, self.cores, chunk)

    def native(self, **more: object) -> dict[str, object]:
        """Arguments of a native program."""
        arguments: dict[str, object] = {
            "run_ms": max(1, round(self.seconds * 1000)),
            "warm_ms": round(self.warm_s * 1000),
            "first_core": self.cores[0],
            "second_core": self.cores[1],
            "delivery": self.delivery,
            "wait": self.wait or "spin",
            "slots": self.slots or 0,
            "stalled": self.stalled,
        }
        return arguments | more

    def channel(self, **more: Any) -> dict[str, Any]:
        """Options of a StreamChannel."""
        return {"delivery": self.delivery, "wait": self.wait or "adaptive", "slots": self.slots} | more

    @property
    def suffix(self) -> str:
        """What of the options a title must say."""
        words: list[str] = [] if self.delivery == "reliable" else [self.delivery]
        words += [f"wait={self.wait}"] if self.wait else []
        words += [f"{self.slots} slots"] if self.slots else []
        words += [f"{self.stalled} stalled beside"] if self.stalled else []
        return "".join(f", {word}" for word in words)


def size_of(text: str) -> int:
    """Bytes, from 64, 4KiB or 1 MiB. ValueError when it is none of these."""
    match = re.fullmatch(r"\s*(\d+)\s*(b|k|kib|m|mib|)\s*", text.lower())
    if match is None:
        raise ValueError(f"size {text!r}: expected bytes, as 64, 4KiB or 1MiB")
    return int(match[1]) * {"k": KIB, "m": MIB}.get(match[2][:1], 1)


def size_text(size: int) -> str:
    """40 B, 1 KiB, 2 MiB."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def _native(program: str, arguments: dict[str, object], *, samples: bool = False) -> Callable[[str], Outcome]:
    return lambda instance: native.run(program, {"instance": instance} | arguments, samples=samples)


def _python(scenario: str, how: Run, **options: Any) -> Callable[[str], Outcome]:
    return lambda instance: scenarios.run(
        SCENARIOS[scenario], StreamChannel, how, **(options | {"instance": instance})
    )


def _each(wanted: Wanted, default: Iterable[int], few: Iterable[int]) -> tuple[int, ...]:
    return wanted.bytes_each or tuple(few if wanted.quick else default)


def latency(wanted: Wanted) -> Iterator[Case]:
    """Round trips flat out, and one way at fixed rates."""
    sizes = _each(wanted, (40, 64), (40,))
    flat_out = not wanted.rates or 0 in wanted.rates
    rates = [rate for rate in wanted.rates if rate] or ([] if wanted.rates else [100_000])
    trip = replace(wanted, delivery="reliable", stalled=0, slots=None)
    for size in sizes:
        of, end = {"axis": "bytes", "size": float(size)}, f"{size_text(size)}{trip.suffix}"
        if "native" in wanted.sides and flat_out:
            run = _native("roundtrip", trip.native(bytes=size), samples=True)
            yield Case("latency", "native", f"round trip {end}", run, NATIVE_TRIP, **of)  # type: ignore[arg-type]
        if "python" in wanted.sides and flat_out:
            run = _python("roundtrip", trip.how, **trip.channel(bytes_each=max(size, 8)))
            yield Case("latency", "python", f"round trip {end}", run, _PYTHON_TRIP, **of)  # type: ignore[arg-type]
        for rate in rates:
            yield from _paced(wanted, max(size, 16), rate)
    if "native" in wanted.sides and not wanted.quick and not wanted.stalled:
        for rate in rates:
            yield from _paced_beside(wanted, max(sizes[0], 16), rate)


def _paced(wanted: Wanted, size: int, rate: int) -> Iterator[Case]:
    what = f"one way {size_text(size)} at {rate:,}/s{wanted.suffix}"
    if "native" in wanted.sides:
        run = _native("paced", wanted.native(bytes=size, rate=rate), samples=True)
        yield Case("latency", "native", what, run, _PACED, axis="rate", size=rate)
    if "python" in wanted.sides and not wanted.stalled:
        slow = (
            min(rate, 20_000) if not wanted.rates else rate
        )  # what a Python loop keeps up with on any machine
        what = f"one way {size_text(size)} at {slow:,}/s{wanted.suffix}"
        options = wanted.channel(bytes_each=size)
        yield Case(
            "latency", "python", what,
            lambda instance: paced.run(wanted.how, slow, instance=instance, **options),
            _PACED, axis="rate", size=slow,
        )  # fmt: skip


def _paced_beside(wanted: Wanted, size: int, rate: int) -> Iterator[Case]:
    """With all that may stand beside a stream, as it comes and with a real-time priority; and their limit.

    On a machine with as many cores as the two processes occupy, whoever else runs takes one of them away for
    as long as the kernel's scheduler likes; a priority keeps them.
    """
    for priority, words in ((0, ""), (_PRIORITY, ", real-time priority")):
        pace = {"rate": rate, "realtime": priority}
        yield Case(
            "latency",
            "native",
            f"nothing sent: how late two busy cores are at {rate:,}/s{words}",
            _native("hiccup", wanted.native(**pace), samples=True),
            _PACED,
        )
        arguments = replace(wanted, stalled=1).native(bytes=size, **pace)
        yield Case(
            "latency",
            "native",
            f"one way {size_text(size)} at {rate:,}/s, stat --watch and a stalled consumer beside{words}",
            _watched(_native("paced", arguments, samples=True)),
            _PACED,
        )


def _watched(run: Callable[[str], Outcome]) -> Callable[[str], Outcome]:
    def measure(instance: str) -> Outcome:
        words = ("stat", "--watch", "--interval", "0.1", "--instance", instance)
        with subprocess.Popen(
            (sys.executable, "-m", "shmdriver", *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as tool:
            assert tool.stdout is not None
            try:
                if not tool.stdout.read(1):  # it shows something: it is at work
                    raise RuntimeError(f"shmdriver {' '.join(words)} ended at once")
                return run(instance)
            finally:
                tool.kill()

    return measure


def throughput(wanted: Wanted) -> Iterator[Case]:
    """One way, one by one and in batches."""
    metrics = (MESSAGES,) if wanted.delivery == "reliable" else (MESSAGES, _PRODUCED)
    for size in _each(wanted, (40, 64, 256, 1024), (40, 64)):
        of: dict[str, Any] = {"axis": "bytes", "size": size}
        end = f"{size_text(size)}"
        if "native" in wanted.sides:
            run = _native("stream", wanted.native(bytes=size))
            yield Case("throughput", "native", f"{end} one by one{wanted.suffix}", run, metrics, **of)
            if size == _KILLED_BYTES and not wanted.quick and wanted.delivery == "reliable":
                what = f"{end} one by one, the driver killed with -9 meanwhile{wanted.suffix}"
                yield Case("throughput", "native", what, _without_driver(wanted.native(bytes=size)), metrics)
            if size <= _INLINE_BYTES and wanted.delivery == "reliable":
                run = _native("stream", wanted.native(bytes=size, mode="batch", batch=wanted.batch))
                what = f"{end} in batches of {wanted.batch}{wanted.suffix}"
                yield Case("throughput", "native", what, run, metrics, **of)
                yield from () if wanted.quick else _limits(wanted, size)
        if "python" in wanted.sides:
            options = wanted.channel(bytes_each=size)
            names = (
                {"single": "read()", "iterate": "iterated"}
                if wanted.delivery == "reliable"
                else {"watch": "read()"}
            )
            for name, words in names.items():
                run = _python(name, wanted.how, **options)
                yield Case("throughput", "python", f"{end} {words}{wanted.suffix}", run, metrics, **of)
    if "python" in wanted.sides and wanted.delivery == "reliable":
        size = scenarios.RECORD.itemsize
        for name, words in (("batch", "a call"), ("array", "in one message")):
            run = _python(name, wanted.how, **wanted.channel(bytes_each=size))
            what = f"{size} B records, {scenarios.RECORDS} {words}{wanted.suffix}"
            yield Case("throughput", "python", what, run, (MESSAGES,), axis="bytes", size=size)


def _without_driver(arguments: dict[str, object]) -> Callable[[str], Outcome]:
    """The stream's own driver is killed when the warm-up is over; another one clears up what is left."""

    def measure(instance: str) -> Outcome:
        with DriverProcess(f"{instance}-killed", _KILLED_ROOM_BYTES) as driver:
            stream = {"instance": driver.instance, "kill": driver.pid}
            try:
                return native.run("stream", stream | arguments)
            finally:
                driver.kill()
                driver.start()

    return measure


def _limits(wanted: Wanted, size: int) -> Iterator[Case]:
    """The same slots without leases, states, sleepers and statistics: how fast it could be."""
    for mode, words in (("single", "one by one"), ("batch", f"in batches of {wanted.batch}")):
        run = _native("sketch", wanted.native(bytes=size, mode=mode, batch=wanted.batch))
        yield Case("throughput", "native", f"{size_text(size)} {words}, bare ring", run, (MESSAGES,))


def fanout(wanted: Wanted) -> Iterator[Case]:
    """One producer, several consumers on the other core; and a lossy one that never reads."""
    size = (wanted.bytes_each or (40,))[0]
    for count in wanted.consumers or ((1, 2) if wanted.quick else (1, 2, 4, 8, 16)):
        of: dict[str, Any] = {"axis": "consumers", "size": count}
        what = f"{size_text(size)} to {count} consumer{'s' if count > 1 else ''}{wanted.suffix}"
        if "native" in wanted.sides:
            run = _native("stream", wanted.native(bytes=size, consumers=count))
            yield Case("fanout", "native", what, run, (_PRODUCED,), **of)
        if "python" in wanted.sides and count <= 4:
            options = wanted.channel(bytes_each=size, consumers=count)
            run = _python("single" if wanted.delivery == "reliable" else "watch", wanted.how, **options)
            yield Case("fanout", "python", what, run, (_PRODUCED,), **of)
    if "native" in wanted.sides and not wanted.stalled:
        beside = replace(wanted, stalled=1)
        run = _native("stream", beside.native(bytes=size))
        what = f"{size_text(size)} to 1 consumer, a lossy one stalled beside"
        yield Case("fanout", "native", what, run, (_PRODUCED,))


def frames(wanted: Wanted) -> Iterator[Case]:
    """Large payloads, copied in and written in place."""
    claimed = Metric("messages_s", "", "M frames/s", 1e-6)
    for size in _each(wanted, (64 * KIB, MIB, 8 * MIB), (MIB,)):
        of: dict[str, Any] = {"axis": "bytes", "size": size}
        copied, placed = (
            f"{size_text(size)} copied in{wanted.suffix}",
            f"{size_text(size)} claimed{wanted.suffix}",
        )
        if "native" in wanted.sides:
            run = _native("stream", wanted.native(bytes=size, mode="copy"))
            yield Case("frames", "native", copied, run, (_BANDWIDTH,), **of)
            run = _native("stream", wanted.native(bytes=size, mode="claim"))
            yield Case("frames", "native", placed, run, (claimed,), **of)
        if "python" in wanted.sides:
            options = wanted.channel(bytes_each=size)
            yield Case(
                "frames", "python", copied, _python("frames", wanted.how, **options), (_BANDWIDTH,), **of
            )
            yield Case("frames", "python", placed, _python("claim", wanted.how, **options), (claimed,), **of)


def attach(wanted: Wanted) -> Iterator[Case]:
    """From nothing to the first message."""
    steps = tuple(Metric(f"{name.replace(' ', '_')}_us", name, "µs", lower=True) for name in attaching.STEPS)
    if "python" in wanted.sides:
        whole = (Metric("p50_us", "p50", "µs", lower=True), Metric("p99_us", "p99", "µs", lower=True))
        yield Case(
            "attach", "python", "connect to first message",
            lambda instance: attaching.run(wanted.how, instance), whole + steps,
        )  # fmt: skip


def idle(wanted: Wanted) -> Iterator[Case]:
    """What a waiting consumer costs, and how fast it wakes."""
    waits: tuple[Wait, ...] = (wanted.wait,) if wanted.wait else ("adaptive", "sleep")
    if "native" in wanted.sides:
        bare = _native("wake", wanted.native(rate=_WAKE_RATE), samples=True)
        yield Case("idle", "native", f"the kernel alone wakes from a futex, {_WAKE_RATE}/s", bare, _PACED[:2])
    for wait in waits:
        own = replace(wanted, wait=wait, seconds=max(wanted.seconds, 0.5))
        idle_what, wake_what = f"idle consumer, wait={wait}", f"wake-up, wait={wait}"
        if "native" in wanted.sides:
            run = _native("paced", own.native(bytes=40, rate=0))
            yield Case("idle", "native", idle_what, run, (_IDLE,))
            run = _native("paced", own.native(bytes=40, rate=_WAKE_RATE), samples=True)
            yield Case("idle", "native", wake_what, run, _PACED[:2])
        if "python" in wanted.sides:
            yield from _idle_python(own, wait, idle_what, wake_what)


def _idle_python(own: Wanted, wait: Wait, idle_what: str, wake_what: str) -> Iterator[Case]:
    options = {"bytes_each": 40, "wait": wait}
    yield Case(
        "idle", "python", idle_what,
        lambda instance: paced.idle(own.how, instance=instance, **options), (_IDLE,),
    )  # fmt: skip
    yield Case(
        "idle", "python", wake_what,
        lambda instance: paced.run(own.how, _WAKE_RATE, instance=instance, **options), _PACED[:2],
    )  # fmt: skip


def growth(wanted: Wanted) -> Iterator[Case]:
    """How the cost of a publish grows: with message size, ring size, streams, and leases beside. Native."""
    if "native" not in wanted.sides:
        return
    few = wanted.quick
    for size in _each(wanted, (16, 40, 64, 128, 256, 1024, 4096, 16 * KIB, 64 * KIB), (40, 1024)):
        yield _grown(wanted, "bytes", size, f"{size_text(size)} a message", bytes=size)
    for slots in (64, 4096) if few else (64, 256, 1024, 4096, 16384, 65536):
        yield _grown(wanted, "slots", slots, f"ring of {slots} slots", bytes=40, slots=slots)
    for streams in (1, 16) if few else (1, 4, 16, 64, 256):
        yield _grown(
            wanted, "streams", streams, f"{streams} streams in turn", bytes=40, slots=1024, streams=streams
        )
    for leases in (0, 8) if few else (0, 1, 4, 8, 14):
        yield _grown(
            wanted, "leases", leases + 2, f"{leases + 2} leases on the stream", bytes=40, stalled=leases
        )


def _grown(wanted: Wanted, axis: str, size: int, what: str, **more: object) -> Case:
    run = _native("stream", wanted.native(**more))
    return Case("growth", "native", what, run, (_PRODUCED_NS,), axis=axis, size=size)


GROUPS: dict[str, Callable[[Wanted], Iterator[Case]]] = {
    "latency": latency,
    "throughput": throughput,
    "fanout": fanout,
    "frames": frames,
    "attach": attach,
    "idle": idle,
    "growth": growth,
}


def make(groups: Iterable[str], wanted: Wanted) -> list[Case]:
    """The cases of some groups."""
    return [case for group in groups for case in GROUPS[group](wanted)]
