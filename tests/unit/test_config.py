"""Configuration: defaults, layers, limits, and what is said about a bad one."""

from __future__ import annotations

import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shmdriver.driver.config import Config, Limits, Policies, Profile
from shmdriver.errors import ConfigError


def load(**overrides: Any) -> Config:
    return Config.load(env={}, overrides={key.replace("__", "."): value for key, value in overrides.items()})


def fails(text: str | None = None, env: dict[str, str] | None = None, /, **overrides: Any) -> ConfigError:
    with pytest.raises(ConfigError, match=text) as raised:
        Config.load(env=env or {}, overrides={key.replace("__", "."): v for key, v in overrides.items()})
    return raised.value


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "driver.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- defaults -----------------------------------------------------------------------------------


def test_no_file_is_needed() -> None:
    config = Config.load(env={})
    assert config == Config()
    assert (config.driver.instance, config.driver.boot) == ("default", "adopt")
    assert (config.shm.mode_bits, config.shm.max_bytes, config.shm.prefault) == (0o600, 0, True)
    assert config.policies.lease_timeout_ms == 10_000
    assert config.policies.limits.clients == 256
    assert config.profile_of("anything") == Profile()


def test_default_profile_takes_less_than_8_mib() -> None:
    profile = Profile()
    assert profile.slots * profile.slot_bytes + profile.arena <= 8 << 20


def test_limits_are_those_of_the_header() -> None:
    from shmdriver._native import lib

    def most(model: Any, field: str) -> Any:
        return next(m.le for m in model.model_fields[field].metadata if hasattr(m, "le"))

    assert most(Limits, "clients") == lib.SHMD_CLIENT_MAX
    assert most(Limits, "leases") == lib.SHMD_LEASE_MAX
    assert most(Limits, "streams") == lib.SHMD_STREAM_MAX
    assert most(Profile, "slots") == lib.SHMD_SLOTS_MAX
    assert most(Profile, "slot_bytes") == lib.SHMD_SLOT_BYTES_MAX
    assert most(Profile, "max_consumers") == lib.SHMD_GATE_MAX


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().policies.lease_timeout_ms = 1


@pytest.mark.parametrize("value", [True, False])
def test_hugepages_is_refused_and_said_to_do_nothing(tmp_path: Path, value: bool) -> None:
    path = written(tmp_path, f"[shm]\nhugepages = {str(value).lower()}\n")
    words = "unknown key shm.hugepages .*it never had an effect. Leave it out"
    with pytest.raises(ConfigError, match=words):
        Config.load(path, env={})
    with pytest.raises(ConfigError, match=words):
        Config.load(env={"SHMDRIVER_SHM_HUGEPAGES": str(value)})


# ---- layers -------------------------------------------------------------------------------------


def test_later_layers_win(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "[policies]\nlease_timeout_ms = 4000\nshutdown_timeout_ms = 1\nannounce_interval_ms = 2000\n"
        "[profiles.fast]\nslot_bytes = 64\n",
    )
    env = {"SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS": "5000", "SHMDRIVER_POLICIES_SHUTDOWN_TIMEOUT_MS": "2"}
    config = Config.load(path, env=env, overrides={"policies.shutdown_timeout_ms": 3})
    policies = config.policies
    assert policies.announce_interval_ms == 2000
    assert policies.lease_timeout_ms == 5000
    assert policies.shutdown_timeout_ms == 3
    assert config.source_of("policies.announce_interval_ms") == f"file {path}"
    assert config.source_of("policies.lease_timeout_ms") == "environment SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS"
    assert config.source_of("policies.shutdown_timeout_ms") == "command line, policies.shutdown_timeout_ms"
    assert config.source_of("driver.instance") == "default"


def test_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHMDRIVER_DRIVER_INSTANCE", "md")
    monkeypatch.setenv("SHMDRIVER_CONFIG", str(written(tmp_path, "[shm]\nprefault = false\n")))
    config = Config.load()
    assert (config.driver.instance, config.shm.prefault) == ("md", False)


