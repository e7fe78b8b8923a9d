"""One dataset in every format: the same images, pairs and batches, from any process; and which path means what."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from braceexpand import braceexpand
from hypothesis import example, given, settings
from hypothesis import strategies as st

import formats_written as written
from cn_clip.data import index as index_module
from cn_clip.data.formats import image_to_base64, write_images, write_texts
from cn_clip.data.loader import PairDataset, TrainLoader, ValidationData
from cn_clip.data.readers import braces, find_source, open_images, open_split, read_captions
from cn_clip.errors import UserError

FORMATS = ["TSV", "WebDataset", "Parquet", "Parquet snappy", "Parquet HF"]
POOLS: list[Any] = []  # Arrow's buffers must not outlive the pool they are from


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset in every format, its integer ids and string ids."""
    root = tmp_path_factory.mktemp("readers")
    for name, prefix in (("int", ""), ("str", "图-")):
        folder = written.write_tsv(root / name, prefix)
        images, pairs = written.content(folder)
        written.write_shards(folder / "shards", images, pairs)
        plain: dict[str, Any] = {"compression": "none", "use_dictionary": False}
        written.write_parquet(folder / "plain" / "train.parquet", images, pairs, False, **plain)
        written.write_parquet(folder / "snappy.parquet", images, pairs, row_group_size=3)
        for part, rows in enumerate((pairs[:5], pairs[5:])):
            written.write_parquet(
                folder / "hf" / f"train-{part:05}-of-00002.parquet", images, rows, True, **plain, row_group_size=4
            )
        written.write_parquet(folder / "hf" / "test-00000-of-00001.parquet", images, pairs[:2], True, **plain)
    return root


def path_of(folder: Path, kind: str) -> Path:
    """Where the dataset is in a format."""
    return {
        "LMDB": folder / "lmdb" / "train",
        "TSV": folder / "train",
        "WebDataset": folder / "shards" / "train-{0000..0002}.tar",
        "Parquet": folder / "plain",
        "Parquet snappy": folder / "snappy.parquet",
        "Parquet HF": folder / "hf" / "train",
    }[kind]


# The same content


@pytest.mark.parametrize("ids", ["int", "str"])
@pytest.mark.parametrize("kind", FORMATS)
def test_images_and_pairs_are_those_of_the_lmdb(data: Path, kind: str, ids: str) -> None:
    folder = data / ids
    split, lmdb = open_split(path_of(folder, kind)), open_split(path_of(folder, "LMDB"))
    images, pairs = written.content(folder)
    assert (split.kind, lmdb.kind) == (kind.split()[0], "LMDB")
    assert list(split.pairs) == [split.pairs[i] for i in range(len(split.pairs))] == list(lmdb.pairs) == pairs
    assert split.images.num_images == len(split.images) == len(images) == 7
    assert sorted(split.images.ids()) == sorted(lmdb.images.ids())
    assert {type(i) for i in split.images.ids()} == {int if ids == "int" else str}
    for image_id in reversed(split.images.ids()):
        assert split.images[image_id] == lmdb.images[image_id] == images[str(image_id)]
        assert split.images[str(image_id)] == images[str(image_id)]  # ids are compared as strings
        assert image_id in split.images
        assert str(image_id) in split.images.where(image_id)
    for stranger in (99, "99", "x", "", -1, 2**70, "007"):
        assert stranger not in split.images
        with pytest.raises(UserError, match="there is no image with the id"):
            split.images[stranger]
    with pytest.raises(IndexError):
        split.pairs[11]
    with pytest.raises(IndexError):
        split.pairs[-1]


def same(a: object, b: object) -> bool:
    return all(torch.equal(value, vars(b)[name]) for name, value in vars(a).items())


@pytest.mark.parametrize("kind", FORMATS)
def test_batches_are_bit_identical_to_those_of_the_lmdb(data: Path, kind: str) -> None:
    def batches(which: str, workers: int, skip: int) -> list[object]:
        dataset = PairDataset(path_of(data / "int", which), 16, 12, "light", 5)
        loader = TrainLoader(dataset, 4, workers, seed=9)
        return list(loader.batches(0, skip, 2, loader.num_batches))

    expected = batches("LMDB", 0, 0)
    assert len(expected) == 6
    for workers, skip in ((0, 0), (2, 1)):  # by workers, and resumed
        assert all(same(a, b) for a, b in zip(batches(kind, workers, skip), expected[skip:], strict=True))
    ours, theirs = (
        ValidationData(path_of(data / "int", which), 16, 12, batch_size=3, workers=0) for which in (kind, "LMDB")
    )
    assert np.array_equal(ours.pairs, theirs.pairs)
    assert (ours.image_ids, ours.texts) == (theirs.image_ids, theirs.texts)
    assert torch.equal(torch.cat(list(ours.image_batches())), torch.cat(list(theirs.image_batches())))


