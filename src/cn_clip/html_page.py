"""The pieces of a self-contained HTML page: its frame, tables, charts as SVG, pictures as `data:` addresses.

    page = document("Title", [table(["split", "images"], [["train", "4,291"]]), histogram("bytes", bins)])

A page needs nothing but itself: no script, no link, no font. It is made to be read on a phone, too.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

STYLE = """
body{font:16px/1.5 system-ui,"PingFang SC","Noto Sans CJK SC","Microsoft YaHei",sans-serif;margin:0 auto;
max-width:60rem;padding:1rem 1.5rem;color:#1c2330;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid #dde2ea;padding-bottom:.3rem}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
table{border-collapse:collapse}th,td{padding:.3rem .8rem;text-align:right}th{font-weight:600;background:#f3f5f9}
th:first-child,td:first-child{text-align:left}tr+tr td{border-top:1px solid #e6eaf0}
img{width:64px;height:64px}svg{max-width:100%;height:auto}figure{margin:1rem 0}
"""
GALLERY_STYLE = """
.wide{overflow-x:auto}.wide td,.wide th{white-space:nowrap}
.wide td:first-child{white-space:normal;min-width:9.5rem}
figcaption,small{color:#68758a;font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:0 1.5rem}
.charts figure{margin:.7rem 0}.charts svg{width:100%}
.pictures{display:flex;flex-wrap:wrap;gap:.8rem;align-items:flex-start}
.picture{width:6.5rem;margin:0;font-size:.8rem;line-height:1.35;overflow-wrap:anywhere}
.picture img{display:block;width:6.5rem;height:6.5rem;object-fit:contain;border-radius:8px;
box-shadow:inset 0 0 0 1px #dde2ea;background:#f7f8fb}
.picture b{font-weight:500;display:block;margin-top:.25rem}.picture.kept img{box-shadow:0 0 0 3px #1d9a57}
.groups{display:flex;flex-wrap:wrap;gap:.8rem}.group{border:1px solid #e6eaf0;border-radius:10px;padding:.7rem}
.cut{background:#fde7e4;color:#a3241a;text-decoration:line-through}ol.texts{padding-left:1.4rem}
ol.texts li{margin:.5rem 0;overflow-wrap:anywhere}
@media(max-width:32rem){body{padding:.6rem .8rem}th,td{padding:.25rem .45rem}.picture,.picture img{width:5.4rem}
.picture img{height:5.4rem}}
"""
_INK, _GRID, _BAR = "#68758a", "#e6eaf0", "#2b6cb0"


def document(title: str, sections: Iterable[str], style: str = STYLE) -> str:
    """A whole page; the sections are HTML already."""
    return (
        '<!doctype html><html lang="zh"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading of plain text."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts: the first column to the left, the others to the right."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def line_chart(name: str, points: Sequence[tuple[float, float]], width: int = 640, height: int = 220) -> str:
    """A line chart as SVG: the axis starts at zero, so that curves can be compared by eye."""
    left, bottom = 48, 28
    last, top = points[-1][0] or 1, max(y for _, y in points) * 1.05 or 1
    x = [left + (width - left - 8) * step / last for step, _ in points]
    y = [8 + (height - bottom - 8) * (1 - value / top) for _, value in points]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    grid = "".join(
        f'<line x1="{left}" x2="{width - 8}" y1="{v:.1f}" y2="{v:.1f}" stroke="{_GRID}"/>'
        f'<text x="{left - 6}" y="{v + 4:.1f}" text-anchor="end">{top * (4 - i) / 4:.3g}</text>'
        for i in range(5)
        for v in [8 + (height - bottom - 8) * i / 4]
    )
    return _figure(
        name,
        f'{grid}<text x="{width - 8}" y="{height - 8}" text-anchor="end">step {last:g}</text>'
        f'<polyline points="{line}" fill="none" stroke="{_BAR}" stroke-width="2"/>',
        width,
        height,
    )


def histogram(name: str, bars: Sequence[tuple[str, int]], width: int = 320, height: int = 150) -> str:
    """A bar chart as SVG of (label, count), with the tallest bar's count above it and the others' as tooltips.

    Labels that would touch are left out.
    """
    top = max((count for _, count in bars), default=0) or 1
    left, bottom, head = 8, 22, 16
    step = (width - 2 * left) / max(1, len(bars))
    longest = max((len(label) for label, _ in bars), default=1)
    every = max(1, -(-(longest * 7 + 8) // max(1, int(step))))
    shapes = [f'<text x="{left}" y="11">max {top:,}</text>']
    for i, (label, count) in enumerate(bars):
        tall = (height - bottom - head) * count / top
        tall = max(tall, 1.0) if count else 0.0
        x = left + i * step
        shapes.append(
            f'<rect x="{x + step * 0.06:.1f}" y="{height - bottom - tall:.1f}" width="{step * 0.88:.1f}" '
            f'height="{tall:.1f}" fill="{_BAR}" rx="1"><title>{html.escape(label)}: {count:,}</title></rect>'
        )
        if i % every == 0:
            shapes.append(
                f'<text x="{x + step / 2:.1f}" y="{height - 7}" text-anchor="middle">{html.escape(label)}</text>'
            )
    shapes.append(
        f'<line x1="{left}" x2="{width - left}" y1="{height - bottom}" y2="{height - bottom}" stroke="{_GRID}"/>'
    )
    return _figure(name, "".join(shapes), width, height)


def _figure(name: str, shapes: str, width: int, height: int) -> str:
    return (
        f'<figure><figcaption>{html.escape(name)}</figcaption><svg viewBox="0 0 {width} {height}" width="{width}" '
        f'font-size="11" fill="{_INK}" role="img" aria-label="{html.escape(name)}">{shapes}</svg></figure>'
    )


def picture(source: str, title: str, notes: Iterable[str] = (), kept: bool = False) -> str:
    """A picture with lines of plain text below it; `source` is a `data:` address, `kept` frames it in green."""
    lines = "".join(f"<small>{html.escape(note)}</small><br>" for note in notes)
    return (
        f'<figure class="picture{" kept" if kept else ""}"><img alt="" loading="lazy" src="{source}">'
        f"<b>{html.escape(title)}</b>{lines}</figure>"
    )


def pictures(cards: Iterable[str]) -> str:
    """Pictures beside each other, as many as fit into a line."""
    return f'<div class="pictures">{"".join(cards)}</div>'


def thumbnail(image: Image.Image, size: int = 128) -> str:
    """A picture as a small WebP in a `data:` address, transparent parts kept."""
    transparent = image.has_transparency_data
    small = image.convert("RGBA" if transparent else "RGB")
    small.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
