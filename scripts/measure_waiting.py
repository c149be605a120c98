"""Measures what CPU a waiting process takes and how soon its wait ends, beside a busy neighbour, and idle.

    python scripts/measure_waiting.py                        this installation
    python scripts/measure_waiting.py --before PYTHON -n 5   and another one's, in turns: a table
    --only idle                                              what has this word in its name
    --nice -20                                               where others compute, too: they give way

A reader (a producer that waits for room) shares its core with a process that computes all the time. The other
side has a core of its own, and publishes (makes room) at a fixed rate. Latency is from when a message was due
until it is read, and from when there was room until the publish that waited for it is over. An idle node is a
process of six readers to whom nothing comes, in threads or in asyncio; a blocked producer waits in publish().
A getter is a process with two threads in get() of an empty queue; a putter has one in put() into a full one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import secrets
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import shmdriver

SCRIPT = Path(__file__).resolve()
RATES = {100: 200, 1000: 1000, 20_000: 20_000}  # and how many messages
WARM_PART = 10  # one message in so many, of the first ones, is not counted
NODES, READERS, GETTERS = 30, 6, 2
IDLE_S = 5.0
SETTLE_S = 2.0  # until all of them have waited for a while
DUE = struct.Struct("<q")
BIG = bytes(1024)  # in the arena: read one by one
RING = {"slots": 2, "slot_bytes": 64, "max_message": 1024, "arena": 1 << 16}
BUSY = "while True: pass"


# ---- the processes; each prints "ready", then, at its end, what it found as JSON


def ready() -> None:
    print("ready", flush=True)


def tell(found: object) -> None:
    print(json.dumps(found), flush=True)


def spent() -> tuple[float, int]:
    """Processor time of this process, in seconds, and how often its threads went to sleep."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime, use.ru_nvcsw


def pace(rate: int, count: int, act: Callable[[int], object]) -> None:
    """Calls ``act`` with the time when it was due, in ns, ``count`` times."""
    start_ns = time.monotonic_ns() + 20_000_000
    for number in range(count):
        due_ns = start_ns + number * 1_000_000_000 // rate
        while time.monotonic_ns() < due_ns:
            pass
        act(due_ns)


def read_paced(instance: str, count: int) -> None:
    with shmdriver.connect(instance) as client:
        read = client.consumer("s").read
        ready()
        late = []
        for _ in range(count):
            (due_ns,) = DUE.unpack(read().data)
            late.append(time.monotonic_ns() - due_ns)
    tell(late)


def publish_paced(instance: str, rate: int, count: int) -> None:
    with shmdriver.connect(instance) as client:
        out = client.producer("s", min_consumers=1, max_message=DUE.size)
        ready()
        out.wait_for_consumers()
        pace(rate, count, lambda due_ns: out.publish(DUE.pack(due_ns)))
    tell([])


def free_paced(instance: str, rate: int, count: int) -> None:
    freed: list[int] = []
    with shmdriver.connect(instance) as client:
        consumer = client.consumer("s")

        def free(_due_ns: int) -> None:
            consumer.read()
            consumer.release()
            freed.append(time.monotonic_ns())

        ready()
        time.sleep(0.2)
        pace(rate, count, free)
    tell(freed)


def publish_blocked(instance: str, count: int) -> None:
    with shmdriver.connect(instance) as client:
        out = client.producer("s", min_consumers=1, **cast("Any", RING))
        ready()
        over = []
        for _ in range(count):
            out.publish(BIG)
            over.append(time.monotonic_ns())
        slots = out.slots
    tell([slots, over])


def idle_node(instance: str, number: int, how: str) -> None:
    """Six streams of its own, and six readers of the next node's; ends when its stdin does."""
    with shmdriver.connect(instance) as client:
        own = [client.producer(f"n{number}.{i}", slots=64, max_message=64) for i in range(READERS)]
        there = (number + 1) % NODES
        readers = [client.consumer(f"n{there}.{i}") for i in range(READERS)]
        if how == "asyncio":
            loop = asyncio.new_event_loop()
            tasks = [loop.create_task(reader.aread()) for reader in readers]
            assert tasks
            threading.Thread(target=loop.run_forever, daemon=True).start()
        else:
            for reader in readers:
                threading.Thread(target=reader.read, daemon=True).start()
        report_when_asked()
        os._exit(0 if own else 1)  # its threads wait for ever


