"""Run the reference in its own process: the same import name cannot be had twice in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_reference(target: str | Path, *arguments: object, reference: Path = ROOT / ".reference") -> str:
    """Run a module of the reference, or a script that imports it, on the CPU; returns its standard output.

    `reference` is the folder the reference is read from: `.reference`, or an altered copy of it.
    """
    if not (reference / "cn_clip").is_dir():
        raise AssertionError(f"the reference is not installed in {reference}; run: make test")
    shim = ROOT / "benchmarks" / "reference_cpu.py"
    return run_python(shim, target, *arguments, REFERENCE=str(reference), PYTHONWARNINGS="ignore")


def run_python(*arguments: object, **environment: str) -> str:
    """Run this Python with some arguments; returns its standard output.

    One thread: what runs here is small, and threads that wait for each other on a busy machine take minutes.
    """
    done = subprocess.run(
        [sys.executable, *(str(part) for part in arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{arguments} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
