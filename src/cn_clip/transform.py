"""The one image path: decode, resize, normalise. Pillow and numpy only; the same values as the reference's.

A picture is resized to a square with Pillow's bicubic filter (no crop), then converted to RGB (in that order:
it matters for palette and transparent pictures), scaled to [0, 1] and normalised.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cn_clip.errors import UserError
from cn_clip.resample import bicubic_planes, worth_it

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI CLIP's training images
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 89_478_485  # Pillow's own threshold: 256 MB of RGB
# Pillow warns of bombs, which are refused here, and of odd metadata. Appended: a caller's own filters come first.
# Not `catch_warnings`: pictures are decoded in threads, and those would restore each other's filters.
warnings.filterwarnings("ignore", module="PIL", append=True)
_MEAN = np.array(MEAN, dtype=np.float32)[:, None, None]
_STD = np.array(STD, dtype=np.float32)[:, None, None]


def decode_image(
    data: bytes | str | os.PathLike[str], where: str | None = None, at_least: int | None = None
) -> Image.Image:
    """Decode a whole picture (an animation's first frame) from bytes or a file.

    A 16-bit grey picture is scaled to 8 bits, where the reference's conversion would turn it white.

    Args:
        data: an encoded picture, or a path.
        where: how an error names the picture ("imgs.tsv:12: image 345"); the path if None.
        at_least: decode a JPEG at the smallest of 1/8, 1/4, 1/2 and 1 of its size that has as many pixels
            each way: two to three times as fast, and not quite the same picture. Other formats are decoded whole.

    Raises:
        UserError: empty, truncated, not a picture, or over `MAX_PIXELS`.
    """
    if isinstance(data, bytes):
        where, source = where or "image", io.BytesIO(data)
    else:
        where, source = where or str(data), io.BytesIO(_read(data, where or str(data)))
    image = open_image(source, where)
    if at_least:
        image.draft(None, (at_least, at_least))
    return load_image(image, where)


def open_image(source: io.BytesIO, where: str) -> Image.Image:
    """Read a picture's header; its pixels are decoded by `load_image`.

    Raises:
        UserError: empty, not a picture, or over `MAX_PIXELS`.
    """
    if source.getbuffer().nbytes == 0:
        raise UserError(f"{where}: the image is empty (0 bytes)")
    try:
        image = Image.open(source)
    except UnidentifiedImageError:
        raise UserError(f"{where}: not an image in a known format") from None
    except Exception as error:  # a decoder may raise nearly anything on broken data
        raise UserError(f"{where}: cannot decode the image: {error}") from None
    _check_size(image, where)
    return image


def load_image(image: Image.Image, where: str) -> Image.Image:
    """Decode the pixels of a picture that Pillow has opened; 16-bit grey is scaled to 8 bits.

    Raises:
        UserError: truncated, empty, over `MAX_PIXELS`, or of a mode that cannot become RGB.
    """
    _check_size(image, where)
    try:
        image.load()
    except Exception as error:
        raise UserError(f"{where}: cannot decode the image: {error}") from None
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "La":
        raise UserError(f"{where}: a picture of mode La cannot become RGB")
    return image


def _check_size(image: Image.Image, where: str) -> None:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise UserError(
            f"{where}: {image.width}×{image.height} pixels: expected 1 to {MAX_PIXELS:,}; make the image smaller"
        )


def _read(path: str | os.PathLike[str], where: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot read the image: {error.strerror}") from None


def resize(image: Image.Image, size: int, fast: bool = False) -> npt.NDArray[np.uint8]:
    """A picture of any mode -> uint8 [size, size, 3], as Pillow's bicubic filter has it, bit for bit.

    With `fast`, an RGB picture is resized by torch's kernel for 8 bits: six times as fast, and a few in a thousand
    values differ by 1, rarely by 2.
    """
    if fast and image.mode == "RGB":
        return _torch_resize(np.array(image), size)
    if worth_it(image, size):
        return np.moveaxis(bicubic_planes(image, size), 0, -1)
    image = image.resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
    return np.asarray(image)


def _torch_resize(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] -> [size, size, 3]; the kernel runs in the calling thread alone."""
    import torch
    from torch.nn.functional import interpolate

    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    small = interpolate(image, (size, size), mode="bicubic", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def normalise(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] with the training images' mean and deviation."""
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.float32)
    planes /= 255
    planes -= _MEAN
    planes /= _STD
    return planes


class ImageTransform:
    """A PIL picture -> float32 tensor [3, size, size]; `preprocess` of the documented API."""

    def __init__(self, size: int = 224) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize, convert to RGB, normalise."""
        import torch

        return torch.from_numpy(normalise(resize(image, self.size)))

    def __repr__(self) -> str:
        return f"ImageTransform(size={self.size})"
