"""What a model is made of: the two towers' architectures, in the published JSON schema.

`model_config("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")` joins two built-in architectures; either name may
be the path of a JSON file in the same schema instead.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cn_clip.errors import UserError

CONTEXT_LENGTH = 52  # word pieces of a text, [CLS] and [SEP] included, that the published models were trained with
DEFAULT_VISION_MODEL = "ViT-B-16"  # of the documented scripts
DEFAULT_TEXT_MODEL = "RoBERTa-wwm-ext-base-chinese"


@dataclass(frozen=True)
class VisionConfig:
    """The image tower: a ViT where `vision_layers` is a number, a ModifiedResNet where it is four.

    `vision_width` is the ViT's width or the ResNet's stem width; a ViT has `width / vision_head_width` heads,
    a ResNet's attention pooling `32 * width / vision_head_width`. The last two fields are ours, for image towers
    of other origin: `gelu` instead of OpenAI CLIP's `quick_gelu`, and an MLP of another width than four times.
    """

    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, ...]
    vision_width: int
    vision_patch_size: int | None = None
    vision_head_width: int = 64
    vision_hidden_act: str = "quick_gelu"
    vision_intermediate_size: int | None = None

    @property
    def is_resnet(self) -> bool:
        """True for a ModifiedResNet, False for a ViT."""
        return not isinstance(self.vision_layers, int)

    @property
    def heads(self) -> int:
        """Attention heads: of every ViT block, or of the ResNet's attention pooling."""
        return self.vision_width * (32 if self.is_resnet else 1) // self.vision_head_width

    @property
    def mlp_width(self) -> int:
        """Width of the wide half of a ViT's MLPs."""
        return self.vision_intermediate_size or 4 * self.vision_width


@dataclass(frozen=True)
class TextConfig:
    """The text tower: a BERT without pooler (post-LN, exact GELU, LayerNorm eps 1e-12).

    The last two fields are ours, for text towers of other origin (Taiyi-CLIP): BERT's pooler, a dense layer and
    tanh on [CLS], before the projection, and a bias after it.
    """

    vocab_size: int = 21128
    text_hidden_size: int = 768
    text_num_hidden_layers: int = 12
    text_num_attention_heads: int = 12
    text_intermediate_size: int = 3072
    text_hidden_act: str = "gelu"
    text_hidden_dropout_prob: float = 0.1
    text_attention_probs_dropout_prob: float = 0.1
    text_max_position_embeddings: int = 512
    text_type_vocab_size: int = 2
    text_initializer_range: float = 0.02
    text_pooler: bool = False
    text_projection_bias: bool = False


# Fields that the published schema lacks: written only where they say something.
_OURS: dict[str, Any] = {
    "vision_hidden_act": "quick_gelu",
    "vision_intermediate_size": None,
    "text_pooler": False,
    "text_projection_bias": False,
}


@dataclass(frozen=True)
class ModelConfig:
    """Both towers."""

    vision: VisionConfig
    text: TextConfig

    def to_dict(self) -> dict[str, Any]:
        """The published schema, both towers in one flat dictionary (as stored in our checkpoints)."""
        flat = {**asdict(self.vision), **asdict(self.text)}
        if self.vision.is_resnet:
            flat["vision_layers"] = list(flat["vision_layers"])
        return {name: value for name, value in flat.items() if name not in _OURS or value != _OURS[name]}

    @classmethod
    def from_dict(cls, flat: dict[str, Any], where: str = "architecture") -> ModelConfig:
        """The reverse of `to_dict`.

        Raises:
            UserError: a key is missing or unknown, or a value is of another kind.
        """
        vision_names = {field.name for field in fields(VisionConfig)}
        return cls(
            _vision({k: v for k, v in flat.items() if k in vision_names}, where),
            _text({k: v for k, v in flat.items() if k not in vision_names}, where),
        )


