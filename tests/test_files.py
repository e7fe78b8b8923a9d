"""Output files appear whole or not at all, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cn_clip.errors import UserError
from cn_clip.files import atomic_open, atomic_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_the_file_appears_at_the_end_and_replaces_the_old_one(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "out.jsonl"
    old, new = ("旧\n", "新\n") if mode == "w" else (b"old", b"new")
    with atomic_open(path, mode) as file:
        file.write(old)
        assert not path.exists()
    with atomic_open(path, mode) as file:
        file.write(new)
        file.flush()
        assert path.read_bytes() == (old.encode() if isinstance(old, str) else old)
    assert path.read_bytes() == (new.encode() if isinstance(new, str) else new)  # UTF-8, \n: on any system
    assert names(path.parent) == ["out.jsonl"]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), UserError("line 3"), OSError("odd")])
def test_an_error_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(type(error)) as caught:
        write_half(path, error)
    assert caught.value is error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_path(tmp_path / "lmdb") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["lmdb"]
    assert names(tmp_path / "lmdb") == ["new"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "old").touch()
    with pytest.raises(ZeroDivisionError):
        write_half_a_folder(tmp_path / "lmdb", ZeroDivisionError())
    assert names(tmp_path) == ["lmdb"]
    assert names(tmp_path / "lmdb") == ["old"]


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "precious").mkdir(parents=True)
    message = refused(tmp_path / "out")
    assert message == f"{tmp_path / 'out'}: cannot write: it is a folder; give the name of a file"
    assert names(tmp_path / "out") == ["precious"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("below", ["out", "sub/out", "sub/deep/out"])
def test_a_parent_that_is_a_file(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    message = refused(tmp_path / "file" / below)
    assert message.startswith(f"{tmp_path / 'file'}")
    assert message.endswith("cannot write: a part of the path is a file, not a folder")
    assert (tmp_path / "file").read_text() == "content"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("path", [".", "..", "/", ""])
def test_a_path_without_a_name(path: str) -> None:
    assert "expected the name of a file or folder" in refused(Path(path))


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert refused(tmp_path / ("名" * 200)).endswith("cannot write: the name is too long")


def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "out"
    path.write_text("old")
    with pytest.raises(UserError) as caught, atomic_open(path, "wb") as file:
        file.write(os.urandom(1 << 20))
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot write: ")
    assert "the disk is full" in message or "ulimit" in message
    assert path.read_text() == "old"
    assert names(small_disk) == ["out"]


def test_a_device_that_is_always_full(tmp_path: Path) -> None:
    """The error of a write inside the block has no file name: the output's own is said."""
    with pytest.raises(UserError, match="out: cannot write: the disk is full"):  # noqa: SIM117
        with atomic_path(tmp_path / "out"), open("/dev/full", "w") as full:
            full.write("x")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR])
def test_an_input_that_cannot_be_read_keeps_its_own_error(number: int, tmp_path: Path) -> None:
    for source in (tmp_path / "source", tmp_path):
        with pytest.raises(OSError, match=source.name) as caught, atomic_path(tmp_path / "out"):
            raise OSError(number, os.strerror(number), str(source))
        assert caught.value.filename == str(source)
    assert names(tmp_path) == []


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught, atomic_open(path) as file:
        file.write("new")
    message = str(caught.value)
    assert "\n" not in message
    assert ".tmp" not in message
    return message


def write_half(path: Path, error: BaseException) -> None:
    with atomic_open(path) as file:
        file.write("half")
        raise error


def write_half_a_folder(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        raise error
