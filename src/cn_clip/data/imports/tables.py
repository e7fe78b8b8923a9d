"""Captions in CSV, TSV and JSONL files; pictures are paths beside them (or anywhere, `--images`).

A file without a header has columns 1, 2, …; it has none when a cell of its first line is the name of a picture.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from cn_clip.data.formats import LineError, parse_json, read_lines
from cn_clip.data.imports.rows import Problem, Row, file_print, is_image_name
from cn_clip.errors import UserError

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_PROBE = 1 << 20  # bytes that tell the encoding
_MAX_CELL = 1 << 27


class JsonLines:
    """A file of JSON objects, one a line."""

    def __init__(self, path: Path, split: str = "") -> None:
        self.path, self.split, self.name = path, split, str(path)

    def rows(self, start: int) -> Iterator[Row]:
        """One row a line that is not blank."""
        for index, (number, line) in enumerate(read_lines(self.path)):
            if index < start:
                continue
            where = f"{self.path}:{number}"
            try:
                yield Row(where, parse_json(line, where))
            except LineError as error:
                yield Row(where, {}, Problem("broken row", str(error).removeprefix(f"{where}: ")))

    def total(self) -> int | None:
        """Its lines."""
        return _count_lines(self.path)

    def fingerprint(self) -> list[Any]:
        """Its size and time."""
        return file_print(self.path)


class Delimited:
    """A CSV or TSV file, with a header or without, in UTF-8 or GB18030."""

    def __init__(self, path: Path, split: str = "", encoding: str = "auto") -> None:
        self.path, self.split, self.name = path, split, str(path)
        self.encoding = _encoding(path) if encoding == "auto" else encoding
        self.delimiter = self._delimiter()
        self.header = self._header()

    def rows(self, start: int) -> Iterator[Row]:
        """One row a line that is not blank (a quoted CSV cell may span several)."""
        filled = ((number, cells) for number, cells in self._cells() if any(cells))
        if self.header:
            next(filled, None)
        for position, (number, cells) in enumerate(filled):
            if position < start:
                continue
            where = f"{self.path}:{number}"
            names = self.header or [str(i) for i in range(1, len(cells) + 1)]
            if len(cells) != len(names):
                detail = f"{len(cells)} cells, but the header has {len(names)}"
                yield Row(where, {}, Problem("broken row", detail))
            else:
                yield Row(where, dict(zip(names, map(_listed, cells), strict=True)))

    def total(self) -> int | None:
        """Its lines."""
        return _count_lines(self.path)

    def fingerprint(self) -> list[Any]:
        """Its size and time."""
        return file_print(self.path)

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        if self.delimiter == "\t":  # one row a line: a quotation mark is only a character
            for number, line in enumerate(self._lines(), 1):
                yield number, [_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")]
            return
        csv.field_size_limit(_MAX_CELL)
        reader = csv.reader(self._lines(), delimiter=self.delimiter)
        try:
            for cells in reader:
                yield reader.line_num, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise UserError(f"{self.path}:{reader.line_num}: not CSV: {error}") from None

    def _lines(self) -> Iterator[str]:
        number = 0
        try:
            with open(self.path, encoding=self.encoding, newline="") as file:
                for line in file:
                    number += 1
                    yield line
        except LookupError:
            raise UserError(f"--encoding: {self.encoding!r} is not known (utf-8 and gb18030 are)") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}:{number + 1} or soon after: not {self.encoding} text ({error.reason}); "
                "--encoding names another (gb18030 for most Chinese files that are not UTF-8)"
            ) from None

    def _delimiter(self) -> str:
        if self.path.suffix.lower() != ".csv":
            return "\t"
        first = next(self._lines(), "")
        return next((mark for mark in (",", "\t", ";") if mark in first), ",")

    def _header(self) -> list[str] | None:
        first = next((cells for _, cells in self._cells() if any(cells)), None)
        if first is None:
            raise UserError(f"{self.path}: the file is empty")
        if any(is_image_name(cell) for cell in first):
            return None
        if len(set(first)) < len(first):
            raise UserError(f"{self.path}:1: two columns have one name: {', '.join(first)}")
        return first


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        data = file.read(_PROBE)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(data) - 4:  # not a character cut by the probe's end
            return "gb18030"
    return "utf-8-sig"


def _unquoted(cell: str) -> str:
    """A cell that a writer of quoted TSV put into quotation marks: both ends, and all within doubled."""
    cell = cell.strip()
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def _listed(cell: str) -> Any:
    """A list of captions where the cell is one in JSON, else the cell."""
    if re.match(r'\[\s*"', cell) and cell.endswith("]"):
        try:
            return orjson.loads(cell)
        except orjson.JSONDecodeError:
            return cell
    return cell


def _count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 22), b""))
