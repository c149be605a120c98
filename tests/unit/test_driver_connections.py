"""Who connects is the kernel's word: what a Hello may claim, what it proves, what it cannot do to others."""

from __future__ import annotations

import grp
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.driver.identity import RESERVED_DESCRIPTORS
from shmdriver.errors import Code, Reason
from tests.driver_rig import Requester, Rig, Visitor, new_socket, start_time_of
from tests.users import MEMBER, as_user, needs_root

PRODUCER, CONSUMER = lib.SHMD_ROLE_PRODUCER, lib.SHMD_ROLE_CONSUMER
PATIENCE_S = 60
OTHERS_SHARE = 8  # connections of one other user that have not said Hello


def record_of(rig: Rig, client: Requester) -> SimpleNamespace:
    record = lib.shmd_authority_client(rig.view.authority, client.index)
    names = (
        "client_id",
        "serial",
        "pid",
        "start_time",
        "pid_namespace",
        "uid",
        "gid",
        "provable",
        "connected",
    )
    return SimpleNamespace(**{name: int(getattr(record, name)) for name in names}, nonce=int(record.nonce))


def again(client: Requester, **fields: object) -> SimpleNamespace | None:
    """Another Hello of that client; None: the driver closed the connection."""
    client.say(client.hello_message(**fields))
    client.rig.tick()
    return client.hear()


# ---- what is recorded


def test_record_names_the_process_that_connected(rig: Rig) -> None:
    visitor = rig.visitor()
    client = rig.client(visitor=visitor)
    record, own = record_of(rig, client), lib.shmd_pid_namespace()
    pid = visitor.process.pid
    assert (record.pid, record.start_time, record.pid_namespace) == (pid, start_time_of(pid), own)
    assert (record.uid, record.gid, record.provable, record.connected) == (os.geteuid(), os.getegid(), 1, 1)


def test_who_has_left_before_the_welcome_takes_no_place(rig: Rig) -> None:
    """As when a process tries to connect again and again with a short timeout while its driver is stopped."""
    for _ in range(3):
        early = Requester(rig)
        early.say(early.hello_message())
        early.socket.close()
    rig.tick()
    assert len(rig.driver.tables.clients) == 0
    client = rig.client()
    client.say(client.hello_message())
    client.socket.close()
    rig.tick()
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE, "it may come back"


def test_who_has_died_before_the_welcome_leaves_one_free_place(rig: Rig) -> None:
    visitor = rig.visitor()
    early = Requester(rig, visitor=visitor)
    early.say(early.hello_message())
    early.socket.close()
    visitor.kill()
    rig.tick()
    assert len(rig.driver.tables.clients) == 0
    indexes = {rig.client().index for _ in range(4)}
    assert len(indexes) == 4, "nobody has another one's record"


def test_hello_of_a_process_that_claims_to_be_another_is_refused(rig: Rig) -> None:
    """Whoever uses the connection of another process is told by the start time; no pid can be claimed."""
    client = Requester(rig)
    answer = again(client, start_time=start_time_of(os.getpid()) + 1)
    assert answer is not None
    assert answer.code != Code.OK
    assert "connect in the process that uses the connection" in answer.text
    assert len(rig.driver.tables.clients) == 0


def test_welcome_comes_with_both_segments_and_the_authority_cannot_be_written(rig: Rig) -> None:
    client = Requester(rig)
    client.say(client.hello_message())
    rig.tick()
    _, fds, _, _ = socket.recv_fds(client.socket, 4096, 8, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    try:
        modes = [os.O_ACCMODE & flags for flags in map(_flags, fds)]
        assert modes == [os.O_RDONLY, os.O_RDWR]
        authority = rig.driver.tables.authority
        inodes = [os.fstat(fd).st_ino for fd in fds]
        assert inodes[0] == os.fstat(authority.file.fd).st_ino
        assert inodes[1] == rig.control_path(client).stat().st_ino
    finally:
        for fd in fds:
            os.close(fd)


def _flags(fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("flags:")).split()[1], 8)


