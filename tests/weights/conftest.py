"""One thread: the models are tiny, and several threads only wait for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_torch_thread: None) -> None:
    """For all tests here."""
