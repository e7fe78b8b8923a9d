"""Parameter groups, the learning rate, and optimizer states that came from elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import tiny_config, write_architectures

from cn_clip.config import model_config
from cn_clip.models.clip import CLIP
from cn_clip.train.config import TrainConfig, due, resolve
from cn_clip.train.optim import build_optimizer, learning_rate, load_optimizer, param_groups


@given(step=st.integers(0, 999), total=st.integers(1, 1000), warmup=st.integers(0, 1000), lr=st.floats(1e-6, 1))
@settings(max_examples=100, deadline=None)
def test_learning_rate_is_the_documented_schedule(step: int, total: int, warmup: int, lr: float) -> None:
    step = min(step, total - 1)
    config = TrainConfig(train_data=Path("x"), lr=lr, warmup=warmup)
    if step < warmup:
        expected = lr * (step + 1) / warmup
    else:
        expected = 0.5 * (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) * lr
    assert learning_rate(step, config, total) == pytest.approx(expected, rel=1e-9, abs=1e-12 * lr)


def test_skip_scheduler_keeps_the_rate() -> None:
    config = TrainConfig(train_data=Path("x"), lr=3e-4, warmup=10, skip_scheduler=True)
    assert {learning_rate(step, config, 100) for step in range(100)} == {3e-4}


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_groups_go_by_name_in_the_models_order(tmp_path: Path, vision: str) -> None:
    towers = write_architectures(tmp_path)
    model = CLIP(model_config(towers[vision], towers["bert"]))
    model.visual.conv1.weight.requires_grad = False
    plain, decayed = param_groups(model, 0.2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert plain["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.2
    listed = [names[id(p)] for p in plain["params"]], [names[id(p)] for p in decayed["params"]]
    expected: tuple[list[str], list[str]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = "bn" not in name and "ln" not in name and "bias" not in name and name != "logit_scale"
            expected[decays].append(name)
    assert listed == expected
    assert "visual.conv1.weight" not in listed[0] + listed[1]
    assert "bert.embeddings.LayerNorm.weight" in listed[1]
    assert "logit_scale" in listed[0]


def test_a_foreign_state_keeps_our_kernel_and_does_not_alias_the_file(tmp_path: Path) -> None:
    towers = write_architectures(tmp_path)
    config = resolve(tiny_config(tmp_path, tmp_path))
    model = CLIP(model_config(towers["vit"], towers["bert"]))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    foreign = torch.optim.AdamW(param_groups(model, 0.2), lr=1e-3)
    foreign.step()
    state = foreign.state_dict()
    kept = state["state"][0]["exp_avg"].clone()
    optimizer = build_optimizer(model, config)
    load_optimizer(optimizer, state)
    assert all(group["fused"] for group in optimizer.param_groups)
    optimizer.step()
    assert torch.equal(state["state"][0]["exp_avg"], kept)
    assert not torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], kept)


def test_fused_adamw_is_adamw() -> None:
    """Against the update rule (Loshchilov and Hutter 2019, algorithm 2) in float64."""
    config = resolve(TrainConfig(train_data=Path("x"), lr=1e-2, wd=0.1, precision="fp32"))
    layer = torch.nn.Linear(3, 2)
    weight = layer.weight.detach().double().numpy().copy()
    optimizer = build_optimizer(layer, config)  # type: ignore[arg-type]
    m = v = 0.0
    for step in range(1, 6):
        gradient = np.sin(np.arange(6.0).reshape(2, 3) + step)
        layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        layer.bias.grad = torch.zeros(2)
        optimizer.step()
        weight *= 1 - 1e-2 * 0.1
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        weight -= 1e-2 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.98**step)) + 1e-6)
    assert np.allclose(layer.weight.detach().numpy(), weight, atol=1e-6)


@pytest.mark.parametrize(
    ("vision", "expected"),
    [
        ("ViT-B-16", (5e-4, 0.9, 0.98, 1e-6)),
        ("ViT-H-14", (5e-4, 0.9, 0.98, 1e-6)),
        ("ViT-L-14-336", (4e-4, 0.9, 0.98, 1e-6)),
        ("RN50", (5e-4, 0.9, 0.999, 1e-8)),
    ],
)
def test_documented_defaults_of_vision_models(vision: str, expected: tuple[float, ...]) -> None:
    config = resolve(TrainConfig(train_data=Path("x"), vision_model=vision))
    assert (config.lr, config.beta1, config.beta2, config.eps) == expected
    given_ones = resolve(TrainConfig(train_data=Path("x"), vision_model=vision, lr=1.0, eps=2.0))
    assert (given_ones.lr, given_ones.eps) == (1.0, 2.0)


def test_json_architectures_take_the_defaults_of_their_kind(tmp_path: Path) -> None:
    towers = write_architectures(tmp_path)
    for name, beta2 in (("vit", 0.98), ("resnet", 0.999)):
        config = TrainConfig(train_data=Path("x"), vision_model=towers[name], text_model=towers["bert"])
        assert resolve(config).beta2 == beta2


def test_intervals() -> None:
    assert [n for n in range(1, 7) if due(2, n)] == [2, 4, 6]
    for never in (None, -1, 0):
        assert not any(due(never, n) for n in range(1, 7))
