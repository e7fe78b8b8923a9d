"""`cn-clip extract` from an LMDB of 640×480 JPEGs against the model's own rate, B/16, in one run.

    python benchmarks/extract.py [--images 160] [--rounds 3]

The model's own rate is that of batches already in memory; what extraction adds (reading, base64, decoding,
resizing, writing) must hide behind it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cn_clip.config import model_config
from cn_clip.data.build_lmdb import build_lmdb
from cn_clip.data.formats import image_to_base64, write_images, write_texts
from cn_clip.encoder import Encoder
from cn_clip.eval.extract import extract_images
from cn_clip.models.clip import CLIP
from peers import machine

BATCH = 16


def jpeg(generator: np.random.Generator) -> bytes:
    """A 640×480 picture with the detail of a photograph: smooth noise at several scales."""
    picture = np.zeros((480, 640, 3))
    for cells in (4, 16, 64):
        noise = generator.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC))
    buffer = BytesIO()
    Image.fromarray((picture / 3).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> None:
    """Time both in turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    encoder = Encoder(CLIP(model_config("ViT-B-16", "RBT3-chinese")))
    pixels = torch.randn(BATCH, 3, 224, 224)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_images(data / "test_imgs.tsv", ((i, image_to_base64(jpeg(generator))) for i in range(args.images)))
        write_texts(data / "test_texts.jsonl", [(0, "图", [0])])
        build_lmdb(data, "test")
        own, whole = [], []
        for i in range(args.rounds + 1):
            start = time.perf_counter()
            for _ in range(0, args.images, BATCH):
                with torch.inference_mode():
                    encoder.model.encode_image(pixels)
            middle = time.perf_counter()
            extract_images(encoder, data / "lmdb/test/imgs", data / "features.jsonl", BATCH)
            if i:
                own.append(args.images / (middle - start))
                whole.append(args.images / (time.perf_counter() - middle))
    ratios = [w / o for w, o in zip(whole, own, strict=True)]
    print(machine())
    print(f"model alone {statistics.median(own):.2f} img/s, extract {statistics.median(whole):.2f} img/s")
    print(f"extract / model: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    sys.exit(main())
