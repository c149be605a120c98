"""What ends a driver's sleep, and what a tick hears of it.

A sleep here has no end of its own (UINT64_MAX), so a wake-up that is lost is a test that does not end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shmdriver._native import lib
from shmdriver.driver.driver import DOORBELLS
from shmdriver.driver.signals import signals_end_sleep
from shmdriver.driver.sleeper import ARM_NS, FOUND_MAX, Sleeper, Woken
from shmdriver.errors import ShmDriverError
from tests.driver_rig import MS, Requester, Rig

READ, DOORBELL, DEATH = lib.SHMD_SLEEPER_READ, lib.SHMD_SLEEPER_DOORBELL, lib.SHMD_SLEEPER_DEATH
SIGNAL, WAKE = lib.SHMD_SLEEPER_SIGNAL, lib.SHMD_SLEEPER_WAKE
READABLE, ENDED, DISARMED = lib.SHMD_WOKEN_READABLE, lib.SHMD_WOKEN_ENDED, lib.SHMD_WOKEN_DISARMED
NEVER = 2**64 - 1
BUDGET = 4


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    sleeper = Sleeper(BUDGET)
    yield sleeper
    sleeper.close()


class Connection:
    """A client's end and the driver's, which is watched under a key."""

    def __init__(self, sleeper: Sleeper, key: int) -> None:
        self.client, self.driver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sleeper.add(self.driver.fileno(), DOORBELL, key)

    def ring(self) -> None:
        self.client.send(b"\0")

    def close(self) -> None:
        self.client.close()
        self.driver.close()


@pytest.fixture
def connection(sleeper: Sleeper) -> Iterator[Connection]:
    connection = Connection(sleeper, 7)
    yield connection
    connection.close()


def slept(sleeper: Sleeper) -> list[Woken]:
    sleeper.wait(None, 0, NEVER)
    return sleeper.look()


def in_thread(act: object, *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=act, args=arguments)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_nobody_has_woken_it(sleeper: Sleeper, connection: Connection) -> None:
    assert sleeper.look() == []
    sleeper.wait(None, 5, 5)  # due at once
    assert sleeper.look() == []


def test_doorbell_ends_the_sleep_and_is_told_once(sleeper: Sleeper, connection: Connection) -> None:
    thread = in_thread(connection.ring)
    assert slept(sleeper) == [Woken(DOORBELL, 7, READABLE)]
    thread.join()
    assert sleeper.look() == []


def test_what_a_wait_has_read_is_told_with_what_came_since(sleeper: Sleeper, connection: Connection) -> None:
    other = Connection(sleeper, 8)
    connection.ring()
    sleeper.wait(None, 0, NEVER)
    other.ring()
    connection.ring()
    sleeper.wait(None, 0, NEVER)  # the first wake-up has not been looked at: no sleep
    assert sleeper.look() == [Woken(DOORBELL, 7, READABLE), Woken(DOORBELL, 8, READABLE)]
    other.close()


def test_end_of_a_connection_is_told_once(sleeper: Sleeper, connection: Connection) -> None:
    connection.ring()
    connection.client.close()
    assert slept(sleeper) == [Woken(DOORBELL, 7, READABLE | ENDED)]
    assert sleeper.look() == []


def test_death_is_told_once(sleeper: Sleeper) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    sleeper.add(pidfd, DEATH, 3)
    assert sleeper.look() == []
    child.kill()
    assert slept(sleeper) == [Woken(DEATH, 3, READABLE)]
    assert sleeper.look() == []
    sleeper.remove(pidfd)
    os.close(pidfd)
    assert child.stdin
    child.stdin.close()
    child.wait()


def test_listener_is_told_until_somebody_accepts(sleeper: Sleeper) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor,
    ):
        listener.bind("")  # a name that the kernel chooses
        listener.listen()
        sleeper.add(listener.fileno(), READ)
        visitor.connect(listener.getsockname())
        assert slept(sleeper) == [Woken(READ, 0, READABLE)]
        assert slept(sleeper) == [Woken(READ, 0, READABLE)]
        sleeper.disarm(listener.fileno())
        assert sleeper.look() == []
        assert sleeper.arm_due_ns == ARM_NS
        sleeper.arm(ARM_NS)
        assert slept(sleeper) == [Woken(READ, 0, READABLE)]
        listener.accept()[0].close()
        assert sleeper.look() == []
        sleeper.remove(listener.fileno())


def test_flood_of_doorbells_is_heard_once_a_turn(sleeper: Sleeper, connection: Connection) -> None:
    quiet = Connection(sleeper, 8)
    for _ in range(BUDGET + 1):
        connection.ring()
    assert slept(sleeper) == [Woken(DOORBELL, 7, READABLE | DISARMED)]
    assert sleeper.arm_due_ns == ARM_NS
    sleeper.arm(ARM_NS - 1)
    quiet.ring()
    assert slept(sleeper) == [Woken(DOORBELL, 8, READABLE)]
    sleeper.arm(ARM_NS)
    assert sleeper.arm_due_ns is None
    assert slept(sleeper) == [Woken(DOORBELL, 7, READABLE)]
    quiet.close()


def test_more_wake_ups_than_one_call_tells_are_all_looked_at(sleeper: Sleeper) -> None:
    connections = [Connection(sleeper, key) for key in range(2 * FOUND_MAX + 1)]
    for connection in connections:
        connection.ring()
    assert {woken.key for woken in slept(sleeper)} == set(range(2 * FOUND_MAX + 1))
    for connection in connections:
        connection.close()


def test_wake_from_a_thread_ends_the_sleep(sleeper: Sleeper) -> None:
    thread = in_thread(sleeper.wake)
    assert slept(sleeper) == [Woken(WAKE, 0, READABLE)]
    thread.join()


def test_wake_before_the_sleep_and_in_a_signal_handler_is_not_lost(sleeper: Sleeper) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: sleeper.wake())
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert slept(sleeper) == [Woken(WAKE, 0, READABLE)]


@pytest.mark.fault(51, how="a signal that another thread takes")
def test_signal_that_does_not_interrupt_the_sleep_ends_it(sleeper: Sleeper) -> None:
    """As one that comes between the interpreter's last look at its signals and the system call."""
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: got.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # in this thread, not in the one below

    def kill() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGUSR1)

    try:
        with signals_end_sleep(sleeper):
            thread = in_thread(kill)
            assert slept(sleeper) == [Woken(SIGNAL, 0, READABLE)]
            thread.join()
        assert got == [signal.SIGUSR1]
        assert signal.set_wakeup_fd(-1) == -1  # as before
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)


