"""Indices: compact arrays that say where each image of a file is, made once and kept in a side file.

The side file is `.NAME.HASH.index` beside the data, or in ~/.cache/cn_clip/indices where one may not write there;
it holds for files of the same names, sizes and times, else it is made anew. It is mapped into memory, so that all
processes share it, and it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from cn_clip.data.blobs import FileState, file_state
from cn_clip.data.formats import Id, parse_id
from cn_clip.errors import UserError
from cn_clip.files import atomic_open
from cn_clip.seeding import stable_hash

Array = npt.NDArray[Any]
_MAGIC = b"cn_clip index 1\n"
_ALIGN = 64


class Index:
    """Named arrays and facts (`meta`, JSON). Sent to another process it is a path, if it is in a side file.

    Attributes:
        arrays: by name.
        meta: what else there is to know.
    """

    def __init__(self, arrays: dict[str, Array], meta: dict[str, Any], path: Path | None = None) -> None:
        self.arrays, self.meta, self.path = arrays, meta, path

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(values.nbytes for values in self.arrays.values())

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path} if self.path else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if set(state) == {"path"}:
            loaded = _load(state["path"], None)
            if loaded is None:
                raise UserError(f"{state['path']}: the index is gone; start again")
            state = vars(loaded)
        self.__dict__.update(state)


def open_index(
    kind: str,
    files: Sequence[FileState],
    options: dict[str, str],
    build: Callable[[], tuple[dict[str, Array], dict[str, Any]]],
) -> Index:
    """The index of some files: from its side file, else built, and kept where one may write.

    Args:
        kind: of the reader; part of the side file's name.
        files: what the index depends on.
        options: likewise.
        build: makes the arrays and the facts.

    Raises:
        UserError: what `build` raises, or the files changed meanwhile.
    """
    described = [[state.path.name, state.size, state.mtime_ns] for state in files]
    key = {"kind": kind, "files": described, "options": options}
    names = hashlib.blake2b(
        orjson.dumps([kind, [d[0] for d in described], sorted(options.items())]), digest_size=6
    )
    name = f".{files[0].path.name}.{names.hexdigest()}.index"
    folder = hashlib.blake2b(os.fsencode(files[0].path.parent), digest_size=6).hexdigest()
    places = [files[0].path.parent / name, _cache_folder() / f"{folder}{name}"]
    for place in places:
        if (found := _load(place, key)) is not None:
            return found
    arrays, meta = build()
    for state in files:
        if file_state(state.path) != state:
            raise UserError(f"{state.path}: changed while its index was made; start again")
    for place in places:
        with suppress(UserError, OSError):
            _save(place, key, arrays, meta)
            return _load(place, key) or Index(arrays, meta)
    return Index(arrays, meta)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cn_clip" / "indices"


def _save(path: Path, key: dict[str, Any], arrays: dict[str, Array], meta: dict[str, Any]) -> None:
    layout = [[name, values.dtype.str, len(values)] for name, values in arrays.items()]
    head = orjson.dumps({"key": key, "meta": meta, "arrays": layout})
    with atomic_open(path, "wb") as file:
        file.write(_MAGIC + len(head).to_bytes(8, "little") + head)
        for values in arrays.values():
            file.write(b"\0" * (-file.tell() % _ALIGN))
            file.write(np.ascontiguousarray(values).data)


def _load(path: Path, key: dict[str, Any] | None) -> Index | None:
    """The index in a side file; None if there is none, it is of other files (`key`), or damaged."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            head = file.read(int.from_bytes(file.read(8), "little"))
            facts = orjson.loads(head)
            total = os.fstat(file.fileno()).st_size
        if key is not None and facts["key"] != key:
            return None
        content = np.memmap(path, mode="r") if total else np.empty(0, np.uint8)
        arrays, start = {}, len(_MAGIC) + 8 + len(head)
        for name, dtype, count in facts["arrays"]:
            start += -start % _ALIGN
            end = start + count * np.dtype(dtype).itemsize
            if end > total:
                return None
            arrays[name] = np.asarray(content[start:end]).view(dtype)
            start = end
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Index(arrays, facts["meta"], path)


