"""cn-clip data build-lmdb --data_dir DIR --splits train,valid,test [--lmdb_dir DIR]

Writes `lmdb/{split}/imgs` and `lmdb/{split}/pairs` (see `lmdb.py`) from `{split}_imgs.tsv` and
`{split}_texts.jsonl`, in constant memory. A split appears when all of it is written, in place of an old one.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from cn_clip.data.formats import decode_base64, read_images, read_texts
from cn_clip.data.lmdb import NUM_IMAGES, NUM_SAMPLES, LmdbImages, close
from cn_clip.errors import UserError
from cn_clip.files import atomic_path
from cn_clip.progress import progress

_FIRST_MAP = 1 << 24  # bytes; the map doubles when it is full
_CHUNK = 1 << 23  # bytes of keys and values in one transaction
_MAX_KEY = 511  # bytes, LMDB's limit


def build_lmdb(data_dir: Path, splits: str, lmdb_dir: Path | None = None) -> None:
    """Build the LMDB files of a dataset's splits from its TSV images and JSONL texts.

    Args:
        data_dir: the folder of {split}_imgs.tsv and {split}_texts.jsonl.
        splits: names of splits, separated by commas: train,valid,test.
        lmdb_dir: the folder to write to; DATA_DIR/lmdb by default. An old split there is replaced.
    """
    names = list(dict.fromkeys(name.strip() for name in splits.split(",") if name.strip()))
    if not names:
        raise UserError("--splits names no split; give names separated by commas, such as train,valid,test")
    out = lmdb_dir or data_dir / "lmdb"
    for name in names:
        _check_split(data_dir, name, out)
    for name in names:
        images, pairs = build_split(data_dir, name, out / name)
        print(f"{out / name}: {images} images, {pairs} pairs")


def build_split(data_dir: Path, split: str, target: Path) -> tuple[int, int]:
    """Build one split as the folder `target`; returns the numbers of images and of pairs.

    Raises:
        UserError: a wrong line, a duplicate image id, a text's image that is not there, or a full disk.
            What was at `target` before is then still there, whole.
    """
    tsv, jsonl = _sources(data_dir, split)
    target = target.resolve()  # a link to another disk stays a link
    with atomic_path(target) as temporary:
        temporary.mkdir()
        try:
            images = _write_images(tsv, temporary / "imgs")
            pairs = _write_pairs(jsonl, temporary / "imgs", temporary / "pairs", tsv)
        except lmdb.Error as error:
            # LMDB calls a write that a full disk cut short an input/output error.
            if isinstance(error, lmdb.DiskError) or shutil.disk_usage(temporary).free < _CHUNK:
                raise OSError(errno.ENOSPC, str(error), str(target)) from None
            raise UserError(
                f"{target}: cannot write the LMDB: {error} (a quota, a limit on file sizes, or a failing disk?)"
            ) from None
        for name in ("imgs", "pairs"):
            close(target / name)
    return images, pairs


def _write_images(tsv: Path, path: Path) -> int:
    count = 0
    try:
        with _Writer(path) as writer, _bar(tsv) as bar:
            for row in read_images(tsv):
                where = f"{tsv}:{row.line}"
                key = row.image_id.encode()
                if len(key) > _MAX_KEY:
                    raise UserError(f"{where}: the image id has {len(key)} bytes; LMDB takes {_MAX_KEY}")
                if key == NUM_IMAGES:
                    raise UserError(f"{where}: the image id num_images is reserved; choose another")
                if not decode_base64(row.base64, f"{where}: image {row.image_id}"):
                    raise UserError(f"{where}: image {row.image_id} is empty (0 bytes)")
                writer.put(key, row.base64)
                count += 1
                bar.update(len(row.base64) + len(key) + 2)
            writer.put(NUM_IMAGES, str(count).encode())
    except _DuplicateKey as error:
        raise duplicate_image(tsv, error.key.decode()) from None
    _compact(path)
    return count


def _write_pairs(jsonl: Path, images_path: Path, path: Path, tsv: Path) -> int:
    count = 0
    images = LmdbImages(images_path)
    try:
        with _Writer(path) as writer, _bar(jsonl) as bar:
            for text in read_texts(jsonl):
                for image_id in text.image_ids:
                    if image_id not in images:
                        raise UserError(
                            f"{jsonl}:{text.line}: image id {image_id!r} of text {text.text_id!r} "
                            f"has no image in {tsv.name}"
                        )
                    writer.put(str(count).encode(), pickle.dumps((image_id, text.text_id, text.text), 4))
                    count += 1
                bar.update(len(text.text) * 3)
            writer.put(NUM_SAMPLES, str(count).encode())
    finally:
        close(images_path)  # before the folder is renamed
    _compact(path)
    return count


class _DuplicateKey(Exception):
    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.key = key


class _Writer:
    """Puts into a new database by chunks, in constant memory; a chunk is redone when the map is full."""

    def __init__(self, path: Path, append: bool = False) -> None:
        self.path = path
        self.append = append  # keys come sorted: pages are filled
        self.map_size = _FIRST_MAP
        self.chunk: list[tuple[bytes, bytes]] = []
        self.size = 0
        path.mkdir()
        self.environment = self._open()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.environment.close()
            return
        try:
            self.flush()
            self.environment.sync(True)
            used = (self.environment.info()["last_pgno"] + 1) * self.environment.stat()["psize"]
        finally:
            self.environment.close()
        file = self.path / "data.mdb"
        if file.stat().st_size > used:  # Windows makes the file as large as the map
            os.truncate(file, used)

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record.

        Raises:
            _DuplicateKey: the key of this record, or of one put before it, was there already.
        """
        self.chunk.append((key, value))
        self.size += len(key) + len(value)
        if self.size > _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Commit the records put so far."""
        self.chunk.sort()
        while True:
            try:
                with self.environment.begin(write=True) as transaction:
                    for key, value in self.chunk:
                        if not transaction.put(key, value, overwrite=False, append=self.append):
                            raise _DuplicateKey(key)
                break
            except lmdb.MapFullError:  # the transaction was taken back; growing an open map is not reliable
                self.environment.close()
                self.map_size *= 2
                self.environment = self._open()
        self.chunk, self.size = [], 0

    def _open(self) -> lmdb.Environment:
        # No lock and no sync: nobody else knows this file before it is synced and renamed.
        return lmdb.open(str(self.path), map_size=self.map_size, lock=False, sync=False, meminit=True)


def _compact(path: Path) -> None:
    """Rewrite in the order of the keys where that pays: pages filled at random are half empty."""
    loose = path.with_name(f"{path.name}.loose")
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        stat = environment.stat()
    if stat["leaf_pages"] <= stat["overflow_pages"]:  # large values have pages of their own, always full
        return
    path.rename(loose)
    with (
        lmdb.open(str(loose), readonly=True, lock=False) as source,
        source.begin() as transaction,
        _Writer(path, append=True) as writer,
    ):
        for key, value in transaction.cursor():
            writer.put(key, value)
    shutil.rmtree(loose)


def duplicate_image(tsv: Path, image_id: str) -> UserError:
    """The error that names both lines of an id; they are looked for only now, so that memory stays constant."""
    lines = [row.line for row in read_images(tsv) if row.image_id == image_id]
    return UserError(f"{tsv}:{lines[1]}: image id {image_id} stands at line {lines[0]} already")


def _check_split(data_dir: Path, split: str, out: Path) -> None:
    if Path(split).name != split:
        raise UserError(f"--splits: {split!r} is not the name of a split")
    missing = [path for path in _sources(data_dir, split) if not path.is_file()]
    if missing:
        found = sorted(path.name.removesuffix("_imgs.tsv") for path in data_dir.glob("*_imgs.tsv"))
        raise UserError(
            f"{missing[0]}: no such file; the split {split!r} needs {split}_imgs.tsv and {split}_texts.jsonl "
            f"in {data_dir} (splits with images there: {', '.join(found) or 'none'})"
        )
    old = out / split
    for folder in (out, old):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; choose another --lmdb_dir or move it away")
    strangers = sorted({path.name for path in old.iterdir()} - {"imgs", "pairs"}) if old.is_dir() else []
    if strangers:
        raise UserError(f"{old}: would be replaced, but holds {strangers[0]}; move that away")


def _sources(data_dir: Path, split: str) -> tuple[Path, Path]:
    return data_dir / f"{split}_imgs.tsv", data_dir / f"{split}_texts.jsonl"


def _bar(path: Path) -> Any:
    return progress(total=path.stat().st_size, desc=path.name, unit="B")
