"""Pictures and captions in Parquet files, and in the folders that Hugging Face's `save_to_disk` writes.

Both are read by pyarrow in small batches; the `datasets` package is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cn_clip.data.columns import arrow
from cn_clip.data.imports.rows import Problem, Row, file_print, split_name
from cn_clip.errors import UserError

_BATCH = 32  # rows decoded at a time: they may hold large pictures


class Parquet:
    """One Parquet file."""

    def __init__(self, path: Path, split: str = "") -> None:
        self.path, self.split, self.name = path, split, str(path)

    def rows(self, start: int) -> Iterator[Row]:
        """Its rows; whole row groups before `start` are not read."""
        with _readable(self.path), self._open() as file:
            first = 0
            groups: list[int] = []
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if groups or first + size > start:
                    groups.append(group)
                else:
                    first += size
            batches = file.iter_batches(_BATCH, row_groups=groups) if groups else ()
            yield from _rows(batches, self.path, first, start)

    def total(self) -> int | None:
        """Its rows."""
        with _readable(self.path), self._open() as file:
            return int(file.metadata.num_rows)

    def fingerprint(self) -> list[Any]:
        """Its size and time."""
        return file_print(self.path)

    def names(self) -> dict[str, list[str]]:
        """Class names of the columns that Hugging Face's metadata call labels."""
        with _readable(self.path), self._open() as file:
            metadata = file.schema_arrow.metadata or {}
        try:
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        except (ValueError, KeyError, TypeError):
            return {}
        return class_names(features)

    def _open(self) -> Any:
        pq = arrow().parquet
        return pq.ParquetFile(self.path, memory_map=True, pre_buffer=False)


class ArrowFile:
    """One Arrow file of a Hugging Face folder; mapped into memory, not read into it."""

    def __init__(self, path: Path, split: str = "") -> None:
        self.path, self.split, self.name = path, split, str(path)

    def rows(self, start: int) -> Iterator[Row]:
        """Its rows."""
        with _readable(self.path), arrow().memory_map(str(self.path)) as file:
            first = 0
            for batch in self._batches(file):
                if first + batch.num_rows <= start:
                    first += batch.num_rows
                    continue
                for offset in range(0, batch.num_rows, _BATCH):
                    yield from _rows([batch.slice(offset, _BATCH)], self.path, first + offset, start)
                first += batch.num_rows

    def total(self) -> int | None:
        """Its rows."""
        with _readable(self.path), arrow().memory_map(str(self.path)) as file:
            return sum(batch.num_rows for batch in self._batches(file))

    def fingerprint(self) -> list[Any]:
        """Its size and time."""
        return file_print(self.path)

    def _batches(self, file: Any) -> Iterator[Any]:
        ipc = arrow().ipc
        if file.read(6) == b"ARROW1":  # the file format; `datasets` writes streams
            file.seek(0)
            reader = ipc.open_file(file)
            return (reader.get_batch(i) for i in range(reader.num_record_batches))
        file.seek(0)
        return iter(ipc.open_stream(file))


def class_names(features: Any) -> dict[str, list[str]]:
    """The `ClassLabel` columns of a dataset's features, with the names of their classes."""
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            found[column] = [str(name) for name in feature.get("names") or []]
    return found


def hf_parts(folder: Path) -> tuple[list[ArrowFile], dict[str, list[str]]]:
    """The files of a `Dataset` or `DatasetDict` on disk, split by split, and its class names.

    Raises:
        UserError: a file of the layout is missing or broken.
    """
    if (folder / "dataset_dict.json").is_file():
        parts, names = [], {}
        for split in _json(folder / "dataset_dict.json").get("splits", []):
            of_split, classes = hf_parts(folder / split)
            for part in of_split:
                part.split = split_name(split)
            parts += of_split
            names.update(classes)
        return parts, names
    files = [folder / str(file["filename"]) for file in _json(folder / "state.json").get("_data_files", [])]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(f"{missing[0] if missing else folder}: no such file; {folder}/state.json names it")
    info = folder / "dataset_info.json"
    names = class_names(_json(info).get("features") or {}) if info.is_file() else {}
    return [ArrowFile(file) for file in files], names


def _rows(batches: Any, path: Path, first: int, start: int) -> Iterator[Row]:
    for batch in batches:
        skip = min(max(start - first, 0), batch.num_rows)
        columns = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
        for index in range(skip, batch.num_rows):
            where = f"{path}: row {first + index}"
            try:
                yield Row(where, {name: column[index].as_py() for name, column in columns.items()})
            except (ValueError, OverflowError) as error:  # a string that is not UTF-8, a date out of range
                yield Row(where, {}, Problem("broken row", str(error).splitlines()[0]))
        first += batch.num_rows


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; expected a folder that save_to_disk of Hugging Face's datasets wrote"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


class _readable:
    """Says in one line that a file is not what its name says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        arrow()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, arrow().ArrowException) or (isinstance(error, OSError) and error.filename is None):
            raise UserError(f"{self.path}: cannot be read: {' '.join(str(error).split())}") from None
