"""Runs of the reference's own trainer, and of ours with the same flags, on a small dataset.

Its trainer takes built-in names only, so it is given a copy of itself in which two of them are small.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from oracle import ROOT, run_python, run_reference
from PIL import Image

TEXT = {
    "vocab_size": 21128,
    "text_attention_probs_dropout_prob": 0.0,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.0,
    "text_hidden_size": 64,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 128,
    "text_max_position_embeddings": 64,
    "text_num_attention_heads": 4,
    "text_num_hidden_layers": 2,
    "text_type_vocab_size": 2,
}
VISION: dict[str, dict[str, Any]] = {
    "ViT-B-16": {
        "embed_dim": 32,
        "image_resolution": 64,
        "vision_layers": 2,
        "vision_width": 64,
        "vision_patch_size": 16,
        "vision_head_width": 32,
    },
    "RN50": {
        "embed_dim": 32,
        "image_resolution": 64,
        "vision_layers": [1, 1, 1, 1],
        "vision_width": 8,
        "vision_patch_size": None,
    },
}
TEXT_NAME = "RBT3-chinese"
MOTIFS = ["红色的圆", "蓝色的方块", "绿色的山", "一只黄猫", "two dogs", "白色的云朵", "夜里的灯"]
COLOURS = np.random.default_rng(1).integers(0, 196, (7, 4, 3, 3), dtype=np.uint8)


class Line(NamedTuple):
    """A log line's numbers: of a step, or of a validation (then `loss` is the validation loss)."""

    text: str  # the line without its loss and times
    loss: float


def write_dataset(folder: Path) -> Path:
    """66 pairs of 60 pictures, made an LMDB by the reference's builder; returns the split's LMDB."""
    generator = np.random.default_rng(3)
    with (
        (folder / "train_imgs.tsv").open("w") as images,
        (folder / "train_texts.jsonl").open("w", encoding="utf-8") as texts,
    ):
        for i in range(60):
            # A motif has its colours: there is something to learn.
            squares = COLOURS[i % 7] + generator.integers(0, 60, (4, 3, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(squares).resize((50 + i, 90 - i), Image.Resampling.NEAREST).save(file, "PNG")
            images.write(f"{900 + i}\t{base64.urlsafe_b64encode(file.getvalue()).decode()}\n")
            ids = [900 + i, 900 + (i + 7) % 60] if i % 10 == 0 else [900 + i]
            row = {"text_id": i, "text": f"“{MOTIFS[i % 7]}”第{i}号 No. {i}", "image_ids": ids}
            texts.write(json.dumps(row, ensure_ascii=False) + "\n")
    run_reference("cn_clip.preprocess.build_lmdb_dataset", "--data_dir", folder, "--splits", "train")
    return folder / "lmdb" / "train"


def small_reference(folder: Path) -> Path:
    """A copy of the reference whose ViT-B-16, RN50 and RBT3-chinese are those above."""
    copy = folder / "reference"
    if not (ROOT / ".reference" / "cn_clip").is_dir():
        raise AssertionError("the reference is not installed in .reference; run: make test")
    shutil.copytree(ROOT / ".reference", copy)
    for name, config in {**VISION, TEXT_NAME: TEXT}.items():
        (copy / "cn_clip" / "clip" / "model_configs" / f"{name}.json").write_text(json.dumps(config))
    return copy


def initial_checkpoint(path: Path, state_dict: dict[str, torch.Tensor]) -> Path:
    """Weights in the published layout."""
    weights = {f"module.{name}": tensor for name, tensor in state_dict.items()}
    torch.save({"epoch": 0, "step": 0, "name": "initial", "state_dict": weights}, path)
    return path


def train_reference(copy: Path, vision: str, *flags: object) -> None:
    """Run the reference's trainer."""
    models = ("--vision-model", vision, "--text-model", TEXT_NAME)
    run_reference("cn_clip.training.main", *models, *flags, reference=copy)


def train_ours(copy: Path, vision: str, *flags: object) -> None:
    """Run `cn-clip train` with the same flags; the architectures are the copy's JSON files."""
    configs = copy / "cn_clip" / "clip" / "model_configs"
    models = ("--vision-model", configs / f"{vision}.json", "--text-model", configs / f"{TEXT_NAME}.json")
    run_python("-m", "cn_clip", "train", *models, *flags)


def read_log(run: Path) -> dict[str, list[Line]]:
    """The documented lines of a run's newest log: those of steps, and those of validations."""
    text = sorted(run.glob("out_*.log"))[-1].read_text(encoding="utf-8")
    found: dict[str, list[Line]] = {"steps": [], "validations": []}
    for line in text.splitlines():
        if match := re.search(r"(Global Steps: .*|Validation Result .*)", line):
            line = match[1]
            loss = re.search(r"Loss: ([\d.]+)", line)
            assert loss, line
            plain = re.sub(r"(Loss|Data Time|Batch Time): [\d.]+s? \| ", "", line)
            found["steps" if line.startswith("Global") else "validations"].append(Line(plain, float(loss[1])))
    return found


def read_weights(run: Path, name: str = "epoch_latest.pt") -> dict[str, torch.Tensor]:
    """The weights of a run's checkpoint."""
    content = torch.load(run / "checkpoints" / name, map_location="cpu", weights_only=False)
    weights: dict[str, torch.Tensor] = content["state_dict"]
    return weights