@pytest.mark.parametrize(
    ("variable", "value", "where", "expected"),
    [
        ("SHMDRIVER_DRIVER_BOOT", "fresh", "driver.boot", "fresh"),
        ("SHMDRIVER_SHM_MLOCK", "true", "shm.mlock", True),
        ("SHMDRIVER_POLICIES_DRAIN_UNTIL_EMPTY", "0", "policies.drain_until_empty", False),
        ("SHMDRIVER_POLICIES_LIMITS_STREAM_BYTES", "2 GiB", "policies.limits.stream_bytes", 2 << 30),
        ("SHMDRIVER_PROFILES_DEFAULT_SLOT_BYTES", "64", "profiles.default.slot_bytes", 64),
        ("SHMDRIVER_PROFILES_BIG_FRAMES_MAX_CONSUMERS", "3", "profiles.big_frames.max_consumers", 3),
        ("SHMDRIVER_STREAMS_TICKS_SCHEMA", "<u8", "streams.ticks.schema", "<u8"),
    ],
)
def test_environment_variables(variable: str, value: str, where: str, expected: Any) -> None:
    config = Config.load(env={variable: value})
    node: Any = config.model_dump(by_alias=True)
    for key in where.split("."):
        node = node[key]
    assert node == expected
    assert config.source_of(where) == f"environment {variable}"


def test_environment_reaches_a_stream_with_dots_in_its_name(tmp_path: Path) -> None:
    path = written(tmp_path, '[profiles.fast]\n[streams."md.EUR/USD"]\n')
    config = Config.load(path, env={"SHMDRIVER_STREAMS_MD_EUR_USD_PROFILE": "fast"})
    assert config.streams["md.EUR/USD"].profile == "fast"


def test_command_line_reaches_a_stream_with_dots_in_its_name() -> None:
    config = Config.load(env={}, overrides={"profiles.x.slots": 2, "streams.a.b.profile": "x"})
    assert config.profile_of("a.b").slots == 2
    assert config.profile_of("a").slots == 8192


@pytest.mark.parametrize("name", ["SHMDRIVER_CONFIG", "SHMDRIVER_TEST_SEED", "SHMDRIVER_LOG", "PATH"])
def test_variables_that_are_no_configuration(name: str) -> None:
    assert Config.load(env={name: ""}) == Config()


def test_own_default_profile_keeps_what_it_does_not_name() -> None:
    config = load(profiles__default__slots=16)
    assert config.profiles["default"] == Profile(slots=16)


@pytest.mark.parametrize(
    ("text", "size"), [("4 MiB", 4 << 20), ("64KiB", 65536), ("1gib", 1 << 30), ("100", 100), ("7 B", 7)]
)
def test_sizes_in_words(text: str, size: int) -> None:
    assert (
        load(profiles__default__arena=text, policies__limits__stream_bytes="4 GiB").profile_of("s").arena
        == size
    )


def test_shared_with_a_group() -> None:
    config = load(shm__mode="0640", shm__group="traders")
    assert config.shm.mode_bits == 0o640
    assert load(shm__mode=0o600).shm.mode == "0600"


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("policies.lease_timout_ms", "policies.lease_timeout_ms"),
        ("policies.limits.cleints", "policies.limits.clients"),
        ("policy.lease_timeout_ms", "policies"),
        ("lease_timeout_ms", "policies.lease_timeout_ms"),
        ("driver.lease_timeout_ms", "policies.lease_timeout_ms"),
        ("profiles.fast.slot_byte", "profiles.fast.slot_bytes"),
        ("streams.ticks.profil", "streams.ticks.profile"),
        ("streams.ticks.schema_", "streams.ticks.schema"),
    ],
)
def test_unknown_key_names_the_nearest(key: str, near: str) -> None:
    error = fails(r"unknown key .*nearest known", **{key: 1})
    assert error.nearest == near
    assert f"nearest known: {near}" in str(error)
    assert error.source == f"command line, {key}"


def test_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[policies]\nlease_timout_ms = 1\n")
    with pytest.raises(ConfigError, match=r"unknown key policies\.lease_timout_ms") as raised:
        Config.load(path, env={})
    assert raised.value.source == f"file {path}"


