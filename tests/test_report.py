"""The report is one page that needs nothing else, and shows what it was given."""

from __future__ import annotations

import re
from pathlib import Path

from cn_clip.report import Query, write_report
from html_balance import Balance

PICTURE = "data:image/webp;base64,AAAA"


def _page(path: Path, **changes: object) -> str:
    given = {
        "title": "小猫 & <狗>",
        "summary": "summary",
        "recall": {"test": {"R@1": 12.34, "R@5": 50.0}},
        "queries": {"test": [Query("猫", "cat", [(PICTURE, True), (PICTURE, False)])]},
        "curves": {"loss": [(1.0, 4.0), (2.0, 2.0), (3.0, 1.0)], "one point": [(1.0, 1.0)]},
    }
    write_report(path, **{**given, **changes})  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def test_page_is_whole_and_self_contained(tmp_path: Path) -> None:
    page = _page(tmp_path / "report.html")
    checker = Balance()
    checker.feed(page)
    assert checker.open == []
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "小猫 &amp; &lt;狗&gt;" in page
    assert "12.3" in page
    assert page.count('class="hit"') == 1
    assert page.count('class="miss"') == 1
    assert checker.seen.count("svg") == 1  # one point makes no curve


def test_curve_keeps_inside_its_frame_and_falls_with_the_values(tmp_path: Path) -> None:
    page = _page(tmp_path / "report.html")
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', page)[1].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # a smaller loss lies lower: y grows downwards
    assert all(0 <= x <= 640 and 0 <= y <= 220 for x, y in points)


def test_empty_report(tmp_path: Path) -> None:
    page = _page(tmp_path / "report.html", recall={}, queries={}, curves={})
    assert "<svg" not in page
