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
    command = [sys.executable, ROOT / "benchmarks" / "reference_cpu.py", target, *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "REFERENCE": str(reference), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{target} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
