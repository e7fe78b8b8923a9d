"""One self-contained HTML page about a training run: recall, the best pictures of some queries, the curve."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cn_clip.files import atomic_open
from cn_clip.html_page import STYLE, document, heading, line_chart, paragraph, table

_STYLE = (
    STYLE
    + """
.query{display:flex;align-items:center;gap:.6rem;padding:.35rem 0;flex-wrap:wrap}
.query b{width:11rem;font-weight:500}.query small{color:#68758a;display:block;font-weight:400}
.hit,.miss{position:relative;border-radius:8px;padding:4px;border:3px solid #d9dfe8;line-height:0}
.hit{border-color:#1d9a57}.hit::after{content:"✓";position:absolute;right:-8px;top:-8px;width:20px;height:20px;
background:#1d9a57;color:#fff;border-radius:50%;font:700 13px/20px sans-serif;text-align:center}
"""
)


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
    columns = list(next(iter(recall.values()), {}))
    sections = [
        heading(title, 1) + paragraph(summary),
        heading("Recall 召回率 (%)"),
        table(["", *columns], ([name, *(f"{row[c]:.1f}" for c in columns)] for name, row in recall.items())),
    ]
    for name, rows in queries.items():
        sections += [heading(name), *map(_query, rows)]
    sections.append(heading("Training 训练曲线"))
    sections += [line_chart(name, points) for name, points in curves.items() if len(points) > 1]
    with atomic_open(path) as file:
        file.write(document(title, sections, _STYLE))


def _query(query: Query) -> str:
    pictures = "".join(
        f'<span class="{kind}"><img alt="{kind}" src="{source}"></span>'
        for source, right in query.pictures
        for kind in ["hit" if right else "miss"]
    )
    name = f"{html.escape(query.text)}<small>{html.escape(query.note)}</small>"
    return f'<div class="query"><b>{name}</b>{pictures}</div>'