def _read_in_child(split: Any, queue: Any) -> None:
    queue.put([split.images[image_id] for image_id, _, _ in split.pairs])


@pytest.mark.parametrize("kind", FORMATS)
def test_readers_are_forked_pickled_and_shared_by_threads(data: Path, kind: str) -> None:
    split = open_split(path_of(data / "str", kind))
    ids = [image_id for image_id, _, _ in split.pairs]
    expected = [split.images[i] for i in ids]  # files are open now
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_in_child, args=(split, queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()
    assert [split.images[i] for i in ids] == expected
    sent = pickle.dumps(split)
    assert len(sent) < 5000  # paths, not arrays
    again = pickle.loads(sent)
    assert list(again.pairs) == list(split.pairs)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(again.images.__getitem__, ids * 20)) == expected * 20


# One sample a picture, with several captions


def test_shards_as_others_write_them(tmp_path: Path) -> None:
    """Keys as ids, captions in .txt or JSON, other members, folders, long names: as webdataset reads."""
    with wds.TarWriter(str(tmp_path / "a-0.tar")) as writer:
        writer.write({"__key__": "dir.x/000012", "JPG": written.picture(0), "txt": "一只猫", "cls": 3})
        writer.write({"__key__": "000013", "png": written.picture(1), "json": {"caption": "狗", "width": 3}})
        writer.write({"__key__": "n" * 300, "webp": written.picture(2), "json": {"captions": ["甲", "乙"]}})
        writer.write({"__key__": "e", "seg.png": written.picture(3), "json": {"text": []}})
    split = open_split(tmp_path)
    assert split.images.ids() == ["dir.x/000012", "000013", "n" * 300, "e"]
    samples = written.as_written(str(tmp_path / "a-0.tar"))
    assert [sample["__key__"] for sample in samples] == split.images.ids()
    for sample, image in zip(samples, ("jpg", "png", "webp", "seg.png"), strict=True):
        assert split.images[sample["__key__"]] == sample[image]
    assert list(split.pairs) == [
        ("dir.x/000012", 0, "一只猫"),
        ("000013", 1, "狗"),
        ("n" * 300, 2, "甲"),
        ("n" * 300, 3, "乙"),
    ]
    assert [split.pairs[i] for i in range(4)] == list(split.pairs)
    assert list(read_captions(tmp_path)) == [(i, pair[2]) for i, pair in enumerate(split.pairs)]


def test_members_and_columns_are_named_where_they_cannot_be_guessed(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "s.tar")) as writer:
        for i in range(3):
            pictures = {"a.jpg": written.picture(i), "b.jpg": written.picture(i + 10)}
            fields = {"zh": f"中{i}", "n": 50 - i, "t": [7 + i]}
            writer.write({"__key__": f"k{i}", **pictures, "alt.txt": f"别{i}", "json": fields})
    with pytest.raises(UserError, match=r"k0 has several pictures \(\.a\.jpg, \.b\.jpg.*name one with \?image="):
        open_split(tmp_path / "s.tar")
    split = open_split(f"{tmp_path}/s.tar?image=b.jpg&text=json.zh&image_id=n&text_id=t")
    assert list(split.pairs) == [(50, 7, "中0"), (49, 8, "中1"), (48, 9, "中2")]
    assert split.images[49] == written.picture(11)
    split = open_split(Path(f"{tmp_path}/*.tar?image=a.jpg&text=alt.txt"))
    assert list(split.pairs) == [("k0", 0, "别0"), ("k1", 1, "别1"), ("k2", 2, "别2")]
    columns = {"a": [written.picture(0)], "b": [written.picture(1)], "zh": [["甲", "乙"]], "n": ["x"]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"no column of pictures .*\?image=COLUMN; the columns are a \(binary\)"):
        open_images(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"no column of captions .*\?text=COLUMN"):
        open_split(f"{tmp_path}/p.parquet?image=b")
    assert open_images(f"{tmp_path}/p.parquet?image=b")[0] == written.picture(1)
    split = open_split(f"{tmp_path}/p.parquet?image=b&text=zh&image_id=n")
    assert list(split.pairs) == [("x", 0, "甲"), ("x", 1, "乙")]


