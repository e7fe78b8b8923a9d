"""Learning from a teacher's vectors, computed once and read from feature files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.data.loader import Batch
from cn_clip.data.readers import SplitReader
from cn_clip.errors import UserError
from cn_clip.eval.features import IdField, read_features
from cn_clip.seeding import stable_hash
from cn_clip.train.config import TrainConfig
from cn_clip.train.task import ClipTask


class TeacherVectors:
    """A teacher's unit vectors by key.

    Args:
        keys: int64 [N], as `Batch.image_keys` or `Batch.text_keys`, each once.
        vectors: float32 [N, D].
    """

    def __init__(self, keys: Tensor, vectors: Tensor) -> None:
        self.keys, order = keys.sort()
        self.vectors = F.normalize(vectors, dim=-1)[order]

    def __call__(self, keys: Tensor) -> Tensor:
        """float32 [n, D] of n keys, on their device."""
        place = torch.searchsorted(self.keys, keys.cpu())
        return self.vectors[place].to(keys.device)


class Teachers(NamedTuple):
    """Whose vectors the towers learn to agree with; None: nobody's."""

    images: TeacherVectors | None
    texts: TeacherVectors | None


class DistillTask(ClipTask):
    """Contrast as ever, and agree with the teachers: weight · mean(1 - cosine), image and text side added up.

    The loss of the documented distillation, for vectors of the towers' own width.
    """

    def __init__(self, model: Any, precision: Any, seed: int, teachers: Teachers, weight: float, **options: Any):
        super().__init__(model, precision, seed, **options)
        self.teachers, self.weight = teachers, weight

    def loss(
        self, images: Tensor, texts: Tensor, scale: Tensor, positives: Tensor | None, batches: Sequence[Batch]
    ) -> Tensor:
        """As `ClipTask.loss`, with the distillation loss added."""
        loss = super().loss(images, texts, scale, positives, batches)
        if self.teachers.images:
            keys = torch.cat([batch.image_keys for batch in batches])
            loss = loss + self.weight * disagreement(images, self.teachers.images(keys))
        if self.teachers.texts:
            keys = torch.cat([batch.text_keys for batch in batches])
            loss = loss + self.weight * disagreement(texts, self.teachers.texts(keys))
        return loss


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine of unit vectors [N, D] and [N, D]: a float32 scalar."""
    return 1 - (student.float() * teacher).sum(dim=-1).mean()


def read_teachers(reader: SplitReader, config: TrainConfig, width: int) -> Teachers:
    """The vectors of a split's images and texts from the files that the options name.

    Raises:
        UserError: not a feature file, of another width than the towers', or without one of the split's ids.
    """
    images: dict[Any, int] = {}
    texts: dict[Any, int] = {}
    for image_id, text_id, text in reader.pairs:
        images.setdefault(image_id, stable_hash(image_id))
        texts.setdefault(text_id, stable_hash(text))
    return Teachers(
        _read(config.teacher_image_feats, "image_id", images, width),
        _read(config.teacher_text_feats, "text_id", texts, width),
    )


def _read(path: Path | None, field: IdField, keys: dict[Any, int], width: int) -> TeacherVectors | None:
    if path is None:
        return None
    features = read_features(path, field)
    if features.vectors.shape[1] != width:
        raise UserError(
            f"{path}: vectors of {features.vectors.shape[1]} numbers, but the towers' have {width}: "
            "distillation needs the same width (choose embed_dim, or project the teacher's vectors)"
        )
    place = {str(key): row for row, key in enumerate(features.ids)}
    missing = next((key for key in keys if str(key) not in place), None)
    if missing is not None:
        raise UserError(f"{path}: no vector for {field} {missing!r} of the training data")
    chosen = {key: place[str(name)] for name, key in keys.items()}  # a text that stands twice has one vector
    rows = np.fromiter(chosen.values(), dtype=np.int64)
    return TeacherVectors(torch.tensor(list(chosen)), torch.from_numpy(features.vectors[rows]))
