"""What the processes of the chaos tests do. Each role runs in a forked child of the zygote."""

from __future__ import annotations

import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos import containers, crowd, visitors
from tests.chaos.hostile import disturb
from tests.chaos.ledger import Arguments, Ledger, Line, error_words
from tests.chaos.payload import LARGEST, Board, check, payload


def preload() -> None:
    """Imports all that a role needs, once, in the zygote."""
    import shmdriver.cli.app
    import shmdriver.driver.config
    import shmdriver.driver.process
    import shmdriver.observe

    for name in shmdriver.__all__:
        getattr(shmdriver, name)


def drive(line: Line, arguments: Arguments) -> int:
    """A driver, until it is shut down. ``hold``: it starts when it is told to.

    ``cgroup``: a folder of the memory controller, which it joins first. ``blind``: it sees no memory limit.
    """
    from shmdriver.driver import admission
    from shmdriver.driver.config import Config
    from shmdriver.driver.process import run_driver

    if arguments.get("cgroup"):
        Path(arguments["cgroup"], "cgroup.procs").write_text("0")
    if arguments.get("blind"):
        vars(admission)["shortage"] = lambda *_, **__: ""
    if arguments.get("hold"):
        line.heard(60)
    return run_driver(Config.load(overrides=arguments["settings"], env={}))


def produce(line: Line, arguments: Arguments) -> int:
    """Publishes numbered messages until told to stop. SENT follows every publish that returned.

    ``rest_s``: how long it waits for a word every ``listen_every`` messages, so that consumers fall asleep.
    ``ready``: so many messages are made beforehand, so that it publishes faster than anybody reads.
    """
    import shmdriver

    board = Board(Path(arguments["board"]))
    writer, limit = arguments["writer"], arguments.get("count", 1 << 60)
    size, every = arguments.get("size"), arguments.get("listen_every", 64)
    timeout = arguments.get("timeout", 60)
    options = arguments.get("options", {})
    client, out = crowd.arrive(
        line, arguments, f"producer-{writer}",
        lambda client: client.producer(arguments["stream"], **options, attach_timeout=60),
    )  # fmt: skip
    line.say(attached=writer, epoch=out.epoch if hasattr(out, "epoch") else 0)
    number, heard, rest_s = 0, "", arguments.get("rest_s", 0)
    ready = [payload(writer, n, size) for n in range(arguments.get("ready", 0))]
    try:
        while number < limit and heard != "stop":
            data = ready[number] if number < len(ready) else payload(writer, number, size)
            send(out, data, number, arguments.get("how", "publish"), timeout)
            number += 1
            board[Board.SENT] = number
            if number % every == 0:
                heard = line.heard(rest_s)
        if heard != "stop" and arguments.get("linger"):
            while line.heard(1) != "stop":
                pass
        out.close()
        client.close()
        line.say(closed=number)
    except shmdriver.ShmDriverError as error:
        line.say(published=number, **error_words(error))
        if arguments.get("linger"):
            while line.heard(1) != "stop":
                pass
    return 0


def send(out: Any, data: bytes, number: int, how: str, timeout: float) -> None:
    """One message, in one of the ways there are; "mixed" takes turns, with an aborted claim now and then."""
    if how == "mixed":
        how = ("publish", "claim", "publish", "abort")[number % 4]
    if how == "abort":
        claim = out.claim(LARGEST, timeout=timeout)
        claim.view[: len(data)] = bytes(len(data))
        claim.abort()
    if how == "claim":
        with out.claim(len(data), timeout=timeout) as claim:
            claim.view[:] = data
    else:
        out.publish(data, timeout=timeout)


