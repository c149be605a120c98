"""Peers that cargo gets: tachyon-ipc and iceoryx2 as static libraries, Aeron from the C sources in a crate.

The first build takes minutes and needs the network; what was built stays in build/bench and is used as it is.
Everything raises RuntimeError with the tool's words when it cannot be built.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["aeron", "call", "rust_library"]

RUST = Path(__file__).resolve().parent / "peers" / "rust"
BUILD = RUST.parents[2] / "build" / "bench" / "native-peers"
BUILD_S = 1200.0
OFFLINE = {"CARGO_NET_RETRY": "1", "CARGO_HTTP_TIMEOUT": "20"}  # else minutes without a network
# tachyon's C++23 needs one of them
COMPILERS = ("clang++-19", "clang++-20", "g++-15", "g++-14")
CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release -DAERON_TESTS=OFF -DAERON_BUILD_SAMPLES=OFF -DAERON_BUILD_DOCUMENTATION=OFF "
    "-DBUILD_AERON_ARCHIVE_API=OFF -DBUILD_AERON_DRIVER=ON -DAERON_INSTALL_TARGETS=OFF"
)


def call(command: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs it; its output. RuntimeError with its first error when it fails, is missing or takes too long."""
    words = shlex.split(command)
    if shutil.which(words[0]) is None:
        raise RuntimeError(f"no {words[0]}")
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=BUILD_S,
            env={**os.environ, **OFFLINE, **(environment or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{words[0]} took more than {BUILD_S:.0f} s") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
        raise RuntimeError(errors[0][-200:])
    return done.stdout


def rust_library(name: str, size: int) -> Path:
    """The static library of peers/rust/NAME for messages of ``size`` bytes."""
    ready = BUILD / f"{name}-{size}.a"
    sources = [RUST / "message.rs", *(RUST / name).iterdir()]
    if ready.exists() and ready.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return ready
    target = BUILD / "cargo"
    _say(f"{name} for {size} B")
    environment = {"PEER_BYTES": str(size), "CARGO_TARGET_DIR": str(target)}
    if name == "tachyon":
        environment["CXX"] = _modern_compiler()
    call(f"cargo build --release --quiet --manifest-path {RUST / name / 'Cargo.toml'}", environment)
    shutil.copy(target / "release" / f"libpeer_{name}.a", ready)
    return ready


@functools.cache
def aeron() -> tuple[list[Path], list[Path]]:
    """Folders of headers, and the libraries of client and media driver: built as Aeron builds them."""
    sources = _aeron_sources()
    target = BUILD / f"aeron-{(sources / 'version.txt').read_text().strip()}"
    libraries = [target / "lib" / f"lib{name}.a" for name in ("aeron_static", "aeron_driver_static")]
    if not all(path.exists() for path in libraries):
        _say("Aeron")
        here = Path(sys.executable).parent / "cmake"
        cmake = here if here.exists() else Path("cmake")
        call(f"{cmake} -S {sources} -B {target} {CMAKE}")
        call(f"{cmake} --build {target} -j {os.cpu_count() or 1} --target aeron_static aeron_driver_static")
    return [sources / side / "src" / "main" / "c" for side in ("aeron-client", "aeron-driver")], libraries


def _aeron_sources() -> Path:
    manifest = RUST / "aeron" / "Cargo.toml"
    answer = call(f"cargo metadata --format-version 1 --manifest-path {manifest}")
    for package in json.loads(answer)["packages"]:
        if package["name"] == "rusteron-media-driver":
            return Path(package["manifest_path"]).parent / "aeron"
    raise RuntimeError("cargo does not know rusteron-media-driver")


def _modern_compiler() -> str:
    found = next((name for name in COMPILERS if shutil.which(name) is not None), None)
    if found is None:
        raise RuntimeError(f"no compiler for C++23: none of {', '.join(COMPILERS)}")
    return found


def _say(name: str) -> None:
    print(f"building the peer {name}: the first time takes minutes", file=sys.stderr, flush=True)
