"""Token ids equal the reference's, on lines of every kind and on Unicode's characters one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from oracle import run_reference
from varied_lines import code_points, varied_lines

from cn_clip.tokenizer import default_tokenizer

pytestmark = pytest.mark.timeout(900)  # seconds when the machine is idle, minutes when it is not
LINES = 105_000


def test_ids_on_varied_lines(tmp_path: Path) -> None:
    lines = list(varied_lines(LINES, list(default_tokenizer().vocab)))
    assert len(set(lines)) > 100_000
    batch = default_tokenizer().encode(lines)
    assert_same_ids(lines, batch.ids, reference_ids(lines, 52, tmp_path))
    # The lines reach both ends: nothing but [CLS] [SEP], and far more than fits.
    assert batch.lengths.min() == 2
    assert 0.02 < batch.truncated.mean() < 0.5
    assert (batch.truncated == (batch.lengths > 52)).all()
    assert ((batch.ids != 0).sum(axis=1) == batch.lengths.clip(max=52)).all()


def test_ids_of_single_characters(tmp_path: Path) -> None:
    """Each in a word, beside an ideograph and alone; eight characters share a line."""
    characters = code_points(every=61)
    assert len(characters) > 50_000
    lines = [" ".join(characters[i : i + 8]) for i in range(0, len(characters), 8)]
    batch = default_tokenizer().encode(lines, context_length=160)
    assert not batch.truncated.any()
    assert_same_ids(lines, batch.ids, reference_ids(lines, 160, tmp_path))


def reference_ids(lines: Sequence[str], context_length: int, folder: Path) -> np.ndarray:
    (folder / "lines.json").write_text(json.dumps(lines))
    script = Path(__file__).parent / "reference" / "tokenize_lines.py"
    run_reference(script, folder / "lines.json", context_length, folder / "ids.npy")
    return np.load(folder / "ids.npy")


def assert_same_ids(lines: Sequence[str], ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    different = np.flatnonzero((ours != theirs).any(axis=1))
    examples = [(lines[i], ours[i].tolist(), theirs[i].tolist()) for i in different[:3]]
    assert len(different) == 0, f"{len(different)} lines differ: {examples!a}"