# ---- a Hello under a former id


def test_client_keeps_its_record_and_leases_when_it_says_hello_again(rig: Rig) -> None:
    client = rig.client()
    lease = client.produce()
    before, former = record_of(rig, client), client.socket.dup()
    answer = again(client)
    assert answer is not None
    assert (answer.code, answer.client_id, answer.client_index) == (Code.OK, client.client_id, client.index)
    assert answer.descriptors == 2
    assert record_of(rig, client) == SimpleNamespace(**{**vars(before), "serial": 2})
    assert rig.lease_state(lease) == lib.SHMD_LEASE_ATTACHED
    assert former.recv(1) == b"", "its former connection is closed"
    former.close()


def test_client_goes_over_to_the_next_driver_with_what_it_has(rig: Rig) -> None:
    client = rig.client()
    lease = client.produce()
    rig.crash()
    rig.start(alone=True)
    assert client.hear() is None, "the connection ended with the driver"
    assert record_of(rig, client).connected == 0
    answer = again(client)
    assert answer is not None
    assert (answer.code, answer.client_id) == (Code.OK, client.client_id)
    assert record_of(rig, client).connected == 1
    assert rig.lease_state(lease) == lib.SHMD_LEASE_ATTACHED


def test_hello_whose_welcome_was_lost_gets_the_same_client(rig: Rig) -> None:
    client = Requester(rig)
    client.say(client.hello_message())
    rig.tick()
    first, second = client.hear(), again(client)
    assert first is not None
    assert second is not None
    assert first.client_id == second.client_id != 0
    assert len(rig.driver.tables.clients) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"secret": bytes(16)}, "its secret is another one"),
        ({"secret": bytes(16), "client_id": 0, "boot_id": 0}, "its secret is another one"),  # its nonce alone
        ({"image": 7}, "its process has begun another program since"),
    ],
)
def test_who_names_a_client_and_is_not_that_one_is_refused_and_changes_nothing(
    rig: Rig, fields: dict[str, object], words: str
) -> None:
    client = rig.client()
    connection, before = client.socket, record_of(rig, client)
    client.socket = new_socket()
    answer = again(client, **fields)
    assert answer is not None
    assert (answer.code, answer.reason) == (Code.INVALID_PARAMS, Reason.NOT_OWNER)
    assert words in answer.text
    assert rig.counter("REQUESTS_CORRUPT") == 1
    assert (record_of(rig, client), len(rig.driver.tables.clients)) == (before, 1)
    with pytest.raises(BlockingIOError):
        connection.recv(1)  # it is open


def test_another_process_with_the_secret_is_refused(rig: Rig) -> None:
    """As a child that was forked has it."""
    client = rig.client()
    before = record_of(rig, client)
    client.visitor, client.socket = rig.visitor(), new_socket()
    answer = again(client)
    assert answer is not None
    assert answer.reason == Reason.NOT_OWNER
    assert f"it comes from another process (pid {client.pid})" in answer.text
    assert record_of(rig, client) == before


def test_hello_that_is_not_the_newest_is_closed_without_effect(rig: Rig) -> None:
    client = rig.client()
    again(client)
    connection, client.socket = client.socket, new_socket()
    for serial in (1, 2):
        assert again(client, serial=serial) is None
    assert record_of(rig, client).serial == 2
    with pytest.raises(BlockingIOError):
        connection.recv(1)


def test_who_was_registered_before_a_fresh_start_is_told_so(rig: Rig) -> None:
    client = rig.client()
    answer = again(client, boot_id=client.rig.boot_id ^ 1)
    assert answer is not None
    assert answer.reason == Reason.UNKNOWN_CLIENT
    assert "began afresh" in answer.text


