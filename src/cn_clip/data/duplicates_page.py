"""What `data dedup` writes about the copies it found: a line of JSON a group, and a page with the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cn_clip.data.duplicates import Copy, Pictures
from cn_clip.data.formats import parse_id
from cn_clip.data.pictures import captions, fetch
from cn_clip.files import atomic_open
from cn_clip.html_page import GALLERY_STYLE, STYLE, document, heading, paragraph, picture, pictures, thumbnail
from cn_clip.transform import decode_image

PICTURES_OF_A_GROUP = 12  # shown


def write_groups(path: Path, found: Pictures, groups: Mapping[int, Sequence[Copy]], as_text: bool) -> None:
    """One line a group: `{"group", "kept": {"split", "image_id", "line"}, "copies": […]}`.

    A copy has the fields of the kept picture, and `distance` and `same_file`.

    Args:
        path: of the JSONL file.
        found: the pictures.
        groups: the picture that stays -> its copies.
        as_text: ids of this dataset are strings even where they look like integers.
    """

    def row(index: int) -> dict[str, object]:
        key = found.image_id[index]
        return {
            "split": found.splits[found.split[index]],
            "image_id": key if as_text else parse_id(key),
            "line": found.line[index],
        }

    with atomic_open(path) as file:
        for number, (kept, copies) in enumerate(groups.items(), 1):
            rows = [
                {
                    **row(copy.picture),
                    "distance": round(copy.distance, 6),
                    "same_file": found.unit[copy.picture] == found.unit[kept],
                }
                for copy in copies
            ]
            file.write(json.dumps({"group": number, "kept": row(kept), "copies": rows}, ensure_ascii=False) + "\n")


def write_page(
    path: Path,
    data_dir: Path,
    found: Pictures,
    groups: Mapping[int, Sequence[Copy]],
    summary: str,
    table: str,
    shown: int,
) -> None:
    """The page: counts, then the groups side by side, those over several splits first, then by their doubtfulness.

    Args:
        path: of the HTML file.
        data_dir: the dataset, whose files are read again for the pictures that are shown.
        found: the pictures.
        groups: the picture that stays -> its copies.
        summary: what was compared and how.
        table: the counts, as HTML.
        shown: how many groups.
    """

    def doubt(item: tuple[int, Sequence[Copy]]) -> tuple[bool, float]:
        kept, copies = item
        across = any(found.split[copy.picture] != found.split[kept] for copy in copies)
        return (not across, -max(copy.distance for copy in copies))

    chosen = sorted(groups.items(), key=doubt)[:shown]
    wanted: dict[int, set[str]] = {}
    for kept, copies in chosen:
        for index in (kept, *(copy.picture for copy in copies[:PICTURES_OF_A_GROUP])):
            wanted.setdefault(found.split[index], set()).add(found.image_id[index])
    files, texts = {}, {}
    for split, ids in wanted.items():
        name = found.splits[split]
        files[split] = fetch(data_dir / f"{name}_imgs.tsv", ids)
        texts[split] = captions(data_dir / f"{name}_texts.jsonl", ids, 1)

    def card(index: int, note: str, kept: bool = False) -> str:
        split, key = found.split[index], found.image_id[index]
        title = " ".join(texts[split][key])[:40]
        source = thumbnail(decode_image(files[split][key], key))
        return picture(source, title, [f"{found.splits[split]} {key}", note], kept)

    title = "Duplicates 重复图片"
    sections = [heading(title, 1), paragraph(summary), f'<div class="wide">{table}</div>']
    sections += [
        heading("Groups 各组"),
        paragraph(
            f"{len(chosen)} of {len(groups)} groups; the green frame is the picture that stays. "
            f"共 {len(groups)} 组，显示 {len(chosen)} 组；绿框为保留的图片。"
        ),
    ]
    boxes = []
    for kept, copies in chosen:
        cards = [card(kept, "kept 保留", True)]
        cards += [card(copy.picture, _note(found, kept, copy)) for copy in copies[:PICTURES_OF_A_GROUP]]
        more = len(copies) - PICTURES_OF_A_GROUP
        rest = f"<small>+ {more}</small>" if more > 0 else ""
        boxes.append(f'<div class="group">{pictures(cards)}{rest}</div>')
    sections.append(f'<div class="groups">{"".join(boxes)}</div>')
    with atomic_open(path) as file:
        file.write(document(title, sections, STYLE + GALLERY_STYLE))


def _note(found: Pictures, kept: int, copy: Copy) -> str:
    same = found.unit[copy.picture] == found.unit[kept]
    return "same file 同一文件" if same else f"distance 距离 {copy.distance:.4g}"
