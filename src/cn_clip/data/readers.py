"""One interface to the images and pairs of a split, whatever it is stored in: `open_split`, `open_images`.

    split = open_split("shards/train-{000000..000009}.tar")
    image_id, text_id, text = split.pairs[7]
    content = split.images[image_id]

A path is an LMDB (a split's folder), `DIR/train` for `train_imgs.tsv` and `train_texts.jsonl`, WebDataset shards
(a folder, a file, or a pattern with {000..009} or *), or Parquet files (likewise). `?image=…&text=…&image_id=…&
text_id=…` after it names members or columns where their names cannot be guessed.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from cn_clip.data.blobs import file_state
from cn_clip.data.formats import Id, PathLike, read_texts
from cn_clip.data.lmdb import LmdbDataset, LmdbImages, Pair
from cn_clip.data.parquet import open_parquet
from cn_clip.data.samples import SampleImages, SampleSplit
from cn_clip.data.tars import open_shards
from cn_clip.data.tsv import TsvImages, TsvSplit
from cn_clip.errors import UserError
from cn_clip.seeding import stable_hash

OPTIONS = ("image", "text", "image_id", "text_id")
ACCEPTED = (
    "expected an LMDB split (written by cn-clip data build-lmdb), DIR/train for the files DIR/train_imgs.tsv and "
    "DIR/train_texts.jsonl, WebDataset shards (a folder, 'shards/train-{000..009}.tar', 'shards/*.tar'), "
    "or Parquet files (likewise)"
)
_TARS, _GZIPPED, _PARQUET = (".tar",), (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"), (".parquet",)
_SHARD = re.compile(r"^(.*?)[-_.]?\d+(-of-\d+)?$")


class ImageReader(Protocol):
    """Images by id. It may be pickled, used after a fork, and in many threads."""

    num_images: int

    def __len__(self) -> int: ...

    def __contains__(self, image_id: Id) -> bool: ...

    def __getitem__(self, image_id: Id) -> bytes:
        """The content of an image's file; UserError: there is none, or it cannot be read."""

    def ids(self) -> list[Id]:
        """All ids in their order: that of keys in an LMDB, of files elsewhere."""

    def where(self, image_id: Id) -> str:
        """How a message names an image."""


class PairReader(Protocol):
    """(image_id, text_id, text) by number; as `ImageReader`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...

    def __iter__(self) -> Iterator[Pair]: ...


class SplitReader(Protocol):
    """A split's images and pairs; `kind` is LMDB, TSV, WebDataset or Parquet."""

    @property
    def kind(self) -> str: ...

    @property
    def images(self) -> ImageReader: ...

    @property
    def pairs(self) -> PairReader: ...


def open_split(path: PathLike) -> SplitReader:
    """The images and pairs of a split, chosen by what the path is (see the head of this module).

    Raises:
        UserError: no such data, or not as its format wants it; one line that names the file.
        MissingExtra: Parquet without pyarrow.
    """
    source = find_source(path)
    if source.kind == "LMDB":
        return LmdbDataset(source.files[0])
    if source.kind == "TSV":
        return TsvSplit(*source.files)
    return SampleSplit(str(path), source.kind, _samples(source))


def open_images(path: PathLike) -> ImageReader:
    """The images of a split; captions need not be there. An LMDB may also be its folder `imgs`.

    Raises:
        UserError, MissingExtra: as `open_split`.
    """
    plain = Path(path)
    if (plain / "data.mdb").is_file():
        return LmdbImages(plain)
    if plain.name.endswith("_imgs.tsv") and plain.is_file():
        return TsvImages(plain)
    source = find_source(path)
    if source.kind == "LMDB":
        return LmdbImages(source.files[0] / "imgs")
    return TsvImages(source.files[0]) if source.kind == "TSV" else _samples(source)


def read_captions(path: PathLike) -> Iterator[tuple[Id, str]]:
    """(text_id, text) of a texts file (`.jsonl`), or of a split's pairs, each text id once, in its order.

    Raises:
        UserError: as `open_split`; a wrong line, or one text id for two texts.
    """
    source = None if str(path).endswith(".jsonl") else find_source(path)
    if source is None or source.kind == "TSV":
        texts = Path(path) if source is None else source.files[1]
        yield from ((text.text_id, text.text) for text in read_texts(texts, need_image_ids=False))
        return
    seen: dict[Id, int] = {}
    for _, text_id, text in open_split(path).pairs:
        key = stable_hash(text)
        if (known := seen.get(text_id)) is None:
            seen[text_id] = key
            yield text_id, text
        elif known != key:
            raise UserError(f"{path}: the text id {text_id!r} stands for two texts; the second is {text[:40]!r}")


class Source(NamedTuple):
    """What a path stands for: LMDB (the split's folder), TSV (its two files), WebDataset or Parquet (files)."""

    kind: str
    path: str
    files: list[Path]
    options: dict[str, str]


