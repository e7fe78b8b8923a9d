"""Pillow's bicubic resize of an RGB picture, bit for bit, as products of matrices: 1.5 to 2 times as fast.

    planes = bicubic_planes(image, 224)     # what image.resize((224, 224), BICUBIC) holds

Pillow resizes along rows, then along columns. A result is a sum of pixels times weights, which are whole multiples
of 2^-22, rounded to 8 bits. float64 holds such a sum exactly whatever the order of its terms, so any product of
matrices gives Pillow's result. Only some pixels count for an output: a product makes eight neighbouring outputs of
a few columns, so that few of its multiplications are by zero.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

BLOCK = 8  # outputs of one product; measured: 4 and 16 are slower
UNIT = 2.0**22  # Pillow's weights are whole numbers of 1 / UNIT
SMALL = 2**18  # multiplications of a product that BLAS does not share among threads: pictures already are
FURTHEST, FEWEST = 12, 50_000  # times smaller, pixels of the picture: beyond, Pillow is the faster one
CACHED = 512  # pairs of (source, target) length whose weights are kept: 60 KB each for 640 -> 224


class Products(NamedTuple):
    """How one axis is resized.

    Attributes:
        windows: where each block of outputs reads: [start, stop) of the source.
        outputs: the first output of each block.
        weights: float64 [blocks, window, BLOCK].
    """

    windows: list[tuple[int, int]]
    outputs: list[int]
    weights: npt.NDArray[np.float64]


def worth_it(image: Image.Image, size: int) -> bool:
    """Whether `bicubic_planes` takes the picture, equals Pillow, and is the faster of the two (measured).

    Pillow 13 resizes columns first where height shrinks much more than width: it keeps those pictures.
    """
    width, height = image.size
    rows_first = size < width and height - size <= 2 * (width - size)
    faster = size < height and width <= FURTHEST * size and width * height >= FEWEST
    return image.mode == "RGB" and size >= BLOCK and rows_first and faster and _as_pillow_does()


def bicubic_planes(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """An RGB picture -> uint8 [3, size, size], equal to Pillow's; `size` is `BLOCK` at least."""
    width, height = image.size
    across, down = products(width, size), products(height, size)
    rows = max(1, SMALL // across.weights[0].size)
    wide = np.empty((min(rows, height), width))
    narrow = np.empty((height, size))
    square = np.empty((size, size))
    planes = np.empty((3, size, size), dtype=np.uint8)
    for band, plane in zip(image.split(), planes, strict=True):
        pixels = np.asarray(band)
        for top in range(0, height, rows):
            strip = wide[: min(rows, height - top)]
            strip[:] = pixels[top : top + rows]
            part = narrow[top : top + rows]
            for (start, stop), x, weights in zip(*across, strict=True):
                np.matmul(strip[:, start:stop], weights, out=part[:, x : x + BLOCK])
        np.floor(_rounded(narrow), out=narrow)
        for (start, stop), y, weights in zip(*down, strict=True):
            np.matmul(weights.T, narrow[start:stop], out=square[y : y + BLOCK])
        plane[:] = _rounded(square)
    return planes


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """In place: half up, once cut to a whole number, and clipped to 8 bits."""
    values += 0.5
    return np.clip(values, 0, 255, out=values)


@lru_cache(maxsize=CACHED)
def products(source: int, target: int) -> Products:
    """Pillow's bicubic weights from `source` to `target` pixels, as blocks of outputs."""
    first, weights = pillow_weights(source, target)
    outputs = [min(x, target - BLOCK) for x in range(0, target, BLOCK)]  # the last block may overlap
    counts = (weights != 0)[:, ::-1].argmax(axis=1)
    last = first + weights.shape[1] - counts
    length = max(int(last[x : x + BLOCK].max() - first[x]) for x in outputs)
    blocks = np.zeros((len(outputs), length, BLOCK))
    windows = []
    for block, x in zip(blocks, outputs, strict=True):
        start = min(int(first[x]), source - length)
        windows.append((start, start + length))
        for column in range(BLOCK):
            low, high = first[x + column], last[x + column]
            block[low - start : high - start, column] = weights[x + column, : high - low]
    return Products(windows, outputs, blocks)


def pillow_weights(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Where each output's weights start, int64 [target], and they themselves, float64 [target, taps]."""
    scale = source / target
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centres + support + 0.5).astype(np.int64), source)
    at = first[:, None] + np.arange(int((stop - first).max()))
    x = np.abs((at - centres[:, None] + 0.5) * (1.0 / stretch))
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5  # Keys' cubic, a = -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[at >= stop[:, None]] = 0
    weights /= weights.cumsum(axis=1)[:, -1:]  # cumsum adds one after the other, as Pillow does
    return first, np.trunc(weights * UNIT + np.copysign(0.5, weights)) / UNIT


@lru_cache(maxsize=1)
def _as_pillow_does() -> bool:
    """Whether the Pillow that is installed resizes as computed here: another build might not."""
    size, noise = 29, np.random.default_rng(0).integers(0, 256, (64, 83, 3), dtype=np.uint8)
    noise[:, ::4] = 255 * (noise[:, ::4] > 127)  # sharp edges overshoot, and are clipped
    for image in map(Image.fromarray, (noise, noise[:, :48])):
        expected = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
        if not np.array_equal(bicubic_planes(image, size), np.moveaxis(expected, -1, 0)):
            return False
    return True
