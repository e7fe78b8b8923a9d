"""What number format a run computes in, so that neither loop nor task need know."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cn_clip.errors import UserError


class Precision:
    """Autocast, loss scaling and the format of the weights, for `amp`, `bf16`, `fp16` or `fp32`.

    Raises:
        UserError: `fp16` on a CPU.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "fp16" and device.type == "cpu":
            raise UserError("--precision fp16 needs a GPU: on a CPU use --precision bf16, amp or fp32")
        self.name = name
        self.device = device
        scaled = name == "amp" and device.type == "cuda"
        self.dtype = torch.float16 if scaled else torch.bfloat16 if name in ("amp", "bf16") else None
        self.scaler = torch.amp.GradScaler("cuda", enabled=scaled)

    def prepare(self, model: nn.Module) -> None:
        """Give the weights their format, before an optimizer sees them."""
        if self.name == "fp16":
            to_half(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()`, scaled where float16 gradients would vanish."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer.step()`; left out, and the scale halved, where scaled gradients overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()


def to_half(model: nn.Module) -> None:
    """Weights and statistics in float16; the logit scale, a single number, keeps its digits."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and name != "logit_scale":
            tensor.data = tensor.data.half()
