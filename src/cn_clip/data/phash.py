"""A picture's fingerprint: 64 bits that survive re-encoding and resizing, and a tiny copy in colour.

    hash, tiny = fingerprint(image)

The bits are signs of the lowest frequencies of the grey picture's cosine transform (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010), with two changes that drawings need: the 64 lowest
frequencies along diagonals without the constant one, so that brightness is not a bit; and a bit is set only where
the frequency is clearly positive, for in a symmetric picture half of them are zero and their signs are noise.
The tiny copy is the picture at 8 × 8 in colour: a red and a blue heart share all 64 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 32  # pixels of the square whose frequencies are taken
TINY = 8  # pixels of the side of the tiny copy
BITS = 64
_CLEAR = 0.1  # of the root mean square of the 64 frequencies
_PLAIN = 8.0  # below this root mean square (2 of 255 grey levels) there is nothing to compare


def _cosines(size: int, count: int) -> npt.NDArray[np.float64]:
    """Rows are the first `count` vectors of the orthonormal DCT-II of `size` samples."""
    k, i = np.arange(count)[:, None], np.arange(size)[None]
    rows = np.cos(np.pi * k * (2 * i + 1) / (2 * size)) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return rows


_DIAGONALS = sorted(((r, c) for r in range(12) for c in range(12)), key=lambda p: (p[0] + p[1], p))[1 : BITS + 1]
_ROWS, _COLUMNS = (np.array(index) for index in zip(*_DIAGONALS, strict=True))
_DCT = _cosines(SIDE, int(max(_ROWS.max(), _COLUMNS.max())) + 1)
_GREY = np.array([0.299, 0.587, 0.114])


def fingerprint(image: Image.Image) -> tuple[int, bytes]:
    """The 64-bit hash of a decoded picture, and its tiny copy: 192 bytes, uint8 [8, 8, 3].

    Transparent parts count as white, as they are seen on a page. The hash of a plain picture is 0: it
    says nothing.
    """
    small = np.asarray(flattened(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0))
    pixels = small.astype(np.float64)
    frequencies = (_DCT @ (pixels @ _GREY) @ _DCT.T)[_ROWS, _COLUMNS]
    scale = float(np.sqrt(np.mean(frequencies**2)))
    bits = np.packbits(frequencies > _CLEAR * scale).tobytes() if scale >= _PLAIN else b"\0" * 8
    step = SIDE // TINY
    tiny = pixels.reshape(TINY, step, TINY, step, 3).mean((1, 3)).round().astype(np.uint8)
    return int.from_bytes(bits, "big"), tiny.tobytes()


def flattened(image: Image.Image) -> Image.Image:
    """The picture in RGB, transparent parts on white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def tiny_difference(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The greatest difference of any colour of any of the 64 cells, 0 to 255: uint8 [N, 192] twice -> [N]."""
    return (np.maximum(left, right) - np.minimum(left, right)).max(axis=1, initial=0)
