"""Augmentation that bridges drawing styles: the same thing as another hand might draw it, on another ground.

A batch of small pictures is changed in a few tensor operations. Shapes bend (elastic, affine), palettes turn,
drawings become outlines, posters or negatives, and white grounds become colours; what is drawn stays. Every
picture's randomness is a function of one seed.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.augment import recoloured, symmetric
from cn_clip.transform import MEAN, STD

_DRAWS = 48  # uniform numbers a picture may use
_GRID, _GROUND = 4, 6  # control points of the elastic field, and of a blotchy ground, along a side


@dataclass(frozen=True)
class DrawingAugment:
    """Redraw a batch of pictures.

    Attributes:
        ground: probability that the white around a drawing becomes a colour, a gradient or blotches.
        zoom: logarithm of the area that the frame shows, at most, either way (out and in).
        stretch: logarithm of width over height, at most, either way.
        degrees: rotation of half of the pictures, at most, either way.
        bend: deviation of the elastic field's control points, as a share of half the picture, for half of them.
        restyle: probability of one of: negative, outline, posterised, blurred, sharpened, noisy.
        cutout: probability of a rectangle of one colour.
    """

    ground: float = 0.35
    zoom: float = 0.35
    stretch: float = 0.2
    degrees: float = 25.0
    bend: float = 0.05
    restyle: float = 0.7
    cutout: float = 0.2

    def __call__(self, pixels: npt.NDArray[np.uint8], seeds: list[int]) -> Tensor:
        """pixels: uint8 [N, H, W, 3], one seed a picture -> float32 [N, 3, H, W], normalised."""
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        return self.redraw(pixels, seeds).sub_(mean).div_(std)

    def redraw(self, pixels: npt.NDArray[np.uint8], seeds: list[int]) -> Tensor:
        """The same before normalisation: float32 [N, 3, H, W] in [0, 1]."""
        generators = [np.random.default_rng(seed) for seed in seeds]
        u = torch.from_numpy(np.stack([g.random(_DRAWS, dtype=np.float32) for g in generators]))
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
        if len(chosen := _where(u[:, 0] < self.ground)):
            blotches = _drawn(generators, chosen, (3, _GROUND, _GROUND), normal=False)
            images[chosen] = _new_ground(images[chosen], u[chosen, 1:8], blotches)
        field = _drawn(generators, torch.arange(len(images)), (2, _GRID, _GRID), normal=True)
        images = self._move(images, u[:, 8:17], field)
        images = _recolour(images, u[:, 17:24])
        images = self._restyle(images, u[:, 24:27], generators)
        return self._cut_out(images, u[:, 27:35])

    def _move(self, images: Tensor, u: Tensor, field: Tensor) -> Tensor:
        """Zoom, stretch, turn, lean, shift, mirror and bend, by one bilinear sampling."""
        area = torch.exp(symmetric(u[:, 0]) * self.zoom)
        aspect = torch.exp(symmetric(u[:, 1]) * self.stretch)
        width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
        angle = torch.where(u[:, 2] < 0.5, symmetric(u[:, 3]) * math.radians(self.degrees), 0.0)
        lean = symmetric(u[:, 4]) * 0.15
        mirror = torch.where(u[:, 5] < 0.5, -1.0, 1.0)
        x, y = symmetric(u[:, 6]) * 0.12, symmetric(u[:, 7]) * 0.12
        cos, sin = angle.cos(), angle.sin()
        rows = [mirror * width * cos, lean - height * sin, x, mirror * width * sin, height * cos, y]
        grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
        bend = torch.where(u[:, 8] < 0.5, self.bend, 0.0)[:, None, None, None]
        field = F.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + bend * field.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _restyle(self, images: Tensor, u: Tensor, generators: list[np.random.Generator]) -> Tensor:
        kind = u[:, 0] / self.restyle if self.restyle else torch.ones(len(u))
        bounds = (0.0, 0.07, 0.24, 0.38, 0.6, 0.78, 1.0)  # negative, outline, poster, blur, sharp, noise
        changes = [_where((kind >= low) & (kind < high)) for low, high in itertools.pairwise(bounds)]
        negative, outline, poster, blur, sharp, noise = changes
        images[negative] = 1 - images[negative]
        if len(outline):
            images[outline] = _outline(images[outline], u[outline, 1])
        if len(poster):
            levels = (2 + (4 * u[poster, 1]).floor())[:, None, None, None]
            images[poster] = (images[poster] * levels).round() / levels
        if len(blur):
            half = F.avg_pool2d(images[blur], 2)
            images[blur] = F.interpolate(half, images.shape[-2:], mode="bilinear", align_corners=False)
        if len(sharp):
            soft = F.avg_pool2d(images[sharp], 3, 1, 1, count_include_pad=False)
            images[sharp] = (images[sharp] + 1.5 * (images[sharp] - soft)).clamp_(0, 1)
        if len(noise):
            grain = _drawn(generators, noise, tuple(images.shape[1:]), normal=True)
            images[noise] = (images[noise] + 0.16 * u[noise, 1, None, None, None] * grain).clamp_(0, 1)
        return images

    def _cut_out(self, images: Tensor, u: Tensor) -> Tensor:
        size = torch.tensor(images.shape[-2:])
        for i in _where(u[:, 0] < self.cutout).tolist():
            height, width = ((0.125 + 0.25 * u[i, 1:3]) * size).long().tolist()
            top, left = (u[i, 3:5] * (size - torch.tensor([height, width]))).long().tolist()
            images[i, :, top : top + height, left : left + width] = u[i, 5:8, None, None]
        return images


def _where(condition: Tensor) -> Tensor:
    return condition.nonzero().flatten()


def _drawn(generators: list[np.random.Generator], chosen: Tensor, shape: tuple[int, ...], normal: bool) -> Tensor:
    """float32 [len(chosen), *shape] from the chosen pictures' own generators."""
    if not len(chosen):
        return torch.empty(0, *shape)
    values = []
    for i in chosen.tolist():
        draw = generators[i].standard_normal if normal else generators[i].random
        values.append(draw(shape, dtype=np.float32))
    return torch.from_numpy(np.stack(values))


