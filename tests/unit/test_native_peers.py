"""A peer that cannot be built is reported with the reason; nothing that was built is built again."""

from __future__ import annotations

import os
import stat

import pytest

from benchmarks import cargo_peers, native_peers
from shmdriver.bench.cases import Wanted


def test_a_peer_that_cannot_be_built_is_missing_with_reason_and_place_and_the_others_are_there(
    monkeypatch, tmp_path
):
    def broken(size: int) -> str:
        raise RuntimeError("no cargo")

    there = native_peers.Peer(lambda size: "", "cc", "nowhere")
    monkeypatch.setattr(native_peers, "PEERS", {"a": native_peers.Peer(broken, "cc", "a shop"), "b": there})
    monkeypatch.setattr(native_peers, "_object", lambda source, compiler, size: tmp_path / "o")
    monkeypatch.setattr(native_peers, "call", lambda command: "")
    monkeypatch.setattr(native_peers, "BUILD", tmp_path)
    cases, missing = native_peers.native_peer_cases(Wanted())
    assert missing == {"a, C to C": "no cargo (a shop)"}
    assert {case.who for case in cases} == {"b"}


def _tool(place, text: str):
    tool = place / "tool"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return tool


def test_a_tool_that_is_missing_fails_or_hangs_is_an_error_that_says_so(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match=r"^no tool-that-is-not-there$"):
        cargo_peers.call("tool-that-is-not-there --version")
    with pytest.raises(RuntimeError, match=r"^error: no network$"):
        cargo_peers.call(str(_tool(tmp_path, "echo so far so good >&2; echo error: no network >&2; exit 1")))
    monkeypatch.setattr(cargo_peers, "BUILD_S", 0.05)
    with pytest.raises(RuntimeError, match=r"tool took more than 0 s"):
        cargo_peers.call(str(_tool(tmp_path, "exec tail -f /dev/null")))


def test_a_library_is_built_again_only_when_its_sources_are_newer(monkeypatch, tmp_path):
    (tmp_path / "rust" / "peer").mkdir(parents=True)
    (tmp_path / "cargo" / "release").mkdir(parents=True)
    source = tmp_path / "rust" / "peer" / "lib.rs"
    for path in (source, tmp_path / "rust" / "message.rs"):
        path.write_text("")
        os.utime(path, (1.0, 1.0))
    (tmp_path / "cargo" / "release" / "libpeer_peer.a").write_text("library")
    built = []
    monkeypatch.setattr(cargo_peers, "RUST", tmp_path / "rust")
    monkeypatch.setattr(cargo_peers, "BUILD", tmp_path)
    monkeypatch.setattr(cargo_peers, "call", lambda command, environment: built.append(environment))
    for _ in range(2):
        assert cargo_peers.rust_library("peer", 40).read_text() == "library"
    assert [each["PEER_BYTES"] for each in built] == ["40"]
    future = cargo_peers.rust_library("peer", 40).stat().st_mtime + 10
    os.utime(source, (future, future))
    cargo_peers.rust_library("peer", 40)
    assert len(built) == 2


def test_tachyon_needs_a_compiler_for_its_core(monkeypatch):
    monkeypatch.setattr(cargo_peers, "COMPILERS", ("compiler-that-is-not-there",))
    with pytest.raises(RuntimeError, match=r"C\+\+23: none of compiler-that-is-not-there"):
        cargo_peers._modern_compiler()
