"""What is done with unit vectors: cosines, probabilities of labels, queries of a picture and a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cn_clip.errors import UserError
from cn_clip.inputs import Vectors

Template: TypeAlias = "str | Callable[[str], str]"


class Classification(NamedTuple):
    """How likely each label is for each picture.

    Attributes:
        labels: the C labels.
        probabilities: float32 [N, C]; a row adds up to 1.
    """

    labels: list[str]
    probabilities: npt.NDArray[np.float32]

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """int64 [N, C]: the labels of each picture, most likely first; of equals, the earlier one first."""
        return np.argsort(-self.probabilities, axis=1, kind="stable")

    def best(self, k: int = 1) -> list[list[tuple[str, float]]]:
        """For each picture the `k` most likely labels and their probabilities."""
        rows = zip(self.order[:, :k], self.probabilities, strict=True)
        return [[(self.labels[i], float(row[i])) for i in order] for order, row in rows]


def unit(vectors: npt.NDArray[np.float32]) -> Vectors:
    """Rows divided by their lengths, float32 [N, D]; a row of zeros stays."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def similarity(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> Vectors:
    """Cosines float32 [N, M] of the rows of [N, D] and [M, D]; neither need be unit vectors.

    Raises:
        UserError: not two matrices of one width.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(f"expected vectors [N, D] and [M, D], got {list(a.shape)} and {list(b.shape)}")
    return unit(a) @ unit(b).T


def classify(vectors: Vectors, classes: Vectors, labels: list[str], scale: float) -> Classification:
    """Softmax of `scale` times the cosines of pictures [N, D] and classes [C, D]."""
    logits = scale * similarity(vectors, classes)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Classification(labels, weights / weights.sum(axis=1, keepdims=True))


def label_sentences(labels: Sequence[str], templates: Sequence[Template] | None) -> tuple[int, Iterator[str]]:
    """How many sentences a label has, and the sentences, label by label.

    Raises:
        UserError: no labels or no templates, or a template without {}.
    """
    templates = ["{}"] if templates is None else list(templates)
    if isinstance(labels, str) or not labels or not templates:
        raise UserError("expected a list of at least one label, and of at least one template")
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise UserError(f"template {template!r}: no {{}} where the label goes")
    return len(templates), (_filled(template, label) for label in labels for template in templates)


def _filled(template: Template, label: str) -> str:
    return template.replace("{}", label) if isinstance(template, str) else template(label)


def fuse(
    count: int, images: tuple[list[int], Vectors], texts: tuple[list[int], Vectors], image_weight: float
) -> Vectors:
    """Weighted sums, normalised, float32 [count, D] of pictures' and texts' unit vectors, given with their rows.

    Raises:
        UserError: a weight outside [0, 1], or a row with neither.
    """
    if not 0 <= image_weight <= 1:
        raise UserError(f"image_weight {image_weight}: expected 0 (the text alone) to 1 (the picture alone)")
    both = set(images[0]) & set(texts[0])
    if missing := set(range(count)) - set(images[0]) - set(texts[0]):
        raise UserError(f"query {min(missing)}: neither a picture nor a text")
    sums = np.zeros((count, images[1].shape[1]), np.float32)
    for (rows, vectors), weight in ((images, image_weight), (texts, 1 - image_weight)):
        for row, vector in zip(rows, vectors, strict=True):
            sums[row] += (weight if row in both else 1) * vector
    return unit(sums)
