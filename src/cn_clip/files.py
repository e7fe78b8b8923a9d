"""Writing files so that a reader sees the old one or the whole new one, never a half."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cn_clip.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any error removed.

    The temporary path does not exist yet: the caller makes a file or a directory of it. A directory
    replaces a directory: the old one is moved aside first and deleted last.

    Raises:
        UserError: the target's folder cannot be written, or the disk is full.
    """
    path = Path(path)
    if not path.name or path.name == "..":
        raise UserError(f"{path}: expected the name of a file or folder to write")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    body = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        body = True
        yield temporary
        body = False
        if temporary.is_dir():
            _replace_directory(temporary, path)
        else:
            temporary.replace(path)
    except OSError as error:
        if body and not _is_of_writing(error, temporary):
            raise  # a missing or unreadable input, say
        raise UserError(_explain(error, temporary, path)) from error
    finally:
        _remove(temporary)


@contextmanager
def atomic_open(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing under a temporary name; text is UTF-8 with `\\n` line ends.

    Raises:
        UserError: as `atomic_path`.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with atomic_path(path) as temporary, open(temporary, mode, **text) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _replace_directory(new: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.replace(old)
    try:
        new.replace(path)
    except BaseException:  # Ctrl-C between the two renames, too
        if old.exists():
            old.replace(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    with suppress(OSError):  # what went wrong before is what the user must hear
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


def _is_of_writing(error: OSError, temporary: Path) -> bool:
    if error.filename is None:  # `write` knows no name
        return error.errno in (*_FULL, errno.EFBIG)
    return error.errno in _FULL or Path(os.fsdecode(error.filename)).is_relative_to(temporary)


def _explain(error: OSError, temporary: Path, path: Path) -> str:
    if error.errno in _FULL:
        return f"{path}: cannot write: {_FULL[error.errno]}; free some space and run the same command again"
    reasons = {
        errno.EACCES: "permission denied; choose an output folder you may write to",
        errno.EPERM: "permission denied; choose an output folder you may write to",
        errno.EROFS: "the file system is read-only; choose another output folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EEXIST: "a part of the path is a file, not a folder",
        errno.EISDIR: "it is a folder; give the name of a file",
        errno.EFBIG: "the file is over the limit of this file system, or of ulimit -f",
        errno.ENAMETOOLONG: "the name is too long",
    }
    where = Path(os.fsdecode(error.filename)) if error.filename else path
    where = path if where.is_relative_to(temporary) else where
    return f"{where}: cannot write: {reasons.get(error.errno or 0) or error.strerror or error}"
