"""Between two checkpoints: WiSE-FT (Wortsman et al. 2022, Robust fine-tuning of zero-shot models).

cn-clip weights interpolate ViT-B-16 muge.pt wise.safetensors --alphas 0,0.1,…,1 --finetuning-data lmdb/valid \
    --retention-data coco/lmdb/valid --picture wise.svg
cn-clip weights average epoch8.pt epoch9.pt epoch10.pt --output soup.pt

A finetuned model is good at its own data and has forgotten some of what it knew. On the straight line from the
weights it started with (alpha 0) to the finetuned ones (alpha 1) there are models that are nearly as good at the
one and have kept most of the other. Every tensor goes the line, the logarithm of the temperature and batch norm's
statistics with it; recall depends on no temperature, and a ResNet's statistics are exact at the two ends only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cn_clip.checkpoint import Checkpoint, load_model, load_weights, write_weights
from cn_clip.clip import usable_device
from cn_clip.config import CONTEXT_LENGTH, ModelConfig
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from cn_clip.files import atomic_open
from cn_clip.weights.checksums import write_checksum
from cn_clip.weights.mixing import mix, one_architecture
from cn_clip.weights.picture import check_picture, write_picture
from cn_clip.weights.source import DTYPES, DTypeName, read_source
from cn_clip.weights.tradeoff import Choose, RetrievalSet, Row, header, line, measure
from cn_clip.weights.tradeoff import choose as chosen_of

MOST_ALPHAS = 1001


def interpolate(
    a: str,
    b: str,
    output: Path,
    /,
    alpha: float | None = None,
    alphas: str | None = None,
    finetuning_data: Path | None = None,
    retention_data: Path | None = None,
    choose: Choose = "balance",
    max_loss: float | None = None,
    table: Path | None = None,
    picture: Path | None = None,
    dtype: DTypeName | None = None,
    checksum: bool = False,
    context_length: int = CONTEXT_LENGTH,
    batch_size: int = 32,
    device: str = "auto",
    download_root: str | None = None,
) -> None:
    """Write (1 - alpha) · A + alpha · B; with data, print recall along the path and choose the best alpha.

    Args:
        a: the weights that finetuning started from: a file, a Hugging Face folder or repository, a named model.
        b: the finetuned weights.
        output: the file to write, .pt or .safetensors. With several alphas and no choice among them, a file
            each: wise-0.3.pt for wise.pt.
        alpha: one point of the path, 0.5 if neither this nor --alphas is given.
        alphas: several, such as 0,0.25,0.5 or 0,0.1,…,1 (or with ...).
        finetuning_data: split on whose pairs recall is measured: an LMDB, TSV, WebDataset or Parquet, as
            cn-clip train reads it. Take a validation split, not the one that you report.
        retention_data: a split of what the model is not to forget, likewise.
        choose: which of several alphas is written: balance, the highest mean of both sets' mean recall (of R@1,
            5, 10 in both directions; of one set, where only one is given); finetuning or retention, that set's
            alone; all writes each. Of equal ones the smallest alpha.
        max_loss: choose only among those whose retention recall is at most so many points below that at alpha 0.
        table: a JSON file for the table.
        picture: an .svg or .html file for the trade-off; needs both sets.
        dtype: precision of the matrices written; that of the inputs if not given.
        checksum: write OUTPUT.sha256, too.
        context_length: word pieces read of a text.
        batch_size: pictures encoded at a time.
        device: auto takes a GPU where there is one.
        download_root: where downloaded weights are kept.
    """
    path = parse_alphas(alpha, alphas)
    data = {"finetuning": finetuning_data, "retention": retention_data}
    _check_flags(data, picture, table, max_loss, batch_size)
    sources = [read_source(name, download_root) for name in (a, b)]
    config = one_architecture(sources)
    sets = {name: RetrievalSet(split, context_length, batch_size) for name, split in data.items() if split}
    rows: list[Row] = []
    best: Row | None = None
    if sets:
        if choose != "all":  # a rule that cannot be followed is said before an hour of encoding
            chosen_of([Row(point, **dict.fromkeys(sets, _NOTHING)) for point in path], choose, max_loss)
        print(header(list(sets)))
        rows = measure(path, _Path(sources, config, device), sets, lambda row: print(line(row), flush=True))
        best = chosen_of(rows, choose, max_loss) if choose != "all" else None
    wanted = [best.alpha] if best else path
    for point in wanted:
        file = output if len(wanted) == 1 else output.with_name(f"{output.stem}-{point:g}{output.suffix}")
        weights = mix([source.state_dict for source in sources], [1 - point, point])
        metadata = {"name": f"{1 - point:g} * {Path(a).name} + {point:g} * {Path(b).name}"}
        write_weights(file, weights, config, DTYPES[dtype] if dtype else None, metadata)
        print(f"{file}: alpha {point:g}" + (f", the best by --choose {choose}" if best and len(path) > 1 else ""))
        if checksum:
            print(f"{write_checksum(file)}: written")
    if table:
        with atomic_open(table) as out:
            json.dump(_report(a, b, rows, best, choose, max_loss), out, ensure_ascii=False, indent=1)
    if picture:
        write_picture(picture, rows, best)


def average(
    files: tuple[str, ...],
    /,
    output: Path,
    dtype: DTypeName | None = None,
    checksum: bool = False,
    download_root: str | None = None,
) -> None:
    """Write the mean of two or more checkpoints of one architecture: a uniform model soup (Wortsman et al. 2022).

    Args:
        files: files, folders or repositories of Hugging Face, or named models.
        output: the file to write, .pt or .safetensors.
        dtype: precision of the matrices written; that of the inputs if not given.
        checksum: write OUTPUT.sha256, too.
        download_root: where downloaded weights are kept.
    """
    if len(files) < 2:
        raise UserError("an average needs at least two files")
    sources = [read_source(name, download_root) for name in files]
    config = one_architecture(sources)
    weights = mix([source.state_dict for source in sources], [1 / len(sources)] * len(sources))
    metadata = {"name": f"mean of {', '.join(Path(name).name for name in files)}"}
    write_weights(output, weights, config, DTYPES[dtype] if dtype else None, metadata)
    print(f"{output}: the mean of {len(files)} files")
    if checksum:
        print(f"{write_checksum(output)}: written")


def parse_alphas(alpha: float | None, alphas: str | None) -> list[float]:
    """The points of the path, each once, in their order; `0,0.1,…,1` stands for eleven.

    Raises:
        UserError: not numbers from 0 to 1, or both flags.
    """
    if alpha is not None and alphas is not None:
        raise UserError("give --alpha or --alphas, not both")
    if alphas is None:
        points = [0.5 if alpha is None else alpha]
    else:
        parts = [part.strip() for part in alphas.split(",")]
        try:
            points = _expand(parts)
        except ValueError:
            raise UserError(f"--alphas {alphas}: expected numbers such as 0,0.25,0.5 or 0,0.1,…,1") from None
    if not all(0 <= point <= 1 for point in points):
        raise UserError("alphas are numbers from 0 (the first file) to 1 (the second)")
    return list(dict.fromkeys(points))


def _expand(parts: list[str]) -> list[float]:
    if len(parts) == 4 and parts[2] in ("…", "..."):
        start, second, end = (float(parts[i]) for i in (0, 1, 3))
        step = second - start
        if not (0 <= start < second <= end) or (end - start) / step > MOST_ALPHAS:
            raise ValueError
        count = round((end - start) / step)
        if abs(start + count * step - end) > 1e-6:
            raise ValueError
        return [round(start + i * step, 9) for i in range(count)] + [end]
    return [float(part) for part in parts]


class _Path:
    """The model at any alpha: one, whose weights are exchanged."""

    def __init__(self, sources: list[Checkpoint], config: ModelConfig, device: str) -> None:
        self.states = [source.state_dict for source in sources]
        model = load_model(sources[0], config).to(usable_device(None if device == "auto" else device))
        self.encoder = Encoder(model)

    def __call__(self, alpha: float) -> Encoder:
        with torch.no_grad():
            load_weights(self.encoder.model, mix(self.states, [1 - alpha, alpha]), f"alpha {alpha:g}")
        return self.encoder


_NOTHING = {way: {"mean_recall": 0.0, "r1": 0.0, "r5": 0.0, "r10": 0.0} for way in ("t2i", "i2t")}


def _check_flags(
    data: dict[str, Path | None], picture: Path | None, table: Path | None, max_loss: float | None, batch_size: int
) -> None:
    given = [name for name, split in data.items() if split]
    if table and not given:
        raise UserError("--table needs data: --finetuning-data, --retention-data, or both")
    if picture:
        check_picture(picture)
        if len(given) < 2:
            raise UserError("--picture needs --finetuning-data and --retention-data")
    if max_loss is not None and (max_loss < 0 or "retention" not in given):
        raise UserError("--max-loss is a number of points, 0 or more, of --retention-data's recall")
    if batch_size < 1:
        raise UserError("--batch-size must be 1 or more")


def _report(
    a: str, b: str, rows: list[Row], best: Row | None, rule: str, max_loss: float | None
) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "rule": rule,
        "max_loss": max_loss,
        "chosen_alpha": best.alpha if best else None,
        "rows": [row.to_dict() for row in rows],
    }
