"""Decode and preprocess 640×480 JPEGs on one core: the reference's transform against ours, exact and fast.

    python benchmarks/decode.py [--images 32] [--rounds 9]

From the bytes of a file to normalised pixels of 224×224. Each peer runs in one thread of its own process, in
turns; what counts is CPU time. `--grain` is noise that makes the files as large as photographs' are. What the fast
way costs in recall: benchmarks/approximations.py.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from peers import Peer, machine, race, ratio, serve

SIZE = 224


def photograph(generator: np.random.Generator, grain: float) -> bytes:
    """A 640×480 JPEG: smooth noise at several scales, and grain."""
    picture = np.zeros((480, 640, 3))
    for cells in (4, 16, 64):
        noise = generator.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)) / 3
    picture += generator.normal(0, grain, (480, 640, 1))
    buffer = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photographs(count: int, grain: float) -> list[bytes]:
    """The same ones in every process."""
    generator = np.random.default_rng(0)
    return [photograph(generator, grain) for _ in range(count)]


def theirs(files: list[bytes]) -> None:
    """The peer with the reference's transform."""
    import torch

    from cn_clip.clip import image_transform

    torch.set_num_threads(1)
    transform = image_transform(SIZE)

    def decode() -> None:
        for data in files:
            Image.open(io.BytesIO(data)).load()

    def preprocess() -> None:
        for data in files:
            transform(Image.open(io.BytesIO(data)))

    serve({"decode": decode, "preprocess": preprocess}, time.process_time)


def ours(files: list[bytes]) -> None:
    """The peer with our reader, as the encoder's threads use it."""
    import torch

    from cn_clip.inputs import PictureReader

    torch.set_num_threads(1)
    exact, fast = PictureReader(SIZE), PictureReader(SIZE, fast=True)
    serve(
        {
            "exact": lambda: [exact(item) for item in enumerate(files)],
            "fast": lambda: [fast(item) for item in enumerate(files)],
        },
        time.process_time,
    )


def main() -> None:
    """Race them and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--grain", type=float, default=2.0, help="standard deviation of the noise, of 255")
    parser.add_argument("--peer", choices=["ours", "theirs"])
    args = parser.parse_args()
    files = photographs(args.images, args.grain)
    if args.peer:
        return ours(files) if args.peer == "ours" else theirs(files)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    flags = ("--images", str(args.images), "--grain", str(args.grain))
    reference = Peer(Path(__file__), "--peer", "theirs", *flags, theirs=True)
    peer = Peer(Path(__file__), "--peer", "ours", *flags)
    seconds = race(
        {
            "reference": (reference, "preprocess"),
            "ours, exact": (peer, "exact"),
            "ours, --fast-decode": (peer, "fast"),
            "Pillow, decoding alone": (reference, "decode"),
        },
        args.rounds,
    )
    print(machine())
    print(f"{args.images} JPEGs of {np.mean([len(f) for f in files]) / 1000:.0f} kB on average")
    for name, took in seconds.items():
        rate = len(files) / sorted(took)[len(took) // 2]
        print(f"{name:26}{rate:8.0f} img/s{ratio(seconds['reference'], took):8.2f}× the reference")
    for process in (reference, peer):
        process.close()


if __name__ == "__main__":
    sys.exit(main())
