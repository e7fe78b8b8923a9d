"""Whole runs of tiny models: files, log lines, resuming, and options that change what is learnt."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import log_lines, losses, metrics, run, tiny_config, weights

STAMP = r"\d\d\d\d-\d\d-\d\d,\d\d:\d\d:\d\d \| INFO \| Rank 0 \| "
TRAIN = (
    STAMP
    + r"Global Steps: {step}/10 \| Train Epoch: {epoch} \[{pairs}/20 \({percent}%\)\] \| Loss: \d+\.\d{{6}} \| "
    r"Image2Text Acc: \d+\.\d\d \| Text2Image Acc: \d+\.\d\d \| Data Time: \d+\.\d{{3}}s \| "
    r"Batch Time: \d+\.\d{{3}}s \| LR: \d\.\d{{6}} \| logit_scale: \d\.\d{{3}} \| Global Batch Size: 4"
)
VALID = (
    STAMP + r"Validation Result \(epoch {epoch} @ {step} steps\) \| Valid Loss: \d+\.\d{{6}} \| "
    r"Image2Text Acc: \d+\.\d\d \| Text2Image Acc: \d+\.\d\d \| logit_scale: \d\.\d{{3}} \| Valid Batch Size: 5"
)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_the_documented_files_and_lines(tmp_path: Path, lmdb: Path) -> None:
    folder = run(tiny_config(tmp_path, lmdb, report_training_batch_acc=True, save_step_frequency=4))
    assert folder == tmp_path / "logs" / "run"
    checkpoints = {path.name for path in (folder / "checkpoints").iterdir()}
    assert checkpoints == {"epoch1.pt", "epoch2.pt", "epoch_1_4.pt", "epoch_2_8.pt", "epoch_latest.pt"}
    assert len(log_lines(folder, r"(train|val) LMDB file contains 15 images and 20 pairs\.")) == 2
    assert [path.name.split("_")[0] for path in sorted(folder.glob("*_*.*"))] == ["out", "params"]
    for step in range(1, 11):
        epoch, batch = divmod(step - 1, 5)
        pattern = TRAIN.format(step=step, epoch=epoch + 1, pairs=4 * (batch + 1), percent=20 * (batch + 1))
        assert len(log_lines(folder, f"^{pattern}$")) == 1, pattern
    for epoch in (1, 2):
        assert len(log_lines(folder, "^" + VALID.format(epoch=epoch, step=5 * epoch) + "$")) == 1
        gallery = rf"Validation Recall \(epoch {epoch} @ {5 * epoch} steps\) .* 15 images, 16 texts"
        assert len(log_lines(folder, gallery)) == 1
    assert (
        len(log_lines(folder, r"Saved checkpoint .*epoch_latest\.pt \(epoch 2 @ 10 steps\) \(writing took")) == 1
    )


def test_parameters_are_written_as_they_are_in_force(tmp_path: Path, lmdb: Path) -> None:
    folder = run(tiny_config(tmp_path, lmdb, max_steps=3, use_augment=True))
    (path,) = folder.glob("params_*.txt")
    lines = path.read_text().splitlines()
    assert lines == sorted(lines)
    values = dict(line.split(": ", 1) for line in lines)
    expected = {"beta2": "0.98", "max_steps": "3", "max_epochs": "1", "augment": "timm", "world_size": "1"}
    assert {name: values[name] for name in expected} == expected
    assert set(values) > {"train_data", "batch_size", "seed", "precision", "log_path", "accum_freq"}


def test_metrics_hold_every_step_and_validation_and_repeat_exactly(tmp_path: Path, lmdb: Path) -> None:
    first = run(tiny_config(tmp_path, lmdb, name="first", valid_step_interval=2))
    rows = metrics(first)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert [row["step"] for row in rows if "valid_loss" in row] == [2, 4, 5, 6, 8, 10, 10]
    assert {"t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1"} <= {name.removeprefix("valid_") for name in rows[2]}
    second = run(tiny_config(tmp_path, lmdb, name="second", valid_step_interval=2))
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    assert equal(weights(first), weights(second))
    third = run(tiny_config(tmp_path, lmdb, name="third", seed=7))
    assert losses(third) != losses(first)


def test_it_learns(tmp_path: Path, lmdb: Path) -> None:
    folder = run(
        tiny_config(tmp_path, lmdb, max_epochs=25, log_interval=50, dropout=0.0, valid_epoch_interval=None)
    )
    values = losses(folder)
    assert sum(values[-10:]) < 0.5 * sum(values[:10])


def test_validation_can_be_off(tmp_path: Path, lmdb: Path) -> None:
    for name, options in {
        "none": {"valid_epoch_interval": None},
        "minus": {"valid_epoch_interval": -1, "valid_step_interval": -1},
        "nodata": {"val_data": None},
    }.items():
        folder = run(tiny_config(tmp_path, lmdb, name=name, max_steps=2, **options))
        assert [set(row) & {"valid_loss"} for row in metrics(folder)] == [set(), set()]


def test_logs_none_stores_nothing(tmp_path: Path, lmdb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from cn_clip.train.loop import train

    config = tiny_config(tmp_path, lmdb, logs=None, max_steps=2)
    before = set(tmp_path.rglob("*"))
    train(config)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2, "augment": "light"},
        {"accum_freq": 2, "mask_ratio": 0.5, "multi_positive": True},
        {"vision": "resnet", "use_augment": True},
        {"freeze_vision": True, "precision": "bf16"},
    ],
    ids=["plain", "workers-light", "accumulate-flip", "resnet-timm", "frozen-bf16"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, lmdb: Path, options: dict[str, Any]) -> None:
    """Stopped within the first epoch, at its end, and within the second."""
    options = {"max_epochs": 3, "save_step_frequency": 1, **options}
    whole = run(tiny_config(tmp_path, lmdb, name="whole", **options))
    for stopped in ("epoch_1_1.pt", "epoch1.pt", "epoch_2_4.pt" if "accum_freq" in options else "epoch_2_7.pt"):
        parts = tiny_config(tmp_path, lmdb, name=f"parts_{stopped}", **options)
        assert parts.folder is not None
        (parts.folder / "checkpoints").mkdir(parents=True)
        # What a killed run leaves: its latest checkpoint, and metrics that went on after it.
        (parts.folder / "checkpoints" / "epoch_latest.pt").write_bytes(
            (whole / "checkpoints" / stopped).read_bytes()
        )
        (parts.folder / "metrics.jsonl").write_bytes((whole / "metrics.jsonl").read_bytes())
        resumed = run(parts)
        assert equal(weights(whole), weights(resumed))
        assert (whole / "metrics.jsonl").read_bytes() == (resumed / "metrics.jsonl").read_bytes()
        ours, theirs = (
            torch.load(folder / "checkpoints" / "epoch_latest.pt", weights_only=True)["optimizer"]
            for folder in (whole, resumed)
        )
        for key, state in ours["state"].items():
            assert all(torch.equal(state[name], theirs["state"][key][name]) for name in state)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, lmdb: Path) -> None:
    config = tiny_config(tmp_path, lmdb, max_steps=7)  # ends within the second epoch
    folder = run(config)
    before = (folder / "metrics.jsonl").read_bytes(), weights(folder)
    time.sleep(1.1)  # log files are named by the second
    run(config)
    assert log_lines(folder, "Nothing left to do: 7 of 7 steps are done")
    assert (folder / "metrics.jsonl").read_bytes() == before[0]
    assert equal(weights(folder), before[1])


def test_more_steps_continue_a_run_that_was_cut_short(tmp_path: Path, lmdb: Path) -> None:
    options = {"skip_scheduler": True, "valid_epoch_interval": None}
    whole = run(tiny_config(tmp_path, lmdb, name="whole", max_steps=10, **options))
    run(tiny_config(tmp_path, lmdb, name="cut", max_steps=7, **options))
    cut = run(tiny_config(tmp_path, lmdb, name="cut", max_steps=10, **options))
    assert losses(cut) == losses(whole)
    assert equal(weights(cut), weights(whole))


def test_resume_elsewhere_with_resets(tmp_path: Path, lmdb: Path) -> None:
    source = run(tiny_config(tmp_path, lmdb, name="source")) / "checkpoints" / "epoch2.pt"
    again = run(
        tiny_config(
            tmp_path, lmdb, name="again", resume=source, reset_data_offset=True, reset_optimizer=True, max_steps=1
        )
    )
    assert [row["step"] for row in metrics(again)] == [1, 1]
    state = torch.load(again / "checkpoints" / "epoch_latest.pt", weights_only=True)
    assert state["step"] == 1
    assert {float(entry["step"]) for entry in state["optimizer"]["state"].values()} == {1.0}
    kept = run(tiny_config(tmp_path, lmdb, name="kept", resume=source, reset_data_offset=True, max_steps=1))
    state = torch.load(kept / "checkpoints" / "epoch_latest.pt", weights_only=True)
    assert {float(entry["step"]) for entry in state["optimizer"]["state"].values()} == {11.0}
    assert losses(kept) == losses(again)  # the same weights met the same batch
    further = run(tiny_config(tmp_path, lmdb, name="further", resume=source, max_epochs=3))
    assert [row["step"] for row in metrics(further) if "loss" in row] == [11, 12, 13, 14, 15]


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_freeze_vision_changes_nothing_of_the_image_tower(tmp_path: Path, lmdb: Path, vision: str) -> None:
    folder = run(tiny_config(tmp_path, lmdb, vision, freeze_vision=True, save_step_frequency=1, max_steps=3))
    first, last = weights(folder, "epoch_1_1.pt"), weights(folder)
    for key in first:
        moved = not torch.equal(first[key], last[key])
        assert moved == (not key.startswith("module.visual.")) or key.endswith("token_type_embeddings.weight"), key
    assert vision == "vit" or any(key.endswith("running_mean") for key in first)


def test_each_batch_counts_once_in_the_statistics(tmp_path: Path, lmdb: Path) -> None:
    """Also where accumulation or checkpointing runs a batch through the tower twice."""
    plain = weights(run(tiny_config(tmp_path, lmdb, "resnet", name="plain", max_steps=1)))
    for name, options in {
        "accumulated": {"accum_freq": 2, "batch_size": 2},
        "checkpointed": {"grad_checkpointing": True},
    }.items():
        other = weights(run(tiny_config(tmp_path, lmdb, "resnet", name=name, max_steps=1, **options)))
        for key in plain:
            if key.endswith("num_batches_tracked"):
                assert other[key] == options.get("accum_freq", 1), key
            elif "running" in key and name == "checkpointed":
                assert torch.allclose(other[key], plain[key], atol=1e-6), key
    twice = weights(run(tiny_config(tmp_path, lmdb, "resnet", name="half", max_steps=2, batch_size=2, lr=1e-30)))
    halves = weights(tmp_path / "logs" / "accumulated")
    means = [key for key in halves if key.endswith("running_mean")]
    assert len(means) == 19
    assert all(torch.allclose(halves[key], twice[key], atol=1e-6) for key in means)


def test_bf16_is_close_to_fp32(tmp_path: Path, lmdb: Path) -> None:
    options = {"dropout": 0.0, "valid_epoch_interval": None}
    full = losses(run(tiny_config(tmp_path, lmdb, name="fp32", **options)))
    for precision in ("bf16", "amp"):
        folder = run(tiny_config(tmp_path, lmdb, name=precision, precision=precision, **options))
        half = losses(folder)
        assert half != full
        assert half == pytest.approx(full, abs=0.05)
        assert all(v.dtype != torch.bfloat16 for v in weights(folder).values())
    assert log_lines(tmp_path / "logs" / "amp", "amp on a CPU is bfloat16")


def test_flags_without_effect_in_one_process_change_nothing(tmp_path: Path, lmdb: Path) -> None:
    plain = run(tiny_config(tmp_path, lmdb, name="plain", max_steps=3))
    flags = ("gather_with_grad", "skip_aggregate", "use_bn_sync", "use_flash_attention", "debug")
    other = run(tiny_config(tmp_path, lmdb, name="other", max_steps=3, **dict.fromkeys(flags, True)))
    assert losses(plain) == losses(other)


def test_debug_lists_the_pairs_of_a_step(tmp_path: Path, lmdb: Path) -> None:
    folder = run(tiny_config(tmp_path, lmdb, max_epochs=1, debug=True))
    lists = [
        line.rsplit(": ", 1)[1].strip("[]").split(", ") for line in log_lines(folder, "DEBUG .* Pairs of step")
    ]
    assert sorted(int(index) for row in lists for index in row) == list(range(20))


def test_grad_checkpointing_gives_the_same_steps(tmp_path: Path, lmdb: Path) -> None:
    plain = run(tiny_config(tmp_path, lmdb, name="plain", max_steps=4))
    saved = run(tiny_config(tmp_path, lmdb, name="saved", max_steps=4, grad_checkpointing=True))
    assert losses(plain) == pytest.approx(losses(saved), abs=1e-5)


def test_skip_scheduler_really_skips(tmp_path: Path, lmdb: Path) -> None:
    folder = run(tiny_config(tmp_path, lmdb, max_steps=4, skip_scheduler=True))
    assert {row["lr"] for row in metrics(folder) if "loss" in row} == {1e-3}
    assert len(log_lines(folder, re.escape("LR: 0.001000"))) == 4
