"""One tiny dataset for all training tests; one thread, which is faster than two for models this small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import write_dataset


@pytest.fixture(scope="session")
def lmdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the splits train and valid: 15 pictures and 20 pairs each."""
    return write_dataset(tmp_path_factory.mktemp("tiny_dataset"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
