"""A member of the group truncates segments that others have mapped, or punches holes into them: nobody dies.

As root the truncation is done by a process of another user in the configured group, else by the same user.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.errors import Reason
from shmdriver.observe import Instance
from tests.chaos.stage import Actor, Stage, Zygote, moves_on, wait_until
from tests.segments import SHM, control_of, path_of, paths_of

MEMBER = 65533  # a uid without a name will do
IS_ROOT = os.geteuid() == 0
PUNCH_HOLE_KEEP_SIZE = 3
PAGE = os.sysconf("SC_PAGESIZE")
SHARED = {
    "shm.mode": "0660",
    "shm.group": grp.getgrgid(os.getegid()).gr_name,
    "policies.announce_interval_ms": 200,
}
OPTIONS = {"slots": 256, "max_message": 16 << 10}


def shared_by_a_group(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(SHARED)


def as_member(work: Callable[[], None]) -> bool:
    """Does ``work`` in a child, a member of the group and not the owner; False: it was not permitted."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if IS_ROOT:
                os.setgroups([os.getegid()])
                os.setgid(MEMBER)
                os.setuid(MEMBER)
            work()
            code = 0
        except PermissionError:
            code = errno.EACCES
        except FileNotFoundError:  # of an epoch that has ended meanwhile
            code = errno.ENOENT
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, errno.EACCES, errno.ENOENT)
    return code == 0


def truncate(path: Path, size: int) -> bool:
    return as_member(lambda: os.truncate(path, size))


def punch(path: Path, start: int, size: int) -> bool:
    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(path, os.O_RDWR)
        result = libc.fallocate(fd, PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(start), ctypes.c_long(size))
        assert result == 0, os.strerror(ctypes.get_errno())

    return as_member(work)


def segment(stage: Stage, kind: str, stream: str = "victim") -> Path:
    """The newest segment of that kind: of a stream, or of the instance."""
    if kind == "authority":
        return path_of(stage.instance, kind)
    with Instance(stage.instance) as view:
        current = next(each for each in view.streams() if each.name == stream).current
        assert current is not None
        return SHM / (current.data_name if kind == "data" else current.gates_name).lstrip("/")


class Company:
    """A stream whose segments are truncated, and one beside it that must not notice."""

    def __init__(self, stage: Stage, state: str) -> None:
        self.stage = stage
        quiet: dict[str, Any] = {"rest_s": 0.01, "listen_every": 1} if state == "asleep" else {}
        held: dict[str, Any] = {"hold": True} if state == "full" else {}
        self.is_held = state == "full"
        self.reader = stage.consumer("victim", **held)
        self.others = [
            stage.consumer("victim", options={"delivery": "lossy"}),
            stage.consumer("victim", by_fd=True),
        ]
        # It lingers with its lease after an error: the driver has to find out by itself.
        self.writer = stage.producer("victim", 1, options=OPTIONS, how="mixed", linger=True, **quiet)
        self.bystander = stage.consumer("bystander")
        self.bystander_writer = stage.producer("bystander", 2, options=OPTIONS)
        self.victims: list[Actor] = [self.reader, *self.others, self.writer]
        moves_on(self.bystander, 100)
        if state == "full":
            self.wait_until_blocked()
        else:
            moves_on(self.reader, 20)

    def wait_until_blocked(self) -> None:
        def is_blocked() -> bool:
            with Instance(self.stage.instance) as view:
                stream = next(each for each in view.streams() if each.name == "victim")
                return stream.current is not None and stream.current.blocked is not None

        wait_until(is_blocked, "the producer to wait for room")

    def let_go(self) -> None:
        if self.is_held:
            self.reader.say("go")

    def victims_are_told(self) -> None:
        """Everybody on the damaged stream ends by itself, with a reason, and by no signal."""
        driver = self.stage.driver
        assert driver is not None
        wait_until(lambda: "another process truncated" in driver.log_text(), "the driver to say so")
        self.let_go()
        for actor in self.victims:
            words = actor.wait_for("error")
            assert words["error"] == "LeaseRevoked", words
            assert "truncated" in words["text"], words
            assert words["reason"] == Reason.TRUNCATED, words
        self.writer.say("stop")
        for actor in self.victims:
            assert actor.join() == 0, actor.log_text()

    def notices_nothing(self, *, revoked: int = 0) -> None:
        """Newcomers are served, none of its leases has ended, the stream goes on to its clean end."""
        newcomers_are_served(self.stage, "new")
        moves_on(self.reader, 500)
        counters = self.stage.counters()
        assert (counters["leases_expired"], counters["clients_died"]) == (0, 0)
        assert counters["leases_revoked"] == revoked
        self.writer.say("stop")
        self.writer.wait_for("closed")
        assert self.reader.wait_for("error")["error"] == "EndOfStream"
        assert self.reader.words("failure") == []
        self.bystanders_notice_nothing()

    def bystanders_notice_nothing(self) -> None:
        moves_on(self.bystander, 200)
        assert self.stage.driver is not None
        assert self.stage.driver.alive, self.stage.driver.log_text()
        assert "Traceback" not in self.stage.driver.log_text()
        self.bystander_writer.say("stop")
        self.bystander_writer.wait_for("closed")
        assert self.bystander.wait_for("error")["error"] == "EndOfStream"
        assert self.bystander.words("failure") == []


