"""`data import` of tables: columns, ids, captions, splits, what is skipped, and going on after an interruption."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from importing import everything, images, reasons, report, run, texts, write_pictures
from PIL import Image

from cn_clip import cli
from cn_clip.data.imports.run import import_data
from cn_clip.data.imports.state import State
from cn_clip.data.imports.tables import Delimited
from cn_clip.data.imports.write import Importer
from cn_clip.errors import UserError
from tiny import encoded, pictures


def table(path: Path, rows: list[dict[str, object]], kind: str = "csv") -> Path:
    """Write a table of any kind."""
    path = path.with_suffix(f".{kind}")
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


ROWS = [
    {"file_name": "0.jpg", "caption": "一只猫"},
    {"file_name": "1.jpg", "caption": "一只狗"},
    {"file_name": "2.jpg", "caption": "一只猫"},
    {"file_name": "0.jpg", "caption": '他说“喵”, "再见"'},
    {"file_name": "./1.jpg", "caption": "  狗在跑 "},
]
CAPTIONS = [
    (0, "一只猫", [0, 2]),
    (1, "一只狗", [1]),
    (2, '他说“喵”, "再见"', [0]),
    (3, "狗在跑", [1]),
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet  # noqa: F401

    files = write_pictures(tmp_path / "p", 3)
    source = table(tmp_path / "p" / "captions", ROWS, kind)
    summary = run(source, tmp_path / "out")
    assert images(tmp_path / "out") == {str(i): data for i, data in enumerate(files)}  # copied, bit for bit
    assert texts(tmp_path / "out") == CAPTIONS
    assert summary["splits"] == {"train": {"images": 3, "texts": 4, "pairs": 5}}
    printed = capsys.readouterr().out
    assert "image: column file_name (guessed; --image-column names another)" in printed
    assert "captions: column caption (guessed" in printed
    assert f"next: cn-clip data build-lmdb --data-dir {tmp_path / 'out'} --splits train" in printed
    assert not (tmp_path / "out" / ".import").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_encodings_are_told(tmp_path: Path, encoding: str, kind: str) -> None:
    write_pictures(tmp_path, 3)
    path = table(tmp_path / "captions", ROWS, kind)
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    run(path, tmp_path / "out")
    assert texts(tmp_path / "out") == CAPTIONS


def test_a_character_that_is_in_no_encoding_is_one_line(tmp_path: Path) -> None:
    path = table(tmp_path / "captions", ROWS * 12_000)
    path.write_bytes(path.read_bytes() + b"0.jpg,\xff\xff\n")
    with pytest.raises(UserError, match=r"captions.csv:\d+ or soon after: not utf-8-sig text .*--encoding"):
        list(Delimited(path).rows(0))


def test_a_table_without_a_header(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    (tmp_path / "pairs.txt").write_text('0.jpg\t一只猫\n\n1.jpg\t一只"狗\n', "utf-8")
    run(tmp_path / "pairs.txt", tmp_path / "out")
    assert [text for _, text, _ in texts(tmp_path / "out")] == ["一只猫", '一只"狗']


def test_a_folder_with_its_table(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 3)
    table(tmp_path / "a" / "metadata", ROWS, "jsonl")
    (tmp_path / "a" / "README.txt").write_text("about", "utf-8")
    run(tmp_path / "a", tmp_path / "out")
    assert texts(tmp_path / "out") == CAPTIONS


def test_tables_named_by_split(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "pics", 3)
    (tmp_path / "tables").mkdir()
    table(tmp_path / "tables" / "train", ROWS[:1])
    table(tmp_path / "tables" / "val", ROWS[1:3])
    run(tmp_path / "tables", tmp_path / "out", images=tmp_path / "pics")
    assert images(tmp_path / "out", "train") == {"0": files[0]}
    assert images(tmp_path / "out", "valid") == {"1": files[1], "2": files[2]}


def test_columns_are_told_by_their_values(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    rows = [{"n": i, "wo": f"{i}.jpg", "was": f"第{i}张", "preis": "3.5"} for i in range(3)]
    run(table(tmp_path / "t", rows), tmp_path / "out")
    assert [text for _, text, _ in texts(tmp_path / "out")] == ["第0张", "第1张", "第2张"]


def test_columns_that_cannot_be_told(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    path = table(tmp_path / "t", [{"a": "0.jpg", "b": "猫", "c": "狗"}])
    with pytest.raises(UserError, match=r"which column holds the captions; --text-columns .*a, b, c"):
        run(path, tmp_path / "out")
    with pytest.raises(UserError, match="no column 'd'; the columns are a, b, c"):
        run(path, tmp_path / "out", image_column="d")
    assert not (tmp_path / "out").exists()
    run(path, tmp_path / "out", text_columns="b, c")
    assert [text for _, text, _ in texts(tmp_path / "out")] == ["猫", "狗"]


def test_lists_of_captions(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    rows = [{"image": "0.jpg", "captions": ["猫", "狗", "猫", "", None]}, {"image": "1.jpg", "captions": []}]
    run(table(tmp_path / "t", rows, "jsonl"), tmp_path / "out")
    assert texts(tmp_path / "out") == [(0, "猫", [0]), (1, "狗", [0])]
    assert [row["reason"] for row in report(tmp_path / "out")[:-1]] == ["empty caption"] * 3
    (tmp_path / "l.csv").write_text('image,captions\n0.jpg,"[""猫"", ""狗""]"\n', "utf-8")
    run(tmp_path / "l.csv", tmp_path / "out2")
    assert [text for _, text, _ in texts(tmp_path / "out2")] == ["猫", "狗"]


# --- ids


def test_ids_of_one_type(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    rows = [{"image": f"{i}.jpg", "caption": f"第{i}张", "image_id": 70 + i, "text_id": 9 - i} for i in range(3)]
    run(table(tmp_path / "a", rows), tmp_path / "ints")
    assert texts(tmp_path / "ints") == [(9, "第0张", [70]), (8, "第1张", [71]), (7, "第2张", [72])]
    rows[1]["image_id"] = "071"  # not a number as JSON writes it: all are strings then
    run(table(tmp_path / "b", rows), tmp_path / "strings")
    assert texts(tmp_path / "strings") == [("9", "第0张", ["70"]), ("8", "第1张", ["071"]), ("7", "第2张", ["72"])]
    for row in rows:
        del row["text_id"]
    run(table(tmp_path / "c", rows), tmp_path / "numbered")
    assert texts(tmp_path / "numbered")[1] == ("1", "第1张", ["071"])


def test_a_column_id_is_an_image_id_where_every_row_has_another_image(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    rows = [{"id": 5 + i, "image": f"{i}.jpg", "caption": f"第{i}张"} for i in range(3)]
    run(table(tmp_path / "a", rows), tmp_path / "a")
    assert list(images(tmp_path / "a")) == ["5", "6", "7"]
    run(table(tmp_path / "b", [*rows, {"id": 8, "image": "0.jpg", "caption": "猫"}]), tmp_path / "b")
    assert list(images(tmp_path / "b")) == ["0", "1", "2"]


def test_wrong_ids_are_skipped(tmp_path: Path) -> None:
    write_pictures(tmp_path, 9)
    wrong = [7, 7, None, True, "a\tb", "x" * 600, "num_images", 2.0, {"a": 1}]
    rows = [{"image": f"{i}.jpg", "caption": f"第{i}张", "image_id": value} for i, value in enumerate(wrong)]
    run(table(tmp_path / "t", rows, "jsonl"), tmp_path / "out")
    assert list(images(tmp_path / "out")) == ["7", "2"]
    assert list(reasons(tmp_path / "out").values()) == [
        "duplicate image id",
        "missing id",
        *["unusable id"] * 4,
        "unusable id",
    ]


def test_a_text_id_belongs_to_one_caption(tmp_path: Path) -> None:
    write_pictures(tmp_path, 4)
    captions = [("0.jpg", "猫", 1), ("1.jpg", "猫", 1), ("2.jpg", "狗", 1), ("2.jpg", "狗", 2), ("3.jpg", "狗", 3)]
    rows = [{"image": i, "caption": c, "text_id": t} for i, c, t in captions]
    run(table(tmp_path / "t", rows), tmp_path / "out")
    assert texts(tmp_path / "out") == [(1, "猫", [0, 1]), (2, "狗", [3]), (3, "狗", [4])]
    assert reasons(tmp_path / "out") == {"t.csv:4": "duplicate text id"}


# --- what is skipped


def test_everything_skipped_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, 4)
    jpeg = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "none.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "dir.jpg").mkdir()
    lines = [
        "image,caption",
        "0.jpg,猫",  # 2: good
        "missing.jpg,猫",
        "cut.jpg,猫",
        "none.jpg,猫",
        "text.jpg,猫",
        "dir.jpg,猫",
        "1.jpg,",
        "1.jpg,\u200b",
        "1.jpg,狗",  # 10: good
        ",猫",
        "1.jpg,狗",
        "missing.jpg,狗",
        "1.jpg,狗,more",
        "https://example.com/1.jpg,猫",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", "utf-8")
    summary = run(tmp_path / "t.csv", tmp_path / "out")
    assert reasons(tmp_path / "out") == {
        "t.csv:3": "missing file",
        "t.csv:4": "undecodable image",
        "t.csv:5": "empty image",
        "t.csv:6": "undecodable image",
        "t.csv:7": "unreadable file",
        "t.csv:8": "empty caption",
        "t.csv:9": "empty caption",
        "t.csv:11": "missing image",
        "t.csv:12": "repeated pair",
        "t.csv:13": "image was skipped",
        "t.csv:14": "broken row",
        "t.csv:15": "missing image",
    }
    assert sum(summary["skipped"].values()) == 12
    assert texts(tmp_path / "out") == [(0, "猫", [0]), (1, "狗", [6])]  # numbered as they are met, skipped or not
    assert "skipped, undecodable image: 2" in capsys.readouterr().out


def test_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, 1)
    some = table(tmp_path / "some", [{"image": "0.jpg", "caption": "猫"}, {"image": "9.jpg", "caption": "狗"}])
    none = table(tmp_path / "none", [{"image": "9.jpg", "caption": "狗"}])
    assert cli.main(["data", "import", str(some), "--out", str(tmp_path / "a")]) == 0
    assert cli.main(["data", "import", str(some), "--out", str(tmp_path / "b"), "--strict"]) == 1
    assert (tmp_path / "b" / "train_imgs.tsv").is_file()
    assert (
        cli.main(["data", "import", str(some), "--out", str(tmp_path / "b"), "--strict"]) == 1
    )  # finished already
    assert cli.main(["data", "import", str(none), "--out", str(tmp_path / "c")]) == 1
    assert "nothing was imported" in capsys.readouterr().err
    assert reasons(tmp_path / "c") == {"none.csv:2": "missing file"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"splits": "train=0.5,valid"}, "give all splits a share"),
        ({"splits": "train=0"}, "expected a share above 0"),
        ({"splits": "train,train"}, "stands there twice"),
        ({"splits": "a/b=1"}, "is not the name of a split"),
        ({"split_by": "text"}, "need shares"),
        ({"split_by": "group", "splits": "a=1,b=1"}, "needs --group-column"),
        ({"group_column": "caption", "split_by": "text", "splits": "a=1,b=1"}, "contradicts"),
        ({"quality": 0}, "expected 1 to 100"),
        ({"max_side": 0}, "expected a number of pixels"),
        ({"template": "照片"}, "where the caption goes"),
        ({"images": Path("nowhere")}, "no such folder"),
        ({"encoding": "klingon"}, "is not known"),
        ({"layout": "webdataset"}, "expected the layout webdataset"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path: Path, flags: dict[str, object], message: str) -> None:
    write_pictures(tmp_path, 1)
    path = table(tmp_path / "t", [{"image": "0.jpg", "caption": "猫"}])
    with pytest.raises(UserError, match=message) as error:
        import_data(path, tmp_path / "out", **flags)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_wrong_sources_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.docx").write_bytes(b"x")
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    for name, message in {
        "nothing": "no such file or folder",
        "*.doc": "no file matches",
        "empty": "no known layout",
        "a.docx": "expected a .csv",
        "a.csv": "the file is empty",
        "a.parquet": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=message):
            import_data(tmp_path / name, tmp_path / "out")


# --- splits


def test_splits_do_not_depend_on_what_else_is_imported(tmp_path: Path) -> None:
    write_pictures(tmp_path, 60)
    rows = [{"image": f"{i}.jpg", "caption": f"第{i}张"} for i in range(60)]
    flags = {"splits": "train=6,valid=2,test=2", "no_verify": True}
    run(table(tmp_path / "a", rows), tmp_path / "a", **flags)
    random.Random(0).shuffle(rows)
    run(table(tmp_path / "b", rows[:40]), tmp_path / "b", **flags)

    def where(out: Path) -> dict[bytes, str]:
        return {data: split for split in ("train", "valid", "test") for data in images(out, split).values()}

    all_of_a, some_of_b = where(tmp_path / "a"), where(tmp_path / "b")
    assert len(all_of_a) == 60
    assert some_of_b.items() <= all_of_a.items()
    shares = [list(all_of_a.values()).count(split) for split in ("train", "valid", "test")]
    assert 25 <= shares[0] <= 47
    assert min(shares[1:]) >= 4
    run(table(tmp_path / "a", rows), tmp_path / "c", seed=1, **flags)
    assert where(tmp_path / "c") != all_of_a


def test_copies_of_a_picture_stay_together(tmp_path: Path) -> None:
    data = write_pictures(tmp_path, 1)[0]
    rows = []
    for i in range(30):
        (tmp_path / f"copy{i}.jpg").write_bytes(data)
        rows.append({"image": f"copy{i}.jpg", "caption": f"第{i}张", "shop": f"店{i}"})
    path = table(tmp_path / "t", rows)
    for i, flags in enumerate([{}, {"split_by": "text"}, {"group_column": "shop"}]):
        summary = run(path, tmp_path / f"out{i}", splits="train=1,valid=1", **flags)
        assert len(summary["splits"]) == 1, flags
        assert summary["notes"]


def test_split_by_text(tmp_path: Path) -> None:
    write_pictures(tmp_path, 40)
    rows = [{"image": f"{i}.jpg", "caption": f"第{i % 10}种"} for i in range(40)]
    rows += [{"image": f"{i}.jpg", "caption": f"第{(i + 1) % 10}种"} for i in range(10)]
    run(table(tmp_path / "t", rows), tmp_path / "out", splits="train=1,valid=1", split_by="text")
    train, valid = ({text for _, text, _ in texts(tmp_path / "out", split)} for split in ("train", "valid"))
    assert train
    assert valid
    assert not train & valid
    assert len(images(tmp_path / "out", "train")) + len(images(tmp_path / "out", "valid")) == 40
    assert set(reasons(tmp_path / "out").values()) == {"caption of another split"}


def test_split_by_group(tmp_path: Path) -> None:
    write_pictures(tmp_path, 40)
    rows = [{"image": f"{i}.jpg", "caption": f"第{i}张", "shop": f"店{i % 8}"} for i in range(40)]
    run(table(tmp_path / "t", rows), tmp_path / "out", splits="train=1,valid=1", group_column="shop")
    train, valid = (
        {int(text[1:-1]) % 8 for _, text, _ in texts(tmp_path / "out", split)} for split in ("train", "valid")
    )
    assert train | valid == set(range(8))
    assert train
    assert valid
    assert not train & valid


def test_splits_of_a_column(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, 4)
    names = ["train", "validation", "extra", ""]
    rows = [{"image": f"{i}.jpg", "caption": "图", "split": name, "image_id": 1} for i, name in enumerate(names)]
    rows[3]["image_id"] = 2
    path = table(tmp_path / "t", rows)
    run(path, tmp_path / "out")
    assert images(tmp_path / "out", "train") == {"1": files[0], "2": files[3]}  # without a split: train
    assert images(tmp_path / "out", "valid") == {"1": files[1]}
    assert images(tmp_path / "out", "extra") == {"1": files[2]}
    summary = run(path, tmp_path / "some", splits="valid")
    assert list(summary["splits"]) == ["valid"]
    assert summary["notes"] == ["2 rows of splits that --splits does not name"]


# --- going on


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A table of 60 pictures (some broken) with 150 rows."""
    files = [encoded(image, "JPEG") for image in pictures(60)]
    for number, data in enumerate(files):
        (tmp_path / f"{number}.jpg").write_bytes(data if number % 11 else data[:200])
    generator = random.Random(1)
    rows = [
        {"image": f"{generator.randrange(62)}.jpg", "caption": f"第{generator.randrange(90)}句"}
        for _ in range(150)
    ]
    return table(tmp_path / "many", rows)