def test_parquet_rows_without_ids_are_numbered_over_files(tmp_path: Path) -> None:
    for part in range(3):
        cells = [written.picture(part * 4 + i) for i in range(4)]
        captions = [None, [], ["甲"], ["乙", None, "丙"]]
        pq.write_table(
            pa.table({"jpg": cells, "caption": captions}), tmp_path / f"{part}.parquet", compression="none"
        )
    split = open_split(tmp_path)
    assert split.images.ids() == list(range(12))
    assert split.images[9] == written.picture(9)
    assert [pair[0] for pair in split.pairs] == [2, 3, 3, 6, 7, 7, 10, 11, 11]
    assert [split.pairs[i] for i in range(9)] == list(split.pairs)
    assert [pair[1:] for pair in split.pairs][3:6] == [(3, "甲"), (4, "乙"), (5, "丙")]


def test_rows_of_one_image_id_are_one_picture(tmp_path: Path) -> None:
    columns = {"image": [written.picture(i) for i in (0, 1, 0)], "image_id": [5, 3, 5], "text": ["a", "b", "c"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    split = open_split(tmp_path / "a.parquet")
    assert split.images.ids() == [5, 3]
    assert list(split.pairs) == [(5, 0, "a"), (3, 1, "b"), (5, 2, "c")]
    assert split.images[3] == written.picture(1)


def test_read_captions(data: Path) -> None:
    expected = [(100 + i, text) for i, text in enumerate(written.TEXTS)]
    for path in (
        data / "int" / "train_texts.jsonl",
        *(path_of(data / "int", kind) for kind in ["LMDB", *FORMATS]),
    ):
        assert list(read_captions(path)) == expected


# Which path is what


def test_paths(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data / "int"
    shards = sorted((folder / "shards").glob("*.tar"))
    for path, kind, files in [
        (folder / "train", "TSV", [folder / "train_imgs.tsv", folder / "train_texts.jsonl"]),
        (folder / "train_imgs.tsv", "TSV", [folder / "train_imgs.tsv", folder / "train_texts.jsonl"]),
        (folder / "lmdb" / "train", "LMDB", [folder / "lmdb" / "train"]),
        (folder / "shards", "WebDataset", shards),
        (folder / "shards" / "*.tar", "WebDataset", shards),
        (folder / "shards" / "train-000?.tar", "WebDataset", shards),
        (folder / "shards" / "train-{0002,0000}.tar", "WebDataset", [shards[2], shards[0]]),
        (folder / "shards" / "train", "WebDataset", shards),
        (shards[1], "WebDataset", [shards[1]]),
        (folder / "snappy.parquet", "Parquet", [folder / "snappy.parquet"]),
        (folder / "**" / "snappy.parquet", "Parquet", [folder / "snappy.parquet"]),
        (folder / "hf" / "test", "Parquet", [folder / "hf" / "test-00000-of-00001.parquet"]),
    ]:
        source = find_source(path)
        assert (source.kind, source.files) == (kind, files), path
    monkeypatch.chdir(folder)
    split = open_split("shards")
    monkeypatch.chdir(tmp_path)  # paths are absolute from the start
    assert len(split.images[split.pairs[0][0]]) > 0
    assert open_images(folder / "train_imgs.tsv").ids() == list(range(7))
    assert open_images(folder / "lmdb" / "train" / "imgs").ids() == open_images(folder / "lmdb" / "train").ids()


def test_wrong_paths_say_what_is_accepted_and_what_was_found(data: Path, tmp_path: Path) -> None:
    folder = data / "int"
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for name in "abcdefg":
        (tmp_path / "other" / name).touch()
    (tmp_path / "x.zip").touch()
    (tmp_path / "x.tar.gz").touch()
    (tmp_path / "only_imgs.tsv").touch()
    for path, expected in [
        (tmp_path / "none", "no such folder or file; expected an LMDB split"),
        (tmp_path / "none*.tar", "no file matches; expected"),
        (tmp_path / "none-{0..1}.tar", "none-0.tar: no such file"),
        (tmp_path / "empty", "an empty folder; expected"),
        (tmp_path / "other", "a folder of a, b, c, d, e, … (7 in all); expected"),
        (tmp_path / "x.zip", "x.zip is neither a .tar nor a .parquet file; expected"),
        (tmp_path / "x.tar.gz", "a compressed tar, whose members cannot be read one by one; decompress"),
        (tmp_path / "only", "only_texts.jsonl: no such file, which only_imgs.tsv needs beside it"),
        (folder / "hf", "holds the splits test, train; name one, such as"),
        (folder / "{snappy.parquet,shards/train-0000.tar}", "both .tar and .parquet files"),
        (folder / "shards/train-{0000,0000}.tar", "names a file twice"),
        (folder / "shards?picture=jpg", "'picture=jpg' after ?; expected NAME=VALUE"),
        (folder / "shards?image=", "'image=' after ?; expected NAME=VALUE"),
        (folder / "train?image=a", "TSV data have no columns to name"),
        (folder / "snappy.parquet?image=a", "no column 'a'; the columns are image (struct"),
        (folder / "snappy.parquet?image=text", "column 'text' is string, but the image must be bytes"),
        (folder / "shards?image=gif", "has no .gif member; found"),
    ]:
        with pytest.raises(UserError) as caught:
            open_split(path)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


@given(text=st.text("ab0129{},.-*", max_size=14))
@example("a{000..010}b{x,y}")
@example("{9..11}")
@example("a{1..3}{}{b")
@settings(deadline=None, max_examples=300)
def test_braces_expand_as_the_webdataset_package_does(text: str) -> None:
    depth = 0
    for letter in text:  # nested braces are not ours: no shard is named by them
        depth += (letter == "{") - (letter == "}")
        if depth not in (0, 1):
            return
    if depth or (".." in text and not _plain_ranges(text)):
        return
    assert braces(text) == list(braceexpand(text))


def _plain_ranges(text: str) -> bool:
    inner = re.findall(r"\{([^}]*\.\.[^}]*)\}", text)
    return all(re.fullmatch(r"\d+\.\.\d+", part) for part in inner)


# The index


def test_the_index_is_kept_beside_the_data_and_made_anew_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    save = index_module._save
    monkeypatch.setattr(index_module, "_save", lambda *args: (built.append(args[0].name), save(*args)))
    written.write_tsv(tmp_path)
    images, pairs = written.content(tmp_path)
    path = written.write_parquet(tmp_path / "a.parquet", images, pairs)
    for _ in range(2):
        open_split(tmp_path / "train")
        open_split(path)
    assert len(built) == 3
    assert sorted(f.name for f in tmp_path.iterdir() if f.suffix == ".index") == sorted(built)
    written.write_parquet(path, images, pairs[:4])
    assert len(open_split(path).pairs) == 4
    tsv = tmp_path / "train_imgs.tsv"
    tsv.write_text("\n\ufeff\n"[:1] + tsv.read_text())  # a blank line
    assert open_split(tmp_path / "train").images[3] == images["3"]
    assert len(built) == 6
    for name in built[-3:]:  # a damaged side file is made anew
        whole = (tmp_path / name).read_bytes()
        for broken in (b"", whole[:20], whole[:200], whole[:-1], b"x" + whole[1:]):
            (tmp_path / name).write_bytes(broken)
            assert open_split(tmp_path / "train").images[3] == images["3"]
            assert open_split(path).pairs[3] == pairs[3]
            assert (tmp_path / name).read_bytes() == whole


def test_where_one_may_not_write_it_goes_to_the_cache_or_stays_in_memory(data: Path, tmp_path: Path) -> None:
    """As another user, in a process of its own; the cache is a folder, then a file."""
    script = (
        "import sys, os\n"
        "from cn_clip.data import index\n"
        "from cn_clip.data.readers import open_split\n"
        "import pickle\n"
        "save = index.atomic_open\n"
        "def refuse(path, mode):\n"
        "    if not str(path).startswith(os.environ['XDG_CACHE_HOME']):\n"
        "        raise PermissionError(13, 'no', str(path))\n"
        "    return save(path, mode)\n"
        "index.atomic_open = refuse\n"
        "split = pickle.loads(pickle.dumps(open_split(sys.argv[1])))\n"
        "print(len(split.pairs), len(split.images[split.pairs[3][0]]))\n"
    )
    folder = written.write_tsv(tmp_path / "data")
    images, pairs = written.content(folder)
    cache = tmp_path / "cache"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    for _ in range(2):
        command = [sys.executable, "-c", script, str(folder / "train")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stdout == f"11 {len(images[str(pairs[3][0])])}\n", done.stderr
        assert not list(folder.glob("*.index"))
        assert cache.is_file() or len(list(cache.rglob("*.index"))) == 2
        if cache.is_dir():
            subprocess.run(["rm", "-r", str(cache)], check=True)
            cache.touch()


def test_bytes_a_row(tmp_path: Path) -> None:
    """The numbers that the module heads and the documentation name."""
    with open(tmp_path / "a_imgs.tsv", "w") as tsv, open(tmp_path / "a_texts.jsonl", "w") as texts:
        for i in range(1000):
            tsv.write(f"{i}\tAAAA\n")
            texts.write(json.dumps({"text_id": i, "text": "猫", "image_ids": [i]}) + "\n")
    split: Any = open_split(tmp_path / "a")
    assert split.images._index.nbytes == 20 * 1000
    assert split.pairs._index.nbytes == 12 * 1000
    pq.write_table(pa.table({"image": [b"abc"] * 1000, "text": ["猫"] * 1000}), tmp_path / "a.parquet")
    assert open_split(tmp_path / "a.parquet").images.index.nbytes == (16 + 8 + 8 + 3) * 1000  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["TSV", "WebDataset", "Parquet", "Parquet HF", "Parquet snappy"])
def test_memory_is_that_of_a_few_images(tmp_path: Path, kind: str) -> None:
    """Making the index and reading, of 12 MB: Python's memory, and Arrow's (row groups of 300 KB)."""
    images = {str(i): np.random.default_rng(i).bytes(30_000) for i in range(400)}
    pairs: written.Pairs = [(i, i, f"第{i}张") for i in range(400)]
    write_images(tmp_path / "train_imgs.tsv", ((key, image_to_base64(data)) for key, data in images.items()))
    write_texts(tmp_path / "train_texts.jsonl", ((i, text, [i]) for i, _, text in pairs))
    written.write_shards(tmp_path / "shards", images, pairs, per_shard=150)
    written.write_parquet(tmp_path / "plain" / "a.parquet", images, pairs, False, compression="none")
    written.write_parquet(
        tmp_path / "hf" / "train-0.parquet", images, pairs, compression="none", use_dictionary=False
    )
    written.write_parquet(tmp_path / "snappy.parquet", images, pairs, row_group_size=10)
    pool, old = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        split: Any = open_split(path_of(tmp_path, kind))
        if kind == "Parquet snappy":
            split.images._elsewhere.kept_bytes = 1 << 20
        for i in np.random.default_rng(0).permutation(400).tolist():
            assert split.images[split.pairs[i][0]] == images[str(i)]
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
        assert pool.max_memory() < 4_000_000
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(old)


# Wrong content


def rewritten(path: Path, change: Any) -> Path:
    data = bytearray(path.read_bytes())
    changed = change(data)
    path.write_bytes(data if changed is None else changed)
    return path


def _sample(key: str, image: bytes, fields: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image), (f"{key}.json", fields.encode())]


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def refused(path: Path | str, expected: str) -> None:
    def read() -> None:
        split = open_split(path)
        for image_id, _, _ in split.pairs:
            split.images[image_id]

    with pytest.raises(UserError) as caught:
        read()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_tars(tmp_path: Path) -> None:
    good = [("a.jpg", written.picture(0)), ("a.txt", "猫".encode()), ("b.jpg", b"x" * 5000), ("b.txt", b"dog")]
    whole = tar(tmp_path / "whole.tar", good).read_bytes()
    sizes = [512 + -(-len(content) // 512) * 512 for _, content in good]
    ends = np.cumsum(sizes).tolist()
    assert len(open_split(tmp_path / "whole.tar").pairs) == 2
    broken = tmp_path / "broken.tar"
    for length in (
        1,
        511,
        512,
        600,
        ends[0],
        ends[0] + 10,
        ends[1] + 512,
        ends[2] - 1,
        ends[2],
        ends[3] - 1,
        ends[3],
    ):
        broken.write_bytes(whole[:length])
        refused(broken, f"{broken}: ")
    rewritten(tar(broken, good), lambda data: data.__setitem__(slice(ends[1], ends[1] + 100), b"?" * 100))
    refused(broken, f"damaged at byte {ends[1]}")
    broken.write_bytes(b"")
    refused(broken, "damaged, or not a tar file: empty file")
    broken.write_bytes(b"not a tar" * 200)
    refused(broken, "damaged, or not a tar file")
    broken.write_bytes(gzip.compress(whole))
    refused(broken, "compressed with gzip")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("a.txt", b"cat"), ("a.json", b"{}")], "sample a has no picture (a member .jpg"),
        ([("a.jpg", b"x")], "sample a has no caption; expected a member .txt"),
        ([("a.jpg", b"x"), ("a.txt", b"\xff")], "a.txt: not UTF-8 text"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], "a.json: expected a JSON object"),
        ([("a.jpg", b"x"), ("a.json", b'{"caption": 3}')], "'caption' is neither a string nor a list of strings"),
        ([("a.jpg", b"x"), ("a.txt", b"c"), ("a.JPG", b"y")], "the sample a has two members .jpg"),
        ([("a.jpg", b"x"), ("a.txt", b"c"), ("b.jpg", b"x"), ("b.txt", b"c"), ("a.png", b"y")], "stands in"),
        ([("a.jpg", b"x"), ("a.txt", b"c"), ("b.jpg", b"x"), ("b.txt", b"c")] * 2, "sample a: the id stands in"),
        (
            [
                *_sample("a", b"x", '{"text": "c", "image_id": 1}'),
                *_sample("b", b"xy", '{"text": "c", "image_id": 1}'),
            ],
            "image id 1 stands for two pictures: this one of 2 bytes, and one of 1",
        ),
        (
            [
                *_sample("a", b"x", '{"text": "c", "image_id": 1}'),
                *_sample("b", b"x", '{"text": "c", "image_id": "x"}'),
            ],
            "is a string, but the ids before it are integers",
        ),
        (
            [("a.jpg", b"x"), ("a.txt", b"c"), ("b.jpg", b"x"), ("b.json", b'{"text": "c", "image_id": "i"}')],
            "1 of 2 samples have an image_id; all or none",
        ),
        (
            [("a.jpg", b"x"), ("a.json", b'{"captions": ["c", "d"], "text_id": 1}')],
            "2 captions, but 1 text ids",
        ),
        ([("readme", b"x")], "no samples in 1 file"),
    ],
)
def test_wrong_samples(tmp_path: Path, members: list[tuple[str, bytes]], expected: str) -> None:
    refused(tar(tmp_path / "a.tar", members), expected)


