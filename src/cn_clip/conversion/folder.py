"""Folders in the layout of Hugging Face: which files count, and the tensors in them, in shards or whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from cn_clip.containers import read_container
from cn_clip.errors import UserError

# In the order in which they are looked for; an index names the files of a model in shards.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # the second holds the first, inside
VOCABULARY, TOKENIZER, MODULES = "vocab.txt", "tokenizer.json", "modules.json"
SMALL_FILES = (CONFIG, OPEN_CLIP_CONFIG, PREPROCESSOR, PROCESSOR, VOCABULARY, TOKENIZER, "tokenizer_config.json")


def model_folder(folder: Path) -> Path:
    """The folder with the model in it: of a sentence-transformers folder, that of its first module.

    Raises:
        UserError: a `modules.json` that names no folder.
    """
    if (folder / CONFIG).is_file() or not (folder / MODULES).is_file():
        return folder
    modules = read_json(folder / MODULES, list)
    path = modules[0].get("path") if modules and isinstance(modules[0], dict) else None
    if not isinstance(path, str) or not (folder / path / CONFIG).is_file():
        raise UserError(f"{folder / MODULES}: names no folder with a {CONFIG}")
    return folder / path


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder under the names they have there.

    Raises:
        UserError: no weights, a shard is missing, or files that hold something else.
    """
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f"{folder}: no weights: expected one of {', '.join(WEIGHTS[:4])}")
    if not name.endswith(".json"):
        return _tensors(folder / name)
    weights: dict[str, Tensor] = {}
    placed = shards(folder / name)
    for shard in sorted(set(placed.values())):
        if not (folder / shard).is_file():
            raise UserError(f"{folder / shard}: missing: {name} says that weights are in it; copy it here")
        weights |= _tensors(folder / shard)
    if lost := [key for key in placed if key not in weights]:
        raise UserError(f"{folder}: {placed[lost[0]]} has no {lost[0]}, which {name} says is in it")
    return weights


def shards(index: Path) -> dict[str, str]:
    """Tensor -> name of the file that holds it.

    Raises:
        UserError: not an index of shards.
    """
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{index}: not an index of shards: no weight_map")
    for shard in placed.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{index}: {shard!r} is not the name of a file in the same folder")
    return placed


def read_json(path: Path, kind: type = dict) -> Any:
    """The content of a JSON file, which must be of that kind.

    Raises:
        UserError: missing, or something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(values, kind):
        raise UserError(f"{path}: expected a JSON {'object' if kind is dict else 'list'}")
    return values


def _tensors(path: Path) -> dict[str, Tensor]:
    content = read_container(path)
    content = content.get("state_dict", content)
    if not content or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in content.items()):
        raise UserError(f"{path}: expected tensors with names, and nothing else")
    return content
