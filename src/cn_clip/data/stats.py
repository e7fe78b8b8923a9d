"""cn-clip data stats DIR [--html stats.html] [--json stats.json]

What a dataset is made of: counts, texts an image, lengths in word pieces and what is cut, sizes and formats of the
pictures, repetitions. Every line is read and every picture decoded, in several threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from cn_clip.config import CONTEXT_LENGTH
from cn_clip.data.check import choose_splits
from cn_clip.data.stats_numbers import ROWS, cells, gather, summary
from cn_clip.data.stats_page import write_page
from cn_clip.errors import UserError
from cn_clip.files import atomic_open
from cn_clip.parallel import threads_or_default


def stats(
    data_dir: Path,
    /,
    splits: str = "",
    context_length: int = CONTEXT_LENGTH,
    json: Path | None = None,
    html: Path | None = None,
    samples: int = 24,
    threads: int = 0,
) -> None:
    """Print what a dataset is made of; with --html a page with its pictures, with --json all numbers.

    Args:
        data_dir: the folder of {split}_imgs.tsv and {split}_texts.jsonl.
        splits: names of splits, separated by commas; all that are found by default.
        context_length: word pieces that are kept of a text, [CLS] and [SEP] included.
        json: write all numbers there.
        html: write a page there: charts, samples, extremes of size and length, duplicates.
        samples: pictures of each split on the page.
        threads: threads that decode images; by default one a core.
    """
    if context_length < 3:
        raise UserError(f"--context-length {context_length}: 3 or more ([CLS], a piece, [SEP])")
    found = gather(data_dir, choose_splits(data_dir, splits), context_length, threads_or_default(threads))
    numbers = summary(found, context_length)
    print(printed(numbers))
    if json is not None:
        write_json(json, numbers)
        print(f"all numbers: {json}")
    if html is not None:
        write_page(html, data_dir, found, numbers, samples)
        print(f"the page: {html}")


def printed(numbers: Mapping[str, Any]) -> str:
    """The table for the terminal: a row a number, a column a split."""
    splits = numbers["splits"]
    rows = [["", *splits], *([label, *(cells(splits[s], key) for s in splits)] for key, label in ROWS)]
    widths = [max(_columns_of(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = row[0] + " " * (widths[0] - _columns_of(row[0]))
        lines.append("  ".join([first, *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]))
    for split, its in splits.items():
        lines += [f"{split}: {count} × {kind}" for kind, count in its["problems"].items()]
    return "\n".join(lines)


def _columns_of(text: str) -> int:
    """Columns on a terminal, where a Chinese character takes two."""
    return sum(2 if "\u2e80" <= sign <= "\uffdc" else 1 for sign in text)


def write_json(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write the numbers, indented.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_open(path, "wb") as file:
        file.write(orjson.dumps(numbers, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
