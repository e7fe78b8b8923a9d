"""The contrastive loss of CLIP, with one right answer a row, or with several."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, positives: Tensor | None = None
) -> Tensor:
    """Mean of the image-to-text and text-to-image cross entropies over a batch.

    With one right answer a row: Radford et al. 2021, figure 3. With several, each row's target is spread
    evenly over them: Yang et al. 2022 (UniCL), equation 3.

    Args:
        image_features: unit vectors [N, D], row i belonging with text i.
        text_features: unit vectors [N, D].
        logit_scale: factor of the cosines, a scalar.
        positives: bool [N, N], True where image i and text j belong together; None: the diagonal.

    Returns:
        The loss, a float32 scalar.
    """
    logits = logit_scale.float() * image_features.float() @ text_features.float().t()
    if positives is None:
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
    return (_spread(logits, positives) + _spread(logits.t(), positives.t())) / 2


def _spread(logits: Tensor, positives: Tensor) -> Tensor:
    target = positives.to(logits.dtype)
    return F.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))


@torch.no_grad()
def batch_accuracy(
    image_features: Tensor, text_features: Tensor, positives: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Share of the images whose nearest text in the batch is right, and the reverse; arguments as the loss."""
    similarity = image_features.float() @ text_features.float().t()
    if positives is None:
        positives = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    return _hits(similarity, positives), _hits(similarity.t(), positives.t())


def _hits(similarity: Tensor, positives: Tensor) -> Tensor:
    best = similarity.argmax(dim=1, keepdim=True)
    return positives.gather(1, best).float().mean()
