"""One dataset in every format that is read, written by the formats' own packages."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image

from cn_clip.data.build_lmdb import build_lmdb
from cn_clip.data.formats import Id, read_images, read_texts

MODES = ["RGB", "L", "P", "RGBA", "RGB", "RGB", "RGB"]
TEXTS = {"红色": [0, 1], "一只猫": [2], "狗": [3, 4, 5, 6], "“引号”": [0], "大象 ELEPHANT": [1, 6, 2]}
Pairs = list[tuple[Id, Id, str]]


def picture(number: int, mode: str = "RGB") -> bytes:
    """A small PNG, or JPEG for every third number."""
    pixels = np.random.default_rng(number).integers(0, 255, (20 + number, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if number % 3 == 0 and mode in ("RGB", "L") else "PNG")
    return buffer.getvalue()


def write_tsv(folder: Path, prefix: str = "", split: str = "train") -> Path:
    """Seven pictures and eleven pairs as TSV, JSONL and LMDB; `prefix` makes the ids strings."""
    folder.mkdir(parents=True, exist_ok=True)
    name = (lambda i: f"{prefix}{i}") if prefix else int
    with open(folder / f"{split}_imgs.tsv", "w") as file:
        for i, mode in enumerate(MODES):
            file.write(f"{name(i)}\t{base64.b64encode(picture(i, mode)).decode()}\n")
    with open(folder / f"{split}_texts.jsonl", "w", encoding="utf-8") as file:
        for i, (text, images) in enumerate(TEXTS.items()):
            row = {"text_id": name(100 + i), "text": text, "image_ids": [name(j) for j in images]}
            file.write(json.dumps(row) + "\n")
    build_lmdb(folder, split)
    return folder


def content(folder: Path, split: str = "train") -> tuple[dict[str, bytes], Pairs]:
    """The dataset, read line by line: image content by id, and the pairs in their order."""
    images = {row.image_id: base64.b64decode(row.base64) for row in read_images(folder / f"{split}_imgs.tsv")}
    pairs = [
        (image_id, text.text_id, text.text)
        for text in read_texts(folder / f"{split}_texts.jsonl")
        for image_id in text.image_ids
    ]
    return images, pairs


def write_shards(folder: Path, images: dict[str, bytes], pairs: Pairs, per_shard: int = 4) -> str:
    """A sample for each pair, with its ids in the JSON; returns the pattern of the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    with wds.ShardWriter(str(folder / "train-%04d.tar"), maxcount=per_shard, verbose=0) as writer:
        for i, (image_id, text_id, text) in enumerate(pairs):
            data = images[str(image_id)]
            kind = "jpg" if data.startswith(b"\xff\xd8") else "png"
            fields = {"image_id": image_id, "text_id": text_id}
            writer.write({"__key__": f"sample{i:06}", kind: data, "txt": text, "json": fields})
    return f"{folder}/train-{{0000..{(len(pairs) - 1) // per_shard:04}}}.tar"


def write_parquet(path: Path, images: dict[str, bytes], pairs: Pairs, struct: bool = True, **options: Any) -> Path:
    """A row for each pair, with its ids; pictures as the struct of Hugging Face, or as bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells: list[Any] = [images[str(image_id)] for image_id, _, _ in pairs]
    if struct:
        cells = [{"bytes": cell, "path": f"{i}.jpg"} for i, cell in enumerate(cells)]
    columns = {"image": cells, "text": [text for _, _, text in pairs]}
    columns |= {"image_id": [pair[0] for pair in pairs], "text_id": [pair[1] for pair in pairs]}
    pq.write_table(pa.table(columns), path, **options)
    return path


def as_written(path: str, **options: Any) -> list[dict[str, Any]]:
    """The samples of shards, as the webdataset package reads them."""
    return list(wds.WebDataset(path, shardshuffle=False, empty_check=False, **options))
