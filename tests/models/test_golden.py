"""Every published architecture gives the reference's features: golden vectors made by make_golden.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from filling import fill
from make_golden import OUTPUT, TEXTS, TOWERS, images

from cn_clip.config import ModelConfig, model_config
from cn_clip.models.clip import CLIP
from cn_clip.tokenizer import default_tokenizer

# In all, the image tower, the text tower without its projection: counted in the reference's own models.
PARAMETERS = {
    "RN50": (76_989_537, 38_316_896, 37_886_208),
    "ViT-B-32": (189_919_489, 87_849_216, 101_677_056),
    "ViT-B-16": (188_262_913, 86_192_640, 101_677_056),
    "ViT-L-14": (406_233_089, 303_966_208, 101_677_056),
    "ViT-L-14-336": (406_560_769, 304_293_888, 101_677_056),
    "ViT-H-14": (957_598_209, 632_076_800, 324_472_832),
}


def build(config: ModelConfig) -> CLIP:
    """A model with the weights of `filling`; nothing is initialised first."""
    with torch.device("meta"):
        model = CLIP(config)
    model = model.to_empty(device="cpu").eval()
    fill(model.state_dict().items())
    return model


@pytest.mark.parametrize("vision", TOWERS)
def test_features_equal_the_references(vision: str) -> None:
    config = model_config(vision, TOWERS[vision])
    model = build(config)
    with torch.no_grad():
        image = model.encode_image(images(config.vision.image_resolution))
        text = model.encode_text(torch.from_numpy(default_tokenizer().encode(TEXTS).ids))
    golden = np.load(OUTPUT)
    assert relative_error(image, golden[f"{vision}.image"]) < 1e-5
    assert relative_error(text, golden[f"{vision}.text"]) < 1e-5


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """The largest of the rows' |ours - theirs| / |theirs|."""
    assert ours.dtype == torch.float32
    assert ours.shape == theirs.shape
    error = np.linalg.norm(ours.numpy().astype(np.float64) - theirs, axis=1)
    return float((error / np.linalg.norm(theirs, axis=1)).max())


@pytest.mark.parametrize("vision", TOWERS)
def test_parameter_counts_are_the_published_ones(vision: str) -> None:
    with torch.device("meta"):
        model = CLIP(model_config(vision, TOWERS[vision]))
    counts = (sum(p.numel() for p in part.parameters()) for part in (model, model.visual, model.bert))
    assert tuple(counts) == PARAMETERS[vision]


def test_golden_texts_are_of_different_lengths_and_one_is_full() -> None:
    batch = default_tokenizer().encode(TEXTS)
    assert batch.ids.shape == (4, 52)
    assert (batch.ids != 0).sum(axis=1).tolist() == [2, 6, 14, 52]
