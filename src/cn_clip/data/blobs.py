"""Bytes at a place in a file, for many threads, many processes and many files."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cn_clip.errors import UserError

_OPEN = 64  # files open at a time, a process


class FileState(NamedTuple):
    """A file as it was when its index was made."""

    path: Path
    size: int
    mtime_ns: int


def file_state(path: Path) -> FileState:
    """The present state of a file (its path made absolute)."""
    stat = path.stat()
    return FileState(path.absolute(), stat.st_size, stat.st_mtime_ns)


class Blobs:
    """Reads from files by (number, offset, size); opens them as they are needed, and the last used stay open.

    Holds paths only when it is pickled. A read does not move the file's position, so a forked process may go on
    with the files of its parent.
    """

    def __init__(self, files: Sequence[FileState]) -> None:
        self.files = list(files)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.files = state["files"]
        self._forget()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of a file.

        Raises:
            UserError: the file has been changed since its index was made, or it has not got them.
        """
        file = self.file(number)
        if hasattr(os, "pread"):
            data = os.pread(file.fileno(), size, offset)
        else:  # Windows
            with self._lock:
                file.seek(offset)
                data = file.read(size)
        if len(data) != size:
            raise UserError(f"{self.files[number].path}: cannot read {size} bytes at {offset}: cut short")
        return data

    def file(self, number: int) -> BinaryIO:
        """The file, open: it stays so as long as somebody holds it.

        Raises:
            UserError: as `read`.
        """
        state = self.files[number]
        with self._lock:
            file = self._open.get(number)
            if file is None:
                try:
                    file = open(state.path, "rb", buffering=0)  # noqa: SIM115
                except OSError as error:
                    raise UserError(f"{state.path}: {error.strerror or error}") from None
                self._open[number] = file
                if len(self._open) > _OPEN:
                    self._open.popitem(last=False)  # whoever reads it now holds it; it is closed after that
            else:
                self._open.move_to_end(number)
        stat = os.fstat(file.fileno())
        if (stat.st_size, stat.st_mtime_ns) != state[1:]:
            raise UserError(f"{state.path}: changed since its index was made; start again")
        return file
