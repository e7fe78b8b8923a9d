"""Small models of the libraries that weights come from, and what they compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from filling import fill
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
)

from cn_clip.clip import tokenize
from cn_clip.config import ModelConfig
from cn_clip.models.clip import CLIP
from tiny import BERT, TEXTS, VIT

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IDS = tokenize(TEXTS)
THEIR_VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}
THEIR_BERT: dict[str, Any] = {
    "vocab_size": 21128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
OPEN_CLIP_TEXT = {"context_length": 16, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}


def filled(model: PreTrainedModel | torch.nn.Module) -> Any:
    """Weights that leave nothing trivial, in eval mode."""
    fill(model.state_dict().items())
    return model.eval()


def their_clip(**vision: Any) -> CLIPModel:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    values = {**THEIR_VISION, **vision}
    return filled(CLIPModel(CLIPConfig(vision_config=values, text_config=text, projection_dim=24)))


def their_features(model: CLIPModel) -> Tensor:
    with torch.no_grad():
        return model.get_image_features(pixel_values=PIXELS).pooler_output


def own(**values: Any) -> CLIP:
    return CLIP(ModelConfig.from_dict({**VIT, **BERT, **values}))


def assert_same(found: Tensor, expected: Tensor) -> None:
    with torch.no_grad():
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def open_clip_model(folder: Path, embed_dim: int = 24, config: bool = True, **values: Any) -> tuple[Any, Path]:
    """A model of open_clip, and the folder with it as the hub has them."""
    folder = folder / "open_clip"
    folder.mkdir(parents=True)
    quick = values.pop("quick_gelu", False)
    vision = {"image_size": 32, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8, **values}
    model = open_clip.CLIP(embed_dim, vision, OPEN_CLIP_TEXT, quick_gelu=quick)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.3)
    cfg = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": OPEN_CLIP_TEXT}
    cfg |= {"quick_gelu": True} if quick else {}
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    if config:
        preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}), "utf-8"
        )
    return model.eval(), folder


def berts() -> dict[str, PreTrainedModel]:
    config = BertConfig(**THEIR_BERT)
    classes = (BertModel, BertForMaskedLM, BertForPreTraining)
    return {kind.__name__: filled(kind(config)) for kind in classes}


def bert_cls(model: PreTrainedModel) -> Tensor:
    inner: Any = getattr(model, "bert", model)
    with torch.no_grad():
        return inner(input_ids=IDS, attention_mask=IDS.ne(0)).last_hidden_state[:, 0]
