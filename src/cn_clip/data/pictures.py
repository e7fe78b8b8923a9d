"""The pictures of `{split}_imgs.tsv`, decoded in threads, in the order of the lines.

    for look in look_at(Path("train_imgs.tsv"), threads=4, of=perceptual_hash): ...

What `data check`, `data stats` and `data dedup` know of a picture; memory is that of a few pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cn_clip.data.formats import IdType, LineError, decode_base64, parse_image, parse_text, read_lines
from cn_clip.errors import UserError
from cn_clip.parallel import map_in_threads
from cn_clip.progress import progress
from cn_clip.transform import MAX_PIXELS, decode_image


class Look(NamedTuple):
    """What decoding one picture told.

    Attributes:
        line: its line in the file, from 1.
        image_id: empty when the line is broken.
        problem: (kind, message) when it cannot be read; what follows is then empty.
        digest: BLAKE2b of the file's bytes, 16 bytes.
        size: bytes of the file.
        width: pixels.
        height: pixels.
        format: Pillow's name of the file format ("JPEG").
        mode: Pillow's name of the pixel format ("RGB").
        unusual: animated, 16-bit, CMYK, palette or floating-point; empty for the others.
        more: what the caller's function made of the picture.
    """

    line: int
    image_id: str
    problem: tuple[str, str] | None = None
    digest: bytes = b""
    size: int = 0
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    unusual: str = ""
    more: Any = None


def look_at(tsv: Path, threads: int, of: Callable[[Image.Image], Any] | None = None) -> Iterator[Look]:
    """Decode every picture of a file, a few ahead, with a progress bar; broken ones are results, too.

    Args:
        tsv: `{split}_imgs.tsv`.
        threads: how many decode.
        of: called with each decoded picture, in the thread that decoded it; its result is `Look.more`.
    """
    with progress(total=tsv.stat().st_size, desc=tsv.name, unit="B") as bar:

        def lines() -> Iterator[tuple[int, bytes]]:
            for number, line in read_lines(tsv):
                bar.update(len(line) + 1)
                yield number, line

        yield from map_in_threads(
            lambda row: _look(row[1], row[0], f"{tsv}:{row[0]}", of), lines(), threads, 2 * threads + 1
        )


def fetch(tsv: Path, image_ids: Collection[str]) -> dict[str, bytes]:
    """The files of some pictures, by id; of an id that stands twice the first. Stops reading when all are found.

    Raises:
        LineError: the base64 of one of them is broken.
    """
    wanted, found = set(image_ids), {}
    if not wanted:
        return {}
    for number, line in read_lines(tsv):
        key = line.split(b"\t", 1)[0].decode("utf-8", "replace").strip()
        if key in wanted:
            row = parse_image(line, f"{tsv}:{number}")
            found[key] = decode_base64(row.base64, f"{tsv}:{number}: image {key}")
            wanted.remove(key)
            if not wanted:
                break
    return found


def captions(jsonl: Path, image_ids: Collection[str], most: int) -> dict[str, list[str]]:
    """Up to `most` texts of each of some pictures, by id, in the order of the file; broken lines are left out."""
    found: dict[str, list[str]] = {image_id: [] for image_id in image_ids}
    if not found or not jsonl.is_file():
        return found
    ids = IdType()
    for number, line in read_lines(jsonl):
        try:
            text = parse_text(line, f"{jsonl}:{number}", ids)
        except LineError:
            continue
        for image_id in map(str, text.image_ids):
            if image_id in found and len(found[image_id]) < most:
                found[image_id].append(text.text)
    return found


def _look(line: bytes, number: int, where: str, of: Callable[[Image.Image], Any] | None) -> Look:
    image_id = ""
    try:
        image_id, encoded, _ = parse_image(line, where)
        where = f"{where}: image {image_id}"
        data = decode_base64(encoded, where)
    except LineError as error:
        return Look(number, image_id, (error.kind, str(error)))
    unusual, format, mode, kind = "", "", "", "undecodable image" if data else "zero-byte image"
    try:
        with Image.open(BytesIO(data)) as header:
            if header.width * header.height > MAX_PIXELS:
                kind = "decompression bomb"
            format, mode, unusual = header.format or "", header.mode, _unusual(header)
    except Image.DecompressionBombError:
        kind = "decompression bomb"
    except Exception:  # decode_image says what it is
        unusual = ""
    try:
        image = decode_image(data, where)
    except UserError as error:
        return Look(number, image_id, (kind, str(error)))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    more = of(image) if of else None
    return Look(number, image_id, None, digest, len(data), image.width, image.height, format, mode, unusual, more)


def _unusual(image: Image.Image) -> str:
    if getattr(image, "is_animated", False):
        return "animated"
    if image.mode.startswith("I"):
        return "16-bit"
    return {"CMYK": "CMYK", "P": "palette", "F": "floating-point"}.get(image.mode, "")
