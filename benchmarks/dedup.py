"""Duplicates: how fast pictures are hashed and hashes grouped, and which copies are found at which threshold.

    pip install imagehash scikit-image scikit-learn       # the peer, and photographs
    python benchmarks/dedup.py speed [--hashes 1000000] [--naive 20000] [--pictures 500] [--rounds 5]
    python benchmarks/dedup.py quality [--drawings 400] [--model emoji-tiny]

speed: `imagehash.phash` and our fingerprint of the same decoded photographs, in turns in one process; then all
pairs within some bits of random hashes of which a tenth are near copies, beside naive NumPy and faiss's exact
binary index (on a size they can do in seconds: the time of all with all grows with the square of the size).

quality: photographs of scikit-image and scikit-learn (whole, and in six parts each), and drawings of emoji_cn,
each changed in known ways. Recall: per cent of the changed pictures found with their original. False: pairs of
different pictures that are found; in emoji_cn those differ in a small detail, by the artist's own hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from cn_clip.data.formats import decode_base64, read_images
from cn_clip.data.hamming import near_pairs, popcount
from cn_clip.data.phash import fingerprint, tiny_difference
from cn_clip.transform import decode_image
from peers import machine, ratio

EMOJI = Path(__file__).resolve().parents[1] / "datasets" / "emoji_cn"
SPLITS = ("train", "valid", "test", "newartist", "newboth")
BICUBIC = Image.Resampling.BICUBIC
NOT_PHOTOS = ("text", "page", "logo", "chessboard", "phantom", "horse", "multipage")


def folder_of(package: str) -> Path:
    """Where a package is, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"no {package}: pip install imagehash scikit-image scikit-learn")
    return Path(found.origin).parent


def photographs() -> list[Image.Image]:
    """Some twenty photographs of 800 pixels at most."""
    paths = [
        *(folder_of("skimage") / "data").glob("*.[pj][np]g"),
        *(folder_of("sklearn") / "datasets").rglob("*.jpg"),
    ]
    found = []
    for path in sorted(paths):
        if path.stat().st_size > 30_000 and not path.stem.startswith(NOT_PHOTOS):
            image = Image.open(path).convert("RGB")
            image.thumbnail((800, 800))
            found.append(image)
    return found


