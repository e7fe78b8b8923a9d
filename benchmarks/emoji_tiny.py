"""What the bundled model can do: recall on emoji_cn's held-out splits, and labels of photographs.

python benchmarks/emoji_tiny.py
python benchmarks/emoji_tiny.py --photos        # pip install scikit-image scikit-learn (for their pictures alone)
"""

from __future__ import annotations

import argparse
import base64
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cn_clip import Encoder
from cn_clip.data.emoji_cn import dataset_dir
from cn_clip.data.formats import read_images, read_texts
from cn_clip.eval.recall import retrieval_recall

SPLITS = {
    "test": "unseen emoji, artists of the training",
    "newartist": "emoji of the training, an artist never seen",
    "newboth": "unseen emoji, an artist never seen",
}
PHOTOS = {
    "skimage/data/coffee.png": "咖啡",
    "skimage/data/astronaut.png": "宇航员",
    "skimage/data/motorcycle_left.png": "摩托车",
    "skimage/data/moon.png": "月亮",
    "skimage/data/rocket.jpg": "火箭",
    "skimage/data/chelsea.png": "猫",
    "skimage/data/coins.png": "硬币",
    "skimage/data/clock_motion.png": "时钟",
    "skimage/data/horse.png": "马",
    "skimage/data/camera.png": "照相机",
    "sklearn/datasets/images/flower.jpg": "花",
    "sklearn/datasets/images/china.jpg": "城堡",
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-tiny", help="a model's name, or a checkpoint")
    parser.add_argument("--photos", action="store_true")
    args = parser.parse_args()
    encoder = Encoder.load(args.model, precision="fp32")
    if args.photos:
        photographs(encoder)
    else:
        galleries(encoder)


def galleries(encoder: Encoder) -> None:
    """Recall at 1, 5, 10 in both directions on each split."""
    print("| split | t2i R@1 | R@5 | R@10 | i2t R@1 | R@5 | R@10 |\n|---|--:|--:|--:|--:|--:|--:|")
    for split, what in SPLITS.items():
        rows = list(read_images(dataset_dir() / f"{split}_imgs.tsv"))
        place = {row.image_id: i for i, row in enumerate(rows)}
        texts = list(read_texts(dataset_dir() / f"{split}_texts.jsonl"))
        pairs = [(i, place[str(image_id)]) for i, text in enumerate(texts) for image_id in text.image_ids]
        recall = retrieval_recall(
            encoder.encode_images(base64.b64decode(row.base64) for row in rows),
            encoder.encode_texts([text.text for text in texts]),
            np.array(pairs),
        )
        cells = [f"{recall[way][name]:.1f}" for way in ("t2i", "i2t") for name in ("r1", "r5", "r10")]
        print(f"| {split}: {what} ({len(texts)} names) | {' | '.join(cells)} |")


def photographs(encoder: Encoder) -> None:
    """Each photograph's three likeliest labels among all twelve."""
    files = [_inside(name) for name in PHOTOS]
    probabilities = encoder.classify(files, list(PHOTOS.values())).probabilities
    labels = list(PHOTOS.values())
    right = 0
    print("| photograph | what it shows | says |\n|---|---|---|")
    for (name, truth), row in zip(PHOTOS.items(), probabilities, strict=True):
        best = np.argsort(-row)[:3]
        right += labels[best[0]] == truth
        says = ", ".join(f"{labels[i]} {100 * row[i]:.0f} %" for i in best)
        print(f"| {Path(name).name} | {truth} | {says} |")
    print(f"\n{right} of {len(labels)} right at the first place.")


def _inside(name: str) -> Path:
    package, _, rest = name.partition("/")
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed: pip install scikit-image scikit-learn")
    return Path(found.origin).parent / rest


if __name__ == "__main__":
    main()