def test_a_key_in_two_shards(tmp_path: Path) -> None:
    for name in "xy":
        tar(tmp_path / f"{name}.tar", [("a.jpg", b"x"), ("a.txt", b"c")])
    refused(tmp_path, f"{tmp_path}/y.tar: sample a: the id stands in {tmp_path}/x.tar already")


def test_images_without_captions_can_be_extracted(tmp_path: Path) -> None:
    images = open_images(tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("b.jpg", b"yz")]))
    assert [(i, images[i]) for i in images.ids()] == [("a", b"x"), ("b", b"yz")]
    refused(tmp_path / "a.tar", "sample a has no caption")


def test_broken_parquet(tmp_path: Path, data: Path) -> None:
    images, pairs = written.content(data / "int")
    path = tmp_path / "a.parquet"
    for options in ({"compression": "none"}, {"compression": "none", "use_dictionary": False}, {}):
        whole = written.write_parquet(path, images, pairs, **options).read_bytes()
        for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            refused(path, f"{path}: damaged, or not a Parquet file: ")
        metadata = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(0).column(0)
        start = metadata.dictionary_page_offset or metadata.data_page_offset
        path.write_bytes(whole[:start] + b"\xee" * 60 + whole[start + 60 :])
        refused(path, f"{path}: damaged")
    columns = {"image": [b"x", None], "text": ["a", "b"]}
    for compression in ("none", "snappy"):
        pq.write_table(pa.table(columns), path, compression=compression)
        refused(path, f"{path}: image 1: there are no bytes of a picture (null)")
    pq.write_table(pa.table({"id": [1, 1], "image": [b"x", b"y"], "text": ["a", "b"]}), path)
    refused(path, "image 1: the id stands in")
    pq.write_table(pa.table({"id": ["1", None], "image": [b"x", b"y"], "text": ["a", "b"]}), path)
    refused(path, "row 1: its id is empty")
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}), path)
    refused(path, "no samples in 1 file")
    pq.write_table(pa.table(columns), path)
    pq.write_table(pa.table({"image": [b"x"], "caption": ["a"]}), tmp_path / "b.parquet")
    refused(tmp_path, "b.parquet: other columns than the first file's: image (binary), caption (string)")


