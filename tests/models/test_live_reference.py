"""Small architectures with odd settings, ours beside the reference run now: see live_model.py."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from filling import fill
from live_model import CASES, POSITIONS, inputs, measure
from oracle import run_reference

from cn_clip.checkpoint import Checkpoint, load_model
from cn_clip.config import ModelConfig
from cn_clip.models.clip import CLIP

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    output = tmp_path_factory.mktemp("live") / "reference.npz"
    run_reference(Path(__file__).parents[1] / "reference" / "live_model.py", output)
    return dict(np.load(output))


def ours(config: dict[str, object]) -> CLIP:
    model = CLIP(ModelConfig.from_dict(config))
    fill(model.state_dict().items())
    return model


@pytest.mark.parametrize("case", CASES)
def test_features_losses_and_batch_statistics(case: str, reference: dict[str, np.ndarray]) -> None:
    found, theirs = measure(ours(CASES[case]), CASES[case]), of_case(reference, case)
    assert set(found) == set(theirs)
    for name, array in found.items():
        if "gradient" not in name:
            assert_close(array, theirs[name], name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(case: str, checkpointing: bool, reference: dict[str, np.ndarray]) -> None:
    model = ours(CASES[case])
    model.set_grad_checkpointing(checkpointing)
    found, theirs = measure(model, CASES[case]), of_case(reference, case)
    names = [name for name in theirs if "gradient" in name]
    assert len(names) == len(list(model.parameters()))
    whole = np.sqrt(sum(np.square(theirs[name].astype(np.float64)).sum() for name in names))
    for name in names:
        # Gradients of the keys' biases are zero but for rounding: softmax does not see a shift.
        error = np.linalg.norm(found[name].astype(np.float64) - theirs[name])
        assert error <= 1e-5 * np.linalg.norm(theirs[name]) + 1e-6 * whole, name


@pytest.mark.parametrize("case", POSITIONS)
def test_positions_of_another_resolution(case: str, reference: dict[str, np.ndarray]) -> None:
    old, new = POSITIONS[case]
    config = {**CASES["vit"], "image_resolution": new}
    weights = ours({**CASES["vit"], "image_resolution": old}).state_dict()
    checkpoint = Checkpoint(Path("weights.pt"), copy.copy(weights), None, {})
    model = load_model(checkpoint, ModelConfig.from_dict(config))
    with torch.no_grad():
        features = model.encode_image(inputs(config)[0]).numpy()
    assert_close(features, reference[f"positions {case}"], case)


def test_batch_statistics_of_many_pixels_keep_the_digits_of_float32() -> None:
    """65,536 values a channel, far from zero: a plain float32 sum is off by 1e-4."""
    config = {**CASES["resnet"], "image_resolution": 128, "vision_layers": [1, 1, 1, 1]}
    model = ours(config).visual.train()
    pictures = inputs(config, batch=16)[0] + 3
    with torch.no_grad():
        single, double = model(pictures), model.double()(pictures.double())
    assert_close(single.numpy(), double.numpy(), "features")


def of_case(reference: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(f"{case}/"): v for k, v in reference.items() if k.startswith(f"{case}/")}


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Within 1e-5 of the norm of the whole, and of each row of a matrix."""
    assert found.shape == expected.shape, name
    rows = list(zip(found, expected, strict=True)) if found.ndim == 2 else []
    for one, other in [(found, expected), *rows]:
        error = np.linalg.norm(one.astype(np.float64) - other)
        assert error <= 1e-5 * np.linalg.norm(other), f"{name}: {error / np.linalg.norm(other):.1e}"
