"""The loss and the accuracies against loops over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cn_clip.train.loss import batch_accuracy, contrastive_loss


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=-1)


def naive_loss(images: np.ndarray, texts: np.ndarray, scale: float, positives: np.ndarray) -> float:
    """Cross entropy by its definition, a row at a time, both ways."""
    total = 0.0
    for queries, gallery, right in ((images, texts, positives), (texts, images, positives.T)):
        for i, query in enumerate(queries):
            logits = [scale * float(query @ other) for other in gallery]
            log_sum = math.log(sum(math.exp(x) for x in logits))
            chosen = [j for j in range(len(gallery)) if right[i, j]]
            total += sum(log_sum - logits[j] for j in chosen) / len(chosen) / len(queries) / 2
    return total


@given(n=st.integers(1, 9), seed=st.integers(0, 99), density=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_loss_is_the_definition(n: int, seed: int, density: float) -> None:
    images, texts = unit(n, 5, seed), unit(n, 5, seed + 1000)
    positives = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < density
    positives |= torch.eye(n, dtype=torch.bool)
    scale = torch.tensor(14.3)
    arrays = images.double().numpy(), texts.double().numpy()
    plain = contrastive_loss(images, texts, scale)
    assert plain.item() == pytest.approx(naive_loss(*arrays, 14.3, np.eye(n, dtype=bool)), abs=1e-5)
    several = contrastive_loss(images, texts, scale, positives)
    assert several.item() == pytest.approx(naive_loss(*arrays, 14.3, positives.numpy()), abs=1e-5)


@given(n=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_accuracy_counts_rows_whose_best_is_right(n: int, seed: int) -> None:
    images, texts = unit(n, 3, seed), unit(n, 3, seed + 1000)
    similarity = (images @ texts.t()).numpy()
    i2t, t2i = batch_accuracy(images, texts)
    assert i2t.item() == pytest.approx(np.mean([similarity[i].argmax() == i for i in range(n)]))
    assert t2i.item() == pytest.approx(np.mean([similarity[:, i].argmax() == i for i in range(n)]))


def test_loss_is_float32_of_half_features() -> None:
    features = unit(4, 8, 0)
    loss = contrastive_loss(features.bfloat16(), features.bfloat16(), torch.tensor(100.0))
    assert loss.dtype == torch.float32