def consume(line: Line, arguments: Arguments) -> int:
    """Reads and checks until told to stop, or until the stream is over for it.

    ``rest_s``: how long it waits for a word every ``rest_every`` messages, so that producers wait for room.
    ``by_fd``: it waits by its descriptor, as an event loop does.
    """
    import shmdriver

    board = Board(Path(arguments["board"]))
    options = arguments.get("options", {})
    client, consumer = crowd.arrive(
        line, arguments, arguments.get("name", "consumer"),
        lambda client: client.consumer(arguments["stream"], **options, attach_timeout=60),
    )  # fmt: skip
    line.say(attached=True)
    ledger = Ledger(line, board, lossless=options.get("delivery", "reliable") == "reliable")
    heard = line.heard(60) if arguments.get("hold") else ""  # reads nothing before it is told to
    rest_s, every = arguments.get("rest_s", 0), arguments.get("rest_every", 512)
    try:
        while heard != "stop":
            if arguments.get("by_fd"):
                select.select([consumer.fileno()], [], [], 0.05)
            message = consumer.read(timeout=0 if arguments.get("by_fd") else 0.05)
            while message is not None:
                ledger.enter(bytes(message))
                message = consumer.read(timeout=0) if ledger.received % every else None
            heard = line.heard(rest_s)
        ledger.close_run()
        lost = consumer.lost
        consumer.close()
        client.close()
        line.say(closed=ledger.received, lost=lost)
    except shmdriver.ShmDriverError as error:
        ledger.close_run()
        line.say(received=ledger.received, lost=consumer.lost, **error_words(error))
    return 0


def come_and_go(line: Line, arguments: Arguments) -> int:
    """Attaches, publishes, reads and detaches, over and over, whatever becomes of the driver meanwhile.

    One consumer follows; each round has a producer and a consumer of its own. All are checked for losses.
    """
    import shmdriver

    board = Board(Path(arguments["board"]))
    stream, count = arguments["stream"], arguments.get("count", 20)
    with shmdriver.connect(arguments["instance"], name="churn", timeout=60, reconnect=True) as client:
        follower = crowd.attached(client.consumer, stream, follow=True)
        line.say(attached=True)
        rounds = 0
        while line.heard() != "stop":
            rounds += 1
            with crowd.attached(client.consumer, stream) as reader:
                with crowd.attached(client.producer, stream, slots=64, max_message=4096) as out:
                    for number in range(count):
                        out.publish(payload(rounds, number), timeout=60)
                for consumer in (reader, follower):
                    found = [check(bytes(consumer.read(timeout=60) or b"")) for _ in range(count)]
                    if found != [(rounds, number) for number in range(count)]:
                        board[Board.FAILURES] += 1
                        line.say(failure=f"round {rounds}: {found}")
            board[Board.RECEIVED] = rounds
        line.say(closed=rounds, lost=follower.lost, reattached=len(follower.reattachments))
        follower.close()
    return 0


def gil_holder(line: Line, arguments: Arguments) -> int:
    """Attaches a consumer, and then holds the interpreter's lock in one C call."""
    import ctypes

    import shmdriver

    with shmdriver.connect(arguments["instance"], name="busy", timeout=60) as client:
        consumer = client.consumer(arguments["stream"], attach_timeout=60)
        line.say(attached=True)
        while consumer.read(timeout=60) is None:
            pass
        ctypes.PyDLL(None).usleep(ctypes.c_uint(int(arguments["seconds"] * 1e6)))
        line.say(held=True)
        line.heard(60)
        consumer.close()
    return 0


def tool(_line: Line, arguments: Arguments) -> int:
    """A command of `shmdriver`; its output goes to the actor's log."""
    from shmdriver.cli.app import run

    return run(arguments["words"])


ROLES: dict[str, Callable[[Line, Arguments], int]] = {
    "driver": drive,
    "producer": produce,
    "consumer": consume,
    "cycle": crowd.cycle,
    "churn": crowd.churn,
    "pair": crowd.pair,
    "container": lambda line, arguments: containers.contained(line, arguments, play),
    "wander": containers.wander,
    "visit": visitors.visit,
    "poke": visitors.poke,
    "hoard": visitors.hoard,
    "hostile": disturb,
    "come_and_go": come_and_go,
    "gil_holder": gil_holder,
    "tool": tool,
}


def play(role: str, arguments: Arguments, line: Line) -> int:
    """A role's exit code. ``signals_hz``: how often a signal interrupts it whose handler does nothing.

    ``place``: where it is (containers.py), unless its role is to go there.
    """
    if arguments.get("place") and role != "wander":
        containers.enter(arguments["place"])
    if arguments.get("signals_hz"):
        signal.signal(signal.SIGALRM, lambda _number, _frame: None)
        interval_s = 1 / arguments["signals_hz"]
        signal.setitimer(signal.ITIMER_REAL, interval_s, interval_s)
    return ROLES[role](line, arguments)
