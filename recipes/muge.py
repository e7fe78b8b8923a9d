"""Finetuning ViT-B/16 on MUGE with the published hyper-parameters (there on 8 GPUs of 128 pairs each).

cn-clip train --recipe recipes/muge.py --train-data MUGE/lmdb/train --val-data MUGE/lmdb/valid \\
    --resume clip_cn_vit-b-16.pt

On one GPU or a CPU add `--accum-freq 8`: each pair is then contrasted with as many others, at a batch's memory.
"""

from pathlib import Path

from cn_clip.train.config import TrainConfig


def config() -> TrainConfig:
    """The published run: 3 epochs at a peak learning rate of 5e-5."""
    return TrainConfig(
        train_data=Path("datasets/MUGE/lmdb/train"),
        val_data=Path("datasets/MUGE/lmdb/valid"),
        resume=Path("pretrained_weights/clip_cn_vit-b-16.pt"),
        reset_data_offset=True,
        reset_optimizer=True,
        logs=Path("experiments"),
        name="muge_finetune_vit-b-16_roberta-base_bs128_8gpu",
        vision_model="ViT-B-16",
        text_model="RoBERTa-wwm-ext-base-chinese",
        context_length=52,
        warmup=100,
        batch_size=128,
        valid_batch_size=128,
        lr=5e-5,
        wd=0.001,
        max_epochs=3,
        valid_step_interval=150,
        valid_epoch_interval=1,
        save_epoch_frequency=1,
        log_interval=1,
        report_training_batch_acc=True,
        use_augment=True,
    )
