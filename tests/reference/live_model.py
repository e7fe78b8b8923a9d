"""Small odd architectures through the reference: features, similarities, gradients, batch statistics.

    python benchmarks/reference_cpu.py tests/reference/live_model.py OUTPUT.npz

The test imports `CASES` and `inputs` from here; the weights of both sides come from `filling`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from filling import fill

TEXT = {
    "vocab_size": 300,
    "text_attention_probs_dropout_prob": 0.0,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.0,
    "text_hidden_size": 40,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 72,
    "text_max_position_embeddings": 64,
    "text_num_attention_heads": 5,
    "text_num_hidden_layers": 3,
    "text_type_vocab_size": 3,
}
VIT = {"embed_dim": 24, "vision_layers": 3, "vision_width": 48, "vision_head_width": 16}
CASES: dict[str, dict[str, Any]] = {
    # 53 pixels hold five patches of ten: the rest of the picture is never seen.
    "vit": {**VIT, "image_resolution": 53, "vision_patch_size": 10, **TEXT},
    "vit one layer": {**VIT, "vision_layers": 1, "image_resolution": 32, "vision_patch_size": 8, **TEXT},
    "resnet": {
        "embed_dim": 17,
        "image_resolution": 96,
        "vision_layers": [1, 2, 1, 3],
        "vision_width": 20,
        "vision_patch_size": None,
        "vision_head_width": 10,
        **TEXT,
    },
}
POSITIONS = {"up": (30, 70), "down": (80, 40), "by one": (60, 70)}  # resolution of the weights, of the model
MASK_RATIO = 0.4


def inputs(config: dict[str, Any], batch: int = 33) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of pictures, and of token ids of every length from 2 to 34, padded with 0."""
    generator = np.random.default_rng(config["image_resolution"])
    side = config["image_resolution"]
    pictures = generator.standard_normal((batch, 3, side, side)).astype(np.float32)
    pictures *= generator.uniform(0.2, 2, (batch, 1, 1, 1)).astype(np.float32)
    ids = generator.integers(1, config["vocab_size"], (batch, 52))
    ids[np.arange(52) >= np.arange(2, batch + 2)[:, None]] = 0
    return torch.from_numpy(pictures), torch.from_numpy(ids)


def contrastive_loss(model: Any, pictures: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean of both directions' cross-entropy over the batch."""
    image, text, scale = model(pictures, ids)
    logits = scale * image @ text.t()
    labels = torch.arange(len(logits))
    loss = torch.nn.functional.cross_entropy
    return (loss(logits, labels) + loss(logits.t(), labels)) / 2


def measure(model: Any, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Everything compared of one model, ours or theirs, by name."""
    pictures, ids = inputs(config)
    model.eval()
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        found["image"] = model.encode_image(pictures)
        found["image alone"] = model(pictures[:1], None)
        found["text"] = model.encode_text(ids)
        found["text alone"] = model(None, ids[:1])
        found["unit image"], found["unit text"], found["scale"] = model(pictures, ids, mask_ratio=0)
        found["similarity"], found["similarity of texts"] = model.get_similarity(pictures[:7], ids)
        torch.manual_seed(5)
        found["masked"] = model.encode_image(pictures, mask_ratio=MASK_RATIO)
    model.train()
    loss = contrastive_loss(model, pictures, ids)
    loss.backward()
    found["loss"] = loss.detach()
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    found |= {f"after: {name}": buffer for name, buffer in model.named_buffers()}
    return {name: tensor.numpy().copy() for name, tensor in found.items()}


def main() -> None:
    """Measure every case in the reference, and its position embeddings at other resolutions."""
    from cn_clip.clip.model import CLIP, resize_pos_embed  # type: ignore[import-not-found]

    found = {}
    for case, config in CASES.items():
        model = CLIP(**config)
        fill(model.state_dict().items())
        found |= {f"{case}/{name}": array for name, array in measure(model, config).items()}
    for case, (old, new) in POSITIONS.items():
        small, large = (CLIP(**{**CASES["vit"], "image_resolution": side}) for side in (old, new))
        fill(small.state_dict().items())
        weights = dict(small.state_dict())
        resize_pos_embed(weights, large)
        large.load_state_dict(weights)
        pictures, _ = inputs({**CASES["vit"], "image_resolution": new})
        with torch.no_grad():
            found[f"positions {case}"] = large.eval().encode_image(pictures).numpy()
    np.savez(sys.argv[1], **found)


if __name__ == "__main__":
    main()
