"""A small model from scratch on the sample dataset, in about five minutes on two CPU cores.

cn-clip train --recipe recipes/emoji_cn.py --train-data emoji_cn/lmdb/train --val-data emoji_cn/lmdb/valid
"""

from pathlib import Path

from cn_clip.train.config import TrainConfig

HERE = Path(__file__).parent


def config() -> TrainConfig:
    """A ResNet of 26 layers on 64-pixel pictures and a two-layer BERT, 256 dimensions."""
    return TrainConfig(
        train_data=Path("emoji_cn/lmdb/train"),
        val_data=Path("emoji_cn/lmdb/valid"),
        name="emoji_cn",
        vision_model=str(HERE / "emoji_cn_vision.json"),
        text_model=str(HERE / "emoji_cn_text.json"),
        context_length=16,
        batch_size=128,
        valid_batch_size=128,
        lr=1e-3,
        eps=1e-6,
        wd=0.1,
        warmup=50,
        max_steps=730,
        valid_epoch_interval=None,
        valid_step_interval=200,
        save_epoch_frequency=-1,
        augment="light",
        multi_positive=True,
        precision="bf16",
        num_workers=0,
        valid_num_workers=0,
    )
