"""The trade-off as a picture: retention to the right, the finetuning set upwards, a point for each alpha."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from cn_clip.errors import UserError
from cn_clip.files import atomic_open
from cn_clip.weights.tradeoff import Row, header, line

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _EDGE = 520, 400, 64, 56, 24
_FONT = "system-ui,'PingFang SC','Noto Sans CJK SC','Microsoft YaHei',sans-serif"


def write_picture(path: Path, rows: Sequence[Row], chosen: Row | None) -> None:
    """Write the path as `.svg`, or as an `.html` page with the table below; both need no other file.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    check_picture(path)
    content = trade_off(rows, chosen)
    if path.suffix == ".html":
        table = html.escape("\n".join([header(("finetuning", "retention")), *map(line, rows)]))
        content = (
            '<!doctype html><html lang="zh"><head><meta charset="utf-8"><title>WiSE-FT</title></head>'
            f'<body style="font-family:{_FONT};max-width:60rem;margin:1rem auto">{content}\n'
            f"<pre>{table}</pre></body></html>"
        )
    with atomic_open(path) as file:
        file.write(content + "\n")


def check_picture(path: Path) -> None:
    """Raise UserError for a picture of a kind that is not drawn here."""
    if path.suffix not in (".svg", ".html"):
        raise UserError(f"{path}: --picture is an .svg or an .html file")


def trade_off(rows: Sequence[Row], chosen: Row | None) -> str:
    """An SVG of rows that have both sets' recall."""
    rows = sorted(rows, key=lambda row: row.alpha)
    points = [(row.mean("retention") or 0.0, row.mean("finetuning") or 0.0) for row in rows]
    across, up = _Scale([x for x, _ in points]), _Scale([y for _, y in points])
    right, bottom = _WIDTH - _EDGE, _HEIGHT - _BOTTOM
    placed = [
        (_LEFT + across.part(x) * (right - _LEFT), bottom - up.part(y) * (bottom - _EDGE)) for x, y in points
    ]
    parts = [_axes(across, up)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts.append(f'<polyline points="{path}" fill="none" stroke="#2b6cb0" stroke-width="2"/>')
    for row, (x, y), (retention, finetuning) in zip(rows, placed, points, strict=True):
        best = chosen is not None and row.alpha == chosen.alpha
        colour, radius = ("#c2410c", 7) if best else ("#2b6cb0", 4)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"><title>alpha {row.alpha:g}: '
            f"finetuning {finetuning:.2f}, retention {retention:.2f}</title></circle>"
            f'<text x="{x + 8:.1f}" y="{y - 8:.1f}" fill="{colour}">{row.alpha:g}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="{_FONT}" font-size="12" fill="#4a5568" role="img" '
        f'aria-label="WiSE-FT">' + "".join(parts) + "</svg>"
    )


class _Scale:
    """An axis over some values, with a margin; one value alone is in its middle."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        margin = (high - low) * 0.08 or 1.0
        self.low, self.high = low - margin, high + margin

    def part(self, value: float) -> float:
        """Where a value is: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def _axes(across: _Scale, up: _Scale) -> str:
    right, bottom = _WIDTH - _EDGE, _HEIGHT - _BOTTOM
    parts = []
    for i in range(5):
        x, y = _LEFT + (right - _LEFT) * i / 4, bottom - (bottom - _EDGE) * i / 4
        at_x, at_y = (scale.low + (scale.high - scale.low) * i / 4 for scale in (across, up))
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6eaf0"/>'
            f'<line y1="{_EDGE}" y2="{bottom}" x1="{x:.1f}" x2="{x:.1f}" stroke="#e6eaf0"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{at_y:.1f}</text>'
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{at_x:.1f}</text>'
        )
    middle = (_EDGE + bottom) / 2
    return "".join(parts) + (
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{_HEIGHT - 14}" text-anchor="middle">'
        "retention 保持集: mean recall %</text>"
        f'<text transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        "finetuning 微调集: mean recall %</text>"
    )
