"""Pictures and captions in WebDataset shards: each sample of a tar is a row.

Its columns are `__key__`, `image` (the picture's member), `txt`, `cls`, and `json.FIELD` for each field of the
JSON; other members are not read. Nothing is unpacked: a picture is read from its place in the tar.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cn_clip.data.formats import parse_json
from cn_clip.data.imports.rows import Problem, Row, Slice, file_print
from cn_clip.data.shards import IMAGE_EXTENSIONS, TEXT_EXTENSIONS, Member, Sample, tar_samples
from cn_clip.errors import UserError


class Shard:
    """One tar file."""

    def __init__(self, path: Path, split: str = "") -> None:
        self.path, self.split, self.name = path, split, str(path)

    def rows(self, start: int) -> Iterator[Row]:
        """One row a sample; a damaged tar ends with a row that says so."""
        with open(self.path, "rb") as file:
            try:
                for index, sample in enumerate(tar_samples(self.path)):
                    if index >= start:
                        yield self._row(sample, file)
            except UserError as error:
                problem = Problem("damaged shard", str(error).removeprefix(f"{self.path}: "))
                yield Row(str(self.path), {}, problem)

    def total(self) -> int | None:
        """Not known without reading all headers."""
        return None

    def fingerprint(self) -> list[Any]:
        """Its size and time."""
        return file_print(self.path)

    def _row(self, sample: Sample, file: BinaryIO) -> Row:
        where = f"{self.path}: sample {sample.key}"
        cells: dict[str, Any] = {"__key__": sample.key}
        pictures = [e for e in sample.members if e.rsplit(".", 1)[-1] in IMAGE_EXTENSIONS]
        if len(pictures) > 1:
            detail = f"{len(pictures)} pictures in one sample ({', '.join(pictures)})"
            return Row(where, {}, Problem("broken row", detail))
        try:
            for extension, member in sample.members.items():
                if extension in pictures:
                    cells["image"] = Slice(self.path, member.offset, member.size)
                elif extension in TEXT_EXTENSIONS or extension == "cls":
                    name = "txt" if extension in TEXT_EXTENSIONS else "cls"
                    cells[name] = _read(file, member).decode("utf-8-sig").strip()
                elif extension == "json":
                    for name, value in parse_json(_read(file, member), member.name).items():
                        cells[f"json.{name}"] = value
        except (UnicodeDecodeError, UserError) as error:
            return Row(where, {}, Problem("broken row", f"{extension}: {error}"))
        return Row(where, cells)


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)