def newcomers_are_served(stage: Stage, stream: str = "victim") -> None:
    with (
        shmdriver.connect(stage.instance, timeout=60) as client,
        client.consumer(stream, attach_timeout=60) as consumer,
        client.producer(stream, attach_timeout=60) as out,
    ):
        out.publish(b"after")
        message = consumer.read(timeout=60)
        assert message is not None
        assert bytes(message) == b"after"


def tools_say(stage: Stage) -> str:
    """What stat and why print; both end by themselves."""
    commands = (["stat"], ["why"], ["stat", "--json"])
    tools = [stage.actor("tool", words=[*words, "-i", stage.instance]) for words in commands]
    said = ""
    for tool in tools:
        assert tool.join() >= 0, tool
        said += tool.log.read_text()
    assert "Traceback" not in said, said
    stage.dismiss(*tools)
    return said


@pytest.mark.fault(48, how="ftruncate of data and gates by a group member, in every state of a stream")
@pytest.mark.parametrize("state", ["flowing", "asleep", "full"])
@pytest.mark.parametrize("kind", ["data", "gates"])
def test_truncated_stream_ends_with_a_reason_and_others_notice_nothing(
    make_stage: Callable[..., Stage], kind: str, state: str
) -> None:
    stage = shared_by_a_group(make_stage)
    company = Company(stage, state)
    assert truncate(segment(stage, kind), 0)
    tools_say(stage)
    company.victims_are_told()
    newcomers_are_served(stage)
    with Instance(stage.instance) as view:
        errors = " ".join(error.text for error in view.errors())
    assert "another process truncated /shmd." in errors
    assert f".{kind}" in errors
    company.bystanders_notice_nothing()


@pytest.mark.fault(48, how="a hole punched into data and gates, with memory to fill it")
@pytest.mark.parametrize("kind", ["data", "gates"])
def test_hole_in_a_stream_ends_it_too(make_stage: Callable[..., Stage], kind: str) -> None:
    stage = shared_by_a_group(make_stage)
    company = Company(stage, "full")  # nobody touches the ring meanwhile
    path = segment(stage, kind)
    assert punch(path, 0, path.stat().st_size)
    company.victims_are_told()
    newcomers_are_served(stage)
    company.bystanders_notice_nothing()


def control_segment(client: shmdriver.Client) -> Path:
    with Instance(client.instance) as view:
        return control_of(view, client.client_id)


