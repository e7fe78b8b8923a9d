"""A second oracle for the ViT models: transformers' ChineseCLIPModel, given the same weights."""

from __future__ import annotations

import pytest
import torch
from filling import fill
from transformers import ChineseCLIPConfig, ChineseCLIPModel

from cn_clip.config import ModelConfig, TextConfig, VisionConfig
from cn_clip.models.clip import CLIP

VISION = VisionConfig(
    embed_dim=24, image_resolution=40, vision_layers=3, vision_width=48, vision_patch_size=8, vision_head_width=16
)
TEXT = TextConfig(
    vocab_size=300,
    text_hidden_size=40,
    text_num_hidden_layers=3,
    text_num_attention_heads=5,
    text_intermediate_size=72,
    text_max_position_embeddings=64,
)
# Ours -> theirs, in order; every other part of a name is the same.
NAMES = {
    "bert.": "text_model.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    ".attn.": ".self_attn.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def their_weights(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    theirs = {}
    for name, tensor in ours.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if "in_proj_" in name:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                theirs[name.replace("in_proj_", f"{part}_proj.")] = chunk
        elif name in ("visual_projection.weight", "text_projection.weight"):
            theirs[name] = tensor.t()
        else:
            theirs[name] = tensor
    return theirs


@pytest.mark.usefixtures("one_torch_thread")
def test_features_equal_those_of_transformers() -> None:
    model = CLIP(ModelConfig(VISION, TEXT)).eval()
    fill(model.state_dict().items())
    theirs = ChineseCLIPModel(
        ChineseCLIPConfig(
            text_config={
                "vocab_size": 300,
                "hidden_size": 40,
                "num_hidden_layers": 3,
                "num_attention_heads": 5,
                "intermediate_size": 72,
                "max_position_embeddings": 64,
            },
            vision_config={
                "hidden_size": 48,
                "intermediate_size": 192,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "image_size": 40,
                "patch_size": 8,
            },
            projection_dim=24,
        )
    ).eval()
    theirs.load_state_dict(their_weights(model.state_dict()))  # strict: every weight has its place

    generator = torch.Generator().manual_seed(1)
    images = torch.randn(9, 3, 40, 40, generator=generator)
    ids = torch.randint(1, 300, (9, 20), generator=generator)
    mask = torch.arange(20) < torch.arange(2, 20, 2)[:, None]
    ids = ids * mask
    with torch.no_grad():
        image = theirs.get_image_features(pixel_values=images).pooler_output
        text = theirs.get_text_features(input_ids=ids, attention_mask=mask.long()).pooler_output
        for ours, other in ((model.encode_image(images), image), (model.encode_text(ids), text)):
            assert ours.shape == other.shape == (9, 24)
            assert ((ours - other).norm(dim=1) <= 1e-5 * other.norm(dim=1)).all()
