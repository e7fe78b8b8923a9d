"""Twenty steps of training beside the reference's own trainer: the same losses, log lines and weights."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from filling import fill
from run_training import (
    TEXT,
    VISION,
    Line,
    initial_checkpoint,
    read_log,
    read_weights,
    small_reference,
    train_ours,
    train_reference,
    write_dataset,
)

from cn_clip.config import ModelConfig
from cn_clip.models.clip import CLIP

pytestmark = pytest.mark.timeout(900)  # seconds when the machine is idle, minutes when it is not
STEPS, EPOCHS = 20, 4
# Batch norm over sixteen pictures amplifies rounding: at 1e-3, two runs of one trainer whose initial weights
# differ by 1e-7 part by 1e-2 in twenty steps.
LEARNING_RATE = {"ViT-B-16": 1e-3, "RN50": 1e-4}


class Runs(NamedTuple):
    """Both trainers' runs of one architecture, `theirs` and `ours`."""

    vision: str
    copy: Path
    logs: Path
    initial: dict[str, torch.Tensor]
    flags: list[object]

    def folder(self, name: str) -> Path:
        return self.logs / name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder), small_reference(folder)


@pytest.fixture(scope="module", params=VISION)
def runs(
    request: pytest.FixtureRequest, data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    vision: str = request.param
    lmdb, copy = data
    folder = tmp_path_factory.mktemp(vision)
    model = CLIP(ModelConfig.from_dict({**VISION[vision], **TEXT}))
    fill(model.state_dict().items())
    start = initial_checkpoint(folder / "initial.pt", model.state_dict())
    flags: list[object] = [
        *("--train-data", lmdb, "--val-data", lmdb, "--logs", folder / "logs"),
        *("--batch-size", 16, "--valid-batch-size", 22, "--num-workers", 0, "--valid-num-workers", 0),
        *("--max-epochs", EPOCHS, "--lr", LEARNING_RATE[vision], "--eps", 1e-6, "--wd", 0.2, "--warmup", 4),
        *("--precision", "fp32", "--log-interval", 1, "--report-training-batch-acc", "--context-length", 24),
        *("--seed", 7),
    ]
    resume = ("--resume", start, "--reset-optimizer", "--reset-data-offset")
    both(
        partial(train_reference, copy, vision, *flags, *resume, "--name", "theirs"),
        partial(train_ours, copy, vision, *flags, *resume, "--name", "ours"),
    )
    initial = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    return Runs(vision, copy, folder / "logs", initial, flags)


def both(*jobs: Callable[[], None]) -> None:
    """Two processes at a time: each runs one thread."""
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


def test_losses_and_log_lines_of_every_step(runs: Runs) -> None:
    theirs, ours = read_log(runs.folder("theirs")), read_log(runs.folder("ours"))
    assert len(theirs["steps"]) == STEPS
    assert len(theirs["validations"]) == EPOCHS
    assert_same_lines(ours["steps"], theirs["steps"])
    assert_same_lines(ours["validations"], theirs["validations"])
    # It did learn: two trainers that do nothing would agree as well.
    losses = [line.loss for line in theirs["steps"]]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1


def test_weights_after_twenty_steps(runs: Runs) -> None:
    theirs, ours = read_weights(runs.folder("theirs")), read_weights(runs.folder("ours"))
    assert_same_weights(ours, theirs)
    # Also beside the way they went, which is short at a low learning rate.
    assert distance(ours, theirs) < 0.01 * distance(theirs, runs.initial)


def test_each_trainer_goes_on_from_the_others_checkpoint(runs: Runs) -> None:
    """Weights, optimizer state, epoch and step are understood both ways: the run ends where both ended."""
    half = {name: runs.folder(name) / "checkpoints" / "epoch2.pt" for name in ("ours", "theirs")}
    arguments = (runs.copy, runs.vision, *runs.flags)
    both(
        partial(train_reference, *arguments, "--resume", half["ours"], "--name", "theirs after ours"),
        partial(train_ours, *arguments, "--resume", half["theirs"], "--name", "ours after theirs"),
    )
    whole = read_log(runs.folder("theirs"))
    for name in ("theirs after ours", "ours after theirs"):
        log = read_log(runs.folder(name))
        assert_same_lines(log["steps"], whole["steps"][STEPS // 2 :])
        assert_same_lines(log["validations"], whole["validations"][EPOCHS // 2 :])
        assert_same_weights(read_weights(runs.folder(name)), read_weights(runs.folder("theirs")))


def assert_same_lines(ours: list[Line], theirs: list[Line]) -> None:
    assert [line.text for line in ours] == [line.text for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert abs(one.loss - other.loss) < 1e-4, (one, other)


def assert_same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, other in theirs.items():
        # Running variances are the only ones far above 1.
        scale = other.abs().max().clamp(min=1)
        assert (ours[name] - other).abs().max() <= 1e-4 * scale, name


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all weights; running statistics are left out."""
    names = [name for name in theirs if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    return sum(float((ours[name] - theirs[name]).square().sum()) for name in names) ** 0.5
