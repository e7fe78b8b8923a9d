"""What the tests of `data import` share: pictures on the disk, running the verb, reading what came out."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from cn_clip.data.check import check
from cn_clip.data.formats import read_images, read_texts
from cn_clip.data.imports.run import import_data
from cn_clip.data.imports.write import REPORT
from tiny import encoded, pictures


def write_pictures(folder: Path, count: int, seed: int = 0) -> list[bytes]:
    """JPEGs 0.jpg, 1.jpg, …; their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [encoded(image, "JPEG") for image in pictures(count, seed)]
    for number, data in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(data)
    return files


def run(source: Path, out: Path, clean: bool = True, **flags: Any) -> dict[str, Any]:
    """Import, and (with `clean`) check that `data check` finds no problem; returns the report's summary."""
    import_data(source, out, **{"workers": 1, **flags})
    if clean:
        assert check(out, threads=1) == 0
    return report(out)[-1]["summary"]


def report(out: Path) -> list[dict[str, Any]]:
    """The report's lines."""
    return [json.loads(line) for line in (out / REPORT).read_text("utf-8").splitlines()]


def reasons(out: Path) -> dict[str, str]:
    """Where -> why, of everything that was skipped (the last part of the place)."""
    return {row["where"].rsplit("/", 1)[-1]: row["reason"] for row in report(out)[:-1]}


def images(out: Path, split: str = "train") -> dict[str, bytes]:
    """Image id -> the file that is stored."""
    return {row.image_id: base64.b64decode(row.base64) for row in read_images(out / f"{split}_imgs.tsv")}


def texts(out: Path, split: str = "train") -> list[tuple[Any, str, list[Any]]]:
    """Text id, caption, image ids."""
    return [(row.text_id, row.text, row.image_ids) for row in read_texts(out / f"{split}_texts.jsonl")]


def opened(data: bytes) -> Image.Image:
    """A picture, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def everything(out: Path) -> dict[str, bytes]:
    """The files of a folder, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}
