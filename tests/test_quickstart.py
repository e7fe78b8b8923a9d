"""`make quickstart`, in its tiny mode: every step for real, once and again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cn_clip.data.formats import read_texts
from cn_clip.quickstart import BEST, GALLERIES, QUERIES, quickstart


@pytest.mark.timeout(600)
def test_quickstart_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart(tmp_path, tiny=True) == 0
    first = capsys.readouterr().out
    checkpoint = tmp_path / "logs" / "tiny" / "checkpoints" / "epoch_latest.pt"
    written = checkpoint.stat().st_mtime_ns
    recall = {split: json.loads((tmp_path / f"{split}_recall.json").read_text()) for split in GALLERIES}
    assert all(result["success"] for result in recall.values())
    _check_report(tmp_path)
    assert "R@10" in first

    assert quickstart(tmp_path, tiny=True) == 0
    assert checkpoint.stat().st_mtime_ns == written  # trained already: nothing to do
    again = {split: json.loads((tmp_path / f"{split}_recall.json").read_text()) for split in GALLERIES}
    assert again == recall


def _check_report(out: Path) -> None:
    """The page holds the shown splits' queries, and marks what the annotations call right."""
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)
    shown = re.findall(r'<div class="query"><b>(.*?)<small>.*?</b>(.*?)</div>', page)
    assert len(shown) == 2 * QUERIES
    for split, rows in (("test", shown[:QUERIES]), ("newartist", shown[QUERIES:])):
        truth = {text.text: text for text in read_texts(out / "emoji_cn" / f"{split}_texts.jsonl")}
        lines = (out / "emoji_cn" / f"{split}_predictions.jsonl").read_text().splitlines()
        predicted = {row["text_id"]: row["image_ids"] for row in map(json.loads, lines)}
        for name, pictures in rows:
            text = truth[name]
            marks = re.findall(r'class="(hit|miss)"', pictures)
            right = [i in text.image_ids for i in predicted[text.text_id][:BEST]]
            assert [mark == "hit" for mark in marks] == right
