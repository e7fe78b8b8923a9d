"""Augmentation: timm's as the documented trainer composes it, and the light one."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import Compose

from cn_clip.augment import LightAugment, _hue_rotation, timm_augment
from cn_clip.errors import MissingExtra
from cn_clip.transform import MEAN, STD, normalise

STILL = LightAugment(
    scale=(1, 1), ratio=1, degrees=0, flip=0, brightness=0, contrast=0, saturation=0, hue=0, grey=0, blur=0
)


def pixels(n: int = 4, size: int = 24) -> np.ndarray:
    """Smooth random pictures, uint8 [n, size, size, 3]."""
    small = np.random.default_rng(0).integers(30, 220, (n, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in small])


def test_timm_is_composed_as_documented() -> None:
    """RGB conversion comes before the last three steps; same draws, same tensor."""
    documented = create_transform(
        input_size=24, scale=(0.9, 1.0), is_training=True, color_jitter=None, auto_augment="original",
        interpolation="bicubic", mean=MEAN, std=STD,
    ).transforms  # fmt: skip
    documented = Compose([*documented[:-3], lambda image: image.convert("RGB"), *documented[-3:]])
    ours = timm_augment(24)
    for seed in range(5):
        image = Image.fromarray(pixels(1, 40)[0]).convert("P" if seed % 2 else "RGB")
        augmented = ours(image, seed)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert torch.equal(augmented, documented(image))


def test_timm_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(MissingExtra, match=r"chinese-clip\[train\]"):
        timm_augment(24)


def test_light_with_everything_off_is_plain_preprocessing() -> None:
    batch = pixels()
    assert np.allclose(STILL(batch, [1, 2, 3, 4]).numpy(), normalise(batch), atol=1e-5)


def test_light_is_a_function_of_each_pictures_seed() -> None:
    batch, augment = pixels(), LightAugment()
    out = augment(batch, [1, 2, 3, 4])
    assert torch.equal(out, augment(batch, [1, 2, 3, 4]))
    assert torch.allclose(out[2], augment(batch[2:3], [3])[0], atol=1e-6)
    assert not torch.allclose(out[0], augment(batch, [9, 2, 3, 4])[0])
    low, high = (
        (-torch.tensor(MEAN) / torch.tensor(STD)).min(),
        ((1 - torch.tensor(MEAN)) / torch.tensor(STD)).max(),
    )
    assert out.min() >= low - 1e-5
    assert out.max() <= high + 1e-5


def test_a_certain_flip_is_a_flip() -> None:
    from dataclasses import replace

    batch = pixels()
    flipped = replace(STILL, flip=1.0)(batch, [1, 2, 3, 4])
    assert np.allclose(flipped.numpy(), normalise(batch[:, :, ::-1]), atol=1e-4)


def test_no_saturation_is_grey() -> None:
    from dataclasses import replace

    out = replace(STILL, grey=1.0)(pixels(), [1, 2, 3, 4])
    out = out * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.allclose(out[:, 0], out[:, 1], atol=1e-5)
    expected = np.asarray(Image.fromarray(pixels()[0]).convert("L"), dtype=np.float32) / 255
    assert np.allclose(out[0, 0].numpy(), expected, atol=2 / 255)


def test_hue_turns_about_the_grey_axis() -> None:
    third = _hue_rotation(torch.tensor([2 * np.pi / 3]))[0]
    assert torch.allclose(third @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    some = _hue_rotation(torch.tensor([0.3]))[0]
    assert torch.allclose(some @ torch.full((3,), 0.4), torch.full((3,), 0.4), atol=1e-6)
    assert torch.allclose(some @ some.t(), torch.eye(3), atol=1e-6)
