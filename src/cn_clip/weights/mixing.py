"""Weighted sums of state dicts: WiSE-FT's line between two models, and the mean of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cn_clip.checkpoint import Checkpoint, load_model, some
from cn_clip.config import ModelConfig
from cn_clip.errors import UserError
from cn_clip.weights.source import refuse_nonfinite

Weights = dict[str, Tensor]


def mix(states: Sequence[Weights], factors: Sequence[float]) -> Weights:
    """Σ factor · state, of state dicts with the same names and shapes.

    Sums are taken in float64 and rounded once, to the most precise of the tensors' dtypes. A factor of 1 among
    zeros gives that state's tensors themselves, bit for bit; whole numbers (batch norm's counters) are those of
    the state with the largest factor, the first of several.
    """
    present = [(state, factor) for state, factor in zip(states, factors, strict=True) if factor]
    if len(present) == 1 and present[0][1] == 1:
        return dict(present[0][0])
    first = max(present, key=lambda pair: pair[1])[0]
    mean = math.isclose(sum(factors), 1, abs_tol=1e-12)
    mixed = {}
    for name, tensor in first.items():
        others = [state[name] for state, _ in present]
        same = mean and all(other.dtype == tensor.dtype and torch.equal(other, tensor) for other in others)
        if same or not tensor.is_floating_point():  # what all have stays: a sum of shares would round
            mixed[name] = tensor
            continue
        dtype = tensor.dtype
        total = torch.zeros(tensor.shape, dtype=torch.float64)
        for state, factor in present:
            dtype = torch.promote_types(dtype, state[name].dtype)
            total.add_(state[name].detach().cpu().double(), alpha=factor)
        mixed[name] = total.to(dtype)
    return mixed


def one_architecture(checkpoints: Sequence[Checkpoint]) -> ModelConfig:
    """The architecture that all have in common.

    Raises:
        UserError: two of them differ (the line says in what), or one has a NaN or an infinity.
    """
    first = checkpoints[0]
    config = first.architecture()
    for other in checkpoints[1:]:
        where = f"{first.path} and {other.path} are of two architectures"
        own, theirs = config.to_dict(), other.architecture().to_dict()
        fields = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        if fields:
            values = "; ".join(f"{key} {own.get(key)} and {theirs.get(key)}" for key in fields[:3])
            raise UserError(f"{where}: {values}")
        if odd := sorted(first.state_dict.keys() ^ other.state_dict.keys()):
            raise UserError(f"{where}: only one has {some(odd)}")
    for checkpoint in checkpoints:
        load_model(checkpoint, config)  # one line, if tensors are missing or of other shapes
        refuse_nonfinite(checkpoint.state_dict, str(checkpoint.path))
    return config