def find_source(path: PathLike) -> Source:
    """Say what a path stands for.

    Raises:
        UserError: nothing that can be read; says what is accepted, and what was found.
    """
    text, options = _split_options(str(path))
    plain = Path(text)
    if (plain / "imgs").is_dir() or (plain / "pairs").is_dir():
        return _plain(Source("LMDB", text, [plain], options))
    if (pair := _tsv(plain)) is not None:
        return _plain(Source("TSV", text, pair, options))
    files = _expand(text)
    if plain.is_dir():
        files = sorted(file for file in plain.iterdir() if _is(file, _TARS + _GZIPPED + _PARQUET))
        _one_split(plain, files)
    elif not files:  # DIR/train, for DIR/train-00000-of-00002.parquet and the like
        beside = (file for file in sorted(plain.parent.glob("*")) if _is(file, _TARS + _PARQUET))
        files = [file for file in beside if _split_name(file) == plain.name]
    kinds = {"Parquet" if _is(file, _PARQUET) else "WebDataset" for file in files}
    strange = [file for file in files if not _is(file, _TARS + _GZIPPED + _PARQUET)]
    if strange or len(kinds) != 1:
        raise UserError(f"{text}: {_found(plain, files, kinds, strange)}; {ACCEPTED}")
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file")
        if _is(file, _GZIPPED):
            raise UserError(
                f"{file}: a compressed tar, whose members cannot be read one by one; decompress it to a "
                "plain .tar (pictures hardly shrink)"
            )
    return Source(kinds.pop(), text, files, options)


def _samples(source: Source) -> SampleImages:
    files = [file_state(file) for file in source.files]
    reader = open_shards if source.kind == "WebDataset" else open_parquet
    images = reader(source.path, files, source.options)
    if len(images) == 0:
        raise UserError(f"{source.path}: no samples in {len(files)} file{'s' * (len(files) > 1)}")
    return images


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    match = re.fullmatch(r"(.*?)\?(\w+=[^?]*)", text, re.S)
    if match is None or Path(text).exists():
        return text, {}
    options = {}
    for item in match[2].split("&"):
        name, equals, value = item.partition("=")
        if name not in OPTIONS or not equals or not value:
            raise UserError(f"{text}: {item!r} after ?; expected NAME=VALUE, NAME one of {', '.join(OPTIONS)}")
        options[name] = value
    return match[1], options


def _plain(source: Source) -> Source:
    if source.options:
        name = next(iter(source.options))
        raise UserError(f"{source.path}: {source.kind} data have no columns to name: leave ?{name}= out")
    return source


def _tsv(path: Path) -> list[Path] | None:
    """The two files of a split, if `path` is their split, or one of them."""
    split = path.name.removesuffix("_imgs.tsv").removesuffix("_texts.jsonl")
    pair = [path.with_name(f"{split}_imgs.tsv"), path.with_name(f"{split}_texts.jsonl")]
    missing = [file for file in pair if not file.is_file()]
    if len(missing) == 2 or path.is_dir():
        return None
    if missing:
        other = pair[1] if missing[0] == pair[0] else pair[0]
        raise UserError(f"{missing[0]}: no such file, which {other.name} needs beside it")
    return pair


def _expand(text: str) -> list[Path]:
    """The files of a pattern: braces in their order, then * ? [] sorted; a plain path is itself if it is there."""
    files: list[Path] = []
    for name in braces(text):
        if Path(name).exists() or not glob.has_magic(name):
            files.append(Path(name))
        else:
            files += [Path(found) for found in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207
    if files == [Path(text)] and not files[0].is_file():
        return []
    if len(set(files)) < len(files):
        raise UserError(f"{text}: names a file twice")
    return files


def braces(text: str) -> list[str]:
    """`a{1..3}b` -> a1b, a2b, a3b, and `{x,y}` -> x, y, as shells do; leading zeros keep the width."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        first, last = int(found[1]), int(found[2])
        padded = any(len(bound) > 1 and bound.startswith("0") for bound in found.groups())
        width = max(map(len, found.groups())) if padded else 0
        step = 1 if first <= last else -1
        items = [str(number).zfill(width) for number in range(first, last + step, step)]
    elif "," in match[1]:
        items = match[1].split(",")
    else:
        return [text[: match.end()] + rest for rest in braces(text[match.end() :])]
    heads = [text[: match.start()] + item for item in items]
    return [head + tail for head, tail in itertools.product(heads, braces(text[match.end() :]))]


def _is(file: Path, ends: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(ends) and not file.name.startswith(".")


def _split_name(file: Path) -> str:
    """`train` of train-000000.tar or train-00000-of-00002.parquet; a name without a number is itself."""
    stem = file.name.rsplit(".", 1)[0]
    match = _SHARD.match(stem)
    return match[1] if match else stem


def _one_split(folder: Path, files: list[Path]) -> None:
    names = sorted({_split_name(file) for file in files})
    if len(names) > 1 and {"train", "test", "valid", "val", "validation"} & set(names):
        raise UserError(
            f"{folder}: holds the splits {', '.join(names)}; name one, such as {folder / names[-1]}, or a pattern"
        )


def _found(path: Path, files: list[Path], kinds: set[str], strange: list[Path]) -> str:
    if strange:
        return f"{strange[0].name} is neither a .tar nor a .parquet file"
    if len(kinds) > 1:
        return "both .tar and .parquet files"
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        shown = ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")
        return f"a folder of {shown}" if names else "an empty folder"
    return "no file matches" if glob.has_magic(str(path)) else "no such folder or file"
