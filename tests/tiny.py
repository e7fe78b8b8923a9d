"""Architectures, models and files small enough for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filling import fill
from PIL import Image

from cn_clip.config import ModelConfig
from cn_clip.models.clip import CLIP

VIT: dict[str, Any] = {
    "embed_dim": 24,
    "image_resolution": 32,
    "vision_layers": 3,
    "vision_width": 48,
    "vision_patch_size": 8,
    "vision_head_width": 16,
}
RESNET: dict[str, Any] = {
    "embed_dim": 24,
    "image_resolution": 64,
    "vision_layers": [1, 2, 1, 1],
    "vision_width": 8,
    "vision_head_width": 64,
}
BERT: dict[str, Any] = {
    "vocab_size": 21128,
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 32,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 64,
    "text_max_position_embeddings": 64,
    "text_num_attention_heads": 2,
    "text_num_hidden_layers": 3,
    "text_type_vocab_size": 2,
}
TEXTS = [
    "",
    "猫",
    "一只可爱的猫在沙发上睡觉",
    "皮卡丘",
    "“杰尼龟”和妙蛙种子",
    "在海边的沙滩上有很多人在晒太阳" * 4,
    "a dog 🐶",
]


def tiny_model(vision: dict[str, Any] = VIT, text: dict[str, Any] = BERT) -> CLIP:
    """A model in eval mode with weights that leave nothing trivial."""
    model = CLIP(ModelConfig.from_dict({**vision, **text}))
    fill(model.state_dict().items())
    return model.eval()


def save_ours(model: CLIP, path: Path) -> Path:
    """A checkpoint that describes itself."""
    torch.save({"state_dict": model.state_dict(), "model_config": model.config.to_dict()}, path)
    return path


def write_json(folder: Path, **named: dict[str, Any]) -> list[str]:
    """An architecture file for each name; their paths."""
    for name, values in named.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return [str(folder / f"{name}.json") for name in named]


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Pictures of coloured squares, each of another size."""
    generator = np.random.default_rng(seed)
    found = []
    for i in range(count):
        squares = generator.integers(0, 256, (5, 4 + i % 3, 3), dtype=np.uint8)
        image = Image.fromarray(squares).resize((40 + 3 * i, 50 + i), Image.Resampling.NEAREST)
        found.append(image)
    return found


def transparent_pictures() -> list[Image.Image]:
    """One picture as a palette, in one bit, and half transparent in two modes: modes that lose by a conversion."""
    image = pictures(1)[0]
    rgba, la = image.convert("RGBA"), image.convert("LA")
    for each in (rgba, la):
        each.putalpha(Image.linear_gradient("L").resize(image.size))
    return [image.convert("P", palette=Image.Palette.ADAPTIVE), image.convert("1"), rgba, la]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def features(model: CLIP, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both towers' features without gradients."""
    with torch.no_grad():
        return model.encode_image(image), model.encode_text(ids)
