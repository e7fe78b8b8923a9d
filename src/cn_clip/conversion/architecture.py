"""Other programs' configurations of a model: transformers' `config.json`, open_clip's `open_clip_config.json`.

One table of fields for both directions. What this package's towers cannot compute is refused here, in one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cn_clip.config import ModelConfig
from cn_clip.errors import UserError

VISION_EPS, TEXT_EPS = 1e-5, 1e-12  # of the LayerNorms of both towers

# Our field -> transformers' field of `vision_config` or `text_config`, and its default there.
VISION_FIELDS: dict[str, tuple[str, Any]] = {
    "vision_width": ("hidden_size", 768),
    "vision_layers": ("num_hidden_layers", 12),
    "vision_patch_size": ("patch_size", 32),
    "image_resolution": ("image_size", 224),
    "vision_hidden_act": ("hidden_act", "quick_gelu"),
    "vision_intermediate_size": ("intermediate_size", 3072),
}
TEXT_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 30522),
    "text_hidden_size": ("hidden_size", 768),
    "text_num_hidden_layers": ("num_hidden_layers", 12),
    "text_num_attention_heads": ("num_attention_heads", 12),
    "text_intermediate_size": ("intermediate_size", 3072),
    "text_hidden_act": ("hidden_act", "gelu"),
    "text_hidden_dropout_prob": ("hidden_dropout_prob", 0.1),
    "text_attention_probs_dropout_prob": ("attention_probs_dropout_prob", 0.1),
    "text_max_position_embeddings": ("max_position_embeddings", 512),
    "text_type_vocab_size": ("type_vocab_size", 2),
    "text_initializer_range": ("initializer_range", 0.02),
}
HEADS = 12  # transformers' default of `vision_config`


def to_transformers(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a `ChineseCLIPModel`.

    Raises:
        UserError: an architecture that it cannot hold: a ResNet, or a pooler or bias in the text tower.
    """
    if config.vision.is_resnet:
        raise UserError(
            "a ResNet image tower (RN50) cannot be written for transformers: its ChineseCLIPModel has a ViT only; "
            "write pt or safetensors"
        )
    if config.text.text_pooler or config.text.text_projection_bias:
        raise UserError(
            "this text tower has a pooler or a bias after its projection (Taiyi-CLIP), which transformers' "
            "ChineseCLIPModel has no place for; write pt or safetensors"
        )
    flat = {**config.to_dict(), "vision_intermediate_size": config.vision.mlp_width}
    flat["vision_hidden_act"] = config.vision.vision_hidden_act
    vision = {theirs: flat[ours] for ours, (theirs, _) in VISION_FIELDS.items()}
    text = {theirs: flat[ours] for ours, (theirs, _) in TEXT_FIELDS.items()}
    return {
        "architectures": ["ChineseCLIPModel"],
        "model_type": "chinese_clip",
        "projection_dim": config.vision.embed_dim,
        "logit_scale_init_value": 2.6592,
        "vision_config": {
            "model_type": "chinese_clip_vision_model",
            **vision,
            "num_attention_heads": config.vision.heads,
            "num_channels": 3,
            "projection_dim": config.vision.embed_dim,
            "layer_norm_eps": VISION_EPS,
            "attention_dropout": 0.0,
        },
        "text_config": {
            "model_type": "chinese_clip_text_model",
            **text,
            "layer_norm_eps": TEXT_EPS,
            "pad_token_id": 0,
        },
    }


def from_transformers(values: dict[str, Any], where: str) -> ModelConfig:
    """The reverse, for a `config.json` of a `ChineseCLIPModel` of any version of transformers.

    Raises:
        UserError: another kind of model, or towers that compute something else.
    """
    kind = values.get("model_type")
    if kind != "chinese_clip":
        raise UserError(f"{where}: a model of type {kind}, not chinese_clip{_what_for(kind)}")
    embed_dim = values.get("projection_dim", 512)
    flat = {**vision_fields(part(values, "vision"), embed_dim, where), **text_fields(part(values, "text"), where)}
    return ModelConfig.from_dict(flat, where)


def part(values: dict[str, Any], tower: str) -> dict[str, Any]:
    """`vision_config` or `text_config`; old files repeat it under another name, which wins in transformers."""
    return {**(values.get(f"{tower}_config") or {}), **(values.get(f"{tower}_config_dict") or {})}


