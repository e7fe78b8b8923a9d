"""Fixtures of all tests. This file also puts `tests/` on the import path: `from tiny import …`."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# A suite started in the background ignores Ctrl-C, and so would every program that it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 256 KB: a real one where this user may mount, else files cannot grow larger."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if mounted:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, old[1]))  # Python ignores the signal: writing fails
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """For many small models one after the other: several threads only wait for each other."""
    old = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(old)
