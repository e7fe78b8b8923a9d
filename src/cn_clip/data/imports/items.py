"""Rows to items: a picture, its captions, ids, split and group; or why a row is none."""

from __future__ import annotations

import math
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from cn_clip.data.imports.rows import Columns, Problem, Row, Slice, Source, split_name
from cn_clip.data.imports.splits import Splitter
from cn_clip.errors import UserError
from cn_clip.tokenizer import default_tokenizer

MAX_ID = 511  # bytes: what the key of an LMDB holds
_RESERVED = "num_images"  # a key of the LMDB that is not an image's


class Item(NamedTuple):
    """What a row holds.

    Attributes:
        where: what a report calls it.
        image: its file, its bytes, or where in a file they are.
        name: what a report calls the image.
        key: 16 bytes; rows with the same one are about the same image.
        ref: 16 bytes; tells two images that were given one id.
        texts: at least one caption, each with its id where it has one.
        image_id: where it has one.
        split: where it is told; empty elsewhere.
        group: images of one group go to one split; empty elsewhere.
        problems: captions of the row that are left out, and why.
    """

    where: str
    image: Path | bytes | Slice
    name: str
    key: bytes
    ref: bytes
    texts: list[tuple[str, str | None]]
    image_id: str | None
    split: str
    group: str
    problems: list[Problem]


class Skip(NamedTuple):
    """A row of which nothing is imported."""

    where: str
    name: str
    problem: Problem


class Mapper:
    """Makes items of a source's rows."""

    def __init__(
        self,
        source: Source,
        columns: Columns,
        splitter: Splitter,
        template: str,
        labels: tuple[list[str], dict[str, str]],
    ) -> None:
        self.columns, self.images, self.splitter, self.template = columns, source.images, splitter, template
        self.names, self.labels = source.names, labels

    def item(self, row: Row, part_split: str) -> Item | Skip | None:
        """The item of a row; None for one of a split that is not wanted."""
        name = ""
        try:
            if row.problem:
                raise _Unusable(*row.problem)
            split = self._split(row, part_split)
            if split is None:
                return None
            image, name = self._image(row.cells.get(self.columns.image))
            image_id = self._id(row, self.columns.image_id, "image")
            texts, problems = self._texts(row)
            ref = _digest(image if isinstance(image, bytes) else name)
            key = ref if image_id is None else _digest(f"id {image_id}")
            key = _digest(key + split.encode()) if split else key
            group = self._group(row)
            return Item(row.where, image, name, key, ref, texts, image_id, split, group, problems)
        except _Unusable as error:
            return Skip(row.where, name, error.problem)

    def _split(self, row: Row, part_split: str) -> str | None:
        if self.splitter.weights:
            return ""
        value = row.cells.get(self.columns.split) if self.columns.split else part_split
        value = value if value not in (None, "") else part_split
        try:
            name = split_name(str(value)) if value else ""
        except UserError as error:
            raise _Unusable("unusable split", str(error)) from None
        return self.splitter.told(name)

    def _image(self, cell: Any) -> tuple[Path | bytes | Slice, str]:
        name = ""
        if isinstance(cell, dict):  # the struct of Hugging Face's Image
            name = str(cell.get("path") or "")
            cell = cell.get("bytes") or name
        if isinstance(cell, Slice):
            return cell, f"{cell.path}:{cell.offset}"
        if isinstance(cell, bytes):
            if not cell:
                raise _Unusable("empty image", "0 bytes")
            return cell, name or f"{len(cell)} bytes"
        if not isinstance(cell, str) or not cell.strip():
            raise _Unusable("missing image", f"no picture in the column {self.columns.image}")
        if cell.startswith(("http://", "https://")):
            raise _Unusable("missing image", f"{cell} is an address: download the pictures first")
        path = os.path.normpath(cell.strip())
        return self.images / path, path

    def _texts(self, row: Row) -> tuple[list[tuple[str, str | None]], list[Problem]]:
        found: list[str] = []
        problems = []
        for column in self.columns.texts:
            value = self._named(column, row.cells.get(column))
            for text in value if isinstance(value, list) else [value]:
                text = text.get("raw", text.get("caption")) if isinstance(text, dict) else text
                if not isinstance(text, str) or is_empty(text):
                    detail = "" if text is None or isinstance(text, str) else f", but {type(text).__name__}"
                    problems.append(Problem("empty caption", f"no text in the column {column}{detail}"))
                else:
                    found.append(self.template.replace("{}", text.strip()))
        if not found:
            raise _Unusable("empty caption", problems[0].detail if problems else "no caption")
        text_id = self._id(row, self.columns.text_id, "text")
        if text_id is not None and len(found) > 1:
            raise _Unusable("unusable id", f"one text id, {text_id}, for {len(found)} captions")
        return [(text, text_id) for text in dict.fromkeys(found)], problems

    def _named(self, column: str, value: Any) -> Any:
        """The label of a class number or name; other values as they are."""
        names = self.names.get(column)
        number = isinstance(value, int) and not isinstance(value, bool)
        labelled = (any(self.labels) and (number or column in ("cls", "class"))) or (names and number)
        if not labelled or value is None:
            return value
        by_number, by_name = self.labels
        label = by_name.get(str(value))
        if label is None and by_name and names and number and 0 <= value < len(names):
            label = by_name.get(names[value])
        table = by_number or names or []
        if label is None and not by_name and str(value).isdigit() and int(value) < len(table):
            label = table[int(value)]
        if label is None:
            raise _Unusable("unknown class", f"{value} in the column {column} has no label")
        return label

    def _id(self, row: Row, column: str | None, what: str) -> str | None:
        if column is None:
            return None
        value = row.cells.get(column)
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)  # a column of integers with gaps is one of floats
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            raise _Unusable("missing id", f"no {what} id in the column {column}")
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise _Unusable("unusable id", f"the {what} id {value!r} is neither an integer nor a string")
        key = str(value).strip()
        if not key or any(c in key for c in "\t\r\n\0") or len(key.encode("utf-8", "replace")) > MAX_ID:
            raise _Unusable(
                "unusable id", f"the {what} id {key[:40]!r} is over {MAX_ID} bytes, or has a tab or line end"
            )
        if key == _RESERVED:
            raise _Unusable("unusable id", f"the id {_RESERVED} is reserved")
        return key

    def _group(self, row: Row) -> str:
        value = row.cells.get(self.columns.group) if self.columns.group else None
        return "" if value is None else str(value)


def is_empty(text: str) -> bool:
    """Whether the tokenizer finds nothing in a text."""
    if any(char.isalnum() for char in text):
        return False
    return not text.strip() or int(default_tokenizer().encode([text], None).lengths[0]) == 2


class _Unusable(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.problem = Problem(reason, detail)


def _digest(value: str | bytes) -> bytes:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return blake2b(data, digest_size=16).digest()
