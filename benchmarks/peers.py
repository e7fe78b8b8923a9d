"""Time two implementations of one package name against each other: each in a process of its own, in turns.

A peer is a script that builds what it needs, then calls `serve(operations)`. The benchmark starts both and calls
`race`, which asks them one after the other, so that a machine whose speed drifts drifts for both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def serve(operations: dict[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter) -> None:
    """In the peer: run the operation each line of standard input names, answer with its seconds.

    `clock` may be `time.process_time`, where what counts is the work of one core, and other jobs are running.
    """
    print("ready", flush=True)
    for line in sys.stdin:
        start = clock()
        operations[line.strip()]()
        print(json.dumps(clock() - start), flush=True)


class Peer:
    """A running peer; `theirs` runs it with the reference in place of our package."""

    def __init__(self, script: Path, *args: str, theirs: bool = False) -> None:
        shim = [str(ROOT / "benchmarks" / "reference_cpu.py")] if theirs else []
        self.process = subprocess.Popen(
            [sys.executable, *shim, str(script), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")},
        )
        assert self.process.stdout
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
        raise SystemExit(f"{script} {' '.join(args)} ended before it was ready")

    def time(self, operation: str) -> float:
        """Seconds of one run."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(operation + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def race(runs: dict[str, tuple[Peer, str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run, in interleaved rounds after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, (peer, operation) in runs.items():
            took = peer.time(operation)
            if i:
                seconds[name].append(took)
    return seconds


def ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster `other` is: the median of the rounds' ratios."""
    return statistics.median(b / o for b, o in zip(base, other, strict=True))


def machine() -> str:
    """Processor, cores, date: a line for the results file."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return f"{time.strftime('%Y-%m-%d')}, {cpu}, {os.cpu_count()} cores, Python {platform.python_version()}"
