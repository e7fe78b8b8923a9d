"""Validation: the documented loss and accuracies within batches, and recall over the whole split."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from cn_clip.data.loader import ValidationData, padded, shuffled
from cn_clip.eval.recall import retrieval_recall
from cn_clip.models.clip import CLIP
from cn_clip.train.loss import batch_accuracy, contrastive_loss
from cn_clip.train.precision import Precision


class Validator:
    """Validates a model on a split; each distinct image and text is encoded once.

    Args:
        data: the split.
        batch_size: of the documented in-batch numbers, which depend on it.
        seed: of the order in which pairs meet in batches, the same at every validation.
    """

    def __init__(self, data: ValidationData, batch_size: int, seed: int, precision: Precision) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.precision = precision

    @torch.no_grad()
    def __call__(self, model: CLIP) -> dict[str, float]:
        """Numbers by name: `loss`, `i2t_acc`, `t2i_acc` within batches; `t2i_r1` … `i2t_r10` over the split.

        The model is left in evaluation mode.
        """
        model.eval()
        images = self._encode(self.data.image_batches(), model.encode_image)
        texts = self._encode(self.data.text_batches(), model.encode_text)
        scale = model.logit_scale.float().exp()
        result = in_batch(images, texts, self.data.pairs, scale, self.batch_size, self.seed)
        result |= whole_split(images, texts, self.data.pairs)
        return {**result, "logit_scale": model.logit_scale.item()}

    def _encode(self, batches: Iterator[Tensor], encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Unit vectors, float32 [N, D], on the model's device."""
        features = []
        for batch in batches:
            with self.precision.autocast():
                features.append(encode(batch.to(self.precision.device, non_blocking=True)))
        return torch.nn.functional.normalize(torch.cat(features).float(), dim=-1)


def in_batch(
    images: Tensor, texts: Tensor, pairs: np.ndarray, scale: Tensor, batch_size: int, seed: int
) -> dict[str, float]:
    """The documented numbers: pairs in the documented shuffled order, padded to whole batches.

    Args:
        images, texts: unit vectors of the distinct ones.
        pairs: int [P, 2], positions in them.
    """
    order = np.fromiter(shuffled(padded(len(pairs), batch_size), seed), dtype=np.int64) % len(pairs)
    sums = torch.zeros(3, dtype=torch.float64)
    blocks = order.reshape(-1, batch_size)
    for block in blocks:
        rows = torch.from_numpy(pairs[block]).to(images.device)
        x, y = images[rows[:, 0]], texts[rows[:, 1]]
        i2t, t2i = batch_accuracy(x, y)
        sums += torch.stack([contrastive_loss(x, y, scale), i2t, t2i]).double().cpu()
    loss, i2t_acc, t2i_acc = (sums / len(blocks)).tolist()
    return {"loss": loss, "i2t_acc": i2t_acc, "t2i_acc": t2i_acc}


def whole_split(images: Tensor, texts: Tensor, pairs: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5, 10 in percent, both ways, over the distinct images and texts; every right pair counts."""
    recall = retrieval_recall(images.cpu().numpy(), texts.cpu().numpy(), pairs[:, ::-1])
    result: dict[str, float] = {"images": len(images), "texts": len(texts)}
    for direction, scores in recall.items():
        result |= {f"{direction}_{name}": value for name, value in scores.items()}
    return result
