"""What the faster ways of encoding cost: cosines and recall of bf16 and of --fast-decode, against exact float32.

    python benchmarks/approximations.py [--model emoji-tiny]

Retrieval on the sample dataset's held-out splits, names of emoji to drawings and back. bf16: both towers. Fast
decoding: the drawings are enlarged to JPEGs of 640×480 first, which both ways then decode; float32 both.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cn_clip import Encoder
from cn_clip.data.emoji_cn import dataset_dir
from cn_clip.data.formats import read_images, read_texts
from cn_clip.eval.recall import retrieval_recall

SPLITS = ("test", "newartist", "newboth")


def gallery(split: str) -> tuple[list[bytes], list[str], np.ndarray]:
    """The split's pictures and names, and which are pairs: [P, 2] of (text, image)."""
    rows = list(read_images(dataset_dir() / f"{split}_imgs.tsv"))
    place = {row.image_id: i for i, row in enumerate(rows)}
    texts = list(read_texts(dataset_dir() / f"{split}_texts.jsonl"))
    pairs = [(i, place[str(image_id)]) for i, text in enumerate(texts) for image_id in text.image_ids]
    return [base64.b64decode(row.base64) for row in rows], [text.text for text in texts], np.array(pairs)


def enlarged(data: bytes) -> bytes:
    """The picture as a JPEG of 640×480."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    buffer = io.BytesIO()
    picture.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def row(
    name: str, exact: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], pairs: np.ndarray
) -> str:
    """One line of the table."""
    cosines = [float((a * b).sum(axis=1).min()) for a, b in zip(exact, other, strict=True)]
    recall, base = retrieval_recall(*other, pairs), retrieval_recall(*exact, pairs)
    cells = [
        f"{recall[way][k]:.1f} ({recall[way][k] - base[way][k]:+.1f})"
        for way in ("t2i", "i2t")
        for k in ("r1", "r10")
    ]
    return f"| {name} | {cosines[0]:.5f} | {cosines[1]:.5f} | {' | '.join(cells)} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-tiny", help="a model's name, or a checkpoint")
    args = parser.parse_args()
    exact, half, fast = (
        Encoder.load(args.model, device="cpu", precision=precision, fast_decode=fast)
        for precision, fast in (("fp32", False), ("bf16", False), ("fp32", True))
    )
    print(f"{Path(args.model).name}, {exact.size} pixels; recall in per cent (difference from exact float32)\n")
    print("| | lowest cosine, images | texts | t2i R@1 | R@10 | i2t R@1 | R@10 |\n|---|--:|--:|--:|--:|--:|--:|")
    for split in SPLITS:
        pictures, names, pairs = gallery(split)
        base = exact.encode_images(pictures), exact.encode_texts(names)
        print(row(f"{split}, bf16", base, (half.encode_images(pictures), half.encode_texts(names)), pairs))
        jpegs = [enlarged(data) for data in pictures]
        whole = exact.encode_images(jpegs), base[1]
        print(row(f"{split}, 640×480 JPEG, --fast-decode", whole, (fast.encode_images(jpegs), base[1]), pairs))


if __name__ == "__main__":
    sys.exit(main())
