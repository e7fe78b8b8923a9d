"""What a run is made of, built from its options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from cn_clip.data.loader import PairDataset, TrainLoader, ValidationData
from cn_clip.devices import usable_device
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.towers import load_towers
from cn_clip.train.config import TrainConfig
from cn_clip.train.distill import DistillTask, read_teachers
from cn_clip.train.log import RunLog
from cn_clip.train.optim import build_optimizer
from cn_clip.train.precision import Precision
from cn_clip.train.state import RunState
from cn_clip.train.task import ClipTask
from cn_clip.train.validate import Validator


@dataclass
class Run:
    """The parts of a run, and how long it is."""

    data: TrainLoader
    task: ClipTask
    optimizer: torch.optim.Optimizer
    precision: Precision
    state: RunState
    validator: Validator | None
    steps_per_epoch: int
    max_steps: int
    max_epochs: int


def set_up(config: TrainConfig, log: RunLog) -> Run:
    """Build everything; options must be resolved.

    Raises:
        UserError: wrong data, architecture, weights or options.
    """
    precision = Precision(config.precision, usable_device(config.device))
    data = build_data(config, precision.device)
    validator = build_validator(config, precision)
    for split, reader in (("train", data.dataset.reader), ("val", validator.data.reader if validator else None)):
        if reader:
            images, pairs = reader.images.num_images, len(reader.pairs)
            log.info(f"{split} {reader.kind} file contains {images} images and {pairs} pairs.")
    steps_per_epoch = data.num_batches // config.accum_freq
    if steps_per_epoch == 0:
        raise UserError(
            f"--accum-freq {config.accum_freq} is more than the {data.num_batches} batches of an epoch"
        )
    max_steps = config.max_steps or steps_per_epoch * config.max_epochs
    max_epochs = math.ceil(max_steps / steps_per_epoch)
    model = build_model(config, precision, log)
    known = data.dataset.known_pairs() if config.multi_positive else None
    options: dict[str, Any] = {
        "mask_ratio": config.mask_ratio,
        "frozen_vision": config.freeze_vision,
        "known": known,
        "report_accuracy": config.report_training_batch_acc,
    }
    if config.teacher_image_feats or config.teacher_text_feats:
        teachers = read_teachers(data.dataset.reader, config, model.config.vision.embed_dim)
        task: ClipTask = DistillTask(model, precision, config.seed, teachers, config.kd_loss_weight, **options)
    else:
        task = ClipTask(model, precision, config.seed, **options)
    optimizer = build_optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        listed = ", ".join(names[id(parameter)] for parameter in group["params"])
        log.debug(f"Weight decay {group['weight_decay']}: {listed}")
    log.params(
        config,
        aggregate=not config.skip_aggregate,
        checkpoint_path=config.folder / "checkpoints" if config.folder else None,
        device=precision.device,
        max_epochs=max_epochs,
        max_steps=max_steps,
        rank=0,
        world_size=1,
    )
    state = RunState(config, model, optimizer, precision, steps_per_epoch, log)
    return Run(data, task, optimizer, precision, state, validator, steps_per_epoch, max_steps, max_epochs)


def build_data(config: TrainConfig, device: torch.device) -> TrainLoader:
    """The training split."""
    dataset = PairDataset(
        config.train_data,
        config.architecture().vision.image_resolution,
        config.context_length,
        config.augment,
        config.seed,
        config.image_cache_mb * 2**20 // max(1, config.num_workers),
        config.first_text,
    )
    return TrainLoader(
        dataset, config.batch_size, config.num_workers, config.seed, pin_memory=device.type == "cuda"
    )


def build_validator(config: TrainConfig, precision: Precision) -> Validator | None:
    """The validation split, if there is one."""
    if config.val_data is None:
        return None
    data = ValidationData(
        config.val_data,
        config.architecture().vision.image_resolution,
        config.context_length,
        config.valid_batch_size,
        config.valid_num_workers,
    )
    return Validator(data, config.valid_batch_size, config.seed, precision)


def build_model(config: TrainConfig, precision: Precision, log: RunLog) -> CLIP:
    """The model on its device, as it starts: drawn from the seed, or partly from files."""
    torch.manual_seed(config.seed)
    model = CLIP(config.architecture())
    clip, bert = config.clip_weight_path, config.bert_weight_path
    if clip or bert:
        log.info(load_towers(model, str(clip) if clip else None, str(bert) if bert else None))
    model.to(precision.device)
    precision.prepare(model)
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
        log.info("Grad-checkpointing activated.")
    if config.use_flash_attention:
        log.info("Attention runs PyTorch's fused kernels, which are FlashAttention where the GPU has it.")
    if config.freeze_vision:
        model.visual.requires_grad_(False)
        log.info("The visual encoder is freezed during training.")
    if config.mask_ratio and model.config.vision.is_resnet:
        log.info("--mask-ratio has no meaning for a ResNet: no patches are left out.")
    if config.precision == "amp" and precision.device.type == "cpu":
        log.info("--precision amp on a CPU is bfloat16 autocast (float16 has no kernels worth using there).")
    return model
