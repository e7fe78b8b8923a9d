"""`cn-clip data dedup`: copies of pictures within and across the splits of a dataset, and a dataset without them.

cn-clip data dedup DIR --by phash                       # only a report: duplicates.jsonl, duplicates.html
cn-clip data dedup DIR --by phash --out DIR_CLEAN       # and a new dataset without the copies
cn-clip data dedup DIR --by embedding --model ViT-B-16  # copies by what they show

Memory: about 0.5 KB a picture, and by embedding its vector. DIR is never changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from cn_clip.data.check import choose_splits, find_splits
from cn_clip.data.duplicates import Copy, Keep, Pictures, UnitPairs, find_copies, fingerprints_of, scan
from cn_clip.data.duplicates_page import write_groups, write_page
from cn_clip.data.formats import decode_base64, parse_ids, parse_image, read_lines
from cn_clip.data.hamming import near_pairs
from cn_clip.data.phash import fingerprint, tiny_difference
from cn_clip.data.prune import Removed, check_out, write_pruned
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from cn_clip.html_page import table
from cn_clip.inputs import Vectors
from cn_clip.parallel import threads_or_default
from cn_clip.progress import progress

THRESHOLDS = {"phash": 6.0, "embedding": 0.97}
COLOUR = 24
_ROWS, _COLUMNS = 1024, 8192  # of a block of products


def dedup(
    data_dir: Path,
    /,
    by: Literal["content", "phash", "embedding"] = "phash",
    splits: str = "",
    threshold: float | None = None,
    colour: int = COLOUR,
    across_only: bool = False,
    priority: str = "",
    keep: Keep = "largest",
    out: Path | None = None,
    report: Path = Path("duplicates"),
    shown: int = 100,
    model: str = "emoji-tiny",
    device: str = "auto",
    batch_size: int = 64,
    threads: int = 0,
) -> None:
    """Find pictures that are copies of others, within and across splits; with --out write a dataset without them.

    A copy goes where one that is near to it stays: the one of the split of higher priority, then the better one
    (--keep). Within a split the one that stays gets the texts of those that go; a copy of a picture of another
    split goes with its texts, so that a test set stays unseen. Files of equal bytes are copies whatever --by says.

    Args:
        data_dir: the folder of {split}_imgs.tsv and {split}_texts.jsonl; it is never changed.
        by: content (equal bytes), phash (looks the same: other encodings, sizes, slight changes of colour), or
            embedding (shows the same, by a model).
        splits: names of splits, separated by commas; all that are found by default.
        threshold: phash: bits of 64 that may differ (6); embedding: the least cosine (0.97).
        colour: phash: how far any colour of the pictures at 8 by 8 pixels may differ, of 255.
        across_only: leave copies within a split alone.
        priority: splits, those that keep their pictures first; by default test, other splits, valid, train.
        keep: of a split's copies keep the largest (pixels, then bytes), or the first.
        out: a new folder for the dataset without the copies.
        report: the report is REPORT.jsonl (all groups) and REPORT.html (pictures side by side).
        shown: groups on the page.
        model: for embedding: a checkpoint file, or a model's name.
        device: for embedding: auto takes a GPU where there is one.
        batch_size: for embedding: pictures encoded at a time.
        threads: threads that decode images; by default one a core.
    """
    names = by_priority(choose_splits(data_dir, splits), priority)
    limit = _limit(by, threshold)
    if out is not None:
        check_out(data_dir, out)
    encoder = Encoder.load(model, device=device) if by == "embedding" else None
    found = scan(data_dir, names, threads_or_default(threads), fingerprint if by == "phash" else None)
    pairs: UnitPairs = []
    how = "equal bytes"
    if by == "phash":
        pairs = phash_pairs(found, int(limit), colour)
        how = f"phash, {limit:g} of 64 bits, colour {colour} of 255"
    elif encoder is not None:
        pairs = cosine_pairs(embed(found, data_dir, encoder, batch_size), limit)
        how = f"embedding by {model}, cosine {limit:g}"
    groups = find_copies(found, found.order(keep), pairs, across_only)
    rows = counts(found, groups)
    head = ["split", "images", "unreadable", "copies", *(f"of {name}" for name in names)]
    width = max(map(len, (*head, *names))) + 2
    print(
        "\n".join(f"{row[0]:{width}}" + "".join(f"{cell:>{width}}" for cell in row[1:]) for row in [head, *rows])
    )
    print(f"{len(groups)} groups, {sum(map(len, groups.values()))} copies ({how})")
    jsonl, page = (report.with_name(f"{report.name}{end}") for end in (".jsonl", ".html"))
    as_text = any(type(image_id) is str for image_id in parse_ids(found.image_id))
    write_groups(jsonl, found, groups, as_text)
    write_page(page, data_dir, found, groups, f"{data_dir.name}: {how}", table(head, rows), shown)
    print(f"the report: {jsonl}, {page}")
    if out is not None:
        others = [split for split in find_splits(data_dir) if split not in names]
        lost = write_pruned(data_dir, out, left_out(found, groups), others)
        print(_said(out, lost))


def by_priority(splits: Sequence[str], priority: str) -> list[str]:
    """Splits in the order in which they keep their pictures: those named, then test, others, validation, training.

    Raises:
        UserError: a split is named that is not there.
    """
    named = [name.strip() for name in priority.split(",") if name.strip()]
    unknown = [name for name in named if name not in splits]
    if unknown:
        raise UserError(f"--priority: no split {unknown[0]!r} among {', '.join(splits)}")
    usual = {"test": 0, "valid": 2, "val": 2, "train": 3}
    rest = sorted((name for name in splits if name not in named), key=lambda name: (usual.get(name, 1), name))
    return [*dict.fromkeys(named), *rest]


def phash_pairs(found: Pictures, radius: int, colour: int) -> UnitPairs:
    """Units whose hashes are within `radius` bits and whose tiny copies nowhere differ by more than `colour`.

    Plain pictures have no hash, and are no pairs.
    """
    hashes, tiny = fingerprints_of(found.more)
    units = np.flatnonzero(hashes)
    for left, right, distance in near_pairs(hashes[units], radius):
        a, b = units[left], units[right]
        same = tiny_difference(tiny[a], tiny[b]) <= colour
        yield a[same], b[same], distance[same]


def embed(found: Pictures, data_dir: Path, encoder: Encoder, batch_size: int) -> Vectors:
    """Unit vectors float32 [units, width] of what the pictures show."""
    first = {(found.split[i], found.line[i]) for i in found.first}

    def files() -> Iterator[partial[bytes]]:
        for number, split in enumerate(found.splits):
            tsv = data_dir / f"{split}_imgs.tsv"
            for line, row in _rows_at(tsv, {line for s, line in first if s == number}):
                yield partial(decode_base64, row, f"{tsv}:{line}")

    batches = encoder.image_vectors(files(), batch_size)
    vectors = np.empty((len(found.first), encoder.width), np.float32)
    done = 0
    with progress(total=len(vectors), desc="encode", unit=" images") as bar:
        for batch in batches:
            vectors[done : done + len(batch)] = batch
            done += len(batch)
            bar.update(len(batch))
    return vectors


def _rows_at(tsv: Path, lines: set[int]) -> Iterator[tuple[int, bytes]]:
    for number, line in read_lines(tsv):
        if number in lines:
            yield number, parse_image(line, f"{tsv}:{number}").base64


def cosine_pairs(vectors: Vectors, least: float) -> UnitPairs:
    """Pairs of unit vectors with a cosine of at least `least`, each once; the distance is 1 - cosine."""
    with progress(total=len(vectors), desc="compare", unit=" images") as bar:
        for top in range(0, len(vectors), _ROWS):
            block = vectors[top : top + _ROWS]
            for start in range(top, len(vectors), _COLUMNS):
                cosine = block @ vectors[start : start + _COLUMNS].T
                left, right = np.nonzero(cosine >= least)
                upper = left + top < right + start
                left, right = left[upper], right[upper]
                distance = np.maximum(0, 1 - cosine[left, right].astype(np.float64))
                yield left + top, right + start, distance
            bar.update(len(block))


def counts(found: Pictures, groups: Mapping[int, Sequence[Copy]]) -> list[list[str]]:
    """Rows of the table: split, its pictures, lines without one, its copies, and in which splits theirs stay."""
    images = Counter(found.split)
    copies: Counter[tuple[int, int]] = Counter()
    for kept, group in groups.items():
        copies.update((found.split[copy.picture], found.split[kept]) for copy in group)
    rows = []
    for number, name in enumerate(found.splits):
        of = [copies[number, other] for other in range(len(found.splits))]
        rows.append([name, *map(str, (images[number], found.unreadable[name], sum(of), *of))])
    return rows


def left_out(found: Pictures, groups: Mapping[int, Sequence[Copy]]) -> dict[str, dict[str, str | None]]:
    """Split -> the id of each of its copies -> the id that takes its texts: None when that is of another split."""
    result: dict[str, dict[str, str | None]] = {split: {} for split in found.splits}
    for kept, group in groups.items():
        for copy in group:
            same = found.split[copy.picture] == found.split[kept]
            split = found.splits[found.split[copy.picture]]
            result[split][found.image_id[copy.picture]] = found.image_id[kept] if same else None
    return result


def _limit(by: str, threshold: float | None) -> float:
    limit = THRESHOLDS.get(by, 0.0) if threshold is None else threshold
    if by == "content" and threshold is not None:
        raise UserError("--threshold: equal bytes need none; it is for --by phash and --by embedding")
    if by == "phash" and not (0 <= limit <= 16 and limit == int(limit)):
        raise UserError(f"--threshold {limit:g}: bits that may differ are a whole number from 0 to 16")
    if by == "embedding" and not 0 < limit <= 1:
        raise UserError(f"--threshold {limit:g}: the least cosine is above 0 and at most 1")
    return limit


def _said(out: Path, lost: Mapping[str, Removed]) -> str:
    lines = [
        f"  {split}: {gone.images} images, {gone.texts} texts left without image, {gone.repeated} repeated texts"
        for split, gone in lost.items()
        if any(gone)
    ]
    return "\n".join([f"{out}: written without", *(lines or ["  anything: there is no copy"])])
