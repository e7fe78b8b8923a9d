"""`cn-clip extract` over real LMDB and JSONL files: the reference's own vectors, and every wrong input."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import ROOT, run_reference
from PIL import Image

from cn_clip.cli import main
from cn_clip.clip import image_transform, tokenize
from cn_clip.data.build_lmdb import build_lmdb
from cn_clip.data.formats import image_to_base64, write_images, write_texts
from cn_clip.encoder import Encoder
from formats_written import write_parquet, write_shards
from tiny import BERT, TEXTS, VIT, encoded, pictures, tiny_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TOWERS = ("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")
Dataset = tuple[Path, Path]  # (the LMDB folder of images, the file of texts)


def write_dataset(folder: Path, images: Iterable[tuple[int | str, bytes]], texts: list[str] = TEXTS) -> Dataset:
    """A test split as `data build-lmdb` makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(image_id, base64.b64encode(data).decode()) for image_id, data in images]
    (folder / "test_imgs.tsv").write_text("".join(f"{image_id}\t{data}\n" for image_id, data in rows))
    with open(folder / "test_texts.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            row = {"text_id": 8000 + number, "text": text, "image_ids": []}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    build_lmdb(folder, "test")
    return folder / "lmdb" / "test" / "imgs", folder / "test_texts.jsonl"


def usual_pictures() -> list[tuple[int, bytes]]:
    """One of each kind that the reference takes too; ids whose order as keys is not their order as numbers."""
    a, b, c, d, e, f, g = pictures(7)
    alpha = a.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(a.size))
    kinds = [
        encoded(a, "JPEG", quality=90),
        encoded(alpha),
        encoded(b.convert("P", palette=Image.Palette.ADAPTIVE)),
        encoded(c.convert("CMYK"), "JPEG"),
        encoded(d.convert("L")),
        encoded(e, "GIF", save_all=True, append_images=[f, g], duration=50),
        encoded(f.convert("1")),
        encoded(g, "WEBP", lossless=True),
    ]
    return [(7 * i + 5, data) for i, data in enumerate(kinds)]


def checkpoint(folder: Path) -> Path:
    """Of the tiny towers, as the trainers write it: both read it."""
    model = tiny_model()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    content = {"epoch": 1, "step": 10, "name": "tiny", "state_dict": state, "model_config": model.config.to_dict()}
    torch.save(content, folder / "epoch1.pt")
    return folder / "epoch1.pt"


def read(path: Path, id_field: str) -> tuple[list[int | str], np.ndarray]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(row) == {id_field, "feature"} for row in rows)
    return [row[id_field] for row in rows], np.array([row["feature"] for row in rows])


def flags(dataset: Dataset, resume: Path) -> list[str]:
    images, texts = dataset
    given = ["--extract-image-feats", "--extract-text-feats", f"--image-data={images}", f"--text-data={texts}"]
    return [*given, f"--resume={resume}"]


def test_the_references_own_vectors(tmp_path: Path) -> None:
    """The reference's script, its published architectures replaced by tiny ones, on the same files."""
    assert (ROOT / ".reference" / "cn_clip").is_dir(), "the reference is not installed; run: make test"
    shutil.copytree(ROOT / ".reference" / "cn_clip", tmp_path / "altered" / "cn_clip")
    configs = tmp_path / "altered" / "cn_clip" / "clip" / "model_configs"
    for name, values in zip(TOWERS, (VIT, BERT), strict=True):
        (configs / f"{name}.json").write_text(json.dumps(values))
    dataset, resume = write_dataset(tmp_path / "data", usual_pictures()), checkpoint(tmp_path)
    theirs = [tmp_path / "theirs_imgs.jsonl", tmp_path / "theirs_texts.jsonl"]
    outputs = [f"--image-feat-output-path={theirs[0]}", f"--text-feat-output-path={theirs[1]}"]
    batches = ["--img-batch-size=3", "--text-batch-size=2", "--context-length=24"]
    script = "cn_clip.eval.extract_features"
    run_reference(script, *flags(dataset, resume), *outputs, *batches, reference=tmp_path / "altered")
    assert main(["extract", *flags(dataset, resume), *batches]) == 0
    for path, id_field, output in zip(
        theirs, ("image_id", "text_id"), ("test_imgs.img_feat.jsonl", "test_texts.txt_feat.jsonl"), strict=True
    ):
        expected_ids, expected = read(path, id_field)
        ids, vectors = read(tmp_path / "data" / output, id_field)
        assert ids == expected_ids
        assert all(type(i) is int for i in ids)
        np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert len(np.unique(vectors.round(3), axis=0)) > 5  # the vectors do differ


