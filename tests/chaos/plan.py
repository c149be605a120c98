"""Every failpoint: who passes it, in which scene, and what it means for the message on its way.

The names are read from the sources, so that one that stands there and not here fails a test.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from grp import getgrgid
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IN_C = re.compile(r'\bSHMD_FAILPOINT\("([^"]+)"\)')
IN_PYTHON = re.compile(r'\bfailpoint\("([^"]+)"\)')


def names_in_sources() -> set[str]:
    """All failpoints of the C core and of the driver."""
    return {
        name
        for folder, suffix, pattern in (("csrc", "[ch]", IN_C), ("src/shmdriver", "py", IN_PYTHON))
        for path in (ROOT / folder).rglob(f"*.{suffix}")
        if "native" not in path.relative_to(ROOT).parts
        for name in pattern.findall(path.read_text(encoding="utf-8"))
    }


class Fate(StrEnum):
    """Of the message that a producer is publishing when the failpoint gets it."""

    UNSEEN = "unseen"  # never visible
    SEEN = "seen"  # committed, so delivered
    EITHER = "either"


class Scene(StrEnum):
    """What goes on around the victim."""

    PRODUCER = "producer"  # it publishes, a reliable and a lossy consumer read
    CONSUMER = "consumer"  # it reads beside them, producers come and go
    DRIVER = "driver"  # it serves: messages flow, clients come and go
    HANDOVER = "driver, handover"  # as before, and it is told to hand over
    SHUTDOWN = "driver, shutdown"  # it is told to stop while messages are under way
    CREATION = "driver, first start"  # it makes the segments
    FRESH = "driver, fresh"  # it supersedes what another one left


@dataclass(frozen=True)
class Place:
    """A failpoint in a scene. It strikes at a pass of 1 to ``passes``, chosen at random."""

    name: str
    scene: Scene
    passes: int = 1
    fate: Fate = Fate.UNSEEN
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def spec(self, rng: Random, how: str = "kill") -> str:
        """As a process's environment takes it."""
        return f"{self.name}:{rng.randint(1, self.passes)}:{how}"

    @property
    def label(self) -> str:
        """For tables: one name may be passed by several."""
        return f"{self.name} ({self.scene})"


def _many(
    scene: Scene, passes: int, names: str, options: dict[str, Any] | None = None, fate: Fate = Fate.UNSEEN
) -> list[Place]:
    return [Place(name, scene, passes, fate, options or {}) for name in names.split()]


_SMALL = {"options": {"slots": 256}}
_MIXED = {"how": "mixed", **_SMALL}
_RING_FULL = {"options": {"slots": 16}, "ready": 3000, "size": 20}
_CLOSES = {"count": 20, **_SMALL}
_IDLES = {"rest_s": 0.002, "listen_every": 4, **_SMALL}
_CONTROL = "control.written control.committed"

_SHARED = {"shm.mode": "0640", "shm.group": getgrgid(os.getegid()).gr_name}

