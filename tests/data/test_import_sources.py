"""`data import` of class folders, Hugging Face folders, Parquet, WebDataset shards, COCO-CN and Flickr30K-CN."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from importing import everything, images, reasons, report, run, texts, write_pictures
from PIL import Image

from cn_clip.data.imports.detect import find_source
from cn_clip.data.imports.layouts import join_words
from cn_clip.data.imports.run import import_data
from cn_clip.errors import UserError
from tiny import encoded, pictures

JPEGS = [encoded(image, "JPEG") for image in pictures(8)]


def test_starting_anywhere_gives_the_same_rows(tmp_path: Path) -> None:
    """What resuming rests on: `rows(n)` is `rows(0)` without its first n, in every kind of source."""
    rows = [{"image": {"bytes": JPEGS[i % 8], "path": None}, "text": f"第{i}句"} for i in range(75)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    plain = [{"image": f"{i}.jpg", "text": row["text"]} for i, row in enumerate(rows)]
    (tmp_path / "b.jsonl").write_text("\n\n".join(json.dumps(row) for row in plain), "utf-8")
    lines = ["image,text", *(f'{row["image"]},"{row["text"]}\n"' for row in plain)]
    (tmp_path / "c.csv").write_text("\n".join(lines), "utf-8")
    (tmp_path / "d.tsv").write_text("\n".join(f"{row['image']}\t{row['text']}" for row in plain), "utf-8")
    shard(
        tmp_path / "e.tar", {f"{i:03}": {"jpg": JPEGS[i % 8], "txt": row["text"]} for i, row in enumerate(plain)}
    )
    (tmp_path / "hf").mkdir()
    with (
        pa.OSFile(str(tmp_path / "hf" / "x.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=40)
    (tmp_path / "hf" / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    folder = tmp_path / "classes" / "猫"
    folder.mkdir(parents=True)
    for i in range(75):
        (folder / f"{i}.jpg").write_bytes(JPEGS[0])
    for name in ("a.parquet", "b.jsonl", "c.csv", "d.tsv", "e.tar", "hf", "classes"):
        part = find_source(tmp_path / name).parts[0]
        whole = list(part.rows(0))
        assert len(whole) == 75, name
        assert part.total() in (75, None) or name in ("b.jsonl", "c.csv", "d.tsv")
        for start in (1, 19, 20, 21, 40, 74, 75, 80):
            assert list(part.rows(start)) == whole[start:], (name, start)


# --- class folders


def classes(root: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        (root / name / "deep").mkdir(parents=True)
        (root / name / "b.jpg").write_bytes(JPEGS[i])
        (root / name / "deep" / "a.JPG").write_bytes(JPEGS[i + 3])
        (root / name / "notes.txt").write_text("no picture")
        (root / name / "._b.jpg").write_bytes(b"of another system")


def test_class_folders(tmp_path: Path) -> None:
    classes(tmp_path / "d", ["狗", "猫"])
    run(tmp_path / "d", tmp_path / "out", template="一张{}的照片")
    assert texts(tmp_path / "out") == [(0, "一张狗的照片", [0, 1]), (1, "一张猫的照片", [2, 3])]
    assert list(images(tmp_path / "out").values()) == [JPEGS[0], JPEGS[3], JPEGS[1], JPEGS[4]]


def test_class_folders_by_split(tmp_path: Path) -> None:
    classes(tmp_path / "d" / "train", ["狗", "猫"])
    classes(tmp_path / "d" / "val", ["猫"])
    (tmp_path / "d" / "val" / "猫" / "b.jpg").write_bytes(JPEGS[6])
    (tmp_path / "d" / "val" / "猫" / "deep" / "a.JPG").write_bytes(JPEGS[7])
    run(tmp_path / "d", tmp_path / "out")
    assert [text for _, text, _ in texts(tmp_path / "out", "train")] == ["狗", "猫"]
    assert [(text, ids) for _, text, ids in texts(tmp_path / "out", "valid")] == [("猫", [4, 5])]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "狗\n猫\n鸟\n"),
        ("l.tsv", "000\t狗\n001\t猫\n"),
        ("l.json", '{"000": "狗", "001": "猫"}'),
        ("m.json", '["狗", "猫"]'),
    ],
)
def test_labels_of_class_folders(tmp_path: Path, name: str, content: str) -> None:
    classes(tmp_path / "d", ["000", "001"])
    (tmp_path / name).write_text(content, "utf-8")
    run(tmp_path / "d", tmp_path / "out", label_file=tmp_path / name)
    assert [text for _, text, _ in texts(tmp_path / "out")] == ["狗", "猫"]


def test_labels_in_the_order_of_names(tmp_path: Path) -> None:
    classes(tmp_path / "d", ["dog", "cat"])
    (tmp_path / "l.txt").write_text("猫\n狗\n", "utf-8")
    run(tmp_path / "d", tmp_path / "out", label_file=tmp_path / "l.txt")
    assert [text for _, text, _ in texts(tmp_path / "out")] == ["猫", "狗"]
    for content, message in {
        "猫\n": "1 labels, but there are 2 classes",
        "cat\t猫\n": "no label for the class folder",
    }.items():
        (tmp_path / "l.txt").write_text(content, "utf-8")
        with pytest.raises(UserError, match=message):
            import_data(tmp_path / "d", tmp_path / "out2", label_file=tmp_path / "l.txt")


# --- Hugging Face


def hf_dataset(rows: list[dict[str, Any]], features: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(rows, features=features)


def test_folders_written_by_the_datasets_package(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "captions": datasets.Sequence(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["猫", "狗"]),
        }
    )
    rows = [{"image": JPEGS[i], "captions": [f"第{i}张", "图"], "label": i % 2} for i in range(6)]
    rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    whole = hf_dataset(rows, features)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    run(tmp_path / "one", tmp_path / "a")
    assert list(images(tmp_path / "a").values()) == JPEGS[:6]
    assert texts(tmp_path / "a")[:3] == [(0, "第0张", [0]), (1, "图", [0, 1, 2, 3, 4, 5]), (2, "第1张", [1])]
    run(tmp_path / "one", tmp_path / "b", text_columns="label", template="一张{}的照片")
    assert texts(tmp_path / "b") == [(0, "一张猫的照片", [0, 2, 4]), (1, "一张狗的照片", [1, 3, 5])]
    # A dictionary of splits, with an indices mapping, and pictures by path.
    (tmp_path / "0.jpg").write_bytes(JPEGS[7])
    paths = hf_dataset([{**rows[0], "image": {"bytes": None, "path": str(tmp_path / "0.jpg")}}], features)
    both = datasets.DatasetDict({"train": whole.select([4, 1]), "validation": paths})
    both.save_to_disk(str(tmp_path / "two"))
    run(tmp_path / "two", tmp_path / "c")
    assert list(images(tmp_path / "c", "train").values()) == [JPEGS[4], JPEGS[1]]
    assert list(images(tmp_path / "c", "valid").values()) == [JPEGS[7]]
    # The same rows as Parquet, whose metadata names the classes.
    whole.to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    run(tmp_path / "train-00000-of-00001.parquet", tmp_path / "d", text_columns="label", template="一张{}的照片")
    assert texts(tmp_path / "d") == texts(tmp_path / "b")


def test_a_row_a_caption_with_the_picture_in_each(tmp_path: Path) -> None:
    rows = [{"jpg": JPEGS[i // 3], "txt": f"第{i}句"} for i in range(9)]
    (tmp_path / "data").mkdir()
    for split, part in {"train": rows[:6], "test": rows[6:]}.items():
        pq.write_table(pa.Table.from_pylist(part), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    run(tmp_path, tmp_path / "out", layout="parquet")
    assert list(images(tmp_path / "out", "train").values()) == JPEGS[:2]
    assert [ids for *_, ids in texts(tmp_path / "out", "train")] == [[0]] * 3 + [[1]] * 3
    assert images(tmp_path / "out", "test") == {"2": JPEGS[2]}


def test_ids_of_a_float_column(tmp_path: Path) -> None:
    rows = [{"image": JPEGS[i], "text": "图", "image_id": value} for i, value in enumerate([7.0, None, 1.5, 9.0])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    run(tmp_path / "t.parquet", tmp_path / "out")
    assert list(images(tmp_path / "out")) == ["7", "9"]
    assert list(reasons(tmp_path / "out").values()) == ["missing id", "unusable id"]


def test_a_broken_hf_folder(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    with pytest.raises(UserError, match=r"x\.arrow: no such file"):
        import_data(tmp_path, tmp_path / "out")
    (tmp_path / "x.arrow").write_bytes(b"no arrow in here, whatever its name")
    with pytest.raises(UserError, match=r"x\.arrow: cannot be read"):
        import_data(tmp_path, tmp_path / "out")


# --- WebDataset


def shard(path: Path, samples: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for extension, value in members.items():
                data = value if isinstance(value, bytes) else value.encode()
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_webdataset_shards(tmp_path: Path) -> None:
    png = encoded(Image.new("RGB", (9, 9), "red"), "PNG")
    samples = {
        "a/000": {"jpg": JPEGS[0], "txt": "一只猫\n"},
        "../../escape": {"jpg": JPEGS[1], "txt": "一只狗"},  # a name, not a place
        "b/001": {"txt": "没有图"},
        "b/002": {"jpg": JPEGS[2], "png": png, "txt": "两张图"},
        "b/003": {"jpg": JPEGS[3], "txt": b"\xff\xfe\xfd"},
        "b/004": {"PNG": png, "txt": "红", "npy": "not read"},
    }
    shard(tmp_path / "s" / "train" / "00.tar", samples)
    shard(tmp_path / "s" / "val" / "00.tar", {"x": {"jpg": JPEGS[4], "txt": "验证"}})
    run(tmp_path / "s", tmp_path / "out")
    assert list(images(tmp_path / "out", "train").values()) == [JPEGS[0], JPEGS[1], png]
    assert [text for _, text, _ in texts(tmp_path / "out", "train")] == ["一只猫", "一只狗", "红"]
    assert [text for _, text, _ in texts(tmp_path / "out", "valid")] == ["验证"]
    assert reasons(tmp_path / "out") == {
        "001": "missing image",
        "002": "broken row",
        "003": "broken row",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"s", "out"}


def test_webdataset_json_and_classes(tmp_path: Path) -> None:
    meta = [{"caption": ["猫", "小猫"], "id": 5}, {"caption": "狗", "id": 8}]
    shard(
        tmp_path / "a.tar",
        {f"{i}": {"jpg": JPEGS[i], "json": json.dumps(row), "cls": str(i)} for i, row in enumerate(meta)},
    )
    run(tmp_path / "a.tar", tmp_path / "out", image_id_column="json.id")
    assert texts(tmp_path / "out") == [(0, "猫", [5]), (1, "小猫", [5]), (2, "狗", [8])]
    (tmp_path / "labels.txt").write_text("一\n二\n", "utf-8")
    run(tmp_path / "*.tar", tmp_path / "cls", text_columns="cls", label_file=tmp_path / "labels.txt")
    assert [text for _, text, _ in texts(tmp_path / "cls")] == ["一", "二"]
    run(tmp_path / "a.tar", tmp_path / "keys", image_id_column="__key__", template="图：{}")
    assert texts(tmp_path / "keys")[2] == (2, "图：狗", [1])


def test_shards_written_by_the_webdataset_package(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=3, verbose=0) as sink:
        for i in range(7):
            sink.write({"__key__": f"k{i:04}", "jpg": JPEGS[i], "txt": f"第{i}句", "json": {"n": i}})
    run(tmp_path / "*.tar", tmp_path / "out")
    assert list(images(tmp_path / "out").values()) == JPEGS[:7]
    assert [text for _, text, _ in texts(tmp_path / "out")] == [f"第{i}句" for i in range(7)]


def test_a_damaged_shard_costs_its_rest_only(tmp_path: Path) -> None:
    for number in range(2):
        shard(
            tmp_path / "s" / f"{number}.tar",
            {f"{i}": {"jpg": JPEGS[4 * number + i], "txt": f"第{number}{i}句"} for i in range(4)},
        )
    data = (tmp_path / "s" / "0.tar").read_bytes()
    (tmp_path / "s" / "0.tar").write_bytes(data[: len(data) // 2])
    run(tmp_path / "s", tmp_path / "out")
    found = list(images(tmp_path / "out").values())
    assert found[-4:] == JPEGS[4:]
    assert found[:-4] == JPEGS[: len(found) - 4]
    assert len(found) < 8
    assert reasons(tmp_path / "out") == {"0.tar": "damaged shard"}


# --- COCO-CN and Flickr30K-CN


def coco(root: Path, nested: bool) -> None:
    names = ["COCO_train2014_000000000101", "COCO_val2014_000000000202", "COCO_train2014_000000000303"]
    for name, data in zip(names, JPEGS, strict=False):
        folder = root / "images" / (name.split("_")[1] if nested else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(data)
    for split, name in zip(("train", "val", "test"), names, strict=True):
        (root / f"coco-cn_{split}.txt").write_text(f"{name}\n")
    lines = [
        f"{names[0]}#0\t一只猫",
        f"{names[0]}#1\t猫",
        f"{names[1]}#0\t狗 和 猫",
        f"{names[2]}#0\t鸟",
        "COCO_x_9#0\t无",
    ]
    (root / "imageid.human-written-caption.txt").write_text("\n".join(lines), "utf-8")
    (root / "imageid.manually-translated-caption.txt").write_text(f"{names[2]}#0\t译文\n", "utf-8")
    (root / "imageid.human-written-caption.bosonseg.txt").write_text(f"{names[2]}#0\t两 只 鸟\n", "utf-8")


@pytest.mark.parametrize("nested", [True, False])
def test_coco_cn(tmp_path: Path, nested: bool) -> None:
    coco(tmp_path / "c", nested)
    run(tmp_path / "c", tmp_path / "out")
    assert texts(tmp_path / "out", "train") == [(0, "一只猫", [101]), (1, "猫", [101])]
    assert texts(tmp_path / "out", "valid") == [(2, "狗 和 猫", [202])]
    assert texts(tmp_path / "out", "test") == [(3, "鸟", [303])]
    assert images(tmp_path / "out", "valid") == {"202": JPEGS[1]}
    assert reasons(tmp_path / "out") == {"imageid.human-written-caption.txt:5": "not in a split"}


def test_coco_cn_with_other_captions(tmp_path: Path) -> None:
    coco(tmp_path / "c", True)
    source = tmp_path / "c" / "imageid.manually-translated-caption.txt"
    run(source, tmp_path / "out", images=tmp_path / "c" / "images")
    assert texts(tmp_path / "out", "test") == [(0, "译文", [303])]
    run(source.with_name("imageid.human-written-caption.bosonseg.txt"), tmp_path / "seg")
    assert texts(tmp_path / "seg", "test") == [(0, "两只鸟", [303])]


def test_coco_cn_without_pictures(tmp_path: Path) -> None:
    coco(tmp_path / "c", True)
    (tmp_path / "c" / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--images names the folder that has train2014 and val2014"):
        import_data(tmp_path / "c", tmp_path / "out")
    run(tmp_path / "c", tmp_path / "out", images=tmp_path / "elsewhere")
    assert images(tmp_path / "out", "test") == {"303": JPEGS[2]}


def test_flickr30k_cn(tmp_path: Path) -> None:
    root = tmp_path / "f"
    folders = {
        "flickr30kzhbbosontrain": ["101#zhb#0 一只 猫  在 跑", "101#zhb#1 三 只 dog show", "102#zhb#0 鸟"],
        "flickr30kzhbbosonval": ["103#zhb#0 狗"],
        "flickr30kzhbbosontest": ["104#zhb#0 机器 译"],
        "flickr30kzhmbosontest": ["104#zhm#0 人:n 译:v 的:ude1"],
    }
    for name, lines in folders.items():
        (root / name / "TextData").mkdir(parents=True)
        (root / name / "TextData" / f"seg.{name}.caption.txt").write_text("\n".join(lines), "utf-8")
        (root / name / "ImageSets").mkdir()
        (root / name / "ImageSets" / f"{name}.txt").write_text("101\n")
    (root / "flickr30k-images").mkdir()
    for i in range(4):
        (root / "flickr30k-images" / f"{101 + i}.jpg").write_bytes(JPEGS[i])
    run(root, tmp_path / "out")
    assert texts(tmp_path / "out", "train") == [
        (0, "一只猫，在跑", [101]),
        (1, "三只dog show", [101]),
        (2, "鸟", [102]),
    ]
    assert texts(tmp_path / "out", "valid") == [(3, "狗", [103])]
    assert texts(tmp_path / "out", "test") == [(4, "人译的", [104])]  # people's translation, not the machine's


def test_flickr30k_cna(tmp_path: Path) -> None:
    for split, name in {
        "train": "flickr30k_cna_train",
        "val": "flickr30k_cna_val",
        "test": "flickr30k_cn_test",
    }.items():
        (tmp_path / "f" / split).mkdir(parents=True)
        number = len(name)
        lines = f"{number}.jpg#0\t两只 狗。\n{number}.jpg#1\t狗\n"
        (tmp_path / "f" / split / f"{name}.txt").write_text(lines, "utf-8")
    (tmp_path / "p").mkdir()
    for number, data in zip((19, 17), JPEGS, strict=False):
        (tmp_path / "p" / f"{number}.jpg").write_bytes(data)
    with pytest.raises(UserError, match="--images names the folder"):
        import_data(tmp_path / "f", tmp_path / "out")
    run(tmp_path / "f", tmp_path / "out", clean=False, images=tmp_path / "p")
    assert texts(tmp_path / "out", "train") == [(0, "两只 狗。", [19]), (1, "狗", [19])]
    assert texts(tmp_path / "out", "test")[0] == (4, "两只 狗。", [17])


def test_segmented_words_are_joined() -> None:
    assert join_words("两只:m 小:a 狗:n") == "两只小狗"
    assert join_words("一个 人  在 骑 BMX bike") == "一个人，在骑BMX bike"
    assert join_words("3 点 : 30") == "3点:30"
    assert join_words("") == ""


def test_the_columns_of_a_layout_can_be_overruled(tmp_path: Path) -> None:
    classes(tmp_path / "d", ["狗", "猫"])
    run(tmp_path / "d", tmp_path / "out", splits="train=1,valid=1", group_column="class")
    both = [
        {text for _, text, _ in texts(tmp_path / "out", split)}
        for split in report(tmp_path / "out")[-1]["summary"]["splits"]
    ]
    assert set.union(*both) == {"狗", "猫"}
    assert sum(map(len, both)) == 2


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d" / "猫", 5)
    run(tmp_path / "d", tmp_path / "a")
    run(tmp_path / "d", tmp_path / "b", workers=2)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
