"""Wrong input of `cn-clip train`: one line that names the cause, exit status 1, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lmdb as lmdb_package
import pytest
import torch
from tiny_run import run, tiny_config, write_architectures, write_dataset

from cn_clip.cli import main
from cn_clip.data.lmdb import close
from cn_clip.train.task import ClipTask


def command(tmp_path: Path, lmdb: Path, **changed: object) -> list[str]:
    towers = write_architectures(tmp_path)
    flags: dict[str, object] = {
        "train-data": lmdb / "train",
        "val-data": lmdb / "valid",
        "logs": tmp_path / "logs",
        "name": "run",
        "vision-model": towers["vit"],
        "text-model": towers["bert"],
        "num-workers": 0,
        "valid-num-workers": 0,
        "batch-size": 4,
        "context-length": 16,
        "max-steps": 2,
        "precision": "fp32",
    }
    flags.update({name.replace("_", "-"): value for name, value in changed.items()})
    return ["train", *(f"--{name}={value}" for name, value in flags.items() if value is not None)]


def one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command that must fail with status 1 and one line."""
    assert main(argv) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if " | INFO | " not in line]
    assert len(errors) == 1, errors
    assert errors[0].startswith("cn-clip: error: ")
    return errors[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_data": "nowhere/train"}, ["nowhere/train", "no such folder", "build-lmdb"]),
        ({"val_data": "nowhere/valid"}, ["nowhere/valid", "no such folder"]),
        ({"vision_model": "ViT-B-17"}, ["ViT-B-17", "ViT-B-16"]),
        ({"resume": "nowhere.pt"}, ["nowhere.pt", "no such checkpoint"]),
        ({"clip_weight_path": "nowhere.pt"}, ["nowhere.pt"]),
        ({"precision": "fp16"}, ["--precision fp16", "GPU", "bf16"]),
        ({"batch_size": 0}, ["--batch-size", "at least 1"]),
        ({"mask_ratio": 1.5}, ["--mask-ratio"]),
        ({"max_steps": 0}, ["--max-steps"]),
        ({"context_length": 65}, ["--context-length", "64"]),
        ({"accum_freq": 9}, ["--accum-freq 9", "5 batches"]),
        ({"recipe": "nowhere.py"}, ["--recipe nowhere.py"]),
        ({"logs": "/proc/logs"}, ["/proc/logs"]),
    ],
)
def test_wrong_options(
    tmp_path: Path, lmdb: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], words: list[str]
) -> None:
    line = one_line(command(tmp_path, lmdb, **changed), capsys)
    for word in words:
        assert word in line
    assert not list(tmp_path.rglob("*.pt"))


def test_no_gpu(
    tmp_path: Path, lmdb: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU" in one_line(command(tmp_path, lmdb, device="cuda"), capsys)


def test_another_lmdb_layout(tmp_path: Path, lmdb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("imgs", "pairs"):
        (tmp_path / "train" / part).mkdir(parents=True)
        environment = lmdb_package.open(str(tmp_path / "train" / part))
        with environment.begin(write=True) as transaction:
            transaction.put(b"a", b"b")
        environment.close()
    assert "layout" in one_line(command(tmp_path, lmdb, train_data=tmp_path / "train"), capsys)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["undecodable", "missing"])
def test_a_bad_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int, kind: str) -> None:
    lmdb = write_dataset(tmp_path / "data", pictures=4)
    capsys.readouterr()
    close(lmdb / "train" / "imgs")
    environment = lmdb_package.open(str(lmdb / "train" / "imgs"))
    with environment.begin(write=True) as transaction:
        if kind == "missing":
            transaction.delete(b"102")
        else:
            transaction.put(b"102", b"bm90IGEgcGljdHVyZQ==")  # "not a picture"
    environment.close()
    line = one_line(command(tmp_path, lmdb, num_workers=workers, batch_size=6), capsys)
    assert "102" in line
    assert str(lmdb / "train") in line


def test_checkpoint_of_another_architecture(
    tmp_path: Path, lmdb: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tiny_config(tmp_path, lmdb, "resnet", name="other", max_steps=1))
    capsys.readouterr()
    latest = folder / "checkpoints" / "epoch_latest.pt"
    line = one_line(command(tmp_path, lmdb, resume=latest), capsys)
    assert "another architecture" in line
    assert "visual." in line


def test_what_a_checkpoint_lacks_is_named(tmp_path: Path, lmdb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tiny_config(tmp_path, lmdb, name="other", max_steps=1))
    capsys.readouterr()
    state = torch.load(folder / "checkpoints" / "epoch_latest.pt", weights_only=True)
    path = tmp_path / "bare.pt"
    torch.save({"state_dict": state["state_dict"]}, path)
    assert "--reset-optimizer" in one_line(command(tmp_path, lmdb, resume=path), capsys)
    line = one_line([*command(tmp_path, lmdb, resume=path), "--reset-optimizer"], capsys)
    assert "--reset-data-offset" in line
    latest = folder / "checkpoints" / "epoch_latest.pt"
    line = one_line([*command(tmp_path, lmdb, resume=latest), "--freeze-vision"], capsys)
    assert "--freeze-vision" in line


def test_the_log_keeps_the_error(tmp_path: Path, lmdb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(command(tmp_path, lmdb, resume="nowhere.pt"), capsys)
    (log,) = (tmp_path / "logs" / "run").glob("out_*.log")
    assert "| ERROR | Rank 0 | nowhere.pt: no such checkpoint file" in log.read_text()


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, lmdb: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = ClipTask.training_step

    def training_step(task: ClipTask, batches: Any, step: int) -> Any:
        loss, stats = step_of(task, batches, step)
        return (loss * float("nan") if step == 3 else loss), stats

    monkeypatch.setattr(ClipTask, "training_step", training_step)
    line = one_line(command(tmp_path, lmdb, max_steps=10, save_step_frequency=2), capsys)
    assert "the loss is nan at step 4" in line
    assert "epoch_latest.pt (step 2)" in line


def test_a_full_disk_is_one_line(
    tmp_path: Path, lmdb: Path, capsys: pytest.CaptureFixture[str], small_disk: Path
) -> None:
    line = one_line(command(tmp_path, lmdb, logs=small_disk), capsys)
    assert "epoch1.pt: cannot write" in line
    assert "disk" in line
    assert list((small_disk / "run" / "checkpoints").iterdir()) == []


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, lmdb: Path) -> None:
    """As from a terminal: every process of the group gets the signal; workers stay quiet."""
    argv = command(tmp_path, lmdb, max_steps=100000, save_step_frequency=5, num_workers=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "cn_clip", *argv],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    latest = tmp_path / "logs" / "run" / "checkpoints" / "epoch_latest.pt"
    for _ in range(600):
        if latest.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    stopped = [line for line in errors.splitlines() if "Stopped. The same command goes on from" in line]
    assert len(stopped) == 1
    step = torch.load(latest, weights_only=True)["step"]
    assert f"(step {step})" in stopped[0]
