"""`make quickstart`: the whole path on the sample dataset, each step a command that is printed before it runs.

python -m cn_clip.quickstart --out quickstart          # about ten minutes on two cores
python -m cn_clip.quickstart --out quickstart/tiny --tiny   # a minute, to see that everything works
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from cn_clip import cli
from cn_clip.data.formats import Id, Text, read_texts
from cn_clip.data.lmdb import LmdbImages
from cn_clip.errors import UserError
from cn_clip.report import Query, write_report

RECIPE = Path(__file__).parents[2] / "recipes" / "emoji_cn.py"
GALLERIES = {
    "test": "unseen emoji, artists seen in training",
    "newartist": "training emoji, an artist never seen",
    "newboth": "unseen emoji, an artist never seen",
}
QUERIES, BEST = 20, 5


def quickstart(out: Path = Path("quickstart"), tiny: bool = False) -> int:
    """Write the sample dataset, check it, train a small model from scratch, retrieve both ways, and report.

    Run twice, it goes on where it stopped, or repeats what is quick.

    Args:
        out: folder of everything that is written.
        tiny: a few steps only.

    Returns:
        Exit status: 0, or that of the step that failed.
    """
    data, logs = out / "emoji_cn", out / "logs"
    name = "tiny" if tiny else "emoji"
    checkpoint = logs / name / "checkpoints" / "epoch_latest.pt"
    train = f"train --recipe {RECIPE} --train-data {data}/lmdb/train --val-data {data}/lmdb/valid"
    train += f" --logs {logs} --name {name}"
    if tiny:
        train += " --max-steps 20 --warmup 2 --batch-size 64 --num-workers 0 --valid-num-workers 0"
    steps = [
        f"data sample --out {data}",
        f"data check {data}",
        f"data build-lmdb --data_dir {data} --splits train,valid,{','.join(GALLERIES)}",
        train,
    ]
    for split in GALLERIES:
        images, texts = f"{data}/{split}_imgs.img_feat.jsonl", f"{data}/{split}_texts.txt_feat.jsonl"
        features = f"--image-feats {images} --text-feats {texts}"
        answers, pages = f"{data}/{split}_predictions.jsonl", f"{data}/{split}_tr_predictions.jsonl"
        steps += [
            f"extract --extract-image-feats --extract-text-feats --image-data {data}/lmdb/{split}/imgs "
            f"--text-data {data}/{split}_texts.jsonl --resume {checkpoint}",
            f"topk {features} --top-k 10 --output {answers}",
            f"topk {features} --top-k 10 --direction i2t --output {pages}",
            f"data invert --input {data}/{split}_texts.jsonl",
            f"recall {data}/{split}_texts.jsonl {answers} {out}/{split}_recall.json",
            f"recall {data}/{split}_texts.tr.jsonl {pages} {out}/{split}_tr_recall.json",
        ]
    for step in steps:
        print(f"\n$ cn-clip {step}", flush=True)
        if status := cli.main(shlex.split(step)):
            return status
    report(out, data, logs / name)
    return 0


def report(out: Path, data: Path, run: Path) -> None:
    """Print the recall table and write `report.html`."""
    columns = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "mean_recall": "mean"}
    recall = {
        f"{split} ({what}), {direction}": {column: scores[key] for key, column in columns.items()}
        for split, what in GALLERIES.items()
        for direction, infix in (("text→image", ""), ("image→text", "_tr"))
        for scores in [json.loads((out / f"{split}{infix}_recall.json").read_text())["scoreJson"]]
    }
    print(f"\n{'':60}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'mean':>7}")
    for name, row in recall.items():
        print(f"{name:60}" + "".join(f"{value:7.1f}" for value in row.values()))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curves = {
        "loss (training) 训练损失": [(m["step"], m["loss"]) for m in metrics if "loss" in m],
        "text→image R@1 (validation, whole gallery) 验证集": [
            (m["step"], m["valid_t2i_r1"]) for m in metrics if "valid_t2i_r1" in m
        ],
    }
    shown = [split for split in GALLERIES if split != "newboth"]
    queries = {f"{split}: {GALLERIES[split]}": best_pictures(data, split) for split in shown}
    write_report(
        out / "report.html",
        "Chinese CLIP, from scratch in minutes 几分钟从零训练的中文 CLIP",
        "A small image tower and a small text tower, trained on this machine on drawings of emoji and their "
        "Chinese names. The pictures below were found by typing the Chinese text; right ones have a green frame.",
        recall,
        queries,
        curves,
    )
    print(f"\nthe report: {out / 'report.html'}")


def best_pictures(data: Path, split: str) -> list[Query]:
    """Twenty queries, evenly spread over the split's texts, each with its five best pictures."""
    texts: dict[Id, Text] = {text.text_id: text for text in read_texts(data / f"{split}_texts.jsonl")}
    images = LmdbImages(data / "lmdb" / split / "imgs")
    english = {}
    with open(data / "emoji.jsonl", encoding="utf-8") as file:
        for line in file:
            emoji = json.loads(line)
            english[emoji["name"]] = emoji["english"]
    with open(data / f"{split}_predictions.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        Query(
            texts[row["text_id"]].text,
            english.get(texts[row["text_id"]].text, ""),
            [
                (f"data:image/webp;base64,{images.base64(i).decode()}", i in texts[row["text_id"]].image_ids)
                for i in row["image_ids"][:BEST]
            ],
        )
        for row in rows[:: max(1, len(rows) // QUERIES)][:QUERIES]
    ]


def main() -> int:
    """Parse the command line and run."""
    import tyro

    try:
        return tyro.cli(quickstart, prog="quickstart", config=cli.config())
    except UserError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
