"""Saving a run and taking it up again where it was.

Dropout, masks, augmentation and order are functions of (seed, epoch, step), so a checkpoint holds no generator
states: weights, optimizer, loss scale and position are all there is.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cn_clip.checkpoint import Checkpoint, load_weights, read_checkpoint, write_checkpoint
from cn_clip.errors import UserError
from cn_clip.files import atomic_path
from cn_clip.models.clip import CLIP
from cn_clip.train.config import TrainConfig
from cn_clip.train.log import RunLog
from cn_clip.train.optim import load_optimizer
from cn_clip.train.precision import Precision
from cn_clip.zoo import available_models, weights_file

LATEST = "epoch_latest.pt"


@dataclass(frozen=True)
class Position:
    """Where a run is.

    Attributes:
        epoch: whole epochs done.
        batch: optimizer steps done of the epoch after those.
        step: optimizer steps done in all.
        ended: `--max-steps` cut the epoch short, and what happens at an epoch's end has happened.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    ended: bool = False


class RunState:
    """The checkpoints of one run: `<logs>/<name>/checkpoints/`; without logs, nothing is written."""

    def __init__(
        self,
        config: TrainConfig,
        model: CLIP,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        steps_per_epoch: int,
        log: RunLog,
    ) -> None:
        self.config, self.model, self.optimizer, self.precision = config, model, optimizer, precision
        self.steps_per_epoch = steps_per_epoch
        self.log = log
        self.folder = config.folder / "checkpoints" if config.folder else None
        self.latest: int | None = None  # step of the last checkpoint, read or written

    def save(self, position: Position, name: str | None) -> None:
        """Write `name` (if given) and `epoch_latest.pt`, each whole or not at all.

        Raises:
            UserError: the disk is full, or the folder cannot be written; older checkpoints stay.
        """
        if self.folder is None:
            return
        first = self.folder / (name or LATEST)
        content = self._content(position)
        for path in dict.fromkeys((first, self.folder / LATEST)):
            start = time.time()
            if path == first:
                write_checkpoint(path, content)
            else:
                _same_file(first, path)
            self.log.info(
                f"Saved checkpoint {path} (epoch {content['epoch']} @ {position.step} steps) "
                f"(writing took {time.time() - start} seconds)"
            )
        self.latest = position.step

    def resume(self) -> Position:
        """Load `--resume`, or the run's own latest checkpoint if there is one; returns where to go on.

        Raises:
            UserError: not a checkpoint, of another architecture, or without what is to be restored.
        """
        path = self.config.resume
        if path is not None and str(path) in available_models() and not path.exists():
            path = weights_file(str(path))
        own = self.folder is not None and (path is None or path.resolve().parent == self.folder.resolve())
        if path is None and self.folder is not None and (self.folder / LATEST).exists():
            path = self.folder / LATEST
        if path is None:
            self.log.rewind(0)
            return Position()
        self.log.info(f"=> begin to load checkpoint '{path}'")
        checkpoint = read_checkpoint(path)
        load_weights(self.model, checkpoint.state_dict, str(path))
        if not self.config.reset_optimizer:
            self._load_optimizer(checkpoint)
            self.log.info("=> optimizer state is restored from the checkpoint")
        position = Position()
        if not self.config.reset_data_offset:
            position = where(checkpoint, self.steps_per_epoch)
        self.log.rewind(int(checkpoint.rest.get("metrics_bytes", 0)) if own and position.step else 0)
        epoch = checkpoint.rest.get("epoch", 0)
        self.log.info(f"=> loaded checkpoint '{path}' (epoch {epoch} @ {position.step} steps)")
        self.latest = position.step if own else None
        return position

    def how_to_go_on(self) -> str:
        """A sentence for a run that stops early."""
        if self.latest is None or self.folder is None:
            return "No checkpoint has been written: the same command starts again."
        return f"The same command goes on from {self.folder / LATEST} (step {self.latest})."

    def _content(self, position: Position) -> dict[str, Any]:
        """The documented keys, with names as its trainer's data-parallel wrapper has them, and ours."""
        return {
            "epoch": position.epoch + (position.batch > 0),
            "step": position.step,
            "name": self.config.name,
            "state_dict": {f"module.{key}": value for key, value in self.model.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "position": {
                "epoch": position.epoch,
                "batch": position.batch,
                "ended": position.ended,
                "steps_per_epoch": self.steps_per_epoch,
            },
            "metrics_bytes": self.log.metrics_size(),
            "model_config": self.model.config.to_dict(),
        }

    def _load_optimizer(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.rest.get("optimizer")
        if not isinstance(state, dict):
            raise UserError(f"{checkpoint.path}: it has no optimizer state: add --reset-optimizer")
        try:
            load_optimizer(self.optimizer, state)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{checkpoint.path}: its optimizer state is of other parameters (--freeze-vision?): "
                "add --reset-optimizer"
            ) from None
        if scaler := checkpoint.rest.get("scaler"):
            self.precision.scaler.load_state_dict(scaler)


def where(checkpoint: Checkpoint, steps_per_epoch: int) -> Position:
    """The position of a checkpoint, ours or the reference's, in epochs of `steps_per_epoch`.

    The reference's files say `epoch` and `step` only: a step before that epoch's end is within it.

    Raises:
        UserError: it says neither.
    """
    rest = checkpoint.rest
    if not isinstance(rest.get("epoch"), int) or not isinstance(rest.get("step"), int):
        raise UserError(
            f"{checkpoint.path}: it says no epoch and step: add --reset-data-offset (and --reset-optimizer)"
        )
    epoch, step, ours = rest["epoch"], rest["step"], rest.get("position")
    if ours:  # with another batch size or data, the same share of the epoch is done
        done = ours["batch"] * steps_per_epoch // ours["steps_per_epoch"]
        return Position(ours["epoch"], done, step, ours["ended"])
    if (epoch - 1) * steps_per_epoch < step < epoch * steps_per_epoch:
        return Position(epoch - 1, step - (epoch - 1) * steps_per_epoch, step)
    return Position(epoch, 0, step)


def _same_file(source: Path, path: Path) -> None:
    """A second name of a file that is never changed in place; a copy where there are no hard links."""
    with atomic_path(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
