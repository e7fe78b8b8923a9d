"""Feature files: bit-equal round trips, the reference's form, and one line for each wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cn_clip.errors import UserError
from cn_clip.eval.features import FeatureWriter, iter_features, read_features

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@settings(max_examples=60, deadline=None)
@given(vectors=hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=FLOAT32))
def test_any_float32_reads_back_bit_equal(tmp_path_factory, vectors):
    path = tmp_path_factory.mktemp("features") / "f.jsonl"
    with FeatureWriter(path, "image_id") as writer:
        writer.write(list(range(len(vectors))), vectors)
    read = read_features(path).vectors
    assert read.dtype == np.float32
    assert np.array_equal(read.view(np.uint32), vectors.view(np.uint32))


def test_random_unit_vectors_in_blocks(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((1000, 33)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"图{i}" for i in range(1000)]
    with FeatureWriter(tmp_path / "f.jsonl", "text_id") as writer:
        for start in range(0, 1000, 300):
            writer.write(ids[start : start + 300], vectors[start : start + 300])
    blocks = list(iter_features(tmp_path / "f.jsonl", rows=256))
    assert [len(block.ids) for block in blocks] == [256, 256, 256, 232]
    whole = read_features(tmp_path / "f.jsonl", "text_id")
    assert whole.ids == ids == [key for block in blocks for key in block.ids]
    assert whole.id_field == "text_id"
    assert np.array_equal(whole.vectors, vectors)
    assert np.array_equal(np.concatenate([block.vectors for block in blocks]), vectors)


def test_file_spans_several_blocks(tmp_path):
    vectors = np.arange(3 * 10_000, dtype=np.float32).reshape(10_000, 3)
    with FeatureWriter(tmp_path / "f.jsonl", "image_id") as writer:
        writer.write(range(10_000), vectors)
    read = read_features(tmp_path / "f.jsonl")
    assert read.ids == list(range(10_000))
    assert np.array_equal(read.vectors, vectors)


def test_reads_what_the_reference_writes(tmp_path):
    # json.dumps of Python floats (17 digits), as its extract_features.py does
    vector = np.random.default_rng(1).standard_normal(512).astype(np.float32)
    path = write(tmp_path / "f.jsonl", {"image_id": 7, "feature": vector.tolist()})
    assert np.array_equal(read_features(path).vectors[0], vector)


def test_writes_what_the_reference_reads(tmp_path):
    vectors = np.random.default_rng(2).standard_normal((3, 512)).astype(np.float32)
    with FeatureWriter(tmp_path / "f.jsonl", "text_id") as writer:
        writer.write([3, 1, 2], vectors)
    rows = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["text_id", "feature"]] * 3
    assert [row["text_id"] for row in rows] == [3, 1, 2]
    assert np.array_equal(np.array([row["feature"] for row in rows], dtype=np.float32), vectors)


def test_float16_and_strided_features_are_written_as_their_float32(tmp_path):
    vectors = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float16)
    with FeatureWriter(tmp_path / "f.jsonl", "image_id") as writer:
        writer.write([1, 2], vectors[::2, ::3])
    assert np.array_equal(read_features(tmp_path / "f.jsonl").vectors, vectors[::2, ::3].astype(np.float32))


GOOD = {"image_id": 1, "feature": [0.5, 1.0]}
WRONG_LINES = {
    "not JSON": ('{"image_id": 2, "feature": [0.1, 0.2', "JSON"),
    "not an object": ("[1, 2]", "JSON object"),
    "NaN": ('{"image_id": 2, "feature": [NaN, 0.2]}', "NaN"),
    "infinity": ('{"image_id": 2, "feature": [0.1, -Infinity]}', "infinity"),
    "null": ({"image_id": 2, "feature": [None, 0.2]}, "finite numbers"),
    "a string": ({"image_id": 2, "feature": ["0.1", 0.2]}, "'0.1'"),
    "beyond float32": ({"image_id": 2, "feature": [1e39, 0.2]}, "beyond float32"),
    "narrower": ({"image_id": 2, "feature": [0.1]}, "1 numbers, the first line has 2"),
    "wider": ({"image_id": 2, "feature": [0.1, 0.2, 0.3]}, "3 numbers, the first line has 2"),
    "not a list": ({"image_id": 2, "feature": 0.5}, "list of numbers"),
    "an object": ({"image_id": 2, "feature": {"a": 1, "b": 2}}, "list of numbers"),
    "no feature": ({"image_id": 2}, "'feature' is missing"),
    "no id": ({"feature": [0.1, 0.2]}, "'image_id' is missing"),
    "the other id": ({"text_id": 2, "feature": [0.1, 0.2]}, "'image_id' is missing"),
    "id twice": ({"image_id": 1, "feature": [0.1, 0.2]}, "earlier line"),
    "another id type": ({"image_id": "2", "feature": [0.1, 0.2]}, "one type"),
    "id a decimal": ({"image_id": 2.5, "feature": [0.1, 0.2]}, "integer or a string"),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_wrong_line_is_named(tmp_path, name):
    line, expected = WRONG_LINES[name]
    path = write(tmp_path / "f.jsonl", GOOD, line, {"image_id": 3, "feature": [0.5, 1.0]})
    with pytest.raises(UserError) as caught:
        read_features(path)
    assert f"{path}:2: " in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["1e400", "-1e400"])
def test_number_beyond_float64_is_an_error(tmp_path, value):
    path = write(tmp_path / "f.jsonl", GOOD, f'{{"image_id": 2, "feature": [{value}, 0.2]}}')
    with pytest.raises(UserError, match=":2: "):
        read_features(path)


def test_wrong_first_lines(tmp_path):
    for row, expected in (
        ({"id": 1, "feature": [1]}, "'image_id' is missing"),
        ({"image_id": 1, "text_id": 2, "feature": [1]}, "both image_id and text_id"),
        ({"image_id": 1, "feature": []}, "not an empty one"),
        ({"image_id": 1}, "'feature' is missing"),
    ):
        path = write(tmp_path / "f.jsonl", row)
        with pytest.raises(UserError, match=f":1: .*{expected}"):
            read_features(path)
    with pytest.raises(UserError, match=r":1: these are features of images, expected texts: .*swapped"):
        read_features(write(tmp_path / "f.jsonl", GOOD), "text_id")


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_empty_file(tmp_path, content):
    (tmp_path / "f.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"f\.jsonl: there are no features"):
        read_features(tmp_path / "f.jsonl")


def test_blank_lines_count_as_lines(tmp_path):
    path = write(tmp_path / "f.jsonl", "", GOOD, "", {"image_id": 1, "feature": [0, 0]})
    with pytest.raises(UserError, match=":4: "):
        read_features(path)


@pytest.mark.parametrize(
    ("ids", "features", "expected"),
    [
        ([1, 2], [[0.5, 0.5], [np.nan, 0.5]], "image_id 2 has a NaN"),
        ([1, 2], [[np.inf, 0.5], [0.5, 0.5]], "image_id 1 has a NaN or an infinity"),
        ([1], [[0.5, 0.5], [0.5, 0.5]], "1 ids for features of shape"),
        ([1, "2"], [[0.5, 0.5], [0.5, 0.5]], "one type"),
        ([1], [[0.5, 0.5, 0.5]], "3 numbers after ones of 2"),
    ],
)
def test_writer_refuses_and_leaves_nothing(tmp_path, ids, features, expected):
    def write_both() -> None:
        with FeatureWriter(tmp_path / "f.jsonl", "image_id") as writer:
            writer.write([0], np.zeros((1, 2), np.float32))
            writer.write(ids, np.array(features, np.float32))

    with pytest.raises(UserError, match=expected):
        write_both()
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writer_keeps_the_old_file(tmp_path):
    path = write(tmp_path / "f.jsonl", GOOD)

    def interrupted() -> None:
        with FeatureWriter(path, "image_id") as writer:
            writer.write([5], np.zeros((1, 2), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_features(path).ids == [1]
    assert list(tmp_path.iterdir()) == [path]
