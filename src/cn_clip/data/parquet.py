"""Parquet files as a split: which rows hold which picture and captions, and pictures at random.

A picture of an uncompressed column is read by itself (`pages.py`); of a compressed one its row group is decoded,
and the last few row groups are kept.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from cn_clip.data.blobs import Blobs, FileState
from cn_clip.data.columns import Columns, arrow, describe, find_columns, image_bytes, need, texts
from cn_clip.data.index import Array, open_index
from cn_clip.data.pages import Damaged, is_addressable, value_places
from cn_clip.data.samples import NOWHERE, SampleBuilder, SampleImages
from cn_clip.errors import UserError
from cn_clip.progress import progress

_KEPT = 64 << 20  # bytes of decoded row groups that are kept, a process; the last one always is
_LARGEST = 512 << 20  # bytes of a row group's pictures that may be decoded
_ROWS = 4096  # rows of captions read at a time


def open_parquet(path: str, files: Sequence[FileState], options: dict[str, str]) -> SampleImages:
    """The pictures of Parquet files, in their order, with an index of the captions, too.

    Raises:
        UserError: damaged files, files with other columns, or no column of pictures.
        MissingExtra: pyarrow is not installed.
    """
    arrow()
    blobs = Blobs(files)
    index = open_index("parquet", files, options, partial(_build, blobs, options))
    elsewhere = RowGroups(files, index.meta["leaf"]) if int(index.meta["grouped"]) else None
    return SampleImages(path, index, blobs, elsewhere)


def _build(blobs: Blobs, options: dict[str, str]) -> tuple[dict[str, Array], dict[str, Any]]:
    builder = SampleBuilder(blobs.files, "image", "name their column with ?text=COLUMN")
    columns: Columns | None = None
    leaf, grouped, rows = "", 0, 0
    with progress(total=len(blobs.files), desc="index of Parquet files", unit="file") as bar:
        for number, state in enumerate(blobs.files):
            with opened(state) as file:
                schema = file.schema_arrow
                found = find_columns(schema, str(state.path), options)
                need(found, ["image"], schema, str(state.path))
                if columns is None:
                    columns = found
                    if columns.text is None:
                        try:
                            need(columns, ["text"], schema, str(state.path))
                        except UserError as error:
                            builder.untold = str(error)
                elif found != columns:
                    raise UserError(f"{state.path}: other columns than the first file's: {describe(schema)}")
                leaf, places = _places(file, str(state.path), columns, partial(blobs.read, number))
                grouped += int((places[0] < NOWHERE).sum())
                for row, cells in enumerate(_cells(file, columns)):
                    image_id = cells.get(columns.image_id, rows + row)
                    _check_id(image_id, f"{state.path}: row {row}", columns.image_id)
                    captions = texts(cells[columns.text]) if columns.text else None
                    text_ids = cells.get(columns.text_id)
                    if columns.text_id and not isinstance(text_ids, list):
                        text_ids = [text_ids] * len(captions or ())
                    for text_id in text_ids or ():
                        _check_id(text_id, f"{state.path}: row {row}", columns.text_id)
                    place = (number, int(places[0][row]), int(places[1][row]))
                    builder.add(image_id, place, captions, text_ids if columns.text_id else None)
                rows += file.metadata.num_rows
            bar.update(1)
    named = columns.image_id if columns else None
    repeats = "image_id" in options or (named is not None and named.lower() == "image_id")
    arrays, meta = builder.finish(repeats)
    return arrays, meta | {"leaf": leaf, "grouped": grouped}


def _check_id(value: Any, where: str, column: str | None) -> None:
    if value is None or value == "":
        raise UserError(f"{where}: its {column} is empty; each row needs an id")


def _cells(file: Any, columns: Columns) -> Iterator[dict[str | None, Any]]:
    names = list(dict.fromkeys(name for name in (columns.text, columns.image_id, columns.text_id) if name))
    if not names:
        yield from ({} for _ in range(file.metadata.num_rows))
        return
    for batch in file.iter_batches(_ROWS, columns=names, use_threads=False):
        yield from batch.to_pylist()


def _places(file: Any, where: str, columns: Columns, read: Any) -> tuple[str, tuple[Array, Array]]:
    """The column of bytes by name; offset and size of each row's picture (`RowGroups` knows offsets < -1)."""
    leaves = {file.metadata.schema.column(i).path: i for i in range(len(file.metadata.schema))}
    leaf = str(columns.image) if columns.image in leaves else f"{columns.image}.bytes"
    if leaf not in leaves:
        raise UserError(f"{where}: column {columns.image!r} has no plain bytes in it")
    schema = file.metadata.schema.column(leaves[leaf])
    offsets, sizes = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    for group in range(file.metadata.num_row_groups):
        column = file.metadata.row_group(group).column(leaves[leaf])
        rows = file.metadata.row_group(group).num_rows
        if is_addressable(column) and schema.max_repetition_level == 0:
            try:
                places = value_places(read, column, schema.max_definition_level)
            except UserError:
                raise
            except (Damaged, LookupError, TypeError, ValueError) as error:  # a broken header may hold anything
                raise UserError(f"{where}: damaged: row group {group} of column {leaf}: {error}") from None
            if len(places[0]) != rows:
                raise UserError(f"{where}: damaged: {len(places[0])} pictures in {rows} rows of row group {group}")
        else:
            places = np.full(rows, NOWHERE - 1 - group, np.int64), np.arange(rows, dtype=np.uint32)
        offsets.append(places[0])
        sizes.append(places[1])
    return leaf, (np.concatenate(offsets), np.concatenate(sizes))


