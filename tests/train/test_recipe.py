"""Recipes and flags together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from cn_clip.cli import clean, config
from cn_clip.errors import UserError
from cn_clip.train.config import TrainConfig, resolve
from cn_clip.train.loop import train
from cn_clip.train.recipe import load_recipe, with_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SOURCE = """
from pathlib import Path
from cn_clip.train.config import TrainConfig

def config():
    return TrainConfig(train_data=Path("here"), lr=1e-3, batch_size=7, use_augment=True, val_data=Path("there"))

def other():
    return TrainConfig(train_data=Path("elsewhere"))

def wrong():
    return {"lr": 1}

def broken():
    return undefined_name
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(SOURCE)
    return path


def parse(args: list[str]) -> TrainConfig:
    """What `cn-clip train` would be called with."""
    import tyro

    def run(config: TrainConfig) -> TrainConfig:
        return config

    def rebind(function: Callable[..., Any]) -> Callable[..., Any]:
        from functools import partial

        return partial(run, **function.keywords) if isinstance(function, partial) else run

    function, left = with_recipe(train, clean(args))
    parsed: TrainConfig = tyro.cli(rebind(function), args=left, config=config())
    return parsed


def test_flags_override_a_recipe(recipe: Path) -> None:
    plain = parse([f"--recipe={recipe}"])
    assert (plain.train_data, plain.lr, plain.batch_size, plain.use_augment) == (Path("here"), 1e-3, 7, True)
    changed = parse(["--recipe", str(recipe), "--batch_size", "9", "--use_augment", "--val-data=none"])
    assert (changed.batch_size, changed.lr, changed.use_augment, changed.val_data) == (9, 1e-3, True, None)
    assert parse([f"--recipe={recipe}:other"]).train_data == Path("elsewhere")


@pytest.mark.parametrize(
    ("name", "words"),
    [("wrong", "must return a TrainConfig"), ("broken", "NameError"), ("absent", "has no function absent")],
)
def test_a_bad_recipe_is_one_line(recipe: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe(f"{recipe}:{name}")


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text("hello")
    with pytest.raises(UserError, match="not a Python file"):
        load_recipe(str(tmp_path / "recipe.txt"))


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(RECIPES.glob("*.py")) if "-> TrainConfig" in p.read_text("utf-8")],
    ids=lambda path: path.stem,
)
def test_the_projects_recipes_are_valid(path: Path) -> None:
    resolved = resolve(load_recipe(str(path)))
    assert resolved.vision_model in str(resolved)
    assert resolved.architecture().vision.embed_dim > 0


def test_documented_flags_and_defaults() -> None:
    """Those of the reference's parser that concern one process."""
    documented: dict[str, Any] = {
        "val-data": None, "num-workers": 4, "valid-num-workers": 1, "logs": Path("./logs/"), "name": "train_clip",
        "log-interval": 10, "report-training-batch-acc": False, "batch-size": 64, "valid-batch-size": 64,
        "max-steps": None, "max-epochs": 32, "valid-step-interval": None, "valid-epoch-interval": 1,
        "context-length": 52, "lr": None, "beta1": None, "beta2": None, "eps": None, "wd": 0.2, "warmup": 500,
        "use-bn-sync": False, "use-augment": False, "skip-scheduler": False, "save-epoch-frequency": 1,
        "save-step-frequency": -1, "resume": None, "reset-optimizer": False, "reset-data-offset": False,
        "precision": "amp", "vision-model": "ViT-B-16", "mask-ratio": 0, "clip-weight-path": None,
        "freeze-vision": False, "text-model": "RoBERTa-wwm-ext-base-chinese", "bert-weight-path": None,
        "grad-checkpointing": False, "use-flash-attention": False, "accum-freq": 1, "gather-with-grad": False,
        "skip-aggregate": False, "debug": False, "seed": 123,
    }  # fmt: skip
    ours = {field.name.replace("_", "-"): field.default for field in fields(TrainConfig)}
    assert {name: ours[name] for name in documented} == documented