def test_vectors_against_one_by_one(tmp_path: Path) -> None:
    images = [(name, encoded(image)) for name, image in zip("cabd", pictures(4), strict=True)]
    dataset, resume = write_dataset(tmp_path, images), checkpoint(tmp_path)
    assert main(["extract", *flags(dataset, resume), "--img-batch-size=3", "--num-workers=2"]) == 0
    ids, vectors = read(tmp_path / "test_imgs.img_feat.jsonl", "image_id")
    assert ids == ["a", "b", "c", "d"]  # the order of keys
    model, transform = tiny_model(), image_transform(32)
    for image_id, vector in zip(ids, vectors, strict=True):
        image = Image.open(io.BytesIO(dict(images)[image_id]))  # type: ignore[index]
        feature = model.encode_image(transform(image)[None])[0].detach().double()
        np.testing.assert_allclose(vector, (feature / feature.norm()).numpy(), atol=1e-5)
    ids, vectors = read(tmp_path / "test_texts.txt_feat.jsonl", "text_id")
    assert ids == [8000 + i for i in range(len(TEXTS))]
    for text, vector in zip(TEXTS, vectors, strict=True):
        feature = model.encode_text(tokenize(text))[0].detach().double()
        np.testing.assert_allclose(vector, (feature / feature.norm()).numpy(), atol=1e-5)


def test_every_format_gives_the_same_vectors(tmp_path: Path) -> None:
    """In file order, where the LMDB's is that of its keys; texts are those of the pairs, each once."""
    names = ["10", "9", "x"]  # as keys: 10, 9, x
    images = {name: encoded(image) for name, image in zip(reversed(names), pictures(3), strict=True)}
    pairs: list[tuple[Any, Any, str]] = [("x", 1, "猫"), ("9", 2, "狗"), ("x", 3, "鸟"), ("10", 2, "狗")]
    write_images(tmp_path / "test_imgs.tsv", ((name, image_to_base64(data)) for name, data in images.items()))
    write_texts(tmp_path / "test_texts.jsonl", [("1", "猫", ["x"]), ("2", "狗", ["9", "10"]), ("3", "鸟", ["x"])])
    build_lmdb(tmp_path, "test")
    shards = write_shards(tmp_path / "shards", images, pairs)
    parquet = write_parquet(tmp_path / "p" / "a.parquet", images, pairs)
    resume = checkpoint(tmp_path)
    found = {}
    for source in (tmp_path / "lmdb" / "test", tmp_path / "test", shards, parquet):
        output = [f"--{kind}-feat-output-path={tmp_path}/{kind}.jsonl" for kind in ("image", "text")]
        given = ["--extract-image-feats", "--extract-text-feats", f"--resume={resume}", *output]
        assert main(["extract", *given, f"--image-data={source}", f"--text-data={source}"]) == 0
        found[source] = [read(tmp_path / f"{kind}.jsonl", f"{kind}_id") for kind in ("image", "text")]
    (lmdb_ids, lmdb_vectors), (text_ids, text_vectors) = found.pop(tmp_path / "lmdb" / "test")
    assert (lmdb_ids, text_ids) == (names, ["1", "2", "3"])
    for (ids, vectors), (ids_of_texts, vectors_of_texts) in found.values():
        assert ids == ["x", "9", "10"]
        np.testing.assert_allclose(vectors[::-1], lmdb_vectors, atol=1e-6)
        assert [str(i) for i in ids_of_texts] == text_ids
        np.testing.assert_allclose(vectors_of_texts, text_vectors, atol=1e-6)
    beside = ["--extract-image-feats", "--extract-text-feats", f"--resume={resume}"]
    assert main(["extract", *beside, f"--image-data={tmp_path}/test", f"--text-data={tmp_path}/test"]) == 0
    assert read(tmp_path / "test_imgs.img_feat.jsonl", "image_id")[0] == ["x", "9", "10"]
    assert read(tmp_path / "test_texts.txt_feat.jsonl", "text_id")[0] == text_ids


