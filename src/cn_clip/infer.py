"""Telling an architecture from the shapes of its tensors, for checkpoints that do not describe themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from cn_clip.config import TEXT_MODELS, VISION_MODELS, ModelConfig
from cn_clip.errors import UserError


def infer_config(w: dict[str, Tensor], where: str) -> ModelConfig:
    """The architecture of a state dict under the published names; errors start with `where`.

    Raises:
        UserError: not Chinese-CLIP weights, or towers whose number of heads the shapes do not tell.
    """
    try:
        vision = infer_vision(w, w["text_projection"].shape[1])
        text = infer_text(w)
    except KeyError as error:
        raise UserError(
            f"{where}: not a Chinese-CLIP checkpoint: no {error.args[0]}; it has {', '.join(list(w)[:3])}, …"
        ) from None
    except (IndexError, TypeError, ValueError):  # a tensor with fewer dimensions, or none of its rows
        raise UserError(f"{where}: not a Chinese-CLIP checkpoint: tensors of odd shapes") from None
    widths = {known.get("vision_width") for known in VISION_MODELS.values()}
    hidden = {known.get("text_hidden_size", 768) for known in TEXT_MODELS.values()}
    if vision["vision_width"] not in widths or text["text_hidden_size"] not in hidden:
        raise UserError(
            f"{where}: not a built-in architecture, and the file does not describe its own: "
            "give vision_model_name and text_model_name (names or JSON files)"
        )
    return ModelConfig.from_dict({**vision, **text}, where)


def infer_vision(w: dict[str, Tensor], embed_dim: int) -> dict[str, Any]:
    """The fields of an image tower from its tensors; heads of built-in widths are known, others 64 wide.

    Raises:
        KeyError: a tensor is missing.
        IndexError, TypeError, ValueError: tensors of odd shapes.
    """
    conv = w["visual.conv1.weight"]
    if "visual.attnpool.positional_embedding" in w:
        return {
            "embed_dim": embed_dim,
            "image_resolution": 32 * math.isqrt(len(w["visual.attnpool.positional_embedding"]) - 1),
            "vision_layers": [_count(w, f"visual.layer{i}.") for i in (1, 2, 3, 4)],
            "vision_width": 2 * conv.shape[0],
        }
    patch, width = conv.shape[-1], conv.shape[0]
    heads = {known["vision_width"]: known.get("vision_head_width", 64) for known in VISION_MODELS.values()}
    return {
        "embed_dim": embed_dim,
        "image_resolution": patch * math.isqrt(len(w["visual.positional_embedding"]) - 1),
        "vision_layers": _count(w, "visual.transformer.resblocks."),
        "vision_width": width,
        "vision_patch_size": patch,
        "vision_head_width": heads.get(width, 64),
        "vision_intermediate_size": _unusual(w, 4 * width),
    }


def _unusual(w: dict[str, Tensor], usual: int) -> int | None:
    """Width of the MLPs where it is another than the usual one."""
    first = w.get("visual.transformer.resblocks.0.mlp.c_fc.weight")
    return None if first is None or len(first) == usual else len(first)


def infer_text(w: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a text tower from its tensors; heads are 64 wide.

    Raises:
        KeyError, IndexError, ValueError: as `infer_vision`.
    """
    words = w["bert.embeddings.word_embeddings.weight"]
    return {
        "vocab_size": words.shape[0],
        "text_hidden_size": words.shape[1],
        "text_num_hidden_layers": _count(w, "bert.encoder.layer."),
        "text_num_attention_heads": words.shape[1] // 64,
        "text_intermediate_size": w["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "text_max_position_embeddings": w["bert.embeddings.position_embeddings.weight"].shape[0],
        "text_type_vocab_size": w["bert.embeddings.token_type_embeddings.weight"].shape[0],
    }


def _count(keys: Iterable[str], prefix: str) -> int:
    """How many numbered modules there are under `prefix`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)})
