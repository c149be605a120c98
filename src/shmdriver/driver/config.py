"""The driver's configuration: what can be set, within which limits, and where each value came from.

Four layers, later ones win: built-in defaults, a TOML file, environment variables
(``SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS``), overrides from a command line
(``{"policies.lease_timeout_ms": 5000}``). No layer is needed. Unknown keys are errors that name the
nearest known key; all problems of all layers come in one :class:`~shmdriver.errors.ConfigError`.
The environment is not ours alone (Kubernetes makes ``SHMDRIVER_PORT`` for a service of that name): an unknown
variable is warned of when it resembles one of ours, and ignored otherwise.

Sizes are bytes and may be written as ``"4 MiB"``; times are milliseconds. A loaded configuration
does not change: the driver publishes :meth:`Config.effective_text` for tools to read.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from shmdriver.driver.config_layers import (
    Keys,
    Problem,
    config_error,
    leaves,
    put,
    read_toml,
    split_key,
    toml_key,
    toml_value,
)
from shmdriver.errors import ConfigError
from shmdriver.names import instance_problem, nearest, stream_problem

__all__ = ["Config", "Driver", "Limits", "Policies", "Profile", "Shm", "Stream"]

ENV_PREFIX = "SHMDRIVER_"
ENV_FILE = "SHMDRIVER_CONFIG"
# Variables of our own that are no configuration.
ENV_OTHER = ("CONFIG", "TRUNCATION_GUARD")
ENV_OURS = re.compile(
    rf"{ENV_PREFIX}({'|'.join(ENV_OTHER)}|FAILPOINTS?|(TEST|BENCH|DEMO|BUILD|STRESS|FUZZ)(_.*)?)"
)
ENV_LIKENESS = 0.76  # of a misspelling; a service's variables (..._PORT, ..._SERVICE_HOST) stay below

_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
}
_SIZE = re.compile(r"\s*(\d+)\s*([A-Za-z]*)\s*")
_MODES = ("0600", "0640", "0660")
_REMOVED = {  # keys that earlier versions took
    "shm.hugepages": "it never had an effect. Leave it out: the mount of /dev/shm decides about huge pages"
}


def _size(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError('expected a size in bytes, as 4194304 or "4 MiB"')  # noqa: TRY004 -- pydantic wants it
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(f'size {value!r}: expected bytes, as 4194304 or "4 MiB" (KiB, MiB, GiB)')
        return int(match[1]) * unit
    return value


def _whole(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a whole number")  # noqa: TRY004 -- pydantic wants it
    return value


def _mode(value: object) -> object:
    text = f"{value:04o}" if isinstance(value, int) and not isinstance(value, bool) else value
    if text not in _MODES:
        raise ValueError(f"mode {value!r}: expected one of {', '.join(_MODES)}, in quotes")
    return text


def _instance(value: object) -> object:
    problem = instance_problem(value) if isinstance(value, str) else None
    if problem:
        raise ValueError(problem)
    return value


Size = Annotated[int, BeforeValidator(_size)]
Count = Annotated[int, BeforeValidator(_whole)]
Millis = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=86_400_000)]


class Section(BaseModel):
    """What all sections share: unknown keys are refused, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Driver(Section):
    """Which driver this is, and how it starts."""

    instance: Annotated[str, BeforeValidator(_instance)] = "default"
    boot: Literal["adopt", "fresh"] = "adopt"


class Shm(Section):
    """How segments are made. ``max_bytes = 0``: half of what the mount has free when the driver starts."""

    mode: Annotated[str, BeforeValidator(_mode)] = "0600"
    group: str | None = None
    max_bytes: Size = Field(default=0, ge=0)
    prefault: bool = True
    mlock: bool = False

    @property
    def mode_bits(self) -> int:
        """The mode as a number, for ``open`` and ``fchmod``."""
        return int(self.mode, 8)

    @model_validator(mode="after")
    def _group_and_mode_agree(self) -> Shm:
        if self.mode != "0600" and not self.group:
            raise _disagreement(
                f"mode {self.mode} shares segments with a group: set shm.group, or mode 0600", ("shm", "mode")
            )
        if self.group and self.mode == "0600":
            raise _disagreement(
                f"group {self.group!r} can see nothing with mode 0600: set shm.mode to 0640 or 0660",
                ("shm", "group"),
                ("shm", "mode"),
            )
        return self


class Limits(Section):
    """The most that is admitted. ``stream_bytes`` bounds one epoch of one stream."""

    clients: Count = Field(default=256, ge=1, le=4096)
    leases: Count = Field(default=1024, ge=1, le=16384)
    streams: Count = Field(default=256, ge=1, le=4096)
    stream_bytes: Size = Field(default=1 << 30, ge=65536)
    attaches_per_tick: Count = Field(default=64, ge=1, le=4096)


