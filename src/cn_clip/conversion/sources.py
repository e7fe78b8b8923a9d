"""One tower out of somebody's weights, under the published names: where image and text towers may come from.

Image: OpenAI CLIP's state dict, its form for transformers (`CLIPModel`, `CLIPVisionModel…`), open_clip's plain
ViT, or a Chinese CLIP. Text: any BERT of transformers or of Google's names, Taiyi-CLIP's, or a Chinese CLIP's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cn_clip.config import ModelConfig
from cn_clip.containers import read_container
from cn_clip.conversion.architecture import from_open_clip, part, text_fields, vision_fields
from cn_clip.conversion.folder import CONFIG, OPEN_CLIP_CONFIG, WEIGHTS, model_folder, read_json, read_weights
from cn_clip.conversion.keys import BUFFERS, SCALE, TEXT, VISION, is_transformers, plain_names, to_ours
from cn_clip.conversion.processor import close
from cn_clip.errors import UserError
from cn_clip.transform import MEAN, STD


@dataclass
class Source:
    """A tower from a file or folder.

    Attributes:
        where: its path.
        weights: its tensors under the published names.
        fields: its architecture's fields as far as a configuration beside the weights says them, else empty.
        unused: names in the file that belong to no part of this tower.
        notes: what differs from this package's ways, a line each.
    """

    where: str
    weights: dict[str, Tensor]
    fields: dict[str, Any]
    unused: list[str]
    notes: list[str] = field(default_factory=list)


def image_source(path: str | os.PathLike[str]) -> Source:
    """Read an image tower: tensors `visual.…`, and `logit_scale` where there is one.

    Raises:
        UserError: no image tower in it, or one that this package's ViT and ResNet do not compute.
    """
    folder, weights, described = _open(Path(path))
    where = str(path)
    fields, notes = _image_settings(folder) if folder else (vars(described.vision) if described else {}, [])
    weights = plain_names(weights)
    if "embeddings.class_embedding" in weights:  # a CLIPVisionModel on its own
        weights = {f"vision_model.{name}": tensor for name, tensor in weights.items()}
    if is_transformers(weights):
        try:
            found, unused = to_ours(weights, VISION + SCALE)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
    elif any(name.startswith("visual.trunk.") for name in weights):
        raise UserError(f"{where}: an image tower of timm (visual.trunk.…); only OpenAI CLIP's ViT can be read")
    else:
        found = {k: v for k, v in weights.items() if k.startswith("visual.") or k == "logit_scale"}
        unused = [name for name in weights if name not in found and not BUFFERS.fullmatch(name)]
    if "visual.conv1.weight" not in found:
        some = ", ".join(list(weights)[:3])
        raise UserError(f"{where}: no image tower: no tensor named visual.… or vision_model.…; it has {some}")
    return Source(where, found, fields, unused, notes)


def text_source(path: str | os.PathLike[str]) -> Source:
    """Read a text tower: tensors `bert.…`, and those after it: `text_pooler.…`, `text_projection` (with a bias).

    The projection is a Chinese CLIP's own, or the classifier of a BERT that was trained into another model's
    space (Taiyi-CLIP); `text_pooler` is BERT's pooler.

    Raises:
        UserError: no BERT in it.
    """
    folder, weights, described = _open(Path(path))
    where = str(path)
    fields = _text_settings(folder) if folder else (vars(described.text) if described else {})
    weights = {k.replace(".gamma", ".weight").replace(".beta", ".bias"): v for k, v in weights.items()}
    weights = plain_names(weights, keep_pooler=True)
    if any(name.startswith("roberta.") for name in weights):
        raise UserError(f"{where}: RoBERTa's own layout (positions from 2, other vocabulary); a BERT is needed")
    if "embeddings.word_embeddings.weight" in weights:  # a BertModel on its own
        weights = {f"bert.{name}": tensor for name, tensor in weights.items()}
    if is_transformers(weights):
        weights, _ = to_ours(weights, TEXT)
    found, unused = {}, []
    for name, tensor in weights.items():
        ours = _AFTER.get(name, name if name.startswith("bert.") else None)
        if ours:
            found[ours] = tensor.t().contiguous() if name == "classifier.weight" and tensor.ndim == 2 else tensor
        elif not BUFFERS.fullmatch(name):
            unused.append(name)
    found = {name: tensor for name, tensor in found.items() if not BUFFERS.fullmatch(name)}
    if "bert.embeddings.word_embeddings.weight" not in found:
        raise UserError(f"{where}: no text tower: no tensor named bert.…; it has {', '.join(list(weights)[:3])}")
    return Source(where, found, fields, unused)


_AFTER = {
    "bert.pooler.dense.weight": "text_pooler.weight",
    "bert.pooler.dense.bias": "text_pooler.bias",
    "classifier.weight": "text_projection",
    "classifier.bias": "text_projection_bias",
    "text_projection": "text_projection",
    "text_projection_bias": "text_projection_bias",
    "text_pooler.weight": "text_pooler.weight",
    "text_pooler.bias": "text_pooler.bias",
}


def _open(path: Path) -> tuple[Path | None, dict[str, Tensor], ModelConfig | None]:
    """The folder whose settings count, if any, the tensors, and the architecture that a file of ours describes."""
    if path.is_dir():
        folder = model_folder(path)
        return folder, read_weights(folder), None
    content = read_container(path)
    weights = content.get("state_dict", content)
    if isinstance(weights, dict):
        weights = {k: v for k, v in weights.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not weights or not isinstance(weights, dict):
        raise UserError(f"{path}: not a checkpoint: expected tensors with names")
    flat = content.get("model_config")
    described = ModelConfig.from_dict(flat, str(path)) if isinstance(flat, dict) else None
    return (path.parent if path.name in WEIGHTS else None), weights, described


def _image_settings(folder: Path) -> tuple[dict[str, Any], list[str]]:
    if (path := folder / OPEN_CLIP_CONFIG).is_file():
        found = from_open_clip(read_json(path), str(path))
        notes = []
        for name, own, ours in (("mean", found.mean, MEAN), ("std", found.std, STD)):
            if own is not None and not close(list(own), list(ours)):
                notes.append(f"{path}: its pictures are normalised with {name} {own}; here with {ours}")
        return found.vision, notes
    if not (path := folder / CONFIG).is_file():
        return {}, []
    values = read_json(path)
    kind = values.get("model_type")
    if kind in ("clip", "chinese_clip"):
        return vision_fields(part(values, "vision"), values.get("projection_dim", 512), str(path)), []
    if kind == "clip_vision_model":
        return vision_fields(values, values.get("projection_dim", 512), str(path)), []
    raise UserError(f"{path}: a model of type {kind}: expected clip, clip_vision_model or chinese_clip")


def _text_settings(folder: Path) -> dict[str, Any]:
    if not (path := folder / CONFIG).is_file():
        return {}
    values = read_json(path)
    kind = values.get("model_type")
    if kind == "chinese_clip":
        return text_fields(part(values, "text"), str(path))
    # Old configurations of BERT have no model_type; RoBERTa-wwm and MacBERT say bert.
    if kind not in ("bert", None):
        raise UserError(f"{path}: a model of type {kind}: expected bert or chinese_clip")
    return text_fields(values, str(path))
