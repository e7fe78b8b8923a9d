"""`cn-clip weights diff A B`: where two files of weights differ, and by how much. Status 0: the same, 1: not.

cn-clip weights diff epoch9.pt epoch10.pt --top 5
cn-clip weights diff clip.pt clip-fp16.safetensors --tolerance 1e-3 && echo as good as the same
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cn_clip.errors import UserError
from cn_clip.progress import progress
from cn_clip.weights.source import TOWERS, is_buffer, print_json, read_source, tower

DIFFERENT, TROUBLE = 1, 2  # exit statuses, as those of diff(1)


def diff(
    a: str,
    b: str,
    /,
    tolerance: float = 0.0,
    top: int = 10,
    json: bool = False,
    download_root: str | None = None,
) -> int:
    """Compare two files of weights: tensors in one only, other shapes, and how far the numbers are apart.

    Ends with status 0 if they are the same, 1 if they differ, 2 if one cannot be read. Precision alone is no
    difference: numbers are compared, as those of float32.

    Args:
        a: a file, a folder or repository of Hugging Face, or a named model.
        b: the other one.
        tolerance: how far apart two numbers may be and still count as the same.
        top: how many tensors to list, those that differ most first; 0 lists all.
        json: print JSON, with every tensor.
        download_root: where downloaded weights are kept.
    """
    try:
        if not tolerance >= 0 or top < 0:
            raise UserError("--tolerance and --top must be 0 or more")
        one, other = (read_source(name, download_root).state_dict for name in (a, b))
    except UserError as error:
        print(f"cn-clip: error: {error}", file=sys.stderr)
        return TROUBLE
    report = compare(one, other, tolerance)
    if json:
        print_json({"a": a, "b": b, "tolerance": tolerance, **report})
    else:
        print("\n".join(_lines(a, b, report, top)))
    return 0 if report["same"] else DIFFERENT


def compare(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float = 0.0) -> dict[str, Any]:
    """Two state dicts under the published names.

    Returns:
        `same`; `only_a`, `only_b`: names; `shapes`: (name, shape, shape); `tensors`: of each that both have,
        `max_abs`, `mean_abs`, `relative` (‖a - b‖ / ‖a‖), `cosine`, dtypes, and `same` (within the tolerance;
        NaN equals NaN); `towers`: the same numbers over a tower's parameters.
    """
    shared = [name for name in a if name in b]
    shapes = [
        (name, list(a[name].shape), list(b[name].shape)) for name in shared if a[name].shape != b[name].shape
    ]
    rows = []
    for name in progress(shared, desc="tensors"):
        if a[name].shape == b[name].shape:
            rows.append(_row(name, a[name], b[name], tolerance))
    only_a, only_b = [name for name in a if name not in b], [name for name in b if name not in a]
    towers = {part: _sum(row for row in rows if _counts(row["name"], part)) for part in TOWERS}
    return {
        "same": not (only_a or only_b or shapes) and all(row["same"] for row in rows),
        "only_a": only_a,
        "only_b": only_b,
        "shapes": shapes,
        "towers": {part: found for part, found in towers.items() if found},
        "tensors": [{key: value for key, value in row.items() if key != "sums"} for row in rows],
    }


def _counts(name: str, part: str) -> bool:
    return tower(name) == part and not is_buffer(name)


def _row(name: str, a: Tensor, b: Tensor, tolerance: float) -> dict[str, Any]:
    x, y = a.detach().double().reshape(-1), b.detach().double().reshape(-1)
    alike = (x == y) | (x.isnan() & y.isnan())  # and infinities of one sign, whose difference is NaN
    apart = torch.where(alike, 0.0, (x - y).abs())
    # Squares add up over a tower; here are the sums that all four numbers are made of.
    sums = (
        apart.sum().item(),
        apart.square().sum().item(),
        x.square().sum().item(),
        y.square().sum().item(),
        (x * y).sum().item(),
        x.numel(),
    )
    largest = apart.max().item() if apart.numel() else 0.0
    return {
        "name": name,
        "shape": list(a.shape),
        "dtypes": [str(t.dtype).removeprefix("torch.") for t in (a, b)],
        "same": largest <= tolerance,
        **_numbers(largest, *sums),
        "sums": sums,
    }


def _numbers(
    largest: float, absolute: float, squares: float, xx: float, yy: float, xy: float, count: float
) -> dict[str, float]:
    # Zeros have no direction: two of them count as one.
    cosine = xy / math.sqrt(xx) / math.sqrt(yy) if xx and yy else float(xx == yy)
    return {
        "max_abs": largest,
        "mean_abs": absolute / max(count, 1),
        "relative": math.sqrt(squares / xx) if xx else (math.inf if squares else 0.0),
        "cosine": min(1.0, max(-1.0, cosine)) if cosine == cosine else math.nan,
    }


def _sum(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    own = list(rows)
    if not own:
        return None
    sums = [sum(column) for column in zip(*(row["sums"] for row in own), strict=True)]
    # max() of floats with a NaN among them depends on their order.
    largest = math.nan if any(math.isnan(row["max_abs"]) for row in own) else max(row["max_abs"] for row in own)
    different = sum(not row["same"] for row in own)
    return {"tensors": len(own), "different": different, **_numbers(largest, *sums)}


def _lines(a: str, b: str, report: dict[str, Any], top: int) -> list[str]:
    lines = []
    for key, where in (("only_a", a), ("only_b", b)):
        if names := report[key]:
            lines.append(f"only in {where}: {len(names)} tensors: {', '.join(names[: top or None])}")
            lines[-1] += ", …" if top and len(names) > top else ""
    lines += [f"{name}: {one} in {a}, {other} in {b}" for name, one, other in report["shapes"]]
    different = [row for row in report["tensors"] if not row["same"]]
    different.sort(key=lambda row: (not math.isnan(row["max_abs"]), -row["max_abs"]))
    if different:
        head = f"{'':64}{'max abs':>10}{'mean abs':>10}{'relative':>10}{'cosine':>11}"
        lines += [head, *(_line(part, numbers) for part, numbers in report["towers"].items())]
        lines += [_line(row["name"], row) for row in different[: top or None]]
        if top and len(different) > top:
            lines.append(f"… and {len(different) - top} more tensors that differ (--top 0 lists all)")
    kinds = sum(row["dtypes"][0] != row["dtypes"][1] for row in report["tensors"])
    precision = f"; {kinds} in another precision" if kinds else ""
    total = len(report["tensors"])
    if report["same"]:
        lines.append(f"the same: {total} tensors{precision}")
    else:
        lines.append(f"different: {len(different)} of {total} tensors that both have{precision}")
    return lines


def _line(name: str, row: Mapping[str, Any]) -> str:
    return f"{name:64}{row['max_abs']:10.3g}{row['mean_abs']:10.3g}{row['relative']:10.3g}{row['cosine']:11.7f}"
