"""`make quickstart`: the bundled model meets a new artist, each step a command that is printed before it runs.

python -m cn_clip.quickstart --out quickstart               # a few minutes on two cores
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
MODEL = "emoji-tiny"
GALLERIES = {
    "newboth": "the new artist's drawings of emoji that neither the model nor the finetuning has seen",
    "test": "unseen emoji by artists that the model was trained on",
}
QUERIES, BEST = 20, 5


def quickstart(out: Path = Path("quickstart"), tiny: bool = False) -> int:
    """Measure the bundled model on an artist it has never seen, finetune it on that artist, measure again, report.

    Run twice, it goes on where it stopped, or repeats what is quick.

    Args:
        out: folder of everything that is written.
        tiny: a few steps only.

    Returns:
        Exit status: 0, or that of the step that failed.
    """
    data, logs = out / "emoji_cn", out / "logs"
    name = "tiny" if tiny else "new_artist"
    checkpoint = logs / name / "checkpoints" / "epoch_latest.pt"
    recipe = "new_artist_again" if checkpoint.is_file() else "new_artist"
    train = f"train --recipe {RECIPE}:{recipe} --train-data {data}/lmdb/newartist --val-data {data}/lmdb/newboth"
    train += f" --logs {logs} --name {name}"
    if tiny:
        train += " --max-steps 4 --warmup 1 --batch-size 64"
    steps = [
        f"data sample --out {data}",
        f"data check {data}",
        f"data build-lmdb --data_dir {data} --splits newartist,{','.join(GALLERIES)}",
        *evaluation(out, data, MODEL, "before"),
        train,
        *evaluation(out, data, str(checkpoint), "after"),
    ]
    for step in steps:
        print(f"\n$ cn-clip {step}", flush=True)
        if status := cli.main(shlex.split(step)):
            return status
    report(out, data, logs / name)
    return 0


def evaluation(out: Path, data: Path, model: str, when: str) -> list[str]:
    """Embed every gallery's pictures and names, retrieve both ways, count recall: {when}/{split}_recall.json."""
    steps = []
    for split in GALLERIES:
        made = f"{out}/{when}/{split}"
        images, texts = f"{made}_imgs.img_feat.jsonl", f"{made}_texts.txt_feat.jsonl"
        features = f"--image-feats {images} --text-feats {texts}"
        steps += [
            f"extract --extract-image-feats --extract-text-feats --image-data {data}/lmdb/{split}/imgs "
            f"--text-data {data}/{split}_texts.jsonl --image-feat-output-path {images} "
            f"--text-feat-output-path {texts} --resume {model}",
            f"topk {features} --top-k 10 --output {made}_predictions.jsonl",
            f"topk {features} --top-k 10 --direction i2t --output {made}_tr_predictions.jsonl",
            f"data invert --input {data}/{split}_texts.jsonl",
            f"recall {data}/{split}_texts.jsonl {made}_predictions.jsonl {made}_recall.json",
            f"recall {data}/{split}_texts.tr.jsonl {made}_tr_predictions.jsonl {made}_tr_recall.json",
        ]
    return steps


def report(out: Path, data: Path, run: Path) -> None:
    """Print the recall table and write `report.html`."""
    columns = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "mean_recall": "mean"}
    recall = {
        f"{split}, {direction}, {when}": {column: scores[key] for key, column in columns.items()}
        for split in GALLERIES
        for direction, infix in (("text→image", ""), ("image→text", "_tr"))
        for when in ("before", "after")
        for scores in [json.loads((out / when / f"{split}{infix}_recall.json").read_text())["scoreJson"]]
    }
    print(f"\n{'':40}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'mean':>7}")
    for name, row in recall.items():
        print(f"{name:40}" + "".join(f"{value:7.1f}" for value in row.values()))
    print("\n".join(f"{split}: {what}" for split, what in GALLERIES.items()))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curves = {
        "loss (finetuning) 微调损失": [(m["step"], m["loss"]) for m in metrics if "loss" in m],
        "text→image R@1 on the new artist's unseen emoji 新画师未见表情": [
            (m["step"], m["valid_t2i_r1"]) for m in metrics if "valid_t2i_r1" in m
        ],
    }
    queries = {
        f"newboth {when}: {GALLERIES['newboth']}": best_pictures(out / when, data, "newboth")
        for when in ("before", "after")
    }
    queries[f"test after: {GALLERIES['test']}"] = best_pictures(out / "after", data, "test")
    write_report(
        out / "report.html",
        "Chinese CLIP meets a new artist 中文 CLIP 学习新画师",
        "The bundled model, emoji-tiny, before and after it was finetuned here on drawings by an artist "
        "it had never seen. The pictures below were found by typing the Chinese text; right ones have a green "
        "frame.",
        recall,
        queries,
        {name: points for name, points in curves.items() if points},
    )
    print(f"\nthe report: {out / 'report.html'}")


def best_pictures(made: Path, data: Path, split: str) -> list[Query]:
    """Twenty queries, evenly spread over the split's texts, each with its five best pictures."""
    texts: dict[Id, Text] = {text.text_id: text for text in read_texts(data / f"{split}_texts.jsonl")}
    images = LmdbImages(data / "lmdb" / split / "imgs")
    english = {}
    with open(data / "emoji.jsonl", encoding="utf-8") as file:
        for line in file:
            emoji = json.loads(line)
            english[emoji["name"]] = emoji["english"]
    with open(made / f"{split}_predictions.jsonl", encoding="utf-8") as file:
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
