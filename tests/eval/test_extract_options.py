"""`cn-clip extract`: bad images skipped and listed, faster decoding, the processor's own precision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_extract import checkpoint, flags, write_dataset

from cn_clip.cli import main
from cn_clip.encoder import Encoder
from cn_clip.eval.features import read_features
from tiny import encoded, pictures

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def photographs() -> list[bytes]:
    """JPEGs with room to be decoded smaller."""
    return [encoded(image.resize((320, 240), Image.Resampling.BICUBIC), "JPEG") for image in pictures(6)]


def test_bad_images_are_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = photographs()
    images = [(i, data) for i, data in enumerate(good, 10)]
    bad = [*images[:2], (17, b"no picture"), *images[2:], (18, good[0][:300])]
    dataset, resume = write_dataset(tmp_path / "bad", bad), checkpoint(tmp_path)
    command = ["extract", *flags(dataset, resume), "--img-batch-size=3"]
    assert main(command) == 1
    assert "image 17: not an image" in capsys.readouterr().err
    assert main([*command, "--on-error=skip"]) == 0
    listed = tmp_path / "bad" / "test_imgs.img_feat.skipped.jsonl"
    assert f"2 of 8 images were skipped; they are listed in {listed}" in capsys.readouterr().out
    rows = [json.loads(line) for line in listed.read_text(encoding="utf-8").splitlines()]
    assert [row["image_id"] for row in rows] == [17, 18]
    assert "image 18: cannot decode the image" in rows[1]["error"]
    found = read_features(tmp_path / "bad" / "test_imgs.img_feat.jsonl")
    assert found.ids == [10, 11, 12, 13, 14, 15]
    assert main(["extract", *flags(write_dataset(tmp_path / "good", images), resume)]) == 0
    whole = read_features(tmp_path / "good" / "test_imgs.img_feat.jsonl")
    np.testing.assert_allclose(found.vectors, whole.vectors, atol=1e-6)
    stale = tmp_path / "good" / "test_imgs.img_feat.skipped.jsonl"
    stale.write_text("of an earlier run")
    assert main(["extract", *flags(write_dataset(tmp_path / "good", images), resume), "--on-error=skip"]) == 0
    assert not stale.exists()


def test_fast_decoding_is_another_vector_nearby(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, enumerate(photographs()))
    resume = checkpoint(tmp_path)
    exact, fast = tmp_path / "exact.jsonl", tmp_path / "fast.jsonl"
    command = ["extract", *flags(dataset, resume)]
    assert main([*command, f"--image-feat-output-path={exact}"]) == 0
    assert main([*command, f"--image-feat-output-path={fast}", "--fast-decode"]) == 0
    one, other = read_features(exact).vectors, read_features(fast).vectors
    assert not np.array_equal(one, other)
    assert (one * other).sum(axis=1).min() > 0.99
    encoder = Encoder.load(str(resume), precision="fp32", fast_decode=True)
    np.testing.assert_allclose(encoder.encode_images(photographs()), other, atol=1e-6)


def test_precision_auto_is_the_encoders(tmp_path: Path) -> None:
    dataset, resume = write_dataset(tmp_path, enumerate(photographs())), checkpoint(tmp_path)
    assert main(["extract", *flags(dataset, resume), "--precision=auto", "--device=cpu"]) == 0
    found = read_features(tmp_path / "test_imgs.img_feat.jsonl").vectors
    encoder = Encoder.load(str(resume), device="cpu")
    np.testing.assert_allclose(found, encoder.encode_images(photographs(), batch_size=64), atol=1e-6)
