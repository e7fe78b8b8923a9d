"""What transformers' processor gives for pictures and texts, beside what this package gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ChineseCLIPProcessor

from cn_clip.clip import image_transform, tokenize
from cn_clip.conversion.huggingface import save_huggingface
from cn_clip.tokenizer import default_tokenizer
from tiny import TEXTS, pictures, tiny_model, transparent_pictures

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = tiny_model(), tmp_path_factory.mktemp("hf") / "tiny"
    save_huggingface(folder, model.state_dict(), model.config)
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> ChineseCLIPProcessor:
    return ChineseCLIPProcessor.from_pretrained(folder, backend="pil")


def same_pixels(processor: ChineseCLIPProcessor, image: Image.Image) -> float:
    """The largest difference of a pixel, in the normalised numbers."""
    theirs = processor(images=image, return_tensors="np")["pixel_values"][0]
    return float(np.abs(theirs - image_transform(32)(image).numpy()).max())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pictures_without_transparency_are_equal(processor: ChineseCLIPProcessor, mode: str) -> None:
    assert all(same_pixels(processor, image.convert(mode)) < 1e-6 for image in pictures(3))


def test_other_pictures_differ_as_documented_and_the_documented_line_makes_them_equal(
    processor: ChineseCLIPProcessor, folder: Path
) -> None:
    torchvision = ChineseCLIPProcessor.from_pretrained(folder)
    for image in transparent_pictures():
        assert same_pixels(processor, image) > 0.1, image.mode
        expected = image_transform(32)(image).numpy()
        ready = image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")
        for either in (processor, torchvision):
            found = either(images=ready, return_tensors="np")["pixel_values"][0]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_opaque_pictures_with_alpha_are_equal(processor: ChineseCLIPProcessor) -> None:
    for mode in ("RGBA", "LA"):
        assert same_pixels(processor, pictures(1)[0].convert(mode)) < 1e-6


def test_torchvision_differs_by_a_few_levels(folder: Path) -> None:
    worst = max(same_pixels(ChineseCLIPProcessor.from_pretrained(folder), image) for image in pictures(3))
    assert 0 < worst < 4 / 255 / 0.26  # levels of 255, divided by the deviation


ODD_TEXTS = [
    "“猫”",
    "[SEP] 猫 [MASK]",
    "ÀÉ ΑΣ Σ İ",
    "a" * 150,
    "a" * 201,
    "\ue000猫\u0e3f",
    "  \n",
    "１２３ｃａｔ",
]


@pytest.mark.parametrize("text", [*TEXTS, *ODD_TEXTS])
def test_texts_are_equal(processor: ChineseCLIPProcessor, text: str) -> None:
    ids = processor(text=[text], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tokenize(text))


ANY_CHARACTER = st.characters(codec="utf-8") | st.sampled_from("“”Σςσİ猫狗\u0e31\ue000\U0001f436[]")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(ANY_CHARACTER, max_size=40), min_size=1, max_size=20))
def test_any_texts_are_equal(processor: ChineseCLIPProcessor, texts: list[str]) -> None:
    tokens = processor.tokenizer(texts, padding="max_length", truncation=True, max_length=52)["input_ids"]
    assert tokens == default_tokenizer().encode(texts, 52).ids.tolist()
