"""The pages about the lifecycle name what the code has: states, events, enums, places, and each other."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

from shmdriver import driver
from shmdriver._native import lib
from shmdriver.driver.lifecycle import DegradedBy, Event, Hooks, ShutdownMode, State

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in (
        "LIFECYCLE.md",
        "DRIVER_HSM_MIDDLE_GROUND.md",
        "DRIVER_HSM_SKETCH.md",
        "IMPLEMENTATION_PHASES.md",
    )
}
NAMES = set(dir(lib))
MODULES = [
    importlib.import_module(f"shmdriver.driver.{found.name}")
    for found in pkgutil.iter_modules(driver.__path__)
]
WORDS = {str(word) for kind in (State, Event, DegradedBy, ShutdownMode) for word in kind}
PARTS_OF_STATES = {part for state in State for part in state.value.split(".")}


def quoted(page: str) -> set[str]:
    """What stands between backticks in the prose and tables of a page."""
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", text))


def proposed(page: str = "DRIVER_HSM_SKETCH.md") -> dict[str, str]:
    """The events that the sketch proposes, each with what it is today."""
    tables = re.findall(r"<!-- names: .*? -->\n(.*?)<!-- end -->", PAGES[page], flags=re.DOTALL)
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", "".join(tables), flags=re.MULTILINE)
    return dict(rows)


def classes(name: str) -> list[type]:
    """The driver's classes of that name (a section of the configuration is called Driver, too)."""
    found = (getattr(module, name, None) for module in MODULES)
    return [kind for kind in found if isinstance(kind, type)]


def resolves(name: str) -> bool:
    """Whether the code has a constant, or ``Class.attribute`` (also one that only instances have)."""
    owner, dot, attribute = name.partition(".")
    if not dot:
        return name in NAMES
    return any(
        hasattr(kind, attribute) or f"self.{attribute}" in inspect.getsource(kind) for kind in classes(owner)
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_constant_in_a_page_is_one_of_the_header(page: str) -> None:
    found = {name for text in quoted(page) for name in re.findall(r"SHMD_[A-Z_]+\*?", text)}
    unknown = [
        name
        for name in found
        if not (any(known.startswith(name[:-1]) for known in NAMES) if name.endswith("*") else name in NAMES)
    ]
    assert not unknown


@pytest.mark.parametrize("page", PAGES)
def test_every_place_in_a_page_is_in_the_code(page: str) -> None:
    places = {text for text in quoted(page) if re.fullmatch(r"[A-Z][A-Za-z]+\.[a-z_]+", text)}
    missing = [place for place in places if not resolves(place)]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_state_and_event_in_a_page_is_in_the_table(page: str) -> None:
    ours = WORDS | PARTS_OF_STATES | set(proposed())
    looks_like_one = re.compile(
        r"(?:running|init|draining|stopped)(?:\.\w+)?|\w+_(?:due|requested|timeout|changed)|lease\.\w+|epoch\.\w+"
    )
    hooks = {name for name in vars(Hooks) if name.startswith("on_")}
    found = {text for text in quoted(page) if looks_like_one.fullmatch(text)}
    assert found <= ours | hooks, found - ours - hooks


@pytest.mark.parametrize("page", PAGES)
def test_every_hook_in_a_page_exists(page: str) -> None:
    hooks = {name for name in vars(Hooks) if name.startswith("on_")}
    found = {text for text in quoted(page) if re.fullmatch(r"on_[a-z_]+", text)}
    assert found <= hooks, found - hooks


def test_the_reference_names_every_state_event_and_reason() -> None:
    missing = (
        (WORDS - {"running"})
        - quoted("LIFECYCLE.md")
        - set(re.findall(r"\*\*(\w[\w.]+)\*\*", PAGES["LIFECYCLE.md"]))
    )
    assert not missing


def test_every_event_of_the_sketch_stands_in_its_diagrams_and_beside_code_of_today() -> None:
    events = proposed()
    diagrams = "".join(re.findall(r"```mermaid.*?```", PAGES["DRIVER_HSM_SKETCH.md"], flags=re.DOTALL))
    assert set(re.findall(r"(?:lease|epoch)\.\w+", diagrams)) == set(events)
    assert [event for event, today in events.items() if not resolves(today)] == []


def test_the_states_of_the_sketch_are_those_of_the_header() -> None:
    diagrams = re.findall(r"```mermaid.*?```", PAGES["DRIVER_HSM_SKETCH.md"], flags=re.DOTALL)
    for kind, diagram in zip(("LEASE", "EPOCH"), diagrams, strict=True):
        states = set(re.findall(r"^ +(\w+) -->", diagram, flags=re.MULTILINE))
        states |= set(re.findall(r"--> (\w+)", diagram))
        assert {f"SHMD_{kind}_{state.upper()}" for state in states} <= NAMES


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_page_that_a_page_names_exists(page: str) -> None:
    links = set(re.findall(r"\]\(([A-Z_]+\.md)\)", PAGES[page]))
    files = {text for text in quoted(page) if re.fullmatch(r"(?:scripts|tests|src|docs)/[\w/.]+", text)}
    missing = [link for link in links if not (ROOT / "docs" / link).exists()]
    missing += [name for name in files if not (ROOT / name).exists()]
    assert not missing


def test_the_phases_point_to_all_three_pages() -> None:
    links = set(re.findall(r"\]\(([A-Z_]+\.md)\)", PAGES["IMPLEMENTATION_PHASES.md"]))
    assert links == set(PAGES) - {"IMPLEMENTATION_PHASES.md"}
