"""Samples, each a picture with its captions, as WebDataset shards and Parquet files hold them.

The index takes 16 bytes a picture, and 8 to 20 for an integer id (a string: its UTF-8 and 20); the captions are
kept in it, as UTF-8 and 8 bytes each, so that reading a text never touches a shard.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from cn_clip.data.blobs import Blobs, FileState
from cn_clip.data.formats import Id
from cn_clip.data.index import Array, IdBuilder, IdTable, Index
from cn_clip.data.lmdb import Pair
from cn_clip.data.tsv import first_of, row_of
from cn_clip.errors import UserError

NOWHERE = -1  # the offset of a picture that is not there; below it, a place that `Elsewhere` knows


class Elsewhere(Protocol):
    """Reads what has no place of its own in a file (a picture in a compressed row group)."""

    def read(self, number: int, offset: int, size: int) -> bytes | None:
        """The picture of file `number` that its index gave this offset and size."""


class SampleBuilder:
    """Collects the samples of some files, in order, and makes the arrays of their index.

    Args:
        files: where their pictures are.
        unit: what a sample is called in messages.
        advice: what to do about a sample without captions.
    """

    def __init__(self, files: Sequence[FileState], unit: str, advice: str) -> None:
        self.files, self.unit, self.advice = files, unit, advice
        self.ids, self.shards, self.offsets, self.sizes = IdBuilder(), array("I"), array("q"), array("I")
        self.text, self.ends, self.counts = bytearray(), array("Q"), array("I")
        self.text_ids: IdBuilder | None = None
        self.untold: str | None = None  # why this is no split for training

    def add(
        self,
        image_id: Id,
        place: tuple[int, int, int],
        captions: Sequence[str] | None,
        text_ids: Sequence[Id] | None = None,
    ) -> None:
        """One more sample.

        Args:
            image_id: of the picture.
            place: file number, offset and size.
            captions: its captions; None: it has none, which training does not accept.
            text_ids: one for each caption; by default a caption's id is its number, from 0.
        """
        self.ids.add(image_id)
        for values, value in zip((self.shards, self.offsets, self.sizes), place, strict=True):
            values.append(value)
        if captions is None and self.untold is None:
            self.untold = f"{self.files[place[0]].path}: {self.unit} {image_id} has no caption; {self.advice}"
        for caption in captions or ():
            self.text += caption.encode("utf-8", "surrogatepass")
            self.ends.append(len(self.text))
        self.counts.append(len(captions or ()))
        if text_ids is not None:
            self.text_ids = self.text_ids or IdBuilder()
            for text_id in text_ids:
                self.text_ids.add(text_id)

    def finish(self, repeats: bool) -> tuple[dict[str, Array], dict[str, Any]]:
        """The arrays and facts of the index.

        Args:
            repeats: samples with the same image id are the same picture (the first one's bytes are read).

        Raises:
            UserError: an id stands twice and may not, or stands for two pictures, or has no captions' ids.
        """
        places: dict[str, Array] = {
            "shards": np.array(self.shards, np.uint32),
            "offsets": np.array(self.offsets, np.int64),
            "sizes": np.array(self.sizes, np.uint32),
        }
        arrays = self.ids.arrays("ids")
        table = IdTable(Index(arrays, {}), "ids")
        if found := table.duplicate():
            if not repeats:
                row, first = found
                old, new = (self.files[self.shards[at]].path for at in (first, row))
                raise UserError(
                    f"{new}: {self.unit} {table[row]}: the id stands in {old} already; ids must differ"
                )
            arrays, places = self._merge(table, places)
        if self.text_ids is not None:
            if len(self.text_ids) != len(self.ends):
                raise UserError(
                    f"{self.files[0].path}: {len(self.ends)} captions, but {len(self.text_ids)} text ids: "
                    "each caption needs one, or none has"
                )
            arrays |= self.text_ids.arrays("text_ids")
        arrays |= places | first_of(np.array(self.counts, np.int64))
        arrays |= {"text": np.frombuffer(bytes(self.text), np.uint8), "ends": np.array(self.ends, np.uint64)}
        return arrays, {"untold": self.untold, "pairs": len(self.ends)}

    def _merge(self, table: IdTable, places: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        ids, kept, image_of = IdBuilder(), array("Q"), array("I")
        numbers: dict[int, int] = {}  # first row of an id -> number of its picture
        for row in range(len(table)):
            first = table.find(table[row])
            assert first is not None
            if first == row:
                numbers[row] = len(kept)
                kept.append(row)
                ids.add(table[row])
            elif self.offsets[row] >= 0 and self.offsets[first] >= 0 and self.sizes[row] != self.sizes[first]:
                old, new = (self.files[self.shards[at]].path for at in (first, row))
                raise UserError(
                    f"{new}: image id {table[row]} stands for two pictures: this one of {self.sizes[row]} bytes, "
                    f"and one of {self.sizes[first]} in {old}"
                )
            image_of.append(numbers[first])
        rows = np.array(kept, np.int64)
        places = {name: values[rows] for name, values in places.items()}
        return ids.arrays("ids"), places | {"image_of": np.array(image_of, np.uint32)}


class SampleImages:
    """The pictures of samples by id, in file order.

    Raises:
        UserError: later: an unknown id, a picture that is not there, or a file that has been changed.
    """

    def __init__(self, path: str, index: Index, blobs: Blobs, elsewhere: Elsewhere | None = None) -> None:
        self.path, self.index, self.blobs, self._elsewhere = path, index, blobs, elsewhere
        self._ids = IdTable(index, "ids")
        self.num_images = len(self._ids)

    def __len__(self) -> int:
        return self.num_images

    def __contains__(self, image_id: Id) -> bool:
        return self._ids.find(image_id) is not None

    def __getitem__(self, image_id: Id) -> bytes:
        number, offset, size = self._place(image_id)
        if offset >= 0:
            return self.blobs.read(number, offset, size)
        data = self._elsewhere.read(number, offset, size) if self._elsewhere and offset < NOWHERE else None
        if data is None:
            raise UserError(f"{self.where(image_id)}: there are no bytes of a picture (null)")
        return data

    def ids(self) -> list[Id]:
        """All ids, in file order; integers where all of them are."""
        return self._ids.all()

    def where(self, image_id: Id) -> str:
        """How a message names an image."""
        return f"{self.blobs.files[self._place(image_id)[0]].path}: image {image_id}"

    def _place(self, image_id: Id) -> tuple[int, int, int]:
        row = self._ids.find(image_id)
        if row is None:
            raise UserError(f"{self.path}: there is no image with the id {image_id!r}")
        shards, offsets, sizes = (self.index.arrays[name] for name in ("shards", "offsets", "sizes"))
        return int(shards[row]), int(offsets[row]), int(sizes[row])


class SamplePairs:
    """The pairs of samples, (image_id, text_id, text): for each sample in file order, each of its captions."""

    def __init__(self, path: str, index: Index) -> None:
        self.path, self.index = path, index
        self._ids = IdTable(index, "ids")
        self._text_ids = (
            IdTable(index, "text_ids") if int(index.meta["pairs"]) and _has(index, "text_ids") else None
        )
        self._length = int(index.meta["pairs"])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self._length:
            raise IndexError(f"{self.path}: pair {index} of {self._length}")
        arrays = self.index.arrays
        row, _ = row_of(arrays, index)
        image = int(arrays["image_of"][row]) if "image_of" in arrays else row
        start = int(arrays["ends"][index - 1]) if index else 0
        text = arrays["text"][start : int(arrays["ends"][index])].tobytes().decode("utf-8", "surrogatepass")
        return self._ids[image], self._text_ids[index] if self._text_ids else index, text

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(self._length))


class SampleSplit:
    """A split of samples.

    Raises:
        UserError: a sample has no captions.
    """

    def __init__(self, path: str, kind: str, images: SampleImages) -> None:
        if untold := images.index.meta["untold"]:
            raise UserError(untold)
        self.path, self.kind = path, kind
        self.images = images
        self.pairs = SamplePairs(path, images.index)


def _has(index: Index, prefix: str) -> bool:
    return any(name.startswith(f"{prefix}.") for name in index.arrays)
