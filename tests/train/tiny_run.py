"""A dataset, two architectures and runs small enough for tests: a run of ten steps takes a second."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import tiny
from cn_clip.data.build_lmdb import build_lmdb
from cn_clip.train.config import TrainConfig
from cn_clip.train.loop import train

SIZE = 32
VIT = {
    "embed_dim": 16,
    "image_resolution": SIZE,
    "vision_layers": 2,
    "vision_width": 32,
    "vision_patch_size": 8,
    "vision_head_width": 16,
}
RESNET = {
    "embed_dim": 16,
    "image_resolution": SIZE,
    "vision_layers": [1, 1, 1, 1],
    "vision_width": 8,
    "vision_head_width": 64,
}
BERT = {**tiny.BERT, "text_num_hidden_layers": 2}
COLOURS = {
    "红": (220, 30, 30),
    "绿": (30, 200, 40),
    "蓝": (40, 60, 230),
    "黄": (230, 220, 40),
    "白": (250, 250, 250),
}
SHAPES = {"圆": 0, "方块": 1, "条": 2}


def write_dataset(folder: Path, pictures: int = 15, splits: tuple[str, ...] = ("train", "valid")) -> Path:
    """Coloured shapes with their Chinese names, as LMDB under `folder`; returns the folder of the splits.

    Every third picture has a second text, and the last three share theirs with the first three.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [(c, s) for s in SHAPES for c in COLOURS]
    for split in splits:
        with open(folder / f"{split}_imgs.tsv", "w") as images:
            for i in range(pictures):
                images.write(f"{100 + i}\t{base64.b64encode(picture(*names[i % 12], i)).decode()}\n")
        with open(folder / f"{split}_texts.jsonl", "w", encoding="utf-8") as texts:
            for i in range(pictures):
                colour, shape = names[i % 12]
                for n, text in enumerate(
                    [f"{colour}色的{shape}", f"一个{shape},颜色是{colour}"][: 2 - (i % 3 > 0)]
                ):
                    row = {"text_id": 2 * i + n, "text": text, "image_ids": [100 + i]}
                    texts.write(json.dumps(row, ensure_ascii=False) + "\n")
    build_lmdb(folder, ",".join(splits))
    return folder / "lmdb"


def picture(colour: str, shape: str, seed: int) -> bytes:
    """A PNG of a shape on noise."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    inside = (x**2 + y**2 < 100, np.maximum(abs(x), abs(y)) < 10, abs(y) < 4)[SHAPES[shape]]
    pixels = np.random.default_rng(seed).integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[inside] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_architectures(folder: Path) -> dict[str, str]:
    """JSON files of the tiny towers: paths by name."""
    paths = {}
    for name, values in (("vit", VIT), ("resnet", RESNET), ("bert", BERT)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(values))
        paths[name] = str(path)
    return paths


def tiny_config(tmp_path: Path, lmdb: Path, vision: str = "vit", **options: Any) -> TrainConfig:
    """A run of 5 steps an epoch in `tmp_path`/logs/run."""
    towers = write_architectures(tmp_path)
    config = TrainConfig(
        train_data=lmdb / "train",
        val_data=lmdb / "valid",
        logs=tmp_path / "logs",
        name="run",
        vision_model=towers[vision],
        text_model=towers["bert"],
        num_workers=0,
        valid_num_workers=0,
        batch_size=4,
        valid_batch_size=5,
        context_length=16,
        max_epochs=2,
        lr=1e-3,
        warmup=2,
        eps=1e-6,
        precision="fp32",
        log_interval=1,
    )
    return replace(config, **options)


def run(config: TrainConfig) -> Path:
    """Train; returns the run's folder."""
    train(config)
    assert config.folder is not None
    return config.folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def weights(folder: Path, name: str = "epoch_latest.pt") -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]
    return state


def log_lines(folder: Path, pattern: str) -> list[str]:
    """Lines of all log files, oldest file first, that match."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("out_*.log")))
    return [line for line in text.splitlines() if re.search(pattern, line)]
