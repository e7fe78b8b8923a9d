"""Exact nearest neighbours against a full sort, ties above all; and the verb's files, blocks and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cn_clip.cli import main
from cn_clip.errors import UserError
from cn_clip.eval import knn
from cn_clip.eval.features import FeatureWriter
from cn_clip.eval.knn import Gallery, nearest

ROOT = Path(__file__).resolve().parents[2]
DEVICES = pytest.mark.parametrize("device", ["cpu", "cpu:0"], ids=["faiss", "torch"])


def sorted_scores(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: every score in float64, rounded to float32, all of them sorted, ties by row."""
    scores = np.empty((len(queries), len(gallery)), np.float32)
    for i, query in enumerate(queries.astype(np.float64)):
        for j, row in enumerate(gallery.astype(np.float64)):
            scores[i, j] = np.sum(query * row)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


def unit(seed: int, rows: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def check(queries: np.ndarray, gallery: np.ndarray, k: int, **options: object) -> None:
    scores, rows = nearest(queries, gallery, k, **options)
    expected_scores, expected_rows = sorted_scores(queries, gallery, k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert np.array_equal(rows, expected_rows)
    assert np.array_equal(scores, expected_scores)


@DEVICES
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_few_distinct_values_mean_many_ties(device, data):
    # Inner products of small integers are exact, so that most queries tie far beyond the margin.
    rows, width = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 9))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    high = data.draw(st.integers(1, 3))
    gallery = random.integers(-1, high, (rows, width)).astype(np.float32)
    queries = random.integers(-2, 3, (data.draw(st.integers(1, 40)), width)).astype(np.float32)
    check(queries, gallery, data.draw(st.integers(1, 140)), block=data.draw(st.integers(1, 50)), device=device)


@DEVICES
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_identical_rows_anywhere_keep_their_order(device, data):
    # Odd widths and positions: a matrix product's edge kernels may differ in the last bit between them.
    width, distinct = data.draw(st.sampled_from([3, 17, 67, 131])), data.draw(st.integers(1, 12))
    rows = data.draw(st.integers(1, 300))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    gallery = unit(distinct, distinct, width)[random.integers(0, distinct, rows)]
    queries = unit(99, data.draw(st.integers(1, 30)), width)
    check(queries, gallery, data.draw(st.integers(1, 60)), block=data.draw(st.integers(1, 128)), device=device)


@DEVICES
def test_all_rows_identical(device):
    gallery = np.repeat(unit(0, 1, 67), 500, axis=0)
    scores, rows = nearest(unit(1, 30, 67), gallery, 10, block=37, device=device)
    assert np.array_equal(rows, np.tile(np.arange(10), (30, 1)))
    assert (scores == scores[:, :1]).all()


@DEVICES
def test_scores_closer_than_float32_products_tell(device):
    # Rows that differ by an ulp of one value: a float32 matrix product cannot order them, the result must.
    random = np.random.default_rng(5)
    gallery = np.repeat(unit(2, 1, 257), 200, axis=0)
    gallery[np.arange(200), random.integers(0, 257, 200)] *= np.float32(1) + np.float32(2**-22)
    check(unit(3, 20, 257), gallery, 10, device=device)


@DEVICES
def test_random_unit_vectors(device):
    check(unit(0, 50, 96), unit(1, 700, 96), 10, block=100, device=device)
    check(unit(0, 5, 96), unit(1, 700, 96), 690, block=100, device=device)


def test_blocks_devices_and_company_change_nothing():
    queries, gallery = unit(0, 200, 65), unit(1, 3000, 65)
    gallery[1000:1200] = gallery[:200]
    scores, rows = nearest(queries, gallery, 10)
    one_by_one = [nearest(query[None], gallery, 10) for query in queries]
    for other in (
        nearest(queries, gallery, 10, block=1),
        nearest(queries, gallery, 10, block=777, device="cpu:0"),
        [np.concatenate(part) for part in zip(*one_by_one, strict=True)],
    ):
        assert np.array_equal(scores, other[0])
        assert np.array_equal(rows, other[1])


def test_small_temporary_matrices_change_nothing(monkeypatch):
    queries, gallery = unit(0, 40, 33), np.repeat(unit(1, 40, 33), 30, axis=0)
    expected = nearest(queries, gallery, 12)
    monkeypatch.setattr(knn, "CELLS", 100)
    monkeypatch.setattr(knn, "CACHED", 100)
    for device in ("cpu", "cpu:0"):
        scores, rows = nearest(queries, gallery, 12, device=device)
        assert np.array_equal(scores, expected[0])
        assert np.array_equal(rows, expected[1])


def test_lengths_of_every_size():
    random = np.random.default_rng(0)
    gallery = unit(1, 300, 20) * 10.0 ** random.integers(-12, 12, (300, 1)).astype(np.float32)
    check(unit(2, 30, 20) * 10.0 ** random.integers(-12, 12, (30, 1)).astype(np.float32), gallery, 15)


def test_zero_vectors_tie():
    gallery = np.concatenate([np.zeros((50, 8), np.float32), unit(0, 5, 8)])
    check(np.zeros((2, 8), np.float32), gallery, 4)
    check(unit(1, 4, 8), gallery, 20)


def test_any_float_type_and_layout():
    queries, gallery = unit(0, 20, 32), unit(1, 64, 32)
    expected = nearest(queries.astype(np.float16).astype(np.float32), gallery, 5)
    for other in (queries.astype(np.float16), np.asfortranarray(queries.astype(np.float16).astype(np.float64))):
        assert np.array_equal(nearest(other, gallery, 5)[1], expected[1])