def write_over(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.write(b"\xa5" * size)


def is_expelled(stage: Stage, client: shmdriver.Client) -> None:
    """The driver says so, and serves that client no more."""
    assert stage.driver is not None
    driver = stage.driver
    wait_until(lambda: "is expelled" in driver.log_text(), "the driver to say so")
    with pytest.raises(shmdriver.ShmDriverError):
        client.producer("more", attach_timeout=60)
    tools_say(stage)


@pytest.mark.fault(48, how="ftruncate of a client's control segment, which only it can open")
@pytest.mark.parametrize("size", [0, 2 * PAGE])  # its ring and its beat; what it says of its leases
def test_client_that_truncates_its_control_segment_is_expelled_and_nobody_else_notices(
    make_stage: Callable[..., Stage], size: int
) -> None:
    stage = shared_by_a_group(make_stage)
    company = Company(stage, "flowing")
    with shmdriver.connect(stage.instance, timeout=60) as client:
        out = client.producer("lost")
        control = control_segment(client)
        assert not truncate(control, size) or not IS_ROOT, "another user opened it"
        os.truncate(control, size)
        is_expelled(stage, client)
        with pytest.raises(shmdriver.LeaseRevoked, match="expelled"):
            while True:
                out.publish(b"x", timeout=0)
    company.notices_nothing(revoked=1)


@pytest.mark.fault(48, how="ftruncate and garbage in a client's control segment between two drivers")
@pytest.mark.parametrize("damage", [os.truncate, write_over])
def test_client_whose_control_segment_is_damaged_between_two_drivers_is_expelled_alone(
    make_stage: Callable[..., Stage], damage: Callable[[Path, int], None]
) -> None:
    stage = shared_by_a_group(make_stage)
    company = Company(stage, "flowing")
    with shmdriver.connect(stage.instance, timeout=60) as client:
        control = control_segment(client)
        assert stage.driver is not None
        stage.driver.kill()
        damage(control, 64)
        stage.start_driver()
        is_expelled(stage, client)
    company.notices_nothing()


@pytest.mark.fault(48, how="ftruncate of data and gates between two drivers")
@pytest.mark.parametrize("state", ["flowing", "asleep", "full"])
@pytest.mark.parametrize("kind", ["data", "gates"])
def test_stream_that_is_truncated_between_two_drivers_ends_and_others_notice_nothing(
    make_stage: Callable[..., Stage], kind: str, state: str
) -> None:
    stage = shared_by_a_group(make_stage)
    company = Company(stage, state)
    path = segment(stage, kind)
    assert stage.driver is not None
    stage.driver.kill()
    assert truncate(path, PAGE)
    stage.start_driver()
    company.let_go()
    for actor in company.victims:
        words = actor.wait_for("error")
        assert words["error"] == "LeaseRevoked", words
        assert words["reason"] == Reason.TRUNCATED, words
    company.writer.say("stop")
    for actor in company.victims:
        assert actor.join() == 0, actor.log_text()
    newcomers_are_served(stage)
    company.bystanders_notice_nothing()


@pytest.mark.fault(48, how="ftruncate of data between two drivers, the second killed in its adoption")
@pytest.mark.parametrize("failpoint", ["adopt.undone", "end.told", "adopt.revoked", "retire.marked"])
def test_readers_of_a_truncated_stream_are_told_once_by_whichever_driver_adopts_to_the_end(
    striking: Zygote, instance_name: str, tmp_path: Path, failpoint: str
) -> None:
    with Stage(instance_name, tmp_path, striking, **SHARED) as stage, ExitStack() as stack:
        first = stage.start_driver()
        client = stack.enter_context(shmdriver.connect(instance_name, timeout=60))
        out = client.producer("victim")
        kinds: list[dict[str, Any]] = [{}, {"delivery": "lossy"}, {"follow": True}]
        readers = [client.consumer("victim", **kind) for kind in kinds]
        out.publish(b"nobody reads this")
        path = segment(stage, "data")
        first.kill()
        assert truncate(path, PAGE)
        assert stage.start_driver(failpoint=f"{failpoint}:1:kill").join() == -signal.SIGKILL
        stage.start_driver()
        for reader in readers:
            with pytest.raises(shmdriver.LeaseRevoked, match="truncated") as caught:
                reader.read(timeout=60)
            assert caught.value.reason == Reason.TRUNCATED
        with pytest.raises(shmdriver.LeaseRevoked, match="truncated"):
            out.publish(b"x")
        out.abort()
        assert stage.counters()["leases_revoked"] == len(readers)


@pytest.mark.fault(48, how="ftruncate of a sealed epoch between two drivers, some have drained it")
@pytest.mark.parametrize("kinds", [("data",), ("data", "gates")])
def test_followers_that_have_drained_a_truncated_epoch_read_on(
    make_stage: Callable[..., Stage], kinds: tuple[str, ...]
) -> None:
    stage = shared_by_a_group(make_stage)
    with shmdriver.connect(stage.instance, timeout=60) as client, ExitStack() as stack:
        readers = [
            stack.enter_context(client.consumer("victim", follow=True, delivery=delivery))
            for delivery in ("reliable", "lossy")
        ]
        with client.producer("victim") as out:
            out.publish(b"first")
            paths = [segment(stage, kind) for kind in kinds]
        later = stack.enter_context(client.producer("victim"))
        for reader in readers:
            message = reader.read(timeout=60)
            assert message is not None
            assert bytes(message) == b"first"
            assert reader.read(timeout=0) is None  # it has left the first epoch, and begun the next
        assert stage.driver is not None
        stage.driver.kill()
        for path in paths:
            assert truncate(path, PAGE)
        stage.start_driver()
        later.publish(b"second", timeout=60)
        for reader in readers:
            message = reader.read(timeout=60)
            assert message is not None
            assert bytes(message) == b"second"
            assert reader.lost == 0
        assert stage.counters()["leases_revoked"] == 0


@pytest.mark.fault(48, how="ftruncate of the authority: refused to members, done by its owner")
def test_truncated_authority_ends_the_driver_in_order_and_its_successor_begins_anew(
    make_stage: Callable[..., Stage],
) -> None:
    stage = shared_by_a_group(make_stage)
    company = Company(stage, "flowing")
    path = segment(stage, "authority")
    assert truncate(path, 0) is not IS_ROOT  # for the group it is read-only
    reader = os.open(path, os.O_RDONLY)
    assert lib.shmd_life_show(reader) == 0
    os.truncate(path, 0)
    assert stage.driver is not None
    assert stage.driver.join() == 1
    assert "truncated the authority" in stage.driver.log_text()
    assert not path.exists(), "whoever reads it could otherwise bar the next driver"
    company.writer.say("stop")
    for actor in [*company.victims, company.bystander, company.bystander_writer]:
        words = actor.wait_for("error")
        assert actor.join() == 0, actor.log_text()
        assert words["error"] in ("LeaseRevoked", "DriverUnavailable"), words
    stage.start_driver()
    newcomers_are_served(stage)
    os.close(reader)


@pytest.mark.fault(48, how="ftruncate with the guard switched off")
def test_with_the_guard_switched_off_a_truncation_kills(
    make_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    """The switch is what docs/SECURITY.md says it is."""
    stage = shared_by_a_group(make_stage)
    program = tmp_path / "reads.py"
    program.write_text(
        "import sys, shmdriver\n"
        "client = shmdriver.connect(sys.argv[1])\n"
        "out = client.producer('victim', slots=1024)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for _ in range(100_000): out.try_publish(b'x')\n"
    )
    for guard, code in (("off", -7), ("on", 1)):
        process = subprocess.Popen(
            [sys.executable, str(program), stage.instance],
            env={**os.environ, "SHMDRIVER_TRUNCATION_GUARD": guard},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert truncate(segment(stage, "data"), 0)
        _, errors = process.communicate("go\n", timeout=400)
        assert process.returncode == code, errors
        assert ("truncated" in errors) is (guard == "on")


@pytest.mark.fault(48, how="numpy views of a message whose segment is truncated")
def test_views_of_a_truncated_message_read_as_zeros_and_the_handle_says_so(
    make_stage: Callable[..., Stage],
) -> None:
    np = pytest.importorskip("numpy")
    stage = shared_by_a_group(make_stage)
    with shmdriver.connect(stage.instance, timeout=60) as client, client.consumer("victim") as consumer:
        out = client.producer("victim", max_message=1 << 20)
        out.publish_array(np.full(100_000, 7, dtype=np.uint8))
        message = consumer.read(timeout=60)
        assert message is not None
        array = message.array
        assert int(array.sum()) == 700_000
        assert truncate(segment(stage, "data"), 0)
        assert int(array.sum()) == 0
        with pytest.raises(shmdriver.LeaseRevoked, match="truncated") as caught:
            consumer.read(timeout=60)
        assert caught.value.reason == Reason.TRUNCATED
        with pytest.raises(shmdriver.LeaseRevoked, match="truncated"):
            while True:
                out.publish(b"x", timeout=60)
        out.abort()


@pytest.mark.fault(48, how="claims of both kinds, open while their segment is truncated")
@pytest.mark.parametrize("length", [64, 100_000])
def test_claim_that_loses_its_segment_is_refused_by_name(
    make_stage: Callable[..., Stage], length: int
) -> None:
    stage = shared_by_a_group(make_stage)
    with shmdriver.connect(stage.instance, timeout=60) as client:
        out = client.producer("victim", max_message=1 << 20)
        claim = out.claim(length, timeout=60)
        assert truncate(segment(stage, "data"), 0)
        claim.view[:] = bytes(length)
        with pytest.raises(shmdriver.LeaseRevoked, match="truncated") as caught:
            claim.commit()
        assert caught.value.reason == Reason.TRUNCATED
        with pytest.raises(shmdriver.LeaseRevoked, match="truncated"):
            out.claim(length, timeout=60)
        out.abort()


def random_damage(stage: Stage, chance: random.Random) -> None:
    """One segment of the instance that a member may write, truncated or with a hole, at any moment."""
    paths = [path for kind in ("data", "gates") for path in paths_of(stage.instance, kind)]
    if not paths:  # between two epochs
        return
    path = chance.choice(sorted(paths))
    with contextlib.suppress(FileNotFoundError):  # the epoch has ended meanwhile
        size = path.stat().st_size
        if chance.random() < 0.5:
            truncate(path, chance.choice((0, PAGE, chance.randrange(size + 1))))
        else:
            punch(path, chance.randrange(size // PAGE + 1) * PAGE, chance.choice((PAGE, size + PAGE)))


def rounds_of_damage(stage: Stage, chance: random.Random, rounds: int) -> None:
    """Actors come, segments are truncated under them; nobody ends by a signal, and newcomers are served."""
    assert stage.driver is not None
    for _ in range(rounds):
        actors = [
            stage.consumer("victim", attached=False),
            stage.consumer("victim", attached=False, options={"delivery": "lossy"}),
            stage.consumer("victim", attached=False, by_fd=True),
            stage.producer("victim", 1, attached=False, options=OPTIONS, how="mixed", timeout=5),
        ]
        for _ in range(chance.randrange(1, 4)):
            for _ in range(chance.randrange(50)):
                stage.segments()  # a moment
            random_damage(stage, chance)
        for actor in actors:
            with contextlib.suppress(BrokenPipeError):  # it has ended by itself
                actor.say("stop")
        for actor in actors:
            assert actor.join() >= 0, (actor, actor.listen(), actor.log_text())
        assert stage.driver.alive, stage.driver.log_text()
        assert "Traceback" not in stage.driver.log_text()
        stage.dismiss(*actors)
        newcomers_are_served(stage)


@pytest.mark.fault(48, how="truncations and holes at random moments, by a group member")
def test_truncations_at_random_moments_kill_nobody(make_stage: Callable[..., Stage]) -> None:
    rounds_of_damage(shared_by_a_group(make_stage), random.Random(1), 3)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.fault(48, how="truncations and holes at random moments, for minutes")
def test_truncations_for_minutes_kill_nobody(make_stage: Callable[..., Stage], fault_cycles) -> None:
    cycles = 100
    rounds_of_damage(shared_by_a_group(make_stage), random.Random(2), cycles)
    fault_cycles(cycles)


FAULT_HANDLER = """
import faulthandler, mmap, os, sys, tempfile
faulthandler.enable()
import shmdriver
with shmdriver.embedded() as client:
    consumer = client.consumer("s")
    out = client.producer("s", slots=64)
    out.publish(b"x")
    (path,) = (p for p in os.listdir("/dev/shm") if client.instance in p and p.endswith(".data"))
    os.truncate("/dev/shm/" + path, 0)
    try:
        consumer.read(timeout=60)
    except shmdriver.LeaseRevoked as error:
        assert "truncated" in str(error), error
        print("told", flush=True)
    out.abort()
file = tempfile.TemporaryFile()
file.truncate(4096)
foreign = mmap.mmap(file.fileno(), 4096)
file.truncate(0)
foreign[0]
"""


@pytest.mark.fault(
    48, how="a truncation of ours, then a bus error of somebody else's, with faulthandler enabled"
)
def test_fault_handler_that_was_enabled_before_hears_of_foreign_bus_errors_only() -> None:
    result = subprocess.run(
        [sys.executable, "-c", FAULT_HANDLER], capture_output=True, text=True, check=False, timeout=400
    )
    assert result.stdout == "told\n", result.stderr
    assert result.returncode == -7
    assert "Fatal Python error: Bus error" in result.stderr
    assert result.stderr.count("Fatal Python error") == 1