def vision_fields(values: dict[str, Any], embed_dim: int, where: str) -> dict[str, Any]:
    """Our fields of an image tower from transformers' `vision_config` (of CLIP or Chinese CLIP).

    Raises:
        UserError: it computes something else than our ViT.
    """
    _must_be(values, {"layer_norm_eps": VISION_EPS, "num_channels": 3}, where)
    found = {ours: values.get(theirs, default) for ours, (theirs, default) in VISION_FIELDS.items()}
    for name in ("image_resolution", "vision_patch_size"):
        found[name] = _square(found[name], where)
    heads, width = values.get("num_attention_heads", HEADS), found["vision_width"]
    if type(heads) is not int or type(width) is not int or heads < 1 or width % heads:
        raise UserError(f"{where}: an image tower of width {width} cannot have {heads} heads")
    return _plain_mlp({"embed_dim": embed_dim, "vision_head_width": width // heads, **found})


def text_fields(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Our fields of a text tower from transformers' `text_config`, or the `config.json` of a BERT.

    Raises:
        UserError: it computes something else than our BERT.
    """
    _must_be(values, {"layer_norm_eps": TEXT_EPS, "position_embedding_type": "absolute"}, where)
    return {ours: values.get(theirs, default) for ours, (theirs, default) in TEXT_FIELDS.items()}


@dataclass(frozen=True)
class OpenClip:
    """What an `open_clip_config.json` says of its image tower: our fields, and how its pictures are normalised."""

    vision: dict[str, Any]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def from_open_clip(values: dict[str, Any], where: str) -> OpenClip:
    """Read an `open_clip_config.json`.

    Raises:
        UserError: an image tower that is no plain ViT, or not OpenAI CLIP's with exact or quick GELU.
    """
    model = values.get("model_cfg", values)
    vision = model.get("vision_cfg")
    if not isinstance(vision, dict) or "embed_dim" not in model:
        raise UserError(f"{where}: not an open_clip configuration: no vision_cfg and embed_dim")
    known = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout"}
    same = {"pool_type": "tok", "pos_embed_type": "learnable", "output_tokens": vision.get("output_tokens")}
    for name, value in vision.items():
        # `timm_…` settings of a tower that is not timm's mean nothing.
        unused = name.startswith(("timm_", "attn_pooler_")) and name != "timm_model_name"
        if name not in known and value and value != same.get(name) and not unused:
            raise UserError(f"{where}: vision_cfg.{name} {value!r}: only open_clip's plain ViT can be read")
    width = vision.get("width", 768)
    layers = vision.get("layers", 12)
    if not isinstance(layers, int):
        raise UserError(f"{where}: a ResNet of open_clip; only its plain ViT can be read")
    preprocess = values.get("preprocess_cfg", {})
    found = {
        "embed_dim": model["embed_dim"],
        "image_resolution": _square(vision.get("image_size", 224), where),
        "vision_layers": layers,
        "vision_width": width,
        "vision_patch_size": vision.get("patch_size", 16),
        "vision_head_width": vision.get("head_width", 64),
        "vision_hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "vision_intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
    }
    mean, std = (tuple(preprocess[name]) if preprocess.get(name) else None for name in ("mean", "std"))
    return OpenClip(_plain_mlp(found), mean, std)


def _plain_mlp(found: dict[str, Any]) -> dict[str, Any]:
    if found["vision_intermediate_size"] == 4 * found["vision_width"]:
        found["vision_intermediate_size"] = None
    return found


def _must_be(values: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    for name, value in expected.items():
        own = values.get(name, value)
        same = math.isclose(own, value) if isinstance(value, float) and isinstance(own, float) else own == value
        if not same:
            raise UserError(f"{where}: {name} is {own!r}; this package's towers have {value!r}")


def _square(size: Any, where: str) -> int:
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is not int:
        raise UserError(f"{where}: expected a square of pixels, found {size!r}")
    return size


def _what_for(kind: Any) -> str:
    if kind in ("clip", "clip_vision_model"):
        return ": it has no Chinese text tower; give it to --clip-weight-path, or to cn-clip weights join --image"
    if kind == "bert":
        return ": a text tower alone; give it to --bert-weight-path, or to cn-clip weights join --text"
    return ""
