"""`cn-clip weights convert`: the same weights as another kind of file, verified before it has its name.

cn-clip weights convert logs/muge/checkpoints/epoch_latest.pt muge.safetensors --to safetensors --dtype float16
cn-clip weights convert ViT-B-16 chinese-clip-b16 --to hf
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.checkpoint import Checkpoint, load_model, read_checkpoint, write_weights
from cn_clip.config import ModelConfig
from cn_clip.containers import SAFETENSORS, as_written
from cn_clip.conversion.huggingface import FILES, new_folder, save_huggingface
from cn_clip.conversion.sentence_transformers import FOLDER_FILES, save_sentence_transformers
from cn_clip.errors import UserError
from cn_clip.files import atomic_path
from cn_clip.tokenizer import default_tokenizer
from cn_clip.weights.checksums import write_checksum
from cn_clip.weights.source import DTYPES, DTypeName, read_source, refuse_nonfinite

Target = Literal["pt", "safetensors", "hf", "sentence-transformers"]
TEXTS = ["一只可爱的猫在沙发上睡觉", "皮卡丘"]
# How far a number of a unit vector may be from the source's: the precision's rounding, many times over.
TOLERANCE = {None: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}


def convert(
    source: str,
    output: Path,
    /,
    to: Target | None = None,
    dtype: DTypeName | None = None,
    reference_layout: bool = False,
    checksum: bool = False,
    vision_model: str | None = None,
    text_model: str | None = None,
    download_root: str | None = None,
) -> None:
    """Write weights as another kind of file: without optimizer, with their architecture.

    What is written is read again before it gets its name: every tensor must be the source's (rounded to
    --dtype), and the features of a fixed picture and text those of the source within the precision.

    Args:
        source: a file, a folder or repository of Hugging Face, or a named model.
        output: the file to write; a folder for hf and sentence-transformers.
        to: told from the ending of OUTPUT if not given.
        dtype: precision of the matrices; as they are if not given. Loading makes float32 of all.
        reference_layout: a .pt that the reference's trainer goes on from (--reset-optimizer): names with
            module., epoch, step and name.
        checksum: write OUTPUT.sha256, too.
        vision_model: image tower (a name or a JSON file) of a file that does not describe itself.
        text_model: its text tower.
        download_root: where downloaded weights are kept.
    """
    kind = to or _kind(output)
    _check_flags(output, kind, reference_layout, checksum)
    found = read_source(source, download_root, vision_model, text_model)
    refuse_nonfinite(found.state_dict, str(found.path))
    config = found.architecture()
    precision = DTYPES[dtype] if dtype else None
    load_model(found, config)  # one line now, if tensors are missing or of other shapes
    with _hidden(output, kind) as hidden:
        if kind == "hf":
            save_huggingface(hidden, found.state_dict, config, dtype=precision)
        elif kind == "sentence-transformers":
            save_sentence_transformers(hidden, found.state_dict, config, dtype=precision)
        else:
            prefix = "module." if reference_layout else ""
            metadata = _position(found.rest, reference_layout)
            write_weights(hidden, found.state_dict, config, precision, metadata, prefix)
        distance = check_same(found, read_checkpoint(hidden), config, precision, str(output))
    print(
        f"{output}: {kind}, {len(found.state_dict)} tensors, {dtype or 'precision as it was'}; read again: "
        f"features differ by {distance:.1e} at most"
    )
    if checksum:
        print(f"{write_checksum(output)}: written")


def check_same(
    source: Checkpoint, written: Checkpoint, config: ModelConfig, dtype: torch.dtype | None, where: str
) -> float:
    """Compare what was written with its source; returns by how much a number of their unit vectors differs.

    Raises:
        UserError: a tensor, the architecture or the features are not the source's.
    """
    if written.architecture() != config:
        raise UserError(f"{where}: read again, its architecture is another one: {written.architecture()}")
    if written.state_dict.keys() != source.state_dict.keys():
        odd = sorted(written.state_dict.keys() ^ source.state_dict.keys())
        raise UserError(f"{where}: read again, it has other tensors: {odd[0]}")
    for name, tensor in source.state_dict.items():
        own, expected = written.state_dict[name], as_written(name, tensor, dtype)
        if own.dtype != expected.dtype or not torch.equal(own, expected):
            raise UserError(f"{where}: read again, {name} is not what was written; is the disk sound?")
    before, after = features(source, config), features(written, config)
    distance = max((a - b).abs().max().item() for a, b in zip(before, after, strict=True))
    if not distance <= TOLERANCE[dtype]:
        raise UserError(
            f"{where}: in {dtype} the features differ by {distance:.1e} (at most {TOLERANCE[dtype]:.0e} is "
            "expected): these weights need a higher precision; choose float32"
        )
    return distance


@torch.inference_mode()
def features(checkpoint: Checkpoint, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Unit vectors of a fixed picture and of fixed texts, computed in float32."""
    model = load_model(checkpoint, config)
    side = config.vision.image_resolution
    # A picture that every run can make again: waves of three frequencies.
    ramp = torch.linspace(0, 6.28, side)
    picture = torch.stack([torch.sin(f * ramp)[:, None] * torch.cos(ramp / f)[None] for f in (1.0, 3.0, 7.0)])
    length = min(32, config.text.text_max_position_embeddings)
    ids = torch.from_numpy(default_tokenizer().encode(TEXTS, length).ids)
    ids = ids.clamp_max(config.text.vocab_size - 1)  # of a tower with a smaller vocabulary: any ids do
    image, text = model.encode_image(picture[None]), model.encode_text(ids)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def _kind(output: Path) -> Target:
    if output.suffix == SAFETENSORS:
        return "safetensors"
    if output.suffix in (".pt", ".pth", ".bin"):
        return "pt"
    raise UserError(f"{output}: is this to be a pt, safetensors, hf or sentence-transformers? Say it with --to")


def _check_flags(output: Path, kind: Target, reference_layout: bool, checksum: bool) -> None:
    if (kind == "safetensors") != (output.suffix == SAFETENSORS):
        raise UserError(f"{output}: its ending says another kind of file than --to {kind}")
    if reference_layout and kind != "pt":
        raise UserError("--reference-layout is a .pt: the reference reads nothing else")
    if checksum and kind not in ("pt", "safetensors"):
        raise UserError("--checksum is for one file, not for a folder")


def _position(rest: dict[str, Any], reference_layout: bool) -> dict[str, Any]:
    """What a file says of its training: for the reference's trainer all of it must be there."""
    found: dict[str, Any] = {key: value for key, value in rest.items() if key in ("epoch", "step", "name")}
    return {"epoch": 0, "step": 0, "name": "converted", **found} if reference_layout else found


@contextmanager
def _hidden(output: Path, kind: Target) -> Iterator[Path]:
    """A path to write to that becomes `output` when the block ends well."""
    if kind == "hf" or kind == "sentence-transformers":
        with new_folder(output, FILES if kind == "hf" else FOLDER_FILES) as temporary:
            yield temporary
        return
    with atomic_path(output) as temporary:
        named = temporary.with_name(temporary.name + output.suffix)  # the ending says what is written
        try:
            yield named
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
