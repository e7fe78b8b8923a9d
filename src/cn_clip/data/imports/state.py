"""The state of an unfinished import: an SQLite index and the files that grow, in OUT/.import.

A commit writes the files through to the disk, then the index and the files' lengths in one transaction. A process
killed at any time leaves the last commit; files are cut back to their lengths there, and the import goes on from
the row that it names. What grows is this index on the disk, not memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from cn_clip.data.formats import Id, Text, parse_id
from cn_clip.errors import UserError

_SCHEMA = """
create table if not exists meta (name text primary key, value text) without rowid;
create table if not exists images (key blob primary key, id text, split text, ref blob) without rowid;
create table if not exists texts (key blob primary key, number integer) without rowid;
create table if not exists lines (number integer primary key, split text, id text, text text);
create table if not exists pairs
    (text integer, image text, number integer, primary key (text, image)) without rowid;
create table if not exists copies (digest blob primary key, split text) without rowid;
"""


class Known(NamedTuple):
    """An image that was met before; `split` is None when it was skipped."""

    id: str
    split: str | None
    ref: bytes


class State:
    """Index and growing files of one import.

    Attributes:
        part, row: where the source is to be read on from.
        counts: how many of everything, by name.
        all_integers: every id so far is written as an integer.
    """

    def __init__(self, folder: Path) -> None:
        """Open the state in `folder`, which is made if it is not there.

        Raises:
            UserError: another process imports there, or the folder cannot be written.
        """
        self.folder = folder
        shutil.rmtree(folder.with_name(f"{folder.name}.done"), ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, IO[bytes]] = {}
        try:
            self.index = sqlite3.connect(folder / "index.sqlite", isolation_level=None, timeout=1)
            self.index.execute("pragma locking_mode = exclusive")
            self.index.execute("pragma journal_mode = wal")
            self.index.execute("pragma synchronous = normal")
            self.index.execute("pragma cache_size = -65536")
            self.index.executescript(_SCHEMA)
            self.index.execute("begin immediate")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UserError(f"{folder.parent}: another cn-clip data import is writing there") from None
            raise UserError(f"{folder}: cannot keep the state of the import: {error}") from None
        except sqlite3.DatabaseError as error:
            raise UserError(f"{folder}: broken ({error}); delete it and start anew") from None
        position: list[int] = self.get("position") or [0, 0]
        self.part, self.row = position
        self.counts: Counter[str] = Counter(self.get("counts") or {})
        self.all_integers: bool = self.get("all_integers") is not False
        self.lengths: dict[str, int] = self.get("lengths") or {}
        for name, length in self.lengths.items():
            if (folder / name).exists():  # it has moved when the end of the import was interrupted
                if (folder / name).stat().st_size < length:
                    raise UserError(f"{folder / name}: shorter than it was; delete {folder} and start anew")
                os.truncate(folder / name, length)

    def get(self, name: str) -> Any:
        """A value that was set, or None."""
        found = self.index.execute("select value from meta where name = ?", (name,)).fetchone()
        return json.loads(found[0]) if found else None

    def set(self, name: str, value: Any) -> None:
        """Keep a JSON value."""
        self.index.execute("insert or replace into meta values (?, ?)", (name, json.dumps(value)))

    def append(self, name: str, *pieces: bytes) -> None:
        """Add to the growing file `name`."""
        if name not in self.files:
            if name not in self.lengths:  # left by a process that was killed before it committed
                (self.folder / name).unlink(missing_ok=True)
            self.files[name] = (self.folder / name).open("ab", buffering=1 << 20)
        for piece in pieces:
            self.files[name].write(piece)

    def image(self, key: bytes) -> Known | None:
        """The image of a key."""
        found = self.index.execute("select id, split, ref from images where key = ?", (key,)).fetchone()
        return Known(*found) if found else None

    def add_image(self, key: bytes, image: Known) -> None:
        """Remember an image."""
        self.index.execute("insert into images values (?, ?, ?, ?)", (key, image.id, image.split, image.ref))

    def copy_split(self, digest: bytes, split: str) -> str:
        """The split of the first picture with these bytes: `split`, if this is it."""
        self.index.execute("insert or ignore into copies values (?, ?)", (digest, split))
        return str(self.index.execute("select split from copies where digest = ?", (digest,)).fetchone()[0])

    def add_pair(self, key: bytes, split: str, text: str, text_id: str | None, image_id: str) -> str:
        """Add a caption of an image; returns why it is skipped, or nothing.

        Args:
            key: tells captions apart: its split with its text, or with its id.
            split: the image's.
            text: the caption.
            text_id: where the source gives one; else captions are numbered.
            image_id: the image's.
        """
        found = self.index.execute("select number from texts where key = ?", (key,)).fetchone()
        if found is None:
            number = self.counts["captions"]
            self.counts["captions"] += 1
            self.counts[f"{split} texts"] += 1
            self.index.execute("insert into texts values (?, ?)", (key, number))
            self.index.execute("insert into lines values (?, ?, ?, ?)", (number, split, text_id, text))
        else:
            number = found[0]
            if text_id is not None:
                other = self.index.execute("select text from lines where number = ?", (number,)).fetchone()[0]
                if other != text:
                    return "duplicate text id"
        pair = (number, image_id, self.counts["pairs"])
        added = self.index.execute("insert or ignore into pairs values (?, ?, ?)", pair).rowcount
        if not added:
            return "repeated pair"
        self.counts["pairs"] += 1
        self.counts[f"{split} pairs"] += 1
        return ""

    def see_id(self, key: str) -> None:
        """Note whether an id is an integer."""
        self.all_integers = self.all_integers and isinstance(parse_id(key), int)

    def texts(self, split: str) -> Iterator[Text]:
        """The captions of a split, in the order in which they were met; ids of the dataset's one type."""
        of: Any = parse_id if self.all_integers else str
        lines = self.index.execute("select number, id, text from lines where split = ? order by number", (split,))
        for number, text_id, text in lines:
            pairs = self.index.execute("select image from pairs where text = ? order by number", (number,))
            image_ids: list[Id] = [of(image) for (image,) in pairs]
            yield Text(of(str(number) if text_id is None else text_id), text, image_ids)

    def commit(self, part: int, row: int) -> None:
        """Make all so far last: from now on the import goes on from this row, whatever happens."""
        for name, file in self.files.items():
            file.flush()
            os.fsync(file.fileno())
            self.lengths[name] = file.tell()
        self.part, self.row = part, row
        self.set("position", [part, row])
        self.set("counts", self.counts)
        self.set("all_integers", self.all_integers)
        self.set("lengths", self.lengths)
        self.index.execute("commit")
        self.index.execute("begin immediate")

    def close_files(self) -> None:
        """Write the growing files through to the disk, and close them."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self.files.clear()

    def close(self) -> None:
        """Close all; what was not committed is forgotten."""
        for file in self.files.values():
            with suppress(OSError):  # of a full disk: what it says was said before
                file.close()
        self.index.close()

    def remove(self) -> None:
        """Close, and delete the state: by a new name, so that half of it is never taken for a state."""
        self.close()
        done = self.folder.with_name(f"{self.folder.name}.done")
        shutil.rmtree(done, ignore_errors=True)
        self.folder.rename(done)
        shutil.rmtree(done)