class Policies(Section):
    """When things happen, and what is allowed."""

    allow_dynamic_streams: bool = True
    announce_interval_ms: Millis = 5000  # what changes is announced at once: this is for who missed it
    lease_timeout_ms: Millis = 10_000
    lease_check_interval_ms: Millis = 200  # deaths wake the driver by themselves (pidfd): this is for silence
    heartbeat_interval_ms: Millis = 500
    tickless_idle: bool = True  # false: each lease check is a tick, also when there is nothing to do
    shutdown_timeout_ms: Millis = 5000
    drain_until_empty: bool = True
    shutdown_token_file: Path | None = None
    grace_ms: Count = Field(default=10_000, ge=0, le=86_400_000)
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _times_agree(self) -> Policies:
        if self.lease_timeout_ms < 2 * self.heartbeat_interval_ms:
            raise _disagreement(
                f"lease_timeout_ms {self.lease_timeout_ms} is less than two heartbeats "
                f"(heartbeat_interval_ms {self.heartbeat_interval_ms}): every lease would expire",
                ("policies", "lease_timeout_ms"),
                ("policies", "heartbeat_interval_ms"),
            )
        if self.lease_check_interval_ms > self.lease_timeout_ms:
            raise _disagreement(
                f"lease_check_interval_ms {self.lease_check_interval_ms} is more than "
                f"lease_timeout_ms {self.lease_timeout_ms}: leases would expire late",
                ("policies", "lease_check_interval_ms"),
                ("policies", "lease_timeout_ms"),
            )
        return self


class Profile(Section):
    """The shape of a stream whose producer does not say otherwise."""

    slots: Count = Field(default=8192, ge=2, le=67_108_864)
    slot_bytes: Size = Field(default=128, ge=64, le=65_536, multiple_of=64)
    arena: Size = Field(default=4 << 20, ge=0)
    max_consumers: Count = Field(default=16, ge=1, le=64)
    slow_consumer: Literal["block", "evict", "refuse"] = "block"
    evict_after_ms: Millis = 1000
    wakeups: bool = True
    timestamps: bool = False


