"""What a run leaves behind besides checkpoints: the documented log and parameter files, and metrics.

out_<time>.log      lines of `time | level | Rank 0 | …`
params_<time>.txt   one `name: value` a line
metrics.jsonl       a JSON object a step or validation; the same bytes whenever the run is repeated
times.jsonl         how long each step took
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from cn_clip.errors import UserError
from cn_clip.files import atomic_open
from cn_clip.train.config import TrainConfig

FORMAT = "%(asctime)s | %(levelname)s | Rank 0 | %(message)s"


class RunLog:
    """The log of one run, on standard error and (unless `--logs none`) in the run's folder.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.folder = config.folder
        self.stamp = time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime())
        self.logger = logging.getLogger("cn_clip.train")
        self.level = logging.DEBUG if config.debug else logging.INFO
        self.handlers: list[logging.Handler] = []

    @property
    def log_path(self) -> Path | None:
        """The log file."""
        return self.folder / f"out_{self.stamp}.log" if self.folder else None

    @property
    def metrics_path(self) -> Path | None:
        """The metrics file."""
        return self.folder / "metrics.jsonl" if self.folder else None

    def __enter__(self) -> RunLog:
        self.handlers = [logging.StreamHandler()]
        if self.log_path:
            try:
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
                self.handlers.append(logging.FileHandler(self.log_path, encoding="utf-8"))
            except OSError as error:
                raise UserError(f"{self.log_path}: cannot write the log: {error.strerror}") from None
        for handler in self.handlers:
            handler.setFormatter(logging.Formatter(FORMAT, datefmt="%Y-%m-%d,%H:%M:%S"))
            self.logger.addHandler(handler)
        self.logger.setLevel(self.level)
        self.logger.propagate = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError) and len(self.handlers) > 1:  # the command prints it; the file lacks it
            self.logger.removeHandler(self.handlers[0])
            self.logger.error(str(error))
        for handler in self.handlers:
            self.logger.removeHandler(handler)
            handler.close()

    def info(self, message: str) -> None:
        """One line."""
        self.logger.info(message)

    def debug(self, message: str) -> None:
        """One line, with `--debug` only."""
        self.logger.debug(message)

    def params(self, config: TrainConfig, **more: Any) -> None:
        """All options as they are in force, in the log and in the parameter file."""
        values = {**asdict(config), "log_path": self.log_path, **more}
        lines = [f"{name}: {values[name]}" for name in sorted(values)]
        if self.folder:
            with atomic_open(self.folder / f"params_{self.stamp}.txt") as file:
                file.writelines(f"{line}\n" for line in lines)
        self.info("Params:")
        for line in lines:
            self.info(f"  {line}")

    def metrics(self, **row: Any) -> None:
        """Append a line to `metrics.jsonl`: numbers that a repeated run repeats."""
        self._append("metrics.jsonl", row)

    def times(self, **row: Any) -> None:
        """Append a line to `times.jsonl`: numbers that it does not."""
        self._append("times.jsonl", row)

    def metrics_size(self) -> int:
        """Bytes of `metrics.jsonl`."""
        path = self.metrics_path
        return path.stat().st_size if path and path.exists() else 0

    def rewind(self, size: int) -> None:
        """Forget metrics after the first `size` bytes: the steps of a checkpoint that is resumed."""
        path = self.metrics_path
        if path and path.exists():
            with open(path, "r+b") as file:
                file.truncate(min(size, path.stat().st_size))

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if self.folder is None:
            return
        path = self.folder / name
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot write: {error.strerror}") from None


def train_line(
    *,
    step: int,
    max_steps: int,
    epoch: int,
    batch: int,
    batches: int,
    pairs: int,
    samples: int,
    loss: float,
    stats: dict[str, float],
    data_time: float,
    batch_time: float,
    lr: float,
    logit_scale: float,
) -> str:
    """The documented line of a training step: `batch` of `batches` steps of this epoch, `pairs` each."""
    accuracy = ""
    if stats:
        accuracy = f"Image2Text Acc: {stats['i2t'] * 100:.2f} | Text2Image Acc: {stats['t2i'] * 100:.2f} | "
    return (
        f"Global Steps: {step}/{max_steps} | "
        f"Train Epoch: {epoch} [{batch * pairs}/{samples} ({100 * batch / batches:.0f}%)] | "
        f"Loss: {loss:.6f} | {accuracy}"
        f"Data Time: {data_time:.3f}s | Batch Time: {batch_time:.3f}s | LR: {lr:5f} | "
        f"logit_scale: {logit_scale:.3f} | Global Batch Size: {pairs}"
    )


def validation_line(epoch: int, step: int, result: dict[str, float], batch_size: int) -> str:
    """The documented line of a validation: loss and accuracies within batches."""
    return (
        f"Validation Result (epoch {epoch} @ {step} steps) | Valid Loss: {result['loss']:.6f} | "
        f"Image2Text Acc: {result['i2t_acc'] * 100:.2f} | Text2Image Acc: {result['t2i_acc'] * 100:.2f} | "
        f"logit_scale: {result['logit_scale']:.3f} | Valid Batch Size: {batch_size}"
    )


def gallery_line(epoch: int, step: int, result: dict[str, float]) -> str:
    """Recall over the whole validation split."""
    directions = [
        f"{title} R@1/5/10: " + "/".join(f"{result[f'{name}_r{k}']:.2f}" for k in (1, 5, 10))
        for title, name in (("Text2Image", "t2i"), ("Image2Text", "i2t"))
    ]
    return (
        f"Validation Recall (epoch {epoch} @ {step} steps) | {' | '.join(directions)} | "
        f"Gallery: {result['images']} images, {result['texts']} texts"
    )
