"""The weights that a verb is given (a file, a folder, a model's name, a repository's id), and their parts."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from cn_clip.checkpoint import Checkpoint, read_checkpoint
from cn_clip.config import model_config
from cn_clip.errors import UserError
from cn_clip.towers import local
from cn_clip.zoo import MODELS, available_models, weights_file

DTypeName = Literal["float32", "float16", "bfloat16"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOWERS = ("image", "text", "scale")


def read_source(
    name: str,
    download_root: str | None = None,
    vision_model: str | None = None,
    text_model: str | None = None,
) -> Checkpoint:
    """Read what `name` stands for: a named model, a checkpoint file, a folder or repository of Hugging Face.

    Args:
        name: what to read.
        download_root: where downloaded weights are kept.
        vision_model: image tower (a name or a JSON file) of a file that does not describe itself.
        text_model: its text tower.

    Raises:
        UserError: nothing of that name, not a Chinese CLIP's weights, or an architecture that is not told.
    """
    path = weights_file(name, download_root) if name in available_models() else local(name)
    checkpoint = read_checkpoint(path)
    config = checkpoint.config or (MODELS[name].config if name in MODELS else None)
    if vision_model or text_model:
        if not (vision_model and text_model):
            raise UserError("give --vision-model and --text-model together")
        config = model_config(vision_model, text_model)
    return dataclasses.replace(checkpoint, config=config)


def tower(name: str) -> str:
    """Which of `TOWERS` a tensor of a published name belongs to."""
    if name.startswith("visual."):
        return "image"
    return "scale" if name == "logit_scale" else "text"


def is_buffer(name: str) -> bool:
    """Batch norm's statistics: in the file, and no parameters."""
    return name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def refuse_nonfinite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError if a tensor holds a NaN or an infinity."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{where}: {name} has {count} numbers that are NaN or infinite; use an earlier checkpoint"
            )


def print_json(value: Any) -> None:
    """One JSON document on standard output; NaN and infinities, which JSON lacks, are null."""
    json.dump(_plain(value), sys.stdout, ensure_ascii=False, indent=1)
    print()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    unspeakable = isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")))
    return None if unspeakable else value
