"""The chaos tests' fork server and stages."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import build_ffi
from tests.chaos.containers import make_namespaces
from tests.chaos.stage import Stage, Zygote

SO_PEERPIDFD = 77


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Forks processes with the library as it is."""
    with closing(Zygote(tmp_path_factory.mktemp("runtime"))) as zygote:
        yield zygote


@pytest.fixture(scope="module")
def striking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Forks processes whose native module has failpoints."""
    native = build_ffi.build_failpoints()
    with closing(Zygote(tmp_path_factory.mktemp("runtime"), native=native)) as zygote:
        yield zygote


@pytest.fixture
def make_stage(zygote: Zygote, instance_name: str, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Makes the test's stage with driver settings (dotted keys); it is cleared afterwards."""
    made: list[Stage] = []

    def make(settings: dict[str, Any] | None = None) -> Stage:
        stage = Stage(instance_name, tmp_path, zygote, **(settings or {}))
        made.append(stage)
        stage.start_driver()
        return stage

    yield make
    for stage in made:
        stage.__exit__(None, None, None)


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """A stage with a driver that has the defaults."""
    return make_stage()


@pytest.fixture
def namespaces() -> None:
    """Skips the test where no namespaces can be made."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make_namespaces()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        pytest.skip("NOT LOOKED AT: PID and mount namespaces take root and CAP_SYS_ADMIN")


@pytest.fixture
def peer_pidfds() -> None:
    """Skips the test where the kernel has no SO_PEERPIDFD (before Linux 6.5)."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        try:
            os.close(one.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError as error:
            pytest.skip(f"NOT LOOKED AT: this kernel tells no pidfd of a peer (SO_PEERPIDFD): {error}")
