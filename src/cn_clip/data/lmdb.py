"""The LMDB form of a split, for random access in training: `lmdb/{split}/imgs` and `lmdb/{split}/pairs`.

`imgs` maps str(image_id) to base64 (and num_images to their count); `pairs` maps str(i) to the pickle of
(image_id, text_id, text) (and num_samples to their count). The reference reads and writes the same.

Readers hold paths only, so they may be pickled and used after a fork: environments are opened where they are
needed, one a path and process, because LMDB allows neither a second one nor one inherited through a fork.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import lmdb

from cn_clip.data.formats import Id, PathLike, decode_base64, parse_ids
from cn_clip.errors import UserError

NUM_IMAGES = b"num_images"
NUM_SAMPLES = b"num_samples"
Pair = tuple[Id, Id, str]  # (image_id, text_id, text)


class LmdbDataset:
    """A split's images and pairs: `images[image_id]` and `pairs[i]`.

    Args:
        path: the folder of a split, such as `lmdb/train`.

    Raises:
        UserError: no such dataset, or one of another layout.
    """

    kind = "LMDB"

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder; build it with cn-clip data build-lmdb")
        self.images = LmdbImages(self.path / "imgs")
        self.pairs = LmdbPairs(self.path / "pairs")


class LmdbImages:
    """The images of `lmdb/{split}/imgs`.

    `images[image_id]` is the content of an image's file, `len(images)` their number; iterating yields
    (id as a string, content) in the order of the keys, which is the reference's order of features.

    Raises:
        UserError: not such a database; later, an unknown id or bad base64.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path).resolve()
        _refresh(self.path)
        self.num_images = _count(self.path, NUM_IMAGES)
        self._length = _environment(self.path).stat()["entries"] - 1

    def __len__(self) -> int:
        return self._length

    def __contains__(self, image_id: Id) -> bool:
        return _get(self.path, _key(image_id)) is not None

    def __getitem__(self, image_id: Id) -> bytes:
        return decode_base64(self.base64(image_id), self.where(image_id))

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        with _environment(self.path).begin() as transaction, transaction.cursor() as cursor:
            for key, value in cursor:
                if key != NUM_IMAGES:
                    image_id = self._decode(key)
                    yield image_id, decode_base64(value, self.where(image_id))

    def base64(self, image_id: Id) -> bytes:
        """The base64 of an image's file, as it is stored."""
        value = _get(self.path, _key(image_id))
        if value is None:
            raise UserError(f"{self.path}: there is no image with the id {image_id!r}")
        return value

    def keys(self) -> list[str]:
        """All ids as strings, in the order of the keys; the images themselves are not read."""
        with _environment(self.path).begin() as transaction, transaction.cursor() as cursor:
            return [self._decode(key) for key in cursor.iternext(values=False) if key != NUM_IMAGES]

    def ids(self) -> list[Id]:
        """`keys()` as integers where all of them are."""
        return parse_ids(self.keys())

    def where(self, image_id: Id) -> str:
        """How a message names an image."""
        return f"{self.path}: image {image_id}"

    def _decode(self, key: bytes) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: the key {key[:20]!r} is not an image id; build it anew") from None


class LmdbPairs:
    """The pairs of `lmdb/{split}/pairs`: `pairs[i]` is (image_id, text_id, text), i in 0 … len(pairs) - 1.

    Raises:
        UserError: not such a database; later, a value that is not such a tuple. No code in it is ever run.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path).resolve()
        _refresh(self.path)
        self._length = _count(self.path, NUM_SAMPLES)
        entries = _environment(self.path).stat()["entries"] - 1
        if self._length > entries:
            raise UserError(
                f"{self.path}: num_samples is {self._length}, but there are {entries} pairs; build it anew"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self._length:
            raise IndexError(f"{self.path}: pair {index} of {self._length}")
        value = _get(self.path, b"%d" % index)
        if value is None:
            raise UserError(f"{self.path}: pair {index} is missing; build it anew")
        return load_pair(value, f"{self.path}: pair {index}")

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(self._length))


class _Unpickler(pickle.Unpickler):
    """Knows no class and no function, so that a pickle can hold nothing but Python's literals."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")


