"""The page of `data stats`: what a dataset is made of, with its pictures."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cn_clip.data.pictures import captions, fetch
from cn_clip.data.stats_numbers import GROUPS, ROWS, PictureStats, Stats, cells
from cn_clip.data.text_stats import TextStats
from cn_clip.files import atomic_open
from cn_clip.html_page import (
    GALLERY_STYLE,
    STYLE,
    document,
    heading,
    histogram,
    paragraph,
    picture,
    pictures,
    table,
    thumbnail,
)
from cn_clip.seeding import stable_hash
from cn_clip.transform import decode_image

BARS = 24
EXTREMES = 6  # smallest and largest pictures
COPIES = 8  # of one picture
_LONGEST = 400  # characters of a long text that are shown on either side of the cut


def write_page(path: Path, data_dir: Path, found: Stats, numbers: Mapping[str, Any], samples: int) -> None:
    """Write the page; the files of the pictures that are shown are read again.

    Args:
        path: of the HTML file.
        data_dir: the dataset.
        found: its pictures and texts.
        numbers: `stats_numbers.summary` of it.
        samples: pictures of each split that are shown as samples.

    Raises:
        UserError: the page cannot be written.
    """
    chosen = {split: _choose(split, its, samples) for split, its in found.pictures.items()}
    groups = [group[:COPIES] for group in found.groups[:GROUPS]]
    cards = {}
    for split in found.pictures:
        wanted = {key for ids in chosen[split].values() for key in ids}
        wanted |= {key for group in groups for its_split, key in group if its_split == split}
        cards[split] = _cards(data_dir, split, wanted, found.pictures[split])
    splits = numbers["splits"]
    rows = [[label, *(cells(splits[s], key) for s in splits)] for key, label in ROWS]
    title = f"{data_dir.resolve().name}: what is in it 数据集概览"
    sections = [
        heading(title, 1),
        f'<div class="wide">{table(["", *splits], rows)}</div>',
        heading("Duplicates: the same file 相同的文件"),
        paragraph(f"{len(found.groups)} groups 组"),
    ]
    boxes = [
        f'<div class="group">{pictures(cards[split][key](split) for split, key in group)}</div>'
        for group in groups
    ]
    sections.append(f'<div class="groups">{"".join(boxes)}</div>')
    for split, its in found.pictures.items():
        sections += _split(split, its, found.texts[split], splits[split], chosen[split], cards[split])
    with atomic_open(path) as file:
        file.write(document(title, sections, STYLE + GALLERY_STYLE))


def _choose(split: str, its: PictureStats, samples: int) -> dict[str, list[str]]:
    """Ids of a split's samples (the same ones each time), smallest and largest pictures."""
    ids = its.readable()
    area = np.array(its.width, dtype=np.int64) * np.array(its.height, dtype=np.int64)
    by_area = np.argsort(area, kind="stable")
    return {
        "Samples 样例": sorted(ids, key=lambda key: stable_hash("sample", split, key))[:samples],
        "Smallest 最小的图片": [ids[i] for i in by_area[:EXTREMES]],
        "Largest 最大的图片": [ids[i] for i in by_area[::-1][:EXTREMES]],
    }


def _cards(data_dir: Path, split: str, wanted: set[str], its: PictureStats) -> dict[str, Callable[[str], str]]:
    """Id -> a function that makes its figure; its argument stands before the id."""
    files = fetch(data_dir / f"{split}_imgs.tsv", wanted)
    texts = captions(data_dir / f"{split}_texts.jsonl", wanted, 3)

    def card(key: str) -> Callable[[str], str]:
        place = its.images[key]
        size = f"{its.width[place]}×{its.height[place]}, {its.size[place] / 1000:,.1f} kB"
        source = thumbnail(decode_image(files[key], f"{split} {key}"))
        title = " / ".join(text[:40] for text in texts[key]) or "(no text 无文本)"
        return lambda before: picture(source, title, [f"{before} {key}".strip(), size])

    return {key: card(key) for key in wanted}


