"""data stats: every number against a plain count of the same lines, and a page that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cn_clip.cli import main
from cn_clip.data.formats import read_texts, write_images, write_texts
from cn_clip.data.stats_numbers import percentiles, spread
from cn_clip.data.stats_page import bars
from cn_clip.data.text_stats import split_at_cut
from cn_clip.tokenizer import default_tokenizer
from html_balance import Balance

EMOJI = Path(__file__).resolve().parents[2] / "datasets" / "emoji_cn"


def file_of(seed: int, size: tuple[int, int] = (9, 8), format: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format=format)
    return buffer.getvalue()


LONG = "一只小猫" * 20  # 82 pieces with [CLS] and [SEP]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two splits with something of everything."""
    folder = tmp_path / "小 & <data>"
    shared = file_of(1)
    train = {
        1: shared, 2: shared, 3: file_of(3, (40, 10), "JPEG"), 4: file_of(4, (100, 90), "PNG", "P"),
        5: b"no picture", 6: file_of(6, (5, 5), "WEBP"), 7: b"",
    }  # fmt: skip
    write_images(folder / "train_imgs.tsv", [(k, base64.b64encode(v)) for k, v in train.items()])
    rows = [
        (1, "一只猫", [1, 2]), (2, "一只猫", [3]), (3, LONG, [3]), (4, LONG + "b", [3, 4]), (5, "𠮷是龘 abc", [4]),
        (6, "没有图片", []), (7, " ", [4]), (8, "缺图", [99]), (9, "<b>一只猫</b>", [6]), (10, "一只猫", [3]),
    ]  # fmt: skip
    write_texts(folder / "train_texts.jsonl", rows)
    with (folder / "train_texts.jsonl").open("a") as file:
        file.write('{"text_id": 11\n')
    write_images(folder / "test_imgs.tsv", [(1, base64.b64encode(shared)), (2, base64.b64encode(file_of(9)))])
    write_texts(folder / "test_texts.jsonl", [(1, "狗", [1]), (2, "鸟", [2])])
    return folder


def run(folder: Path, tmp_path: Path, *more: str) -> dict:
    assert main(["data", "stats", str(folder), "--json", str(tmp_path / "stats.json"), *more]) == 0
    return json.loads((tmp_path / "stats.json").read_text("utf-8"))


def test_counts(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(dataset, tmp_path)
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["images"], train["unreadable"]) == (7, 2)
    assert train["problems"] == {"undecodable image": 1, "zero-byte image": 1}
    assert "train_imgs.tsv:5: image 5" in train["problem_examples"]["undecodable image"]
    assert train["formats"] == {"PNG": 3, "JPEG": 1, "WEBP": 1}
    assert train["modes"] == {"RGB": 4, "P": 1}
    assert train["unusual"] == {"palette": 1}
    assert (train["width"]["p0"], train["width"]["p50"], train["width"]["p100"]) == (5, 9, 100)
    assert train["aspect"]["p100"] == 4
    assert (train["texts"], train["broken_texts"], train["pairs"]) == (10, 1, 11)
    assert (train["unlabelled_texts"], train["ids_without_image"], train["empty_texts"]) == (1, 1, 1)
    assert train["images_without_text"] == 2  # 5 and 7, which cannot be read either
    assert train["images_per_text"]["histogram"] == {"0": 1, "1": 7, "2": 2}
    assert train["texts_per_image"]["histogram"] == {"0": 2, "1": 3, "3": 1, "4": 1}
    assert train["truncated"] == 2
    assert [(row["text_id"], row["pieces"]) for row in train["longest"]] == [(4, 83), (3, 82)]
    for row in train["longest"]:
        assert row["kept"] == LONG[:50]
        assert row["kept"] + row["cut"] in (LONG, LONG + "b")
    assert train["texts_with_unknown"] == 1
    assert set(train["unknown_characters"]) <= {"𠮷", "龘"}
    assert train["repeated_texts"] == 2
    assert train["most_repeated"] == [{"text": "一只猫", "count": 3}]
    assert found["duplicate_groups"] == 1
    assert [(row["split"], row["image_id"]) for row in found["largest_duplicate_groups"][0]] == [
        ("train", "1"), ("train", "2"), ("test", "1"),
    ]  # fmt: skip
    assert (train["same_file_within_split"], train["same_file_in_other_splits"]) == (1, 2)
    assert (test["same_file_within_split"], test["same_file_in_other_splits"]) == (0, 1)
    printed = capsys.readouterr().out
    assert "train: 1 × zero-byte image" in printed
    row = next(line for line in printed.splitlines() if line.startswith("texts that are cut"))
    assert row.split()[-2:] == ["2", "0"]


