"""Whose layout a file of weights has: told from the names of its tensors, and from what lies beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cn_clip.conversion.keys import is_transformers


class Layout(NamedTuple):
    """What a file is.

    Attributes:
        name: for people.
        use: what can be done with it here; empty for what every verb takes.
    """

    name: str
    use: str = ""


_IMAGE = "an image tower to start from (cn-clip train --clip-weight-path, cn-clip weights join --image)"
_TEXT = "a text tower to start from (cn-clip train --bert-weight-path, cn-clip weights join --text)"


def layout(names: Iterable[str], rest: Mapping[str, Any]) -> Layout:
    """The layout of a file's tensors, by their names as they are there, and of the values beside them.

    `rest` is everything in the file but the tensors.
    """
    wrapped = list(names)
    plain = {name.removeprefix("module.") for name in wrapped}
    if is_transformers(plain):
        return _transformers(plain)
    image = any(name.startswith("visual.") for name in plain)
    text = any(name.startswith("bert.") for name in plain)
    if image and text and "text_projection" in plain:
        return Layout(_chinese_clip(rest, any(name.startswith("module.") for name in wrapped)))
    if any(name.startswith("visual.trunk.") for name in plain):
        return Layout("an open_clip model with an image tower of timm", "none: only OpenAI CLIP's towers are read")
    if image and "token_embedding.weight" in plain:
        return Layout("OpenAI CLIP (or open_clip), both towers", _IMAGE)
    if image:
        return Layout("an image tower under OpenAI CLIP's names", _IMAGE)
    if text or "embeddings.word_embeddings.weight" in plain:
        head = ", with its pretraining head" if any(name.startswith("cls.") for name in plain) else ""
        return Layout(f"BERT{head}", _TEXT)
    if any(name.startswith("roberta.") for name in plain):
        return Layout("RoBERTa's own layout", "none: a BERT is needed")
    return Layout("tensors of something else", "none")


def _transformers(plain: set[str]) -> Layout:
    if any(name.startswith("text_model.encoder.layers.") for name in plain):
        return Layout("OpenAI CLIP for transformers (CLIPModel)", _IMAGE)
    if not any(name.startswith("text_model.") for name in plain):
        return Layout("an image tower for transformers (CLIPVisionModel)", _IMAGE)
    if not any(name.startswith("vision_model.") for name in plain):
        return Layout("a text tower for transformers", _TEXT)
    return Layout("Chinese CLIP for transformers (ChineseCLIPModel)")


def _chinese_clip(rest: Mapping[str, Any], wrapped: bool) -> str:
    described = isinstance(rest.get("model_config"), dict)
    if "optimizer" in rest:
        return f"training checkpoint of {'this package' if described else 'the reference'}"
    if described:
        return "weights of this package, self-describing"
    if "epoch" in rest or "step" in rest:
        return "published layout (weights of a training checkpoint)"
    return f"Chinese CLIP's weights alone{', names with module.' if wrapped else ''}"
