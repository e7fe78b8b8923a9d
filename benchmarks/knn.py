"""Nearest neighbours among 30,000 × 512, files in and file out, against the reference's script run apart.

    python benchmarks/knn.py [--images 30000] [--width 512] [--repeats 3]

Both read the same feature files and write predictions, each in its own process. The time per additional text is
the difference of two runs with few and with many texts, divided by the difference in texts: reading the gallery
and starting up are not in it. The whole job (start, gallery, texts) stands beside it; the reference's is
extrapolated from its time per text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from peers import machine, ratio

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = [sys.executable, str(ROOT / "benchmarks/reference_cpu.py"), "cn_clip.eval.make_topk_predictions"]
OURS = [sys.executable, "-m", "cn_clip", "topk"]


def write_features(path: Path, id_field: str, vectors: np.ndarray) -> Path:
    """As the reference writes them: Python floats, 17 digits."""
    with open(path, "w") as file:
        for i, vector in enumerate(vectors):
            file.write(json.dumps({id_field: i, "feature": vector.tolist()}) + "\n")
    return path


def embeddings(seed: int, rows: int, width: int) -> np.ndarray:
    """Unit vectors around 200 centres shared by both sides, as the two towers' are."""
    centres = np.random.default_rng(0).standard_normal((200, width))
    random = np.random.default_rng(seed)
    vectors = 0.7 * centres[random.integers(0, 200, rows)] + random.standard_normal((rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def seconds(command: list[str], images: Path, texts: Path, output: Path) -> float:
    """Wall time of one whole process."""
    arguments = ["--image-feats", images, "--text-feats", texts, "--top-k", "10", "--output", output]
    start = time.perf_counter()
    subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True, cwd=output.parent)
    return time.perf_counter() - start


def main() -> None:
    """Run both in turn `--repeats` times and print a table with medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--texts", type=int, default=5_000, help="texts of the whole job")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    # Enough additional texts that the difference is well above the noise of starting up.
    sizes = {"reference": (100, 500), "ours": (args.texts, 5 * args.texts)}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = write_features(work / "images.jsonl", "image_id", embeddings(1, args.images, args.width))
        vectors = embeddings(2, max(map(max, sizes.values())), args.width)
        texts = {
            size: write_features(work / f"texts{size}.jsonl", "text_id", vectors[:size])
            for pair in sizes.values()
            for size in pair
        }
        per_text: dict[str, list[float]] = {"reference": [], "ours": []}
        whole: dict[str, list[float]] = {"reference": [], "ours": []}
        for repeat in range(args.repeats):
            for name, command in (("reference", REFERENCE), ("ours", OURS)):
                few, many = sizes[name]
                base = seconds(command, images, texts[few], work / f"{name}.jsonl")
                more = seconds(command, images, texts[many], work / f"{name}.jsonl")
                per_text[name].append((more - base) / (many - few))
                whole[name].append(base + per_text[name][-1] * (args.texts - few))
                print(
                    f"  run {repeat + 1}, {name}: {few} texts {base:.2f} s, {many} texts {more:.2f} s", flush=True
                )
        theirs, ours = ((work / f"{name}.jsonl").read_text().splitlines() for name in sizes)
    same = sum(json.loads(a) == json.loads(b) for a, b in zip(theirs, ours, strict=False))
    print(f"\n{machine()}\nequal predictions: {same} of the {len(theirs)} texts both looked up\n")
    print("| | reference | ours | times faster |\n|---|---|---|---|")
    for title, times in (("per additional text", per_text), (f"whole job, {args.texts:,} texts", whole)):
        middle = [f"{statistics.median(times[name]):.3g} s" for name in sizes]
        print(f"| {title} | {' | '.join(middle)} | {ratio(times['reference'], times['ours']):.1f} |")


if __name__ == "__main__":
    main()