def load_pair(data: bytes, where: str) -> Pair:
    """Unpickle (image_id, text_id, text), and nothing else.

    Raises:
        UserError: truncated, malicious, or another value; the message starts with `where`.
    """
    try:
        if b"r" in data or b"p" in data:
            _refuse_memory_bomb(data)
        value = _Unpickler(BytesIO(data)).load()
    except Exception as error:  # a broken pickle may raise anything
        raise UserError(f"{where}: not a pickled (image_id, text_id, text): {error}") from None
    if type(value) is tuple and len(value) == 3:
        image_id, text_id, text = value
        if type(text) is str and type(image_id) in (int, str) and type(text_id) in (int, str):
            return value
    raise UserError(f"{where}: expected (image_id, text_id, text), found {type(value).__name__}")


def _refuse_memory_bomb(data: bytes) -> None:
    """A memo slot of any number may be asked for (opcodes r and p), and all slots below it are allocated."""
    for opcode, slot, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "LONG_BINPUT") and (slot or 0) > len(data):
            raise pickle.UnpicklingError(f"it asks for {slot} memo slots")


class _Environments:
    """The environments that one process has open."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.open: dict[Path, tuple[lmdb.Environment, tuple[int, ...]]] = {}


_environments = _Environments()


def _here() -> _Environments:
    global _environments
    if _environments.pid != os.getpid():  # forked: the parent's environments must not be used here
        inherited, _environments = _environments, _Environments()
        for environment, _ in inherited.open.values():
            environment.close()
    return _environments


def _environment(path: Path) -> lmdb.Environment:
    """The environment of an absolute path (two spellings of one path would open it twice)."""
    here = _here()
    found = here.open.get(path)
    if found is None:
        with here.lock:
            found = here.open.get(path) or (_open(path), _identity(path))
            here.open[path] = found
    return found[0]


def _refresh(path: Path) -> None:
    """Forget the open environment of a database that has been replaced since."""
    found = _here().open.get(path)
    if found and found[1] != _identity(path):
        close(path)


def close(path: PathLike) -> None:
    """Close a database of this process (a later use opens it again)."""
    here = _here()
    with here.lock:
        found = here.open.pop(Path(path).resolve(), None)
        if found:
            found[0].close()


def _identity(path: Path) -> tuple[int, ...]:
    try:
        stat = (path / "data.mdb").stat()
    except OSError:
        return ()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _open(path: Path) -> lmdb.Environment:
    file = path / "data.mdb"
    if not file.is_file():
        raise UserError(f"{path}: no {file.name} here; build it with cn-clip data build-lmdb")
    try:
        environment = lmdb.open(str(path), readonly=True, create=False, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise UserError(f"{file}: not a readable LMDB file: {error}") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < needed:  # touching a page that is not there would kill the process (SIGBUS)
        environment.close()
        raise UserError(f"{file}: cut short ({file.stat().st_size} of {needed} bytes); copy or build it anew")
    return environment


def _get(path: Path, key: bytes) -> bytes | None:
    try:
        with _environment(path).begin() as transaction:
            value: bytes | None = transaction.get(key)
            return value
    except lmdb.BadValsizeError:  # a key that LMDB cannot hold is not there
        return None
    except lmdb.Error as error:
        raise UserError(f"{path}: cannot read the LMDB: {error}; build it anew") from None


def _key(image_id: Id) -> bytes:
    return str(image_id).encode()


def _count(path: Path, key: bytes) -> int:
    value: Any = _get(path, key)
    if value is None or not value.isdigit():
        expected = "lmdb/{split}/imgs" if key == NUM_IMAGES else "lmdb/{split}/pairs"
        problem = "is missing" if value is None else "is not a number"
        raise UserError(
            f"{path}: not a database of the layout {expected}: its key {key.decode()} {problem}; "
            "build it with cn-clip data build-lmdb"
        )
    return int(value)
