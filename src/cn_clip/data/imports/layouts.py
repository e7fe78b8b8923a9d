"""Layouts whose columns are known: one folder a class, and the annotations of COCO-CN and of Flickr30K-CN."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cn_clip.data.formats import read_lines
from cn_clip.data.imports.rows import (
    SPLITS,
    Columns,
    Part,
    Problem,
    Row,
    Source,
    file_print,
    image_files,
    is_image_name,
)
from cn_clip.errors import UserError

FOLDER_COLUMNS = Columns("image", ("label",))
ANNOTATION_COLUMNS = Columns("image", ("text",), image_id="image_id", split="split")
COCO_LISTS = {"train": "coco-cn_train.txt", "valid": "coco-cn_val.txt", "test": "coco-cn_test.txt"}
COCO_CAPTIONS = "imageid.human-written-caption.txt"
_LINE = re.compile(r"([^\s#]+)(?:#[A-Za-z]+)?(?:#\d+)?[\t ]\s*(.*)")
_POS = re.compile(r":[A-Za-z]+\d*$")


class ClassFolder:
    """The pictures in a folder below `root`, and those below it, all of one class."""

    def __init__(self, path: Path, root: Path, split: str, label: str) -> None:
        self.path, self.root, self.split, self.label, self.name = path, root, split, label, str(path)

    def rows(self, start: int) -> Iterator[Row]:
        """One row a picture, sorted by name."""
        folder = self.path.relative_to(self.root)
        for name in image_files(self.path, deep=True)[start:]:
            cells = {"image": str(folder / name), "class": folder.name, "label": self.label}
            yield Row(str(self.path / name), cells)

    def total(self) -> int | None:
        """Its pictures."""
        return len(image_files(self.path, deep=True))

    def fingerprint(self) -> list[Any]:
        """The names of its pictures: looking at each would take as long as reading it."""
        names = image_files(self.path, deep=True)
        return [self.name, len(names), hashlib.blake2b("\0".join(names).encode(), digest_size=16).hexdigest()]


class Annotations:
    """A file of lines `IMAGE#zhb#0 caption`: the layout of COCO-CN (with a tab) and of Flickr30K-CN."""

    def __init__(self, path: Path, split: str, image: Callable[[str], str], splits: dict[str, str] | None = None):
        self.path, self.split, self.image, self.splits, self.name = path, split, image, splits, str(path)
        self.segmented = path.name.startswith("seg.") or "bosonseg" in path.name

    def rows(self, start: int) -> Iterator[Row]:
        """One row a caption."""
        for index, (number, line) in enumerate(read_lines(self.path)):
            if index < start:
                continue
            where = f"{self.path}:{number}"
            match = _LINE.fullmatch(line.decode("utf-8", "replace").strip())
            if match is None or "\ufffd" in match[2]:
                yield Row(where, {}, Problem("broken row", "expected IMAGE#N, white space and a caption in UTF-8"))
                continue
            name, text = match[1], match[2]
            split = self.split or (self.splits or {}).get(name, "")
            if not split:
                yield Row(where, {}, Problem("not in a split", f"{name} is in none of the split lists"))
                continue
            stem = name.rsplit(".", 1)[0] if is_image_name(name) else name
            digits = re.search(r"\d+$", stem)
            cells = {
                "image": self.image(name),
                "text": join_words(text) if self.segmented else text,
                "image_id": int(digits[0]) if digits and (stem.startswith("COCO_") or stem == digits[0]) else stem,
                "split": split,
            }
            yield Row(where, cells)

    def total(self) -> int | None:
        """Its lines."""
        return sum(1 for _ in read_lines(self.path))

    def fingerprint(self) -> list[Any]:
        """Its size and time, and the split lists'."""
        return [*file_print(self.path), hashlib.blake2b(repr(self.splits).encode(), digest_size=8).hexdigest()]


def join_words(text: str) -> str:
    """A sentence of segmented words, made whole: `两只:m 狗:n` -> `两只狗`; several spaces stood for a comma."""
    clauses = []
    for clause in re.split(r"\s{2,}", text.strip()):
        joined = ""
        for word in clause.split():
            word = _POS.sub("", word)
            latin = joined[-1:].isascii() and joined[-1:].isalnum() and word[:1].isascii() and word[:1].isalnum()
            joined += f" {word}" if latin else word
        clauses.append(joined)
    return "，".join(clause for clause in clauses if clause)


def class_folders(root: Path, labels: Path | None) -> Source:
    """`DIR/CLASS/*.jpg`, or `DIR/SPLIT/CLASS/*.jpg`.

    Raises:
        UserError: no class folder with pictures, or the label file does not fit.
    """
    tops = _folders(root)
    by_split = bool(tops) and all(folder.name.lower() in SPLITS for folder in tops)
    pairs = [(f, SPLITS[top.name.lower()]) for top in tops for f in _folders(top)] if by_split else []
    pairs = pairs or [(folder, "") for folder in tops]
    names = sorted({folder.name for folder, _ in pairs})
    label_of = class_labels(labels, names) if labels else {name: name for name in names}
    parts: list[Part] = []
    for folder, split in pairs:
        if folder.name not in label_of:
            raise UserError(f"{labels}: no label for the class folder {folder.name}")
        part = ClassFolder(folder, root, split, label_of[folder.name])
        if part.total():
            parts.append(part)
    if not parts:
        raise UserError(f"{root}: expected one sub-folder a class with pictures in it; found no picture")
    return Source("folders", parts, root, FOLDER_COLUMNS)