def _new_ground(images: Tensor, u: Tensor, blotches: Tensor) -> Tensor:
    """White that is connected to the border becomes a colour, a gradient of two, or blotches."""
    white = (images.amin(1, keepdim=True) > 0.97).float()
    outside = torch.zeros_like(white)
    outside[..., (0, -1), :] = 1
    outside[..., :, (0, -1)] = 1
    outside *= white
    for _ in range(images.shape[-1] // 2 + 8):  # spreads two pixels a round
        outside = F.max_pool2d(outside, 5, 1, 2) * white
    soft = (F.avg_pool2d(outside, 3, 1, 1, count_include_pad=False) + outside) / 2
    first, second = u[:, 0:3, None, None], u[:, 3:6, None, None]
    kind = u[:, 6, None, None, None]
    down = torch.linspace(0, 1, images.shape[-2])[None, None, :, None]
    blotches = F.interpolate(blotches, images.shape[-2:], mode="bilinear", align_corners=False)
    ground = torch.where(kind < 0.75, first * (1 - down) + second * down, blotches)
    ground = torch.where(kind < 0.5, first.expand_as(images), ground)
    return images * (1 - soft) + ground * soft


def _recolour(images: Tensor, u: Tensor) -> Tensor:
    """Saturation (down to grey), hue (any, for some), contrast, brightness and gamma."""
    saturation = torch.where(u[:, 0] < 0.15, 0.0, 1 + symmetric(u[:, 1]) * 0.7)
    turn = symmetric(u[:, 2]) * math.pi * torch.where(u[:, 3] < 0.3, 1.0, 0.15)
    contrast, brightness = 1 + symmetric(u[:, 4]) * 0.45, 1 + symmetric(u[:, 5]) * 0.35
    gamma = torch.exp(symmetric(u[:, 6]) * 0.4)[:, None, None, None]
    return recoloured(images, saturation, turn, contrast, brightness).clamp_(1e-4, 1).pow(gamma)


def _outline(images: Tensor, u: Tensor) -> Tensor:
    """Edges (central differences) in black on white, or over the paled drawing."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    lines = (1 - 2 * (across**2 + down**2).sqrt().amax(1, keepdim=True)).clamp(0, 1)
    return torch.where(u[:, None, None, None] < 0.5, lines.expand_as(images), (images / 2 + 0.5) * lines)
