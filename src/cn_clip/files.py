"""Writing files so that a reader sees the old one or the whole new one, never a half."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            _replace_directory(temporary, path)
        else:
            temporary.replace(path)
    except OSError as error:
        raise _as_user_error(error, path) from error
    finally:
        _remove(temporary)


@contextmanager
def atomic_open(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing under a temporary name; text is UTF-8 with `\\n` line ends.

    Raises:
        UserError: as `atomic_path`.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
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
    except OSError:
        if old.exists():
            old.replace(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _as_user_error(error: OSError, path: Path) -> Exception:
    """Errors of the disk become one line; others (a missing input, say) keep their own type and text."""
    where = Path(error.filename) if error.filename else path
    reasons = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EACCES: "permission denied; choose an output folder you may write to",
        errno.EROFS: "the file system is read-only; choose another output folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
    }
    if error.errno not in reasons:
        return error
    return UserError(f"{where}: cannot write: {reasons[error.errno]}")
