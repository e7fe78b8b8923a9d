"""Names of tensors: the published ones and those of transformers, both directions from one table.

A row is a published name and what transformers calls it. `{n}` stands for a number, `{p}` for `weight` or `bias`,
`{rest}` for anything. Three names on the right are stacked into one tensor on the left (query, key, value).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """One kind of tensor under both names; `transpose` where the matrices are each other's transpose."""

    ours: str
    theirs: tuple[str, ...]
    transpose: bool = False


_BLOCK, _LAYER = "visual.transformer.resblocks.{n}.", "vision_model.encoder.layers.{n}."
VISION: tuple[Row, ...] = (
    Row("visual.class_embedding", ("vision_model.embeddings.class_embedding",)),
    Row("visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",)),
    Row("visual.conv1.weight", ("vision_model.embeddings.patch_embedding.weight",)),
    Row("visual.ln_pre.{p}", ("vision_model.pre_layrnorm.{p}",)),  # their spelling
    Row(_BLOCK + "ln_1.{p}", (_LAYER + "layer_norm1.{p}",)),
    Row(_BLOCK + "attn.in_proj_{p}", tuple(f"{_LAYER}self_attn.{x}_proj.{{p}}" for x in "qkv")),
    Row(_BLOCK + "attn.out_proj.{p}", (_LAYER + "self_attn.out_proj.{p}",)),
    Row(_BLOCK + "ln_2.{p}", (_LAYER + "layer_norm2.{p}",)),
    Row(_BLOCK + "mlp.c_fc.{p}", (_LAYER + "mlp.fc1.{p}",)),
    Row(_BLOCK + "mlp.c_proj.{p}", (_LAYER + "mlp.fc2.{p}",)),
    Row("visual.ln_post.{p}", ("vision_model.post_layernorm.{p}",)),
    Row("visual.proj", ("visual_projection.weight",), transpose=True),
)
TEXT: tuple[Row, ...] = (
    Row("bert.{rest}", ("text_model.{rest}",)),
    Row("text_projection", ("text_projection.weight",), transpose=True),
)
SCALE: tuple[Row, ...] = (Row("logit_scale", ("logit_scale",)),)
CHINESE_CLIP: tuple[Row, ...] = VISION + TEXT + SCALE

# Kept by old versions of transformers, and no weights: counters, and a pooler that is never used.
BUFFERS = re.compile(r"(.*\.)?(position_ids|token_type_ids)|text_model\.pooler\..*")

_WILD = {"n": r"(?P<n>\d+)", "p": r"(?P<p>weight|bias)", "rest": r"(?P<rest>.+)"}


def is_transformers(names: Iterable[str]) -> bool:
    """Whether these are names of a CLIP or Chinese CLIP of transformers."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in names)


def to_theirs(weights: dict[str, Tensor], table: tuple[Row, ...]) -> dict[str, Tensor]:
    """Published names -> transformers' names.

    Raises:
        ValueError: a name that the table does not have.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        row, wild = _row(name, table)
        parts = tensor.tensor_split(len(row.theirs)) if len(row.theirs) > 1 else (tensor,)
        for theirs, part in zip(row.theirs, parts, strict=True):
            found[theirs.format(**wild)] = part.t() if row.transpose else part
    return found


def to_ours(weights: dict[str, Tensor], table: tuple[Row, ...]) -> tuple[dict[str, Tensor], list[str]]:
    """Transformers' names -> published names, and the names that the table does not have.

    Raises:
        ValueError: one of three tensors that belong together is missing, or they do not fit.
    """
    found: dict[str, Tensor] = {}
    unknown = []
    for name in weights:
        if BUFFERS.fullmatch(name):
            continue
        for row in table:
            if match := _match(row.theirs[0], name):
                wild = match.groupdict()
                parts = [_part(weights, theirs.format(**wild), name) for theirs in row.theirs]
                joined = parts[0] if len(parts) == 1 else torch.cat(parts)
                found[row.ours.format(**wild)] = joined.t().contiguous() if row.transpose else joined
                break
            if any(_match(theirs, name) for theirs in row.theirs[1:]):
                _part(weights, row.theirs[0].format(**_wild_of(row, name)), name)
                break
        else:
            unknown.append(name)
    return found, unknown


def plain_names(weights: dict[str, Tensor], keep_pooler: bool = False) -> dict[str, Tensor]:
    """State dict under the published names: no `module.`, no pooler (unless kept), no flash-attention names.

    Raises:
        ValueError: a flash-attention tensor that does not hold three.
    """
    plain: dict[str, Tensor] = {}
    for key, value in weights.items():
        key = key.removeprefix("module.")
        if key.startswith("bert.pooler.") and not keep_pooler:
            continue
        head, _, kind = key.rpartition(".")
        if head.endswith("attn.Wqkv"):
            plain[f"{head.removesuffix('.Wqkv')}.in_proj_{kind}"] = value
        elif head.endswith("attention.self.Wqkv"):
            if value.ndim == 0 or len(value) % 3:
                raise ValueError(f"{key} is {list(value.shape)}: expected query, key and value in one")
            for name, part in zip(("query", "key", "value"), value.tensor_split(3), strict=True):
                plain[f"{head.removesuffix('.Wqkv')}.{name}.{kind}"] = part
        elif head.endswith("attention.self.out_proj"):
            plain[f"{head.removesuffix('self.out_proj')}output.dense.{kind}"] = value
        else:
            plain[key] = value
    return plain


def _row(name: str, table: tuple[Row, ...]) -> tuple[Row, dict[str, str]]:
    for row in table:
        if match := _match(row.ours, name):
            return row, match.groupdict()
    raise ValueError(f"no place for {name}")


def _match(pattern: str, name: str) -> re.Match[str] | None:
    return _compiled(pattern).fullmatch(name)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(_WILD[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def _wild_of(row: Row, name: str) -> dict[str, str]:
    return next(match.groupdict() for theirs in row.theirs if (match := _match(theirs, name)))


def _part(weights: dict[str, Tensor], name: str, beside: str) -> Tensor:
    if name not in weights:
        raise ValueError(f"{beside} is there, but {name} is missing")
    return weights[name]
