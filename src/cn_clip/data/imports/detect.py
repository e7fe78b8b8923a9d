"""Which layout a path has: from its files' names alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cn_clip.data.imports.arrow import Parquet, hf_parts
from cn_clip.data.imports.layouts import (
    COCO_CAPTIONS,
    COCO_LISTS,
    class_folders,
    coco_cn,
    flickr30k_cn,
    flickr_files,
)
from cn_clip.data.imports.rows import Part, Source, split_of
from cn_clip.data.imports.shards import Shard
from cn_clip.data.imports.tables import CSV_SUFFIXES, JSON_SUFFIXES, Delimited, JsonLines
from cn_clip.errors import UserError

Layout = Literal["auto", "table", "folders", "hf", "parquet", "webdataset", "coco-cn", "flickr30k-cn"]
_TABLES = (*CSV_SUFFIXES, *JSON_SUFFIXES)


def find_source(
    path: Path,
    layout: Layout = "auto",
    images: Path | None = None,
    labels: Path | None = None,
    encoding: str = "auto",
) -> Source:
    """Recognise a source.

    Args:
        path: a file, a folder, or a pattern with * of files.
        layout: which layout it has; auto looks at the names of its files.
        images: the folder that relative picture paths start from; by default that of the table.
        labels: a label file, for class folders.
        encoding: of CSV and TSV; auto tells UTF-8 from GB18030.

    Raises:
        UserError: it does not exist, or has no layout that is known.
    """
    files = _matching(path)
    if images is not None and not images.is_dir():
        raise UserError(f"--images: {images}: no such folder")
    if path.is_dir():
        kind: str = _folder_layout(path) if layout == "auto" else layout
        if kind == "folders":
            return class_folders(path, labels)
        if kind == "coco-cn":
            return coco_cn(path, COCO_CAPTIONS, images)
        if kind == "flickr30k-cn":
            return flickr30k_cn(path, images)
        if kind == "hf":
            parts, names = hf_parts(path)
            return Source("hf", [*parts], images or path, names=names)
        files = _files(path, {"webdataset": (".tar",), "parquet": (".parquet",), "table": _TABLES}[kind])
        if not files:
            raise UserError(f"{path}: no file of the layout {kind} in it")
        return _of_files(kind, files, path, images, encoding)
    if layout in ("auto", "coco-cn") and all((path.parent / name).is_file() for name in COCO_LISTS.values()):
        return coco_cn(path.parent, path.name, images)
    suffix = files[0].suffix.lower()
    kind = {".tar": "webdataset", ".parquet": "parquet"}.get(suffix, "table" if suffix in _TABLES else "")
    if not kind or layout not in ("auto", kind):
        expected = "a .csv, .tsv, .jsonl, .parquet or .tar file, or a folder"
        raise UserError(f"{files[0]}: expected {expected if layout == 'auto' else f'the layout {layout}'}")
    return _of_files(kind, files, files[0].parent, images, encoding)


def _of_files(kind: str, files: list[Path], root: Path, images: Path | None, encoding: str) -> Source:
    parts: list[Part] = []
    names: dict[str, list[str]] = {}
    order = {"train": 0, "valid": 1, "test": 2}
    for file in sorted(files, key=lambda file: (order.get(split_of(file, root), 3), file)):
        split = split_of(file, root)
        if kind == "webdataset":
            parts.append(Shard(file, split))
        elif kind == "parquet":
            parts.append(Parquet(file, split))
        else:
            json = file.suffix.lower() in JSON_SUFFIXES
            parts.append(JsonLines(file, split) if json else Delimited(file, split, encoding))
    if isinstance(parts[0], Parquet):
        names = parts[0].names()
    if len(parts) == 1 and kind == "table":
        parts[0].split = ""  # train.csv alone: its name decides nothing
    return Source(kind, parts, images or root, names=names)


def _folder_layout(path: Path) -> str:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "hf"
    if any((path / name).is_file() for name in COCO_LISTS.values()):
        return "coco-cn"
    if flickr_files(path):
        return "flickr30k-cn"
    for layout, suffixes in (("webdataset", (".tar",)), ("parquet", (".parquet",)), ("table", _TABLES)):
        if _files(path, suffixes):
            return layout
    if any(child.is_dir() for child in path.iterdir()):
        return "folders"
    raise UserError(
        f"{path}: no known layout: expected a table of captions (.csv, .tsv, .jsonl, .parquet), .tar shards, one "
        "sub-folder a class, a folder of Hugging Face's datasets, COCO-CN or Flickr30K-CN"
    )


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files in a folder; of shards and Parquet files those one folder below it, too."""
    found = [file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file()]
    if not found and suffixes != _TABLES:
        found = [file for file in folder.glob("*/*") if file.suffix.lower() in suffixes and file.is_file()]
    named = [
        file for file in found if not file.name.startswith(".") and file.stem.lower() not in ("readme", "license")
    ]
    return sorted(named)


def _matching(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    if any(mark in path.name for mark in "*?["):
        found = sorted(file for file in path.parent.glob(path.name) if file.is_file())
        if found:
            if len({file.suffix.lower() for file in found}) > 1:
                raise UserError(f"{path}: matches files of several kinds: {found[0].name}, {found[-1].name}")
            return found
        raise UserError(f"{path}: no file matches")
    raise UserError(f"{path}: no such file or folder")
