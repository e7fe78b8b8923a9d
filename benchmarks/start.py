"""Time of `import cn_clip` and `cn-clip --help`, and until a B/16 is ready, each in a fresh process.

python benchmarks/start.py [--rounds 11] [--skip-loading]

Loading counts from after the imports to a model in eval mode, float32 whatever the file has, and to its first
features; the reference (.reference/, made by make test) loads the same float32 .pt in the same rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import ROOT, machine, ratio

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import cn_clip": [sys.executable, "-c", "import cn_clip"],
    "cn-clip --help": [sys.executable, "-m", "cn_clip", "--help"],
    "cn-clip topk --help": [sys.executable, "-m", "cn_clip", "topk", "--help"],
}
FILES = ("float32.pt", "float16.pt", "float32.safetensors", "float16.safetensors")
NAMES = ("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")
THEIRS, OURS = "reference, float32.pt", "float32.pt"

LOAD = """
import sys, time
import torch
import cn_clip.clip as clip
pixels, ids = torch.zeros(1, 3, 224, 224), clip.tokenize(["一只猫"])
start = time.perf_counter()
model, _ = clip.load_from_name(sys.argv[1], "cpu", **eval(sys.argv[2]))
model.eval()
ready = time.perf_counter()
with torch.no_grad():
    model.float().encode_image(pixels), model.encode_text(ids)
print(ready - start, time.perf_counter() - start)
"""


def main() -> None:
    """Median seconds of each command, in interleaved rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--skip-loading", action="store_true", help="only imports and help")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for i in range(args.rounds + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if i:
                seconds[name].append(time.perf_counter() - start)
    print(machine())
    for name, took in seconds.items():
        print(f"{name:28}{statistics.median(took):7.3f} s")
    if not args.skip_loading:
        loading(args.rounds)


def loading(rounds: int) -> None:
    """Print how long a B/16 takes to be ready, of every kind of file, and the reference."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        (Path(folder) / "load.py").write_text(LOAD, encoding="utf-8")
        names = dict(zip(("vision_model_name", "text_model_name"), NAMES, strict=True))
        runs = {file: command(Path(folder), file, {}) for file in FILES}
        shim = [sys.executable, str(ROOT / "benchmarks" / "reference_cpu.py")]
        ours = command(Path(folder), OURS, {**names, "input_resolution": 224})
        if (ROOT / ".reference" / "cn_clip").is_dir():
            runs[THEIRS] = [*shim, *ours[1:]]
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for i in range(rounds + 1):
            for name, run in runs.items():
                done = subprocess.run(run, check=True, capture_output=True, text=True, cwd=folder)
                ready, first = done.stdout.split()[-2:]
                if i:
                    took[name].append((float(ready), float(first)))
    for name, pairs in took.items():
        ready, first = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:28}{ready:7.3f} s ready{first:7.3f} s with first features")
    if THEIRS in took:
        times = ratio([ready for ready, _ in took[THEIRS]], [ready for ready, _ in took[OURS]])
        print(f"ours is ready {times:.1f} times as fast")


def command(folder: Path, file: str, options: dict[str, object]) -> list[str]:
    """A fresh process that loads a file and prints its seconds."""
    return [sys.executable, str(folder / "load.py"), str(folder / file), repr(options)]


def write_files(folder: Path) -> None:
    """A B/16 of random weights in every kind of file."""
    import torch

    from cn_clip.checkpoint import write_weights
    from cn_clip.config import model_config
    from cn_clip.models.clip import CLIP

    torch.manual_seed(0)
    model = CLIP(model_config(*NAMES))
    for file in FILES:
        dtype = getattr(torch, Path(file).stem)
        write_weights(folder / file, model.state_dict(), model.config, dtype)
    os.sync()  # pages still to be written would slow down the first rounds


if __name__ == "__main__":
    sys.exit(main())
