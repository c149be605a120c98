"""Writes what is derived from csrc/shmd_abi.h; `--check` only says what is out of date.

    docs/ABI.md                     tables of every struct
    csrc/shmd_abi_check.c           static asserts of every size and offset
    src/shmdriver/_native.pyi       types of the cffi module
    tests/unit/abi_golden.json      the layout that the current layout version promises

The golden table is only extended: a change of what it promises needs another SHMD_LAYOUT_VERSION,
or `--same-version` as long as no release carries this one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import abi_outputs
from abi_header import ROOT, Header, layout_problems, read_header

GOLDEN = ROOT / "tests" / "unit" / "abi_golden.json"


def texts(header: Header) -> dict[Path, str]:
    """Every derived file with what it should hold."""
    return {
        ROOT / "docs" / "ABI.md": abi_outputs.document(header),
        ROOT / "csrc" / "shmd_abi_check.c": abi_outputs.check_source(header),
        ROOT / "src" / "shmdriver" / "_native.pyi": abi_outputs.stub(header),
        GOLDEN: json.dumps(abi_outputs.golden(header), indent=1) + "\n",
    }


def main() -> int:
    """0: done, or all up to date; 1: out of date, or the header contradicts itself."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 when something is out of date"
    )
    parser.add_argument(
        "--same-version", action="store_true", help="accept a changed layout without a new version"
    )
    options = parser.parse_args()
    header = read_header()
    problems = layout_problems(header)
    if not options.check and not options.same_version and GOLDEN.exists():
        problems += abi_outputs.broken_promises(json.loads(GOLDEN.read_text(encoding="utf-8")), header)
    for path, text in texts(header).items():
        current = path.read_text(encoding="utf-8") if path.exists() else None
        if current == text:
            continue
        name = path.relative_to(ROOT)
        if options.check:
            problems.append(f"{name} is out of date: run `make generate` and commit the result")
        elif not problems:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    for problem in problems:
        print(f"generate_abi: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
