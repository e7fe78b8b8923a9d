"""Every option of a training run. The command line's flags and help are made from these fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cn_clip.config import CONTEXT_LENGTH, ModelConfig, model_config
from cn_clip.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """Finetune a model on image-text pairs, or train one from scratch.

    A run lives in LOGS/NAME: its log, its metrics, its checkpoints. Starting the same command again resumes
    from the latest checkpoint there.
    """

    train_data: Path
    """The training split: its LMDB directory (written by `cn-clip data build-lmdb`), DIR/train of the files
    train_imgs.tsv and train_texts.jsonl, WebDataset shards or Parquet files (a folder or a pattern)."""
    recipe: str | None = None
    """Python file whose function `config` returns the options of an experiment (FILE:FUNCTION names another
    function); flags override them."""
    val_data: Path | None = None
    """The validation split, in any of these forms; none: no validation."""
    num_workers: int = 4
    """Processes that read training data; 0 reads in the main process."""
    valid_num_workers: int = 1
    """Processes that read validation data; 0 reads in the main process."""
    image_cache_mb: int = 256
    """Memory, over all workers, that may keep resized training images between epochs (ours)."""

    logs: Path | None = Path("./logs/")
    """Folder of all runs; none: nothing is stored."""
    name: str = "train_clip"
    """The run's name: its folder in LOGS."""
    log_interval: int = 10
    """Steps from one log line to the next."""
    report_training_batch_acc: bool = False
    """Log the accuracy within training batches."""
    debug: bool = False
    """Log more: each step's pairs, the parameters of each weight decay."""

    batch_size: int = 64
    """Pairs of a training batch, a process."""
    valid_batch_size: int = 64
    """Pairs of a validation batch, a process."""
    max_steps: int | None = None
    """Optimizer steps of the run; overrides --max-epochs."""
    max_epochs: int = 32
    """Epochs of the run."""
    valid_step_interval: int | None = None
    """Validate every this many steps; none or -1: never."""
    valid_epoch_interval: int | None = 1
    """Validate every this many epochs; none or -1: never."""
    save_epoch_frequency: int | None = 1
    """Keep a checkpoint every this many epochs; none or -1: only the last and the latest."""
    save_step_frequency: int | None = -1
    """Keep a checkpoint every this many steps; none or -1: never."""

    context_length: int = CONTEXT_LENGTH
    """Word pieces of a text, [CLS] and [SEP] included; longer texts are cut."""
    augment: Literal["none", "timm", "light", "drawing", "flip"] = "none"
    """Training augmentation (ours): timm is that of --use-augment; light crops, flips and recolours whole
    batches of small images at once, which is what two CPU cores can afford; drawing also bends shapes and
    changes style and ground, so that drawings by other hands are recognised; flip only mirrors half of them."""
    first_text: float | None = None
    """An epoch is every image once (ours), with one of its texts: its first with this probability, else any;
    none: an epoch is every image-text pair."""
    use_augment: bool = False
    """The documented augmentation (timm's AutoAugment "original"): --augment timm."""
    multi_positive: bool = False
    """Every image-text pair known to be right is a positive, not only the batch's own (ours): for data in
    which images or captions repeat."""

    teacher_image_feats: Path | None = None
    """Feature file with a teacher's vector of every training image (ours): the image tower learns to agree."""
    teacher_text_feats: Path | None = None
    """Feature file with a teacher's vector of every training text (ours)."""
    kd_loss_weight: float = 0.5
    """Weight of the distillation loss, 1 - cosine, beside the contrastive one."""

    lr: float | None = None
    """Peak learning rate; by default the vision model's (5e-4, ViT-L 4e-4)."""
    beta1: float | None = None
    """Adam's beta 1 (default 0.9)."""
    beta2: float | None = None
    """Adam's beta 2 (default 0.98 for a ViT, 0.999 for a ResNet)."""
    eps: float | None = None
    """Adam's epsilon (default 1e-6 for a ViT, 1e-8 for a ResNet)."""
    wd: float = 0.2
    """Weight decay, of all parameters but norms, biases and the logit scale."""
    warmup: int = 500
    """Steps of linear warm-up; cosine decay follows."""
    skip_scheduler: bool = False
    """Keep the learning rate constant: no warm-up, no decay."""
    accum_freq: int = 1
    """Batches that make one optimizer step; each pair is contrasted with all of them."""

    vision_model: str = "ViT-B-16"
    """Image tower: a built-in architecture or the path of a JSON file."""
    text_model: str = "RoBERTa-wwm-ext-base-chinese"
    """Text tower: a built-in architecture or the path of a JSON file."""
    clip_weight_path: Path | None = None
    """OpenAI CLIP weights to start the image tower from."""
    bert_weight_path: Path | None = None
    """BERT weights to start the text tower from."""
    resume: Path | None = None
    """Checkpoint to start from, or a model's name (`cn-clip models`); by default the run's own latest, if there
    is one."""
    reset_optimizer: bool = False
    """Take the weights of the checkpoint, not its optimizer state."""
    reset_data_offset: bool = False
    """Take the weights of the checkpoint, not its epoch and step: start at the first."""
    freeze_vision: bool = False
    """Train the text tower only; the image tower's weights and statistics stay."""
    mask_ratio: float = 0.0
    """Share of image patches left out in training (FLIP; ViT only)."""
    dropout: float | None = None
    """Dropout of the text tower, in place of the architecture's (ours)."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    use_flash_attention: bool = False
    """Accepted; attention always runs PyTorch's fused kernels, FlashAttention where the GPU has it."""

    precision: Literal["amp", "bf16", "fp16", "fp32"] = "amp"
    """amp: float16 with loss scaling on a GPU, bfloat16 on a CPU; bf16: bfloat16 autocast; fp16: float16
    weights, GPU only; fp32: full."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train (ours); auto: the GPU if there is one."""
    seed: int = 123
    """Order of the data, initial weights, dropout, augmentation."""
    gather_with_grad: bool = False
    """Gradients flow through features gathered from other processes; one process has none."""
    skip_aggregate: bool = False
    """Contrast within each process only; the same thing in one process."""
    use_bn_sync: bool = False
    """Batch norm over all processes; the same thing in one process."""

    def architecture(self) -> ModelConfig:
        """Both towers, with `dropout` applied.

        Raises:
            UserError: no such architecture.
        """
        config = model_config(self.vision_model, self.text_model)
        if self.dropout is None:
            return config
        text = replace(
            config.text,
            text_hidden_dropout_prob=self.dropout,
            text_attention_probs_dropout_prob=self.dropout,
        )
        return replace(config, text=text)

    @property
    def folder(self) -> Path | None:
        """The run's folder, LOGS/NAME; None when nothing is stored."""
        return None if self.logs is None or str(self.logs).lower() == "none" else self.logs / self.name


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in what depends on the vision model (as documented), and refuse what cannot work.

    Raises:
        UserError: an option out of range, naming its flag.
    """
    for name in ("batch_size", "valid_batch_size", "log_interval", "accum_freq", "max_epochs"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(config, name)}")
    for name in ("num_workers", "valid_num_workers", "warmup", "image_cache_mb"):
        if getattr(config, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative")
    if not 0 <= (config.first_text or 0) <= 1:
        raise UserError(f"--first-text must be from 0 to 1, not {config.first_text}")
    if config.kd_loss_weight < 0:
        raise UserError(f"--kd-loss-weight must not be negative, but is {config.kd_loss_weight}")
    for name in ("mask_ratio", "dropout"):
        if not 0 <= (getattr(config, name) or 0) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 0 and less than 1")
    if config.max_steps is not None and config.max_steps < 1:
        raise UserError(f"--max-steps must be at least 1, not {config.max_steps}")
    text = config.architecture().text
    if not 2 < config.context_length <= text.text_max_position_embeddings:
        raise UserError(
            f"--context-length must be between 3 and {text.text_max_position_embeddings} for {config.text_model}"
        )
    if config.use_augment and config.augment not in ("none", "timm"):
        raise UserError(f"--use-augment means --augment timm: give one of them, not --augment {config.augment}")
    # Radford et al. 2021, table 19, as the documented trainer has it.
    resnet = config.architecture().vision.is_resnet
    large = config.vision_model.startswith("ViT-L")
    defaults = {
        "lr": 4e-4 if large else 5e-4,
        "beta1": 0.9,
        "beta2": 0.999 if resnet else 0.98,
        "eps": 1e-8 if resnet else 1e-6,
    }
    missing: dict[str, Any] = {name: x for name, x in defaults.items() if getattr(config, name) is None}
    return replace(config, augment="timm" if config.use_augment else config.augment, **missing)


def due(interval: int | None, count: int) -> bool:
    """Whether something done every `interval` is due at `count` (1, 2, …); never for None, 0 or less."""
    return interval is not None and interval > 0 and count % interval == 0
