"""Recall on two sets along a path of weights: the table behind WiSE-FT, and the choice among its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL.Image import Image

from cn_clip.config import CONTEXT_LENGTH
from cn_clip.data.loader import ValidationData
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from cn_clip.eval.recall import retrieval_recall
from cn_clip.transform import decode_image

Choose = Literal["balance", "finetuning", "retention", "all"]
Recall = dict[str, dict[str, float]]  # {"t2i": {"r1", "r5", "r10", "mean_recall"}, "i2t": {…}}, in percent
SETS = ("finetuning", "retention")


@dataclass(frozen=True)
class Row:
    """One point of the path: recall of each set that was given."""

    alpha: float
    finetuning: Recall | None = None
    retention: Recall | None = None

    def mean(self, which: str) -> float | None:
        """Mean of R@1, R@5 and R@10 in both directions, in percent; None of a set that was not given."""
        recall: Recall | None = getattr(self, which)
        return None if recall is None else (recall["t2i"]["mean_recall"] + recall["i2t"]["mean_recall"]) / 2

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with the means."""
        means = {which: self.mean(which) for which in SETS}
        return {**asdict(self), "mean_recall": {k: v for k, v in means.items() if v is not None}}


class RetrievalSet:
    """A split to measure recall on: every distinct image and text is encoded once, every right pair counts."""

    def __init__(self, path: Path, context_length: int = CONTEXT_LENGTH, batch_size: int = 32) -> None:
        # Encoder has its own pixels and threads: of ValidationData, only what is distinct and which are pairs.
        self.data = ValidationData(path, 0, context_length, batch_size, 0)
        self.context_length, self.batch_size = context_length, batch_size

    def recall(self, encoder: Encoder) -> Recall:
        """Recall of the encoder's model, in both directions.

        Raises:
            UserError: a picture that cannot be decoded.
        """
        data, images = self.data, self.data.reader.images

        def decode(image_id: int | str) -> Image:
            return decode_image(images[image_id], images.where(image_id))

        pictures = encoder.image_vectors((partial(decode, i) for i in data.image_ids), self.batch_size)
        vectors = np.concatenate(list(pictures))
        texts = encoder.encode_texts(data.texts, context_length=self.context_length)
        return retrieval_recall(vectors, texts, data.pairs[:, ::-1])


def measure(
    alphas: Sequence[float],
    at: Callable[[float], Encoder],
    sets: Mapping[str, RetrievalSet],
    report: Callable[[Row], None],
) -> list[Row]:
    """A row of the table for each alpha. `at(alpha)` is the model there; `report` gets each row as it is done."""
    rows = []
    for alpha in alphas:
        encoder = at(alpha)
        rows.append(Row(alpha, **{which: data.recall(encoder) for which, data in sets.items()}))
        report(rows[-1])
    return rows


def choose(rows: Sequence[Row], rule: Choose, max_loss: float | None = None) -> Row:
    """The best row; of equal ones, that with the smallest alpha (nearest to the model that was finetuned).

    Args:
        rows: at least one, with at least one set measured.
        rule: balance: the highest mean of both sets' mean recall; finetuning or retention: that set's alone.
        max_loss: only rows whose retention recall is at most so many points below that at alpha 0.

    Raises:
        UserError: the rule needs a set, or alpha 0, that is not there.
    """
    candidates = sorted(rows, key=lambda row: row.alpha)
    wanted = [which for which in SETS if rule in (which, "balance")]
    missing = [which for which in wanted if candidates[0].mean(which) is None]
    if rule in SETS and missing:
        raise UserError(f"--choose {rule} needs --{rule}-data")
    wanted = [which for which in wanted if which not in missing]
    if max_loss is not None:
        start = candidates[0].mean("retention")
        if candidates[0].alpha != 0 or start is None:
            raise UserError("--max-loss needs --retention-data and alpha 0 among the alphas")
        candidates = [row for row in candidates if (row.mean("retention") or 0.0) >= start - max_loss - 1e-9]
    return max(candidates, key=lambda row: (sum(row.mean(which) or 0.0 for which in wanted), -row.alpha))


def header(sets: Sequence[str]) -> str:
    """The two lines above the table."""
    top = " " * 7 + "".join(f"{which + ' set, recall %':^55}" for which in sets)
    columns = "".join(f"{name:>7}" for name in ("t→i@1", "@5", "@10", "i→t@1", "@5", "@10", "mean"))
    below = f"{'alpha':>7}" + (columns + " " * 6) * len(sets)
    return f"{top.rstrip()}\n{below.rstrip()}"


def line(row: Row) -> str:
    """A row of the table."""
    text = f"{row.alpha:7.3g}"
    for which in SETS:
        recall: Recall | None = getattr(row, which)
        if recall is not None:
            numbers = [recall[way][k] for way in ("t2i", "i2t") for k in ("r1", "r5", "r10")]
            text += "".join(f"{number:7.1f}" for number in [*numbers, row.mean(which) or 0.0]) + " " * 6
    return text.rstrip()