def test_context_length_says_what_is_cut(dataset: Path, tmp_path: Path) -> None:
    assert run(dataset, tmp_path, "--context-length", "82")["splits"]["train"]["truncated"] == 1
    assert run(dataset, tmp_path, "--context-length", "4")["splits"]["train"]["truncated"] >= 6
    assert main(["data", "stats", str(dataset), "--context-length", "2"]) == 1


def test_one_split_and_one_that_is_not_there(dataset: Path, tmp_path: Path) -> None:
    assert list(run(dataset, tmp_path, "--splits", "test")["splits"]) == ["test"]
    assert main(["data", "stats", str(dataset), "--splits", "valid"]) == 1


def test_half_a_split_and_an_empty_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path / "train_texts.jsonl", [(1, "猫", [])])
    write_images(tmp_path / "test_imgs.tsv", [])
    page = tmp_path / "page.html"
    found = run(tmp_path, tmp_path, "--html", str(page))
    assert found["splits"]["train"]["images"] == found["splits"]["test"]["texts"] == 0
    assert "<h2>test</h2>" in page.read_text("utf-8")


def test_page_is_whole_and_self_contained(dataset: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    run(dataset, tmp_path, "--html", str(page))
    text = page.read_text("utf-8")
    checker = Balance()
    checker.feed(text)
    assert checker.open == []
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "http" not in text
    assert "小 &amp; &lt;data&gt;" in text
    assert "&lt;b&gt;一只猫&lt;/b&gt;" in text
    assert f'{LONG[:50]}<span class="cut">{LONG[50:]}</span>' in text
    sources = re.findall(r'src="data:image/webp;base64,([^"]+)"', text)
    assert len(sources) >= 12
    for source in set(sources):
        with Image.open(BytesIO(base64.b64decode(source))) as image:
            image.load()
            assert max(image.size) <= 128
    assert len(page.read_bytes()) < 100_000


def test_page_is_the_same_each_time(dataset: Path, tmp_path: Path) -> None:
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page, threads in zip(pages, ("1", "4"), strict=True):
        run(dataset, tmp_path, "--html", str(page), "--threads", threads)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_sample_dataset_against_a_plain_count(tmp_path: Path) -> None:
    found = run(EMOJI, tmp_path, "--splits", "train", "--html", str(tmp_path / "page.html"))["splits"]["train"]
    texts = list(read_texts(EMOJI / "train_texts.jsonl"))
    lengths = default_tokenizer().encode([text.text for text in texts], None).lengths
    assert (found["texts"], found["pairs"]) == (len(texts), sum(len(text.image_ids) for text in texts))
    assert found["token_length"]["mean"] == pytest.approx(mean(lengths.tolist()), abs=1e-4)
    assert {int(k): v for k, v in found["token_length"]["histogram"].items()} == Counter(lengths.tolist())
    per_image = Counter(image_id for text in texts for image_id in text.image_ids)
    assert found["texts_per_image"]["p100"] == max(per_image.values())
    assert found["texts_per_image"]["mean"] == pytest.approx(mean(per_image.values()), abs=1e-4)
    assert found["formats"] == {"WEBP": found["images"]}


@given(st.text(alphabet="猫a b,。x龘", max_size=120), st.integers(3, 60))
def test_cut_is_where_the_tokenizer_cuts(text: str, context_length: int) -> None:
    tokenizer = default_tokenizer()
    kept, cut = split_at_cut(text, context_length)
    assert kept + cut == text
    tokens = tokenizer.encode([text], context_length)
    assert bool(cut) == bool(tokens.truncated[0])
    pieces = tokenizer.encode([kept], None).lengths[0]
    assert pieces <= context_length
    if cut:
        assert tokenizer.encode([kept + cut[0]], None).lengths[0] > context_length


@given(st.lists(st.integers(0, 30), min_size=1))
def test_spread_and_percentiles_against_the_sorted_list(values: list[int]) -> None:
    found, plain = spread(Counter(values)), sorted(values)
    assert found["mean"] == pytest.approx(mean(values), abs=1e-4)
    for p in (0, 1, 5, 25, 50, 75, 95, 99, 100):
        expected = plain[max(1, -(-p * len(plain) // 100)) - 1]
        assert found[f"p{p}"] == expected == percentiles(np.array(values))[f"p{p}"]


@given(st.lists(st.floats(0.001, 1e6), min_size=1), st.integers(4, 30))
def test_bars_hold_every_value(values: list[float], most: int) -> None:
    found = bars(np.array(values), np.ones(len(values)), most)
    assert sum(count for _, count in found) == len(values)
    assert len(found) <= most
    lows = [float(label.rstrip("+")) for label, _ in found]
    assert lows == sorted(lows)
    assert lows[0] <= min(values) * (1 + 1e-6)