def test_only_what_is_asked_for_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, texts = write_dataset(tmp_path / "data", usual_pictures())
    resume = checkpoint(tmp_path)
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    capsys.readouterr()
    only_images = ["--extract-image-feats", f"--image-data={images}", f"--resume={resume}"]
    output = tmp_path / "new" / "a.jsonl"
    assert main(["extract", *only_images, f"--image-feat-output-path={output}"]) == 0
    assert capsys.readouterr().out == f"8 image features are stored in {output}\n"
    only_texts = ["--extract-text-feats", f"--text-data={texts}", f"--resume={resume}"]
    output = tmp_path / "new" / "b.jsonl"
    assert main(["extract", *only_texts, f"--text-feat-output-path={output}", "--image-data="]) == 0
    said = "1 of 7 texts are longer than 52 tokens and were cut (first: 8005)\n"
    assert capsys.readouterr().out == f"{said}7 text features are stored in {output}\n"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.jsonl", "b.jsonl"]


def test_cut_texts_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, resume = write_dataset(tmp_path, usual_pictures()), checkpoint(tmp_path)
    assert main(["extract", *flags(dataset, resume), "--context-length=12"]) == 0
    assert "2 of 7 texts are longer than 12 tokens and were cut (first: 8002)" in capsys.readouterr().out
    assert main(["extract", *flags(dataset, resume), "--context-length=64"]) == 0
    assert "were cut" not in capsys.readouterr().out


def test_bf16_and_the_documented_precisions(tmp_path: Path) -> None:
    dataset, resume = write_dataset(tmp_path, usual_pictures()), checkpoint(tmp_path)
    found = {}
    for precision in ("amp", "fp32", "bf16"):
        assert main(["extract", *flags(dataset, resume), "--precision", precision]) == 0
        found[precision] = read(tmp_path / "test_imgs.img_feat.jsonl", "image_id")[1]
    assert np.array_equal(found["amp"], found["fp32"])
    cosines = (found["bf16"] * found["fp32"]).sum(axis=1)
    assert cosines.min() > 0.99
    assert not np.array_equal(found["bf16"], found["fp32"])


