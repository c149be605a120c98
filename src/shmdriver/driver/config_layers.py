"""Layers of a configuration, whatever its keys are: reading, merging, remembering sources, writing TOML.

Which keys there are is :mod:`shmdriver.driver.config`'s business.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shmdriver.errors import ConfigError

Keys = tuple[str, ...]


def read_toml(path: Path, source: str) -> dict[str, Any]:
    """The file's contents. ConfigError, which names ``source``, when it cannot be read or is not TOML."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        from shmdriver._native import lib  # not needed for a configuration without errors
        from shmdriver.os_errors import errno_text

        raise ConfigError(
            f"configuration {source}: {errno_text(error, lib.SHMD_CALL_READ)}", source=source
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {source} is not TOML: {error}", source=source) from error


def leaves(tree: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value with its keys. An empty table below the top is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and (value or not above):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def put(values: dict[str, Any], sources: dict[Keys, str], keys: Keys, value: Any, source: str) -> None:
    """Set one value and note its source. ConfigError where a value and a section meet."""
    dotted = ".".join(keys)
    node = values
    for depth, key in enumerate(keys[:-1], 1):
        below = node.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(
                f"{dotted} ({source}): {'.'.join(keys[:depth])} is a value ({below!r}), not a section",
                key=dotted,
                source=source,
            )
        node = below
    if isinstance(node.get(keys[-1]), dict) and not isinstance(value, dict):
        raise ConfigError(
            f"{'.'.join(keys)} ({source}) is a section, not a value", key=".".join(keys), source=source
        )
    node[keys[-1]] = value
    sources[keys] = source


def split_key(dotted: str) -> Keys:
    """The parts of a dotted key. Names of streams may hold dots; the field of a stream never does."""
    section, _, rest = dotted.partition(".")
    if section in ("profiles", "streams") and "." in rest:
        name, _, field = rest.rpartition(".")
        return section, name, field
    return tuple(dotted.split("."))


class Problem(NamedTuple):
    """One thing that is wrong, in words, with where it stands."""

    text: str
    key: str
    source: str
    near: str | None = None


def config_error(problems: Sequence[Problem]) -> ConfigError:
    """All problems in one exception; its attributes are those of the first."""
    first = problems[0]
    texts = [problem.text for problem in problems]
    text = texts[0] if len(texts) == 1 else f"{len(texts)} problems: " + "; ".join(texts)
    return ConfigError(text, key=first.key, source=first.source, nearest=first.near, problems=texts)


def toml_key(name: str) -> str:
    """A key as TOML writes it, quoted where it must be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def toml_value(value: Any) -> str:
    """A boolean, whole number or text as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(_escaped(char) for char in str(value)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return f"\\u{ord(char):04X}" if ord(char) < 32 or ord(char) == 127 else char
