"""WebDataset shards: tar files whose members `KEY.jpg`, `KEY.txt`, `KEY.json` make one sample.

Members are found by their place in the file, so that any of them is read by itself. The rules are those of the
webdataset package: neighbouring members with the same key are a sample, the key ends at the first dot of the
file's name, extensions are compared in lower case, `__meta__` members and what is not a file are left out.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cn_clip.data.formats import parse_json
from cn_clip.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "img", "image")
TEXT_EXTENSIONS = ("txt", "text", "caption")
TEXT_FIELDS = ("caption", "text", "captions", "texts")  # of KEY.json
_META = re.compile(r"__[^/]*__($|/)")
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.S)
_BLOCK = 512


class Member(NamedTuple):
    """A file in a shard: its bytes are `size` from `offset` on."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """Members of one key, by extension."""

    key: str
    members: dict[str, Member]


def tar_samples(path: Path) -> Iterator[Sample]:
    """The samples of a shard in its order; only headers are read.

    Raises:
        UserError: not an uncompressed tar, cut short, or a member twice in a sample.
    """
    current: Sample | None = None
    for name, offset, size in tar_members(path):
        match = None if _META.match(name) else _NAME.match(name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if current is None or key != current.key:
            if current:
                yield current
            current = Sample(key, {})
        if extension in current.members:
            raise UserError(f"{path}: {name}: the sample {key} has two members .{extension}")
        current.members[extension] = Member(name, offset, size)
    if current:
        yield current


def tar_members(path: Path) -> Iterator[Member]:
    """The files in a tar, in its order; only headers are read.

    Raises:
        UserError: not an uncompressed tar, cut short, or damaged.
    """
    _refuse_compressed(path)
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps a record of each
                end = info.offset_data + (info.size if info.isreg() else 0)
                if end > total:
                    raise UserError(
                        f"{path}: cut short in the member {info.name} ({total} of {end} bytes or more)"
                    )
                if info.issparse():
                    raise UserError(
                        f"{path}: {info.name} is stored as a sparse file; write the tar without --sparse"
                    )
                if info.isreg():
                    yield Member(info.name, info.offset_data, info.size)
            _check_end(path, archive.offset, total)
    except UserError:
        raise
    except (
        tarfile.TarError,
        ValueError,
        OverflowError,
        LookupError,
    ) as error:  # a broken header may hold anything
        raise UserError(f"{path}: damaged, or not a tar file: {error}; copy or write it anew") from None


def _refuse_compressed(path: Path) -> None:
    kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    with path.open("rb") as file:
        start = file.read(8)
    for magic, kind in kinds.items():
        if start.startswith(magic):
            raise UserError(
                f"{path}: compressed with {kind}: its members cannot be read one by one; decompress it "
                "to a plain .tar (pictures hardly shrink)"
            )


def _check_end(path: Path, offset: int, total: int) -> None:
    """Python takes any header that it cannot read, and the end of the file, for the end of the archive."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(_BLOCK)
    if block == b"":
        raise UserError(f"{path}: cut short at {total} bytes (no end-of-archive block); copy or write it anew")
    if block.strip(b"\0"):
        raise UserError(f"{path}: damaged at byte {offset}: expected a member or the end; copy or write it anew")


def image_member(sample: Sample, where: str, wanted: str | None = None) -> Member:
    """The picture of a sample: the member of the extension `wanted`, or the only one that is a picture's.

    Raises:
        UserError: none, or several.
    """
    found = [e for e in sample.members if (e == wanted if wanted else e.rsplit(".", 1)[-1] in IMAGE_EXTENSIONS)]
    if len(found) == 1:
        return sample.members[found[0]]
    names = ", ".join(f".{e}" for e in found or sample.members)
    if found:
        raise UserError(
            f"{where}: sample {sample.key} has several pictures ({names}); name one with ?image=EXTENSION"
        )
    expected = (
        f".{wanted} member" if wanted else "picture (a member .jpg, .png, .webp, …; ?image=EXTENSION names one)"
    )
    raise UserError(f"{where}: sample {sample.key} has no {expected}; found {names}")


def sample_json(sample: Sample, read: Callable[[Member], bytes], where: str) -> dict[str, Any]:
    """The fields of `KEY.json`, none where there is no such member.

    Raises:
        UserError: not a JSON object.
    """
    member = sample.members.get("json")
    return parse_json(read(member), f"{where}: {member.name}") if member else {}


def captions(
    sample: Sample, fields: dict[str, Any], read: Callable[[Member], bytes], where: str, wanted: str | None = None
) -> list[str] | None:
    """The captions of a sample; None where it has none.

    Args:
        sample: the sample.
        fields: those of its JSON (`sample_json`).
        read: gives a member's bytes.
        where: how a message names the shard.
        wanted: an extension, or `json.FIELD`; by default `.txt`, else the field `caption` or `text` of the JSON.

    Raises:
        UserError: not UTF-8, or a field that is neither a string nor a list of strings.
    """
    field = wanted.removeprefix("json.") if wanted and wanted.startswith("json.") else ""
    if not field:
        for name in (wanted,) if wanted else TEXT_EXTENSIONS:
            if member := sample.members.get(name):
                return [_text(read(member), f"{where}: {member.name}")]
        if wanted:
            return None
    for name in (field,) if field else TEXT_FIELDS:
        if fields.get(name) is not None:
            value = fields[name]
            texts = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) for text in texts):
                raise UserError(
                    f"{where}: sample {sample.key}: JSON field {name!r} is neither a string nor a list of strings"
                )
            return texts
    return None


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start})") from None