def blocked_producers(instance: str) -> None:
    with shmdriver.connect(instance) as client:
        outs = [client.producer(f"b{i}", slots=2, max_message=64) for i in range(READERS)]
        readers = [client.consumer(f"b{i}") for i in range(READERS)]

        def fill(out: shmdriver.Producer) -> None:
            while True:
                out.publish(b"x")

        for out in outs:
            threading.Thread(target=fill, args=(out,), daemon=True).start()
        report_when_asked()
        os._exit(0 if readers else 1)


def idle_getter(instance: str, number: int) -> None:
    with shmdriver.connect(instance) as client:
        queue = client.queue(f"q{number}")
        for _ in range(GETTERS):
            threading.Thread(target=queue.get, daemon=True).start()
        report_when_asked()
        os._exit(0)


def full_putter(instance: str, number: int) -> None:
    with shmdriver.connect(instance) as client:
        queue = client.queue(f"q{number}", 1)
        queue.put(0)
        threading.Thread(target=queue.put, args=(1,), daemon=True).start()
        report_when_asked()
        os._exit(0)


def waiting_client(instance: str, _number: int) -> None:
    connect = partial(shmdriver.connect, f"{instance}-away", timeout=None, reconnect=True)
    threading.Thread(target=connect, daemon=True).start()
    report_when_asked()
    os._exit(0)


def report_when_asked() -> None:
    """Says twice, when a line comes, what was spent by then."""
    ready()
    for _ in range(2):
        sys.stdin.readline()
        tell(spent())


# ---- one measurement of everything