PRODUCER = (
    *_many(Scene.PRODUCER, 300, "slot.claimed slot.open slot.written", _MIXED),
    *_many(Scene.PRODUCER, 300, "slot.committed head.stored", _MIXED, Fate.SEEN),
    *_many(Scene.PRODUCER, 3000, "copy.word", _SMALL),
    *_many(Scene.PRODUCER, 40, "arena.intent arena.reference claim.open claim.aborted", _MIXED),
    *_many(Scene.PRODUCER, 4, "room.announced", {"options": {"slots": 64}}),
    *_many(Scene.PRODUCER, 2, "room.blocked room.waiting", _RING_FULL),
    *_many(Scene.PRODUCER, 3, "wake.bumped", _IDLES, Fate.EITHER),
    *_many(Scene.PRODUCER, 1, "hello.answered attach.mapped attach.confirmed", _CLOSES),
    *_many(Scene.PRODUCER, 1, "attach.answered", _CLOSES),
    *_many(Scene.PRODUCER, 2, _CONTROL, _CLOSES),  # its attach and its detach
    *_many(Scene.PRODUCER, 1, "entry.noted", _CLOSES),
)
_FOLLOWS = {"options": {"follow": True}}
_SLEEPS = {"options": {"follow": True, "wait": "sleep"}}
_SLOW = {"rest_s": 0.005, "rest_every": 4, **_FOLLOWS}
CONSUMER = (
    *_many(Scene.CONSUMER, 30, "gate.due gate.stored", _FOLLOWS),
    *_many(Scene.CONSUMER, 3, "epoch.wired left.gate left.stored", _FOLLOWS),
    *_many(Scene.CONSUMER, 4, "sleep.announced", _SLEEPS),
    *_many(Scene.CONSUMER, 1, "room.bumped", _SLOW),
    *_many(Scene.CONSUMER, 3, "notifier.announced", {"by_fd": True, **_FOLLOWS}),
    *_many(Scene.CONSUMER, 1, "hello.answered attach.mapped attach.confirmed", _FOLLOWS),
    *_many(Scene.CONSUMER, 1, "attach.answered", _FOLLOWS),
    *_many(Scene.CONSUMER, 1, _CONTROL, _FOLLOWS),
)
DRIVER = (
    *_many(Scene.DRIVER, 1, "boot.locked adopt.mapped adopt.loaded adopt.wired adopt.settled adopt.done"),
    *_many(Scene.DRIVER, 1, "adopt.counted introduce.began introduce.exit start.filled start.complete"),
    *_many(Scene.DRIVER, 1, "start.open start.noted adopt.expelled"),
    *_many(Scene.DRIVER, 1, "adopt.undone adopt.epochs adopt.revoked"),
    *_many(Scene.DRIVER, 1, "adopt.modes", _SHARED),  # the one before it had others
    *_many(Scene.DRIVER, 10, "change.word"),
    *_many(Scene.DRIVER, 30, "slot.claimed slot.open slot.written slot.committed event.head event.word"),
    *_many(Scene.DRIVER, 20, "request.accepted control.cursor"),
    *_many(Scene.DRIVER, 1, "stream.forgotten schema.began schema.blank nonce.stored"),
    *_many(
        Scene.DRIVER,
        10,
        "client.filled client.published client.segment client.segment_removed client.removed",
    ),
    *_many(Scene.DRIVER, 10, "id.taken"),
    *_many(Scene.DRIVER, 6, "stream.filled stream.published provision.data_blank segment.filled"),
    *_many(
        Scene.DRIVER,
        6,
        "provision.data provision.gates epoch.filled epoch.masks epoch.opened stream.numbered",
    ),
    *_many(Scene.DRIVER, 6, "epoch.producer_noted epoch.counted attach.granted attach.joined"),
    *_many(Scene.DRIVER, 6, "lease.filled lease.published lease.marking lease.ending lease.ended"),
    *_many(Scene.DRIVER, 3, "lease.released"),
    *_many(Scene.DRIVER, 6, "gate.taken gate.freeing join.gate join.mask join.position join.wired"),
    *_many(Scene.DRIVER, 6, "leave.gate leave.sleep producer.clearing producer.cleared"),
    *_many(Scene.DRIVER, 6, "end.sealed end.unwired end.told seal.reason seal.number seal.sealed"),
    *_many(Scene.DRIVER, 6, "retire.marked retire.data_unlinked retire.unlinked retire.masks"),
    *_many(Scene.HANDOVER, 1, "drain.began handover.exit stop.began"),
)
ENDS = (
    *_many(Scene.SHUTDOWN, 1, "drain.began drain.armed stop.began stop.sealed stop.leases_ended stop.exit"),
    *_many(Scene.SHUTDOWN, 1, "stop.control_unlinked stop.authority_unlinked seal.sealing"),
    *_many(Scene.SHUTDOWN, 2, "stop.unlinking"),
    *_many(Scene.SHUTDOWN, 3, "stop.lease"),
    *_many(Scene.CREATION, 1, "boot.locked create.allocated create.filled"),
    *_many(Scene.CREATION, 1, "introduce.began introduce.exit start.filled"),
    *_many(Scene.CREATION, 1, "start.complete start.noted"),
    *_many(Scene.CREATION, 1, "segment.filled"),
    *_many(Scene.FRESH, 1, "supersede.marked supersede.sealed stop.sealed create.allocated create.filled"),
    *_many(Scene.FRESH, 3, "boot.clearing"),
)
PLACES = (*PRODUCER, *CONSUMER, *DRIVER, *ENDS)