class IdBuilder:
    """Collects ids in file order: 8 bytes for an integer; for strings their UTF-8, and 16 bytes.

    Strings that are all written as integers are integers (`parse_ids`).
    """

    def __init__(self) -> None:
        self.numbers: array[int] | None = array("q")
        self.text, self.ends, self.hashes = bytearray(), array("Q"), array("Q")
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, key: Id) -> None:
        """One more id; integers and strings of integers are the same."""
        self.count += 1
        if self.numbers is not None:
            number = parse_id(key) if isinstance(key, str) else key
            if isinstance(number, int) and -(2**63) <= number < 2**63:
                self.numbers.append(number)
                return
            numbers, self.numbers = self.numbers, None
            for earlier in numbers:
                self._add(str(earlier))
        self._add(str(key))

    def _add(self, key: str) -> None:
        self.text += key.encode("utf-8", "surrogatepass")
        self.ends.append(len(self.text))
        self.hashes.append(stable_hash(key))

    def arrays(self, prefix: str) -> dict[str, Array]:
        """What `IdTable` is made of: 8 bytes a row for ascending integers, 20 for others, 20 and the strings."""
        keys: Array
        order: Array
        if self.numbers is not None:
            keys = np.array(self.numbers, dtype=np.int64)
            found: dict[str, Array] = {"numbers": keys}
        else:
            keys = np.array(self.hashes, dtype=np.uint64)
            text = np.frombuffer(bytes(self.text), dtype=np.uint8)
            found = {"text": text, "ends": np.array(self.ends, dtype=np.uint64)}
        if self.numbers is None or not bool((keys[1:] > keys[:-1]).all()):
            order = np.argsort(keys, kind="stable").astype(np.uint32 if len(keys) < 2**32 else np.uint64)
            found |= {"sorted": keys[order], "order": order}
        return {f"{prefix}.{name}": values for name, values in found.items()}


class IdTable:
    """The ids of rows, and the row of an id.

    Args:
        index: holds the arrays of an `IdBuilder` under `prefix`.
    """

    def __init__(self, index: Index, prefix: str) -> None:
        self.index, self.prefix = index, prefix
        self.integers = f"{prefix}.numbers" in index.arrays

    def _array(self, name: str) -> Array:
        return self.index.arrays[f"{self.prefix}.{name}"]

    def __len__(self) -> int:
        return len(self._array("numbers" if self.integers else "ends"))

    def __getitem__(self, row: int) -> Id:
        if self.integers:
            return int(self._array("numbers")[row])
        ends = self._array("ends")
        start = int(ends[row - 1]) if row else 0
        return self._array("text")[start : int(ends[row])].tobytes().decode("utf-8", "surrogatepass")

    def all(self) -> list[Id]:
        """Every row's id."""
        if self.integers:
            return self._array("numbers").tolist()
        return [self[row] for row in range(len(self))]

    def find(self, key: Id) -> int | None:
        """The (first) row of an id, compared as a string; None where there is none."""
        if self.integers:
            number = parse_id(str(key))
            if not isinstance(number, int):
                return None
            if f"{self.prefix}.order" not in self.index.arrays:
                numbers = self._array("numbers")
                at = int(np.searchsorted(numbers, number))
                return at if at < len(numbers) and numbers[at] == number else None
        wanted = np.int64(number) if self.integers else np.uint64(stable_hash(key))
        keys, order = self._array("sorted"), self._array("order")
        at = int(np.searchsorted(keys, wanted))
        while at < len(keys) and keys[at] == wanted:
            row = int(order[at])
            if self.integers or self[row] == str(key):  # two strings may have one hash
                return row
            at += 1
        return None

    def duplicate(self) -> tuple[int, int] | None:
        """The first row whose id stands before it already, and the row of that one."""
        if f"{self.prefix}.order" not in self.index.arrays:
            return None
        keys, order = self._array("sorted"), self._array("order")
        same = np.flatnonzero(keys[1:] == keys[:-1]) + 1
        for row in sorted(int(order[at]) for at in same):
            first = self.find(self[row])
            if first is not None and first < row:
                return row, first
        return None