def test_who_has_expired_is_disconnected_and_connects_anew(rig: Rig) -> None:
    client = rig.client()
    client.produce()
    rig.tick(11_000)
    assert rig.client_state(client) == lib.SHMD_CLIENT_GONE
    assert client.hear() is None
    answer = again(client)
    assert answer is not None
    assert answer.reason == Reason.UNKNOWN_CLIENT
    assert rig.client().client_id != client.client_id


# ---- exec


def test_process_that_begins_another_program_ends_what_the_former_one_had(rig: Rig) -> None:
    """Same pid, another image: a producer is not refused by its former self, and no line is kept for ever."""
    visitor = rig.visitor(sockets=3)
    former = rig.client(visitor=visitor, image=5)
    gate = former.consume("t", confirm=False)
    former.produce()
    same = rig.client(visitor=visitor, image=5)
    assert rig.client_state(former) == lib.SHMD_CLIENT_ALIVE, "a second connection of the same program"
    reborn = rig.client(visitor=visitor, image=6)
    for old in (former, same):
        assert old.client_id not in {client.client_id for client in rig.driver.tables.clients}
        assert old.hear() is None
    assert reborn.produce().code == Code.OK
    ended = rig.events_of(lib.SHMD_EVENT_LEASE_REVOKED)
    assert {event.reason for event in ended} == {Reason.DIED}
    assert "its process runs another program now (exec)" in ended[0].text
    assert rig.stream_record(gate).gates_used == 0


def test_image_that_is_not_known_ends_nobody(rig: Rig) -> None:
    visitor = rig.visitor(sockets=4)
    known, unknown = rig.client(visitor=visitor, image=5), rig.client(visitor=visitor, image=0)
    rig.client(visitor=visitor, image=0)
    assert len(rig.driver.tables.clients) == 3
    rig.client(visitor=visitor, image=6)
    clients = {client.client_id for client in rig.driver.tables.clients}
    assert known.client_id not in clients
    assert unknown.client_id in clients


EXECS = """
import os, sys
from shmdriver._native import ffi, lib
import socket
instance, address, *fds = sys.argv[1:]
input()
connection = socket.socket(fileno=int(fds[0]))
connection.connect(address)
hello = ffi.new("shmd_hello_t *")
lib.shmd_hello_begin(hello, instance.encode())
hello.serial, hello.nonce = 1, len(fds)
connection.send(ffi.buffer(hello))
print(flush=True)
if fds[1:]:
    input()
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], instance, address, *fds[1:]])
input()
"""