def test_debug_prints_the_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, resume = write_dataset(tmp_path, usual_pictures()), checkpoint(tmp_path)
    assert main(["extract", *flags(dataset, resume), "--debug"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  context_length: 52" in lines
    assert f"  resume: {resume}" in lines


# Unusual pictures


def test_a_16_bit_picture_is_its_8_bit_one(tmp_path: Path) -> None:
    """The reference turns it white."""
    grey = np.asarray(pictures(1)[0].convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 77)
    assert deep.mode.startswith("I;16")
    encoder = Encoder(tiny_model())
    vectors = encoder.encode_images([encoded(deep), encoded(Image.fromarray(grey)), deep, encoded(deep, "TIFF")])
    np.testing.assert_allclose(vectors, vectors[1:2].repeat(4, axis=0), atol=1e-6)
    white = encoder.encode_images([Image.new("L", (40, 50), 255)])[0]
    assert float(vectors[0] @ white) < 0.999


def test_an_animations_first_frame_counts() -> None:
    first, second = pictures(2)
    frames = encoded(first, "GIF", save_all=True, append_images=[second], duration=50)
    still, moving, other = Encoder(tiny_model()).encode_images(
        [encoded(first, "GIF"), frames, encoded(second, "GIF")]
    )
    np.testing.assert_allclose(moving, still, atol=1e-6)
    assert float(still @ other) < 0.999


def huge(width: int, height: int) -> bytes:
    """A picture that is small as a file."""
    return encoded(Image.new("1", (width, height)))


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (lambda: encoded(pictures(1)[0], "JPEG")[:-300], "cannot decode the image: "),
    "truncated PNG": (lambda: encoded(pictures(1)[0])[:120], "cannot decode the image: "),
    "text": (lambda: b"<html>404</html>", "not an image in a known format"),
    "100 megapixels": (lambda: huge(10_000, 10_001), "10000×10001 pixels: expected 1 to 89,478,485; make the"),
    "200 megapixels": (lambda: huge(20_000, 10_001), "cannot decode the image: Image size (200020000 pixels)"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_picture_names_its_id(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, reason = BROKEN[case]
    images = [*usual_pictures(), (12345, make())]
    dataset, resume = write_dataset(tmp_path, images), checkpoint(tmp_path)
    (tmp_path / "test_imgs.img_feat.jsonl").write_text("old")
    line = refused(capsys, "extract", *flags(dataset, resume), "--img-batch-size=2")
    assert line.startswith(f"{dataset[0]}: image 12345: {reason}")
    assert (tmp_path / "test_imgs.img_feat.jsonl").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_zero_byte_picture_and_bad_base64_in_a_foreign_lmdb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours would not build it; another program's may hold anything."""
    import lmdb

    resume = checkpoint(tmp_path)
    for value, reason in ((b"", "the image is empty (0 bytes)"), (b"!!!", "base64"), (b"abc", "base64")):
        path = tmp_path / f"foreign{len(value)}{value[:1].hex()}"
        with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"9", value)
            transaction.put(b"num_images", b"1")
        output = f"--image-feat-output-path={tmp_path}/out.jsonl"
        given = ["--extract-image-feats", f"--image-data={path}", f"--resume={resume}", output]
        line = refused(capsys, "extract", *given)
        assert line.startswith(f"{path}: image 9")
        assert reason in line
    assert not (tmp_path / "out.jsonl").exists()


def test_one_line_in_a_real_process(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [(1, encoded(pictures(1)[0])), (12345, huge(10_000, 10_001))])
    command = [sys.executable, "-m", "cn_clip", "extract", *flags(dataset, checkpoint(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    assert done.stderr.startswith(f"cn-clip: error: {dataset[0]}: image 12345: 10000×10001 pixels")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "test_imgs.img_feat.jsonl").exists()
    assert leftovers(tmp_path) == []


# Wrong flags and files


def test_every_wrong_flag_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, texts = write_dataset(tmp_path, usual_pictures())
    resume = checkpoint(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"text_id": 1, "text": "猫", "image_ids": []}\n{"text_id": 2\n')
    (tmp_path / "other").mkdir()
    right = {
        "--image-data": str(images),
        "--text-data": str(texts),
        "--resume": str(resume),
        "--image-feat-output-path": str(tmp_path / "out_imgs.jsonl"),
        "--text-feat-output-path": str(tmp_path / "out_texts.jsonl"),
    }
    both = ["--extract-image-feats", "--extract-text-feats"]
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        ([], {}, "nothing to do: give --extract-image-feats, --extract-text-feats, or both"),
        (both, {"--resume": None}, "--resume is missing: which checkpoint"),
        (both, {"--resume": ""}, "--resume is missing: which checkpoint"),
        (
            both,
            {"--resume": f"{tmp_path}/none.pt"},
            f"no model or file {tmp_path}/none.pt; named models: ViT-B-16",
        ),
        (both, {"--resume": str(texts)}, f"{texts}: not a checkpoint"),
        (both, {"--image-data": None}, "--image-data is missing: the LMDB folder of images"),
        (both, {"--text-data": None}, "--text-data is missing: the texts"),
        (both[:1], {"--text-data": None, "--image-feat-output-path": None}, "--image-feat-output-path is missing"),
        (both, {"--image-data": f"{tmp_path}/none"}, f"{tmp_path}/none: no such folder or file; expected an LMDB"),
        (both, {"--image-data": str(images.parents[1])}, f"{images.parents[1]}: a folder of test; expected an"),
        (
            both,
            {"--image-data": str(images.parent / "pairs")},
            f"{images.parent}/pairs: not a database of the layout",
        ),
        (both, {"--text-data": f"{tmp_path}/none.jsonl"}, f"{tmp_path}/none.jsonl: No such file or directory"),
        (both, {"--text-data": str(tmp_path)}, f"{tmp_path}: a folder of "),
        (
            both,
            {"--text-data": str(images.parent), "--text-feat-output-path": None},
            "--text-feat-output-path is missing (its default lies beside a file of texts)",
        ),
        (both, {"--text-data": f"{tmp_path}/broken.jsonl"}, f"{tmp_path}/broken.jsonl:2: "),
        (both, {"--img-batch-size": "0"}, "batch sizes must be 1 or more"),
        (both, {"--text-batch-size": "-1"}, "batch sizes must be 1 or more"),
        (both, {"--num-workers": "0"}, "--num-workers must be 1 or more"),
        (both, {"--context-length": "2"}, "context length must be 3 or more"),
        (both, {"--context-length": "65"}, "context length 65: this text tower takes 64 at most"),
        (both, {"--device": "cuda:99"}, "device cuda:99: "),
        (both, {"--device": "abacus"}, "device abacus: "),
        (both, {"--vision-model": "ViT-X"}, "--vision-model ViT-X: no such architecture or JSON file"),
        (both, {"--text-model": "RBT3-chinese"}, f"{resume}: weights of another architecture: missing ("),
        (
            both,
            {"--image-feat-output-path": f"{tmp_path}/other"},
            f"{tmp_path}/other: cannot write: it is a folder",
        ),
        (
            both,
            {"--text-feat-output-path": f"{resume}/x"},
            f"{resume}: cannot write: a part of the path is a file",
        ),
    ]
    before = sorted(tmp_path.iterdir())
    for what, change, expected in cases:
        given = {flag: value for flag, value in {**right, **change}.items() if value is not None}
        line = refused(capsys, "extract", *what, *(f"{flag}={value}" for flag, value in given.items()))
        assert line.startswith(expected), line
        (tmp_path / "out_texts.jsonl").unlink(missing_ok=True)  # texts come first, and may have been all right
        assert sorted(tmp_path.iterdir()) == before, expected
    with pytest.raises(SystemExit) as caught:
        main(["extract", "--precision", "int4"])
    assert caught.value.code == 2


def test_a_full_disk(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"第{i}只猫" for i in range(2000)]
    dataset, resume = write_dataset(tmp_path, usual_pictures(), texts), checkpoint(tmp_path)
    given = ["--extract-text-feats", f"--text-data={dataset[1]}", f"--resume={resume}"]
    line = refused(capsys, "extract", *given, f"--text-feat-output-path={small_disk / 'feats.jsonl'}")
    assert line.startswith(f"{small_disk / 'feats.jsonl'}: cannot write: ")
    assert list(small_disk.iterdir()) == []


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error, without its prefix."""
    capsys.readouterr()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("cn-clip: error: ")
    assert error.count("\n") == 1, error
    return error.removeprefix("cn-clip: error: ").rstrip("\n")


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp" in path.name]
