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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            _replace_directory(temporary, path)
        else:
            temporary.replace(path)
    except OSError as error:
        message = _explain(error, temporary, path)
        if message is None:
            raise
        raise UserError(message) from error
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


def _explain(error: OSError, temporary: Path, path: Path) -> str | None:
    """One line for errors of writing; None for others (a missing or unreadable input, say)."""
    full = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
    if error.errno in full:
        return f"{path}: cannot write: {full[error.errno]}; free some space and run the same command again"
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
    if error.filename is None and error.errno == errno.EFBIG:  # a write, which knows no name
        return f"{path}: cannot write: {reasons[errno.EFBIG]}"
    where = Path(os.fsdecode(error.filename or ""))
    where = path if where.is_relative_to(temporary) else where
    if where != path and where not in path.parents:
        return None
    return f"{where}: cannot write: {reasons.get(error.errno or 0, error.strerror)}"
