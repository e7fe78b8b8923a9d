"""Distillation from feature files: the loss by hand, what the files must hold, and that agreement is learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import losses, run, tiny_config

from cn_clip.checkpoint import load_model, read_checkpoint
from cn_clip.data.formats import Id
from cn_clip.data.lmdb import LmdbDataset
from cn_clip.data.loader import PairDataset
from cn_clip.errors import UserError
from cn_clip.eval.features import FeatureWriter
from cn_clip.models.clip import CLIP
from cn_clip.train.config import TrainConfig
from cn_clip.train.distill import DistillTask, read_teachers
from cn_clip.train.loss import contrastive_loss
from cn_clip.train.precision import Precision

WIDTH = 16


def teacher_files(folder: Path, lmdb: Path, width: int = WIDTH, without: Id | None = None) -> dict[str, Path]:
    """Random unit vectors of all images and texts of the training split."""
    pairs = list(LmdbDataset(lmdb / "train").pairs)
    generator = np.random.default_rng(0)
    files = {}
    for field, ids in (("image_id", [p[0] for p in pairs]), ("text_id", [p[1] for p in pairs])):
        distinct = [i for i in dict.fromkeys(ids) if i != without]
        vectors = generator.standard_normal((len(distinct), width))
        files[field] = folder / f"{field}.jsonl"
        with FeatureWriter(files[field], "image_id" if field == "image_id" else "text_id") as writer:
            writer.write(distinct, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return files


def with_teachers(config: TrainConfig, files: dict[str, Path], weight: float = 2.0) -> TrainConfig:
    values = {"teacher_image_feats": files["image_id"], "teacher_text_feats": files["text_id"]}
    return TrainConfig(**{**vars(config), **values, "kd_loss_weight": weight})


@pytest.mark.parametrize("parts", [[10], [4, 4, 2]])
def test_loss_is_the_contrastive_one_and_one_minus_cosine(tmp_path: Path, lmdb: Path, parts: list[int]) -> None:
    files = teacher_files(tmp_path, lmdb)
    config = with_teachers(tiny_config(tmp_path, lmdb, dropout=0.0), files)
    torch.manual_seed(0)
    model = CLIP(config.architecture())
    dataset = PairDataset(lmdb / "train", 32, 16)
    teachers = read_teachers(dataset.reader, config, WIDTH)
    task = DistillTask(model, Precision("fp32", torch.device("cpu")), 1, teachers, config.kd_loss_weight)
    task.train_mode()
    starts = [sum(parts[:i]) for i in range(len(parts))]
    group = [dataset.batch([(0, i) for i in range(s, s + n)]) for s, n in zip(starts, parts, strict=True)]
    loss, _ = task.training_step(group, 0)
    whole = dataset.batch([(0, i) for i in range(10)])
    with torch.no_grad():
        images, texts, scale = model(whole.images, whole.texts)
        expected = contrastive_loss(images, texts, scale).item()
        rows, named = dict(_rows(files["image_id"])), dict(_rows(files["text_id"]))
        said = {text: named[text_id] for _, text_id, text in dataset.reader.pairs}  # one vector a text
        for features, vectors in (
            (images, [rows[dataset.reader.pairs[i][0]] for i in range(10)]),
            (texts, [said[dataset.reader.pairs[i][2]] for i in range(10)]),
        ):
            expected += 2.0 * (1 - F.cosine_similarity(features, torch.tensor(vectors))).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_comes_to_agree(tmp_path: Path, lmdb: Path) -> None:
    files = teacher_files(tmp_path, lmdb)
    config = with_teachers(
        tiny_config(tmp_path, lmdb, max_epochs=20, lr=5e-3, valid_epoch_interval=None), files, weight=10.0
    )
    folder = run(config)
    model = load_model(read_checkpoint(folder / "checkpoints" / "epoch_latest.pt"))
    dataset = PairDataset(lmdb / "train", 32, 16)
    rows = dict(_rows(files["image_id"]))
    batch = dataset.batch([(0, i) for i in range(20)])
    with torch.no_grad():
        images = F.normalize(model.encode_image(batch.images), dim=-1)
    teacher = torch.tensor([rows[dataset.reader.pairs[i][0]] for i in range(20)])
    assert (images * teacher).sum(1).mean() > 0.5  # random unit vectors: 0 ± 0.06
    assert losses(folder)[-1] < losses(folder)[0] - 5


def test_wrong_files_are_one_line(tmp_path: Path, lmdb: Path) -> None:
    narrow = with_teachers(tiny_config(tmp_path, lmdb), teacher_files(tmp_path, lmdb, width=8))
    with pytest.raises(UserError, match=r"image_id.jsonl: vectors of 8 numbers, but the towers' have 16"):
        run(narrow)
    lacking = with_teachers(tiny_config(tmp_path, lmdb), teacher_files(tmp_path, lmdb, without=103))
    with pytest.raises(UserError, match=r"image_id.jsonl: no vector for image_id 103 of the training data"):
        run(lacking)
    with pytest.raises(UserError, match="--kd-loss-weight must not be negative"):
        run(with_teachers(tiny_config(tmp_path, lmdb), teacher_files(tmp_path, lmdb), weight=-1.0))


def _rows(path: Path) -> list[tuple[Id, list[float]]]:
    from cn_clip.eval.features import read_features

    features = read_features(path)
    return list(zip(features.ids, features.vectors.tolist(), strict=True))
