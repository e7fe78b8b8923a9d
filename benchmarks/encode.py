"""Encoding speed of B/16 + RoBERTa-base (random weights) against the reference on the CPU, in one run.

    python benchmarks/encode.py [--rounds 5] [--kinds image text]

Texts: the names of emoji_cn, from strings to vectors; batches of 64 in the reference, in ours as many as fit into
the room of 64 texts of full length. Images: batches of 16 of random pixels, the model alone. The reference runs as
it is (float32), and under bfloat16 autocast for a second comparison. All have the same weights: the lowest cosine
with the reference's float32 vectors ends a line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from peers import Peer, machine, race, ratio, serve

ROOT = Path(__file__).resolve().parents[1]
IMAGES, TEXTS, TEXT_BATCH = 16, 512, 64


def texts() -> list[str]:
    """Names of emoji (not their keywords): those of the sample dataset's evaluation splits and training emoji."""
    with open(ROOT / "datasets" / "emoji_cn" / "emoji.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["name"] for line in file][:TEXTS]


def ours(precision: str, folder: Path) -> None:
    """The peer with our package."""
    import torch

    from cn_clip.config import model_config
    from cn_clip.encoder import Encoder
    from cn_clip.models.clip import CLIP

    model = CLIP(model_config("ViT-B-16", "RoBERTa-wwm-ext-base-chinese"))
    model.load_state_dict(torch.load(folder / "weights.pt"))
    encoder = Encoder(model.to(torch.bfloat16 if precision == "bf16" else torch.float32))
    pixels = torch.load(folder / "pixels.pt").numpy()

    def vectors() -> None:
        save(folder / f"{precision}-image.npy", encoder.backend.encode_images(pixels))
        save(folder / f"{precision}-text.npy", encoder.encode_texts(texts()))

    image = partial(encoder.backend.encode_images, pixels)
    serve({"image": image, "text": lambda: encoder.encode_texts(texts()), "vectors": vectors})


def theirs(folder: Path) -> None:
    """The peer with the reference."""
    import torch
    from cn_clip.clip.utils import create_model

    import cn_clip.clip as clip

    model = create_model("ViT-B-16@RoBERTa-wwm-ext-base-chinese").float().eval()
    model.load_state_dict(torch.load(folder / "weights.pt"), strict=False)  # it has a pooler that it does not use
    pixels = torch.load(folder / "pixels.pt")

    def image():  # type: ignore[no-untyped-def]
        with torch.no_grad():
            return model.encode_image(pixels)

    def text():  # type: ignore[no-untyped-def]
        names, found = texts(), []
        with torch.no_grad():
            for start in range(0, len(names), TEXT_BATCH):
                features = model.encode_text(clip.tokenize(names[start : start + TEXT_BATCH]))
                found.append(features / features.norm(dim=-1, keepdim=True))
        return torch.cat(found)

    def bf16(operation):  # type: ignore[no-untyped-def]
        def run():  # type: ignore[no-untyped-def]
            with torch.autocast("cpu", torch.bfloat16):
                return operation()

        return run

    def vectors() -> None:
        save(folder / "theirs-image.npy", image().numpy())
        save(folder / "theirs-text.npy", text().numpy())

    serve({"image": image, "text": text, "image-bf16": bf16(image), "text-bf16": bf16(text), "vectors": vectors})


def save(path: Path, vectors: np.ndarray) -> None:
    """Unit vectors into a file."""
    np.save(path, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def weights(folder: Path) -> None:
    """Random weights and pixels for every peer; in a process of its own, which frees them."""
    import torch

    from cn_clip.config import model_config
    from cn_clip.models.clip import CLIP

    torch.manual_seed(0)
    torch.save(CLIP(model_config("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")).state_dict(), folder / "weights.pt")
    torch.save(torch.randn(IMAGES, 3, 224, 224), folder / "pixels.pt")


def main() -> None:
    """Race both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=["image", "text"], default=["image", "text"])
    parser.add_argument("--peer", choices=["fp32", "bf16", "theirs", "weights"])
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.peer:
        jobs = {"theirs": theirs, "weights": weights}
        return jobs.get(args.peer, partial(ours, args.peer))(args.folder)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.rounds, args.kinds)


def compare(folder: Path, rounds: int, kinds: list[str]) -> None:
    """Start the peers, compare their vectors, and race them."""
    script, flags = Path(__file__), ("--folder", str(folder), "--peer")
    subprocess.run([sys.executable, script, *flags, "weights"], check=True)
    reference = Peer(script, *flags, "theirs", theirs=True)
    fp32, bf16 = Peer(script, *flags, "fp32"), Peer(script, *flags, "bf16")
    for peer in (reference, fp32, bf16):
        peer.time("vectors")
    for kind in kinds:
        count, unit = (IMAGES, "img/s") if kind == "image" else (len(texts()), "text/s")
        seconds = race(
            {
                "reference float32": (reference, kind),
                "reference bf16 autocast": (reference, f"{kind}-bf16"),
                "ours float32": (fp32, kind),
                "ours bf16": (bf16, kind),
            },
            rounds,
        )
        base, exact = seconds["reference float32"], np.load(folder / f"theirs-{kind}.npy")
        for name, took in seconds.items():
            rate = count / sorted(took)[len(took) // 2]
            line = f"{kind:6}{name:26}{rate:10.1f} {unit:7}{ratio(base, took):7.2f}× the reference's float32"
            if name.startswith("ours"):
                found = np.load(folder / f"{'bf16' if 'bf16' in name else 'fp32'}-{kind}.npy")
                line += f", cosine {(exact * found).sum(axis=1).min():.6f}"
            print(line)
    for peer in (reference, fp32, bf16):
        peer.close()


if __name__ == "__main__":
    sys.exit(main())
