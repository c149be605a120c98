"""The corpora of the fuzz targets: a small file a target in the repository, a folder of inputs for a fuzzer.

    python scripts/fuzz_corpus.py unpack CORPUS.bin FOLDER
    python scripts/fuzz_corpus.py pack FOLDER CORPUS.bin

A packed corpus is the inputs one after the other, shortest first, each behind its length
(two bytes, little-endian).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path


def packed(inputs: list[bytes]) -> bytes:
    """Sorted, without doubles: the same inputs make the same file. Raises ValueError for one over 64 KiB."""
    ordered = sorted(set(inputs), key=lambda data: (len(data), data))
    if any(len(data) > 0xFFFF for data in ordered):
        raise ValueError("an input of a corpus has more than 65535 bytes")
    return b"".join(len(data).to_bytes(2, "little") + data for data in ordered)


def unpacked(corpus: bytes) -> list[bytes]:
    """Raises ValueError for a file that does not end with an input's last byte."""
    inputs, at = [], 0
    while at < len(corpus):
        end = at + 2 + int.from_bytes(corpus[at : at + 2], "little")
        if end > len(corpus):
            raise ValueError(f"corpus of {len(corpus)} bytes: the input at {at} ends at {end}")
        inputs.append(corpus[at + 2 : end])
        at = end
    return inputs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("unpack", "pack"))
    parser.add_argument("source", type=Path, help="the corpus to unpack, or the folder to pack")
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    if options.what == "unpack":
        options.target.mkdir(parents=True, exist_ok=True)
        for data in unpacked(options.source.read_bytes()):
            name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            (options.target / name).write_bytes(data)
    else:
        inputs = [path.read_bytes() for path in sorted(options.source.iterdir()) if path.is_file()]
        options.target.write_bytes(packed(inputs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
