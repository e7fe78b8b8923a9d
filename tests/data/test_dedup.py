"""data dedup: the groups against a naive oracle, and the new dataset: clean, whole, and the old one untouched."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cn_clip.cli import main
from cn_clip.data.duplicates import Pictures, find_copies
from cn_clip.data.formats import read_images, read_texts, write_images, write_texts
from cn_clip.dedup import by_priority, cosine_pairs
from cn_clip.encoder import Encoder
from html_balance import Balance
from tiny import save_ours, tiny_model


def scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    spots = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


A, B, C, D = (scene(seed) for seed in range(4))
SMALL_A = saved(A.resize((60, 45), Image.Resampling.BICUBIC), "JPEG", quality=85)
TRAIN = {
    1: SMALL_A,  # a smaller copy of 2
    2: saved(A),
    3: saved(B),
    4: saved(B, "WEBP", quality=80),  # of 3, in test too
    5: saved(C),
    6: saved(C),  # the same file as 5
    7: saved(D),
    8: b"broken",
}
TEXTS = [
    (1, "甲", [1]), (2, "大甲", [2]), (3, "甲", [2]), (4, "乙", [3]), (5, "乙和丁", [4, 7]),
    (6, "丙", [5, 6]), (7, "丙二", [6]), (8, "无图", []), (9, "坏", [8]), (10, "丁", [7]),
]  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    add_split(folder, "train", TRAIN, TEXTS)
    add_split(
        folder, "test", {1: saved(B, "JPEG", quality=90), 2: saved(scene(9))}, [(1, "乙", [1]), (2, "戊", [2])]
    )
    return folder


def add_split(folder: Path, split: str, images: dict, texts: Iterable) -> None:
    write_images(folder / f"{split}_imgs.tsv", [(k, base64.b64encode(v)) for k, v in images.items()])
    write_texts(folder / f"{split}_texts.jsonl", texts)


def run(folder: Path, *more: object) -> list[dict]:
    """Groups of the report."""
    report = folder.parent / "report"
    assert main(["data", "dedup", str(folder), "--report", str(report), *map(str, more)]) == 0
    return [json.loads(line) for line in report.with_name("report.jsonl").read_text("utf-8").splitlines()]


def short(groups: list[dict]) -> list[tuple]:
    """(kept, copies) as "split id"."""
    name = "{split} {image_id}".format_map
    return sorted((name(group["kept"]), [name(copy) for copy in group["copies"]]) for group in groups)


def ids(folder: Path, split: str) -> list[str]:
    return [row.image_id for row in read_images(folder / f"{split}_imgs.tsv")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_by_content(dataset: Path) -> None:
    groups = run(dataset, "--by", "content")
    assert short(groups) == [("train 5", ["train 6"])]
    assert groups[0]["copies"][0] == {
        "split": "train", "image_id": 6, "line": 6, "distance": 0.0, "same_file": True,
    }  # fmt: skip


def test_by_phash_within_and_across(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = run(dataset)
    assert short(groups) == [
        ("test 1", ["train 3", "train 4"]),
        ("train 2", ["train 1"]),  # the larger one stays
        ("train 5", ["train 6"]),
    ]
    assert all(0 <= copy["distance"] <= 6 for group in groups for copy in group["copies"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[:3] == [
        ["split", "images", "unreadable", "copies", "of", "test", "of", "train"],
        ["test", "2", "0", "0", "0", "0"],
        ["train", "7", "1", "4", "2", "2"],
    ]


def test_keep_and_priority_and_across_only(dataset: Path) -> None:
    assert ("train 1", ["train 2"]) in short(run(dataset, "--keep", "first"))
    assert ("train 3", ["train 4", "test 1"]) in short(run(dataset, "--priority", "train"))
    assert short(run(dataset, "--across-only")) == [("test 1", ["train 3", "train 4"])]
    assert short(run(dataset, "--splits", "test")) == []


def test_strict_thresholds_find_only_files(dataset: Path) -> None:
    assert short(run(dataset, "--colour", 0, "--threshold", 0)) == [("train 5", ["train 6"])]


def test_new_dataset(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, out = contents(dataset), tmp_path / "clean"
    run(dataset, "--out", out)
    assert contents(dataset) == before
    assert sorted(path.name for path in out.iterdir()) == sorted(before)
    assert ids(out, "test") == ["1", "2"]
    assert ids(out, "train") == ["2", "5", "7", "8"]  # a picture that cannot be read is not judged
    kept = {row.image_id: row.base64 for row in read_images(out / "train_imgs.tsv")}
    assert all(base64.b64decode(kept[str(key)]) == TRAIN[key] for key in (2, 5, 7, 8))
    texts = [(text.text_id, text.text, text.image_ids) for text in read_texts(out / "train_texts.jsonl")]
    assert texts == [
        (2, "大甲", [2]), (3, "甲", [2]), (5, "乙和丁", [7]), (6, "丙", [5]), (7, "丙二", [5]),
        (8, "无图", []), (9, "坏", [8]), (10, "丁", [7]),
    ]  # fmt: skip
    assert (out / "test_texts.jsonl").read_bytes() == before["test_texts.jsonl"]
    assert "train: 4 images, 1 texts left without image, 1 repeated texts" in capsys.readouterr().out
    assert run(out) == []  # nothing is left to be found
    assert main(["data", "check", str(out), "--splits", "test"]) == 0


def test_other_splits_are_copied_as_they_are(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    run(dataset, "--splits", "train", "--out", out)
    assert (out / "test_imgs.tsv").read_bytes() == (dataset / "test_imgs.tsv").read_bytes()
    assert ids(out, "train") == ["2", "3", "5", "7", "8"]


def test_string_ids(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    add_split(folder, "train", {"a": saved(A), "07": saved(A), "7": saved(B)}, [("x", "甲", ["07", "7"])])
    groups = run(folder, "--by", "content", "--out", tmp_path / "clean")
    assert groups[0]["copies"][0]["image_id"] == "07"
    assert [text.image_ids for text in read_texts(tmp_path / "clean/train_texts.jsonl")] == [["a", "7"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "data"], "is the dataset itself"),
        (["--out", "full"], "exists already"),
        (["--by", "content", "--threshold", "1"], "equal bytes need none"),
        (["--threshold", "2.5"], "whole number from 0 to 16"),
        (["--threshold", "17"], "whole number from 0 to 16"),
        (["--by", "embedding", "--threshold", "1.5"], "least cosine"),
        (["--priority", "valid"], "no split 'valid'"),
        (["--splits", "valid"], "no split 'valid'"),
    ],
)
def test_refusals(dataset: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(dataset.parent)
    (dataset.parent / "full").mkdir()
    (dataset.parent / "full" / "mine").touch()
    assert main(["data", "dedup", str(dataset), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (dataset.parent / "duplicates.jsonl").exists()


def test_id_that_stands_twice_is_refused(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (dataset / "train_imgs.tsv").open("ab") as file:
        file.write(b"2\t" + base64.b64encode(saved(D)) + b"\n")
    assert main(["data", "dedup", str(dataset)]) == 1
    assert "train_imgs.tsv:9: image id 2 stands at line 2 already" in capsys.readouterr().err


def test_page(dataset: Path) -> None:
    run(dataset)
    text = (dataset.parent / "report.html").read_text("utf-8")
    checker = Balance()
    checker.feed(text)
    assert checker.open == []
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count('class="group"') == 3
    assert text.count("picture kept") == 3
    assert text.count("<img") == 7
    assert text.index("test 1<") < text.index("train 2<")  # groups over several splits first
    run(dataset, "--shown", 1)
    assert (dataset.parent / "report.html").read_text("utf-8").count('class="group"') == 1


# --- by embedding


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_ours(tiny_model(), tmp_path_factory.mktemp("model") / "tiny.pt")


def test_by_embedding(dataset: Path, checkpoint: Path) -> None:
    arguments = ["--by", "embedding", "--model", checkpoint, "--device", "cpu", "--batch-size", 3]
    groups = run(dataset, *arguments, "--threshold", 0.9999)
    encoder = Encoder.load(str(checkpoint), device="cpu")
    files = {f"train {key}": data for key, data in TRAIN.items() if key != 8}
    files |= {
        f"test {row.image_id}": base64.b64decode(row.base64) for row in read_images(dataset / "test_imgs.tsv")
    }
    vectors = dict(zip(files, encoder.encode_images(list(files.values())), strict=True))
    assert ("train 5", ["train 6"]) in short(groups)
    near = {(a, b) for a in files for b in files if vectors[a] @ vectors[b] >= 0.9999}
    for group in groups:
        kept = "{split} {image_id}".format_map(group["kept"])
        for copy in group["copies"]:
            name = "{split} {image_id}".format_map(copy)
            assert (kept, name) in near
            assert copy["distance"] == pytest.approx(max(0, 1 - vectors[kept] @ vectors[name]), abs=2e-6)
    gone = {name for _, copies in short(groups) for name in copies}
    stay = [name for name in files if name not in gone]
    assert all((a, b) not in near for a in stay for b in stay if a != b)


@pytest.mark.parametrize("blocks", [(1024, 8192), (7, 11), (1, 3)])
def test_cosine_pairs_equal_the_whole_matrix(blocks: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr("cn_clip.dedup._ROWS", blocks[0])
    monkeypatch.setattr("cn_clip.dedup._COLUMNS", blocks[1])
    random = np.random.default_rng(0)
    vectors = random.standard_normal((40, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = {}
    for left, right, distance in cosine_pairs(vectors, 0.7):
        for a, b, d in zip(left.tolist(), right.tolist(), distance.tolist(), strict=True):
            assert (a, b) not in found
            found[a, b] = d
    whole = vectors @ vectors.T
    expected = {(a, b): 1 - whole[a, b] for a in range(40) for b in range(a + 1, 40) if whole[a, b] >= 0.7}
    assert found.keys() == expected.keys()
    assert expected
    assert all(found[pair] == pytest.approx(expected[pair], abs=1e-6) for pair in found)


# --- who stays


def test_order_of_splits() -> None:
    names = ["train", "valid", "newartist", "test"]
    assert by_priority(names, "") == ["test", "newartist", "valid", "train"]
    assert by_priority(names, "valid, train") == ["valid", "train", "test", "newartist"]


def points(rows: list[tuple[int, int, int]], splits: int) -> Pictures:
    """Pictures on a line: (split, place, bytes); the place is the unit, equal places are equal files."""
    pictures = Pictures([f"s{i}" for i in range(splits)])
    units: dict[int, int] = {}
    for number, (split, place, size) in enumerate(sorted(rows, key=lambda row: row[0])):
        unit = units.setdefault(place, len(units))
        if unit == len(pictures.first):
            pictures.first.append(number)
            pictures.area.append(1)
            pictures.size.append(size)
            pictures.more.append(place)
        pictures.split.append(split)
        pictures.image_id.append(str(number))
        pictures.line.append(number + 1)
        pictures.unit.append(unit)
    return pictures


def near(pictures: Pictures, radius: int) -> list:
    places = np.array(pictures.more)
    left, right = np.nonzero(np.triu(np.abs(places[:, None] - places[None]) <= radius, 1))
    return [(left, right, np.abs(places[left] - places[right]).astype(float))]


ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=40)


@settings(deadline=None)
@given(ROWS, st.integers(0, 4), st.booleans(), st.sampled_from(["largest", "first"]))
def test_who_stays_against_plain_words(rows: list, radius: int, across_only: bool, keep: str) -> None:
    pictures = points(rows, 3)
    order = pictures.order(keep).tolist()
    groups = find_copies(pictures, np.array(order), near(pictures, radius), across_only)
    place = [pictures.more[unit] for unit in pictures.unit]
    stay: list[int] = []
    expected: dict[int, int] = {}
    for x in order:
        rivals = [y for y in stay if abs(place[x] - place[y]) <= radius]
        rivals = [y for y in rivals if not across_only or pictures.split[x] != pictures.split[y]]
        if rivals:
            expected[x] = min(rivals, key=lambda y: (abs(place[x] - place[y]), order.index(y)))
        else:
            stay.append(x)
    assert {copy.picture: kept for kept, copies in groups.items() for copy in copies} == expected
    for kept, copies in groups.items():
        assert all(copy.distance == abs(place[kept] - place[copy.picture]) for copy in copies)
    assert [pictures.split[x] for x in order] == sorted(pictures.split)


def test_a_chain_is_not_one_group() -> None:
    pictures = points([(0, 0, 1), (0, 2, 1), (0, 4, 1), (0, 6, 1)], 1)
    groups = find_copies(pictures, pictures.order("first"), near(pictures, 2))
    assert {kept: [copy.picture for copy in copies] for kept, copies in groups.items()} == {0: [1], 2: [3]}


def test_a_copy_that_is_gone_protects_nothing() -> None:
    # test: 0 stays, 2 goes; train: 4 is near to 2 alone, so it stays unless test keeps 2
    rows = [(0, 0, 1), (0, 2, 1), (1, 4, 1)]
    pictures = points(rows, 2)
    both = find_copies(pictures, pictures.order("first"), near(pictures, 2))
    across = find_copies(pictures, pictures.order("first"), near(pictures, 2), across_only=True)
    assert {kept: [copy.picture for copy in copies] for kept, copies in both.items()} == {0: [1]}
    assert {kept: [copy.picture for copy in copies] for kept, copies in across.items()} == {1: [2]}