def test_a_huge_compressed_row_group_is_refused(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cn_clip.data.parquet._LARGEST", 5000)
    images, pairs = written.content(data / "int")
    path = written.write_parquet(tmp_path / "a.parquet", images, pairs)
    refused(path, "write the file with compression='none' or row_group_size=100, or convert it with cn-clip data")


def test_few_row_groups_are_kept(data: Path) -> None:
    split: Any = open_split(path_of(data / "int", "Parquet snappy"))
    split.images._elsewhere.kept_bytes = 1
    images, pairs = written.content(data / "int")
    for image_id, _, _ in pairs:
        assert split.images[image_id] == images[str(image_id)]
        assert len(split.images._elsewhere._kept) == 1


@pytest.mark.parametrize(
    ("tsv", "jsonl", "expected"),
    [
        ("1\tAAAA\n\n1\tAAAA\n", "", "a_imgs.tsv:3: image id 1 stands at line 1 already"),
        ("1\tAAAA\nx\tAAAA\nx\tAAAA\n", "", "a_imgs.tsv:3: image id x stands at line 2 already"),
        ("1\tAAAA\nx\n", "", "a_imgs.tsv:2: expected ID, tab, base64"),
        (
            "1\tAAAA\n",
            '{"text_id": 1, "text": "a", "image_ids": [2]}\n',
            "a_texts.jsonl:1: image id 2 of text 1 has",
        ),
        ("1\tAA!A\n", '{"text_id": 1, "text": "a", "image_ids": [1]}\n', "a_imgs.tsv: image 1: bad base64"),
        (
            "1\tAAAA\n",
            '{"text_id": 1, "text": "a", "image_ids": [1]}\n{"text_id": "x", "text": "a", "image_ids": []}\n',
            "a_texts.jsonl:2: text_id 'x' is a string, but the ids before it are integers",
        ),
        ("1\tAAAA\n", '{"text_id": 1, "text": "a"}\n', "a_texts.jsonl:1: field 'image_ids' is missing"),
    ],
)
def test_wrong_lines(tmp_path: Path, tsv: str, jsonl: str, expected: str) -> None:
    (tmp_path / "a_imgs.tsv").write_text(tsv)
    (tmp_path / "a_texts.jsonl").write_text(jsonl)
    refused(tmp_path / "a", expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_data_that_change_while_they_are_read(tmp_path: Path, kind: str) -> None:
    folder = written.write_tsv(tmp_path)
    images, pairs = written.content(folder)
    written.write_shards(folder / "shards", images, pairs)
    written.write_parquet(folder / "snappy.parquet", images, pairs)
    for path in (folder / "plain" / "a.parquet", folder / "hf" / "train-0.parquet"):
        written.write_parquet(path, images, pairs, compression="none")
    split = open_split(path_of(folder, kind))
    for file in [folder / "train_imgs.tsv", *(f for f in folder.rglob("*") if f.suffix in (".tar", ".parquet"))]:
        rewritten(file, lambda data: bytes(reversed(data)) + b"x")
    with pytest.raises(UserError, match="changed since its index was made; start again"):
        split.images[0]


def test_a_tsv_that_lies_about_its_time(tmp_path: Path) -> None:
    """Same size and time, other content: the id at the place is another."""
    (tmp_path / "a_imgs.tsv").write_text("1\tAAAA\n2\tBBBB\n")
    open_images(tmp_path / "a_imgs.tsv")
    stat = (tmp_path / "a_imgs.tsv").stat()
    (tmp_path / "a_imgs.tsv").write_text("2\tBBBB\n1\tAAAA\n")
    os.utime(tmp_path / "a_imgs.tsv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    images = open_images(tmp_path / "a_imgs.tsv")
    with pytest.raises(UserError, match="image 1 is not at its place"):
        images[1]


def test_a_text_id_for_two_texts(tmp_path: Path) -> None:
    columns = {"image": [b"x", b"y"], "text": ["a", "b"], "text_id": [1, 1]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="the text id 1 stands for two texts; the second is 'b'"):
        list(read_captions(tmp_path / "a.parquet"))
