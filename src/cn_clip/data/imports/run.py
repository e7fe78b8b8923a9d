"""cn-clip data import SOURCE --out DIR [--splits train=0.8,valid=0.1,test=0.1] [--max-side 512]

Pictures with captions in any usual layout -> {split}_imgs.tsv and {split}_texts.jsonl, with a report of all that
was skipped. Started again after an interruption it goes on, and the files come out the same byte for byte.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cn_clip.data.imports.detect import Layout, find_source
from cn_clip.data.imports.guess import choose_columns
from cn_clip.data.imports.items import Mapper
from cn_clip.data.imports.layouts import read_labels
from cn_clip.data.imports.prepare import Storing
from cn_clip.data.imports.rows import Columns, file_print
from cn_clip.data.imports.splits import SplitBy, Splitter
from cn_clip.data.imports.state import State
from cn_clip.data.imports.write import REPORT, Importer, finish, splits_of
from cn_clip.errors import UserError
from cn_clip.parallel import threads_or_default

_VERSION = 1  # of the state: another version's is not gone on with


def import_data(
    source: Path,
    /,
    out: Path,
    layout: Layout = "auto",
    images: Path | None = None,
    image_column: str = "",
    text_columns: str = "",
    image_id_column: str = "",
    text_id_column: str = "",
    split_column: str = "",
    group_column: str = "",
    splits: str = "",
    split_by: SplitBy | None = None,
    seed: int = 0,
    template: str = "{}",
    label_file: Path | None = None,
    encoding: str = "auto",
    max_side: int | None = None,
    quality: int | None = None,
    no_verify: bool = False,
    workers: int = 0,
    strict: bool = False,
    overwrite: bool = False,
) -> int:
    """Turn pictures with captions into {split}_imgs.tsv and {split}_texts.jsonl; goes on where it was stopped.

    Args:
        source: a .csv, .tsv, .jsonl, .parquet or .tar file, a pattern of such files, or a folder: of them, of
            class folders, of Hugging Face's save_to_disk, of COCO-CN or of Flickr30K-CN.
        out: the folder to write to.
        layout: the source's; auto tells it from the names of its files.
        images: the folder that relative picture paths start from; by default that of the source.
        image_column: the column of picture paths or bytes; guessed, and shown, where it is not given.
        text_columns: the columns of captions, separated by commas; guessed where not given.
        image_id_column: the column of image ids; guessed. Without one images are numbered.
        text_id_column: the column of text ids; guessed. Without one captions are numbered.
        split_column: the column that names each row's split; guessed.
        group_column: a column whose equal values stay in one split (implies --split-by group).
        splits: shares to split by (train=0.8,valid=0.1,test=0.1), or the names of the source's own splits to take
            (train,valid); by default all of its own, and train for what has none.
        split_by: what decides the split when shares are given: the image (its bytes; the default), the text, or
            the group.
        seed: another one draws other splits.
        template: a sentence that each caption is put into, at {}: 一张{}的照片.
        label_file: labels of classes: one a line, NAME<tab>LABEL lines, or JSON.
        encoding: of CSV and TSV; auto tells UTF-8 from GB18030.
        max_side: larger pictures are made smaller, to this many pixels on their longer side.
        quality: JPEG and lossy WebP pictures are written anew at this quality (1 to 100) where that makes them
            smaller.
        no_verify: read only the headers of pictures, and do not decode them.
        workers: threads; by default one a core.
        strict: exit status 1 when anything was skipped.
        overwrite: replace an earlier import in the folder.
    """
    found = find_source(source, layout, images, label_file, encoding)
    splitter = _splitter(splits, split_by, seed, group_column)
    storing = _storing(max_side, quality, not no_verify)._replace(digest=bool(splitter.weights))
    if "{}" not in template:
        raise UserError(f"--template {template!r}: expected {{}} where the caption goes, such as 一张{{}}的照片")
    texts = tuple(name.strip() for name in text_columns.split(",") if name.strip())
    given = (image_id_column, text_id_column, split_column, group_column)
    columns, lines = choose_columns(found, Columns(image_column, texts, *(name or None for name in given)))
    print(f"{source}: layout {found.layout}, {len(found.parts)} {'part' if len(found.parts) == 1 else 'parts'}")
    print("".join(f"  {line}\n" for line in lines), end="")
    options: dict[str, Any] = {
        "source": str(source.absolute()),
        "layout": found.layout,
        "images": str(found.images.absolute()),
        "columns": [list(value) if isinstance(value, tuple) else value for value in columns],
        "splits": splits,
        "split-by": splitter.by,
        "seed": seed,
        "template": template,
        "label-file": file_print(label_file) if label_file else None,
        "encoding": encoding,
        "max-side": max_side,
        "quality": quality,
        "no-verify": no_verify,
    }
    job = {"version": _VERSION, "options": options, "files": [part.fingerprint() for part in found.parts]}
    old = _finished(out)
    if old and old.get("job") == _digest(job) and not overwrite and not (out / ".import").exists():
        print(f"{out}: this import is finished; --overwrite does it again")
        print(_table(old))
        return int(strict and bool(old["skipped"]))
    state = _state(out, job, overwrite)
    try:
        labels = read_labels(label_file) if label_file else ([], {})
        mapper = Mapper(found, columns, splitter, template, labels)
        Importer(found, mapper, splitter, storing, state, threads_or_default(workers)).run()
        summary = _summary(state, source, splitter, _digest(job))
        if overwrite and old:
            _remove_splits(out, set(old["splits"]) - set(summary["splits"]))
        finish(state, out, summary)
    except (OSError, sqlite3.OperationalError) as error:
        state.close()
        if full := _disk_full(error):
            raise UserError(
                f"{out}: cannot write: {full}; free some space and run the same command again: it goes on"
            ) from error
        raise
    except BaseException:
        state.close()
        raise
    print(_table(summary))
    if not summary["splits"]:
        raise UserError(f"{source}: nothing was imported; {out / REPORT} says why")
    print(f"next: cn-clip data build-lmdb --data-dir {out} --splits {','.join(summary['splits'])}")
    return int(strict and bool(summary["skipped"]))


def _splitter(splits: str, by: SplitBy | None, seed: int, group_column: str) -> Splitter:
    if by == "group" and not group_column:
        raise UserError("--split-by group needs --group-column: the column whose equal values stay in one split")
    if group_column and by not in (None, "group"):
        raise UserError(f"--group-column contradicts --split-by {by}")
    splitter = Splitter(splits, by or ("group" if group_column else "image"), seed)
    if not splitter.weights and (by or group_column):
        raise UserError("--split-by and --group-column need shares to split by: --splits train=0.9,valid=0.1")
    return splitter


def _storing(max_side: int | None, quality: int | None, verify: bool) -> Storing:
    if max_side is not None and max_side < 1:
        raise UserError(f"--max-side {max_side}: expected a number of pixels above 0")
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f"--quality {quality}: expected 1 to 100")
    return Storing(max_side, quality, verify)


def _state(out: Path, job: dict[str, Any], overwrite: bool) -> State:
    """The state to go on with, or a new one.

    Raises:
        UserError: there are files of another import, or an unfinished import of something else.
    """
    folder = out / ".import"
    begun = folder.exists()
    if not begun and not overwrite:
        for path in sorted([*out.glob("*_imgs.tsv"), *out.glob("*_texts.jsonl")]):
            raise UserError(
                f"{path}: there is a dataset already; choose another --out, or replace it with --overwrite"
            )
    state = State(folder)
    old = state.get("job")
    if old is not None and old != job:
        if not overwrite:
            difference = _difference(old, job)
            state.close()
            raise UserError(
                f"{folder}: an unfinished import of something else: {difference}; "
                "give what was given then, or start anew with --overwrite"
            )
        state.remove()
        state = State(folder)
        old = None
    if old is None:
        state.set("job", job)
        state.commit(0, 0)
    elif state.part or state.row:
        print(f"{folder}: going on with an unfinished import, after {_images(state)} images")
    return state


def _images(state: State) -> int:
    """The images of all splits so far."""
    return sum(state.counts[f"{split} images"] for split in splits_of(state))


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    if old.get("version") != new["version"]:
        return "it was begun by another version of this program"
    for name, value in new["options"].items():
        if old["options"].get(name) != value:
            return f"{name} was {old['options'].get(name)!r}, and is {value!r}"
    for before, after in zip(old["files"], new["files"], strict=False):
        if before != after:
            return f"{after[0]} has changed since"
    return f"the source had {len(old['files'])} files, and has {len(new['files'])}"


def _disk_full(error: OSError | sqlite3.OperationalError) -> str:
    if isinstance(error, sqlite3.OperationalError):
        return "the disk is full" if "full" in str(error) or "disk I/O" in str(error) else ""
    reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
    return reasons.get(error.errno or 0) or ("the file is too large" if error.errno == errno.EFBIG else "")


def _digest(job: dict[str, Any]) -> str:
    return blake2b(json.dumps(job, sort_keys=True).encode(), digest_size=16).hexdigest()


def _finished(out: Path) -> dict[str, Any] | None:
    """The summary of a finished import in a folder."""
    try:
        with open(out / REPORT, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 20)))
            summary = json.loads(file.read().splitlines()[-1])["summary"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return summary if isinstance(summary, dict) and isinstance(summary.get("splits"), dict) else None


def _remove_splits(out: Path, splits: set[str]) -> None:
    for split in splits:
        for name in (f"{split}_imgs.tsv", f"{split}_texts.jsonl"):
            if Path(name).name == name:
                (out / name).unlink(missing_ok=True)


def _summary(state: State, source: Path, splitter: Splitter, job: str) -> dict[str, Any]:
    counts = state.counts

    def of(prefix: str) -> dict[str, int]:
        return {k.removeprefix(prefix): n for k, n in sorted(counts.items()) if k.startswith(prefix)}

    notes = [f"{name}: no image fell into it" for name in splitter.weights if not counts[f"{name} images"]]
    if counts["not in --splits"]:
        notes.append(f"{counts['not in --splits']} rows of splits that --splits does not name")
    return {
        "source": str(source),
        "splits": {
            split: {what: counts[f"{split} {what}"] for what in ("images", "texts", "pairs")}
            for split in splits_of(state)
        },
        "skipped": of("skipped: "),
        "changed": of("changed: "),
        "notes": notes,
        "job": job,
    }


def _table(summary: dict[str, Any]) -> str:
    width = max([5, *map(len, summary["splits"])])
    lines = [f"{'split':{width}}    images     texts     pairs"]
    for split, counts in summary["splits"].items():
        lines.append(f"{split:{width}}" + "".join(f"{counts[what]:10}" for what in ("images", "texts", "pairs")))
    lines += [f"skipped, {reason}: {count}" for reason, count in summary["skipped"].items()]
    lines += [f"{change}: {count} images" for change, count in summary["changed"].items()]
    lines += [f"note: {note}" for note in summary["notes"]]
    return "\n".join(lines)
