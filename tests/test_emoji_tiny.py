"""The bundled model: small, at hand without a network, and as good as its card says on what it has never seen."""

from __future__ import annotations

import base64

import numpy as np
import pytest

import cn_clip.clip as clip
from cn_clip import Encoder
from cn_clip.data.emoji_cn import dataset_dir
from cn_clip.data.formats import read_images, read_texts
from cn_clip.eval.recall import retrieval_recall
from cn_clip.zoo import weights_file


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load("emoji-tiny", precision="fp32")


def test_it_fits_into_the_repository() -> None:
    assert weights_file("emoji-tiny").stat().st_size < 16_000_000


def test_it_loads_by_name_alone() -> None:
    assert "emoji-tiny" in clip.available_models()
    model, preprocess = clip.load_from_name("emoji-tiny", device="cpu")
    assert not model.training
    assert preprocess.size == 64
    assert model.encode_text(clip.tokenize(["熊猫"])).shape == (1, 256)


@pytest.mark.parametrize(("split", "least"), [("newartist", 25), ("test", 15), ("newboth", 15)])
def test_recall_of_the_card(encoder: Encoder, split: str, least: int) -> None:
    """A quarter of the names right at rank 1 is the least that ships; splits of unseen emoji are harder."""
    rows = list(read_images(dataset_dir() / f"{split}_imgs.tsv"))
    place = {row.image_id: i for i, row in enumerate(rows)}
    texts = list(read_texts(dataset_dir() / f"{split}_texts.jsonl"))
    pairs = np.array([(i, place[str(j)]) for i, text in enumerate(texts) for j in text.image_ids])
    images = encoder.encode_images(base64.b64decode(row.base64) for row in rows)
    recall = retrieval_recall(images, encoder.encode_texts([text.text for text in texts]), pairs)
    assert recall["t2i"]["r1"] >= least
    assert recall["i2t"]["r1"] >= least
