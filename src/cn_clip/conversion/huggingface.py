"""A folder that transformers' `ChineseCLIPModel` and `ChineseCLIPProcessor` load; and the reading of one.

save_huggingface("folder", checkpoint.state_dict, checkpoint.architecture())
weights, config, notes = read_huggingface(Path("folder"))
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from cn_clip.config import ModelConfig
from cn_clip.containers import as_written, write_safetensors
from cn_clip.conversion.architecture import from_transformers, to_transformers
from cn_clip.conversion.card import Card, huggingface_card
from cn_clip.conversion.folder import (
    CONFIG,
    OPEN_CLIP_CONFIG,
    PREPROCESSOR,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    model_folder,
    read_json,
    read_weights,
)
from cn_clip.conversion.keys import CHINESE_CLIP, to_ours, to_theirs
from cn_clip.conversion.processor import (
    check_pictures,
    check_vocabulary,
    image_settings,
    write_json,
    write_tokenizer,
)
from cn_clip.errors import UserError
from cn_clip.files import atomic_path

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = {
    CONFIG,
    PREPROCESSOR,
    VOCABULARY,
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "README.md",
    WHOLE,
    INDEX,
}


def save_huggingface(
    folder: str | os.PathLike[str],
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    dtype: torch.dtype | None = None,
    card: Card | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write a folder for transformers: weights, configuration, preprocessing, model card. Whole or not at all.

    Args:
        folder: what to write; one that exists may hold nothing but an earlier conversion.
        weights: tensors under the published names.
        config: their architecture.
        dtype: precision of the matrices; None leaves every tensor as it is.
        card: what the model card is to say.
        max_shard_size: bytes in a file of weights; more are split over several.

    Raises:
        UserError: an architecture that `ChineseCLIPModel` does not have (RN50), a folder with other files in it,
            weights that are not this architecture's, or a full disk.
    """
    with new_folder(folder, FILES) as temporary:
        write_model(temporary, weights, config, dtype, max_shard_size)
        write_tokenizer(temporary)
        (temporary / "README.md").write_text(huggingface_card(card or Card(), config), encoding="utf-8")


def write_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    dtype: torch.dtype | None,
    max_shard_size: int,
) -> None:
    """Everything but the tokenizer and the card, into a folder that exists."""
    settings = to_transformers(config)
    try:
        theirs = to_theirs(dict(weights), CHINESE_CLIP)
    except ValueError as error:
        raise UserError(f"{folder.name}: weights of another architecture: {error}") from None
    theirs = {name: as_written(name, tensor, dtype) for name, tensor in theirs.items()}
    settings["dtype"] = str(theirs["visual_projection.weight"].dtype).removeprefix("torch.")
    write_json(folder / CONFIG, settings)
    write_json(folder / PREPROCESSOR, image_settings(config.vision.image_resolution))
    parts = _split(theirs, max_shard_size)
    if len(parts) == 1:
        write_safetensors(folder / WHOLE, theirs, {"format": "pt"})
        return
    placed: dict[str, str] = {}
    for i, names in enumerate(parts, 1):
        file = f"model-{i:05}-of-{len(parts):05}.safetensors"
        write_safetensors(folder / file, {name: theirs[name] for name in names}, {"format": "pt"})
        placed |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in theirs.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))})


def read_huggingface(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, list[str]]:
    """The weights of a `ChineseCLIPModel` folder under the published names, their architecture, and what differs.

    Weights may be whole or in shards, safetensors or an old `pytorch_model.bin`. The notes say, a line each, what
    the folder's preprocessing asks for that this package does not do.

    Raises:
        UserError: another kind of model, files that are missing or damaged, or tensors that do not belong to it.
    """
    folder = model_folder(folder)
    if not (folder / CONFIG).is_file():
        if (folder / OPEN_CLIP_CONFIG).is_file():
            raise UserError(
                f"{folder}: an open_clip model: give it to --clip-weight-path, or to cn-clip weights join --image"
            )
        raise UserError(f"{folder}: a folder, not a checkpoint file, and no model of Hugging Face: no {CONFIG}")
    config = from_transformers(read_json(folder / CONFIG), str(folder / CONFIG))
    weights = published(read_weights(folder), str(folder))
    notes = check_pictures(folder, config.vision.image_resolution)
    return weights, config, notes + check_vocabulary(folder, config.text.vocab_size)


def config_beside(path: Path) -> ModelConfig | None:
    """The architecture of a file of weights that lies in a folder of transformers; None elsewhere."""
    config = path.parent / CONFIG
    if path.name not in WEIGHTS or not config.is_file():
        return None
    return from_transformers(read_json(config), str(config))


def published(weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors of a `ChineseCLIPModel` under the published names.

    Raises:
        UserError: some are missing, or there are others.
    """
    if any(name.startswith("text_model.encoder.layers.") for name in weights):
        raise UserError(
            f"{where}: OpenAI's CLIP, which has no Chinese text tower; give it to --clip-weight-path, or to "
            "cn-clip weights join --image"
        )
    try:
        found, unknown = to_ours(weights, CHINESE_CLIP)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(f"{where}: not the tensors of a ChineseCLIPModel: {unknown[0]}{more}")
    return found


@contextmanager
def new_folder(folder: str | os.PathLike[str], names: Collection[str]) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when it is filled.

    Raises:
        UserError: `folder` is a file, or holds files of other names: they would be lost.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; give the name of a folder to write")
    there = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    other = next((name for name in there if name not in names and not _is_shard(name)), None)
    if other is not None:
        raise UserError(f"{folder}: holds other files ({other}), which would be lost; choose a new folder")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        yield temporary


def _is_shard(name: str) -> bool:
    return name.startswith("model-") and name.endswith(".safetensors")


def _split(weights: dict[str, Tensor], most: int) -> list[list[str]]:
    """Names in parts of at most `most` bytes; a tensor that is larger is a part of its own."""
    parts: list[list[str]] = [[]]
    size = 0
    for name, tensor in weights.items():
        if parts[-1] and size + tensor.nbytes > most:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += tensor.nbytes
    return parts