def _split(
    split: str,
    its: PictureStats,
    texts: TextStats,
    numbers: Mapping[str, Any],
    chosen: Mapping[str, Sequence[str]],
    cards: Mapping[str, Callable[[str], str]],
) -> list[str]:
    charts = dict(_charts(its, numbers))
    drawn = [histogram(name, bars) for name, bars in charts.items() if len(bars) > 1]
    sections = [heading(split), f'<div class="charts">{"".join(drawn)}</div>']
    kinds = {"Formats 格式": "formats", "Modes 像素模式": "modes", "Unusual 特殊": "unusual"}
    same = [f"{name}: {bars[0][0]}" for name, bars in charts.items() if len(bars) == 1]
    shown = [
        f"{label}: " + ", ".join(f"{k} {n:,}" for k, n in numbers[key].items())
        for label, key in kinds.items()
        if numbers[key]
    ]
    sections += [paragraph("; ".join(same + shown))] if same + shown else []
    if numbers["problems"]:
        sections += [heading("Unreadable 无法读取", 3)]
        sections.append(
            table(
                ["", "count 数量", "first 首例"],
                [[k, str(n), its.examples[k]] for k, n in numbers["problems"].items()],
            )
        )
    for label, ids in chosen.items():
        if ids:
            sections += [heading(label, 3), pictures(cards[key]("") for key in ids)]
    if texts.longest:
        of = f"Longest texts; what is cut off is marked 最长的文本，标出被截断的部分 ({texts.context_length})"
        sections += [heading(of, 3), _long_texts(texts)]
    if texts.most_repeated:
        rows = [[text[:80], f"{count:,}"] for text, count in texts.most_repeated]
        sections += [heading("Repeated texts 重复的文本", 3), table(["text 文本", "times 次数"], rows)]
    if texts.unknown_signs:
        signs = [[f"{sign} U+{ord(sign):04X}", f"{n:,}"] for sign, n in texts.unknown_signs.most_common(20)]
        sections += [
            heading("Characters the vocabulary lacks 词表之外的字符", 3),
            table(["", "times 次数"], signs),
        ]
    return sections


def _charts(its: PictureStats, numbers: Mapping[str, Any]) -> Iterable[tuple[str, list[tuple[str, int]]]]:
    """Name -> bars; a single bar where all values are the same."""
    width, height, size = (np.array(column, dtype=np.float64) for column in (its.width, its.height, its.size))
    charts = {
        "texts an image 每图文本数": _counted(numbers["texts_per_image"]),
        "images a text 每文图片数": _counted(numbers["images_per_text"]),
        "word pieces with [CLS] [SEP] 词元数": _counted(numbers["token_length"]),
        "width, pixels 宽": (width, np.ones(len(width))),
        "height, pixels 高": (height, np.ones(len(height))),
        "width / height 宽高比": (width / np.maximum(height, 1), np.ones(len(width))),
        "kilobytes 千字节": (size / 1000, np.ones(len(size))),
    }
    for name, (values, times) in charts.items():
        if len(values):
            yield name, bars(values, times)


def _counted(numbers: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    counts = numbers.get("histogram", {})
    return np.array([float(value) for value in counts]), np.array(list(counts.values()), dtype=np.float64)


def bars(values: np.ndarray[Any, Any], times: np.ndarray[Any, Any], most: int = BARS) -> list[tuple[str, int]]:
    """(lower end, count) of at most `most` bars of a round width; the last ("90+") has the highest hundredth.

    Args:
        values: float64 [N], at least one.
        times: how often each occurs.
        most: bars.
    """
    order = np.argsort(values, kind="stable")
    values, times = values[order], times[order]
    cut = values[np.searchsorted(np.cumsum(times), 0.99 * times.sum())]
    low, whole = values[0], bool((values == np.floor(values)).all())
    step = 1.0 if whole else 0.01
    factors = (2, 2.5, 2)  # 1, 2, 5, 10, …
    turn = 0
    while (np.floor(cut / step) - np.floor(low / step)) + 1 > most - 1:
        step *= factors[turn % 3]
        turn += 1
    first, last = int(np.floor(low / step)), int(np.floor(cut / step))
    places = np.floor(values / step).astype(np.int64).clip(first, last + 1) - first
    counts = np.bincount(places, weights=times, minlength=last - first + 1).astype(np.int64).tolist()
    labels = [f"{round((first + i) * step, 9):.12g}" for i in range(len(counts))]
    if len(counts) > last - first + 1:
        labels[-1] += "+"
    return list(zip(labels, counts, strict=True))


def _long_texts(texts: TextStats) -> str:
    items = []
    for text in texts.longest:
        kept = text.kept if len(text.kept) <= _LONGEST else "…" + text.kept[-_LONGEST:]
        cut = text.cut if len(text.cut) <= _LONGEST else text.cut[:_LONGEST] + "…"
        items.append(
            f'<li>{html.escape(kept)}<span class="cut">{html.escape(cut)}</span> '
            f"<small>{html.escape(str(text.text_id))}, {text.pieces:,} word pieces 词元</small></li>"
        )
    return f'<ol class="texts">{"".join(items)}</ol>'
