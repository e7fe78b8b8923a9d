"""Small models on the sample dataset: one from scratch in minutes, the one that ships as `emoji-tiny`, and that
one finetuned on a new artist's drawings.

cn-clip train --recipe recipes/emoji_cn.py --train-data emoji_cn/lmdb/train --val-data emoji_cn/lmdb/valid
cn-clip train --recipe recipes/emoji_cn.py:new_artist --train-data emoji_cn/lmdb/newartist

`emoji-tiny` learns from two teachers as well; emoji_teachers.py computes what they say:

cn-clip data sample --out emoji_cn
python recipes/emoji_teachers.py --data emoji_cn --out emoji_views --views 6
cn-clip data build-lmdb --data_dir emoji_views --splits train
cn-clip train --recipe recipes/emoji_cn.py:emoji_tiny
cn-clip weights convert logs/emoji-tiny/checkpoints/epoch_latest.pt emoji-tiny.safetensors \\
    --to safetensors --dtype float16
"""

from dataclasses import replace
from pathlib import Path

from cn_clip.train.config import TrainConfig

HERE = Path(__file__).parent


def config() -> TrainConfig:
    """A ResNet of 26 layers on 64-pixel pictures and a two-layer BERT, 256 dimensions: about five minutes."""
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


def emoji_tiny() -> TrainConfig:
    """The bundled model: a narrower, deeper ResNet and a BERT of three layers that fit into 16 MB in float16.

    An epoch is every view of every drawing once, with its name half of the time, else any of its texts.
    """
    views = Path("emoji_views")
    return replace(
        config(),
        train_data=views / "lmdb/train",
        val_data=None,
        name="emoji-tiny",
        vision_model=str(HERE / "emoji_tiny_vision.json"),
        text_model=str(HERE / "emoji_tiny_text.json"),
        bert_weight_path=views / "word_vectors.safetensors",
        teacher_image_feats=views / "teacher_imgs.img_feat.jsonl",
        teacher_text_feats=views / "teacher_texts.txt_feat.jsonl",
        kd_loss_weight=10.0,
        first_text=0.5,
        augment="light",
        image_cache_mb=1200,
        batch_size=256,
        lr=2e-3,
        beta2=0.98,
        wd=0.05,
        warmup=150,
        max_steps=3300,
        save_step_frequency=500,
        context_length=24,
    )


def new_artist() -> TrainConfig:
    """`emoji-tiny`, finetuned on the drawings of an artist it has never seen: a minute or two."""
    return replace(
        config(),
        train_data=Path("emoji_cn/lmdb/newartist"),
        val_data=Path("emoji_cn/lmdb/newboth"),
        name="new_artist",
        vision_model=str(HERE / "emoji_tiny_vision.json"),
        text_model=str(HERE / "emoji_tiny_text.json"),
        resume=Path("emoji-tiny"),
        reset_data_offset=True,
        reset_optimizer=True,
        lr=2e-4,
        beta2=0.98,
        warmup=20,
        max_steps=150,
        valid_step_interval=30,
        context_length=24,
    )


def new_artist_again() -> TrainConfig:
    """The same run, going on from its own latest checkpoint."""
    return replace(new_artist(), resume=None, reset_data_offset=False, reset_optimizer=False)
