"""The numbers of `data stats`: read every line, decode every picture, count.

Memory: per picture its id, a digest and the sizes; per distinct text a hash.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cn_clip.data.pictures import look_at
from cn_clip.data.text_stats import TextStats, text_stats

GROUPS = 20  # groups of equal files that are listed
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


class PictureStats:
    """Counts over the pictures of a split.

    Attributes:
        images: image id -> what is needed of it later: its place among the readable ones, -1 when it is not.
        repeated_ids: lines whose id an earlier line has already.
        problems: kind -> count of lines that hold no readable picture.
        examples: the message of the first of each kind.
        width: of each readable picture, as are `height` and `size`, its bytes.
        formats: Pillow's name of the file format -> count.
        modes: Pillow's name of the pixel format -> count.
        unusual: animated, 16-bit, CMYK, … -> count.
    """

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.repeated_ids = 0
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.width, self.height, self.size = array("L"), array("L"), array("L")
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.unusual: Counter[str] = Counter()

    def readable(self) -> list[str]:
        """Ids of the pictures that can be decoded, in the order of `width`."""
        return [image_id for image_id, place in self.images.items() if place >= 0]


class Stats(NamedTuple):
    """A dataset: its splits, and the groups of equal files, the largest first, as (split, id)."""

    pictures: dict[str, PictureStats]
    texts: dict[str, TextStats]
    groups: list[list[tuple[str, str]]]


def gather(data_dir: Path, splits: Iterable[str], context_length: int, threads: int) -> Stats:
    """Read some splits; a missing file counts as an empty one."""
    pictures, texts = {}, {}
    first: dict[bytes, tuple[str, str]] = {}
    copies: dict[bytes, list[tuple[str, str]]] = {}
    for split in splits:
        tsv, jsonl = data_dir / f"{split}_imgs.tsv", data_dir / f"{split}_texts.jsonl"
        pictures[split] = PictureStats()
        if tsv.is_file():
            for digest, image_id in _pictures(tsv, threads, pictures[split]):
                if first.setdefault(digest, (split, image_id)) != (split, image_id):
                    copies.setdefault(digest, [first[digest]]).append((split, image_id))
        texts[split] = text_stats(jsonl, context_length) if jsonl.is_file() else TextStats(context_length)
    return Stats(pictures, texts, sorted(copies.values(), key=len, reverse=True))


def _pictures(tsv: Path, threads: int, into: PictureStats) -> Iterable[tuple[bytes, str]]:
    """Count, and yield the digest and the id of every readable picture."""
    for look in look_at(tsv, threads):
        if look.image_id in into.images:
            into.repeated_ids += 1
            continue
        if look.problem:
            kind, message = look.problem
            into.problems[kind] += 1
            into.examples.setdefault(kind, message)
            if look.image_id:
                into.images[look.image_id] = -1
            continue
        into.images[look.image_id] = len(into.width)
        into.width.append(look.width)
        into.height.append(look.height)
        into.size.append(look.size)
        into.formats[look.format] += 1
        into.modes[look.mode] += 1
        if look.unusual:
            into.unusual[look.unusual] += 1
        yield look.digest, look.image_id


def summary(found: Stats, context_length: int) -> dict[str, Any]:
    """All numbers, as they are written to --json."""
    splits: dict[str, Any] = {}
    same_split: Counter[str] = Counter()
    across: Counter[str] = Counter()
    for group in found.groups:
        where = Counter(split for split, _ in group)
        for split, count in where.items():
            same_split[split] += count - 1
            across[split] += count if len(where) > 1 else 0
    for split, pictures in found.pictures.items():
        splits[split] = {
            **_of_pictures(pictures),
            "same_file_within_split": same_split[split],
            "same_file_in_other_splits": across[split],
            **_of_texts(found.texts[split], pictures),
        }
    groups = [[{"split": split, "image_id": key} for split, key in group] for group in found.groups[:GROUPS]]
    return {
        "context_length": context_length,
        "splits": splits,
        "duplicate_groups": len(found.groups),
        "largest_duplicate_groups": groups,
    }


def _of_pictures(pictures: PictureStats) -> dict[str, Any]:
    width, height, size = (np.array(column, dtype=np.int64) for column in _columns(pictures))
    return {
        "images": len(pictures.images),
        "unreadable": sum(pictures.problems.values()),
        "problems": dict(pictures.problems.most_common()),
        "problem_examples": pictures.examples,
        "repeated_image_ids": pictures.repeated_ids,
        "formats": dict(pictures.formats.most_common()),
        "modes": dict(pictures.modes.most_common()),
        "unusual": dict(pictures.unusual.most_common()),
        "bytes_total": int(size.sum()),
        "bytes": percentiles(size),
        "width": percentiles(width),
        "height": percentiles(height),
        "aspect": percentiles(width / np.maximum(height, 1)),
    }


def _columns(pictures: PictureStats) -> Sequence[array[int]]:
    return (pictures.width, pictures.height, pictures.size)


def _of_texts(texts: TextStats, pictures: PictureStats) -> dict[str, Any]:
    texts_per_image = Counter(texts.texts_of[key] for key in pictures.images)
    return {
        "texts": texts.texts,
        "broken_texts": texts.broken,
        "pairs": texts.pairs,
        "unlabelled_texts": texts.unlabelled,
        "images_without_text": texts_per_image[0],
        "ids_without_image": sum(key not in pictures.images for key in texts.texts_of),
        "texts_per_image": spread(texts_per_image),
        "images_per_text": spread(texts.images_per_text),
        "token_length": spread(texts.lengths),
        "truncated": texts.truncated,
        "empty_texts": texts.empty,
        "longest": [text._asdict() for text in texts.longest],
        "word_pieces": texts.pieces,
        "unknown_pieces": texts.unknown,
        "texts_with_unknown": texts.with_unknown,
        "unknown_characters": dict(texts.unknown_signs.most_common(50)),
        "repeated_texts": texts.repeated,
        "most_repeated": [{"text": text, "count": count} for text, count in texts.most_repeated],
    }


def percentiles(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """`{"p0": the least, …, "p50": the median, …, "p100": the greatest}`: values that occur; empty for none."""
    if not len(values):
        return {}
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {f"p{p}": round(float(v), 4) for p, v in zip(PERCENTILES, found, strict=True)}


def spread(counts: Mapping[int, int]) -> dict[str, Any]:
    """Mean, percentiles and the whole histogram of value -> how often."""
    values = np.array(sorted(value for value in counts if counts[value]), dtype=np.int64)
    if not len(values):
        return {}
    times = np.array([counts[int(value)] for value in values], dtype=np.int64)
    below = np.cumsum(times)
    at = [int(values[np.searchsorted(below, max(1, -(-p * int(below[-1]) // 100)))]) for p in PERCENTILES]
    return {
        "mean": round(float((values * times).sum() / below[-1]), 4),
        **{f"p{p}": value for p, value in zip(PERCENTILES, at, strict=True)},
        "histogram": {str(value): int(count) for value, count in zip(values.tolist(), times, strict=True)},
    }


ROWS: tuple[tuple[str, str], ...] = (
    ("images", "images 图片"),
    ("unreadable", "unreadable images 无法解码的图片"),
    ("texts", "texts 文本"),
    ("broken_texts", "broken lines of texts 损坏的文本行"),
    ("pairs", "pairs 图文对"),
    ("texts_per_image", "texts an image: mean / max 每图文本数：均值 / 最大"),
    ("images_per_text", "images a text: mean / max 每文图片数：均值 / 最大"),
    ("images_without_text", "images without a text 没有文本的图片"),
    ("unlabelled_texts", "texts without an image 没有图片的文本"),
    ("ids_without_image", "image ids without an image 没有对应图片的 id"),
    ("token_length", "word pieces: median / 95% / max 词元数：中位 / 95% / 最大"),
    ("truncated", "texts that are cut 被截断的文本"),
    ("texts_with_unknown", "texts with [UNK] 含 [UNK] 的文本"),
    ("repeated_texts", "repeated texts 重复的文本"),
    ("same_file_within_split", "same file within the split 划分内相同的文件"),
    ("same_file_in_other_splits", "same file in another split 其他划分里也有的文件"),
    ("size", "width × height: median 宽 × 高：中位"),
    ("bytes_total", "megabytes 兆字节"),
)


def cells(numbers: Mapping[str, Any], key: str) -> str:
    """One number of a split as a person reads it."""
    if key == "size":
        return f"{numbers['width']['p50']:g}×{numbers['height']['p50']:g}" if numbers["width"] else "-"
    value = numbers[key]
    if key in ("texts_per_image", "images_per_text"):
        return f"{value['mean']:.2f} / {value['p100']}" if value else "-"
    if key == "token_length":
        return f"{value['p50']} / {value['p95']} / {value['p100']}" if value else "-"
    return f"{value / 1e6:,.1f}" if key == "bytes_total" else f"{value:,}"
