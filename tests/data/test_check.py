"""data check: every kind of problem with its file and line, what is no problem, and the exit status."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cn_clip.cli import main
from cn_clip.data.formats import write_images, write_texts
from cn_clip.tokenizer import default_tokenizer


def encoded(seed: int = 0, format: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format=format, **options)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A valid PNG of 100 megapixels in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width, height = 10_000, 10_000
    pixels = zlib.compress(bytes((width // 8 + 1) * height), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tsv(folder: Path, rows: list[tuple[object, bytes]], split: str = "train") -> None:
    write_images(folder / f"{split}_imgs.tsv", [(key, base64.b64encode(data)) for key, data in rows])


def jsonl(folder: Path, rows: list[tuple], split: str = "train") -> None:
    write_texts(folder / f"{split}_texts.jsonl", rows)


def good(folder: Path, count: int = 4, split: str = "train", seed: int = 0) -> Path:
    tsv(folder, [(i, encoded(seed + i)) for i in range(count)], split)
    jsonl(folder, [(i, f"第{i}只猫", [i]) for i in range(count)], split)
    return folder


def add(path: Path, line: str | bytes) -> None:
    with path.open("ab") as file:
        file.write((line.encode() if isinstance(line, str) else line) + b"\n")


def run(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> tuple[int, list[str]]:
    status = main(["data", "check", str(folder), *map(str, arguments)])
    out = capsys.readouterr()
    assert out.err == ""
    return status, out.out.splitlines()


def test_a_good_dataset_has_no_problem(tmp_path, capsys):
    good(tmp_path, 5)
    good(tmp_path, 3, "test", seed=50)
    for _ in range(2):  # without an LMDB, then with one
        status, lines = run(capsys, tmp_path)
        assert status == 0
        assert [line.split() for line in lines] == [
            ["split", "images", "texts", "pairs", "problems"],
            ["train", "5", "5", "5", "0"],
            ["test", "3", "3", "3", "0"],
            ["no", "problem", "found"],
        ]
        main(["data", "build-lmdb", "--data_dir", str(tmp_path), "--splits", "train,test"])
        capsys.readouterr()


LONG = "一只小猫" * 20
IMAGE_PROBLEMS = [
    (b"9", "broken line", "expected ID, tab, base64; found 1 column(s)"),
    (b"9\t" + base64.b64encode(encoded(9))[:-3], "bad base64", "image 9: bad base64"),
    (b"9\t", "zero-byte image", "image 9: the image is empty (0 bytes)"),
    (b"9\t" + base64.b64encode(b"no picture at all"), "undecodable image", "image 9: not an image"),
    (b"9\t" + base64.b64encode(encoded(9, "JPEG")[:-40]), "undecodable image", "image 9: cannot decode"),
    (b"9\t" + base64.b64encode(encoded(9)[:60]), "undecodable image", "image 9: "),
    (b"9\t" + base64.b64encode(huge_png()), "decompression bomb", "image 9: 10000×10000 pixels"),
    (b"2\t" + base64.b64encode(encoded(9)), "duplicate image id", "image id 2 stands at line 3 already"),
    (b"9\t" + base64.b64encode(encoded(9)), "image without a text", "image 9 has no text"),
    (b"07\t" + base64.b64encode(encoded(9)), "mixed id types", "image id '07' is not an integer"),
]
TEXT_PROBLEMS = [
    ('{"text_id": 9', "broken JSON", "not JSON"),
    ("[]", "broken JSON", "expected a JSON object, found a list"),
    ('{"text_id": 9, "text": "猫"}', "missing field", "field 'image_ids' is missing"),
    ('{"text_id": 9, "text": null, "image_ids": [1]}', "wrong type", "text must be a string, not null"),
    ('{"text_id": 9, "text": "猫", "image_ids": 1}', "wrong type", "image_ids must be a list"),
    ('{"text_id": 9.5, "text": "猫", "image_ids": [1]}', "wrong type", "text_id must be an integer or a string"),
    ('{"text_id": "9", "text": "猫", "image_ids": [1]}', "mixed id types", "text_id '9' is a string, but"),
    ('{"text_id": 9, "text": "猫", "image_ids": ["1"]}', "mixed id types", "image id '1' is a string, but"),
    ('{"text_id": 3, "text": "猫", "image_ids": [1]}', "duplicate text id", "text id 3 stands at line 4 already"),
    (
        '{"text_id": 9, "text": "猫", "image_ids": [1, 77]}',
        "id without an image",
        "image id 77 of text 9 has no image",
    ),
    ('{"text_id": 9, "text": "猫", "image_ids": [1, 1]}', "duplicate image id", "image_ids names 1 2 times"),
    ('{"text_id": 9, "text": " \\t", "image_ids": [1]}', "empty text", "text 9 is empty"),
    (f'{{"text_id": 9, "text": "{LONG}", "image_ids": [1]}}', "over-long text", "text 9 has 82 word pieces"),
]


@pytest.mark.parametrize(("line", "kind", "message"), IMAGE_PROBLEMS)
def test_each_problem_of_an_image(tmp_path, capsys, line, kind, message):
    add(good(tmp_path) / "train_imgs.tsv", line)
    if kind != "image without a text" and kind != "mixed id types":
        add(tmp_path / "train_texts.jsonl", '{"text_id": 9, "text": "狗", "image_ids": []}')
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert lines[0].startswith(f"{tmp_path / 'train_imgs.tsv'}:5: {message}")
    assert f"{kind}: 1" in lines
    # An image that cannot be used is an image without a text besides; else the problem is the only one.
    others = [line for line in lines[1:] if "train_imgs.tsv" in line]
    assert others in ([], [f"{tmp_path / 'train_imgs.tsv'}:5: image 9 has no text"])
    assert lines[-1] == ("2 problems" if others else "1 problem")


@pytest.mark.parametrize(("line", "kind", "message"), TEXT_PROBLEMS)
def test_each_problem_of_a_text(tmp_path, capsys, line, kind, message):
    add(good(tmp_path) / "train_texts.jsonl", line)
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert lines[0].startswith(f"{tmp_path / 'train_texts.jsonl'}:5: {message}")
    assert lines[-2:] == [f"{kind}: 1", "1 problem"]
    assert lines[2].split() == ["train", "4", lines[2].split()[2], lines[2].split()[3], "1"]


def test_all_problems_are_reported_in_one_run(tmp_path, capsys):
    good(tmp_path)
    for line, _, _ in IMAGE_PROBLEMS:
        add(tmp_path / "train_imgs.tsv", line)
    for line, _, _ in TEXT_PROBLEMS:
        add(tmp_path / "train_texts.jsonl", line)
    status, lines = run(capsys, tmp_path)
    assert status == 1
    found = "\n".join(lines)
    kinds = {kind for _, kind, _ in IMAGE_PROBLEMS + TEXT_PROBLEMS}
    for number, (_, kind, message) in enumerate(TEXT_PROBLEMS, 5):
        assert f"train_texts.jsonl:{number}: " in found, kind
        assert message.split(" 9 ")[0] in found
    # Lines 6 to 11 and 13 of the images repeat the id 9, which is what is wrong with them then.
    assert {line.rsplit(": ", 1)[0] for line in lines if line.split(": ")[0] in kinds} >= kinds - {
        "zero-byte image",
        "undecodable image",
        "decompression bomb",
    }


def test_the_same_picture_in_two_splits(tmp_path, capsys):
    good(tmp_path, 4)
    good(tmp_path, 3, "valid", seed=2)  # pictures 2, 3 and a new one
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert lines[:2] == [
        f"{tmp_path / 'valid_imgs.tsv'}:{i + 1}: image {i} is the same picture as line {i + 3} of train_imgs.tsv"
        for i in range(2)
    ]
    assert lines[-2:] == ["picture in two splits: 2", "2 problems"]
    status, lines = run(capsys, tmp_path, "--splits", "valid")
    assert (status, lines[-1]) == (0, "no problem found")


def test_what_is_unusual_but_readable_is_a_note(tmp_path, capsys):
    frames = [Image.new("L", (6, 6), 30 * i) for i in range(3)]
    animation = BytesIO()
    frames[0].save(animation, format="GIF", save_all=True, append_images=frames[1:])
    deep = BytesIO()
    Image.fromarray(np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)).save(deep, format="PNG")
    rows = [
        (0, encoded(0, "JPEG", "CMYK")),
        (1, encoded(1, "PNG", "P")),
        (2, animation.getvalue()),
        (3, deep.getvalue()),
        (4, encoded(4, "WEBP", "RGBA")),
        (5, encoded(4, "WEBP", "RGBA")),
    ]
    tsv(tmp_path, rows)
    jsonl(tmp_path, [(i, "猫", [i]) for i in range(6)] + [(6, "无", [])])
    status, lines = run(capsys, tmp_path)
    assert status == 0
    notes = [line.removeprefix("note: train: ") for line in lines if line.startswith("note: ")]
    assert [" ".join(note.split()[:2]) for note in notes] == [
        *("1 16-bit", "1 CMYK", "1 animated", "1 palette"),
        *("1 pictures", "1 texts"),
    ]


def test_a_split_without_labels_is_no_problem(tmp_path, capsys):
    tsv(tmp_path, [(i, encoded(i)) for i in range(3)], "test")
    jsonl(tmp_path, [(i, "猫", []) for i in range(5)], "test")
    status, lines = run(capsys, tmp_path)
    assert (status, lines[-1]) == (0, "no problem found")
    assert lines[1].split() == ["test", "3", "5", "0", "0"]


def test_string_ids_that_look_like_integers_are_strings(tmp_path, capsys):
    tsv(tmp_path, [("7", encoded(1)), ("a.jpg", encoded(2))])
    jsonl(tmp_path, [("x", "猫", ["7"]), ("8", "狗", ["a.jpg"])])
    assert run(capsys, tmp_path)[0] == 0


def test_id_types_are_compared_across_splits(tmp_path, capsys):
    good(tmp_path)
    tsv(tmp_path, [("a", encoded(9))], "test")
    jsonl(tmp_path, [("t", "猫", ["a"])], "test")
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert f"{tmp_path / 'test_texts.jsonl'}:1: text_id 't' is a string, but the ids before it" in "\n".join(lines)


def test_the_limit_on_length_is_the_tokenizers(tmp_path, capsys):
    text = "猫" * 50
    assert default_tokenizer().encode([text, text + "狗"], 52).truncated.tolist() == [False, True]
    tsv(tmp_path, [(0, encoded(0))])
    jsonl(tmp_path, [(0, text, [0]), (1, text + "狗", [0])])
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert "train_texts.jsonl:2: text 1 has 53 word pieces with [CLS] and [SEP]; those after 52 are" in lines[0]
    assert run(capsys, tmp_path, "--context-length", 53)[0] == 0
    assert run(capsys, tmp_path, "--context-length", 24)[1][-1] == "2 problems"


def test_only_so_many_of_a_kind_are_shown_and_all_are_counted(tmp_path, capsys):
    good(tmp_path, 2)
    for i in range(30):
        add(tmp_path / "train_texts.jsonl", json.dumps({"text_id": 100 + i, "text": "", "image_ids": [0]}))
    status, lines = run(capsys, tmp_path, "--max-problems", 7)
    assert status == 1
    assert sum("train_texts.jsonl:" in line for line in lines) == 7
    assert "empty text: 30 (7 shown; --max-problems shows more)" in lines
    assert lines[-1] == "30 problems"


def test_a_missing_file_of_a_split(tmp_path, capsys):
    good(tmp_path)
    (tmp_path / "train_texts.jsonl").unlink()
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert lines[0] == f"{tmp_path / 'train_texts.jsonl'}: no such file; a split has images and texts"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--splits", "valid"], "no split 'valid'; there are train"), ([], "no dataset here")],
)
def test_nothing_to_check_is_one_line(tmp_path, capsys, arguments, message):
    folder = good(tmp_path) if arguments else tmp_path / "nowhere"
    assert main(["data", "check", str(folder), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"cn-clip: error: {folder}: {message}")
    assert error.count("\n") == 1


def test_an_lmdb_that_is_not_of_these_files(tmp_path, capsys):
    good(tmp_path, 4)
    main(["data", "build-lmdb", "--data_dir", str(tmp_path), "--splits", "train"])
    good(tmp_path, 6)
    capsys.readouterr()
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert lines[0].startswith(
        f"{tmp_path / 'lmdb' / 'train'}: 4 images (num_images 4) and 4 pairs, but the files"
    )
    (tmp_path / "lmdb" / "train" / "pairs" / "data.mdb").write_bytes(b"broken")
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert lines[0].startswith(f"{tmp_path / 'lmdb' / 'train' / 'pairs' / 'data.mdb'}: not a readable LMDB file")
    assert lines[-2:] == ["stale or broken LMDB: 1", "1 problem"]


def test_threads_change_nothing(tmp_path, capsys):
    good(tmp_path, 40)
    for line, _, _ in IMAGE_PROBLEMS * 3:
        add(tmp_path / "train_imgs.tsv", line)
    results = [run(capsys, tmp_path, "--threads", threads) for threads in (1, 8, -1)]
    assert results[0] == results[1] == results[2]
    assert results[0][0] == 1


def test_the_command_exits_with_1(tmp_path):
    add(good(tmp_path) / "train_imgs.tsv", "broken")
    command = [sys.executable, "-m", "cn_clip", "data", "check", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "1 problem"
