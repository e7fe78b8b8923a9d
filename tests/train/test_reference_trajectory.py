"""Twenty steps of training beside the reference's own trainer: the same losses, log lines and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
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

STEPS, EPOCHS = 20, 4
Trainer = Callable[..., None]


class Runs(NamedTuple):
    """Both trainers' runs of one architecture."""

    folder: Path
    copy: Path
    initial: dict[str, torch.Tensor]
    flags: list[object]

    def run(self, name: str) -> Path:
        return self.folder / "logs" / name


@pytest.fixture(scope="module", params=VISION)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    vision: str = request.param
    folder = tmp_path_factory.mktemp(vision)
    lmdb, copy = write_dataset(folder), small_reference(folder)
    torch.manual_seed(1)
    model = CLIP(ModelConfig.from_dict({**VISION[vision], **TEXT}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(0.5)  # at its initial zero a ResNet's blocks do nothing
    start = initial_checkpoint(folder / "initial.pt", model.state_dict())
    flags: list[object] = [
        *("--train-data", lmdb, "--val-data", lmdb, "--logs", folder / "logs"),
        *("--batch-size", 16, "--valid-batch-size", 22, "--num-workers", 0, "--valid-num-workers", 0),
        *("--max-epochs", EPOCHS, "--lr", 1e-3, "--eps", 1e-6, "--wd", 0.2, "--warmup", 4, "--seed", 7),
        *("--precision", "fp32", "--log-interval", 1, "--report-training-batch-acc", "--context-length", 24),
    ]
    resume = ("--resume", start, "--reset-optimizer", "--reset-data-offset")
    train_reference(copy, vision, *flags, *resume, "--name", "theirs")
    train_ours(copy, vision, *flags, *resume, "--name", "ours")
    initial = {f"module.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    return Runs(folder, copy, initial, [vision, *flags])


def test_losses_and_log_lines_of_every_step(runs: Runs) -> None:
    theirs, ours = read_log(runs.run("theirs")), read_log(runs.run("ours"))
    assert len(theirs["steps"]) == STEPS
    assert len(theirs["validations"]) == EPOCHS
    assert_same_lines(ours["steps"], theirs["steps"])
    assert_same_lines(ours["validations"], theirs["validations"])
    # It was training, and enough of it to tell two optimizers apart.
    assert theirs["validations"][-1].loss < theirs["steps"][0].loss - 0.1


def test_weights_after_twenty_steps(runs: Runs) -> None:
    assert_same_weights(read_weights(runs.run("ours")), read_weights(runs.run("theirs")), runs.initial)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_other_trainer_goes_on_from_a_checkpoint(runs: Runs, first: str) -> None:
    """Weights, optimizer state, epoch and step are understood both ways: the run ends where both ended."""
    name = f"on from {first}"
    go_on: Trainer = {"ours": train_reference, "theirs": train_ours}[first]
    half = runs.run(first) / "checkpoints" / "epoch2.pt"
    go_on(runs.copy, *runs.flags, "--resume", half, "--name", name)
    theirs, second_half = read_log(runs.run("theirs")), read_log(runs.run(name))
    assert_same_lines(second_half["steps"], theirs["steps"][STEPS // 2 :])
    assert_same_lines(second_half["validations"], theirs["validations"][EPOCHS // 2 :])
    assert_same_weights(read_weights(runs.run(name)), read_weights(runs.run("theirs")), runs.initial)


def assert_same_lines(ours: list[Line], theirs: list[Line]) -> None:
    assert [line.text for line in ours] == [line.text for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert abs(one.loss - other.loss) < 1e-4, (one, other)


def assert_same_weights(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], initial: dict[str, torch.Tensor]
) -> None:
    assert list(ours) == list(theirs)
    for name, other in theirs.items():
        if not other.is_floating_point():
            assert torch.equal(ours[name], other), name
            continue
        assert (ours[name] - other).abs().max() < 1e-4, name
        assert (other - initial[name]).abs().max() > 1e-3, f"{name} was not trained"