def test_real_exec_shows_another_image_and_the_same_process(rig: Rig) -> None:
    connections = [new_socket(), new_socket()]
    fds = [found.fileno() for found in connections]
    command = [sys.executable, "-c", EXECS, rig.instance, rig.address(os.getpid()), *map(str, fds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds) as process:
        assert process.stdin
        assert process.stdout
        known = []
        for _ in connections:
            process.stdin.write(b"\n\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"\n"
            rig.tick()
            known.append([(client.pid, client.client_id) for client in rig.driver.tables.clients])
        assert known == [[(process.pid, 1)], [(process.pid, 2)]]
        process.kill()
    for found in connections:
        found.close()


# ---- deaths


def test_death_is_proved_at_adoption_before_anybody_says_hello(rig: Rig) -> None:
    visitor = rig.visitor()
    client = rig.client(visitor=visitor)
    lease = client.consume()
    rig.crash()
    visitor.kill()
    rig.start()
    assert rig.client_state(client) == lib.SHMD_CLIENT_FREE
    assert rig.lease(lease).end_reason == Reason.DIED
    assert rig.stream_record(lease).gates_used == 0


def test_end_of_a_connection_proves_nothing(rig: Rig) -> None:
    client = rig.client()
    lease = client.produce()
    client.socket.close()
    for _ in range(30):
        client.beat()
        rig.tick(500)
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE
    assert record_of(rig, client).connected == 0
    assert rig.lease_state(lease) == lib.SHMD_LEASE_ACTIVE


def test_driver_that_sleeps_is_woken_by_a_hello() -> None:
    """Without the thread that watches the socket it would sleep for a minute."""
    intervals = {
        "lease_check_interval_ms": 60_000,
        "announce_interval_ms": 60_000,
        "lease_timeout_ms": 240_000,
    }
    driver = EmbeddedDriver(config={"policies": intervals})
    driver.start()
    try:
        assert driver._driver is not None
        lock = driver._driver.tables.authority.lock
        for nonce in (1, 2):
            hello = ffi.new("shmd_hello_t *")
            lib.shmd_hello_begin(hello, driver.instance.encode())
            hello.serial, hello.nonce = 1, nonce
            with new_socket() as connection:
                connection.settimeout(PATIENCE_S / 2)
                connection.connect(f"/proc/self/fd/{lock.folder.fd}/socket")
                connection.send(ffi.buffer(hello))
                welcome = ffi.from_buffer("shmd_welcome_t *", connection.recv(4096))
                assert welcome.code == Code.OK
    finally:
        driver.stop()


# ---- another PID namespace

UNSHARED = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
needs_unshare = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*UNSHARED, "true"], capture_output=True, check=False).returncode != 0,
    reason="NOT LOOKED AT: a PID namespace of one's own takes CAP_SYS_ADMIN",
)
INSIDE = """
import sys
from tests.driver_rig import Rig
rig = Rig(sys.argv[1])
print(rig.driver.tables.authority.lock.folder.path / "socket", flush=True)
for line in sys.stdin:
    if line == "restart\\n":
        rig.restart()
    rig.tick(200)
    print([(c.pid, int(c.record.provable), c.label) for c in rig.driver.tables.clients], flush=True)
rig.close()
"""


