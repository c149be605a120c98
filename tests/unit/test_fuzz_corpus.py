"""Packed corpora of the fuzz targets."""

from __future__ import annotations

from pathlib import Path

import fuzz_corpus
import pytest
from hypothesis import given
from hypothesis import strategies as st

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"


@given(st.lists(st.binary(max_size=80)))
def test_packed_inputs_come_back(inputs: list[bytes]) -> None:
    assert set(fuzz_corpus.unpacked(fuzz_corpus.packed(inputs))) == set(inputs)


def test_truncated_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="ends at 7"):
        fuzz_corpus.unpacked(b"\x05\x00abc")


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    targets = {path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.c")}
    assert {path.stem for path in (FUZZ / "corpus").glob("*.bin")} == targets
    for target in targets:
        assert len(fuzz_corpus.unpacked((FUZZ / "corpus" / f"{target}.bin").read_bytes())) >= 10
