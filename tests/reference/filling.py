"""Deterministic pseudo-random weights by state-dict name: the same in the reference's model and in ours.

Nothing is left trivial: norms have weights around 1 and biases, running statistics move, embeddings of class
and position matter. Scales keep activations near unit size through the deepest tower. Values come from NumPy
alone, so they do not depend on the version of torch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import numpy as np
import torch

# Random numbers generated for one tensor; a longer one repeats them (all towers together have two thousand
# million weights). A prime: it shares no factor with a row's length, so no two rows are equal.
BLOCK = 1_000_003
EMBEDDINGS = ("embeddings.weight", "class_embedding", "positional_embedding")


def fill(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Overwrite tensors in place; `named` is what `state_dict().items()` or `named_parameters()` gives."""
    with torch.no_grad():
        for name, tensor in named:
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of this shape that belongs to a parameter or buffer name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = generator.standard_normal(min(math.prod(shape), BLOCK), dtype=np.float32)
    return np.resize(_scaled(noise, name, shape), shape).astype(np.float32, copy=False)


def _scaled(noise: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "logit_scale":
        return 3 + 0.1 * noise
    if name.endswith("running_var"):
        return 0.5 + 1 / (1 + np.exp(-noise))
    if name.endswith(("running_mean", "bias")):
        return 0.1 * noise
    if name.endswith(EMBEDDINGS):
        return 0.05 * noise  # small, as trained ones are: the epsilons of the first norms then matter
    if len(shape) == 1:
        # A residual branch that ends in batch norm stays small beside its identity path.
        return (0.5 if name.endswith("bn3.weight") else 1) * (1 + 0.2 * noise)
    # `text_projection` and `visual.proj` are applied as `x @ w`, every other matrix as `x @ w.T`.
    fan_in = shape[0] if name in ("text_projection", "visual.proj") else math.prod(shape[1:])
    return noise * (_gain(shape) * fan_in**-0.5)


def _gain(shape: tuple[int, ...]) -> float:
    if len(shape) != 4:
        return 1
    # ReLU halves the variance between a ResNet's convolutions; a ViT's patches are as small as its positions.
    return 2**0.5 if shape[-1] <= 3 else 0.05
