"""`cn-clip weights inspect`: what a file of weights is, what it holds, and whether its numbers are sound.

cn-clip weights inspect clip_cn_vit-b-16.pt
cn-clip weights inspect logs/muge/checkpoints/epoch_latest.pt --tensors
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cn_clip.checkpoint import read_checkpoint
from cn_clip.containers import SAFETENSORS, read_container
from cn_clip.conversion.folder import model_folder, read_weights
from cn_clip.errors import UserError
from cn_clip.progress import progress
from cn_clip.towers import local
from cn_clip.weights.checksums import content_sha256, file_sha256
from cn_clip.weights.layouts import layout
from cn_clip.weights.source import TOWERS, is_buffer, print_json, tower
from cn_clip.zoo import available_models, weights_file


def inspect(
    source: str,
    /,
    tensors: bool = False,
    json: bool = False,
    sha256: bool = False,
    download_root: str | None = None,
) -> None:
    """Say what a file of weights is: layout, architecture, towers, precision, position, numbers that are none.

    Args:
        source: a file (.pt, .safetensors, of any layout), a folder or repository of Hugging Face, or a named
            model. Nothing in it is executed.
        tensors: a line for every tensor.
        json: print JSON.
        sha256: the SHA-256 of the file's bytes, too (a folder has none).
        download_root: where downloaded weights are kept.
    """
    path = weights_file(source, download_root) if source in available_models() else local(source)
    report = describe(path)
    if sha256 and path.is_file():
        report["sha256"] = file_sha256(path)
    if not tensors:
        del report["tensors"]
    if json:
        print_json(report)
    else:
        print("\n".join(_lines(report)))


def describe(path: Path) -> dict[str, Any]:
    """What `inspect` prints, as plain values; `tensors` has a row of statistics for each.

    Raises:
        UserError: no tensors with names in it, or damaged.
    """
    raw, rest, container, size = _open(path)
    kind = layout(raw, rest)
    config, why = None, ""
    if kind.use:  # not a Chinese CLIP
        weights = {name.removeprefix("module."): tensor for name, tensor in raw.items()}
    else:
        checkpoint = read_checkpoint(path)
        weights = checkpoint.state_dict
        try:
            config = checkpoint.architecture()
        except UserError as error:
            why = str(error).removeprefix(f"{path}: ")
    rows = [_row(name, weights[name]) for name in progress(list(weights), desc="tensors")]
    optimizer = rest.get("optimizer")
    return {
        "file": str(path),
        "bytes": size,
        "container": container,
        "layout": kind.name,
        "use": kind.use or "everything",
        "architecture": config.to_dict() if config else None,
        "architecture_from": ("the file" if checkpoint.config else "the tensors' shapes") if config else why,
        "towers": _towers(rows, bool(kind.use)),
        "nan": sum(row["nan"] for row in rows),
        "inf": sum(row["inf"] for row in rows),
        "logit_scale": _scale(weights),
        "epoch": _number(rest.get("epoch")),
        "step": _number(rest.get("step")),
        "name": rest["name"] if isinstance(rest.get("name"), str) else None,
        "optimizer": isinstance(optimizer, dict) and bool(optimizer.get("state")),
        "also": sorted(
            {str(key) for key in rest} - {"epoch", "step", "name", "optimizer", "model_config", "format"}
        ),
        "content_sha256": content_sha256(weights),
        "tensors": rows,
    }


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str, int]:
    """Tensors under the names that they have there, everything else, the kind of container, and bytes."""
    if path.is_dir():
        folder = model_folder(path)
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        return read_weights(folder), {}, "folder", size
    content = read_container(path)
    weights = content.get("state_dict", content)
    rest = {key: value for key, value in content.items() if key != "state_dict"} if weights is not content else {}
    named = isinstance(weights, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    )
    if not named or not weights:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(f"{path}: not a file of weights: expected tensors with names, found {keys}")
    return weights, rest, "safetensors" if path.suffix == SAFETENSORS else "pt", path.stat().st_size


def _row(name: str, tensor: Tensor) -> dict[str, Any]:
    """A tensor's statistics, NaN and infinities left out of them."""
    row: dict[str, Any] = {
        "name": name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "nan": 0,
        "inf": 0,
    }
    values = tensor.detach().float().reshape(-1)
    if tensor.is_floating_point():
        row["nan"], row["inf"] = int(values.isnan().sum()), int(values.isinf().sum())
        values = values[values.isfinite()] if row["nan"] or row["inf"] else values
    if len(values):
        norm = torch.linalg.vector_norm(values, dtype=torch.float64).item()
        mean = values.mean(dtype=torch.float64).item()
        variance = max(norm**2 / len(values) - mean**2, 0)
        row |= {"norm": norm, "mean": mean, "std": math.sqrt(variance)}
        row |= {"min": values.min().item(), "max": values.max().item()}
    return row


