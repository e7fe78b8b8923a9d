"""Readers and writers of the TSV and JSONL files."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import run_reference
from PIL import Image

from cn_clip.cli import main
from cn_clip.data.formats import (
    LineError,
    Text,
    decode_base64,
    image_to_base64,
    parse_id,
    parse_ids,
    read_images,
    read_texts,
    write_images,
    write_texts,
)
from cn_clip.errors import UserError

IDS = st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8"), min_size=1)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.text(st.characters(codec="utf-8")), st.lists(st.integers()))))
def test_texts_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("texts") / "a_texts.jsonl"
    rows = [(text_id, text, [i % 2**63 for i in ids]) for text_id, text, ids in rows]
    assert write_texts(path, rows) == len(rows)
    back = list(read_texts(path))
    assert [(row.text_id, row.text, row.image_ids) for row in back] == rows
    assert [row.line for row in back] == list(range(1, len(rows) + 1))
    # One line each for Python's own reader too, whatever line separators Unicode knows.
    assert [json.loads(line)["text"] for line in path.read_bytes().split(b"\n")[:-1]] == [row[1] for row in rows]


@given(st.dictionaries(st.integers(-(2**63), 2**63 - 1) | st.from_regex(r"[\w./-]+", fullmatch=True), st.binary()))
def test_images_come_back_as_they_were_written(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("images") / "a_imgs.tsv"
    rows = [(image_id, base64.b64encode(data)) for image_id, data in images.items()]
    assert write_images(path, rows) == len(rows)
    back = list(read_images(path))
    assert [(row.image_id, row.base64) for row in back] == [(str(image_id), data) for image_id, data in rows]
    assert [decode_base64(row.base64, "") for row in back] == list(images.values())


@given(IDS)
def test_an_id_is_an_integer_exactly_where_it_is_written_as_one(value):
    assert str(parse_id(str(value))) == str(value)
    if isinstance(value, int):
        assert parse_id(str(value)) == value


@pytest.mark.parametrize("key", ["007", "+7", "-0", "7.0", "1_000", " 7", "７", "", "-", "9" * 19, "9" * 5000])
def test_what_is_not_the_usual_form_of_an_integer_stays_a_string(key):
    assert parse_id(key) == key


def test_ids_of_a_dataset_are_all_of_one_type():
    assert parse_ids(["1", "-2"]) == [1, -2]
    assert parse_ids(["1", "a"]) == ["1", "a"]


@given(st.binary())
def test_base64_in_both_alphabets(data):
    assert decode_base64(base64.b64encode(data), "") == data
    assert decode_base64(base64.urlsafe_b64encode(data), "") == data


@pytest.mark.parametrize("data", [b"QUJ", b"QUJD!", b"Q UJD", b"QUJDR===", "中文".encode(), b"QU=D", b"QUJD\n"])
def test_wrong_base64_is_refused(data):
    with pytest.raises(LineError, match=r"^x\.tsv:3: bad base64: ."):
        decode_base64(data, "x.tsv:3")


GOOD = '{"text_id": 1, "text": "猫", "image_ids": [5]}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text_id": 1, "text": "猫", "image_ids": [5', "not JSON"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ('{"text_id": 1, "image_ids": [5]}', "field 'text' is missing (found: text_id, image_ids)"),
        ('{"text": "猫", "image_ids": [5]}', "field 'text_id' is missing"),
        ('{"text_id": 1, "text": "猫"}', "field 'image_ids' is missing"),
        ('{"text_id": true, "text": "猫", "image_ids": []}', "text_id must be an integer or a string, not true"),
        ('{"text_id": 1.5, "text": "猫", "image_ids": []}', "not a decimal number"),
        ('{"text_id": 18446744073709551616, "text": "", "image_ids": []}', "not a decimal number"),
        ('{"text_id": 1, "text": 7, "image_ids": []}', "text must be a string, not an integer"),
        ('{"text_id": 1, "text": "猫", "image_ids": 5}', "image_ids must be a list of ids, not an integer"),
        ('{"text_id": 1, "text": "猫", "image_ids": [null]}', "image id must be an integer or a string, not null"),
        ('{"text_id": "", "text": "猫", "image_ids": []}', "text_id is an empty string"),
        ('{"text_id": "a", "text": "猫", "image_ids": []}', "text_id 'a' is a string, but the ids before it are"),
        (
            '{"text_id": 1, "text": "猫", "image_ids": ["5"]}',
            "image id '5' is a string, but the ids before it are",
        ),
        ('{"text_id": 1, "text": "\\ud800", "image_ids": []}', "not JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "train_texts.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        list(read_texts(path))
    assert str(error.value).startswith(f"{path}:3: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "train_texts.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + GOOD.replace("猫", "中文").encode("gbk") + b"\n")
    with pytest.raises(UserError, match=f"{re.escape(str(path))}:2: not JSON"):
        list(read_texts(path))


@pytest.mark.parametrize("line", [b"7", b"7\tQUJD\tx", b"\tQUJD", b"\xff\tQUJD"])
def test_a_wrong_image_line_is_named(tmp_path, line):
    path = tmp_path / "train_imgs.tsv"
    path.write_bytes(b"5\tQUJD\n" + line + b"\n")
    with pytest.raises(UserError, match=f"{re.escape(str(path))}:2: "):
        list(read_images(path))


def test_windows_line_ends_byte_order_marks_and_blank_lines_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.encode())
    assert [row.line for row in read_texts(tmp_path / "a.jsonl")] == [1, 3]
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbf5\tQUJD\r\n\n6\tQUJE")
    assert [(row.image_id, row.base64) for row in read_images(tmp_path / "a.tsv")] == [
        ("5", b"QUJD"),
        ("6", b"QUJE"),
    ]


def test_texts_without_image_ids_where_they_are_not_needed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text_id": 1, "text": "猫"}\n', encoding="utf-8")
    assert list(read_texts(path, need_image_ids=False)) == [Text(1, "猫", [], 1)]


@pytest.mark.parametrize(
    "rows", [[(1, "a", [2]), ("x", "b", [])], [(1, "a", [2.5])], [(1, "\ud800", [])], [(2**70, "a", [])]]
)
def test_texts_that_cannot_be_written_leave_the_old_file(tmp_path, rows):
    path = tmp_path / "a.jsonl"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(UserError):
        write_texts(path, rows)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    "row", [("a\tb", "QUJD"), ("a\n", "QUJD"), ("a", "QUJD\n"), (" a", "QUJD"), ("a", b"QU\rJD")]
)
def test_images_that_a_line_cannot_hold_are_refused(tmp_path, row):
    with pytest.raises(UserError, match="white space"):
        write_images(tmp_path / "a.tsv", [row])
    assert not list(tmp_path.iterdir())


def test_image_to_base64_keeps_a_files_bytes_and_saves_pictures_in_their_format(tmp_path):
    path = tmp_path / "a.jpg"
    Image.radial_gradient("L").convert("RGB").save(path, quality=60)
    assert base64.b64decode(image_to_base64(path)) == path.read_bytes()
    assert base64.b64decode(image_to_base64(str(path))) == path.read_bytes()
    assert base64.b64decode(image_to_base64(b"any bytes")) == b"any bytes"
    with Image.open(path) as image:
        documented = BytesIO()  # the helper as the reference's README writes it
        image.save(documented, format=image.format)
        assert base64.b64decode(image_to_base64(image)) == documented.getvalue()
    for given_image, format, expected in [
        (Image.new("RGBA", (3, 2)), None, "PNG"),
        (path, "PNG", "PNG"),
        (path.read_bytes(), "WEBP", "WEBP"),
    ]:
        with Image.open(BytesIO(base64.b64decode(image_to_base64(given_image, format)))) as back:
            assert back.format == expected


def test_image_to_base64_says_what_it_cannot_do(tmp_path):
    with pytest.raises(UserError, match="JPEG"):
        image_to_base64(Image.new("RGBA", (2, 2)), "JPEG")
    with pytest.raises(UserError, match="not an image"):
        image_to_base64(b"no picture", "PNG")
    with pytest.raises(FileNotFoundError):
        image_to_base64(tmp_path / "missing.png")


@pytest.mark.parametrize("kind", [int, "图{}".format])
def test_invert_gives_the_references_file(tmp_path, kind):
    ours, theirs = tmp_path / "ours_texts.jsonl", tmp_path / "theirs_texts.jsonl"
    rows = [(kind(i), f"文{i}", [kind(i * 7 % 5), kind(i * 3 % 11)]) for i in range(40)] + [(kind(99), "无", [])]
    write_texts(ours, rows)
    theirs.write_bytes(ours.read_bytes())
    assert main(["data", "invert", "--input", str(ours)]) == 0
    run_reference("cn_clip.eval.transform_ir_annotation_to_tr", "--input", theirs)
    assert (tmp_path / "ours_texts.tr.jsonl").read_bytes() == (tmp_path / "theirs_texts.tr.jsonl").read_bytes()


def test_invert_names_a_wrong_line_and_writes_nothing(tmp_path, capsys):
    path = tmp_path / "a_texts.jsonl"
    path.write_text(f"{GOOD}\n" + '{"text_id": 2, "text": "x"}\n', encoding="utf-8")
    assert main(["data", "invert", "--input", str(path)]) == 1
    assert f"{path}:2: field 'image_ids' is missing" in capsys.readouterr().err
    assert main(["data", "invert", "--input", str(tmp_path / "none.jsonl")]) == 1
    assert capsys.readouterr().err == f"cn-clip: error: {tmp_path / 'none.jsonl'}: No such file or directory\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a_texts.jsonl"]
