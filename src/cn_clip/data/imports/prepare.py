"""One picture, made ready for the TSV: read, verified, turned upright where needed, base64; runs in threads.

The published preprocessing ignores the orientation that cameras write into EXIF, so a picture that carries one is
turned here and written anew: without loss in PNG, lossless WebP and the like, at quality 95 in JPEG and lossy
WebP. Every other picture keeps its bytes, unless `max_side` or `quality` asks for another.
"""

from __future__ import annotations

import binascii
import os
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from cn_clip.data.imports.rows import Problem, Slice
from cn_clip.errors import UserError
from cn_clip.transform import load_image, open_image

_ORIENTATION = 0x0112
_TURNED_QUALITY = 95
_SMALLER_QUALITY = 90


class Storing(NamedTuple):
    """How pictures are stored.

    Attributes:
        max_side: larger ones are made smaller, to this many pixels on their longer side; None: none is.
        quality: JPEG and lossy WebP are written anew at this quality (1 to 100) where that makes them smaller.
        verify: decode every picture, not only its header.
        digest: hash the file that was read.
    """

    max_side: int | None = None
    quality: int | None = None
    verify: bool = True
    digest: bool = True


class Prepared(NamedTuple):
    """A picture's base64, or why there is none.

    Attributes:
        line: base64 of the stored file, with a line end.
        digest: BLAKE2b of the file that was read, 16 bytes; empty when it was not asked for.
        change: what was done to it ("turned upright", "made smaller", "re-encoded"); empty when it is copied.
        problem: why it cannot be stored.
    """

    line: bytes = b""
    digest: bytes = b""
    change: str = ""
    problem: Problem | None = None


def prepare(image: Path | bytes | Slice, storing: Storing) -> Prepared:
    """Read a picture, verify it, and encode what is stored of it."""
    try:
        data = _read(image)
    except FileNotFoundError:
        return Prepared(problem=Problem("missing file", f"{_name(image)}: no such file"))
    except OSError as error:
        return Prepared(problem=Problem("unreadable file", f"{_name(image)}: {error.strerror or error}"))
    except ValueError as error:  # a zero byte in the name
        return Prepared(problem=Problem("missing file", str(error)))
    if not data:
        return Prepared(problem=Problem("empty image", "0 bytes"))
    try:
        stored, change = _stored(data, storing)
    except UserError as error:
        return Prepared(problem=Problem("undecodable image", str(error).removeprefix("picture: ")))
    digest = blake2b(data, digest_size=16).digest() if storing.digest else b""
    return Prepared(binascii.b2a_base64(stored), digest, change)


def _name(image: Path | bytes | Slice) -> str:
    return str(image.path if isinstance(image, Slice) else image if isinstance(image, Path) else "image")


def _read(image: Path | bytes | Slice) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    file = os.open(image.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(file, image.offset, os.SEEK_SET)
        with os.fdopen(file, "rb", closefd=False) as stream:
            return stream.read(image.size)
    finally:
        os.close(file)


def _stored(data: bytes, storing: Storing) -> tuple[bytes, str]:
    """The bytes that are stored, and what was done to them.

    Raises:
        UserError: it cannot be decoded.
    """
    image = open_image(BytesIO(data), "picture")
    jpeg = image.format == "JPEG"
    turned = jpeg and _orientation(image) != 1
    smaller = storing.max_side is not None and max(image.size) > storing.max_side
    lossy = jpeg or image.format == "MPO" or (image.format == "WEBP" and b"VP8L" not in data)
    anew = storing.quality is not None and lossy
    if not (turned or smaller or anew):
        if jpeg and storing.verify:
            # An eighth of the size, brightness only: every byte is still read and Huffman-decoded, so that what a
            # full decoding would refuse is refused; tests hold the two against each other.
            image.draft("L", (1, 1))
        if storing.verify:
            load_image(image, "picture")
        turned = not jpeg and _orientation(image) != 1  # some formats keep EXIF behind the pixels
        if not turned:
            return data, ""
    if smaller and jpeg:
        side = 2 * (storing.max_side or 0)
        image.draft(image.mode, (side, side))
    decoded = load_image(image, "picture")
    turned = turned or _orientation(image) != 1
    picture = _fit(decoded, storing.max_side) if smaller and storing.max_side else image
    if turned:
        picture = _upright(picture, _orientation(image))
    stored = _encode(picture, image, lossy, storing.quality, smaller)
    if anew and not (turned or smaller) and len(stored) >= len(data):
        return data, ""
    return stored, "turned upright" if turned else "made smaller" if smaller else "re-encoded"


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns it itself when it decodes
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF is no reason to refuse a picture
        return 1
    return value if value in range(2, 9) else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _fit(image: Image.Image, side: int) -> Image.Image:
    if image.mode in ("P", "PA", "1"):
        image = image.convert("L" if image.mode == "1" else "RGBA" if "transparency" in image.info else "RGB")
    return ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)


def _encode(picture: Image.Image, source: Image.Image, lossy: bool, quality: int | None, smaller: bool) -> bytes:
    """A file of the source's format where that is JPEG or WebP, else PNG; its colour profile is kept."""
    options: dict[str, Any] = {}
    if profile := source.info.get("icc_profile"):
        options["icc_profile"] = profile
    if source.format in ("JPEG", "MPO"):
        options |= {"format": "JPEG", "quality": quality or (_SMALLER_QUALITY if smaller else _TURNED_QUALITY)}
        if quality is None and not smaller:
            options["subsampling"] = "4:4:4"
    elif source.format == "WEBP":
        options |= {"format": "WEBP", "lossless": not lossy, "quality": quality or _TURNED_QUALITY}
    else:
        options["format"] = "PNG"
        if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            picture = picture.convert("RGBA" if picture.mode in ("PA", "RGBa") else "RGB")
    buffer = BytesIO()
    try:
        picture.save(buffer, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"picture: cannot be written as {options['format']}: {error}") from None
    return buffer.getvalue()
