"""The cffi module `shmdriver._native`: its cdef is csrc/shmd_abi.h without the preprocessor lines.

The objects of csrc/python go into the same file, as the module `shmdriver._hotpath`: one copy of the core
for both.

Our own sources are compiled by native.mk with every warning an error; what cffi generates is
compiled without those flags and linked with the resulting archive.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
HEADER = CSRC / "shmd_abi.h"
RELEASE = ROOT / "build" / "release"
ARCHIVE = RELEASE / "libshmdriver.a"
HOTPATH = CSRC / "python"

_CPLUSPLUS_BLOCK = re.compile(r"^#ifdef __cplusplus$.*?^#endif$\n?", re.MULTILINE | re.DOTALL)
_PREPROCESSOR_LINE = re.compile(r"^[ \t]*#(?:.*\\\n)*.*$\n?", re.MULTILINE)


def cdef_text(header: str) -> str:
    """The declarations of a header's text, as cffi's parser takes them."""
    return _PREPROCESSOR_LINE.sub("", _CPLUSPLUS_BLOCK.sub("", header))


def build_library(profile: str = "release") -> None:
    """Compile csrc into build/<profile>/libshmdriver.a (and .so); nothing when nothing changed."""
    subprocess.run(
        [
            "make",
            "--no-print-directory",
            "-s",
            "-j2",
            "-f",
            str(ROOT / "native.mk"),
            f"PROFILE={profile}",
            f"PYTHON_INCLUDE={sysconfig.get_path('include')}",
            "lib",
        ],
        cwd=ROOT,
        check=True,
    )


def hotpath_objects(folder: str) -> list[str]:
    """The object files of `shmdriver._hotpath` in a profile's folder."""
    return [f"{folder}/python/{source.stem}.o" for source in sorted(HOTPATH.glob("*.c"))]


def build_failpoints() -> Path:
    """The module with failpoints compiled in, for tests that kill; nothing when it is up to date."""
    return _build_variant(
        "failpoints",
        ["-DSHMD_FAILPOINTS=1", "-O2"],
        "void shmd_failpoint(const char *name); uint64_t shmd_waits_entered(void);",
    )


def build_sanitized() -> Path:
    """The module under ASAN and UBSAN; the interpreter has to be started with libasan preloaded."""
    return _build_variant("asan", ["-DSHMD_TEST=1", "-O1", "-g", "-fsanitize=address,undefined"])


def _build_variant(profile: str, flags: list[str], also_declared: str = "") -> Path:
    folder = ROOT / "build" / profile
    build_library(profile)
    made = folder / "shmdriver" / "_native.abi3.so"
    archive = folder / "libshmdriver.a"
    hotpath = hotpath_objects(str(folder))
    sources = (archive, HEADER, Path(__file__), *map(Path, hotpath))
    if made.exists() and made.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return made
    builder = FFI()
    builder.cdef(cdef_text(HEADER.read_text(encoding="utf-8")))
    builder.cdef(also_declared)
    builder.set_source(
        "shmdriver._native",
        '#include "shmd_abi.h"\n#include "shmd_failpoint.h"\n',
        include_dirs=[str(CSRC)],
        extra_objects=[*hotpath, str(archive)],
        extra_compile_args=["-std=c11", "-D_GNU_SOURCE=", "-pthread", *flags],
        extra_link_args=["-pthread", *(flag for flag in flags if flag.startswith("-fsanitize"))],
        libraries=["rt"],
        py_limited_api=True,
    )
    return Path(builder.compile(tmpdir=str(folder)))


def make_builder() -> FFI:
    """Describe the module to cffi, for setuptools' `cffi_modules`."""
    hotpath = hotpath_objects("build/release")
    builder = FFI()
    builder.cdef(cdef_text(HEADER.read_text(encoding="utf-8")))
    builder.set_source(
        "shmdriver._native",
        '#include "shmd_abi.h"\n',
        include_dirs=["csrc"],
        extra_objects=[*hotpath, "build/release/libshmdriver.a"],
        extra_compile_args=["-std=c11", "-D_GNU_SOURCE=", "-O3", "-fvisibility=hidden", "-pthread"],
        extra_link_args=["-pthread", "-Wl,--exclude-libs,ALL"],
        libraries=["rt"],
        depends=["csrc/shmd_abi.h", "build/release/libshmdriver.a", "build_ffi.py", *hotpath],
    )
    return builder


ffibuilder = make_builder()
