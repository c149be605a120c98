"""The native part of the build: the core's library, the cffi module, and what C programs link with."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

import build_ffi  # noqa: E402  the build backend does not put this folder on the path

PKG_CONFIG = """\
prefix=${pcfiledir}/../..
includedir=${prefix}/include
libdir=${prefix}/lib

Name: shmdriver
Description: Shared-memory media driver, C client
Version: @VERSION@
Cflags: -I${includedir}
Libs: -L${libdir} -lshmdriver
Libs.private: -pthread -lrt
"""


def public_headers() -> list[Path]:
    """shmdriver.h (shmd_abi.h as long as there is none) and every header that it includes."""
    first = build_ffi.CSRC / "shmdriver.h"
    waiting = [first if first.exists() else build_ffi.HEADER]
    found: list[Path] = []
    while waiting:
        header = waiting.pop()
        if header in found or not header.exists():
            continue
        found.append(header)
        names = re.findall(r'^#include "([^"]+)"', header.read_text(encoding="utf-8"), re.MULTILINE)
        waiting.extend(build_ffi.CSRC / name for name in names)
    return sorted(found)


def install_if_changed(source: Path, target: Path) -> None:
    """Copy by rename: a process that has the old file mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.read_bytes() == source.read_bytes():
        return
    fresh = target.with_name(target.name + ".new")
    shutil.copyfile(source, fresh)
    fresh.replace(target)


class BuildNative(build_ext):
    """Compiles the core first, then cffi's module, then lays out src/shmdriver/native for C programs."""

    def run(self) -> None:
        build_ffi.build_library()
        super().run()
        package = ROOT / "src" / "shmdriver" if self.inplace else Path(self.build_lib) / "shmdriver"
        self.install_native(package / "native")

    def install_native(self, target: Path) -> None:
        for header in public_headers():
            install_if_changed(header, target / "include" / header.name)
        for name in ("libshmdriver.a", "libshmdriver.so"):
            install_if_changed(build_ffi.RELEASE / name, target / "lib" / name)
        text = PKG_CONFIG.replace("@VERSION@", self.distribution.get_version())
        pkg_config = target / "lib" / "pkgconfig" / "shmdriver.pc"
        pkg_config.parent.mkdir(parents=True, exist_ok=True)
        pkg_config.write_text(text, encoding="utf-8")


setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # cffi's module keeps to the stable ABI
)
