"""Which items are computed together: texts of one length, as many as fit; long texts in windows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def by_length(lengths: npt.NDArray[np.int64], tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows in batches of similar length, short ones first: count times longest is at most `tokens`.

    A row that is longer alone is a batch alone.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > tokens:
            yield order[start:end]
            start = end


def windows(length: int, room: int, stride: int) -> list[int]:
    """Where the windows of `room` over `length` pieces start: every `stride`, and one that ends with the text."""
    if length <= room:
        return [0]
    return [*range(0, length - room, stride), length - room]


def split_texts(
    texts: Sequence[npt.NDArray[np.int64]], context_length: int, stride: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Texts as overlapping windows.

    Args:
        texts: int64 [L] each: the whole text's ids, [CLS] first and [SEP] last.
        context_length: pieces of a window, its own [CLS] and [SEP] included.
        stride: pieces from one window's start to the next one's.

    Returns:
        ids: int64 [W, context_length], padded with 0.
        lengths: int64 [W]: pieces of each; the windows of one text are of one length.
        owners: int64 [W]: which text each belongs to.
    """
    room = context_length - 2
    found = [(owner, start) for owner, ids in enumerate(texts) for start in windows(len(ids) - 2, room, stride)]
    rows = np.zeros((len(found), context_length), dtype=np.int64)
    lengths = np.empty(len(found), dtype=np.int64)
    for i, (owner, start) in enumerate(found):
        ids = texts[owner]
        used = min(len(ids) - 2, room)
        rows[i, 0], rows[i, used + 1] = ids[0], ids[-1]
        rows[i, 1 : used + 1] = ids[start + 1 : start + 1 + used]
        lengths[i] = used + 2
    return rows, lengths, np.array([owner for owner, _ in found], dtype=np.int64)
