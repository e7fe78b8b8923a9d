"""Recall of small models trained from scratch on emoji_cn: this project's recipe, and the reference's trainer.

    python benchmarks/small_model.py ours --minutes 5      # or theirs, or 25
    python benchmarks/small_model.py step-time             # seconds a step of both, on a quiet machine

The reference trains a ViT (64 px, patch 8, 6 × 256) and a 3 × 256 BERT in float32 at batch 128, as its users
would on a CPU, for as many steps as fit into the time (`--seconds-per-step` of `step-time`). Steps are counted
instead of seconds, so that a busy machine changes nothing but the waiting. Both models are judged by the same
commands: extract, topk, recall.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("test", "newartist", "newboth")
VISION = {
    "embed_dim": 256,
    "image_resolution": 64,
    "vision_layers": 6,
    "vision_width": 256,
    "vision_patch_size": 8,
}
TEXT = {
    "vocab_size": 21128,
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 256,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 1024,
    "text_max_position_embeddings": 512,
    "text_num_attention_heads": 4,
    "text_num_hidden_layers": 3,
    "text_type_vocab_size": 2,
}
RECIPE = ROOT / "recipes" / "emoji_cn.py"
SECONDS_PER_STEP = {"ours": 0.41, "theirs": 2.35}  # of step-time on the machine of RESULTS.md


def cn_clip(*args: str) -> None:
    """One command of ours, in its own process."""
    subprocess.run([sys.executable, "-m", "cn_clip", *args], check=True, env={**os.environ, "PYTHONPATH": ""})


def dataset(out: Path) -> Path:
    """The sample dataset and its LMDB."""
    data = out / "emoji_cn"
    if not (data / "lmdb").is_dir():
        cn_clip("data", "sample", "--out", str(data))
        cn_clip("data", "build-lmdb", "--data_dir", str(data), "--splits", f"train,valid,{','.join(SPLITS)}")
    return data


def train_theirs(data: Path, run: Path, steps: int) -> Path:
    """The reference's trainer with the small towers under the names of ViT-B-16 and RBT3; its last checkpoint."""
    reference = run / "reference"
    shutil.copytree(ROOT / ".reference", reference, dirs_exist_ok=True)
    architectures = reference / "cn_clip" / "clip" / "model_configs"
    (architectures / "ViT-B-16.json").write_text(json.dumps(VISION))
    (architectures / "RBT3-chinese.json").write_text(json.dumps(TEXT))
    subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "reference_cpu.py"), "cn_clip.training.main"),
            *("--train-data", str(data / "lmdb/train"), "--logs", str(run), "--name", "run"),
            *("--vision-model", "ViT-B-16", "--text-model", "RBT3-chinese", "--precision", "fp32"),
            *("--batch-size", "128", "--lr", "3e-4", "--warmup", str(min(100, steps // 5)), "--wd", "0.1"),
            *("--max-steps", str(steps), "--num-workers", "0", "--save-epoch-frequency", "1000"),
        ],
        check=True,
        env={**os.environ, "REFERENCE": str(reference)},
    )
    return run / "run" / "checkpoints" / "epoch_latest.pt"


def train_ours(data: Path, run: Path, steps: int) -> Path:
    """This project's recipe; its last checkpoint."""
    lmdb = data / "lmdb"
    cn_clip(
        *(
            "train",
            "--recipe",
            str(RECIPE),
            "--train-data",
            str(lmdb / "train"),
            "--val-data",
            str(lmdb / "valid"),
        ),
        *("--logs", str(run), "--name", "run", "--max-steps", str(steps)),
    )
    return run / "run" / "checkpoints" / "epoch_latest.pt"


def recall(data: Path, run: Path, checkpoint: Path, architecture: list[str]) -> dict[str, dict[str, float]]:
    """R@1, 5, 10 of text to image and image to text on each split."""
    scores = {}
    for split in SPLITS:
        texts, images = f"{run}/{split}.txt.jsonl", f"{run}/{split}.img.jsonl"
        cn_clip(
            *("extract", "--extract-image-feats", "--extract-text-feats", "--resume", str(checkpoint)),
            *("--image-data", f"{data}/lmdb/{split}/imgs", "--text-data", f"{data}/{split}_texts.jsonl"),
            *("--image-feat-output-path", images, "--text-feat-output-path", texts, *architecture),
        )
        cn_clip("data", "invert", "--input", f"{data}/{split}_texts.jsonl")
        for direction, truth in (("t2i", f"{split}_texts.jsonl"), ("i2t", f"{split}_texts.tr.jsonl")):
            predictions, result = f"{run}/{split}.{direction}.jsonl", run / f"{split}.{direction}.json"
            features = ("--image-feats", images, "--text-feats", texts)
            cn_clip("topk", *features, "--direction", direction, "--output", predictions)
            cn_clip("recall", f"{data}/{truth}", predictions, str(result))
            scores[f"{split} {direction}"] = json.loads(result.read_text())["scoreJson"]
    return scores


def main() -> None:
    """Train one side and print its recall table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "theirs", "step-time"])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seconds-per-step", type=float)
    parser.add_argument("--out", type=Path, default=ROOT / "quickstart" / "benchmark")
    args = parser.parse_args()
    data = dataset(args.out)
    if args.side == "step-time":
        return step_time(data, args.out)
    steps = round(60 * args.minutes / (args.seconds_per_step or SECONDS_PER_STEP[args.side]))
    run = args.out / f"{args.side}-{args.minutes:g}"
    run.mkdir(parents=True, exist_ok=True)
    start = time.time()
    if args.side == "ours":
        checkpoint, architecture = train_ours(data, run, steps), list[str]()
    else:
        checkpoint = train_theirs(data, run, steps)
        (run / "vision.json").write_text(json.dumps(VISION))
        (run / "text.json").write_text(json.dumps(TEXT))
        architecture = ["--vision-model", f"{run}/vision.json", "--text-model", f"{run}/text.json"]
    minutes = (time.time() - start) / 60
    scores = recall(data, run, checkpoint, architecture)
    print(f"{args.side}: {steps} steps, {minutes:.1f} minutes of wall clock here")
    for name, row in scores.items():
        print(f"{name:16}" + "".join(f"  {k} {row[k]:5.1f}" for k in ("r1", "r5", "r10", "mean_recall")))


def step_time(data: Path, out: Path, steps: int = 12) -> None:
    """Seconds a step, the median without the first, of both trainers in turns."""
    for _ in range(2):
        for side, train in (("ours", train_ours), ("theirs", train_theirs)):
            run = out / f"step-time-{side}"
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir(parents=True)
            start = time.time()
            train(data, run, steps)
            short = time.time() - start
            shutil.rmtree(run)
            run.mkdir()
            start = time.time()
            train(data, run, 3 * steps)
            # The difference of two runs leaves out starting and saving.
            print(f"{side}: {(time.time() - start - short) / (2 * steps):.3f} s a step")


if __name__ == "__main__":
    sys.exit(main())
