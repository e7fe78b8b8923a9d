"""Towers from other people's weights: to start a training from, or two joined to a model.

cn-clip train --clip-weight-path openai/clip-vit-base-patch16 --bert-weight-path hfl/chinese-roberta-wwm-ext …
cn-clip weights join --image openai/clip-vit-base-patch32 --text IDEA-CCNL/Taiyi-CLIP-Roberta-102M-Chinese \
    --output taiyi.safetensors

A path is a file, a folder of Hugging Face, or the id of a repository there.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cn_clip.checkpoint import Checkpoint, load_model, resize_positions, some, write_weights
from cn_clip.config import TEXT_MODELS, VISION_MODELS, ModelConfig, text_config, vision_config
from cn_clip.conversion.sources import Source, image_source, text_source
from cn_clip.errors import UserError
from cn_clip.hub import is_repository, snapshot
from cn_clip.infer import infer_text, infer_vision
from cn_clip.models.clip import CLIP

Head = Literal["auto", "projection", "pooler", "new"]
# What is compared of a configuration beside the weights: shapes cannot tell these.
SILENT = ("vision_hidden_act", "vision_head_width", "text_num_attention_heads")


def load_towers(model: CLIP, clip_path: str | None, bert_path: str | None) -> str:
    """Start the image tower from OpenAI CLIP's weights, the text tower from BERT's; the rest stays as it is.

    Args:
        model: whose tensors are replaced.
        clip_path: an image tower, as `cn_clip.conversion.sources` reads them.
        bert_path: a text tower.

    Returns:
        A line that says how many of each tower's tensors were found, and names those that were not, and those
        in the file that belong to nothing here.

    Raises:
        UserError: a file holds nothing for its tower, or a tower of another architecture.
    """
    report = []
    for path, prefix in ((clip_path, "visual."), (bert_path, "bert.")):
        if not path:
            continue
        source = (image_source if prefix == "visual." else text_source)(local(path))
        _check_settings(source, model.config)
        weights = resize_positions(source.weights, model)
        scale = {"logit_scale"} if prefix == "visual." else set()
        own = {k: v for k, v in model.state_dict().items() if k.startswith(prefix) or k in scale}
        found = {k: v.to(own[k].dtype) for k, v in weights.items() if k in own}
        wrong = [k for k, v in found.items() if v.shape != own[k].shape]
        if wrong:
            raise UserError(
                f"{source.where}: cannot start the {prefix[:-1]} tower from this file: other shapes: {some(wrong)}"
            )
        model.load_state_dict(found, strict=False)
        absent = [k for k in own if k not in found]
        unused = [k for k in weights if k not in own] + source.unused
        line = f"{source.where}: {len(found)} of {len(own)} tensors of {prefix[:-1]}"
        line += f", not in the file: {some(absent)}" if absent else ""
        line += f"; not used of it: {some(unused)}" if unused else ""
        if prefix == "visual." and not model.config.vision.is_resnet and not source.fields:
            line += f"; the file does not say its activation, {model.config.vision.vision_hidden_act} is taken"
        report += [line, *source.notes]
    return "; ".join(report)


def join_towers(
    image: str, text: str, head: Head = "auto", vision_model: str | None = None, text_model: str | None = None
) -> Checkpoint:
    """A model of somebody's image tower and somebody's Chinese text tower.

    Args:
        image: OpenAI CLIP, open_clip, or a Chinese CLIP.
        text: Taiyi-CLIP's text tower, another BERT, or a Chinese CLIP.
        head: what follows BERT's [CLS]. projection: the file's projection, or its classifier (after the pooler);
            pooler: nothing but BERT's own pooler (Taiyi-CLIP with ViT-L and ViT-H of open_clip); new: a
            projection drawn at random, to be trained. auto: projection where the file has one, else an error.
        vision_model: the image tower's architecture, a name or JSON file, where its files do not say it.
        text_model: likewise for the text tower.

    Raises:
        UserError: towers that cannot be read, or that do not fit together.
    """
    vision, words = image_source(local(image)), text_source(local(text))
    weights = {k: v for k, v in vision.weights.items() if k.startswith("visual.")}
    weights |= {k: v for k, v in words.weights.items() if k.startswith("bert.")}
    flat = _vision_fields(vision, vision_model) | _text_fields(words, text_model)
    embed_dim = flat["embed_dim"]
    if not isinstance(flat["vision_layers"], tuple | list) and "visual.proj" not in weights:
        raise UserError(
            f"{image}: an image tower without its projection; take the whole CLIPModel, or "
            "CLIPVisionModelWithProjection"
        )
    weights |= _head(words, head, embed_dim, flat["text_hidden_size"])
    flat["text_pooler"] = "text_pooler.weight" in weights
    flat["text_projection_bias"] = "text_projection_bias" in weights
    # What a new CLIP starts with, where the image tower's file has none.
    weights["logit_scale"] = vision.weights.get("logit_scale", torch.tensor(math.log(1 / 0.07)))
    config = ModelConfig.from_dict(flat, f"{image} and {text}")
    joined = Checkpoint(Path(f"{vision.where} and {words.where}"), weights, config, {"notes": vision.notes})
    load_model(joined)  # every tensor is there and of the right shape, or the line says which is not
    return joined


def join(
    image: str,
    text: str,
    output: Path,
    head: Head = "auto",
    vision_model: str | None = None,
    text_model: str | None = None,
) -> None:
    """Join an image tower and a Chinese text tower of two models to one file of weights, which describes itself.

    Args:
        image: the image tower: OpenAI CLIP, open_clip or a Chinese CLIP; a file, a folder or a repository id.
        text: the text tower: Taiyi-CLIP, another BERT or a Chinese CLIP; a file, a folder or a repository id.
        output: the file to write, .pt or .safetensors.
        head: projection, pooler, new, or auto: what follows BERT's first token.
        vision_model: the image tower's architecture, a name or a JSON file, where its files do not say it.
        text_model: the text tower's architecture.
    """
    joined = join_towers(image, text, head, vision_model, text_model)
    config = joined.architecture()
    write_weights(output, joined.state_dict, config)
    for note in joined.rest["notes"]:
        print(note)
    vision = config.vision
    print(
        f"{output}: {len(joined.state_dict)} tensors, {vision.image_resolution} pixels, vectors of "
        f"{vision.embed_dim}, {vision.vision_hidden_act}"
    )


def local(path: str) -> Path:
    """A path as it is; a repository's id becomes the folder it is downloaded to.

    Raises:
        UserError: neither, or no connection.
    """
    if is_repository(path):
        return snapshot(path)
    if not Path(path).exists():
        raise UserError(f"{path}: no such file, folder or repository id (owner/name)")
    return Path(path)


def _check_settings(source: Source, config: ModelConfig) -> None:
    own = {**config.to_dict(), "vision_hidden_act": config.vision.vision_hidden_act}
    for name in SILENT:
        if name in source.fields and source.fields[name] != own[name]:
            value = json.dumps(source.fields[name])
            raise UserError(
                f"{source.where}: its {name} is {source.fields[name]}, this model's {own[name]}: give an "
                f'architecture (a JSON file) with "{name}": {value}'
            )


def _vision_fields(source: Source, name: str | None) -> dict[str, Any]:
    if name:
        return _plain(vision_config(name))
    if source.fields:
        return source.fields
    w = source.weights
    projection = w.get("visual.proj")
    try:
        embed_dim = len(w["visual.attnpool.c_proj.weight"]) if projection is None else projection.shape[1]
        fields = infer_vision(w, embed_dim)
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(f"{source.where}: an image tower without projection, or of odd shapes") from None
    if fields["vision_width"] not in {known["vision_width"] for known in VISION_MODELS.values()}:
        raise UserError(
            f"{source.where}: not an image tower of a built-in width, and the file does not describe its own: "
            "give --vision-model (a JSON file)"
        )
    return fields


def _text_fields(source: Source, name: str | None) -> dict[str, Any]:
    if name:
        return _plain(text_config(name))
    if source.fields:
        return source.fields
    try:
        fields = infer_text(source.weights)
    except (KeyError, IndexError, ValueError):
        raise UserError(f"{source.where}: a text tower with tensors missing, or of odd shapes") from None
    if fields["text_hidden_size"] not in {known.get("text_hidden_size", 768) for known in TEXT_MODELS.values()}:
        raise UserError(
            f"{source.where}: not a text tower of a built-in width, and the file does not describe its own: "
            "give --text-model (a JSON file)"
        )
    return fields


def _plain(config: Any) -> dict[str, Any]:
    return dict(vars(config))


def _head(source: Source, head: Head, embed_dim: int, width: int) -> dict[str, Tensor]:
    """The tensors after BERT: pooler, projection, bias."""
    w = source.weights
    pooler = {k: v for k, v in w.items() if k.startswith("text_pooler.")}
    projection = w.get("text_projection")
    if head == "auto":
        if projection is None:
            raise UserError(
                f"{source.where}: a BERT without projection: give --head pooler (its pooler was trained into the "
                "image tower's space: Taiyi-CLIP's for open_clip's ViT-L and ViT-H) or --head new (to be trained)"
            )
        head = "projection"
    if head == "new":
        generator = torch.Generator().manual_seed(0)
        return {"text_projection": torch.randn(width, embed_dim, generator=generator) * width**-0.5}
    if head == "projection":
        if projection is None or projection.ndim != 2 or projection.shape[1] != embed_dim:
            gives = "no projection" if projection is None else f"a projection to {projection.shape[-1]} numbers"
            raise UserError(f"{source.where}: {gives}, but the image tower's vectors have {embed_dim}")
        bias = {k: v for k, v in w.items() if k == "text_projection_bias"}
        return {"text_projection": projection, **pooler, **bias}
    if not pooler or width != embed_dim:
        why = f"is {width} wide, the image tower's vectors have {embed_dim}" if pooler else "is not in the file"
        raise UserError(f"{source.where}: --head pooler: BERT's pooler {why}")
    # A projection that changes nothing: the published layout has one.
    return {"text_projection": torch.eye(width, dtype=pooler["text_pooler.weight"].dtype), **pooler}
