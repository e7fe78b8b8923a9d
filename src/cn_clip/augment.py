"""Training augmentation: timm's, as documented (`--use-augment`), or a light one for small images on a CPU.

Every picture's randomness is a function of one seed, so a run repeats whatever its workers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cn_clip.errors import MissingExtra
from cn_clip.transform import MEAN, STD

_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's own conversion
_DRAWS = 16  # uniform numbers a picture may use


def timm_augment(size: int) -> Callable[[Image.Image, int], Tensor]:
    """The documented augmentation: a crop of 90 to 100 % of the picture, a flip, AutoAugment "original".

    Returns:
        A function of a PIL picture and its seed: float32 [3, size, size], normalised.

    Raises:
        MissingExtra: timm or torchvision is not installed.
    """
    try:
        from timm.data import create_transform
        from torchvision.transforms import Compose
    except ImportError:
        raise MissingExtra("timm and torchvision", "train", "--use-augment") from None
    pipeline = create_transform(
        input_size=size,
        is_training=True,
        scale=(0.9, 1.0),
        color_jitter=None,  # type: ignore[arg-type]
        auto_augment="original",
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    ).transforms
    # Crop and flip work on the picture's own mode; the policy, to tensor and normalise (the last 3) on RGB.
    before, after = Compose(pipeline[:-3]), Compose(pipeline[-3:])

    def augment(image: Image.Image, seed: int) -> Tensor:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        tensor: Tensor = after(before(image).convert("RGB"))
        return tensor

    return augment


@dataclass(frozen=True)
class LightAugment:
    """Crop, rotate, flip, recolour and blur a batch of small pictures in a few tensor operations.

    Colours change much more than in photographs (down to grey, a turn of the hue), because the same thing
    drawn by another hand keeps its shape, not its palette.

    Attributes:
        scale: share of the picture's area that a crop keeps, smallest and largest.
        ratio: a crop's width over its height, at most (and one over it, at least).
        degrees: rotation, at most, either way.
        flip: probability of a left-right flip.
        brightness, contrast, saturation: factors lie within 1 ± this.
        hue: rotation of the hue, at most, as a share of the circle.
        grey: probability of no colour at all.
        blur: probability of half the resolution.
    """

    scale: tuple[float, float] = (0.6, 1.0)
    ratio: float = 1.2
    degrees: float = 10.0
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.5
    hue: float = 0.05
    grey: float = 0.1
    blur: float = 0.1

    def __call__(self, pixels: npt.NDArray[np.uint8], seeds: list[int]) -> Tensor:
        """pixels: uint8 [N, H, W, 3], one seed a picture -> float32 [N, 3, H, W], normalised."""
        draws = np.stack([np.random.default_rng(seed).random(_DRAWS, dtype=np.float32) for seed in seeds])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
        u = torch.from_numpy(draws)
        images = self._move(images, u[:, :8])
        images = self._recolour(images, u[:, 8:13])
        blurred = (u[:, 13] < self.blur).nonzero().flatten()
        if len(blurred):
            small = F.avg_pool2d(images[blurred], 2)
            images[blurred] = F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        return images.sub_(mean).div_(std)

    def _move(self, images: Tensor, u: Tensor) -> Tensor:
        """A random crop, rotated about its centre and perhaps mirrored, by bilinear sampling."""
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 0]
        aspect = torch.exp(symmetric(u[:, 1]) * math.log(self.ratio))
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        angle = symmetric(u[:, 2]) * math.radians(self.degrees)
        mirror = torch.where(u[:, 3] < self.flip, -1.0, 1.0)
        x, y = symmetric(u[:, 4]) * (1 - width), symmetric(u[:, 5]) * (1 - height)
        cos, sin = angle.cos(), angle.sin()
        rows = [mirror * width * cos, -height * sin, x, mirror * width * sin, height * cos, y]
        grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _recolour(self, images: Tensor, u: Tensor) -> Tensor:
        saturation = torch.where(u[:, 1] < self.grey, 0.0, 1 + symmetric(u[:, 0]) * self.saturation)
        turn = symmetric(u[:, 2]) * self.hue * 2 * math.pi
        contrast = 1 + symmetric(u[:, 3]) * self.contrast
        brightness = 1 + symmetric(u[:, 4]) * self.brightness
        return recoloured(images, saturation, turn, contrast, brightness).clamp_(0, 1)


def flip(pixels: npt.NDArray[np.uint8], seeds: list[int]) -> npt.NDArray[np.uint8]:
    """Mirror half of the pictures, uint8 [N, H, W, 3]; which ones, their seeds say."""
    mirrored = np.array([seed & 1 for seed in seeds], dtype=bool)
    return np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)


def recoloured(images: Tensor, saturation: Tensor, turn: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] in other colours, not clamped; factors and the hue's radians are [N], one a picture.

    Saturation and hue are one 3×3 matrix a picture; contrast and brightness scale and shift it.
    """
    n = len(images)
    saturation, contrast, brightness = (x[:, None, None] for x in (saturation, contrast, brightness))
    colour = saturation * torch.eye(3) + (1 - saturation) * _GREY.expand(3, 3)
    colour = colour @ _hue_rotation(turn)
    flat = images.reshape(n, 3, -1)
    middle = (_GREY @ flat.mean(dim=2, keepdim=True)).reshape(n, 1, 1)
    flat = torch.baddbmm(brightness * (1 - contrast) * middle, brightness * contrast * colour, flat)
    return flat.reshape(images.shape)


def symmetric(u: Tensor) -> Tensor:
    """Uniform on [0, 1) -> uniform on [-1, 1)."""
    return 2 * u - 1


def _hue_rotation(angle: Tensor) -> Tensor:
    """Rotation about the grey axis of the RGB cube by `angle` radians (Rodrigues' formula): [N, 3, 3]."""
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3) + (1 - cos) * axis + sin * cross
