"""The two kinds of file that weights come in: torch's `.pt` and `.safetensors`. Tensors and plain values only.

What the tensors are called and whose model they are is `checkpoint`'s business; here is nothing but files.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cn_clip.errors import UserError
from cn_clip.files import atomic_open, atomic_path

SAFETENSORS = ".safetensors"
_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_container(path: Path) -> dict[str, Any]:
    """What is in the file, its tensors memory-mapped where the container allows it.

    A `.safetensors` file becomes `{"state_dict": its tensors, **its header's metadata}`, values that are JSON
    objects decoded.

    Raises:
        UserError: missing, truncated, not a file of weights, or one that would run code.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} checkpoint file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    return _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)


def write_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """`torch.save` under a temporary name, then rename: a reader sees the old file or the whole new one.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            with open(temporary, "wb") as file:  # an open file: the archive's name is not the temporary one
                torch.save(dict(content), file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch's zip writer hides the operating system's error
            raise UserError(f"{path}: cannot write the checkpoint (is the disk full?): {error}") from None


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """A `.safetensors` file, the same bytes for the same tensors, one tensor in memory at a time.

    The library's own writer holds the whole file in memory and leaves the order of the metadata to chance.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
        ValueError: a tensor's dtype has no name in the format.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _KINDS:
            raise ValueError(f"{name} is {tensor.dtype}, which safetensors cannot hold")
    # As the library does: wide numbers first, so that every tensor starts at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy() if flat.numel() else b"")


def as_written(where: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in `dtype`, alone in its storage: a view would take everything it is a view of along.

    Raises:
        UserError: a number too large for `dtype`; the line starts with `where`.
    """
    plain = tensor.detach().cpu().contiguous()
    if dtype and plain.is_floating_point() and plain.ndim:
        rounded = plain.to(dtype)
        if not rounded.isfinite().all() and plain.isfinite().all():
            raise UserError(f"{where} holds {plain.abs().max():.3g}, too large for {dtype}: choose bfloat16")
        plain = rounded
    return plain.clone() if plain.untyped_storage().nbytes() != plain.nbytes else plain


def _read_torch(path: Path) -> dict[str, Any]:
    zipped = _check_zip(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused below, or old storages
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # The unpickler's words for a class or function outside its list, and for one on its black list.
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise UserError(
                f"{path}: refused: the file holds more than weights, and reading the rest could run code"
            ) from None
        raise UserError(f"{path}: not a checkpoint, or a damaged one; copy it again") from None
    except Exception:  # on damaged bytes the unpickler may raise nearly anything
        raise UserError(f"{path}: truncated or damaged, or not a checkpoint; copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a checkpoint: expected a dictionary, found {type(content).__name__}")
    return content


def _check_zip(path: Path) -> bool:
    """True for a zip archive (torch 1.6 and later), False for the pickles that `torch.save` wrote before.

    Raises:
        UserError: neither of the two, or a TorchScript archive.
    """
    with open(path, "rb") as file:
        magic = file.read(2)
    if magic != b"PK":
        if not magic.startswith(b"\x80"):  # a pickle's first byte
            raise UserError(f"{path}: not a checkpoint: neither a .pt nor a .safetensors file")
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged directory may ask for anything
        raise UserError(f"{path}: truncated or damaged; copy it again") from None
    if any("/code/" in name for name in names):
        raise UserError(
            f"{path}: a TorchScript archive is a program, not weights; use the same model's state dict "
            "(.pt or .safetensors)"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{path}: a zip archive, but not a checkpoint")
    return True


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file, or a damaged one: {error}") from None
    return {**{name: _decoded(text) for name, text in metadata.items()}, "state_dict": tensors}


def _decoded(text: str) -> Any:
    """Metadata is text; an architecture is a JSON object in it."""
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _numpy_scalars() -> list[Any]:
    """The reference's schedule leaves NumPy numbers in its optimizer states: admit those, and nothing else."""
    import _codecs

    import numpy as np

    core = getattr(np, "_core", None) or np.core
    scalar = core.multiarray.scalar
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        _codecs.encode,
        *dtypes,
    ]