def test_unknown_key_with_nothing_near_lists_the_known() -> None:
    assert "known here: instance, boot" in str(fails(driver__qqqqqqq=1))


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("SHMDRIVER_POLICIES_LEASE_TIMOUT_MS", "SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS"),
        ("SHMDRIVER_POLICY_LEASE_TIMEOUT_MS", "SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS"),
        ("SHMDRIVER_LEASE_TIMEOUT_MS", "SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS"),
        ("SHMDRIVER_POLICIES_GRACE", "SHMDRIVER_POLICIES_GRACE_MS"),
        ("SHMDRIVER_POLICIES_CLIENTS", "SHMDRIVER_POLICIES_LIMITS_CLIENTS"),
        ("SHMDRIVER_INSTANCE", "SHMDRIVER_DRIVER_INSTANCE"),
        ("SHMDRIVER_CONFG", "SHMDRIVER_CONFIG"),
        ("SHMDRIVER_TRUNCATION_GARD", "SHMDRIVER_TRUNCATION_GUARD"),
        ("SHMDRIVER_PROFILES_BIG_SLOT", "SHMDRIVER_PROFILES_BIG_SLOTS"),
        ("SHMDRIVER_STREAMS_TICKS_PROFIL", "SHMDRIVER_STREAMS_TICKS_PROFILE"),
    ],
)
def test_environment_variable_that_may_be_misspelled_is_warned_of(variable: str, near: str) -> None:
    with pytest.warns(UserWarning, match=f"{variable} is ignored; nearest known: {near}$"):
        assert Config.load(env={variable: "1"}) == Config()


@pytest.mark.fault(62, how="variables of a service named shmdriver")
@pytest.mark.parametrize(
    "service", ["", *(f"{word}_" for word in ("DRIVER", "SHM", "POLICIES", "STREAMS", "PROFILES"))]
)
def test_variables_that_a_cluster_makes_for_a_service_of_this_name_are_ignored(service: str) -> None:
    made = {
        "SERVICE_HOST": "10.0.0.7", "SERVICE_PORT": "7000", "SERVICE_PORT_HTTP": "7000", "PORT": "tcp://10.0.0.7:7000",
        "PORT_7000_TCP": "tcp://10.0.0.7:7000", "PORT_7000_TCP_PROTO": "tcp", "PORT_7000_TCP_PORT": "7000",
        "PORT_7000_TCP_ADDR": "10.0.0.7", "HOME": "/opt", "VERSION": "3", "LOG": "x", "NODE": "n",
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            Config.load(env={f"SHMDRIVER_{service}{name}": value for name, value in made.items()}) == Config()
        )


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("driver.instance", "a b", "instance name 'a b'"),
        ("driver.instance", "", "instance name ''"),
        ("driver.boot", "warm", "'adopt' or 'fresh'.*found 'warm'"),
        ("shm.mode", "0666", "mode '0666': expected one of 0600, 0640, 0660"),
        ("shm.mode", 600, "expected one of 0600"),
        ("shm.mode", "0660", "set shm.group, or mode 0600"),
        ("shm.group", "traders", "set shm.mode to 0640 or 0660"),
        ("shm.max_bytes", -1, "greater than or equal to 0.*found -1"),
        ("shm.max_bytes", "4 parsec", "KiB, MiB, GiB"),
        ("shm.max_bytes", True, "expected a size"),
        ("policies.lease_timeout_ms", 0, "greater than or equal to 1"),
        ("policies.lease_timeout_ms", 900, "less than two heartbeats"),
        ("policies.lease_timeout_ms", True, "whole number"),
        ("policies.lease_timeout_ms", "soon", "found 'soon'"),
        ("policies.lease_check_interval_ms", 20_000, "leases would expire late"),
        ("policies.limits.leases", 20_000, "less than or equal to 16384.*found 20000"),
        ("policies.limits", 3, "found 3"),
        ("policies", 3, "found 3"),
        ("profiles.default.slots", 1, "greater than or equal to 2"),
        ("profiles.default.slot_bytes", 100, "multiple of 64.*found 100"),
        ("profiles.default.max_consumers", 65, "less than or equal to 64"),
        ("profiles.default.slow_consumer", "kill", "'block', 'evict' or 'refuse'"),
        ("profiles.big.arena", "2 GiB", r"profiles\.big takes 2148532224 bytes.*1073741824"),
        ("streams.ticks.profile", "defalt", r"no such profile.*nearest: default"),
        ("streams.bad name.profile", "default", "stream name 'bad name'"),
        ("streams.ticks.schema", "x" * 1536, "at most 1535"),
    ],
)
def test_bad_values_say_what_was_found_and_expected(key: str, value: Any, text: str) -> None:
    error = fails(text, **{key: value})
    assert f"command line, {key}" in str(error)


TIMEOUT, HEARTBEAT = "policies.lease_timeout_ms", "policies.heartbeat_interval_ms"
OF_TIMEOUT, OF_HEARTBEAT = (
    f"environment SHMDRIVER_{key.upper().replace('.', '_')}" for key in (TIMEOUT, HEARTBEAT)
)