@needs_unshare
def test_client_of_another_pid_namespace_has_no_number_and_its_death_is_proved(instance_name: str) -> None:
    """Seen from a driver in a PID namespace of its own. A successor gets the proof with the next Hello."""
    command = [*UNSHARED, sys.executable, "-c", INSIDE, instance_name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdin
        assert inside.stdout
        address = inside.stdout.readline().strip()
        rig: Any = SimpleNamespace(
            instance=instance_name, address=lambda _pid=None: address, sockets=[], boot_id=0
        )
        visitor = Visitor(rig, sockets=2)
        client = Requester(rig, visitor=visitor)

        def seen(word: str = "") -> str:
            assert inside.stdin
            assert inside.stdout
            inside.stdin.write(f"{word}\n")
            inside.stdin.flush()
            return inside.stdout.readline().strip()

        who = f"'requester' (a process of another PID namespace, uid {os.geteuid()})"
        client.say(client.hello_message())
        assert seen() == str([(0, 1, who)])
        assert seen("restart") == str([(0, 0, who)]), "nothing proves it dead, or alive"
        client.say(client.hello_message())
        assert seen() == str([(0, 1, who)])
        visitor.kill()
        assert seen() == "[]"
        visitor.close()
        inside.stdin.close()
        assert inside.wait(PATIENCE_S) == 0


def test_next_hello_names_a_process_to_a_driver_that_did_not_know_its_number(rig: Rig) -> None:
    client = rig.client()
    rig.crash()
    record = lib.shmd_authority_client(rig.view.writable_authority(), client.index)
    record.pid, record.pid_namespace = 1, record.pid_namespace ^ 1  # as a driver of another namespace read it
    rig.start()
    assert (record_of(rig, client).pid, record_of(rig, client).provable) == (1, 0)
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE
    answer = again(client)
    assert answer is not None
    assert answer.code == Code.OK
    found = record_of(rig, client)
    assert (found.pid, found.pid_namespace, found.provable) == (os.getpid(), lib.shmd_pid_namespace(), 1)


# ---- those who say nothing, or too much


def silent(rig: Rig, count: int) -> list[socket.socket]:
    found = [new_socket() for _ in range(count)]
    for connection in found:
        connection.connect(rig.address())
    rig.sockets += found
    return found


def test_silent_connections_hold_nobody_up_and_end(rig: Rig) -> None:
    found = silent(rig, 65)
    rig.tick()
    for _ in range(3):
        assert rig.client().produce(f"s{len(rig.driver.tables.clients)}").code == Code.OK
    assert rig.driver.connections._door.silent <= lib.SHMD_LISTENER_WAITING
    rig.tick(2500)
    assert rig.driver.connections._door.silent == 0
    assert [connection.recv(1) for connection in found] == [b""] * 65


@needs_root
def test_silent_connections_of_another_user_have_a_share(instance_name: str) -> None:
    group = grp.getgrgid(os.getegid())
    rig = Rig(instance_name, shm__group=group.gr_name, shm__mode="0660")
    try:
        address = str(rig.driver.tables.authority.lock.folder.path / "socket")
        found = [new_socket() for _ in range(20)]
        rig.sockets += found

        def connect() -> None:
            for connection in found:
                connection.connect(address)

        as_user(MEMBER, [group.gr_gid], connect)
        rig.tick()
        assert rig.driver.connections._door.silent == OTHERS_SHARE
        mine = silent(rig, 30)
        assert rig.client().produce().code == Code.OK
        assert rig.driver.connections._door.silent == OTHERS_SHARE + len(mine)
    finally:
        rig.close()


@needs_root
def test_another_user_with_the_secret_is_refused(instance_name: str) -> None:
    group = grp.getgrgid(os.getegid())
    rig = Rig(instance_name, shm__group=group.gr_name, shm__mode="0660")
    try:
        client = rig.client()
        before = record_of(rig, client)
        address = str(rig.driver.tables.authority.lock.folder.path / "socket")
        client.socket = new_socket()
        rig.sockets.append(client.socket)
        hello = client.hello_message()
        as_user(MEMBER, [group.gr_gid], lambda: client.socket.connect(address))
        hello.start_time = 0  # the kernel's word alone decides
        client.socket.send(ffi.buffer(hello))
        rig.tick()
        answer = client.hear()
        assert answer is not None
        assert answer.reason == Reason.NOT_OWNER
        assert f"it comes from uid {MEMBER}, and that client's is {os.geteuid()}" in answer.text
        assert record_of(rig, client) == before
    finally:
        rig.close()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", ""),
        (b"x", "Hello has 1 bytes, expected 512"),
        (bytes(512), "magic"),
        (b"x" * 512, "magic 0x7878787878787878"),
        (b"x" * 600, ""),
    ],
)
def test_garbage_ends_the_connection_that_sent_it(rig: Rig, message: bytes, words: str) -> None:
    client = Requester(rig)
    client.connect().send(message)
    rig.tick()
    client.hear()
    assert client.hear() is None
    assert rig.client().produce().code == Code.OK
    errors = " ".join(
        ffi.string(lib.shmd_authority_error(rig.view.authority, n).text).decode() for n in range(2)
    )
    assert words in errors


def test_another_layout_is_told_both_numbers(rig: Rig) -> None:
    client = Requester(rig)
    answer = again(client, layout_version=3)
    assert answer is not None
    assert answer.code == Code.UNSUPPORTED
    assert "3" in answer.text
    assert str(int(lib.SHMD_LAYOUT_VERSION)) in answer.text


def test_client_for_which_no_descriptors_are_left_is_refused_by_number(rig: Rig) -> None:
    known = rig.client()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    newest = new_socket().detach()
    os.close(newest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (newest + RESERVED_DESCRIPTORS, hard))
        stranger = Requester(rig)
        answer = stranger.hello()
        again(known)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answer.reason == Reason.LIMIT
    assert "1 clients are connected, and no descriptors are left for another one" in answer.text
    assert "RLIMIT_NOFILE" in answer.text
    assert record_of(rig, known).connected == 1
    assert stranger.hello().code == Code.OK


