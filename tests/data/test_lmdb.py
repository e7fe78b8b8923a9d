"""LMDB splits: layout, readers in workers, unpickling, and the build."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import run_reference
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cn_clip.cli import main
from cn_clip.data import build_lmdb
from cn_clip.data.formats import image_to_base64, write_images, write_texts
from cn_clip.data.lmdb import LmdbDataset, LmdbImages, LmdbPairs, close, load_pair
from cn_clip.errors import UserError

READ_LMDB = Path(__file__).parents[1] / "reference" / "read_lmdb.py"


def picture(seed: int) -> Image.Image:
    return Image.effect_noise((20, 16), 40 + seed).convert("RGB")


def make(folder: Path, images: int = 12, texts: int = 30, split: str = "train", ids=int) -> Path:
    """A small dataset of real pictures: text i is of the images i mod n and 3i mod n, every fourth of none."""
    write_images(
        folder / f"{split}_imgs.tsv", ((ids(i), image_to_base64(picture(i), "PNG")) for i in range(images))
    )
    rows = [
        (ids(i), f"第{i}只“小猫”", [ids(i % images), ids(3 * i % images)] if i % 4 else []) for i in range(texts)
    ]
    write_texts(folder / f"{split}_texts.jsonl", rows)
    return folder


def build(folder: Path, *arguments: object, splits: str = "train") -> int:
    return main(["data", "build-lmdb", "--data_dir", str(folder), "--splits", splits, *map(str, arguments)])


def records(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


def raw(path: Path, items: dict[bytes, bytes]) -> Path:
    """Any LMDB at all."""
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for key, value in items.items():
            transaction.put(key, value)
    return path


# The layout


def test_both_implementations_write_and_read_the_same(tmp_path):
    make(tmp_path)
    make(tmp_path, images=5, texts=9, split="valid")
    assert build(tmp_path, "--lmdb_dir", tmp_path / "ours", splits="train,valid") == 0
    run_reference(
        "cn_clip.preprocess.build_lmdb_dataset",
        *("--data_dir", tmp_path, "--splits", "train,valid", "--lmdb_dir", tmp_path / "theirs"),
    )
    for split in ("train", "valid"):
        ours, theirs = tmp_path / "ours" / split, tmp_path / "theirs" / split
        assert records(ours / "imgs") == records(theirs / "imgs")
        assert records(ours / "pairs") == records(theirs / "pairs")
        mine, other = LmdbDataset(ours), LmdbDataset(theirs)
        assert list(mine.images) == list(other.images)
        assert list(mine.pairs) == list(other.pairs)
    out = run_reference(READ_LMDB, tmp_path / "ours" / "train", tmp_path / "theirs" / "train")
    ours, theirs = (json.loads(line[5:]) for line in out.splitlines() if line.startswith("READ "))
    assert ours == theirs
    assert ours["images"] == 12
    assert sorted(row[0] for row in ours["gallery"]) == list(range(12))
    assert ours["samples"] == 44


@pytest.mark.parametrize("ids", [int, "图/{}.png".format])
def test_readers_give_what_the_files_hold(tmp_path, ids):
    make(tmp_path, ids=ids)
    assert build(tmp_path) == 0
    dataset = LmdbDataset(tmp_path / "lmdb" / "train")
    assert len(dataset.images) == dataset.images.num_images == 12
    expected = [
        (ids(image), ids(i), f"第{i}只“小猫”") for i in range(30) if i % 4 for image in (i % 12, 3 * i % 12)
    ]
    assert list(dataset.pairs) == expected
    assert len(dataset.pairs) == len(expected)
    content = {str(ids(i)): base64.b64decode(image_to_base64(picture(0), "PNG"))[:8] for i in range(12)}
    assert {key: data[:8] for key, data in dataset.images} == content
    assert dataset.images.keys() == sorted(content, key=str.encode)
    assert set(dataset.images.ids()) == {ids(i) for i in range(12)}
    with Image.open(BytesIO(dataset.images[ids(7)])) as image:
        assert image.size == (20, 16)
    assert ids(7) in dataset.images
    assert ids(12) not in dataset.images
    assert "x" * 600 not in dataset.images
    with pytest.raises(UserError, match="no image with the id 'nowhere'"):
        dataset.images["nowhere"]
    for index in (-1, len(expected)):
        with pytest.raises(IndexError):
            dataset.pairs[index]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_ids_and_texts_come_back(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    letters = st.text(st.characters(codec="utf-8", categories=["L", "N", "S"]), min_size=1, max_size=20)
    ids = data.draw(st.sampled_from([st.integers(-(2**63), 2**63 - 1), letters]))
    images = data.draw(st.dictionaries(ids, st.binary(min_size=1, max_size=9000), min_size=1, max_size=8))
    some = st.lists(st.sampled_from(list(images)), max_size=3)
    texts = data.draw(st.lists(st.tuples(ids, st.text(st.characters(codec="utf-8")), some), max_size=8))
    write_images(folder / "a_imgs.tsv", [(key, base64.urlsafe_b64encode(value)) for key, value in images.items()])
    write_texts(folder / "a_texts.jsonl", texts)
    assert build_lmdb.build_split(folder, "a", folder / "out") == (len(images), sum(len(row[2]) for row in texts))
    dataset = LmdbDataset(folder / "out")
    assert {key: dataset.images[key] for key in images} == images
    assert dict(dataset.images) == {str(key): value for key, value in images.items()}
    assert list(dataset.pairs) == [(image, text_id, text) for text_id, text, found in texts for image in found]
    close(folder / "out" / "imgs")
    close(folder / "out" / "pairs")


# Readers


class Pairs(Dataset):
    """As a training set uses the readers; says which process read."""

    def __init__(self, path: Path) -> None:
        self.data = LmdbDataset(path)

    def __len__(self) -> int:
        return len(self.data.pairs)

    def __getitem__(self, index: int) -> tuple[int, tuple, bytes]:
        pair = self.data.pairs[index]
        return os.getpid(), pair, self.data.images[pair[0]]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_parent_reads_while_it_reads(tmp_path, method):
    make(tmp_path)
    build(tmp_path)
    dataset = Pairs(tmp_path / "lmdb" / "train")
    here = [dataset[i][1:] for i in range(len(dataset))]  # the environments are open before the fork
    context = multiprocessing.get_context(method)
    keep = method == "spawn"  # a spawned worker takes seconds to start
    loader = DataLoader(
        dataset, 4, num_workers=2, multiprocessing_context=context, collate_fn=list, persistent_workers=keep
    )
    for _ in range(2):  # a second epoch opens nothing twice
        rows = []
        for batch in loader:
            rows += batch
            assert dataset[3][1:] == here[3]
        assert [row[1:] for row in rows] == here
        assert os.getpid() not in {row[0] for row in rows}


def test_threads_open_a_database_once(tmp_path):
    make(tmp_path)
    build(tmp_path)
    dataset = Pairs(tmp_path / "lmdb" / "train")
    expected = [dataset[i] for i in range(len(dataset))]
    close(tmp_path / "lmdb" / "train" / "imgs")
    close(tmp_path / "lmdb" / "train" / "pairs")
    with ThreadPoolExecutor(8) as executor:
        for rows in executor.map(lambda _: [dataset[i] for i in range(len(dataset))], range(40)):
            assert rows == expected


def test_readers_are_small_when_pickled_and_share_one_environment(tmp_path, monkeypatch):
    make(tmp_path)
    build(tmp_path)
    path = tmp_path / "lmdb" / "train"
    dataset = LmdbDataset(path)
    again = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 2000
    monkeypatch.chdir(tmp_path)
    relative = LmdbDataset("lmdb/../lmdb/train")  # another spelling of the path
    assert list(again.pairs) == list(relative.pairs) == list(dataset.pairs)


def test_a_rebuilt_split_is_read_anew(tmp_path):
    make(tmp_path)
    build(tmp_path)
    path = tmp_path / "lmdb" / "train"
    old = LmdbDataset(path)
    assert len(list(old.pairs)) == 44
    make(tmp_path, images=3, texts=2)
    build(tmp_path)
    assert [len(part) for part in (LmdbDataset(path).images, LmdbDataset(path).pairs)] == [3, 2]
    assert old.pairs[0] == LmdbDataset(path).pairs[0] == (1, 1, "第1只“小猫”")
    # Replaced by another process, without a word to this one.
    other = make(tmp_path / "other", images=4, texts=2)
    build(other)
    (path / "imgs" / "data.mdb").unlink()
    (other / "lmdb" / "train" / "imgs" / "data.mdb").rename(path / "imgs" / "data.mdb")
    assert len(list(LmdbImages(path / "imgs"))) == 4


# Unpickling


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


def test_no_code_in_a_pickle_is_run(tmp_path, capsys):
    make(tmp_path)
    build(tmp_path)
    path, proof = tmp_path / "lmdb" / "train" / "pairs", tmp_path / "proof"
    payloads = [pickle.dumps(Evil(proof), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)] + [
        pickle.dumps((1, 2, Evil(proof))),
        f"cbuiltins\neval\n(S'open({str(proof)!r}, \"w\")'\ntR.".encode(),
        f"(S'touch {proof}'\nios\nsystem\n.".encode(),
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x8c\x04exec\x93.",
    ]
    pickle.loads(payloads[0])
    assert proof.exists(), "the payload itself must work, or this test shows nothing"
    proof.unlink()
    close(path)
    for payload in payloads:
        with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"3", payload)
        pairs = LmdbPairs(path)
        assert pairs[2] == (5, 5, "第5只“小猫”") or pairs[2][1] == 2
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: pair 3: not a pickled .*not allowed"):
            pairs[3]
        close(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "value",
    [(1, 2), (1, 2, 3), [1, 2, "x"], (1.0, 2, "x"), (True, 2, "x"), ((1,), 2, "x"), (1, b"2", "x"), None, {}],
)
def test_other_values_are_refused(value):
    with pytest.raises(UserError, match=r"^here: expected \(image_id, text_id, text\), found "):
        load_pair(pickle.dumps(value), "here")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read_and_no_part_of_it(protocol):
    for pair in [(1, 2, "猫"), ("图", "文", ""), (-(2**63), 2**63 - 1, "x" * 3000)]:
        data = pickle.dumps(pair, protocol)
        assert load_pair(data, "") == pair
        for end in range(0, len(data) - 1, max(1, len(data) // 40)):
            with pytest.raises(UserError, match=r"^here: "):
                load_pair(data[:end], "here")


@settings(max_examples=300)
@given(st.lists(st.sampled_from([bytes([i]) for i in range(256)] + [b"\x80\x04", b"\x94", b"."])).map(b"".join))
def test_random_bytes_give_a_line_or_a_pair(data):
    try:
        assert len(load_pair(data, "here")) == 3
    except UserError as error:
        assert str(error).startswith("here: ")  # noqa: PT017


@pytest.mark.parametrize("data", [b"\x80\x04Nr\xff\xff\xff\x7f.", b"Np2147483647\n."])
def test_a_memory_bomb_is_refused(data):
    with pytest.raises(UserError, match="it asks for 2147483647 memo slots"):
        load_pair(data, "here")


# Other layouts


def wrong_layouts(folder: Path):
    make(folder)
    build(folder)
    good = folder / "lmdb" / "train"
    image, pair = records(good / "imgs")[b"3"], pickle.dumps((3, 1, "x"))
    (folder / "no_imgs").mkdir()
    raw(folder / "no_pairs" / "imgs", {b"num_images": b"1", b"3": image})
    for name, images, pairs in [
        ("no_num_images", {b"3": image}, {b"num_samples": b"1", b"0": pair}),
        ("no_num_samples", {b"num_images": b"1", b"3": image}, {b"0": pair}),
        ("num_is_no_number", {b"num_images": b"many", b"3": image}, {b"num_samples": b"1", b"0": pair}),
        ("too_few_pairs", {b"num_images": b"1", b"3": image}, {b"num_samples": b"9", b"0": pair}),
        ("caffe", {b"00000000_cat.jpg": b"\x08\x03"}, {}),
        ("swapped", {b"num_samples": b"1", b"0": pair}, {b"num_images": b"1", b"3": image}),
    ]:
        raw(folder / name / "imgs", images)
        raw(folder / name / "pairs", pairs)
    for name, content in [("empty_file", b""), ("garbage", b"no database" * 1000), ("half", None)]:
        for part in ("imgs", "pairs"):
            (folder / name / part).mkdir(parents=True)
            data = (good / part / "data.mdb").read_bytes() if content is None else content
            (folder / name / part / "data.mdb").write_bytes(data[: len(data) // 2] if content is None else data)
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != "lmdb"]


def test_another_layout_is_one_line(tmp_path):
    found = wrong_layouts(tmp_path)
    assert len(found) == 11
    for path in [*found, tmp_path / "nothing", tmp_path / "train_imgs.tsv"]:
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}") as error:
            LmdbDataset(path)
        assert "\n" not in str(error.value)
        assert re.search("build|readable|anew", str(error.value))


def test_records_of_another_form_are_one_line(tmp_path):
    path = raw(tmp_path / "pairs", {b"num_samples": b"1", b"00000000": b"x"})
    with pytest.raises(UserError, match="pair 0 is missing"):
        LmdbPairs(path)[0]
    path = raw(tmp_path / "imgs", {b"num_images": b"2", b"1": b"\xff\xd8 raw JPEG", b"\xff\xfe": b"QUJD"})
    images = LmdbImages(path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: image 1: bad base64"):
        images[1]
    with pytest.raises(UserError, match="is not an image id"):
        images.keys()


# Wrong input to the build: one line, exit status 1, nothing written


def picture_line(image_id: object, seed: int = 0) -> str:
    return f"{image_id}\t{image_to_base64(picture(seed), 'PNG')}\n"


@pytest.mark.parametrize(
    ("tsv", "jsonl", "message"),
    [
        (
            "".join(picture_line(i) for i in (5, 6, 7, 6)),
            "",
            "train_imgs.tsv:4: image id 6 stands at line 2 already",
        ),
        (picture_line(5) + "6\tQUJ\n", "", "train_imgs.tsv:2: image 6: bad base64"),
        (picture_line(5) + "6\t\n", "", "train_imgs.tsv:2: image 6 is empty (0 bytes)"),
        (picture_line(5) + "6 QUJD\n", "", "train_imgs.tsv:2: expected ID, tab, base64"),
        (picture_line("num_images"), "", "train_imgs.tsv:1: the image id num_images is reserved"),
        (picture_line("长" * 200), "", "train_imgs.tsv:1: the image id has 600 bytes"),
        (
            picture_line(5),
            '{"text_id": 1, "text": "x", "image_ids": [5]}\n{"text_id"',
            "train_texts.jsonl:2: not JSON",
        ),
        (
            picture_line(5),
            '{"text_id": 1, "text": "x", "image_ids": [5]}\n{"text_id": 8, "text": "x", "image_ids": [5, 9]}',
            "train_texts.jsonl:2: image id 9 of text 8 has no image in train_imgs.tsv",
        ),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, capsys, tsv, jsonl, message):
    (tmp_path / "train_imgs.tsv").write_text(tsv, encoding="utf-8")
    (tmp_path / "train_texts.jsonl").write_text(jsonl, encoding="utf-8")
    assert build(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"cn-clip: error: {tmp_path / message.split(':')[0]}:")
    assert message in error
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".mdb" or "tmp" in path.name]


def test_what_is_missing_is_named(tmp_path, capsys):
    make(tmp_path)
    for splits, message in [
        ("train,valid", f"{tmp_path / 'valid_imgs.tsv'}: no such file; the split 'valid' needs"),
        ("", "needs an argument|--splits"),
        (" , ", "--splits names no split"),
        ("../train", "'../train' is not the name of a split"),
    ]:
        try:
            status = build(tmp_path, splits=splits)
        except SystemExit as stop:
            status = stop.code
        assert status
        assert re.search(message, capsys.readouterr().err)
    (tmp_path / "train_texts.jsonl").unlink()
    assert build(tmp_path) == 1
    assert f"{tmp_path / 'train_texts.jsonl'}: no such file" in capsys.readouterr().err
    assert build(tmp_path / "nowhere") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "lmdb").exists()


def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path, capsys):
    make(tmp_path)
    (tmp_path / "home" / "train").mkdir(parents=True)
    (tmp_path / "home" / "train" / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert build(tmp_path, "--lmdb_dir", tmp_path / "home") == 1
    assert "thesis.txt; move that away" in capsys.readouterr().err
    assert (tmp_path / "home" / "train" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_file_where_the_folder_should_be_is_not_replaced(tmp_path, capsys):
    make(tmp_path)
    (tmp_path / "out").mkdir()
    for file, out in [(tmp_path / "lmdb", tmp_path / "lmdb"), (tmp_path / "out" / "train", tmp_path / "out")]:
        file.write_text("something", encoding="utf-8")
        assert build(tmp_path, "--lmdb_dir", out) == 1
        assert capsys.readouterr().err.startswith(f"cn-clip: error: {file}: is a file; choose another --lmdb_dir")
        assert file.read_text(encoding="utf-8") == "something"


# The build: replaced as a whole, growing map, size, memory


def test_a_link_to_another_disk_stays_one(tmp_path):
    make(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "train").symlink_to(tmp_path / "disk")
    build(tmp_path)
    assert (tmp_path / "lmdb" / "train").is_symlink()
    assert len(LmdbDataset(tmp_path / "disk").pairs) == 44
    assert sorted(path.name for path in (tmp_path / "lmdb").iterdir()) == ["train"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("stop"), MemoryError])
@pytest.mark.parametrize("reader", ["read_images", "read_texts"])
def test_a_stopped_build_leaves_the_old_one(tmp_path, monkeypatch, error, reader):
    make(tmp_path)
    build(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "lmdb").rglob("*") if path.is_file()}
    make(tmp_path, images=20, texts=50)
    real = getattr(build_lmdb, reader)

    def stops(path):
        for number, row in enumerate(real(path)):
            if number == 9:
                raise error
            yield row

    monkeypatch.setattr(build_lmdb, reader, stops)
    monkeypatch.setattr(build_lmdb, "_CHUNK", 300)  # something is committed by then
    with pytest.raises(error if isinstance(error, type) else UserError):
        build_lmdb.build_lmdb(tmp_path, "train")
    assert {path: path.read_bytes() for path in (tmp_path / "lmdb").rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "lmdb").iterdir()] == ["train"]


def test_the_map_grows_and_the_file_stays_small(tmp_path, monkeypatch):
    make(tmp_path, texts=4000)
    monkeypatch.setattr(build_lmdb, "_FIRST_MAP", 1 << 15)
    monkeypatch.setattr(build_lmdb, "_CHUNK", 1 << 14)
    opened = []
    real = lmdb.open
    monkeypatch.setattr(lmdb, "open", lambda *a, **k: opened.append(k.get("map_size")) or real(*a, **k))
    assert build_lmdb.build_split(tmp_path, "train", tmp_path / "out") == (12, 6000)
    assert {1 << 15, 1 << 16, 1 << 17, 1 << 18} <= set(opened)
    pairs = LmdbPairs(tmp_path / "out" / "pairs")
    assert [pair[1] for pair in pairs] == [i for i in range(4000) if i % 4 for _ in (0, 1)]
    close(tmp_path / "out" / "pairs")
    for part in ("imgs", "pairs"):
        content = sum(len(key) + len(value) for key, value in records(tmp_path / "out" / part).items())
        size = (tmp_path / "out" / part / "data.mdb").stat().st_size
        assert size < 1.5 * content + (1 << 15), part
        assert sorted(path.name for path in (tmp_path / "out" / part).iterdir()) == ["data.mdb"]


MEMORY = """
import os, resource, sys, threading, time
from pathlib import Path
from cn_clip.data.build_lmdb import build_split
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.002):
        status = Path("/proc/self/status").read_text()
        peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]))
