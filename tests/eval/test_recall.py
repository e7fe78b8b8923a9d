"""Recall against a naive count, against the reference's own scorer, and one line for each wrong input."""

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
from cn_clip.eval.features import FeatureWriter
from cn_clip.eval.recall import retrieval_recall

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, rows: list) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# On arrays


def naive(queries: np.ndarray, gallery: np.ndarray, right: dict[int, set[int]], ks: tuple[int, ...]) -> dict:
    """One query at a time: sort the whole gallery, look at the first k."""
    result = {}
    for k in ks:
        hits = 0
        for query, rows in right.items():
            ranked = sorted(range(len(gallery)), key=lambda j: (-float(queries[query] @ gallery[j]), j))
            hits += any(row in rows for row in ranked[:k])
        result[f"r{k}"] = 100 * hits / len(right)
    return {"mean_recall": sum(result.values()) / len(ks), **result}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_retrieval_recall_counts_every_right_pair(data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    images = random.integers(-2, 3, (data.draw(st.integers(1, 30)), 4)).astype(np.float32)
    texts = random.integers(-2, 3, (data.draw(st.integers(1, 30)), 4)).astype(np.float32)
    pairs = [
        (int(random.integers(len(texts))), int(random.integers(len(images))))
        for _ in range(data.draw(st.integers(1, 40)))
    ]
    ks = data.draw(st.sampled_from([(1, 5, 10), (1,), (2, 3)]))
    found = retrieval_recall(images, texts, pairs, ks=ks, block=data.draw(st.integers(1, 20)))
    images_of: dict[int, set[int]] = {}
    texts_of: dict[int, set[int]] = {}
    for text, image in pairs:
        images_of.setdefault(text, set()).add(image)
        texts_of.setdefault(image, set()).add(text)
    assert found["t2i"] == pytest.approx(naive(texts, images, images_of, ks))
    assert found["i2t"] == pytest.approx(naive(images, texts, texts_of, ks))


def test_retrieval_recall_by_hand():
    # Three pictures; text 0 means picture 0, texts 1 and 2 both mean picture 1, nothing is said of picture 2.
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0.5, 0], [1, 0.5, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    found = retrieval_recall(images, texts, np.array([[0, 0], [1, 1], [2, 1]]), ks=(1, 2))
    assert found["t2i"] == pytest.approx({"mean_recall": 250 / 3, "r1": 200 / 3, "r2": 100})
    assert found["i2t"] == pytest.approx({"mean_recall": 100, "r1": 100, "r2": 100})


def test_retrieval_recall_refuses_pairs_that_are_not():
    vectors = np.eye(3, dtype=np.float32)
    for pairs in ([(0, 3)], [(3, 0)], [(-1, 0)]):
        with pytest.raises(UserError, match="beyond the 3 texts and 3 images"):
            retrieval_recall(vectors, vectors, pairs)
    with pytest.raises(UserError, match="at least one right pair"):
        retrieval_recall(vectors, vectors, [])


# The verb

TEXTS = [{"text_id": i, "text": f"句子{i}", "image_ids": [i, i + 100]} for i in range(20)]
PREDICTIONS = [{"text_id": i, "image_ids": [(i + j) % 20 + 100 * (i % 3) for j in range(10)]} for i in range(20)]


def run(tmp_path: Path, annotations: list, predictions: list, *flags: str) -> tuple[int, dict]:
    output = tmp_path / "output.json"
    status = main(
        [
            "recall",
            str(write(tmp_path / "a.jsonl", annotations)),
            str(write(tmp_path / "p.jsonl", predictions)),
            str(output),
            *flags,
        ]
    )
    return status, json.loads(output.read_text("utf-8"))


def reference(script: str, *files: Path) -> dict:
    assert (ROOT / ".reference/.installed").exists(), "the reference is not installed: run make test"
    command = [sys.executable, ROOT / f".reference/cn_clip/eval/{script}.py", *files]  # it needs NumPy alone
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    return json.loads(files[-1].read_text("utf-8"))


def test_from_features_to_the_reference_scorer_both_ways(tmp_path, capsys):
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((40, 8)), random.standard_normal((97, 8))
    picture_of = random.integers(0, 40, 97)
    texts += 1.2 * images[picture_of]
    for name, id_field, vectors, first in (("i", "image_id", images, 1000), ("t", "text_id", texts, 0)):
        with FeatureWriter(tmp_path / f"{name}.jsonl", id_field) as writer:
            writer.write(range(first, first + len(vectors)), vectors)
    rows = [
        {"text_id": i, "text": "字", "image_ids": [1000 + int(p), 1000 + (int(p) + i) % 40]}
        for i, p in enumerate(picture_of)
    ]
    annotations = write(tmp_path / "a.jsonl", rows)
    assert main(["data", "invert", "--input", str(annotations)]) == 0
    for direction, script, truth in (
        ("t2i", "evaluation", annotations),
        ("i2t", "evaluation_tr", tmp_path / "a.tr.jsonl"),
    ):
        predictions, ours, theirs = (tmp_path / f"{direction}{suffix}" for suffix in (".jsonl", ".ours", ".ref"))
        features = ["--image-feats", str(tmp_path / "i.jsonl"), "--text-feats", str(tmp_path / "t.jsonl")]
        assert main(["topk", *features, "--output", str(predictions), "--direction", direction]) == 0
        assert main(["recall", str(truth), str(predictions), str(ours)]) == 0
        expected = reference(script, truth, predictions, theirs)
        result = json.loads(ours.read_text())
        assert result == expected  # to the last digit
        assert 0 < result["scoreJson"]["r1"] < result["scoreJson"]["r10"] < 100
        assert f"{result['scoreJson']['r5']:.2f}" in capsys.readouterr().out


def test_result_by_hand(tmp_path, capsys):
    status, result = run(tmp_path, TEXTS, PREDICTIONS, "--k", "1", "3")
    # Predictions start at i + 100·(i mod 3): right at once for i mod 3 in {0, 1}, never for 2 (200 and more).
    share = 100 * 14 / 20
    assert (status, list(result)) == (0, ["success", "score", "scoreJson"])
    assert result["scoreJson"] == pytest.approx({"score": share, "mean_recall": share, "r1": share, "r3": share})
    out = capsys.readouterr().out
    assert "text to image, 20 queries" in out
    assert "R@3          70.00" in out


def test_ids_compare_as_strings_and_directions_are_read(tmp_path, capsys):
    annotations = [{"image_id": i, "text_ids": [i, 7]} for i in range(4)]
    predictions = [{"image_id": str(i), "text_ids": ["0" if i < 2 else "句", "9"]} for i in range(3)]
    predictions.append({"image_id": "3", "text_ids": ["7"]})
    status, result = run(tmp_path, annotations, predictions, "--k", "1")
    assert (status, result["score"]) == (0, 50)
    assert "image to text, 4 queries" in capsys.readouterr().out


def test_unlabelled_queries(tmp_path, capsys):
    texts = [*TEXTS, {"text_id": 77, "text": "无", "image_ids": []}, {"text_id": 78, "text": "", "image_ids": []}]
    status, result = run(tmp_path, texts, PREDICTIONS)
    assert (status, result["success"]) == (1, False)
    assert "a.jsonl:21: text_id 77 has no image_ids (nor have 1 other queries)" in capsys.readouterr().err
    more = [*PREDICTIONS, {"text_id": 77, "image_ids": [1]}, {"text_id": 99, "image_ids": []}]
    status, result = run(tmp_path, texts, more, "--skip-unlabelled")
    assert (status, result["scoreJson"]["r10"]) == (
        0,
        pytest.approx(run(tmp_path, TEXTS, more)[1]["scoreJson"]["r10"]),
    )
    out = capsys.readouterr().out
    assert "left out: 2 queries without a right answer" in out
    assert "left out: predictions of 1 queries" in out


def test_reference_counts_unlabelled_queries_as_misses(tmp_path):
    # The difference that `--skip-unlabelled` makes, as the help says.
    texts = [*TEXTS[:10], {"text_id": 77, "text": "", "image_ids": []}]
    predictions = [*PREDICTIONS[:10], {"text_id": 77, "image_ids": list(range(10))}]
    _, ours = run(tmp_path, texts, predictions, "--skip-unlabelled")
    theirs = reference("evaluation", tmp_path / "a.jsonl", tmp_path / "p.jsonl", tmp_path / "r.json")
    assert ours["scoreJson"]["r1"] * 10 == pytest.approx(theirs["scoreJson"]["r1"] * 11)


WRONG = {
    "broken line": (TEXTS, [*PREDICTIONS, "{"], [], "p.jsonl:21: not JSON"),
    "broken annotations": ([*TEXTS, "[]"], PREDICTIONS, [], "a.jsonl:21: expected a JSON object"),
    "no fields": ([{"text": "x"}], PREDICTIONS, [], "a.jsonl:1: expected text_id and image_ids"),
    "missing field": (TEXTS, [*PREDICTIONS, {"text_id": 20}], [], "p.jsonl:21: field 'image_ids' is missing"),
    "not a list": (TEXTS, [{"text_id": 0, "image_ids": 7}], [], "p.jsonl:1: image_ids must be a list"),
    "not an id": (TEXTS, [{"text_id": 0, "image_ids": [1.5]}], [], "p.jsonl:1: an id in image_ids must be"),
    "too few": (TEXTS, PREDICTIONS, ["--k", "11"], "text_id 0 has 10 image_ids, and recall@11 needs 11"),
    "twice": (TEXTS, [{"text_id": 0, "image_ids": [1, 2, 1]}], ["--k", "2"], "text_id 0 has 1 twice"),
    "query twice": (TEXTS, PREDICTIONS + PREDICTIONS[:1], [], "p.jsonl:21: text_id 0 stands on an earlier line"),
    "truth twice": (TEXTS + TEXTS[:1], PREDICTIONS, [], "a.jsonl:21: text_id 0 stands on an earlier line"),
    "missing": (TEXTS, PREDICTIONS[7:], [], "7 queries have no prediction: text_id 0, 1, 2, 3, 4, …"),
    "other way": (TEXTS, [{"image_id": 1, "text_ids": [1]}], [], "p.jsonl:1: image_id with text_ids, but"),
    "empty": (TEXTS, [], [], "p.jsonl: there are no queries"),
    "empty truth": ([], PREDICTIONS, [], "a.jsonl: there are no queries"),
    "no truth": (
        [{"text_id": 1, "image_ids": []}],
        PREDICTIONS,
        ["--skip-unlabelled"],
        "no query has a right answer",
    ),
    "k of 0": (TEXTS, PREDICTIONS, ["--k", "0"], "--k takes numbers of 1 or more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(tmp_path, capsys, name):
    annotations, predictions, flags, expected = WRONG[name]
    status, result = run(tmp_path, annotations, predictions, *flags)
    error = capsys.readouterr().err
    assert status == 1
    assert error.startswith("cn-clip: error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert list(result) == ["errorDetail", "errorMsg", "score", "scoreJson", "success"]
    assert expected in result["errorMsg"] == result["errorDetail"]
    assert (result["score"], result["scoreJson"], result["success"]) == (0, {}, False)


def test_output_over_an_input_is_refused(tmp_path, capsys):
    annotations, predictions = write(tmp_path / "a.jsonl", TEXTS), write(tmp_path / "p.jsonl", PREDICTIONS)
    before = annotations.read_bytes()
    assert main(["recall", str(annotations), str(predictions), str(annotations)]) == 1
    assert "would replace an input" in capsys.readouterr().err
    assert annotations.read_bytes() == before


def test_missing_file_in_a_real_process(tmp_path):
    predictions, output = write(tmp_path / "p.jsonl", PREDICTIONS), tmp_path / "o.json"
    command = [sys.executable, "-m", "cn_clip", "recall", tmp_path / "none.jsonl", predictions, output]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"cn-clip: error: {tmp_path / 'none.jsonl'}: No such file or directory\n"
    assert json.loads(output.read_text())["errorMsg"].endswith("none.jsonl: No such file or directory")
