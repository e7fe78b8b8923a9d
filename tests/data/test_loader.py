"""Training batches: their order, what is in them, and that workers and restarts change nothing."""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DistributedSampler

from cn_clip.data.build_lmdb import build_lmdb
from cn_clip.data.loader import Augment, PairDataset, TrainLoader, ValidationData, padded
from cn_clip.errors import UserError
from cn_clip.tokenizer import default_tokenizer
from cn_clip.transform import ImageTransform, decode_image

SIZE = 16


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures (one grey, one with a palette, one transparent), eleven pairs."""
    folder = tmp_path_factory.mktemp("loader")
    generator = np.random.default_rng(0)
    with open(folder / "train_imgs.tsv", "w") as file:
        for i, mode in enumerate(["RGB", "L", "P", "RGBA", "RGB", "RGB", "RGB"]):
            image = Image.fromarray(generator.integers(0, 255, (20 + i, 24, 3), dtype=np.uint8)).convert(mode)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            file.write(f"{i}\t{base64.b64encode(buffer.getvalue()).decode()}\n")
    texts = {"红色": [0, 1], "一只猫": [2], "狗": [3, 4, 5, 6], "“引号”": [0], "大象 ELEPHANT": [1, 6, 2]}
    with open(folder / "train_texts.jsonl", "w", encoding="utf-8") as file:
        for i, (text, images) in enumerate(texts.items()):
            file.write(json.dumps({"text_id": i, "text": text, "image_ids": images}) + "\n")
    build_lmdb(folder, "train")
    return folder / "lmdb" / "train"


def batches(
    split: Path, augment: Augment = "none", workers: int = 0, skip: int = 0, cache: int = 0
) -> list[object]:
    loader = TrainLoader(PairDataset(split, SIZE, 12, augment, 5, cache), 4, workers, seed=9)
    return list(loader.batches(0, skip, 3, loader.num_batches))


def same(a: object, b: object) -> bool:
    return all(torch.equal(value, vars(b)[name]) for name, value in vars(a).items())


def test_a_batch_is_the_samples_one_by_one(split: Path) -> None:
    dataset = PairDataset(split, SIZE, 12)
    transform, tokenizer = ImageTransform(SIZE), default_tokenizer()
    batch = dataset.batch([(0, i) for i in range(14)])  # beyond the eleven pairs: the first ones again
    assert batch.indices.tolist() == [*range(11), 0, 1, 2]
    for row in range(14):
        image_id, _, text = dataset.reader.pairs[row % 11]
        image = transform(decode_image(dataset.reader.images[image_id]))
        assert torch.equal(batch.images[row], image)
        assert batch.texts[row].tolist() == tokenizer.encode([text], 12).ids[0].tolist()
    ids = [dataset.reader.pairs[row % 11] for row in range(14)]
    for keys, column in ((batch.image_keys, 0), (batch.text_keys, 2)):
        for a in range(14):
            assert [bool(keys[a] == keys[b]) for b in range(14)] == [ids[a][column] == x[column] for x in ids]


def test_the_order_is_the_documented_one(split: Path) -> None:
    dataset = PairDataset(split, SIZE, 12)
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        loader = TrainLoader(dataset, 2, 0, seed=9, rank=rank, world_size=world)
        assert loader.num_samples == 12
        assert loader.num_batches == 6 // world
        sampler = DistributedSampler(range(12), world, rank, shuffle=True, seed=9)  # type: ignore[arg-type]
        expected = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            expected += [i % 11 for i in sampler]
        got = torch.cat([b.indices for b in loader.batches(0, 0, 2, loader.num_batches)])
        assert got.tolist() == expected


@pytest.mark.parametrize("augment", ["none", "timm", "light"])
def test_workers_restarts_and_caches_change_nothing(split: Path, augment: Augment) -> None:
    plain = batches(split, augment)
    assert len(plain) == 9
    for other in (batches(split, augment, workers=2), batches(split, augment, cache=3000)):
        assert all(same(a, b) for a, b in zip(plain, other, strict=True))
    resumed = batches(split, augment, skip=2)
    assert all(same(a, b) for a, b in zip(plain[2:], resumed, strict=True))


@pytest.mark.parametrize("augment", ["timm", "light"])
def test_augmentation_differs_by_epoch_and_seed(split: Path, augment: Augment) -> None:
    dataset = PairDataset(split, SIZE, 12, augment, seed=5)
    first, second = dataset.batch([(0, 3)]), dataset.batch([(1, 3)])
    other = PairDataset(split, SIZE, 12, augment, seed=6).batch([(0, 3)])
    assert not torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(first.texts, second.texts)


def test_datasets_can_be_sent_to_spawned_workers(split: Path) -> None:
    dataset = PairDataset(split, SIZE, 12, "timm")
    sent = pickle.loads(pickle.dumps(dataset))
    assert same(sent.batch([(0, 1), (0, 2)]), dataset.batch([(0, 1), (0, 2)]))


def test_the_cache_keeps_to_its_bytes(split: Path) -> None:
    dataset = PairDataset(split, SIZE, 12, cache_bytes=3 * SIZE * SIZE * 3 + 10)
    dataset.batch([(0, i) for i in range(11)])
    assert len(dataset.images.cache) == 3


def test_known_pairs_are_the_distinct_ones(split: Path) -> None:
    dataset = PairDataset(split, SIZE, 12)
    assert len(dataset.known_pairs()) == len({(i, t) for i, _, t in dataset.reader.pairs}) == 11


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_data_holds_each_image_and_text_once(split: Path, workers: int) -> None:
    data = ValidationData(split, SIZE, 12, batch_size=3, workers=workers)
    images, texts = torch.cat(list(data.image_batches())), list(data.text_batches())
    assert images.shape == (7, 3, SIZE, SIZE)
    assert sum(len(batch) for batch in texts) == len(set(data.texts)) == 5
    transform = ImageTransform(SIZE)
    for row, image_id in zip(images, data.image_ids, strict=True):
        assert torch.equal(row, transform(decode_image(data.reader.images[image_id])))
    pairs = [(data.image_ids[i], data.texts[t]) for i, t in data.pairs]
    assert pairs == [(i, t) for i, _, t in data.reader.pairs]


@given(samples=st.integers(1, 1000), multiple=st.integers(1, 100))
@settings(deadline=None)
def test_padding_is_the_least_that_fills_batches(samples: int, multiple: int) -> None:
    total = padded(samples, multiple)
    assert total % multiple == 0
    assert 0 <= total - samples < multiple


def test_an_empty_split_is_refused(tmp_path: Path, split: Path) -> None:
    (tmp_path / "empty_imgs.tsv").write_text((split.parents[1] / "train_imgs.tsv").read_text())
    (tmp_path / "empty_texts.jsonl").write_text('{"text_id": 1, "text": "猫", "image_ids": []}\n')
    build_lmdb(tmp_path, "empty")
    with pytest.raises(UserError, match="no image-text pairs"):
        PairDataset(tmp_path / "lmdb" / "empty", SIZE, 12)