def _towers(rows: list[dict[str, Any]], foreign: bool) -> dict[str, dict[str, Any]]:
    """Of each tower (all tensors as one, if the names are of another layout): counts, dtypes, norm."""
    found = {}
    for part in ("all",) if foreign else TOWERS:
        own = [row for row in rows if foreign or tower(row["name"]) == part]
        parameters = [row for row in own if not is_buffer(row["name"])]
        found[part] = {
            "tensors": len(own),
            "parameters": sum(math.prod(row["shape"]) for row in parameters),
            "dtypes": dict(Counter(row["dtype"] for row in own).most_common()),
            "norm": math.sqrt(sum(row.get("norm", 0.0) ** 2 for row in parameters)),
        }
    return found


def _scale(weights: Mapping[str, Tensor]) -> dict[str, float] | None:
    """The learnt temperature: as stored (its logarithm), and what logits are multiplied by."""
    tensor = weights.get("logit_scale")
    if tensor is None or tensor.numel() != 1:
        return None
    value = tensor.float().item()
    return {"log": value, "factor": math.exp(min(value, 700.0))}


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['file']}: {report['layout']}",
        f"container     {report['container']}, {report['bytes']:,} bytes",
    ]
    if report["use"] != "everything":
        lines.append(f"usable as     {report['use']}")
    if report["architecture"]:
        lines.append(f"architecture  {_architecture(report['architecture'])} (from {report['architecture_from']})")
    elif report["architecture_from"]:
        lines.append(f"architecture  not known: {report['architecture_from']}")
    for part, found in report["towers"].items():
        kinds = ", ".join(f"{kind} ×{count}" for kind, count in found["dtypes"].items())
        lines.append(
            f"{part:14}{found['parameters']:,} parameters, {found['tensors']} tensors ({kinds}), "
            f"norm {found['norm']:.4g}"
        )
    if scale := report["logit_scale"]:
        lines.append(f"logit_scale   {scale['log']:.4f}: logits times {scale['factor']:.4g}")
    if report["epoch"] is not None or report["step"] is not None:
        lines.append(f"position      epoch {report['epoch']}, step {report['step']}, run {report['name'] or '-'}")
    lines.append(f"optimizer     {'yes' if report['optimizer'] else 'no'}")
    if report["also"]:
        lines.append(f"also          {', '.join(report['also'])}")
    bad = [f"{report[kind]:,} {name}" for kind, name in (("nan", "NaN"), ("inf", "infinite")) if report[kind]]
    lines.append(f"numbers       {'; '.join(bad) + '!' if bad else 'all finite'}")
    lines.append(f"content       {report['content_sha256']}")
    if "sha256" in report:
        lines.append(f"sha256        {report['sha256']}")
    for row in report.get("tensors", []):
        numbers = "  ".join(f"{key} {row[key]:.4g}" for key in ("norm", "mean", "std", "min", "max") if key in row)
        odd = "".join(f"  {row[key]} {key}" for key in ("nan", "inf") if row[key])
        lines.append(f"  {row['name']:72} {row['dtype']:9} {row['shape']!s:18} {numbers}{odd}")
    return lines


def _architecture(flat: Mapping[str, Any]) -> str:
    layers, width, patch = flat["vision_layers"], flat["vision_width"], flat.get("vision_patch_size")
    image = f"ResNet {layers}, {width} wide" if isinstance(layers, list) else f"ViT/{patch} {layers}×{width}"
    text = f"BERT {flat['text_num_hidden_layers']}×{flat['text_hidden_size']}"
    return f"{image} at {flat['image_resolution']} pixels + {text}, vectors of {flat['embed_dim']}"
