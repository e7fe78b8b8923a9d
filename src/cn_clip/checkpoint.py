"""The only reader and writer of weights. Nothing in a file is executed: it may hold tensors and plain values.

Keys are those of the published checkpoints (`visual.…`, `bert.…`, `text_projection`, `logit_scale`). A file read
may carry `module.` before them, a BERT pooler, or flash-attention names; `read_checkpoint` returns them plain.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.config import ModelConfig
from cn_clip.containers import SAFETENSORS, as_written, read_container, write_checkpoint, write_safetensors
from cn_clip.conversion.huggingface import config_beside, published, read_huggingface
from cn_clip.conversion.keys import is_transformers, plain_names
from cn_clip.errors import UserError
from cn_clip.infer import infer_config
from cn_clip.models.clip import CLIP


@dataclass
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path: where it was read from.
        state_dict: tensors under the published names, in the precision of the file.
        config: the architecture, in files of ours; None in others.
        rest: everything else in the file (`epoch`, `step`, `optimizer`, …); empty for bare weights.
    """

    path: Path
    state_dict: dict[str, Tensor]
    config: ModelConfig | None
    rest: dict[str, Any]

    def architecture(self) -> ModelConfig:
        """`config`, or for a file without one what its tensors' shapes tell.

        Raises:
            UserError: not Chinese-CLIP weights, or towers whose number of heads the shapes do not tell.
        """
        return self.config or infer_config(self.state_dict, str(self.path))


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a `.pt` (published layout, ours, or a bare state dict) or `.safetensors` file, memory-mapped.

    A folder of Hugging Face, or a file of weights out of one, is read as well, under the published names; what its
    preprocessing asks for that is not done here are the lines of `rest["notes"]`.

    Raises:
        UserError: missing, truncated, not a file of weights, or one that would run code.
    """
    path = Path(path)
    if path.is_dir():
        named_so, described, notes = read_huggingface(path)
        return Checkpoint(path, named_so, described, {"notes": notes} if notes else {})
    content = read_container(path)
    weights = content.get("state_dict", content)
    named = isinstance(weights, dict) and all(isinstance(key, str) for key in weights)
    if not named or not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(f"{path}: not a checkpoint: expected a state_dict of tensors, found {keys}")
    if is_transformers(weights):
        return Checkpoint(path, published(weights, str(path)), config_beside(path), {})
    rest = {k: v for k, v in content.items() if k != "state_dict"} if weights is not content else {}
    flat = rest.get("model_config")
    config = ModelConfig.from_dict(flat, where=str(path)) if isinstance(flat, dict) else None
    try:
        return Checkpoint(path, plain_names(weights), config, rest)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def write_weights(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> None:
    """A file of weights that describes itself: `.safetensors` by that ending, else `.pt` in the published layout.

    The same weights give the same bytes, whole or not at all. `read_checkpoint` finds the architecture again
    (`model_config`; JSON in the header of a `.safetensors` file), and loading makes float32 of half precision.

    Args:
        path: the file to write.
        state_dict: tensors under the published names.
        config: their architecture.
        dtype: float32, float16 or bfloat16 of the matrices; None writes every tensor as it is. Whole numbers
            and single ones (`logit_scale`) stay as they are: rounding them would save nothing.
        metadata: what else the file is to say (`epoch`, `step`, `name`, …); text in a `.safetensors` file.
        prefix: before every name; `module.` is what the reference's trainer goes on from.

    Raises:
        UserError: a number too large for `dtype`, the disk is full, or the folder cannot be written.
    """
    tensors = {prefix + name: as_written(f"{path}: {name}", t, dtype) for name, t in state_dict.items()}
    described = {**(metadata or {}), "model_config": config.to_dict()}
    if Path(path).suffix == SAFETENSORS:
        # "format" is what other readers of the format ask for.
        text = {"format": "pt", **{k: v if isinstance(v, str) else json.dumps(v) for k, v in described.items()}}
        write_safetensors(path, tensors, text)
    else:
        write_checkpoint(path, {**described, "state_dict": tensors})


def load_model(
    checkpoint: Checkpoint, config: ModelConfig | None = None, dtype: torch.dtype = torch.float32
) -> CLIP:
    """A model in eval mode with the checkpoint's weights as they are, in `dtype`.

    Args:
        checkpoint: as read.
        config: the architecture; None takes the checkpoint's own, or tells it from the tensors' shapes.
            At another `image_resolution`, position embeddings are interpolated.

    Raises:
        UserError: weights of another architecture; the line says which keys differ.
    """
    config = config or checkpoint.architecture()
    with torch.device("meta"):
        model = CLIP(config)
    load_weights(model, checkpoint.state_dict, str(checkpoint.path), dtype)
    return model.eval()


def load_weights(model: CLIP, weights: dict[str, Tensor], where: str, dtype: torch.dtype | None = None) -> None:
    """Give a model all its weights, replacing its tensors; `dtype` None keeps the model's precision.

    Raises:
        UserError: keys or shapes differ.
    """
    weights = resize_positions(weights, model)
    own = model.state_dict()
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {list(weights[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in own.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    kinds = [
        f"{key} is {weights[key].dtype}, not {tensor.dtype}"
        for key, tensor in own.items()
        if key in weights and weights[key].is_floating_point() != tensor.is_floating_point()
    ]
    found = {"missing": missing, "unexpected": unexpected, "other shapes": shapes, "other kinds": kinds}
    if any(found.values()):
        text = "; ".join(f"{kind} ({len(keys)}): {some(keys)}" for kind, keys in found.items() if keys)
        raise UserError(f"{where}: weights of another architecture: {text}")
    # Meta tensors cannot be copied into; real ones (maybe already in an optimizer) must be.
    assign = any(tensor.is_meta for tensor in own.values())
    # A copy, not the mapped file: who saves over the file would pull it away from under the model.
    with _one_thread():
        converted = {
            key: value.to((dtype or own[key].dtype) if value.is_floating_point() else value.dtype, copy=assign)
            for key, value in weights.items()
        }
        model.load_state_dict(converted, assign=assign)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For copies of hundreds of tensors: threads that meet after each of them wait longer than they copy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def resize_positions(weights: dict[str, Tensor], model: CLIP) -> dict[str, Tensor]:
    """Interpolate the image tower's position embeddings to the model's grid: bicubic, corners aligned."""
    resized = dict(weights)
    for key in ("visual.positional_embedding", "visual.attnpool.positional_embedding"):
        own = model.state_dict().get(key)
        old = weights.get(key)
        if own is None or old is None or own.shape == old.shape or own.shape[1:] != old.shape[1:]:
            continue
        grid, new = math.isqrt(max(len(old) - 1, 0)), math.isqrt(len(own) - 1)
        if grid == 0 or grid * grid != len(old) - 1:
            continue
        patches = old[1:].float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, size=(new, new), mode="bicubic", align_corners=True)
        patches = patches.permute(0, 2, 3, 1).reshape(new * new, -1).to(old.dtype)
        resized[key] = torch.cat([old[:1], patches])
    return resized


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