def class_labels(path: Path, names: list[str]) -> dict[str, str]:
    """Labels of class names: from JSON, from lines `NAME<tab>LABEL`, or from a label a line in the classes' order.

    Raises:
        UserError: the file cannot be read, or has not one label for each class.
    """
    labels, mapping = read_labels(path)
    if mapping:
        return mapping
    if all(name.isascii() and name.isdigit() for name in names):
        return {name: labels[int(name)] for name in names if int(name) < len(labels)}
    if len(labels) != len(names):
        raise UserError(
            f"{path}: {len(labels)} labels, but there are {len(names)} classes ({', '.join(names[:5])} …)"
        )
    return dict(zip(names, labels, strict=True))


def read_labels(path: Path) -> tuple[list[str], dict[str, str]]:
    """A label file: (labels by number, {}) or ([], labels by name).

    Raises:
        UserError: not UTF-8, not JSON of the expected kind, or empty.
    """
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".json":
            value = json.loads(text)
            if isinstance(value, dict):
                return [], {str(key): str(label) for key, label in value.items()}
            return [str(label) for label in value], {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as labels: {error}") from None
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{path}: no label in it")
    if all("\t" in line for line in lines):
        return [], {key.strip(): label.strip() for key, label in (line.split("\t", 1) for line in lines)}
    return [line.strip() for line in lines], {}


def coco_cn(folder: Path, captions: str, images: Path | None) -> Source:
    """COCO-CN: lists of picture names per split, and a file of captions; pictures flat or in train2014, val2014.

    Raises:
        UserError: a list or the captions are missing, or it is not known where the pictures are.
    """
    splits: dict[str, str] = {}
    for split, name in COCO_LISTS.items():
        if (folder / name).is_file():
            splits.update({line.decode().strip(): split for _, line in read_lines(folder / name)})
    if not splits:
        raise UserError(f"{folder}: none of COCO-CN's lists here ({', '.join(COCO_LISTS.values())})")
    if not (folder / captions).is_file():
        raise UserError(f"{folder / captions}: no such file; give a caption file of COCO-CN as the source")
    candidates = [images] if images else [folder / "images", folder, folder.parent, folder.parent / "images"]
    root = next((c for c in candidates if any((c / f"{half}2014").is_dir() for half in ("train", "val"))), None)
    nested = root is not None
    if root is None:
        root = images or next((c for c in candidates[:2] if any(c.glob("COCO_*.jpg"))), None)
    if root is None:
        raise UserError(f"{folder}: no pictures here; --images names the folder that has train2014 and val2014")

    def path(name: str) -> str:
        return f"{name.split('_')[1]}/{name}.jpg" if nested and name.count("_") > 1 else f"{name}.jpg"

    return Source("coco-cn", [Annotations(folder / captions, "", path, splits)], root, ANNOTATION_COLUMNS)


def flickr_files(folder: Path) -> dict[str, Path]:
    """The caption file of each split below a folder; people's translations are preferred to a machine's."""
    found: dict[str, tuple[tuple[int, int, str], Path]] = {}
    files = [*folder.rglob("*flickr*.caption.txt"), *folder.rglob("flickr30k_cn*.txt")]
    for path in sorted(set(files)):
        stem = path.name.removesuffix(".txt").removesuffix(".caption")
        split = next((SPLITS[end] for end in ("train", "val", "test") if stem.endswith(end)), None)
        if split:
            rank = ("zhb" in stem, path.name.startswith("seg."), str(path))
            found[split] = min(found.get(split, (rank, path)), (rank, path))
    return {split: found[split][1] for split in ("train", "valid", "test") if split in found}


def flickr30k_cn(folder: Path, images: Path | None) -> Source:
    """Flickr30K-CN: `*/TextData/seg.*train.caption.txt` and so on (or flickr30k_cna_train.txt …), a file a split.

    Raises:
        UserError: no caption file, or it is not known where the pictures are.
    """
    files = flickr_files(folder)
    if not files:
        raise UserError(f"{folder}: no caption file of Flickr30K-CN below it (such as seg.*train.caption.txt)")
    candidates = [images] if images else [folder / name for name in ("flickr30k-images", "images", "Images", ".")]
    root = next((c for c in candidates if c.is_dir() and image_files(c)), images)
    if root is None:
        raise UserError(f"{folder}: no pictures here; --images names the folder of Flickr30K's pictures")

    def path(name: str) -> str:
        return name if is_image_name(name) else f"{name}.jpg"

    parts: list[Part] = [Annotations(file, split, path) for split, file in files.items()]
    return Source("flickr30k-cn", parts, root, ANNOTATION_COLUMNS)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
