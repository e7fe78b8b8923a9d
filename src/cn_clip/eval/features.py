"""Feature files: one vector a line, `{"image_id": …, "feature": […]}` or `{"text_id": …, "feature": […]}`."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import orjson

from cn_clip.data.formats import Id, IdType, PathLike, field, parse_json, read_lines
from cn_clip.errors import UserError
from cn_clip.files import atomic_open

IdField: TypeAlias = Literal["image_id", "text_id"]

ROWS = 4096  # vectors read, searched and written at a time
_NOT_FINITE = "the feature has a NaN, an infinity or a number beyond float32: extract it again"


class Features(NamedTuple):
    """Vectors and whose they are: `vectors` is float32 [N, D], `ids` has N entries, in the file's order."""

    ids: list[Id]
    vectors: np.ndarray
    id_field: IdField


class FeatureWriter:
    """Writes a feature file; the file appears under its name when the `with` block ends without an error.

    Values are written with the fewest digits that read back as the same float32 (the reference writes the 17
    digits of a float64: the same numbers, twice the bytes).
    """

    def __init__(self, path: PathLike, id_field: IdField) -> None:
        self.path = Path(path)
        self.id_field = id_field
        self._ids, self._width, self._count = IdType(), 0, 0
        self._stack = ExitStack()
        self._file: IO[Any] | None = None

    def __enter__(self) -> FeatureWriter:
        self._file = self._stack.enter_context(atomic_open(self.path, "wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, ids: Sequence[Id], features: np.ndarray) -> None:
        """Append `len(ids)` lines; `features` is [n, D], converted to float32.

        Raises:
            UserError: another number of ids than of rows, another width than before, ids of two types, or a
                vector with a NaN or an infinity (an image or a text that the model fails on).
        """
        if self._file is None:
            raise RuntimeError("FeatureWriter.write outside of its with block")
        features = np.ascontiguousarray(features, dtype=np.float32)
        if features.ndim != 2 or len(ids) != len(features):
            raise UserError(f"{self.path}: {len(ids)} ids for features of shape {list(features.shape)}")
        self._width = self._width or features.shape[1]
        if features.shape[1] != self._width:
            raise UserError(f"{self.path}: features of {features.shape[1]} numbers after ones of {self._width}")
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{self.path}: the feature of {self.id_field} {ids[int(np.argmin(finite))]!r} has a NaN or "
                "an infinity: are the model's weights whole? (in float16, try float32)"
            )
        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        for number, (key, row) in enumerate(zip(ids, features, strict=True), self._count + 1):
            self._ids.check(key, self.id_field, f"{self.path}:{number}")
            self._file.write(orjson.dumps({self.id_field: key, "feature": row}, option=option))
        self._count += len(ids)


def read_features(path: PathLike, id_field: IdField | None = None) -> Features:
    """Read a whole feature file, written here or by the reference; arguments, errors: see `iter_features`."""
    blocks = list(iter_features(path, id_field))[::-1]
    found = blocks[0].id_field
    ids = list[Id]()
    vectors = np.empty((sum(len(block.ids) for block in blocks), blocks[0].vectors.shape[1]), np.float32)
    while blocks:  # each block is freed once copied, so that the peak is one matrix, not two
        block = blocks.pop()
        vectors[len(ids) : len(ids) + len(block.ids)] = block.vectors
        ids += block.ids
    return Features(ids, vectors, found)


def iter_features(path: PathLike, id_field: IdField | None = None, rows: int = ROWS) -> Iterator[Features]:
    """Stream a feature file in blocks of `rows` vectors; the last may be smaller.

    Args:
        path: the file.
        id_field: which features these must be; None takes what the first line has.
        rows: vectors in a block.

    Raises:
        UserError: naming file and line: not JSON, a missing field, an id twice, ids of two types, images
            where texts are expected, no vectors at all, or a feature that is not a list of finite numbers
            as long as the first one.
    """
    types, seen = IdType(), set[Id]()
    ids, numbers, block = list[Id](), list[int](), np.empty((0, 0), np.float32)
    pack, width, name = struct.Struct("").pack_into, 0, id_field or "image_id"
    buffer = block.data
    for number, line in read_lines(path):
        row = _parse(line, path, number)
        if not width:
            name = _id_field(row, id_field, f"{path}:{number}")
            width = _width(row, f"{path}:{number}")
            # Packing from the list of floats into the matrix is the fastest way there is: `matrix[i] = list`
            # takes 1.3 times as long, np.fromstring on the text 6 times.
            pack = struct.Struct(f"{width}f").pack_into
        if not ids:
            block = np.empty((rows, width), np.float32)
            buffer = block.data
        try:
            key = row[name]
            pack(buffer, len(ids) * width * 4, *row["feature"])
        except (KeyError, TypeError, struct.error):
            raise _wrong_feature(row, name, width, f"{path}:{number}") from None
        types.check(key, name, f"{path}:{number}")
        if key in seen:
            raise UserError(f"{path}:{number}: {name} {key!r} stands on an earlier line already")
        seen.add(key)
        ids.append(key)
        numbers.append(number)
        if len(ids) == rows:
            yield _checked(ids, block, numbers, name, path)
            ids, numbers = [], []
    if ids:
        yield _checked(ids, block[: len(ids)], numbers, name, path)
    if not seen:
        raise UserError(f"{path}: there are no features in this file")


def _parse(line: bytes, path: PathLike, number: int) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = None
    if type(row) is not dict:
        if b"NaN" in line or b"Infinity" in line:
            raise UserError(f"{path}:{number}: {_NOT_FINITE}")
        row = parse_json(line, f"{path}:{number}")
    return row


def _id_field(row: dict[str, Any], wanted: IdField | None, where: str) -> IdField:
    found: list[IdField] = [name for name in ("image_id", "text_id") if name in row]
    if wanted and wanted not in found and found:
        kinds = {"image_id": "images", "text_id": "texts"}
        raise UserError(
            f"{where}: these are features of {kinds[found[0]]}, expected {kinds[wanted]}: "
            "are --image-feats and --text-feats swapped?"
        )
    if wanted or len(found) != 1:
        field(row, wanted or "image_id", where)
        if not wanted:
            raise UserError(f"{where}: both image_id and text_id: a line is about one of the two")
    return wanted or found[0]


def _width(row: dict[str, Any], where: str) -> int:
    feature = field(row, "feature", where)
    if not isinstance(feature, list) or not feature:
        raise UserError(f"{where}: feature must be a list of numbers, and not an empty one")
    return len(feature)


def _wrong_feature(row: dict[str, Any], id_field: str, width: int, where: str) -> UserError:
    field(row, id_field, where)
    if _width(row, where) != width:
        return UserError(
            f"{where}: a feature of {len(row['feature'])} numbers, the first line has {width}: "
            "one file holds the features of one model"
        )
    wrong = next(v for v in row["feature"] if type(v) not in (int, float, bool))
    return UserError(f"{where}: the feature has {wrong!r} in it: expected {width} finite numbers")


def _checked(
    ids: list[Id], vectors: np.ndarray, numbers: list[int], id_field: IdField, path: PathLike
) -> Features:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        number = numbers[int(np.argmin(finite))]
        raise UserError(f"{path}:{number}: {_NOT_FINITE}")
    return Features(ids, vectors, id_field)
