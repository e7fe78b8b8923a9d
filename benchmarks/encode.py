"""Encoding speed of B/16 + RoBERTa-base (random weights) against the reference on the CPU, in one run.

    python benchmarks/encode.py [--rounds 5]

Texts: the names of emoji_cn, batches of 64, from strings to vectors. Images: batches of 16 of random pixels,
the model alone. The reference runs as it is (float32), and under bfloat16 autocast for a second comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from peers import Peer, machine, race, ratio, serve

ROOT = Path(__file__).resolve().parents[1]
IMAGES, TEXTS, TEXT_BATCH = 16, 512, 64


def texts() -> list[str]:
    """Names of emoji (not their keywords): those of the sample dataset's evaluation splits and training emoji."""
    with open(ROOT / "datasets" / "emoji_cn" / "emoji.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["name"] for line in file][:TEXTS]


def ours(precision: str) -> None:
    """The peer with our package."""
    import torch

    from cn_clip.config import model_config
    from cn_clip.encoder import Encoder
    from cn_clip.models.clip import CLIP

    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    encoder = Encoder(CLIP(model_config("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")).to(dtype))
    pixels = torch.randn(IMAGES, 3, 224, 224)

    def image() -> None:
        with torch.inference_mode():
            encoder.model.encode_image(pixels)

    serve({"image": image, "text": lambda: encoder.encode_texts(texts(), batch_size=TEXT_BATCH)})


def theirs() -> None:
    """The peer with the reference."""
    import torch
    from cn_clip.clip.utils import create_model

    import cn_clip.clip as clip

    model = create_model("ViT-B-16@RoBERTa-wwm-ext-base-chinese").float().eval()
    pixels = torch.randn(IMAGES, 3, 224, 224)

    def image() -> None:
        with torch.no_grad():
            model.encode_image(pixels)

    def text() -> None:
        names = texts()
        with torch.no_grad():
            for start in range(0, len(names), TEXT_BATCH):
                features = model.encode_text(clip.tokenize(names[start : start + TEXT_BATCH]))
                features / features.norm(dim=-1, keepdim=True)

    def bf16(operation):  # type: ignore[no-untyped-def]
        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                operation()

        return run

    serve({"image": image, "text": text, "image-bf16": bf16(image), "text-bf16": bf16(text)})


def main() -> None:
    """Race both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", choices=["fp32", "bf16", "theirs"])
    args = parser.parse_args()
    if args.peer:
        return theirs() if args.peer == "theirs" else ours(args.peer)
    script = Path(__file__)
    reference = Peer(script, "--peer", "theirs", theirs=True)
    fp32, bf16 = Peer(script, "--peer", "fp32"), Peer(script, "--peer", "bf16")
    print(machine())
    for kind, count, unit in (("image", IMAGES, "img/s"), ("text", len(texts()), "text/s")):
        seconds = race(
            {
                "reference float32": (reference, kind),
                "reference bf16 autocast": (reference, f"{kind}-bf16"),
                "ours float32": (fp32, kind),
                "ours bf16": (bf16, kind),
            },
            args.rounds,
        )
        base = seconds["reference float32"]
        for name, took in seconds.items():
            rate = count / sorted(took)[len(took) // 2]
            print(f"{kind:6}{name:26}{rate:10.1f} {unit:7}{ratio(base, took):7.2f}× the reference's float32")
    for peer in (reference, fp32, bf16):
        peer.close()


if __name__ == "__main__":
    sys.exit(main())
