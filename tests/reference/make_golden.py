"""Features of the reference's six image towers and three text towers, with weights made by `filling`.

    .venv/bin/python benchmarks/reference_cpu.py tests/reference/make_golden.py

writes tests/golden/towers.npz (a minute, 8 GB of memory): for each model `<vision>.image` and `<vision>.text`
[2 or 4, embed_dim] float32, un-normalised. Inputs are `images` and `TEXTS` below.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from filling import fill

OUTPUT = Path(__file__).resolve().parents[1] / "golden" / "towers.npz"
TOWERS = {
    "RN50": "RBT3-chinese",
    "ViT-B-32": "RoBERTa-wwm-ext-base-chinese",
    "ViT-B-16": "RoBERTa-wwm-ext-base-chinese",
    "ViT-L-14": "RoBERTa-wwm-ext-base-chinese",
    "ViT-L-14-336": "RoBERTa-wwm-ext-base-chinese",
    "ViT-H-14": "RoBERTa-wwm-ext-large-chinese",
}
# 2, 6 and 14 tokens, and more than fit: the last is full.
TEXTS = ["", "一只猫咪", "杰尼龟是来自宝可梦的角色", "在海边的沙滩上有很多人在晒太阳" * 4]


def images(resolution: int) -> torch.Tensor:
    """Two pictures of coloured squares under noise, float32 [2, 3, resolution, resolution]."""
    generator = np.random.default_rng(resolution)
    squares = generator.standard_normal((2, 3, resolution // 14, resolution // 14))
    noise = generator.standard_normal((2, 3, resolution, resolution))
    pictures = squares.repeat(14, axis=2).repeat(14, axis=3) + 0.3 * noise
    return torch.from_numpy(pictures.astype(np.float32))


def main() -> None:
    """Build each model as the reference's own `create_model` does, fill it, and write its features."""
    from cn_clip.clip.model import CLIP  # type: ignore[import-not-found]

    from cn_clip.clip import tokenize, utils  # type: ignore[attr-defined]

    folder = Path(utils.__file__).parent / "model_configs"
    golden = {}
    for vision, text in TOWERS.items():
        config = json.loads((folder / f"{vision}.json").read_text())
        config |= json.loads((folder / f"{text}.json").read_text())
        if isinstance(config["vision_layers"], str):
            config["vision_layers"] = json.loads(config["vision_layers"])
        with torch.device("meta"):
            model = CLIP(**config)
        model = model.to_empty(device="cpu").eval()
        fill(model.state_dict().items())
        with torch.no_grad():
            golden[f"{vision}.image"] = model.encode_image(images(config["image_resolution"])).numpy()
            golden[f"{vision}.text"] = model.encode_text(tokenize(TEXTS)).numpy()
        for tower in ("image", "text"):
            features = golden[f"{vision}.{tower}"]
            assert np.isfinite(features).all()
            cosine = np.corrcoef(features[:2])[0, 1]
            print(f"{vision} {tower}: deviation {features.std():.3f}, correlation of two rows {cosine:.3f}")
        del model
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT, **golden)


if __name__ == "__main__":
    main()
