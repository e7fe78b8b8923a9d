"""Validation numbers against loops over pairs with a dictionary of features."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import tiny_config
from torch.utils.data import DistributedSampler

from cn_clip.data.lmdb import LmdbDataset
from cn_clip.models.clip import CLIP
from cn_clip.tokenizer import default_tokenizer
from cn_clip.train.precision import Precision
from cn_clip.train.setup import build_validator
from cn_clip.transform import ImageTransform, decode_image


@pytest.mark.parametrize(("batch", "workers"), [(5, 0), (6, 1), (64, 0)])
def test_validation_is_the_definition(tmp_path: Path, lmdb: Path, batch: int, workers: int) -> None:
    config = tiny_config(tmp_path, lmdb, "resnet", valid_batch_size=batch, valid_num_workers=workers)
    torch.manual_seed(3)
    model = CLIP(config.architecture())
    validator = build_validator(config, Precision("fp32", torch.device("cpu")))
    assert validator is not None
    result = validator(model)
    assert not model.training

    data, transform = LmdbDataset(lmdb / "valid"), ImageTransform(32)
    pairs = list(data.pairs)
    x, y = [], []
    with torch.no_grad():
        for image_id, _, text in pairs:
            image = transform(decode_image(data.images[image_id]))[None]
            ids = torch.from_numpy(default_tokenizer().encode([text], 16).ids)
            features = model(image, ids)
            x.append(features[0][0].double().numpy())
            y.append(features[1][0].double().numpy())
    padded = math.ceil(len(pairs) / batch) * batch
    sampler = DistributedSampler(range(padded), 1, 0, shuffle=True, seed=config.seed)  # type: ignore[arg-type]
    order = [i % len(pairs) for i in sampler]
    scale, loss, i2t, t2i = model.logit_scale.exp().item(), 0.0, 0, 0
    for start in range(0, padded, batch):
        rows = order[start : start + batch]
        logits = scale * np.array([[x[i] @ y[j] for j in rows] for i in rows])
        for a in range(batch):
            loss += (np.log(np.exp(logits[a]).sum()) + np.log(np.exp(logits[:, a]).sum())) / 2 - logits[a, a]
            i2t += logits[a].argmax() == a
            t2i += logits[:, a].argmax() == a
    assert result["loss"] == pytest.approx(loss / padded, abs=1e-5)
    assert result["i2t_acc"] == pytest.approx(i2t / padded, abs=1e-6)
    assert result["t2i_acc"] == pytest.approx(t2i / padded, abs=1e-6)
    assert result["logit_scale"] == pytest.approx(math.log(scale), abs=1e-5)

    images = {image: x[i] for i, (image, _, _) in enumerate(pairs)}
    texts = {text: y[i] for i, (_, _, text) in enumerate(pairs)}
    right = {(image, text) for image, _, text in pairs}
    assert (result["images"], result["texts"]) == (len(images), len(texts))
    for k in (1, 5, 10):
        hits = 0
        for text in texts:
            best = sorted(images, key=lambda image: -float(images[image] @ texts[text]))[:k]
            hits += any((image, text) in right for image in best)
        assert result[f"t2i_r{k}"] == pytest.approx(100 * hits / len(texts))
        hits = 0
        for image in images:
            best = sorted(texts, key=lambda text: -float(texts[text] @ images[image]))[:k]
            hits += any((image, text) in right for text in best)
        assert result[f"i2t_r{k}"] == pytest.approx(100 * hits / len(images))
