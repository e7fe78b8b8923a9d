"""A new dataset without some of another's pictures; their texts go to those that stand for them, or go, too."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cn_clip.data.formats import Id, IdType, Text, parse_text, read_lines, write_texts
from cn_clip.errors import UserError
from cn_clip.files import atomic_path


class Removed(NamedTuple):
    """What a split has lost: pictures, texts without any picture left, texts that became a repetition."""

    images: int
    texts: int
    repeated: int


def check_out(data_dir: Path, out: Path) -> None:
    """Refuse to write where something is.

    Raises:
        UserError: `out` is the dataset, or a folder with files in it.
    """
    if out.resolve() == data_dir.resolve():
        raise UserError(f"{out}: is the dataset itself, which is never changed; choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose a new or an empty folder for --out")


def write_pruned(
    data_dir: Path, out: Path, splits: Mapping[str, Mapping[str, str | None]], others: list[str]
) -> dict[str, Removed]:
    """Write `out`, whole or not at all. Files beside the splits' are not copied.

    Args:
        data_dir: the dataset, which is only read.
        out: the new one.
        splits: split -> id of each picture to leave out -> id of the picture of this split that takes its texts,
            None where there is none.
        others: splits that are copied as they are.

    Returns:
        split -> what it has lost.

    Raises:
        UserError: as `check_out`, or a broken line of texts.
    """
    check_out(data_dir, out)
    lost: dict[str, Removed] = {}
    with atomic_path(out) as folder:
        folder.mkdir()
        for split in others:
            for path in (data_dir / f"{split}_imgs.tsv", data_dir / f"{split}_texts.jsonl"):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
        for split, left_out in splits.items():
            images = _write_images(data_dir / f"{split}_imgs.tsv", folder, left_out)
            texts = data_dir / f"{split}_texts.jsonl"
            lost[split] = Removed(images, *(_write_texts(texts, folder, left_out) if texts.is_file() else (0, 0)))
    return lost


def _write_images(tsv: Path, folder: Path, left_out: Mapping[str, str | None]) -> int:
    """Lines are copied as they are."""
    removed = 0
    with open(folder / tsv.name, "wb") as file:
        for _, line in read_lines(tsv):
            if line.split(b"\t", 1)[0].decode("utf-8", "replace").strip() in left_out:
                removed += 1
            else:
                file.write(line + b"\n")
    return removed


def _write_texts(path: Path, folder: Path, left_out: Mapping[str, str | None]) -> tuple[int, int]:
    """(texts without a picture left, texts that another one already says of the same pictures)."""
    ids = IdType()
    rows: list[tuple[bool, Text]] = []
    orphans = 0
    for number, line in read_lines(path):
        text = parse_text(line, f"{path}:{number}", ids)
        changed = any(str(image_id) in left_out for image_id in text.image_ids)
        if changed:
            text = text._replace(image_ids=_stand_ins(text.image_ids, left_out))
            if not text.image_ids:
                orphans += 1
                continue
        rows.append((changed, text))
    said: set[tuple[str, frozenset[Id]]] = {_said(text) for changed, text in rows if not changed}
    kept: list[Text] = []
    for changed, text in rows:
        if changed:
            if _said(text) in said:
                continue
            said.add(_said(text))
        kept.append(text)
    write_texts(folder / path.name, kept)
    return orphans, len(rows) - len(kept)


def _stand_ins(image_ids: list[Id], left_out: Mapping[str, str | None]) -> list[Id]:
    """The ids with those left out replaced, none twice."""
    found: dict[Id, None] = {}
    for image_id in image_ids:
        key = left_out.get(str(image_id), str(image_id))
        if key is not None:
            found[int(key) if type(image_id) is int else key] = None
    return list(found)


def _said(text: Text) -> tuple[str, frozenset[Id]]:
    return text.text, frozenset(text.image_ids)