@pytest.mark.parametrize(
    ("timeout", "heartbeat", "key", "source", "named"),
    [
        ("500", None, TIMEOUT, OF_TIMEOUT, f"{TIMEOUT} ({OF_TIMEOUT}): lease_timeout_ms 500"),
        (None, "9000", HEARTBEAT, OF_HEARTBEAT, f"{HEARTBEAT} ({OF_HEARTBEAT}): lease_timeout_ms 10000"),
        ("500", "400", TIMEOUT, OF_TIMEOUT, f"{TIMEOUT} ({OF_TIMEOUT}), {HEARTBEAT} ({OF_HEARTBEAT}): "),
    ],
)
def test_values_that_do_not_go_together_are_put_down_to_those_who_set_them(
    timeout: str | None, heartbeat: str | None, key: str, source: str, named: str
) -> None:
    """And to no other variable of the same section."""
    env = {"SHMDRIVER_POLICIES_ANNOUNCE_INTERVAL_MS": "5000", "SHMDRIVER_DRIVER_INSTANCE": "md"}
    env |= {"SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS": timeout} if timeout else {}
    env |= {"SHMDRIVER_POLICIES_HEARTBEAT_INTERVAL_MS": heartbeat} if heartbeat else {}
    error = fails("less than two heartbeats", env)
    assert (error.key, error.source) == (key, source)
    assert str(error).startswith(named)
    assert "ANNOUNCE" not in str(error)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[shm]\nprefault = true\nmode = "0660"\n', "shm.mode"),
        ('[shm]\nprefault = true\ngroup = "traders"\n', "shm.group"),
        ('[profiles.big]\narena = "2 GiB"\n', "profiles.big.arena"),
        ('[streams."a b"]\n', "streams.a b"),
        ('[streams.a]\nprofile = "none"\n', "streams.a.profile"),
    ],
)
def test_what_is_wrong_in_a_file_is_put_down_to_the_file(tmp_path: Path, text: str, key: str) -> None:
    path = written(tmp_path, text)
    env = {"SHMDRIVER_CONFIG": str(path), "SHMDRIVER_SHM_MLOCK": "true", "SHMDRIVER_DRIVER_INSTANCE": "md"}
    error = fails(None, env)
    assert (error.key, error.source) == (key, f"file {path} of environment SHMDRIVER_CONFIG")
    assert "SHM_MLOCK" not in str(error)


def test_file_that_the_environment_names_is_put_down_to_the_environment(tmp_path: Path) -> None:
    error = fails("No such file", {"SHMDRIVER_CONFIG": str(tmp_path / "none.toml")})
    assert "environment SHMDRIVER_CONFIG" in str(error)


def test_all_problems_come_at_once() -> None:
    error = fails(
        "3 problems",
        {"SHMDRIVER_POLICIES_GRACE_MS": "soon"},
        driver__instance="a b",
        profiles__default__slots="x",
    )
    assert len(error.problems) == 3
    assert all(problem in str(error) for problem in error.problems)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Config.load(tmp_path / "none.toml", env={})


def test_file_that_is_not_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        Config.load(written(tmp_path, "policies = {"), env={})


def test_a_value_where_a_section_stands(tmp_path: Path) -> None:
    path = written(tmp_path, "policies = 3\n")
    with pytest.raises(ConfigError, match="policies is a value"):
        Config.load(path, env={}, overrides={"policies.grace_ms": 1})
    with pytest.raises(ConfigError, match="is a section"):
        Config.load(written(tmp_path, "[policies]\ngrace_ms = 1\n"), env={}, overrides={"policies": 1})


# ---- the effective text -------------------------------------------------------------------------


def test_effective_text_reads_back_to_the_same(tmp_path: Path) -> None:
    config = load(
        driver__instance="md",
        policies__shutdown_token_file="run/token",
        profiles__fast__slot_bytes=64,
        **{"streams.md.EUR/USD.profile": "fast", "streams.q.schema": "[('a\"\\', '<u8')]\n"},
    )
    text = config.effective_text()
    assert Config.load(written(tmp_path, text), env={}).model_dump() == config.model_dump()
    assert tomllib.loads(text)["streams"]["md.EUR/USD"]["profile"] == "fast"


def test_effective_text_is_complete_and_says_where_values_came_from() -> None:
    text = load(policies__grace_ms=7).effective_text()
    assert "grace_ms = 7  # command line, policies.grace_ms" in text
    assert "# group is not set" in text
    fields = [*Policies.model_fields, *Profile.model_fields, *Limits.model_fields]
    assert all(field in text for field in fields)
    assert len(text) < 16_384