_VIT_B = {"embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768}
_VIT_L = {"embed_dim": 768, "vision_layers": 24, "vision_width": 1024, "vision_patch_size": 14}

VISION_MODELS: dict[str, dict[str, Any]] = {
    "ViT-B-32": {**_VIT_B, "vision_patch_size": 32},
    "ViT-B-16": {**_VIT_B, "vision_patch_size": 16},
    "ViT-L-14": {**_VIT_L, "image_resolution": 224},
    "ViT-L-14-336": {**_VIT_L, "image_resolution": 336},
    "ViT-H-14": {
        "embed_dim": 1024,
        "image_resolution": 224,
        "vision_layers": 32,
        "vision_width": 1280,
        "vision_head_width": 80,
        "vision_patch_size": 14,
    },
    "RN50": {"embed_dim": 1024, "image_resolution": 224, "vision_layers": [3, 4, 6, 3], "vision_width": 64},
}

TEXT_MODELS: dict[str, dict[str, Any]] = {
    "RoBERTa-wwm-ext-base-chinese": {},
    "RoBERTa-wwm-ext-large-chinese": {
        "text_hidden_size": 1024,
        "text_intermediate_size": 4096,
        "text_num_attention_heads": 16,
        "text_num_hidden_layers": 24,
    },
    "RBT3-chinese": {"text_num_hidden_layers": 3},
}


def model_config(vision: str, text: str) -> ModelConfig:
    """The architecture of two towers, each a built-in name or the path of a JSON file.

    Raises:
        UserError: no such name or file, or a file that does not follow the schema.
    """
    return ModelConfig(vision_config(vision), text_config(text))


def vision_config(vision: str) -> VisionConfig:
    """The image tower's architecture alone: a built-in name or the path of a JSON file."""
    return _vision(*_read(vision, VISION_MODELS, "--vision-model"))


def text_config(text: str) -> TextConfig:
    """The text tower's architecture alone: a built-in name or the path of a JSON file."""
    return _text(*_read(text, TEXT_MODELS, "--text-model"))


def _read(name: str, known: dict[str, dict[str, Any]], flag: str) -> tuple[dict[str, Any], str]:
    if (built_in := name.replace("/", "-")) in known:
        return known[built_in], built_in
    if not Path(name).is_file():
        raise UserError(f"{flag} {name}: no such architecture or JSON file; built in: {', '.join(known)}")
    try:
        values = json.loads(Path(name).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not a JSON file: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected one JSON object with an architecture's fields")
    return values, name


def _vision(values: dict[str, Any], where: str) -> VisionConfig:
    config = _build(VisionConfig, {**values, "vision_layers": _layers(values, where)}, where)
    if config.is_resnet:
        if config.image_resolution % 32 or config.vision_width % 2:
            raise UserError(f"{where}: a ResNet needs a resolution divisible by 32 and an even width")
        if config.vision_hidden_act != "quick_gelu" or config.vision_intermediate_size:
            raise UserError(f"{where}: a ResNet has no vision_hidden_act and no vision_intermediate_size")
    elif not config.vision_patch_size or config.vision_patch_size > config.image_resolution:
        raise UserError(f"{where}: a ViT needs vision_patch_size, at most its image_resolution")
    if config.vision_width * (32 if config.is_resnet else 1) % config.vision_head_width:
        raise UserError(f"{where}: vision_head_width {config.vision_head_width} does not divide the tower's width")
    if config.vision_hidden_act not in ("quick_gelu", "gelu"):
        raise UserError(f"{where}: vision_hidden_act must be quick_gelu or gelu, not {config.vision_hidden_act}")
    return config


def _layers(values: dict[str, Any], where: str) -> int | tuple[int, ...]:
    """A number (ViT), or four (ResNet) as a list or, in the published RN50 file, as text: "[3,4,6,3]"."""
    layers = values.get("vision_layers")
    if isinstance(layers, str):
        try:
            layers = json.loads(layers)
        except (ValueError, RecursionError):
            layers = None
    if type(layers) is int and layers > 0:
        return layers
    if isinstance(layers, (list, tuple)) and len(layers) == 4 and all(type(n) is int and n > 0 for n in layers):
        return tuple(layers)
    raise UserError(f"{where}: vision_layers must be a number (ViT) or a list of four (ResNet)")


def _text(values: dict[str, Any], where: str) -> TextConfig:
    config = _build(TextConfig, values, where)
    if config.text_hidden_size % config.text_num_attention_heads:
        raise UserError(f"{where}: text_hidden_size must be a multiple of text_num_attention_heads")
    if config.text_hidden_act != "gelu":
        raise UserError(f"{where}: text_hidden_act must be gelu, not {config.text_hidden_act}")
    return config


def _build(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    names = {field.name: field for field in fields(kind)}
    if unknown := sorted(map(str, values.keys() - names.keys())):
        raise UserError(f"{where}: unknown field {unknown[0]}; known: {', '.join(names)}")
    try:
        config = kind(**values)
    except TypeError as error:
        raise UserError(f"{where}: {str(error).split('() ')[-1]}") from None
    for name, value in values.items():
        expected = names[name].type
        if expected == "int | None" and value is None:
            continue
        if expected in ("int", "int | None") and (type(value) is not int or value < 1):
            raise UserError(f"{where}: {name} must be a whole number of 1 or more, not {value!r}")
        if expected == "float" and (type(value) not in (int, float) or not 0 <= value <= 1):
            raise UserError(f"{where}: {name} must be a number from 0 to 1, not {value!r}")
        if expected == "bool" and type(value) is not bool:
            raise UserError(f"{where}: {name} must be true or false, not {value!r}")
    return config
