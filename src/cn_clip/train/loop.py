"""Training, read from top to bottom.

cn-clip train --train-data lmdb/train --val-data lmdb/valid --resume clip_cn_vit-b-16.pt --reset-data-offset \\
    --reset-optimizer --vision-model ViT-B-16 --text-model RoBERTa-wwm-ext-base-chinese
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from cn_clip.errors import UserError
from cn_clip.train.config import TrainConfig, due, resolve
from cn_clip.train.log import RunLog, gallery_line, train_line, validation_line
from cn_clip.train.optim import learning_rate, set_learning_rate
from cn_clip.train.setup import Run, set_up
from cn_clip.train.state import Position


def train(config: TrainConfig) -> None:
    """Finetune a model on image-text pairs, or train one from scratch.

    A run lives in LOGS/NAME: its log, metrics and checkpoints. The same command again goes on from the latest
    checkpoint there; `--resume` starts from another file.

    Raises:
        UserError: wrong data, options or checkpoint; a loss that is not a number.
        KeyboardInterrupt: stopped; checkpoints are whole.
    """
    config = resolve(config)
    with RunLog(config) as log:
        run = set_up(config, log)
        at = run.state.resume()
        try:
            _train(config, run, at, log)
        except KeyboardInterrupt:
            log.info(f"Stopped. {run.state.how_to_go_on()}")
            raise


def _train(config: TrainConfig, run: Run, at: Position, log: RunLog) -> None:
    if at.step >= run.max_steps and (at.ended or at.batch == 0):
        log.info(f"Nothing left to do: {at.step} of {run.max_steps} steps are done.")
        return
    accum = config.accum_freq
    pairs = config.batch_size * accum
    batches = run.data.batches(at.epoch, at.batch * accum, run.max_epochs, run.steps_per_epoch * accum)
    run.task.train_mode()

    for epoch in range(at.epoch, run.max_epochs):
        if at.batch == 0:
            log.info(f"Start epoch {epoch + 1}")
        while at.batch < run.steps_per_epoch and at.step < run.max_steps:
            start = time.perf_counter()
            group = [next(batches) for _ in range(accum)]
            data_time = time.perf_counter() - start
            log.debug(f"Pairs of step {at.step + 1}: {[i for batch in group for i in batch.indices.tolist()]}")

            run.optimizer.zero_grad()
            loss_tensor, stats = run.task.training_step(group, at.step)
            loss = loss_tensor.item()  # waits for the GPU: one wait a step buys a stop before weights go bad
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} at step {at.step + 1}: try a lower --lr, or --precision fp32. "
                    f"{run.state.how_to_go_on()}"
                )
            lr = learning_rate(at.step, config, run.max_steps)
            set_learning_rate(run.optimizer, lr)
            run.precision.step(run.optimizer)
            run.task.after_step()
            at = Position(epoch, at.batch + 1, at.step + 1)

            batch_time = time.perf_counter() - start
            logit_scale = run.task.model.logit_scale.item()
            accuracy = {name: value.item() for name, value in stats.items()}
            log.metrics(step=at.step, epoch=epoch + 1, loss=loss, lr=lr, logit_scale=logit_scale, **accuracy)
            log.times(step=at.step, time=time.time(), data_time=data_time, batch_time=batch_time)
            if due(config.log_interval, at.step):
                log.info(
                    train_line(
                        step=at.step,
                        max_steps=run.max_steps,
                        epoch=epoch + 1,
                        batch=at.batch,
                        batches=run.steps_per_epoch,
                        pairs=pairs,
                        samples=run.data.num_samples,
                        loss=loss,
                        stats=accuracy,
                        data_time=data_time,
                        batch_time=batch_time,
                        lr=lr,
                        logit_scale=logit_scale,
                    )
                )
            if due(config.valid_step_interval, at.step):
                _validate(config, run, epoch, at, log)
            if due(config.save_step_frequency, at.step):
                run.state.save(at, f"epoch_{epoch + 1}_{at.step}.pt")

        if due(config.valid_epoch_interval, epoch + 1):
            _validate(config, run, epoch, at, log)
        whole = at.batch == run.steps_per_epoch
        at = Position(epoch + 1, 0, at.step) if whole else replace(at, ended=True)  # cut short by --max-steps
        keep = epoch + 1 == run.max_epochs or due(config.save_epoch_frequency, epoch + 1)
        run.state.save(at, f"epoch{epoch + 1}.pt" if keep else None)


def _validate(config: TrainConfig, run: Run, epoch: int, at: Position, log: RunLog) -> None:
    if run.validator is None:
        return
    log.info(f"Begin to eval on validation set (epoch {epoch + 1} @ {at.step} steps)...")
    result = run.validator(run.task.model)
    run.task.train_mode()
    log.info(validation_line(epoch + 1, at.step, result, config.valid_batch_size))
    log.info(gallery_line(epoch + 1, at.step, result))
    log.metrics(step=at.step, epoch=epoch + 1, **{f"valid_{name}": value for name, value in result.items()})