def test_silent_connections_leave_the_driver_descriptors_of_its_own(rig: Rig) -> None:
    """Each takes two, which is more for all of them than the driver needs itself."""
    rig.visitor()  # what is open here once for all
    silent = [new_socket() for _ in range(64)]
    rig.sockets += silent
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = new_socket().detach()
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + RESERVED_DESCRIPTORS + 32, hard))
        for each in silent:
            each.connect(rig.address())
        rig.tick()
        left = [os.open("/dev/null", os.O_RDONLY) for _ in range(24)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd in left:
        os.close(fd)
    assert rig.client().produce().code == Code.OK


def test_driver_that_cannot_accept_tries_again_at_its_next_tick(rig: Rig) -> None:
    stranger = Requester(rig)
    stranger.say(stranger.hello_message())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (5, hard))  # below what is open: no number is free
        rig.tick()
        assert not rig.driver.connections.is_quiet
        assert rig.driver.next_deadline_ns() > rig.clock.now_ns, "it does not spin meanwhile"
        rig.tick(100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    rig.tick(100)
    answer = stranger.hear()
    assert answer is not None
    assert answer.code == Code.OK
    assert rig.driver.connections.is_quiet
    error = lib.shmd_authority_error(rig.view.authority, 0)
    assert b"nobody can connect" in ffi.string(error.text)


def test_connections_that_come_and_go_leave_no_descriptor(rig: Rig) -> None:
    def used() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    client = rig.client()
    before = used()
    for _ in range(50):
        again(client)
    with new_socket() as connection:
        connection.connect(rig.address())
        rig.tick()
    rig.tick()
    assert used() == before


# ---- states of the driver


@pytest.mark.parametrize("state", ["maintenance", "draining"])
def test_hellos_are_heard_in_every_state_that_serves(rig: Rig, state: str) -> None:
    rig.client().consume()
    if state == "maintenance":
        rig.driver.set_maintenance(True, "a test")
    else:
        rig.driver.request_shutdown("end", "a test")
    rig.tick()
    assert rig.client().consume().code == Code.REJECTED


@pytest.mark.parametrize("mode", ["end", "handover"])
def test_connections_end_after_the_last_word(rig: Rig, mode: str) -> None:
    client = rig.client()
    rig.driver.request_shutdown(mode, "a test")
    rig.tick()
    assert rig.events_of(lib.SHMD_EVENT_DRIVER_SHUTDOWN)
    with pytest.raises(BlockingIOError):
        client.hear()
    rig.driver.close()
    assert client.hear() is None


def test_socket_that_was_removed_is_made_anew(rig: Rig) -> None:
    client = rig.client()
    path = rig.driver.tables.authority.lock.folder.path / "socket"
    path.unlink()
    rig.tick(1100)
    assert rig.client().produce().code == Code.OK
    assert record_of(rig, client).connected == 1
    assert rig.driver.state.value == "running.healthy"


def test_socket_that_another_process_replaced_is_told(rig: Rig) -> None:
    path = rig.driver.tables.authority.lock.folder.path / "socket"
    path.unlink()
    path.write_text("another one")
    rig.tick(1100)
    assert "lost_lock" in rig.driver._lifecycle.reasons
    assert path.read_text() == "another one"
    path.unlink()
    rig.tick(1100)
    assert "lost_lock" not in rig.driver._lifecycle.reasons
    rig.client()


def test_child_of_the_driver_keeps_no_connection_open(rig: Rig) -> None:
    client = rig.client()
    mine, its = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        mine.close()
        its.send(b"forked")
        its.recv(1)  # until the test has looked
        os._exit(0)
    its.close()
    assert mine.recv(10) == b"forked"
    rig.crash()
    assert client.hear() is None
    with new_socket() as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(rig.folder / "socket"))
    mine.close()
    os.waitpid(pid, 0)
    rig.start()
