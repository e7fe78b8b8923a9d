"""`--recipe FILE`: an experiment is one Python function that returns a TrainConfig; flags override it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from cn_clip.errors import UserError
from cn_clip.train.config import TrainConfig


def load_recipe(recipe: str) -> TrainConfig:
    """The options of `FILE` (its function `config`) or `FILE:FUNCTION`. The file is run: it is the user's own.

    Raises:
        UserError: no such file or function, the file fails, or it returns something else.
    """
    path, function = Path(recipe), "config"
    if not path.is_file() and ":" in recipe:
        file, _, function = recipe.rpartition(":")
        path = Path(file)
    if not path.is_file():
        raise UserError(f"--recipe {recipe}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--recipe {recipe}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(make := getattr(module, function, None)):
            raise UserError(f"--recipe {recipe}: {path} has no function {function}()")
        config = make()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--recipe {recipe}: {type(error).__name__}: {error}") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"--recipe {recipe}: {function}() must return a TrainConfig, not {type(config).__name__}")
    return config


def with_recipe(train: Callable[..., Any], args: Sequence[str]) -> tuple[Callable[..., Any], list[str]]:
    """`train` with the recipe named in `args` as its defaults, and the arguments that are left to parse."""
    left = list(args)
    if "--recipe" not in left[:-1]:
        return train, left
    config = load_recipe(left[left.index("--recipe") + 1])
    # A switch that is on already has no flag that turns it on: giving it again changes nothing.
    on = {field.name for field in fields(config) if getattr(config, field.name) is True}
    left = [arg for arg in left if not (arg.startswith("--") and arg[2:].replace("-", "_") in on)]
    return partial(train, config=config), left