def test_empty_sides_and_small_gallery():
    empty, vectors = np.empty((0, 8), np.float32), unit(0, 3, 8)
    assert nearest(empty, vectors, 2)[1].shape == (0, 2)
    assert nearest(vectors, empty, 2)[1].shape == (3, 0)
    assert nearest(vectors, vectors, 10)[1].shape == (3, 3)


def test_refuses_what_has_no_order():
    vectors = unit(0, 4, 8)
    broken = vectors.copy()
    broken[2, 3] = np.nan
    with pytest.raises(UserError, match="gallery vector 2 has a NaN"):
        Gallery(broken)
    with pytest.raises(UserError, match="query vector 2 has a NaN"):
        nearest(broken, vectors, 2)
    with pytest.raises(UserError, match="overflow float32"):
        nearest(vectors * np.float32(1e30), vectors * np.float32(1e30), 2)
    with pytest.raises(UserError, match="queries have 7 numbers, the gallery 8"):
        nearest(vectors[:, :7], vectors, 2)
    with pytest.raises(UserError, match="must be a matrix"):
        nearest(vectors[0], vectors, 2)


# The verb


def write(path: Path, id_field: str, ids: list[object], vectors: np.ndarray) -> Path:
    with FeatureWriter(path, id_field) as writer:
        writer.write(ids, vectors)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    images = write(tmp_path / "i.jsonl", "image_id", list(range(100, 160)), unit(0, 60, 16))
    texts = write(tmp_path / "t.jsonl", "text_id", [f"句{i}" for i in range(25)], unit(1, 25, 16))
    return images, texts, tmp_path / "out" / "p.jsonl"


def run(images: Path, texts: Path, output: Path, *flags: str) -> int:
    return main(["topk", f"--image-feats={images}", "--text_feats", str(texts), "--output", str(output), *flags])


@pytest.mark.parametrize("flags", [[], ["--eval-batch-size", "7"]])
def test_predictions_both_ways(files, flags, capsys):
    images, texts, output = files
    assert run(images, texts, output, *flags) == 0
    _, rows = sorted_scores(unit(1, 25, 16), unit(0, 60, 16), 10)
    expected = [{"text_id": f"句{i}", "image_ids": (row + 100).tolist()} for i, row in enumerate(rows)]
    assert [json.loads(line) for line in output.read_text("utf-8").splitlines()] == expected
    assert "25 texts, among 60 images" in capsys.readouterr().out

    assert run(images, texts, output, *flags, "--direction", "i2t", "--top-k", "3") == 0
    _, rows = sorted_scores(unit(0, 60, 16), unit(1, 25, 16), 3)
    expected = [{"image_id": 100 + i, "text_ids": [f"句{j}" for j in row]} for i, row in enumerate(rows)]
    assert [json.loads(line) for line in output.read_text("utf-8").splitlines()] == expected


def test_more_queries_than_a_block(tmp_path):
    images = write(tmp_path / "i.jsonl", "image_id", list(range(30)), unit(0, 30, 4))
    vectors = unit(1, 9000, 4)
    texts = write(tmp_path / "t.jsonl", "text_id", list(range(9000)), vectors)
    assert run(images, texts, tmp_path / "p.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["text_id"] for row in rows] == list(range(9000))
    assert [row["image_ids"] for row in rows] == nearest(vectors, unit(0, 30, 4), 10)[1].tolist()


def test_gallery_smaller_than_k(files, capsys):
    images, texts, output = files
    assert run(images, texts, output, "--top-k", "100") == 0
    assert {len(json.loads(line)["image_ids"]) for line in output.read_text().splitlines()} == {60}
    assert "only 60 images, fewer than --top-k 100" in capsys.readouterr().out


def test_wrong_inputs_are_one_line_and_no_file(files, tmp_path, capsys):
    images, texts, output = files
    narrow = write(tmp_path / "narrow.jsonl", "text_id", [1], unit(0, 1, 15))
    broken = tmp_path / "broken.jsonl"
    broken.write_text(texts.read_text() + '{"text_id": "x", "feature": [1')
    for arguments, expected in (
        ((images, narrow, output), "narrow.jsonl: features of 15 numbers"),
        ((images, broken, output), "broken.jsonl:26: "),
        ((texts, images, output), "expected images: are --image-feats and --text-feats swapped?"),
        ((images, tmp_path / "none.jsonl", output), "none.jsonl: No such file"),
        ((images, tmp_path, output), "Is a directory"),
        ((images, texts, images), "would replace the features"),
        ((images, texts, output, "--top-k=0"), "must be 1 or more"),
        ((images, texts, output, "--eval-batch-size=0"), "must be 1 or more"),
    ):
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("cn-clip: error: ")
        assert error.count("\n") == 1
        assert expected in error
        assert not output.parent.exists() or list(output.parent.iterdir()) == []


def test_the_reference_finds_the_same(files, tmp_path):
    # Same files in; no ties in random vectors, so the lists must be equal.
    images, texts, output = files
    assert (ROOT / ".reference/.installed").exists(), "the reference is not installed: run make test"
    for direction, script in (("t2i", "make_topk_predictions"), ("i2t", "make_topk_predictions_tr")):
        assert run(images, texts, output, "--direction", direction) == 0
        theirs = tmp_path / f"{script}.jsonl"
        command = [sys.executable, ROOT / "benchmarks/reference_cpu.py", f"cn_clip.eval.{script}"]
        command += [f"--image-feats={images}", f"--text-feats={texts}", f"--output={theirs}"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
        ours = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
        assert [json.loads(line) for line in theirs.read_text("utf-8").splitlines()] == ours
