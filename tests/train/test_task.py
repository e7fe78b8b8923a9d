"""Gradients of a step: accumulated, masked, with several positives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config

from cn_clip.data.loader import Batch, PairDataset, pair_keys
from cn_clip.models.clip import CLIP
from cn_clip.train.loss import contrastive_loss
from cn_clip.train.precision import Precision, to_half
from cn_clip.train.task import ClipTask


def build(tmp_path: Path, lmdb: Path, vision: str = "vit", **options: Any) -> tuple[ClipTask, PairDataset]:
    config = tiny_config(tmp_path, lmdb, vision, **options)
    torch.manual_seed(0)
    model = CLIP(config.architecture())
    dataset = PairDataset(lmdb / "train", 32, 16)
    known = dataset.known_pairs() if config.multi_positive else None
    precision = Precision(config.precision, torch.device("cpu"))
    task = ClipTask(model, precision, 1, config.mask_ratio, config.freeze_vision, known, report_accuracy=True)
    task.train_mode()
    return task, dataset


def batches(dataset: PairDataset, sizes: list[int]) -> list[Batch]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [dataset.batch([(0, i) for i in range(s, s + n)]) for s, n in zip(starts, sizes, strict=True)]


def gradients(task: ClipTask, group: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    task.model.zero_grad()
    loss, _ = task.training_step(group, 5)
    found = {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
    return loss.item(), found


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=1e-4, atol=1e-6) for k in a)


@pytest.mark.parametrize("frozen", [False, True])
def test_accumulated_batches_give_the_whole_batchs_gradient(tmp_path: Path, lmdb: Path, frozen: bool) -> None:
    task, dataset = build(tmp_path, lmdb, dropout=0.0, freeze_vision=frozen)
    task.model.visual.requires_grad_(not frozen)
    whole = gradients(task, batches(dataset, [12]))
    parts = gradients(task, batches(dataset, [4, 4, 4]))
    assert parts[0] == pytest.approx(whole[0], abs=1e-5)
    assert close(parts[1], whole[1])
    assert frozen == ("visual.proj" not in whole[1])


def test_accumulation_sees_the_same_dropout_and_masks_twice(tmp_path: Path, lmdb: Path) -> None:
    """Against all batches' graphs kept at once, under the same seeds."""
    task, dataset = build(tmp_path, lmdb, mask_ratio=0.5, multi_positive=True)
    group = batches(dataset, [4, 4, 4])
    accumulated = gradients(task, group)
    task.model.zero_grad()
    features = [task._forward(batch, 5, i) for i, batch in enumerate(group)]
    images, texts = (torch.cat([f[i] for f in features]) for i in (0, 1))
    loss = contrastive_loss(images, texts, task.model.logit_scale.exp(), task._positives(group))
    loss.backward()
    kept = {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
    assert accumulated[0] == pytest.approx(loss.item(), abs=1e-6)
    assert close(accumulated[1], kept)


def test_dropout_and_masks_change_from_step_to_step(tmp_path: Path, lmdb: Path) -> None:
    for options in ({"dropout": 0.3}, {"dropout": 0.0, "mask_ratio": 0.5}):
        task, dataset = build(tmp_path, lmdb, **options)
        group = batches(dataset, [6])
        values = [task.training_step(group, step)[0].item() for step in (1, 2, 1)]
        assert values[0] != values[1]
        assert values[0] == values[2]


def test_flip_feeds_the_tower_fewer_patches(tmp_path: Path, lmdb: Path) -> None:
    task, dataset = build(tmp_path, lmdb, mask_ratio=0.5)
    seen = []
    block = task.model.visual.transformer.resblocks[0]
    block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    task.training_step(batches(dataset, [3]), 0)
    assert seen == [(3, 1 + 8, 32)]  # half of 4 × 4 patches, and the class token


def test_known_pairs_are_positives(tmp_path: Path, lmdb: Path) -> None:
    """Against sets of (image id, text): pictures with two texts, and texts with several pictures."""
    task, dataset = build(tmp_path, lmdb, multi_positive=True)
    pairs = [dataset.reader.pairs[i] for i in range(20)]
    known = {(image, text) for image, _, text in pairs}
    positives = task._positives(batches(dataset, [12, 8]))
    assert positives is not None
    expected = [[(image, text) in known for _, _, text in pairs] for image, _, _ in pairs]
    assert positives.tolist() == expected
    assert positives.sum() > 20 + 10


def test_without_multi_positive_only_the_batchs_own_pairs_count(tmp_path: Path, lmdb: Path) -> None:
    task, dataset = build(tmp_path, lmdb)
    assert task._positives(batches(dataset, [4])) is None


def test_accuracies_are_of_all_pairs_of_the_step(tmp_path: Path, lmdb: Path) -> None:
    task, dataset = build(tmp_path, lmdb, dropout=0.0)
    whole = task.training_step(batches(dataset, [12]), 0)[1]
    parts = task.training_step(batches(dataset, [6, 6]), 0)[1]
    assert whole == parts
    assert set(whole) == {"i2t", "t2i"}


def test_logit_scale_stays_in_its_range(tmp_path: Path, lmdb: Path) -> None:
    task, _ = build(tmp_path, lmdb)
    for value, kept in ((9.0, 4.60517), (-1.0, 0.0), (2.0, 2.0)):
        task.model.logit_scale.data.fill_(value)
        task.after_step()
        assert task.model.logit_scale.item() == pytest.approx(kept, abs=1e-5)


def test_half_weights_still_compute(tmp_path: Path, lmdb: Path) -> None:
    """fp16 is refused on a CPU for its speed; its conversion is tested here."""
    for vision in ("vit", "resnet"):
        task, dataset = build(tmp_path, lmdb, vision, dropout=0.0)
        full = task.training_step(batches(dataset, [6]), 0)[0].item()
        task.model.zero_grad()
        to_half(task.model)
        assert {p.dtype for n, p in task.model.named_parameters() if n != "logit_scale"} == {torch.float16}
        loss, _ = task.training_step(batches(dataset, [6]), 0)
        assert loss.item() == pytest.approx(full, abs=0.02)


def test_pair_keys_tell_pairs_apart() -> None:
    keys = torch.randint(0, 2**62, (50,), generator=torch.Generator().manual_seed(0))
    table = pair_keys(keys[:, None], keys[None, :])
    assert len(table.unique()) == 2500
