"""`cn-clip data import` of JPEGs against the documented way of making the TSV, in CPU time, one core each.

    python benchmarks/import_images.py [--images 10000] [--rounds 3]

The documented way opens each picture with Pillow, saves it again into memory in its own format, and writes the
base64 of that; it is done here by a loop of these lines, with the captions written as well. Ours decodes every
picture to verify it, keeps its bytes, merges captions and writes a report. Each round runs both, each in its own
process and pinned to one core; the time is that of the process (user and system), the wall time stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from peers import machine, ratio

DOCUMENTED = """
import base64, csv, json, sys
from io import BytesIO
from pathlib import Path
from PIL import Image

source, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir()
with open(source / "captions.csv", encoding="utf-8", newline="") as table, \\
     open(out / "train_imgs.tsv", "w") as images, \\
     open(out / "train_texts.jsonl", "w", encoding="utf-8") as texts:
    for number, row in enumerate(csv.DictReader(table)):
        img = Image.open(source / row["image"])
        img_buffer = BytesIO()
        img.save(img_buffer, format=img.format)
        byte_data = img_buffer.getvalue()
        base64_str = base64.b64encode(byte_data)
        base64_str = base64_str.decode("utf-8")
        images.write(f"{number}\\t{base64_str}\\n")
        texts.write(json.dumps({"text_id": number, "text": row["caption"], "image_ids": [number]},
                               ensure_ascii=False) + "\\n")
"""


def photograph(generator: np.random.Generator) -> Image.Image:
    """A 640×480 picture with the detail of a photograph: smooth noise at several scales, and grain."""
    picture = np.zeros((480, 640, 3), dtype=np.float32)
    for cells, weight in ((4, 1.0), (16, 0.6), (64, 0.3), (256, 0.1)):
        noise = generator.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
        picture += weight * np.asarray(layer, dtype=np.float32)
    picture = picture / 2 + generator.normal(0, 2, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def write_source(folder: Path, count: int, quality: int) -> int:
    """JPEGs of 64 pictures, each with another comment, and a table of captions; returns the JPEGs' bytes."""
    generator = np.random.default_rng(0)
    pictures = [photograph(generator) for _ in range(min(count, 64))]
    size = 0
    folder.mkdir()
    with open(folder / "captions.csv", "w", encoding="utf-8") as table:
        table.write("image,caption\n")
        for number in range(count):
            buffer = BytesIO()
            pictures[number % len(pictures)].save(buffer, "JPEG", quality=quality, comment=str(number).encode())
            (folder / f"{number}.jpg").write_bytes(buffer.getvalue())
            size += len(buffer.getvalue())
            table.write(f"{number}.jpg,第{number}张照片\n")
    return size


def run(command: list[str]) -> tuple[float, float]:
    """CPU seconds and wall seconds of a process on one core."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {0}))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start


def main() -> None:
    """Run both in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs that are imported")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {"documented": [], "ours": [], "ours, headers only": []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        size = write_source(work / "source", args.images, args.quality)
        ours = [sys.executable, "-m", "cn_clip", "data", "import", str(work / "source"), "--workers", "1", "--out"]
        for i in range(args.rounds):
            out = {what: work / f"{what[:4]}{len(what)}_{i}" for what in times}
            source = str(work / "source")
            times["documented"].append(run([sys.executable, "-c", DOCUMENTED, source, str(out["documented"])]))
            times["ours"].append(run([*ours, str(out["ours"])]))
            headers = [*ours, str(out["ours, headers only"]), "--no-verify"]
            times["ours, headers only"].append(run(headers))
            texts = [(folder / "train_texts.jsonl").read_text("utf-8").splitlines() for folder in out.values()]
            assert all(list(map(json.loads, lines)) == list(map(json.loads, texts[0])) for lines in texts)
            for folder in out.values():
                subprocess.run(["rm", "-r", str(folder)], check=True)
    print(f"{machine()}\n{args.images:,} JPEGs of 640×480, {size / args.images / 1000:.0f} KB each\n")
    print("| | images a CPU second | times the documented way | wall seconds |\n|---|---|---|---|")
    base = [cpu for cpu, _ in times["documented"]]
    for what, rounds in times.items():
        cpu, wall = zip(*rounds, strict=True)
        rate = args.images / statistics.median(cpu)
        print(f"| {what} | {rate:.0f} | {ratio(base, cpu):.2f} | {statistics.median(wall):.1f} |")


if __name__ == "__main__":
    main()
