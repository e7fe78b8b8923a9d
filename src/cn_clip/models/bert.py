"""BERT (Devlin et al. 2019): post-LN encoder without pooler, of which only [CLS] comes out.

Modules carry the published names (`encoder.layer.0.attention.self.query.weight`, …).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cn_clip.config import TextConfig

LAYER_NORM_EPS = 1e-12
PAD = 0  # id of [PAD]


def _embedding(rows: int, width: int, padding_idx: int | None = None) -> nn.Embedding:
    # Left empty: `initialise` fills it, and drawing numbers on the meta device costs a second of imports.
    return nn.Embedding(rows, width, padding_idx=padding_idx, _weight=torch.empty(rows, width))


class Embeddings(nn.Module):
    """Word + position + token type, normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.text_hidden_size
        self.word_embeddings = _embedding(config.vocab_size, width, padding_idx=PAD)
        self.position_embeddings = _embedding(config.text_max_position_embeddings, width)
        self.token_type_embeddings = _embedding(config.text_type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.text_hidden_dropout_prob)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [N, L] -> [N, L, width]; every token is of type 0."""
        positions = self.position_embeddings.weight[: ids.shape[1]]
        x = self.word_embeddings(ids) + positions + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(x))


class SelfAttention(nn.Module):
    """Query, key and value projections and the attention itself."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.text_hidden_size
        self.heads = config.text_num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dropout_p = config.text_attention_probs_dropout_prob

    def forward(self, x: Tensor, mask: Tensor | None, queries: int | None) -> Tensor:
        """x: [N, L, width], mask: bool [N, 1, 1, L], True where a key counts -> [N, queries or L, width]."""
        n, _, width = x.shape
        q, k, v = self.query(x[:, :queries]), self.key(x), self.value(x)
        q, k, v = (t.reshape(n, t.shape[1], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        dropout_p = self.dropout_p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
        return out.transpose(1, 2).reshape(n, -1, width)


class ResidualOutput(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual), the end of both halves of a layer."""

    def __init__(self, inputs: int, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.text_hidden_size)
        self.LayerNorm = nn.LayerNorm(config.text_hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.text_hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [N, L, inputs], residual: [N, L, width] -> [N, L, width]."""
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Self-attention and its output."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualOutput(config.text_hidden_size, config)

    def forward(self, x: Tensor, mask: Tensor | None, queries: int | None) -> Tensor:
        """As `SelfAttention`, with the residual connection of the query tokens."""
        return self.output(self.self(x, mask, queries), x[:, :queries])


class Intermediate(nn.Module):
    """The wide half of the feed-forward network, with exact GELU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.text_hidden_size, config.text_intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, width] -> [N, L, intermediate]."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Attention, then the feed-forward network."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.text_intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor | None, queries: int | None = None) -> Tensor:
        """x: [N, L, width] -> the first `queries` tokens (all, if None) of the layer's output."""
        x = self.attention(x, mask, queries)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The stack of layers; the last computes nothing but [CLS]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.text_num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [N, L, width] -> [CLS]: [N, width]."""
        last = len(self.layer) - 1
        for i, layer in enumerate(self.layer):
            queries = 1 if i == last else None
            if self.grad_checkpointing and self.training:
                x = checkpoint(layer, x, mask, queries, use_reentrant=False)
            else:
                x = layer(x, mask, queries)
        return x[:, 0]


class Bert(nn.Module):
    """Token ids -> the last layer's [CLS]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def initialise(self, std: float) -> None:
        """Draw the weights: BERT's normal distribution, zero biases."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""
        self.encoder.grad_checkpointing = enable

    def forward(self, ids: Tensor) -> Tensor:
        """ids: int64 [N, L], padded with 0 -> [N, width].

        Columns that are padding in every row are cut off first: padding never changes a result, and costs as
        much as words do. A traced or exported graph keeps all columns.
        """
        real = ids.ne(PAD)
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            used = real.any(dim=0).nonzero()
            length = int(used[-1]) + 1 if len(used) else 1
            ids, real = ids[:, :length], real[:, :length]
            if real.all():  # an unmasked attention takes a faster kernel
                return self.encoder(self.embeddings(ids), None)
        return self.encoder(self.embeddings(ids), real[:, None, None, :])