class Crew:
    """Processes of one measurement, each of this interpreter."""

    def __init__(self, stack: ExitStack, nice: int) -> None:
        self._stack = stack
        self._nice = str(nice)

    def start(self, *command: object, core: int | None = None) -> subprocess.Popen[str]:
        pin = () if core is None else ("nice", "-n", self._nice, "taskset", "-c", str(core))
        process = subprocess.Popen(
            [*pin, sys.executable, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(self._end, process)
        return process

    def role(self, name: str, *arguments: object, core: int | None = None) -> subprocess.Popen[str]:
        process = self.start(SCRIPT, "--role", name, *arguments, core=core)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{name} did not start")
        return process

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.terminate()
        process.communicate()


def found_by(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def cores() -> tuple[int, int]:
    own = sorted(os.sched_getaffinity(0))
    return own[0], own[-1]


def percentiles(late_ns: list[int]) -> dict[str, float]:
    counted = sorted(late_ns[len(late_ns) // WARM_PART :])
    return {
        "p50, µs": statistics.median(counted) / 1e3,
        "p99, µs": counted[int(len(counted) * 0.99)] / 1e3,
    }


def measure_reader(crew: Crew, instance: str, rate: int, count: int, *, beside: bool) -> dict[str, float]:
    away, here = cores()
    if beside:
        crew.start("-c", BUSY, core=here)
    sender = crew.role("publish_paced", instance, rate, count, core=away)
    reader = crew.role("read_paced", instance, count, core=here)
    late = found_by(reader)
    found_by(sender)
    return percentiles(late)


def measure_producer(crew: Crew, instance: str, rate: int, count: int) -> dict[str, float]:
    away, here = cores()
    crew.start("-c", BUSY, core=here)
    sender = crew.role("publish_blocked", instance, count, core=here)
    reader = crew.role("free_paced", instance, rate, count, core=away)
    freed, (slots, over) = found_by(reader), found_by(sender)
    return percentiles([max(0, over[i + slots] - freed[i]) for i in range(count - slots)])


def measure_idle(processes: list[subprocess.Popen[str]]) -> dict[str, float]:
    """Of all of them together: the share of one core, and wake-ups a second."""
    time.sleep(SETTLE_S)
    looks = []
    for _ in range(2):
        began = time.perf_counter()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        looks.append((began, [found_by(process) for process in processes]))
        time.sleep(IDLE_S if len(looks) == 1 else 0)
    (start, before), (end, after) = looks
    seconds = end - start
    spent_s = sum(b[0] - a[0] for a, b in zip(before, after, strict=True))
    woken = sum(b[1] - a[1] for a, b in zip(before, after, strict=True))
    return {"% of a core": 100 * spent_s / seconds, "wake-ups/s": woken / seconds}


def measurements() -> dict[str, Callable[[Crew, str], dict[str, float]]]:
    """By name."""
    beside = "beside a busy neighbour"
    found: dict[str, Callable[[Crew, str], dict[str, float]]] = {
        "reader at 1,000/s alone": lambda crew, i: measure_reader(crew, i, 1000, RATES[1000], beside=False)
    }
    for rate, count in RATES.items():
        found[f"reader at {rate:,}/s {beside}"] = partial(_reader, rate, count)
    for rate, count in RATES.items():
        found[f"producer that waits for room, {rate:,}/s, {beside}"] = partial(_producer, rate, count)
    for how in ("threads", "asyncio"):
        found[f"{NODES} idle nodes of {READERS} readers, {how}"] = partial(_idle_nodes, how)
    for what, role in {
        f"{NODES} idle getters of {GETTERS} threads": "idle_getter",
        f"{NODES} putters into full queues": "full_putter",
        f"{NODES} clients that wait for a driver": "waiting_client",
    }.items():
        found[what] = partial(_idle_roles, role)
    found[f"{READERS} blocked producers, idle, one process"] = lambda crew, i: measure_idle(
        [crew.role("blocked_producers", i)]
    )
    return found


def _reader(rate: int, count: int, crew: Crew, instance: str) -> dict[str, float]:
    return measure_reader(crew, instance, rate, count, beside=True)


def _producer(rate: int, count: int, crew: Crew, instance: str) -> dict[str, float]:
    return measure_producer(crew, instance, rate, count)


def _idle_nodes(how: str, crew: Crew, instance: str) -> dict[str, float]:
    return measure_idle([crew.role("idle_node", instance, number, how) for number in range(NODES)])


def _idle_roles(role: str, crew: Crew, instance: str) -> dict[str, float]:
    return measure_idle([crew.role(role, instance, number) for number in range(NODES)])


def measure_all(only: str, nice: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for what, measure in measurements().items():
        if only not in what:
            continue
        instance = f"measure-{secrets.token_hex(4)}"
        with ExitStack() as stack:
            command = [sys.executable, "-m", "shmdriver", "run", "-i", instance]
            driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            stack.callback(driver.communicate)
            stack.callback(driver.terminate)
            assert driver.stderr is not None
            if not any(" serves: " in line for line in driver.stderr):
                raise SystemExit("the driver did not start")
            values = measure(Crew(stack, nice), instance)
        found |= {f"{what}, {name}": value for name, value in values.items()}
    return found


# ---- this version and another one, in turns


def table(before: str, rounds: int, options: list[str]) -> None:
    names = {"before": before, "after": sys.executable}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in names}
    for number in range(rounds):
        for side, python in names.items():
            print(f"round {number + 1}/{rounds}: {side}", file=sys.stderr, flush=True)
            command = [python, str(SCRIPT), "--json", *options]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            runs[side].append(json.loads(output.stdout))
    print("| | before | after |\n|---|---|---|")
    for what in runs["after"][0]:
        cells = [text_of([run[what] for run in runs[side]]) for side in names]
        print(f"| {what} | {' | '.join(cells)} |")


def text_of(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.3g} [{low:,.3g}-{high:,.3g}]" if len(values) > 1 else f"{low:,.3g}"


ROLES: dict[str, Callable[..., None]] = {
    role.__name__: role
    for role in (
        read_paced,
        publish_paced,
        free_paced,
        publish_blocked,
        idle_node,
        blocked_producers,
        idle_getter,
        full_putter,
        waiting_client,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", help="the interpreter of another installation")
    parser.add_argument("-n", type=int, default=5, help="rounds")
    parser.add_argument("--only", default="", help="measure only what has this in its name")
    parser.add_argument("--nice", type=int, default=0, help="of the processes whose latency is measured")
    parser.add_argument("--json", action="store_true", help="the figures of this installation as JSON")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        name, instance, *rest = arguments.role
        ROLES[name](instance, *(int(word) if word.isdecimal() else word for word in rest))
    elif arguments.before:
        table(arguments.before, arguments.n, [f"--only={arguments.only}", f"--nice={arguments.nice}"])
    elif arguments.json:
        tell(measure_all(arguments.only, arguments.nice))
    else:
        for what, value in measure_all(arguments.only, arguments.nice).items():
            print(f"{what:<90} {value:10.3g}", flush=True)


if __name__ == "__main__":
    main()