class RowGroups:
    """Pictures of compressed row groups: offset -2 - g stands for row group g, size for the row in it.

    Attributes:
        kept_bytes: how much of decoded row groups is kept.
    """

    def __init__(self, files: Sequence[FileState], leaf: str, kept_bytes: int = _KEPT) -> None:
        self.files, self.leaf, self.kept_bytes = list(files), leaf, kept_bytes
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "leaf": self.leaf, "kept_bytes": self.kept_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, number: int, offset: int, size: int) -> bytes | None:
        """The picture, or None where it is null.

        Raises:
            UserError: the file is damaged or changed, or the row group too large to be decoded.
        """
        if self._process != os.getpid():  # forked, perhaps while another thread held the lock
            self._forget()
        key = (number, NOWHERE - 1 - offset)
        with self._lock:
            column = self._kept.get(key)
            if column is None:
                column = self._kept[key] = self._decode(*key)
                while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self.kept_bytes:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
        return next(image_bytes(column.slice(size, 1)))

    def _decode(self, number: int, group: int) -> Any:
        state = self.files[number]
        with opened(state) as file:
            names = [file.metadata.schema.column(i).path for i in range(len(file.metadata.schema))]
            size = file.metadata.row_group(group).column(names.index(self.leaf)).total_uncompressed_size
            if size > _LARGEST:
                raise UserError(
                    f"{state.path}: row group {group} holds {size >> 20} MB of compressed pictures, of which one "
                    "cannot be read alone; write the file with compression='none' or row_group_size=100, or "
                    "convert it with cn-clip data import"
                )
            table = file.read_row_group(group, columns=[self.leaf], use_threads=False)
        return table.column(0).combine_chunks()


@contextmanager
def opened(state: FileState) -> Iterator[Any]:
    """A pyarrow `ParquetFile`, its errors as one line.

    Raises:
        UserError: not a Parquet file, damaged, or changed since its index was made.
    """
    pa = arrow()
    file = Blobs([state]).file(0)  # or it has been changed
    try:
        with pa.parquet.ParquetFile(file) as parquet:
            yield parquet
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{state.path}: damaged, or not a Parquet file: {reason}") from None
