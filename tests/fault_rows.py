"""The faults that a shared-memory driver meets, by row, and which tests show what ours does.

Rows are numbered as issues, tests and docs/RELIABILITY.md number them. Which test covers which row is read
from the sources, without running them: `@pytest.mark.fault(12)` on a Python test function (several numbers,
one mark; `how="..."` says how it injects the fault), and a comment `fault: 40, 41` in a C test or a model.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMENT = re.compile(r"\bfault: (\d+(?:, \d+)*)(?: \(([^)]*)\))?")


@dataclass(frozen=True)
class Row:
    """One fault, what has to happen, and how it is usually injected."""

    number: int
    group: str
    fault: str
    expected: str
    injection: str


@dataclass(frozen=True)
class Marked:
    """A test that is about a row. ``test`` is ``file::function``, or a file that is a program."""

    row: int
    test: str
    how: str
    stress: bool


_PRODUCER = (
    (1, "dies before a claim", "nothing visible; its lease ends in milliseconds (pidfd)", "failpoint kill"),
    (2, "dies between claim and commit, or in mid-payload",
     "never visible, no torn read; the seal is before it", "failpoint kill, checksummed payloads"),
    (3, "dies between commit and head, or before the wake",
     "message delivered; the seal is found by scanning; a sleeper wakes by its timeout", "failpoint kill"),
    (4, "dies in attach, before or after the answer", "slot, lease and segments reclaimed",
     "failpoint kill"),
    (5, "SIGSTOP past its lease, a new producer attached, SIGCONT",
     "0 bytes of the zombie in the new epoch; `LeaseRevoked` at its next call",
     "failpoint stop at each of 1-3"),
    (6, "restarts before its death was noticed", "the dead lease is reaped first, the attach succeeds",
     "kill -9, attach at once"),
)  # fmt: skip
_CONSUMER = (
    (7, "dies holding a full ring's gate", "the producer goes on, on proof of death",
     "kill -9 at a full ring"),
    (8, "stalls", "`BackPressured` names it; policy decides (block, evict)", "SIGSTOP"),
    (9, "ungated and lapped in mid-read", "loss counted exactly, never torn", "tiny ring, slow reader"),
    (10, "its numpy view outlives `close()`", "the mapping lives until the view goes",
     "close with a live view"),
    (11, "writes into a view", "Python error; in C a SIGSEGV in that process alone", "poke"),
)  # fmt: skip
_DRIVER = (
    (12, "kill -9, restart, 1,000 times under load",
     "adopts; 0 messages and 0 leases lost; `DriverUnavailable` only for control calls in between", "loop"),
    (13, "killed in provisioning, epoch change, table update, draining",
     "old or new state, never half; the next start cleans up", "failpoint kill"),
    (14, "two drivers of one name, 100 at once", "one lives, the rest exit with a clear message and code",
     "start race"),
    (15, "lock object unlinked under its holder", "detected (inode and link count), loud", "rm during start"),
    (16, "stalled by the GIL, a slow munmap, 1,000 detaches",
     "data path unaffected; lateness counted, `degraded`", "a sleep in its loop"),
    (17, "other layout version, half-made or garbage segment under our name",
     "refused before any field is used, nothing deleted", "mutate, truncate, random bytes"),
)  # fmt: skip
_MEMORY = (
    (18, "`/dev/shm` full or small", "attach refused with need, free and mount; driver lives",
     "64 KiB tmpfs in a mount namespace"),
    (19, "segment unlinked under mappings", "mappings go on; a new attach fails; driver notices", "rm"),
    (20, "stale segments after kills", "gone at the next start or by `gc`; delta 0 after 10,000 kills",
     "count"),
    (21, "symlink, FIFO, hard link or foreign file under our name", "refused", "plant"),
    (22, "uid or mode mismatch", "clear error, no busy loop", "two uids"),
)  # fmt: skip
_HOSTILE = (
    (23, "wild lengths, indices, enums; bad UTF-8; garbage in every control byte",
     "counted, answered where possible, driver and others unharmed", "fuzzing, random writers"),
    (24, "bytes flip between check and use", "no effect: the copy is what was checked", "flipping thread"),
    (25, "forged lease or client id; others' detach", "rejected, counted", "replay"),
    (26, "gate jumps back or far ahead", "that consumer is revoked; others unaffected", "poke"),
    (27, "stops in the middle of a request", "nobody else waits for it; it goes on later", "failpoint stop"),
    (28, "attach flood", "budget a tick and a client; others' attach latency bounded", "2 loops"),
    (29, "wrong, replayed or missing shutdown token", "refused, answered, counted, rate-limited", "replay"),
)  # fmt: skip
_TIME = (
    (30, "wall clock jumps", "no effect", "REALTIME shifted"),
    (31, "suspend, or a driver paused for a minute", "grace before anyone expires", "SIGSTOP, fake clock"),
    (32, "heartbeat late under CPU starvation",
     "`STALLED`, not expired, before the deadline without proof of death", "load, nice 19"),
    (33, "client's interpreter holds the GIL for 10 s", "lease stays; no progress is visible in the tools",
     "C call that holds it"),
)  # fmt: skip
_PROCESSES = (
    (34, "PID reuse", "start time and pidfd decide", "small `pid_max` in a PID namespace"),
    (35, "other PID namespace (containers)",
     "death proved by pidfd (SO_PEERPIDFD), else heartbeat only", "`unshare -p`, kill -9 of the init"),
    (36, "fork after attach", "child's handles raise; parent unaffected; flock not inherited", "`os.fork`"),
    (37, "unreaped zombie process", "counts as dead", "a parent that never waits"),
    (38, "EINTR, signals at 1 kHz", "no partial state", "setitimer"),
    (39, "two threads on one handle", "`ConcurrentUseError`, nothing corrupted", "2 threads"),
)  # fmt: skip
_ORDER = (
    (40, "seq near 2^32 and 2^62, arena near 2^63, turns near their wrap", "correct", "start there"),
    (41, "lost wake-up", "none in 10^8 hand-offs; bounded by the timeout", "stress, model"),
    (42, "weak memory (ARM64)", "each ordering justified in MEMORY_MODEL.md", "models, cross-build"),
)  # fmt: skip
_TRIED = (
    (43, "reader used after its place was lost: evicted, lapped, revoked or sharded while bytes are in use",
     "nothing that was overwritten is handed out as whole; the user can ask again",
     "eviction, laps, in steps"),
    (44, "a process that cannot be looked at: no descriptors, hidden /proc, zombie leader, other namespace",
     "unknown, treated as alive by whoever would free something", "RLIMIT_NOFILE, hidepid, pthread_exit"),
    (45, "fork that no handler saw", "the child's handles are refused; not a byte of the parent's is touched",
     "_Fork, raw clone"),
    (46, "table entry or handle reused, closed or moved while others look", "old, new, or told; never half",
     "threads, models"),
    (47, "garbage in what others can write, answers included, beside proofs of life",
     "ends nothing that other evidence proves alive; never an index", "random bytes, corrupt answers"),
    (48, "a group member truncates segments or punches holes into them", "no process dies; told as revoked",
     "ftruncate, fallocate"),
    (49, "exception or signal handler that raises anywhere in a call",
     "no lease, claim, mapping, descriptor or thread without an owner", "injected at each line and C return"),
    (50, "handles collected in cycles, by any thread, with a stopped driver", "finalisers never wait",
     "gc, failpoint"),
    (51, "a step of the driver fails, or the driver itself is late", "undone; its lateness charged to nobody",
     "injected errors, held GIL"),
    (52, "peers of a queue end, fork, are interrupted or re-enter it",
     "delivered or told; a busy lock is never Full or Empty", "kill, billiard, CPython's own tests"),
    (53, "values that the wire or a schema cannot carry", "refused, saying what to do; never something else",
     "odd dtypes, tables, epochs of other schemas"),
    (54, "exceptions kept by their users", "keep no buffer, handle or message alive", "errors.append(e)"),
    (55, "consumers that join late, restart or leave one after another",
     "lossless, or told exactly what is missing", "joins in every order"),
    (56, "thousands of streams, leases and clients, which are adopted, end or fall silent at once",
     "work grows with their sum, never with a product", "counted table rows"),
    (57, "a driver that does not answer, under an event loop or a call that may not wait",
     "the loop and the call go on; what is cancelled leaves nothing", "attach held up, deaf driver"),
    (58, "the package is replaced on the disk under a running client",
     "it goes on with the modules of its own version", "all files replaced, or removed"),
    (59, "an embedded driver crashes while its program goes on", "clients are told so, also there",
     "an exception in its thread"),
    (60, "threads of a process are greenlets", "refused, saying what to do", "gevent, a stand-in"),
    (61, "a page that is not in memory when a message needs it",
     "populated and locked as configured; told which memory cannot be", "RLIMIT_MEMLOCK, rings over 16 MiB"),
    (62, "a process begins without standard descriptors, with its signals early or blocked; no log reader",
     "no segment is 0, 1 or 2; signals are obeyed; no tick waits", "descriptors closed, full pipe"),
    (63, "a driver adopts under another configuration",
     "what can change changes; the rest is said, with a remedy", "limits, modes, length of the text"),
    (64, "whoever connects is pinned, runs under SCHED_FIFO, or has large thread-local variables",
     "the library's threads are their own; what moves is alive without a beat", "taskset, chrt, TLS"),
    (65, "a client without a heartbeat thread waits for longer than its lease's timeout, or is expelled",
     "calls that wait beat; `shmd_keepalive` says so", "threads that wait, in steps"),
    (66, "an attach that has its driver killed (out of memory, a crash)",
     "kills one driver at most: refused by the next with the reason, all others are served",
     "a memory cgroup, failpoint kill"),
    (67, "a program that is told to stop: sys.exit(0), a signal, a task that is cancelled",
     "clean where the program says so, aborted elsewhere", "SIGTERM, SIGINT, exits"),
    (68, "texts in another terminal, encoding or PID namespace, or with nobody to read them",
     "commands parse and name their instance; no pid of elsewhere; no traceback", "its own parser"),
    (69, "arguments of another kind or size", "refused, saying which and what it takes; never cut",
     "2.7, '5', nan, 2**64"),
    (70, "a limit leaves less memory than an attach asks for: cgroup v1 and v2, RLIMIT_*, the machine",
     "refused before memory is touched, with the limit's name and number; what cannot be locked is told",
     "files of other machines, setrlimit"),
    (71, "more than a fixed buffer would hold: over 1,024 streams, over 256 groups",
     "none decides: no event is overrun, the driver goes idle, members are known",
     "many streams, many groups"),
    (72, "closed and ended things fill the tables or the memory",
     "given up before anything is refused; memory that is just being unmapped counts",
     "small limits, a held-up unmapping"),
    (73, "a consumer whose latency counts, at the heels of a fast producer",
     '`pace="eager"` never holds still; auto only after a flow', "flows, holds counted"),
    (74, "a driver that does not tick while it is idle",
     "an idle check that finds nothing is right, is counted apart, and can be switched off",
     "all that a tick sees to, simulation"),
    (75, "a program whose connections, attaches and losses nobody watches",
     "told to the logger `shmdriver`, with the reason; messages are not", "restarts, laps"),
    (76, "threads that wait for long: readers, producers, queues, for a driver; beside a busy neighbour",
     "next to no processor time; what a wait is for ends it at once", "sleeps counted, endless sleeps"),
    (77, "a system call fails: a limit of the process, a read-only mount, a right that is missing",
     "told with its cause and a remedy, by C and Python alike; `errno` stays", "RLIMIT_*, another uid, ro"),
    (78, "names, folders and locks that drivers and clients look for: taken by strangers, read-only, missing",
     "passed over, told, left alone: drivers start, clients find them; a place that is named is refused",
     "files, folders, links, FIFOs and locks of a stranger; a bare container in a mount namespace"),
    (79, "a driver of another user, or a copy of its segments, under the name of an instance",
     "used only if it is one's own, root's, of the system's folder, or of a user who is named",
     "two users, a common group, root"),
    (80, "connections that are silent, many or garbage, bring descriptors or false claims; other namespaces",
     "the kernel says who it is; what is no Hello is refused by name, within bounds; nobody else notices",
     "real sockets, setuid, exec, unshare"),
    (81, "answers to a Hello: none, garbage, of a driver that dies, of an untrusted user, wrong descriptors",
     "tried again later, or refused by name; no descriptor is kept; the next driver knows the client",
     "a socket that answers anything, libFuzzer"),
    (85, "names, reasons, schemas, command lines and file names of others that contain controls",
     "shown escaped by every tool, log and exception: none drives a terminal or forges a line",
     "escape sequences, C1 controls, bidirectional marks, newlines"),
    (86, "hard links to segments, which keep memory and messages after their end",
     "counted and told at retirement, adoption and the end; `doctor` lists them; nobody is refused",
     "link into /dev/shm and a folder of it"),
    (87, "a process runs another program (exec) with its pid and all that its former program had attached",
     "what the former one had ends at once; the process is never refused by itself", "execv in a loop"),
    (88, "a client is, or goes, where other folders than the driver's are: a container, a chroot",
     "/dev/shm alone suffices; a folder that is not there is named", "mount namespaces, chroot"),
)  # fmt: skip
_GROUPS = (
    ("producer", _PRODUCER), ("consumer", _CONSUMER), ("driver", _DRIVER), ("memory, files", _MEMORY),
    ("hostile or broken client", _HOSTILE), ("time, scheduling", _TIME), ("processes", _PROCESSES),
    ("arithmetic, ordering", _ORDER),
    ("found by trials", _TRIED),
)  # fmt: skip
ROWS = tuple(Row(entry[0], group, *entry[1:]) for group, entries in _GROUPS for entry in entries)


def _is_mark(node: ast.expr, name: str) -> bool:
    function = node.func if isinstance(node, ast.Call) else node
    return (
        isinstance(function, ast.Attribute)
        and function.attr == name
        and isinstance(function.value, ast.Attribute)
        and function.value.attr == "mark"
    )


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, test: str) -> Iterator[Marked]:
    marks = [
        inner for outer in node.decorator_list for inner in ast.walk(outer) if isinstance(inner, ast.expr)
    ]
    stress = any(_is_mark(mark, "stress") for mark in marks)
    for mark in marks:
        if isinstance(mark, ast.Call) and _is_mark(mark, "fault"):
            how = next((ast.literal_eval(word.value) for word in mark.keywords if word.arg == "how"), "")
            for argument in mark.args:
                yield Marked(int(ast.literal_eval(argument)), test, how, stress)


def _of_python(path: Path, name: str) -> Iterator[Marked]:
    def walk(node: ast.AST, prefix: str) -> Iterator[Marked]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _of_function(child, f"{prefix}::{child.name}")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}::{child.name}")

    text = path.read_text(encoding="utf-8")
    if "mark.fault" in text:
        yield from walk(ast.parse(text), name)


def _of_program(path: Path, name: str) -> Iterator[Marked]:
    for numbers, how in COMMENT.findall(path.read_text(encoding="utf-8")):
        for number in numbers.split(", "):
            yield Marked(int(number), name, how, stress=False)


def marked(root: Path = ROOT) -> list[Marked]:
    """Every (row, test) that the sources under ``root`` mark, ordered by row, then by test."""
    found = [
        mark
        for path in sorted((root / "tests").rglob("*.py"))
        for mark in _of_python(path, str(path.relative_to(root)))
    ]
    for folder, pattern in (("tests/c", "*.c"), ("tests/fuzz", "*.c"), ("models", "*.pml")):
        for path in sorted((root / folder).rglob(pattern)):
            found += _of_program(path, str(path.relative_to(root)))
    return sorted(dict.fromkeys(found), key=lambda mark: (mark.row, mark.test))