def test_descriptor_that_cannot_be_watched_is_refused(sleeper: Sleeper) -> None:
    with (
        Path(os.devnull).open() as null,
        pytest.raises(ShmDriverError, match="the driver's sleep: watching descriptor"),
    ):
        sleeper.add(null.fileno(), READ)
    sleeper.remove(999)  # of one that could not be watched: nothing
    with pytest.raises(ShmDriverError, match="descriptor -1 of kind 1 cannot be watched"):
        sleeper.add(-1, READ)


def anonymous_files() -> set[str]:
    """What this process has of eventpoll and eventfd."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this listing
            found.add(str(entry.readlink()))
    return {name for name in found if "event" in name}


def test_forked_child_has_no_copy_and_disturbs_nobody(sleeper: Sleeper, connection: Connection) -> None:
    assert len(anonymous_files()) == 2
    child = os.fork()
    if child == 0:
        sleeper.wake()
        os._exit(len(anonymous_files()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    connection.ring()
    assert slept(sleeper) == [Woken(DOORBELL, 7, READABLE)]


def test_wake_after_close_and_a_second_close_do_nothing() -> None:
    sleeper = Sleeper(BUDGET)
    sleeper.close()
    sleeper.wake()
    sleeper.close()


def ring_until_full(client: Requester) -> None:
    with suppress(BlockingIOError):
        while True:
            client.socket.send(b"\0", socket.MSG_DONTWAIT)


def test_client_that_rings_all_the_time_wakes_for_a_while_and_is_served_then(rig: Rig) -> None:
    flooder, other = rig.client(), rig.client()
    rig.tick(200)
    for _ in range(DOORBELLS):  # at the same time, by the test's clock
        ring_until_full(flooder)
        rig.driver.tick()
    ring_until_full(flooder)
    assert rig.driver.sleeper.look() == []
    assert rig.driver.next_deadline_ns() - rig.clock.now_ns <= ARM_NS
    assert other.produce().code == lib.SHMD_CODE_OK
    request = flooder.attach_request("flooded", lib.SHMD_ROLE_PRODUCER)
    flooder.put(request)
    rig.driver.tick()
    assert len(rig.events_of(lib.SHMD_EVENT_ATTACH_RESPONSE)) == 1  # the other one's
    rig.clock.advance_ms(ARM_NS / MS)
    rig.driver.tick()
    assert rig.answer(request.correlation_id).code == lib.SHMD_CODE_OK
