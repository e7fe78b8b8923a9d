"""OpenAI CLIP's Vision Transformer (Radford et al. 2021, section 2.4): pre-LN, QuickGELU, class token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cn_clip.config import VisionConfig


class MLP(nn.Module):
    """Wider and back, with QuickGELU, x · sigmoid(1.702 x), that OpenAI CLIP was trained with, or exact GELU."""

    def __init__(self, width: int, hidden: int, quick: bool) -> None:
        super().__init__()
        self.quick = quick
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, width] -> the same shape."""
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """x: [N, L, width] -> what the first `queries` tokens (all, if None) see: [N, queries, width]."""
        n, length, width = x.shape
        if queries is None or queries >= length:
            queries = length
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            q = F.linear(x[:, :queries], self.in_proj_weight[:width], self.in_proj_bias[:width])
            k, v = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        q, k, v = (t.reshape(n, t.shape[1], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).reshape(n, queries, width))


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.attn = SelfAttention(width, config.heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, config.mlp_width, config.vision_hidden_act == "quick_gelu")
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """x: [N, L, width] -> the first `queries` tokens (all, if None) of the block's output."""
        x = x[:, :queries] + self.attn(self.ln_1(x), queries)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks of which only the class token comes out."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        assert isinstance(config.vision_layers, int)
        self.grad_checkpointing = False
        self.resblocks = nn.ModuleList(Block(config) for _ in range(config.vision_layers))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, L, width] -> class token [N, width]; the last block computes nothing for other tokens."""
        last = len(self.resblocks) - 1
        for i, block in enumerate(self.resblocks):
            queries = 1 if i == last else None
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, queries, use_reentrant=False)
            else:
                x = block(x, queries)
        return x[:, 0]


class VisionTransformer(nn.Module):
    """Patches -> tokens -> the class token, projected."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.vision_patch_size
        assert patch is not None
        grid = config.image_resolution // patch
        self.grid_size = (grid, grid)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(grid * grid + 1, width))
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim))
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config)
        self.ln_post = nn.LayerNorm(width)

    def initialise(self) -> None:
        """Draw the weights as OpenAI CLIP does: residual branches shrink with depth."""
        width = len(self.class_embedding)
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=width**-0.5)
        residual = width**-0.5 * (2 * len(self.transformer.resblocks)) ** -0.5
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.transformer.grad_checkpointing = enable

    def forward(self, image: Tensor, mask_ratio: float = 0.0) -> Tensor:
        """image: [N, 3, H, W] -> [N, embed_dim]; `mask_ratio` of the patches are dropped (FLIP)."""
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = x + self.positional_embedding[1:]
        if mask_ratio:
            x = _keep_random(x, mask_ratio)
        cls = (self.class_embedding + self.positional_embedding[0]).to(x.dtype)
        x = torch.cat([cls.expand(x.shape[0], 1, -1), x], dim=1)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x) @ self.proj


def _keep_random(x: Tensor, mask_ratio: float) -> Tensor:
    """FLIP (Li et al. 2023, section 3): each picture keeps its own random (1 - mask_ratio) of the patches."""
    n, length, width = x.shape
    keep = int(length * (1 - mask_ratio))
    chosen = torch.rand(n, length, device=x.device).argsort(dim=1)[:, :keep]
    return x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, width))