class Stream(Section):
    """A stream that is known before anybody attaches. ``schema`` is a canonical dtype text."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    profile: str = "default"
    schema_: str | None = Field(default=None, alias="schema", max_length=1535)


class Config(Section):
    """All of it. ``Config()`` is the defaults; :meth:`load` reads the layers."""

    driver: Driver = Driver()
    shm: Shm = Shm()
    policies: Policies = Policies()
    profiles: dict[str, Profile] = Field(default_factory=lambda: {"default": Profile()})
    streams: dict[str, Stream] = Field(default_factory=dict)

    _sources: dict[Keys, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        *,
        env: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        overrides_from: str = "command line",
    ) -> Config:
        """Read and check all layers.

        ``path``: a TOML file that must exist; None: the one that ``SHMDRIVER_CONFIG`` names, else no file.
        ``env``: None for ``os.environ``. ``overrides``: dotted keys; ``overrides_from``: what errors call
        them. Raises ConfigError. Warns (UserWarning) of variables that may be misspelled.
        """
        environment = os.environ if env is None else env
        source = f"file {path}"
        if path is None and environment.get(ENV_FILE):
            path = Path(environment[ENV_FILE])
            source = f"file {path} of environment {ENV_FILE}"
        values: dict[str, Any] = {}
        sources: dict[Keys, str] = {}
        if path is not None:
            for keys, value in leaves(read_toml(path, source)):
                put(values, sources, keys, value, source)
        for text in _from_env(values, sources, environment):
            warnings.warn(text, stacklevel=2)
        for dotted, value in (overrides or {}).items():
            put(values, sources, split_key(dotted), value, f"{overrides_from}, {dotted}")
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise config_error([_explain(details, sources) for details in error.errors()]) from None
        config._sources.update(sources)  # noqa: SLF001 -- its own class
        return config

    @classmethod
    def of(cls, config: Config | Mapping[str, Any] | str | os.PathLike[str] | None) -> Config:
        """What a program passes as ``config=``: a mapping as a TOML file makes it, the path of one, None.

        None: the file that ``SHMDRIVER_CONFIG`` names, and the environment, as :meth:`load`. A mapping is
        laid over these; its keys are sections, or dotted. Raises ConfigError.
        """
        if config is None:
            return cls.load()
        if isinstance(config, cls):
            return config
        if isinstance(config, (str, os.PathLike)):
            return cls.load(Path(config))
        if isinstance(config, Mapping):
            flat = dict(leaves(config))
            if all(isinstance(key, str) for keys in flat for key in keys):
                overrides = {".".join(keys): value for keys, value in flat.items()}
                return cls.load(overrides=overrides, overrides_from="config=")
        raise ConfigError(
            f"config={config!r}: expected a mapping as a TOML file makes it, as "
            "{'shm': {'max_bytes': '64 MiB'}}, the path of such a file, or None",
            source="config=",
        )

    @model_validator(mode="before")
    @classmethod
    def _keep_default_profile(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("profiles", {}), dict):
            return {**data, "profiles": {"default": {}, **data.get("profiles", {})}}
        return data

    @model_validator(mode="after")
    def _references_hold(self) -> Config:
        for name, profile in self.profiles.items():
            size = profile.slots * profile.slot_bytes + profile.arena
            if size > self.policies.limits.stream_bytes:
                raise _disagreement(
                    f"profiles.{name} takes {size} bytes an epoch, more than policies.limits.stream_bytes "
                    f"{self.policies.limits.stream_bytes}: lower slots or arena, or raise the limit",
                    *(("profiles", name, field) for field in ("slots", "slot_bytes", "arena")),
                    ("policies", "limits", "stream_bytes"),
                )
        for name, stream in self.streams.items():
            problem = stream_problem(name)
            if problem:
                raise _disagreement(problem, ("streams", name))
            if stream.profile not in self.profiles:
                near = nearest(stream.profile, self.profiles)
                raise _disagreement(
                    f"streams.{name}.profile is {stream.profile!r}, and there is no such profile; "
                    f"known: {', '.join(sorted(self.profiles))}{f' (nearest: {near})' if near else ''}",
                    ("streams", name, "profile"),
                )
        return self

    def profile_of(self, stream: str) -> Profile:
        """The profile that a stream of this name gets."""
        entry = self.streams.get(stream)
        return self.profiles[entry.profile if entry else "default"]

    def schema_of(self, stream: str) -> str | None:
        """The schema text that configuration demands of this stream, None when it demands none."""
        entry = self.streams.get(stream)
        return entry.schema_ if entry else None

    def limits_above(self, room: Mapping[str, int]) -> dict[str, int]:
        """The limits (of clients, leases, streams) that are more than there is room for."""
        asked = {name: int(getattr(self.policies.limits, name)) for name in room}
        return {name: limit for name, limit in asked.items() if limit > room[name]}

    def with_limits(self, room: Mapping[str, int]) -> Config:
        """This configuration as it holds where tables have just so much room: limits above it are lowered."""
        above = self.limits_above(room)
        if not above:
            return self
        limits = self.policies.limits.model_copy(update={name: room[name] for name in above})
        held = self.model_copy(update={"policies": self.policies.model_copy(update={"limits": limits})})
        lowered = {
            ("policies", "limits", name): f"room of the adopted tables; {asked} by "
            f"{self.source_of(f'policies.limits.{name}')}"
            for name, asked in above.items()
        }
        held._sources = self._sources | lowered  # noqa: SLF001 -- its own class
        return held

    def source_of(self, dotted: str) -> str:
        """Where a value came from: ``default``, ``file ...``, ``environment ...`` or ``command line ...``."""
        return self._sources.get(split_key(dotted), "default")

    def effective_text(self) -> str:
        """The whole configuration as TOML. What is not a default says where it came from."""
        lines = ["# shmdriver, effective configuration"]
        tables: dict[Keys, list[str]] = {}
        for keys, value in leaves(self.model_dump(mode="json", by_alias=True)):
            source = self._sources.get(keys)
            line = (
                f"# {keys[-1]} is not set" if value is None else f"{toml_key(keys[-1])} = {toml_value(value)}"
            )
            tables.setdefault(keys[:-1], []).append(line + (f"  # {source}" if source else ""))
        for table, rows in tables.items():
            lines += ["", f"[{'.'.join(toml_key(part) for part in table)}]", *rows]
        return "\n".join(lines) + "\n"


# ---- what only the models know: names of keys ------------------------------------------------


def _from_env(values: dict[str, Any], sources: dict[Keys, str], env: Mapping[str, str]) -> Iterator[str]:
    """Takes the values of our variables; a warning for each unknown one that resembles one of ours."""
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX) or ENV_OURS.fullmatch(variable):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        keys = _env_keys(name, values)
        if keys is not None:
            put(values, sources, keys, env[variable], f"environment {variable}")
        elif near := _near_variable(name):
            yield f"unknown environment variable {variable} is ignored; nearest known: {near}"


def _near_variable(name: str) -> str | None:
    """The variable that ``name`` (lower case, without the prefix) is most likely meant for.

    A key that lacks its section counts as near, too: ``instance`` for ``driver_instance``.
    """
    section, _, rest = name.partition("_")
    if section in ENTRY_SECTIONS:
        words = rest.split("_")
        for field in _fields(ENTRY_SECTIONS[section]):
            count = field.count("_") + 1
            if len(words) > count and nearest("_".join(words[-count:]), [field], ENV_LIKENESS):
                return ENV_PREFIX + "_".join([section, *words[:-count], field]).upper()
        return None
    known = {other.lower(): other for other in ENV_OTHER}
    inside = [keys for keys in _fixed_keys() if keys[0] == section]
    for keys in inside or _fixed_keys():  # a section that is right says nothing of what follows it
        first = 1 if inside else 0
        known |= {"_".join(keys[depth:]): "_".join(keys).upper() for depth in range(first, len(keys))}
    near = nearest(rest if inside else name, known, ENV_LIKENESS)
    return ENV_PREFIX + known[near] if near else None


def _env_keys(name: str, values: Mapping[str, Any]) -> Keys | None:
    for keys in (*_fixed_keys(), *map(split_key, _REMOVED)):
        if "_".join(keys) == name:
            return keys
    for section, model in ENTRY_SECTIONS.items():
        rest = name.removeprefix(section + "_")
        fields = sorted(_fields(model), key=len, reverse=True)
        field = next((field for field in fields if rest != name and rest.endswith("_" + field)), None)
        if field:
            entry = rest.removesuffix("_" + field)
            named = [known for known in values.get(section, {}) if re.sub(r"\W", "_", known).lower() == entry]
            return section, named[0] if named else entry, field
    return None


ENTRY_SECTIONS: dict[str, type[Section]] = {"profiles": Profile, "streams": Stream}  # of named entries


def _fields(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _fixed_keys() -> list[Keys]:
    keys: list[Keys] = []
    for section, model in (("driver", Driver), ("shm", Shm), ("policies", Policies)):
        keys += [(section, field) for field in _fields(model) if field != "limits"]
    return keys + [("policies", "limits", field) for field in _fields(Limits)]


def _known_beside(where: Keys) -> list[str]:
    sections: dict[Keys, list[str]] = {(): _fields(Config), ("policies", "limits"): _fields(Limits)}
    sections |= {("driver",): _fields(Driver), ("shm",): _fields(Shm), ("policies",): _fields(Policies)}
    if len(where) == 2 and where[0] in ("profiles", "streams"):
        return _fields(Profile if where[0] == "profiles" else Stream)
    return sections.get(where, [])


def _disagreement(text: str, *keys: Keys) -> PydanticCustomError:
    """Values that are each allowed and do not go together; ``keys``: whose."""
    return PydanticCustomError("disagreement", "{text}", {"text": text, "keys": keys})


def _source(where: Keys, sources: Mapping[Keys, str]) -> str | None:
    """Where a value, or what is below it, was set; None: nowhere."""
    below = (source for keys, source in sources.items() if keys[: len(where)] == where)
    return sources.get(where) or ", ".join(dict.fromkeys(below)) or None


def _explain_disagreement(text: str, keys: Iterable[Keys], sources: Mapping[Keys, str]) -> Problem:
    """Names those of the values that somebody set: the others are defaults."""
    given = {".".join(where): source for where in keys if (source := _source(where, sources))}
    named = ", ".join(f"{key} ({source})" for key, source in given.items())
    key, source = next(iter(given.items()), ("", "default"))
    return Problem(f"{named or 'default'}: {text}", key, source)


def _explain(details: ErrorDetails, sources: Mapping[Keys, str]) -> Problem:
    if details["type"] == "disagreement":
        return _explain_disagreement(details["msg"], details["ctx"]["keys"], sources)
    where = tuple(str(part) for part in details["loc"] if part != "[key]")
    key = ".".join(where)
    source = _source(where, sources) or "default"
    if details["type"] == "extra_forbidden" and key in _REMOVED:
        return Problem(f"unknown key {key} ({source}): {_REMOVED[key]}", key, source)
    if details["type"] == "extra_forbidden":
        near = nearest(where[-1], _known_beside(where[:-1]))
        if near is None:
            elsewhere = {keys[-1]: ".".join(keys) for keys in _fixed_keys()}
            match = nearest(where[-1], elsewhere)
            near = elsewhere[match] if match else None
        else:
            near = ".".join((*where[:-1], near))
        known = f"nearest known: {near}" if near else f"known here: {', '.join(_known_beside(where[:-1]))}"
        return Problem(f"unknown key {key} ({source}); {known}", key, source, near)
    text = details["msg"].removeprefix("Value error, ")
    found = "" if isinstance(details["input"], BaseModel | Mapping) else f", found {details['input']!r}"
    return Problem(f"{key or 'configuration'} ({source}): {text}{found}", key, source)
