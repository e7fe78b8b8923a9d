"""One self-contained HTML page about a training run: recall, the best pictures of some queries, the curve."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cn_clip.files import atomic_open

_STYLE = """
body{font:16px/1.5 system-ui,"PingFang SC","Noto Sans CJK SC","Microsoft YaHei",sans-serif;margin:0 auto;
max-width:60rem;padding:1rem 1.5rem;color:#1c2330;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid #dde2ea;padding-bottom:.3rem}
table{border-collapse:collapse}th,td{padding:.3rem .8rem;text-align:right}th{font-weight:600;background:#f3f5f9}
th:first-child,td:first-child{text-align:left}tr+tr td{border-top:1px solid #e6eaf0}
.query{display:flex;align-items:center;gap:.6rem;padding:.35rem 0;flex-wrap:wrap}
.query b{width:11rem;font-weight:500}.query small{color:#68758a;display:block;font-weight:400}
.hit,.miss{position:relative;border-radius:8px;padding:4px;border:3px solid #d9dfe8;line-height:0}
.hit{border-color:#1d9a57}.hit::after{content:"✓";position:absolute;right:-8px;top:-8px;width:20px;height:20px;
background:#1d9a57;color:#fff;border-radius:50%;font:700 13px/20px sans-serif;text-align:center}
img{width:64px;height:64px}svg{max-width:100%;height:auto}
"""


@dataclass(frozen=True)
class Query:
    """A text and its best pictures, best first.

    Attributes:
        text: the query.
        note: a smaller line below it (a translation, say).
        pictures: (a `data:` address, whether it is a right one).
    """

    text: str
    note: str
    pictures: Sequence[tuple[str, bool]]


def write_report(
    path: Path,
    title: str,
    summary: str,
    recall: Mapping[str, Mapping[str, float]],
    queries: Mapping[str, Sequence[Query]],
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Write the page atomically.

    Args:
        path: of the HTML file.
        title: its heading.
        summary: a paragraph below it.
        recall: row name -> column name -> per cent.
        queries: section heading -> its queries.
        curves: name -> (step, value) points, one small chart each.

    Raises:
        UserError: the file cannot be written.
    """
    sections = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(summary)}</p>",
        "<h2>Recall 召回率 (%)</h2>",
        _table(recall),
    ]
    for heading, rows in queries.items():
        sections += [f"<h2>{html.escape(heading)}</h2>", *map(_query, rows)]
    sections.append("<h2>Training 训练曲线</h2>")
    sections += [_chart(name, points) for name, points in curves.items() if len(points) > 1]
    with atomic_open(path) as file:
        file.write(
            '<!doctype html><html lang="zh"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
            + "\n".join(sections)
            + "\n</body></html>\n"
        )


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(next(iter(rows.values()), {}))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *columns])
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>" + "".join(f"<td>{row[c]:.1f}</td>" for c in columns) + "</tr>"
        for name, row in rows.items()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _query(query: Query) -> str:
    pictures = "".join(
        f'<span class="{kind}"><img alt="{kind}" src="{source}"></span>'
        for source, right in query.pictures
        for kind in ["hit" if right else "miss"]
    )
    name = f"{html.escape(query.text)}<small>{html.escape(query.note)}</small>"
    return f'<div class="query"><b>{name}</b>{pictures}</div>'


def _chart(name: str, points: Sequence[tuple[float, float]], width: int = 640, height: int = 220) -> str:
    """A line chart as SVG: the axis starts at zero, so that curves can be compared by eye."""
    left, bottom = 48, 28
    last, top = points[-1][0] or 1, max(y for _, y in points) * 1.05 or 1
    x = [left + (width - left - 8) * step / last for step, _ in points]
    y = [8 + (height - bottom - 8) * (1 - value / top) for _, value in points]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    grid = "".join(
        f'<line x1="{left}" x2="{width - 8}" y1="{v:.1f}" y2="{v:.1f}" stroke="#e6eaf0"/>'
        f'<text x="{left - 6}" y="{v + 4:.1f}" text-anchor="end">{top * (4 - i) / 4:.3g}</text>'
        for i in range(5)
        for v in [8 + (height - bottom - 8) * i / 4]
    )
    return (
        f'<figure><figcaption>{html.escape(name)}</figcaption><svg viewBox="0 0 {width} {height}" width="{width}" '
        f'font-size="11" fill="#68758a" role="img" aria-label="{html.escape(name)}">{grid}'
        f'<text x="{width - 8}" y="{height - 8}" text-anchor="end">step {last:g}</text>'
        f'<polyline points="{line}" fill="none" stroke="#2b6cb0" stroke-width="2"/></svg></figure>'
    )