FLAGS = {"splits": "train=3,valid=1"}


@pytest.mark.parametrize("stop", [0, 1, 29, 77, 149])
def test_an_interrupted_import_goes_on(
    many: Path, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cn_clip.data.imports.write.COMMIT_EVERY", 10)
    run(many, tmp_path / "whole", clean=False, **FLAGS)
    seen: list[int] = []
    original = Importer._import

    def interrupted(self: Importer, *args: object) -> None:
        seen.append(1)
        if len(seen) == stop + 1:
            raise KeyboardInterrupt
        original(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Importer, "_import", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_data(many, tmp_path / "out", **FLAGS, workers=2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".import"}  # no half file is to be seen
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(Importer, "_import", lambda self, *args: calls.append(1) or original(self, *args))
        run(many, tmp_path / "out", clean=False, **FLAGS)
    assert len(calls) == 150 - stop // 10 * 10  # what was finished is not done again
    assert ("going on with an unfinished import" in capsys.readouterr().out) == (stop >= 10)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_an_import_interrupted_at_its_end_goes_on(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(many, tmp_path / "whole", clean=False, **FLAGS)
    original = State.texts

    def once(self: State, split: str):  # type: ignore[no-untyped-def]
        if split == "valid":
            raise KeyboardInterrupt
        return original(self, split)

    with monkeypatch.context() as patch:
        patch.setattr(State, "texts", once)
        with pytest.raises(KeyboardInterrupt):
            import_data(many, tmp_path / "out", **FLAGS)
    assert (tmp_path / "out" / "train_imgs.tsv").exists()
    assert not (tmp_path / "out" / "valid_imgs.tsv").exists()
    run(many, tmp_path / "out", clean=False, **FLAGS)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


@pytest.mark.parametrize("skips", [True, False])
def test_an_import_killed_while_it_clears_up_goes_on(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skips: bool
) -> None:
    if not skips:
        many = table(tmp_path / "good", [{"image": "1.jpg", "caption": "图"}, {"image": "2.jpg", "caption": "图"}])
    run(many, tmp_path / "whole", clean=False)

    def stopped(_: State) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(State, "remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            import_data(many, tmp_path / "out")
    run(many, tmp_path / "out", clean=False)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert not (tmp_path / "out" / ".import").exists()


# Kills itself at the n-th call of a function, with threads at work and nothing flushed.
KILLED = """
import os, signal, sys
from pathlib import Path
import cn_clip.data.imports.prepare, cn_clip.data.imports.state, cn_clip.data.imports.write as write
from cn_clip.data.imports.run import import_data

write.COMMIT_EVERY = 7
name, left = sys.argv[3], [int(sys.argv[4])]
holder, attribute = eval(name.rpartition(".")[0], {"cn_clip": cn_clip}), name.rpartition(".")[2]
original = getattr(holder, attribute)
def call(*args):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
setattr(holder, attribute, call)
import_data(Path(sys.argv[1]), Path(sys.argv[2]), splits="train=3,valid=1", workers=2)
"""


def test_a_killed_import_goes_on(many: Path, tmp_path: Path) -> None:
    run(many, tmp_path / "whole", clean=False, **FLAGS)
    points = [
        ("prepare._read", 2),
        ("prepare._read", 15),
        ("state.State.commit", 3),
        ("prepare._read", 5),
        ("write.write_texts", 2),
        ("state.State.remove", 1),
    ]
    for name, count in points:
        arguments = [str(many), str(tmp_path / "out"), f"cn_clip.data.imports.{name}", str(count)]
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, (name, count, done.stderr)
    run(many, tmp_path / "out", clean=False, **FLAGS)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_the_number_of_threads_changes_nothing(many: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        run(many, tmp_path / f"{workers}", clean=False, workers=workers, **FLAGS)
    assert everything(tmp_path / "1") == everything(tmp_path / "3")


def test_other_options_or_another_source_are_noticed(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cn_clip.data.imports.write.COMMIT_EVERY", 10)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Importer, "_new", stopped)
        with pytest.raises(KeyboardInterrupt):
            import_data(many, out)
    with pytest.raises(UserError, match="max-side was None, and is 64; give what was given then, or start anew"):
        import_data(many, out, max_side=64)
    many.write_text(many.read_text("utf-8") + "1.jpg,新\n", "utf-8")
    with pytest.raises(UserError, match=r"many\.csv has changed since"):
        import_data(many, out)
    run(many, out, clean=False, overwrite=True)
    run(many, tmp_path / "whole", clean=False)
    assert everything(out) == everything(tmp_path / "whole")


def test_a_dataset_is_only_replaced_when_told_to(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(many, out, clean=False, **FLAGS)
    before = everything(out)
    capsys.readouterr()
    run(many, out, clean=False, **FLAGS)  # again: nothing to do
    assert "this import is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is a dataset already"):
        run(many, out)
    assert everything(out) == before
    run(many, out, clean=False, overwrite=True)
    assert set(everything(out)) == {"train_imgs.tsv", "train_texts.jsonl", "import_report.jsonl"}


def test_two_at_a_time_are_refused(many: Path, tmp_path: Path) -> None:
    state = State(tmp_path / "out" / ".import")
    code = "import sys, pathlib, cn_clip.data.imports.state as s; s.State(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(state.folder)], capture_output=True, text=True)
    state.close()
    assert "another cn-clip data import is writing there" in done.stderr


def test_a_full_disk_is_one_line(small_disk: Path, tmp_path: Path) -> None:
    Image.effect_noise((400, 400), 90).save(tmp_path / "big.png")
    write_pictures(tmp_path, 1)
    path = table(
        tmp_path / "t", [{"image": f"{name}", "caption": "图"} for name in ("0.jpg", "big.png", "big.png")]
    )
    with pytest.raises(UserError, match=r"cannot write: the .* is (full|too large); free some space") as error:
        import_data(path, small_disk / "out", workers=1)
    assert "\n" not in str(error.value)