folder = Path(sys.argv[1])
build_split(folder, "small", folder / "out" / "small")
thread = threading.Thread(target=watch)
thread.start()
time.sleep(0.1)
before = peak[0]
print(build_split(folder, "large", folder / "out" / "large"))
done.set()
thread.join()
print(before, peak[0])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """60 MB of images and 7 MB of texts."""
    folder = tmp_path_factory.mktemp("large")
    make(folder, split="small")
    data = [base64.b64encode(os.urandom(30_000)) for _ in range(50)]
    write_images(folder / "large_imgs.tsv", ((i * 7919, data[i % 50]) for i in range(1500)))
    write_texts(
        folder / "large_texts.jsonl", ((i, "一只可爱的小猫" * 3, [i % 1500 * 7919]) for i in range(60_000))
    )
    return folder


def test_the_build_needs_constant_memory(large):
    out = subprocess.run([sys.executable, "-c", MEMORY, large], capture_output=True, text=True, check=True).stdout
    built, memory = out.splitlines()
    assert built == "(1500, 60000)"
    before, peak = map(int, memory.split())
    assert peak - before < 45_000, "kilobytes beyond a small build's"


def test_ctrl_c_leaves_nothing_and_says_so(large, tmp_path):
    command = [sys.executable, "-m", "cn_clip", "data", "build-lmdb", "--data_dir", large, "--splits", "large"]
    process = subprocess.Popen([*command, "--lmdb_dir", tmp_path], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob(".large.*.tmp/imgs/data.mdb")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert error == "cn-clip: stopped\n"
    assert not list(tmp_path.iterdir())


FULL = """
import resource, subprocess, sys
from pathlib import Path
from cn_clip.cli import main
folder, out = sys.argv[1:]
mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", out]
if subprocess.run(mount, capture_output=True).returncode:
    print("limit")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
else:
    print("disk")
status = main(["data", "build-lmdb", "--data_dir", folder, "--splits", "large", "--lmdb_dir", out + "/lmdb"])
print(*Path(out).rglob("*"))
subprocess.run(["umount", out], capture_output=True)
sys.exit(status)
"""


def test_a_full_disk_is_one_line(large, tmp_path):
    """A disk of 4 MB where mounting one is allowed, else a limit of 4 MB on files: both really stop a write."""
    done = subprocess.run([sys.executable, "-c", FULL, large, tmp_path], capture_output=True, text=True)
    kind, left = done.stdout.splitlines()
    reason = "the disk is full" if kind == "disk" else "a limit on file sizes"
    assert done.stderr.startswith(f"cn-clip: error: {tmp_path / 'lmdb' / 'large'}: cannot write")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1
    assert left == str(tmp_path / "lmdb")
