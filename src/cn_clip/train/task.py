"""What is learnt: a task turns batches into a loss and leaves its gradients in the model's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cn_clip.data.loader import Batch, pair_keys
from cn_clip.models.clip import CLIP, MAX_LOGIT_SCALE
from cn_clip.models.resnet import statistics_kept
from cn_clip.seeding import stable_hash
from cn_clip.train.loss import batch_accuracy, contrastive_loss
from cn_clip.train.precision import Precision


class ClipTask:
    """Contrast each image with the texts of its step, and each text with the images.

    Args:
        model: trained in place, on its device.
        precision: of forward and backward passes.
        seed: of dropout and of FLIP's masks; both are a function of (seed, step, batch).
        mask_ratio: share of patches left out (FLIP).
        frozen_vision: the image tower stays in evaluation mode, so batch statistics stay too.
        known: sorted keys of the pairs known to be right (`PairDataset.known_pairs`); None: a batch's own.
        report_accuracy: return accuracies within the step's pairs.
    """

    def __init__(
        self,
        model: CLIP,
        precision: Precision,
        seed: int,
        mask_ratio: float = 0.0,
        frozen_vision: bool = False,
        known: Tensor | None = None,
        report_accuracy: bool = False,
    ) -> None:
        self.model = model
        self.precision = precision
        self.seed = seed
        self.mask_ratio = mask_ratio
        self.frozen_vision = frozen_vision
        self.known = known
        self.report_accuracy = report_accuracy

    def train_mode(self) -> None:
        """Dropout on, and batch statistics where the image tower learns."""
        self.model.train()
        if self.frozen_vision:
            self.model.visual.eval()

    def training_step(self, batches: Sequence[Batch], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss over all pairs of `batches` together; gradients are added to the parameters'.

        Returns:
            The loss (a float32 scalar without graph), and the statistics to log: `i2t` and `t2i` accuracy.
        """
        batches = [batch.to(self.precision.device) for batch in batches]
        positives = self._positives(batches)
        if len(batches) == 1:
            images, texts, scale = self._forward(batches[0], step, 0)
            loss = self.loss(images, texts, scale, positives, batches)
            self.precision.backward(loss)
        else:
            images, texts, loss = self._accumulate(batches, step, positives)
        stats = {}
        if self.report_accuracy:
            stats["i2t"], stats["t2i"] = batch_accuracy(images, texts, positives)
        return loss.detach(), stats

    def loss(
        self, images: Tensor, texts: Tensor, scale: Tensor, positives: Tensor | None, batches: Sequence[Batch]
    ) -> Tensor:
        """The loss of a step's unit vectors [N, D], all its batches together: a float32 scalar."""
        return contrastive_loss(images, texts, scale, positives)

    def after_step(self) -> None:
        """Keep the logit scale in [0, ln 100] (Radford et al. 2021, section 2.5)."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def _forward(self, batch: Batch, step: int, part: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(stable_hash(self.seed, step, part))
        with self.precision.autocast():
            images, texts, scale = self.model(batch.images, batch.texts, self.mask_ratio)
        return images, texts, scale

    def _accumulate(
        self, batches: Sequence[Batch], step: int, positives: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The whole step's gradient at one batch's memory (Gao et al. 2021, GradCache): all features without
        a graph, the loss's gradient with respect to them, then each batch again with dropout and masks as
        before, to carry its share of that gradient back."""
        with torch.no_grad(), statistics_kept(self.model):
            parts = [self._forward(batch, step, i)[:2] for i, batch in enumerate(batches)]
        images, texts = (torch.cat(part).requires_grad_() for part in zip(*parts, strict=True))
        loss = self.loss(images, texts, self.model.logit_scale.exp(), positives, batches)
        self.precision.backward(loss)
        assert images.grad is not None
        assert texts.grad is not None
        sizes = [len(batch.texts) for batch in batches]
        gradients = zip(images.grad.split(sizes), texts.grad.split(sizes), strict=True)
        for i, (batch, pair) in enumerate(zip(batches, gradients, strict=True)):
            features = self._forward(batch, step, i)[:2]
            learnt = [(f, g) for f, g in zip(features, pair, strict=True) if f.requires_grad]
            torch.autograd.backward([f for f, _ in learnt], [g for _, g in learnt])
        return images.detach(), texts.detach(), loss

    def _positives(self, batches: Sequence[Batch]) -> Tensor | None:
        if self.known is None:
            return None
        image_keys = torch.cat([batch.image_keys for batch in batches])
        text_keys = torch.cat([batch.text_keys for batch in batches])
        keys = pair_keys(image_keys[:, None], text_keys[None, :])
        known = self.known.to(keys.device)
        place = torch.searchsorted(known, keys).clamp_(max=len(known) - 1)
        return known[place] == keys
