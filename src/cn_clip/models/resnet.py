"""OpenAI CLIP's ModifiedResNet (Radford et al. 2021, section 2.4): three-convolution stem, anti-aliased
strides (an average pool before each), and attention pooling instead of an average at the end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cn_clip.config import VisionConfig


class Bottleneck(nn.Module):
    """1×1, 3×3, (average pool), 1×1, with a residual connection; output has 4 × `planes` channels."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        out = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride > 1 or inplanes != out:
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            layers["-1"] = nn.AvgPool2d(stride)
            layers["0"] = nn.Conv2d(inplanes, out, 1, bias=False)
            layers["1"] = nn.BatchNorm2d(out)
            self.downsample = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inplanes, H, W] -> [N, 4 · planes, H / stride, W / stride]."""
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(self.avgpool(x)))
        return F.relu(x + identity, inplace=True)


class AttentionPool(nn.Module):
    """The mean of the feature map attends to the map; only its output is computed."""

    def __init__(self, grid: int, width: int, heads: int, output_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> [N, output_dim]."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        n = x.shape[0]
        q, k, v = (t.reshape(n, t.shape[1], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(out.transpose(1, 2).reshape(n, -1))


class ModifiedResNet(nn.Module):
    """Stem, four stages, attention pooling."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        assert not isinstance(config.vision_layers, int)
        width = config.vision_width
        self.grad_checkpointing = False
        self.conv1 = nn.Conv2d(3, width // 2, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        inplanes = width
        for i, blocks in enumerate(config.vision_layers):
            planes = width * 2**i
            stage = [Bottleneck(inplanes, planes, stride=1 if i == 0 else 2)]
            inplanes = planes * Bottleneck.expansion
            stage += [Bottleneck(inplanes, planes, stride=1) for _ in range(1, blocks)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.attnpool = AttentionPool(config.image_resolution // 32, inplanes, config.heads, config.embed_dim)

    def initialise(self) -> None:
        """Draw the weights as OpenAI CLIP does; convolutions keep PyTorch's own initialisation."""
        pool = self.attnpool
        std = pool.positional_embedding.shape[1] ** -0.5
        for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
            nn.init.normal_(linear.weight, std=std)
        nn.init.normal_(pool.positional_embedding, std=std)
        for module in self.modules():
            if isinstance(module, Bottleneck):  # a residual branch that starts at zero: the identity at first
                nn.init.zeros_(module.bn3.weight)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute stages in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def forward(self, image: Tensor, mask_ratio: float = 0.0) -> Tensor:
        """image: [N, 3, H, W] -> [N, embed_dim]. `mask_ratio` has no meaning for convolutions: ignored."""
        # Channels last, convolutions are half again as fast. But on a CPU PyTorch then adds up batch statistics in
        # plain float32: off by 1e-4 of a deviation at 64 pixels, up to 1e-1 at 224. bfloat16 is no finer.
        x = self.conv1(image.contiguous(memory_format=torch.channels_last))
        if self.training and x.dtype == torch.float32 and not x.is_cuda:
            x = x.contiguous()
        x = F.relu(self.bn1(x), inplace=True)
        for i in (2, 3):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)), inplace=True)
        x = self.avgpool(x)
        for i in (1, 2, 3, 4):
            stage = getattr(self, f"layer{i}")
            if self.grad_checkpointing and self.training:
                x = checkpoint(stage, x, use_reentrant=False, context_fn=partial(_contexts, stage))
            else:
                x = stage(x)
        return self.attnpool(x)


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of a checkpointed stage's two passes: the second must not count its batch again."""
    return nullcontext(), statistics_kept(stage)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode use their batch's statistics and do not add them to the running ones."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counted