def with_parts(images: list[Image.Image]) -> list[Image.Image]:
    """Each picture, and its six parts as pictures of their own."""
    found = []
    for image in images:
        w, h = image.size
        boxes = [(i * w // 3, j * h // 2, (i + 1) * w // 3, (j + 1) * h // 2) for i in range(3) for j in range(2)]
        found += [image, *(image.crop(box) for box in boxes)]
    return found


def drawings() -> list[Image.Image]:
    """All of emoji_cn."""
    rows = (row for split in SPLITS for row in read_images(EMOJI / f"{split}_imgs.tsv"))
    return [decode_image(decode_base64(row.base64, row.image_id)).convert("RGB") for row in rows]


def saved(image: Image.Image, format: str, quality: int) -> Image.Image:
    """Encoded and decoded again."""
    file = io.BytesIO()
    image.save(file, format, quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    """Resized."""
    return image.resize((max(1, round(image.width * x)), max(1, round(image.height * y))), BICUBIC)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without a border of this share on each side."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 90": lambda image: saved(image, "JPEG", 90),
    "JPEG, quality 50": lambda image: saved(image, "JPEG", 50),
    "WebP, quality 60": lambda image: saved(image, "WEBP", 60),
    "half size": lambda image: scaled(image, 0.5, 0.5),
    "double size, JPEG 75": lambda image: saved(scaled(image, 2, 2), "JPEG", 75),
    "height × 0.9": lambda image: scaled(image, 1, 0.9),
    "contrast × 0.9": lambda image: ImageEnhance.Contrast(image).enhance(0.9),
    "saturation × 0.85": lambda image: ImageEnhance.Color(image).enhance(0.85),
    "brightness × 1.1": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "2% cropped on each side": lambda image: cropped(image, 0.02),
    "5% cropped on each side": lambda image: cropped(image, 0.05),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def prints(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes uint64 [N], tiny copies uint8 [N, 192]."""
    both = [fingerprint(image) for image in images]
    tiny = np.stack([np.frombuffer(tiny, np.uint8) for _, tiny in both])
    return np.array([hash for hash, _ in both], dtype=np.uint64), tiny


def quality(args: argparse.Namespace) -> None:
    """Print, for both kinds of picture, recall of each change and false pairs at several thresholds."""
    from cn_clip.encoder import Encoder

    encoder = Encoder.load(args.model, device="cpu", precision="fp32") if args.model else None
    all_drawings = drawings()
    some = random.Random(0).sample(all_drawings, args.drawings)
    settings = [(bits, colour) for bits in (4, 6, 8) for colour in (12, 16, 24, 32, 255)]
    cosines = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
    for title, gallery, originals in (
        ("photographs", *[with_parts(photographs())] * 2),
        ("drawings", all_drawings, some),
    ):
        hashes, tiny = prints(gallery)
        own_hashes, own_tiny = prints(originals)
        pairs = [np.concatenate(column) for column in zip(*near_pairs(hashes, 8), strict=True)]
        colours = tiny_difference(tiny[pairs[0]], tiny[pairs[1]])
        print(f"\n{title}: {len(gallery)} different pictures, {len(originals)} changed ones of each kind")
        print(f"| {'bits, colour':24} | " + " | ".join(f"{b}, {c}" for b, c in settings) + " |")
        false = [int(((pairs[2] <= b) & (colours <= c)).sum()) for b, c in settings]
        print(f"| {'false pairs':24} | " + " | ".join(map(str, false)) + " |", flush=True)
        changed = {name: [change(image) for image in originals] for name, change in CHANGES.items()}
        for name, images in changed.items():
            new_hashes, new_tiny = prints(images)
            bits, colour = popcount(new_hashes ^ own_hashes), tiny_difference(new_tiny, own_tiny)
            known = (new_hashes > 0) & (own_hashes > 0)
            recall = [(known & (bits <= b) & (colour <= c)).mean() for b, c in settings]
            print(f"| {name:24} | " + " | ".join(f"{100 * r:.0f}" for r in recall) + " |", flush=True)
        if encoder is None:
            continue
        vectors = encoder.encode_images(gallery, 64)
        cosine = vectors @ vectors.T
        above = cosine[np.triu_indices(len(gallery), 1)]
        print(f"| {'cosine by ' + Path(args.model).name:24} | " + " | ".join(map(str, cosines)) + " |")
        print(f"| {'false pairs':24} | " + " | ".join(str(int((above >= c).sum())) for c in cosines) + " |")
        own = encoder.encode_images(originals, 64)
        for name, images in changed.items():
            near = (encoder.encode_images(images, 64) * own).sum(1)
            print(
                f"| {name:24} | " + " | ".join(f"{100 * (near >= c).mean():.0f}" for c in cosines) + " |",
                flush=True,
            )


def seconds(work: Callable[[], object]) -> float:
    """Of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(args: argparse.Namespace) -> None:
    """Print hashing rates of both, and times and memory of grouping."""
    import faiss
    import imagehash

    images = (photographs() * (args.pictures // 10 + 1))[: args.pictures]
    runs: dict[str, list[float]] = {"imagehash.phash": [], "ours": []}
    for i in range(args.rounds + 1):
        theirs = seconds(lambda: [imagehash.phash(image) for image in images])
        ours = seconds(lambda: [fingerprint(image) for image in images])
        if i:
            runs["imagehash.phash"].append(theirs)
            runs["ours"].append(ours)
    print(f"{machine()}\n\n| hashing decoded photographs of 800 px, one thread | pictures a second |\n|---|---|")
    for name, took in runs.items():
        print(f"| {name} | {len(images) / statistics.median(took):,.0f} |")
    print(
        f"\nours against imagehash: {ratio(runs['imagehash.phash'], runs['ours']):.2f} times as fast\n", flush=True
    )

    hashes = near_copies(args.hashes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = [0]

    def search(some: np.ndarray, radius: int) -> None:
        found[0] = sum(len(left) for left, _, _ in near_pairs(some, radius))

    print("| all pairs | hashes | bits | seconds | pairs |\n|---|---|---|---|---|")
    for radius in (4, 6, 8):
        took = seconds(lambda radius=radius: search(hashes, radius))  # type: ignore[misc]
        print(f"| near_pairs | {len(hashes):,} | {radius} | {took:.1f} | {found[0]:,} |", flush=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    few = near_copies(args.naive)
    codes = few.view(np.uint8).reshape(-1, 8)
    took = seconds(lambda: search(few, 6))
    print(f"| near_pairs | {len(few):,} | 6 | {took:.2f} | {found[0]:,} |", flush=True)

    def naive() -> None:
        found[0] = sum(int((popcount(few[i + 1 :] ^ few[i]) <= 6).sum()) for i in range(len(few) - 1))

    took = seconds(naive)
    print(f"| NumPy, all with all | {len(few):,} | 6 | {took:.2f} | {found[0]:,} |", flush=True)

    def flat() -> None:
        index = faiss.IndexBinaryFlat(64)
        index.add(codes)
        limits = index.range_search(codes, 7)[0]  # faiss's radius is not included
        found[0] = (int(limits[-1]) - len(few)) // 2

    took = seconds(flat)
    print(f"| faiss IndexBinaryFlat | {len(few):,} | 6 | {took:.2f} | {found[0]:,} |")
    print(f"\npeak memory grew by {grown:.0f} MB over the {hashes.nbytes / 1e6:.0f} MB of hashes")


def near_copies(count: int) -> np.ndarray:
    """Random hashes uint64 [N]; a tenth of them have up to five bits of another one changed."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, count, dtype=np.uint64, endpoint=False)
    copies, sources = (
        generator.choice(count, count // 10, replace=False),
        generator.integers(0, count, count // 10),
    )
    flips = np.zeros(count // 10, np.uint64)
    for _ in range(5):
        flips ^= np.uint64(1) << generator.integers(0, 64, count // 10).astype(np.uint64)
    hashes[copies] = hashes[sources] ^ flips
    return hashes


def main() -> None:
    """Parse the command line and run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    modes = parser.add_subparsers(required=True)
    fast = modes.add_parser("speed")
    fast.add_argument("--hashes", type=int, default=1_000_000)
    fast.add_argument("--naive", type=int, default=20_000)
    fast.add_argument("--pictures", type=int, default=500)
    fast.add_argument("--rounds", type=int, default=5)
    fast.set_defaults(run=speed)
    good = modes.add_parser("quality")
    good.add_argument("--drawings", type=int, default=400)
    good.add_argument("--model", default="emoji-tiny", help="empty: without embeddings")
    good.set_defaults(run=quality)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
