"""Hard links to segments: the driver counts and tells those that outlive one, and `doctor` lists them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver.lifecycle import ShutdownMode
from shmdriver.observe import Instance, host
from shmdriver.observe.links import linked_segments
from tests.driver_rig import Rig
from tests.segments import path_of

SHM = Path("/dev/shm")
FOLLOW = {"flags": lib.SHMD_ATTACH_FOLLOW}


@pytest.fixture
def links(instance_name: str) -> Iterator[tuple[Path, Path]]:
    """Two names that a hostile process may choose: beside the segments, and in a folder of its own."""
    folder = SHM / f"links-{instance_name}"
    folder.mkdir()
    beside = SHM / f"link-{instance_name}"
    yield beside, folder / "x"
    for path in (beside, folder / "x"):
        path.unlink(missing_ok=True)
    folder.rmdir()


def data_of(rig: Rig, answer: object) -> Path:
    name = ffi.string(rig.epoch(answer).data_name).decode()  # type: ignore[arg-type]
    return SHM / name.removeprefix("/")


def paths() -> set[str]:
    """Of linked segments, as `doctor` finds them."""
    return {found.path for found in linked_segments()[0]}


def told(rig: Rig) -> list[str]:
    with Instance(rig.instance) as view:
        return [error.text for error in view.errors() if "hard link" in error.text]


@pytest.mark.fault(86, how="links to the data of a stream whose producer closes it")
def test_hard_links_are_counted_and_shown(rig: Rig, links: tuple[Path, Path]) -> None:
    client = rig.client()
    producer, other = client.produce(), client.produce("other")
    data = data_of(rig, producer)
    for link in links:
        link.hardlink_to(data)
    assert paths() >= {str(data), *map(str, links)}
    assert str(data_of(rig, other)) not in paths()
    assert rig.counter("HARD_LINKS") == 0, "nothing has ended"
    client.detach(producer)
    rig.tick(60_000)
    assert not data.exists()
    assert rig.counter("HARD_LINKS") == 1
    (text,) = told(rig)
    assert text.startswith(f"/{data.name} has 2 hard links beside its name")
    assert paths() >= set(map(str, links)), "by their magic alone"
    (check,) = [each for each in host.check_host() if each.name == "hard links"]
    assert check.level == "warn"
    assert str(links[0]) in check.found or ", ..." in check.found
    for link in links:
        link.unlink()
    assert not paths() & set(map(str, links))


@pytest.mark.fault(86, how="a link to the data of a living stream while no driver lives")
def test_adoption_takes_and_tells_hard_links(rig: Rig, links: tuple[Path, Path]) -> None:
    producer = rig.client().produce()
    data = data_of(rig, producer)
    links[0].hardlink_to(data)
    rig.restart()
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_OPEN, "a link ends nothing"
    assert rig.counter("HARD_LINKS") == 1
    assert [line for line in rig.logged if line.startswith(f"adopt: /{data.name} has 1 hard link beside")]
    assert len(told(rig)) == 1


@pytest.mark.fault(86, how="links to control and data of a driver that ends, and of one that is superseded")
@pytest.mark.parametrize("is_superseded", [False, True])
def test_an_end_tells_what_outlives_it(rig: Rig, links: tuple[Path, Path], *, is_superseded: bool) -> None:
    data = data_of(rig, rig.client().produce())
    links[0].hardlink_to(data)
    control = path_of(rig.instance, "control")
    links[1].hardlink_to(control)
    if is_superseded:
        rig.crash()
        rig.start(driver__boot="fresh")
    else:
        rig.driver.request_shutdown(ShutdownMode.END, "a test")
        rig.tick(60_000)
        assert rig.driver.state.value == "stopped"
    assert not data.exists()
    for name in (f"/{data.name}", f"/{control.name}"):
        assert [line for line in rig.logged if f"{name} has 1 hard link beside its name" in line], name
    assert paths() >= set(map(str, links))


def test_other_files_are_none(links: tuple[Path, Path]) -> None:
    links[0].write_bytes(b"SHMD, but no magic of a segment")
    links[1].symlink_to(links[0])
    assert not paths() & set(map(str, links))
