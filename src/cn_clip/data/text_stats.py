"""What is to be known of the texts of a split: lengths in word pieces, what is cut, unknown signs, repetitions."""

from __future__ import annotations

import heapq
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cn_clip.data.formats import Id, IdType, LineError, Text, parse_text, read_lines
from cn_clip.progress import progress
from cn_clip.seeding import stable_hash
from cn_clip.tokenizer import Tokenizer, default_tokenizer

EXAMPLES = 20  # longest texts, repeated texts
_AT_ONCE = 1000


class LongText(NamedTuple):
    """A text that is cut: its id, its word pieces with [CLS] and [SEP], what is kept of it, what is cut off."""

    text_id: Id
    pieces: int
    kept: str
    cut: str


class TextStats:
    """Counts over the texts of a split.

    Attributes:
        texts: readable lines.
        broken: lines that are not a text.
        pairs: text and image, of texts that have images.
        unlabelled: texts whose `image_ids` is empty.
        empty: texts without any word piece.
        images_per_text: number of images -> how many texts have so many.
        texts_of: image id -> number of its texts.
        lengths: word pieces with [CLS] and [SEP] -> number of texts.
        truncated: texts of more than `context_length` of them.
        longest: the longest of these, the longest first.
        with_unknown: texts with an [UNK] in them.
        unknown: word pieces that are [UNK].
        pieces: all word pieces, without [CLS] and [SEP].
        unknown_signs: character that is an [UNK] by itself -> how often it occurs.
        repeated: texts that an earlier line has already.
        most_repeated: the most frequent of them, with their counts.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self.texts = self.broken = self.pairs = self.unlabelled = self.empty = 0
        self.truncated = self.with_unknown = self.unknown = self.pieces = self.repeated = 0
        self.images_per_text: Counter[int] = Counter()
        self.texts_of: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        self.unknown_signs: Counter[str] = Counter()
        self.longest: list[LongText] = []
        self.most_repeated: list[tuple[str, int]] = []


def text_stats(jsonl: Path, context_length: int) -> TextStats:
    """Read the texts twice: once for the counts, once more for the words of the most repeated ones.

    Memory: the ids of the images, and 8 bytes of hash (some 100 as Python keeps them) for each distinct text.
    """
    stats = TextStats(context_length)
    seen: Counter[int] = Counter()
    heap: list[tuple[int, int, Text]] = []  # the longest texts so far: (length, -line, text)
    batch: list[Text] = []
    for text in _texts(jsonl, stats):
        count = len(set(map(str, text.image_ids)))
        stats.texts += 1
        stats.pairs += count
        stats.unlabelled += not count
        stats.images_per_text[count] += 1
        stats.texts_of.update(set(map(str, text.image_ids)))
        seen[stable_hash(text.text)] += 1
        batch.append(text)
        if len(batch) == _AT_ONCE:
            _tokens(batch, stats, heap)
            batch = []
    _tokens(batch, stats, heap)
    stats.longest = [
        LongText(text.text_id, length, *split_at_cut(text.text, context_length))
        for length, _, text in sorted(heap, reverse=True)
    ]
    stats.repeated = stats.texts - len(seen)
    most = {key: count for key, count in seen.most_common(EXAMPLES) if count > 1}
    words: dict[int, str] = {}
    if most:
        for text in _texts(jsonl, TextStats(context_length)):
            key = stable_hash(text.text)
            if key in most and key not in words:
                words[key] = text.text
                if len(words) == len(most):
                    break
    stats.most_repeated = [(words[key], count) for key, count in most.items()]
    return stats


def split_at_cut(text: str, context_length: int) -> tuple[str, str]:
    """(what the model sees, what is cut off) of a text; where a word is cut within, to a letter or two."""
    limit = context_length - 2
    tokenizer = default_tokenizer()
    if _count(tokenizer, text) <= limit:
        return text, ""
    low, high = 0, len(text)  # the pieces of text[:low] fit, those of text[:high] do not
    while high - low > 1:
        middle = (low + high) // 2
        if _count(tokenizer, text[:middle]) <= limit:
            low = middle
        else:
            high = middle
    return text[:low], text[low:]


def _count(tokenizer: Tokenizer, text: str) -> int:
    return int(tokenizer.encode([text], None).lengths[0]) - 2


def _texts(jsonl: Path, stats: TextStats):  # type: ignore[no-untyped-def]
    ids = IdType()
    for number, line in progress(read_lines(jsonl), desc=jsonl.name, unit=" texts"):
        try:
            yield parse_text(line, f"{jsonl}:{number}", ids)._replace(line=number)
        except LineError:
            stats.broken += 1


def _tokens(batch: list[Text], stats: TextStats, heap: list[tuple[int, int, Text]]) -> None:
    if not batch:
        return
    tokenizer = default_tokenizer()
    tokens = tokenizer.encode([text.text for text in batch], None)
    unknown = (tokens.ids == tokenizer.vocab["[UNK]"]).sum(1)
    lengths = tokens.lengths.tolist()
    stats.lengths.update(lengths)
    stats.pieces += sum(lengths) - 2 * len(batch)
    stats.empty += lengths.count(2)
    stats.unknown += int(unknown.sum())
    stats.with_unknown += int((unknown > 0).sum())
    for text in (batch[i] for i in np.flatnonzero(unknown)):
        stats.unknown_signs.update(sign for sign in text.text if _is_unknown(sign))
    for text, length in zip(batch, lengths, strict=True):
        if length > stats.context_length:
            stats.truncated += 1
            entry = (length, -text.line, text)
            if len(heap) < EXAMPLES:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)


@lru_cache(maxsize=1 << 16)
def _is_unknown(sign: str) -> bool:
    tokenizer = default_tokenizer()
    return tokenizer.vocab["[UNK]"] in tokenizer.encode([sign], None).ids[0]
