"""A split as `{split}_imgs.tsv` and `{split}_texts.jsonl`, read at random without building an LMDB.

The index (see `index.py`) takes 20 to 32 bytes an image with an integer id and 12 to 20 bytes a text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cn_clip.data.blobs import Blobs, file_state
from cn_clip.data.build_lmdb import duplicate_image
from cn_clip.data.formats import (
    Id,
    IdType,
    decode_base64,
    located_lines,
    parse_image,
    parse_text,
    read_texts,
)
from cn_clip.data.index import Array, IdBuilder, IdTable, Index, open_index
from cn_clip.data.lmdb import Pair
from cn_clip.errors import UserError
from cn_clip.progress import progress


class TsvSplit:
    """A split's images and pairs, from its two files.

    Args:
        tsv, jsonl: `{split}_imgs.tsv` and `{split}_texts.jsonl`.

    Raises:
        UserError: a wrong line, a duplicate image id, or a text's image that is not there.
    """

    kind = "TSV"

    def __init__(self, tsv: Path, jsonl: Path) -> None:
        self.path = tsv.with_name(tsv.name.removesuffix("_imgs.tsv"))
        self.images = TsvImages(tsv)
        self.pairs = TsvPairs(jsonl, self.images)


class TsvImages:
    """The images of a TSV by id; their order is that of its lines.

    Raises:
        UserError: a line that is not an id, a tab and base64, or a duplicate id; later, an unknown id, bad
            base64, or a file that has been changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        state = file_state(path)
        self.blobs = Blobs([state])
        self._index = open_index("tsv", [state], {}, self._build)
        self._ids = IdTable(self._index, "ids")
        self.num_images = len(self._ids)

    def _build(self) -> tuple[dict[str, Array], dict[str, str]]:
        ids, starts, sizes = IdBuilder(), array("Q"), array("I")
        with progress(total=self.path.stat().st_size, desc=f"index of {self.path.name}", unit="B") as bar:
            for number, start, line in located_lines(self.path):
                ids.add(parse_image(line, f"{self.path}:{number}").image_id)
                starts.append(start)
                sizes.append(len(line))
                bar.update(len(line) + 1)
        arrays = ids.arrays("ids") | {"starts": np.array(starts, np.uint64), "sizes": np.array(sizes, np.uint32)}
        table = IdTable(Index(arrays, {}), "ids")
        if found := table.duplicate():
            raise duplicate_image(self.path, str(table[found[0]]))
        return arrays, {}

    def __len__(self) -> int:
        return self.num_images

    def __contains__(self, image_id: Id) -> bool:
        return self._ids.find(image_id) is not None

    def __getitem__(self, image_id: Id) -> bytes:
        row = self._ids.find(image_id)
        if row is None:
            raise UserError(f"{self.path}: there is no image with the id {image_id!r}")
        arrays = self._index.arrays
        line = self.blobs.read(0, int(arrays["starts"][row]), int(arrays["sizes"][row]))
        found = parse_image(line, self.where(image_id))
        if found.image_id != str(image_id):
            raise UserError(f"{self.path}: changed since its index was made: image {image_id} is not at its place")
        return decode_base64(found.base64, self.where(image_id))

    def ids(self) -> list[Id]:
        """All ids, in the order of the lines; integers where all of them are."""
        return self._ids.all()

    def where(self, image_id: Id) -> str:
        """How a message names an image."""
        return f"{self.path}: image {image_id}"


class TsvPairs:
    """The pairs of a texts file, (image_id, text_id, text): for each text in its order, each of its images.

    Raises:
        UserError: a wrong line, or an image id that `images` has not got.
    """

    def __init__(self, path: Path, images: TsvImages) -> None:
        self.path, self._images = path, images
        states = [file_state(path), *images.blobs.files]
        self.blobs = Blobs(states[:1])
        self._index = open_index("texts", states, {}, self._build)
        self._length = int(self._index.meta["pairs"])

    def _build(self) -> tuple[dict[str, Array], dict[str, int]]:
        starts, sizes, counts, ids = array("Q"), array("I"), array("I"), IdType()
        with progress(total=self.path.stat().st_size, desc=f"index of {self.path.name}", unit="B") as bar:
            for number, start, line in located_lines(self.path):
                where = f"{self.path}:{number}"
                text = parse_text(line, where, ids)
                for image_id in text.image_ids:
                    if image_id not in self._images:
                        raise UserError(
                            f"{where}: image id {image_id!r} of text {text.text_id!r} has no image in "
                            f"{self._images.path.name}"
                        )
                starts.append(start)
                sizes.append(len(line))
                counts.append(len(text.image_ids))
                bar.update(len(line) + 1)
        arrays: dict[str, Array] = {"starts": np.array(starts, np.uint64), "sizes": np.array(sizes, np.uint32)}
        return arrays | first_of(np.array(counts, np.int64)), {"pairs": sum(counts)}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self._length:
            raise IndexError(f"{self.path}: pair {index} of {self._length}")
        arrays = self._index.arrays
        row, position = row_of(arrays, index)
        line = self.blobs.read(0, int(arrays["starts"][row]), int(arrays["sizes"][row]))
        text = parse_text(line, f"{self.path}: pair {index}", IdType())
        return text.image_ids[position], text.text_id, text.text

    def __iter__(self) -> Iterator[Pair]:
        self.blobs.file(0)  # or it has been changed
        for text in read_texts(self.path):
            for image_id in text.image_ids:
                yield image_id, text.text_id, text.text


def first_of(counts: Array) -> dict[str, Array]:
    """The array `first`, of each row's first item, where rows have not one item each; 8 bytes a row."""
    if (counts == 1).all():
        return {}
    return {"first": (np.cumsum(counts) - counts).astype(np.uint64)}


def row_of(arrays: dict[str, Array], index: int) -> tuple[int, int]:
    """Of an item, the row that it is in and its position there."""
    first = arrays.get("first")
    if first is None:
        return index, 0
    row = int(np.searchsorted(first, np.uint64(index), "right")) - 1
    return row, index - int(first[row])
