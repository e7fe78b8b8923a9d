"""Texts that do not fit: cut off, or read in overlapping windows. Text-to-image recall on emoji_cn.

    python benchmarks/long_texts.py [--model emoji-tiny] [--context 8 12 16]

A query is all keywords of an emoji, joined (not its name): up to 60 word pieces, half of them over 15. Its right
answers are the emoji's drawings. With a context too short for them, the query is cut, or read in windows,
overlapping by half or not at all; with one that is long enough, it is read at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy as np

from approximations import SPLITS, gallery
from cn_clip import Encoder
from cn_clip.data.emoji_cn import dataset_dir
from cn_clip.data.formats import read_texts
from cn_clip.eval.recall import retrieval_recall


def long_texts(split: str) -> list[str]:
    """In the order of the split's names, the keywords of each; the name, if there are none."""
    with open(dataset_dir() / "emoji.jsonl", encoding="utf-8") as file:
        emoji = {row["name"]: row for row in map(json.loads, file)}
    names = [text.text for text in read_texts(dataset_dir() / f"{split}_texts.jsonl")]
    return ["、".join(emoji[name]["keywords"]) or name for name in names]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-tiny", help="a model's name, or a checkpoint")
    parser.add_argument("--context", type=int, nargs="+", default=[8, 12, 16], help="word pieces")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".* texts are longer than")
    encoder = Encoder.load(args.model, device="cpu", precision="fp32")
    print(f"{Path(args.model).name}; text to image, per cent\n")
    print("| split | context | too long | how | R@1 | R@5 | R@10 |\n|---|--:|--:|---|--:|--:|--:|")
    for split in SPLITS:
        pictures, _, pairs = gallery(split)
        images, texts = encoder.encode_images(pictures), long_texts(split)
        lengths = encoder.tokenizer.encode(texts, None).lengths
        found = {}
        for context in args.context:
            found[context, "cut"] = encoder.encode_texts(texts, context_length=context)
            found[context, "windows, half overlapping"] = encoder.encode_long_texts(texts, context_length=context)
            found[context, "windows, side by side"] = encoder.encode_long_texts(
                texts, context_length=context, stride=context - 2
            )
        longest = min(int(lengths.max()), encoder.backend.context_limit)
        found[longest, "at once"] = encoder.encode_texts(texts, context_length=longest)
        for (context, way), vectors in found.items():
            recall = retrieval_recall(images, vectors, pairs)["t2i"]
            cells = " | ".join(f"{recall[k]:.1f}" for k in ("r1", "r5", "r10"))
            print(f"| {split} | {context} | {100 * np.mean(lengths > context):.0f} % | {way} | {cells} |")


if __name__ == "__main__":
    sys.exit(main())
