"""The drawing augmentation: a function of each picture's seed, plausible values, every kind of change."""

from __future__ import annotations

import numpy as np
import torch

from cn_clip.augment import flip
from cn_clip.augment_drawing import DrawingAugment, _new_ground
from cn_clip.transform import MEAN, STD

STILL = DrawingAugment(ground=0, zoom=0, stretch=0, degrees=0, bend=0, restyle=0, cutout=0)


def drawings(count: int, size: int = 64) -> np.ndarray:
    """White pictures with a disc of some colour, and a white hole in it."""
    y, x = np.mgrid[:size, :size] - size / 2
    pixels = np.full((count, size, size, 3), 255, np.uint8)
    pixels[:, x**2 + y**2 < (0.3 * size) ** 2] = np.random.default_rng(0).integers(0, 200, (count, 1, 3))
    pixels[:, x**2 + y**2 < (0.1 * size) ** 2] = 255
    return pixels


def test_a_picture_depends_on_its_own_seed_alone() -> None:
    pixels = drawings(12)
    whole = DrawingAugment()(pixels, list(range(12)))
    for rows in ([3], [7, 2], [11, 0, 5]):
        some = DrawingAugment()(pixels[rows], rows)
        assert torch.allclose(some, whole[rows], atol=1e-5)
    assert not torch.allclose(whole[0], DrawingAugment()(pixels[:1], [99])[0], atol=0.1)


def test_values_are_pictures_and_normalised_as_all_pictures_are() -> None:
    pixels, seeds = drawings(64), list(range(64))
    redrawn = DrawingAugment().redraw(pixels, seeds)
    assert redrawn.shape == (64, 3, 64, 64)
    assert redrawn.min() >= 0
    assert redrawn.max() <= 1
    expected = (redrawn - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.allclose(DrawingAugment()(pixels, seeds), expected, atol=1e-5)
    small = DrawingAugment()(drawings(5, size=33), [1, 2, 3, 4, 5])  # odd sizes too
    assert small.shape == (5, 3, 33, 33)


def test_each_restyling_happens() -> None:
    """With one kind of change at a time, some pictures change and the others are only moved and recoloured."""
    pixels, seeds = drawings(200), list(range(200))
    still = STILL.redraw(pixels, seeds)
    changes = {"ground": 0.3, "restyle": 0.6, "cutout": 0.4, "bend": 0.1, "degrees": 30.0, "zoom": 0.5}
    for name, value in changes.items():
        changed = DrawingAugment(**{**vars(STILL), name: value}).redraw(pixels, seeds)
        share = ((changed - still).abs().amax((1, 2, 3)) > 0.02).float().mean().item()
        expected = {"bend": 0.5, "degrees": 0.5, "zoom": 1.0}.get(name, value)
        assert abs(share - expected) < 0.15, name


def test_a_new_ground_stops_at_the_drawing() -> None:
    images = torch.from_numpy(drawings(3)).permute(0, 3, 1, 2).float() / 255
    u = torch.full((3, 7), 0.1)
    changed = _new_ground(images, u, torch.zeros(3, 3, 6, 6))
    assert torch.allclose(changed[:, :, 0, 0], torch.full((3, 3), 0.1))
    assert torch.equal(changed[:, :, 32, 32], images[:, :, 32, 32])  # the hole is inside: still white
    assert torch.allclose(changed[:, :, 20, 32], images[:, :, 20, 32])  # the disc too


def test_flip_mirrors_the_odd_seeds() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    flipped = flip(pixels, [2, 3, 4, 7])
    assert (flipped[[0, 2]] == pixels[[0, 2]]).all()
    assert (flipped[[1, 3]] == pixels[[1, 3]][:, :, ::-1]).all()
