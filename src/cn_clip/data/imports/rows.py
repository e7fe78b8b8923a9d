"""What every source is to the importer: parts (files, shards, class folders) that yield rows, from any row on.

A row is cells by column name, and where it stands. Columns are chosen in `guess.py`; nothing here reads pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cn_clip.errors import UserError

SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
# Of the formats that Pillow reads; a file of another kind in a picture folder is not a picture.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".jp2"}
    | {".mpo", ".ppm", ".pgm", ".pbm", ".tga", ".ico"}
)


class Slice(NamedTuple):
    """Bytes in the middle of a file: a member of a tar."""

    path: Path
    offset: int
    size: int


class Problem(NamedTuple):
    """Why something was skipped: a short reason to count by, and the details."""

    reason: str
    detail: str


class Row(NamedTuple):
    """One row of a source.

    Attributes:
        where: what a report calls the row ("captions.csv:12").
        cells: values by column: strings, numbers, lists, bytes, `Slice`.
        problem: why the row cannot be read; `cells` is then empty.
    """

    where: str
    cells: dict[str, Any]
    problem: Problem | None = None


class Part(Protocol):
    """A piece of a source that is read in one go.

    Attributes:
        name: its path, as messages call it.
        split: the split that all its rows are of; empty where the rows or nothing say so.
    """

    name: str
    split: str

    def rows(self, start: int) -> Iterator[Row]:
        """The rows from number `start` (from 0) on, always in the same order."""

    def total(self) -> int | None:
        """How many rows there are, about; None where counting would mean reading all of it."""

    def fingerprint(self) -> list[Any]:
        """Changes when the part's rows may have changed: JSON values."""


class Columns(NamedTuple):
    """Which columns are what; None or empty: there is none."""

    image: str
    texts: tuple[str, ...]
    image_id: str | None = None
    text_id: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass
class Source:
    """A source that was recognised.

    Attributes:
        layout: its kind, as `--layout` names it.
        parts: in the order in which they are read.
        images: the folder that relative picture paths start from.
        columns: what a layout with fixed columns holds; None: to be chosen.
        names: for columns of class numbers, the names of the classes.
        template: captions are class names, which may be put into a sentence.
    """

    layout: str
    parts: list[Part]
    images: Path
    columns: Columns | None = None
    names: dict[str, list[str]] = field(default_factory=dict)

    def sample(self, count: int) -> list[Row]:
        """The first readable rows."""
        found: list[Row] = []
        for part in self.parts:
            for row in part.rows(0):
                if row.problem is None:
                    found.append(row)
                if len(found) == count:
                    return found
        return found


def split_name(name: str) -> str:
    """The house's name of a split: `validation`, `val` and `dev` are `valid`; others stay as they are.

    Raises:
        UserError: not a name that a file can begin with.
    """
    name = name.strip()
    if (
        not name
        or name != Path(name).name
        or name.startswith(".")
        or any(c.isspace() or c in "\\\0,=:" for c in name)
    ):
        raise UserError(f"{name!r} is not the name of a split (expected one such as train, valid or test)")
    return SPLITS.get(name.lower(), name)


def split_of(path: Path, root: Path) -> str:
    """The split that a path below `root` tells: by a folder's name, or the start of the file's; else empty."""
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    for folder in relative.parts[:-1]:
        if folder.lower() in SPLITS:
            return SPLITS[folder.lower()]
    start = relative.name.lower()
    for separator in "-_.":
        start = start.split(separator, 1)[0]
    return SPLITS.get(start.rstrip("0123456789"), "")


def file_print(path: Path) -> list[Any]:
    """A fingerprint of a file: its size and time of change."""
    info = path.stat()
    return [str(path), info.st_size, info.st_mtime_ns]


def image_files(folder: Path, deep: bool = False) -> list[str]:
    """The names of the pictures in a folder (and, with `deep`, those below it), sorted; relative to it."""
    if not deep:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if is_image_name(e.name) and e.is_file())
    found = []
    for base, folders, files in os.walk(folder):
        folders.sort()
        within = Path(base).relative_to(folder)
        found += [str(within / name) for name in files if is_image_name(name)]
    return sorted(found)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as pictures' names do, and is not hidden."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return not last.startswith(".") and last[last.rfind(".") :].lower() in IMAGE_SUFFIXES
