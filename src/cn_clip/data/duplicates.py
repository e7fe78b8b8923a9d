"""Which pictures of a dataset are copies of which: every copy has one picture that stays, and is near to that one.

Pictures come in order of precedence (`Pictures.order`): a picture stays unless it is near to one that stays and
comes before it. So no two that stay are near to each other, and a chain of small changes A ~ B ~ C does not make C
a copy of A, as connected components would: B goes, C stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cn_clip.data.pictures import look_at
from cn_clip.errors import UserError

Keep: TypeAlias = Literal["largest", "first"]
UnitPairs: TypeAlias = Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]


class Pictures:
    """The readable pictures of some splits, column by column; files of equal bytes are one unit.

    Attributes:
        splits: names, those that keep their pictures first.
        split: index of the split of each picture.
        image_id: of each picture, as the file has it.
        line: of each picture in its file.
        unit: of each picture.
        area: pixels of each unit.
        size: bytes of each unit.
        first: the first picture of each unit.
        more: of each unit, what `of` made of it.
        unreadable: how many lines of a split hold no picture that can be decoded.
    """

    def __init__(self, splits: Sequence[str]) -> None:
        self.splits = list(splits)
        self.split: list[int] = []
        self.image_id: list[str] = []
        self.line: list[int] = []
        self.unit: list[int] = []
        self.area: list[int] = []
        self.size: list[int] = []
        self.first: list[int] = []
        self.more: list[Any] = []
        self.unreadable: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.unit)

    def order(self, keep: Keep) -> npt.NDArray[np.int64]:
        """Indices of the pictures in order of precedence: by split, then by `keep`, then as the file has them."""
        unit = np.array(self.unit, dtype=np.int64)
        keys: list[Any] = [np.arange(len(unit))]
        if keep == "largest":
            keys += [-np.array(column, dtype=np.int64)[unit] for column in (self.size, self.area)]
        return np.lexsort((*keys, np.array(self.split, dtype=np.int64)))


def scan(data_dir: Path, splits: Sequence[str], threads: int, of: Any = None) -> Pictures:
    """Decode all pictures of some splits.

    Args:
        data_dir: the dataset.
        splits: names, those that keep their pictures first.
        threads: how many decode.
        of: makes of a decoded picture what is to be compared; None when only the bytes are.

    Raises:
        UserError: an id stands twice in a split.
    """
    pictures = Pictures(splits)
    units: dict[bytes, int] = {}
    for number, split in enumerate(splits):
        tsv = data_dir / f"{split}_imgs.tsv"
        if not tsv.is_file():
            raise UserError(f"{tsv}: no such file; a split has images and texts")
        lines: dict[str, int] = {}
        for look in look_at(tsv, threads, of):
            if look.image_id and lines.setdefault(look.image_id, look.line) != look.line:
                raise UserError(
                    f"{tsv}:{look.line}: image id {look.image_id} stands at line {lines[look.image_id]} already; "
                    f"see cn-clip data check"
                )
            if look.problem:
                pictures.unreadable[split] += 1
                continue
            unit = units.setdefault(look.digest, len(units))
            if unit == len(pictures.first):
                pictures.first.append(len(pictures))
                pictures.area.append(look.width * look.height)
                pictures.size.append(look.size)
                pictures.more.append(look.more)
            pictures.split.append(number)
            pictures.image_id.append(look.image_id)
            pictures.line.append(look.line)
            pictures.unit.append(unit)
    return pictures


class Copy(NamedTuple):
    """A picture that is a copy of another.

    Attributes:
        picture: its index.
        distance: from the one that stays: 0 for equal bytes, else what the pairs say.
    """

    picture: int
    distance: float


def find_copies(
    pictures: Pictures, order: npt.NDArray[np.int64], pairs: UnitPairs, across_only: bool = False
) -> dict[int, list[Copy]]:
    """Picture that stays -> its copies: each is with the nearest of those that stay and come before it.

    Both are in order of precedence.

    Args:
        pictures: of all splits.
        order: their precedence, as of `Pictures.order`.
        pairs: units near to each other: (units, other units, distances), each pair once.
        across_only: pictures of one split are not compared: two may stay, and only another split's count.
    """
    near = _neighbours(pairs)
    alone = np.bincount(np.array(pictures.unit, dtype=np.int64), minlength=len(pictures.first)) == 1
    kept: dict[int, dict[int, int]] = {}  # unit -> split -> the first picture of it that stays
    groups: dict[int, list[Copy]] = {}
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    for picture in order.tolist():
        unit, split = pictures.unit[picture], pictures.split[picture]
        others = near.get(unit, ())
        if alone[unit] and not others:
            continue
        best: tuple[float, int, int] | None = None
        for distance, other in [(0.0, unit), *others]:
            if best and distance > best[0]:
                break
            for its_split, its_picture in kept.get(other, {}).items():
                if not (across_only and its_split == split):
                    found = (distance, int(rank[its_picture]), its_picture)
                    best = min(best, found) if best else found
        if best:
            groups.setdefault(best[2], []).append(Copy(picture, best[0]))
        else:
            kept.setdefault(unit, {}).setdefault(split, picture)
    return dict(sorted(groups.items(), key=lambda item: int(rank[item[0]])))


def _neighbours(pairs: UnitPairs) -> dict[int, list[tuple[float, int]]]:
    near: dict[int, list[tuple[float, int]]] = {}
    for left, right, distances in pairs:
        for a, b, distance in zip(left.tolist(), right.tolist(), distances.tolist(), strict=True):
            near.setdefault(a, []).append((distance, b))
            near.setdefault(b, []).append((distance, a))
    for found in near.values():
        found.sort()
    return near


def fingerprints_of(more: Sequence[tuple[int, bytes]]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Hashes uint64 [N] and tiny copies uint8 [N, 192] of what `phash.fingerprint` returned N times."""
    hashes = np.array([hash for hash, _ in more], dtype=np.uint64)
    tiny = np.frombuffer(b"".join(tiny for _, tiny in more), dtype=np.uint8)
    return hashes, tiny.reshape(len(hashes), -1)
