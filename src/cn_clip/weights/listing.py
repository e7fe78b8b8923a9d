"""`cn-clip models`: the models that have a name, what they are made of, where they are, whether here or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cn_clip.checkpoint import read_checkpoint
from cn_clip.config import ModelConfig
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.weights.checksums import read_checksums, sidecar
from cn_clip.weights.source import TOWERS, print_json, tower
from cn_clip.zoo import BUNDLED, MODELS, bundled_path, weights_root


def models(download_root: str | None = None, json: bool = False) -> None:
    """List the models that have a name: the published ones, then those that come with the package.

    Args:
        download_root: where downloaded weights are kept; ~/.cache/clip by default.
        json: print JSON, with repositories and checksums.
    """
    root = weights_root(download_root)
    found = [_published(name, root) for name in MODELS] + [_bundled(name) for name in BUNDLED]
    if json:
        print_json(found)
        return
    header = ("model", "image", "text", "pixels", "width", "size", "file")
    rows = [header, *(_row(model) for model in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        name, *numbers, file = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([name.strip().ljust(widths[0]), *numbers, file.strip()]))
    print()
    for model in found:
        towers = (
            f"{model['image_tower']} + {model['text_tower']}"
            if model["image_tower"]
            else "not in this installation"
        )
        places = f"; {' or '.join(model['repositories'].values())}" if model["repositories"] else ""
        print(f"{model['model']}: {towers}{places}")
    print(f"weights are kept in {root}")


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    counts = model["parameters"]
    here = f"{model['bytes'] / 1e6:,.0f} MB" if model["bytes"] is not None else "not here"
    numbers = [counts.get("image"), counts.get("text"), model["resolution"], model["width"]]
    cells = ["-" if number is None else f"{number:,}" for number in numbers]
    return (model["model"], *cells, here, Path(model["file"]).name)


def _published(name: str, root: Path) -> dict[str, Any]:
    model = MODELS[name]
    return {
        "model": name,
        "image_tower": model.vision,
        "text_tower": model.text,
        **_architecture(model.config),
        **_on_disk(root / model.file),
        "repositories": {
            "Hugging Face": f"OFA-Sys/{model.repository}",
            "ModelScope": f"AI-ModelScope/{model.repository}",
        },
    }


def _bundled(name: str) -> dict[str, Any]:
    path = bundled_path(name)
    config: ModelConfig | None = None
    if path.is_file():
        try:
            config = read_checkpoint(path).architecture()
        except UserError:
            config = None  # a damaged installation must not hide the other models
    return {
        "model": name,
        "image_tower": _vision(config) if config else None,
        "text_tower": _text(config) if config else None,
        **_architecture(config),
        **_on_disk(path),
        "repositories": {},
    }


def _vision(config: ModelConfig) -> str:
    vision = config.vision
    if vision.is_resnet:
        return f"ResNet {vision.vision_layers}, {vision.vision_width} wide"
    return f"ViT/{vision.vision_patch_size} {vision.vision_layers}×{vision.vision_width}"


def _text(config: ModelConfig) -> str:
    return f"BERT {config.text.text_num_hidden_layers}×{config.text.text_hidden_size}"


def _architecture(config: ModelConfig | None) -> dict[str, Any]:
    """Parameters of each tower, pixels, and numbers in a vector."""
    if config is None:
        return {"parameters": {}, "resolution": None, "width": None}
    with torch.device("meta"):
        model = CLIP(config)
    counts = dict.fromkeys(TOWERS, 0)
    for name, parameter in model.named_parameters():
        counts[tower(name)] += parameter.numel()
    return {
        "parameters": {**counts, "total": sum(counts.values())},
        "resolution": config.vision.image_resolution,
        "width": config.vision.embed_dim,
    }


def _on_disk(path: Path) -> dict[str, Any]:
    here = path.is_file()
    checksum = None
    if sidecar(path).is_file():
        checksum = read_checksums(sidecar(path)).get(path.name)
    return {
        "file": str(path),
        "here": here,
        "bytes": path.stat().st_size if here else None,
        "sha256": checksum,
    }
