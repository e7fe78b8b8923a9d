"""AdamW over the documented parameter groups, and the learning rate of a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from cn_clip.train.config import TrainConfig


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters: first those without weight decay, then the others, each in the model's order.

    The rule is by name, as documented, because optimizer states in checkpoints go by position: `bn`, `ln`,
    `bias` or `logit_scale` in the name means no decay (so BERT's `LayerNorm.weight` decays).
    """
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
            (plain if exempt else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; one fused kernel a step, on CPU and GPU alike."""
    options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    groups = param_groups(model, config.wd)
    try:
        return torch.optim.AdamW(groups, **options, fused=True)
    except RuntimeError:  # PyTorch before 2.4 has no fused kernel for CPUs
        return torch.optim.AdamW(groups, **options)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore a state that may come from another implementation: moments are taken, the kernel stays ours.

    Raises:
        ValueError, KeyError: the state is of other parameters.
    """
    kernels = [
        {key: group[key] for key in ("fused", "foreach", "capturable", "differentiable")}
        for group in optimizer.param_groups
    ]
    # Copies: the file is memory-mapped, and the optimizer would write into that.
    moments = {
        key: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        for key, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
    for group, kernel in zip(optimizer.param_groups, kernels, strict=True):
        group.update(kernel)


def learning_rate(step: int, config: TrainConfig, total_steps: int) -> float:
    """Of step 0, 1, …: linear warm-up to `lr`, then half a cosine down to zero at `total_steps`."""
    assert config.lr is not None
    if config.skip_scheduler:
        return config.lr
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / (total_steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
