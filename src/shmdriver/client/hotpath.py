"""The classes of csrc/python: what a program touches once a message, in C.

They live in the file of cffi's module, so that both call the same core; a file can hold several
modules, which Python's import finds only when it is told where.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

from shmdriver import _native

if TYPE_CHECKING:
    from shmdriver._hotpath import (
        Boundary,
        ClaimCore,
        ConsumerCore,
        MappingCore,
        MessageCore,
        ProducerCore,
        clear_frames,
        deadline,
        setup,
    )

__all__ = [
    "Boundary", "ClaimCore", "ConsumerCore", "MappingCore", "MessageCore", "ProducerCore", "clear_frames",
    "deadline", "setup",
]  # fmt: skip

_NAME = "shmdriver._hotpath"


def _load() -> Any:
    path = str(_native.__file__)
    spec = spec_from_file_location(_NAME, path, loader=ExtensionFileLoader(_NAME, path))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_NAME] = module
    return module


if not TYPE_CHECKING:
    _module = sys.modules.get(_NAME) or _load()
    Boundary = _module.Boundary
    ClaimCore = _module.ClaimCore
    ConsumerCore = _module.ConsumerCore
    MappingCore = _module.MappingCore
    MessageCore = _module.MessageCore
    ProducerCore = _module.ProducerCore
    clear_frames = _module.clear_frames
    deadline = _module.deadline
    setup = _module.setup
