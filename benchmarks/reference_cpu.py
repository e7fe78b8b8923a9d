"""Run a module of the reference implementation, or a script that imports it, on a machine without a GPU.

    python benchmarks/reference_cpu.py cn_clip.eval.make_topk_predictions --image-feats … --text-feats …
    python benchmarks/reference_cpu.py tests/reference/some_script.py --flags

The reference is read from `.reference/` (made by `make test`), or from the folder that the environment
variable REFERENCE names. Its source is not touched: what asks for a GPU does nothing instead, and what newer
versions of lmdb, NumPy and torch refuse is put back. Nothing of ours is imported: `cn_clip` is theirs.
"""

from __future__ import annotations

import logging.handlers
import os
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Make the reference importable and harmless, then run what the command line names."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    reference = Path(os.environ.get("REFERENCE", ROOT / ".reference"))
    if not (reference / "cn_clip" / "clip" / "model.py").is_file():
        sys.exit(f"{reference}: the reference implementation is not installed there; run: make test")
    target = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(reference)
    without_gpu()
    single_process_group()
    share_lmdb_environments()
    flush_logs_at_exit()
    if target.endswith(".py"):
        sys.path.insert(1, str(Path(target).resolve().parent))
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


def without_gpu() -> None:
    """`.cuda()`, `.to(0)` and `set_device` do nothing; `torch.load` and `float()` are as they were."""
    import numpy as np
    import torch

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    to, load, numpy = torch.Tensor.to, torch.load, torch.Tensor.numpy

    def to_cpu(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], int):
            return self
        return to(self, *args, **kwargs)

    def load_anything(*args: Any, **kwargs: Any) -> Any:
        # Its checkpoints hold NumPy scalars (the learning rate).
        return load(*args, **{"weights_only": False, **kwargs})

    class Scalar(np.ndarray):
        """NumPy 2.4 refuses `float(array of shape [1])`, which its zero-shot script does."""

        def __float__(self) -> float:
            return float(self.item())

    def numpy_with_float(self: Any, **kwargs: Any) -> Any:
        array = numpy(self, **kwargs)
        return array.view(Scalar) if array.shape == (1,) else array

    torch.Tensor.cuda = torch.nn.Module.cuda = stay  # type: ignore[method-assign, assignment]
    torch.Tensor.to = to_cpu  # type: ignore[method-assign, assignment]
    torch.Tensor.numpy = numpy_with_float  # type: ignore[method-assign, assignment]
    torch.cuda.set_device = lambda device: None  # type: ignore[assignment]
    torch.load = load_anything


def single_process_group() -> None:
    """Without torchrun, a group of one process; the backend is gloo and DDP has no device."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone, "MASTER_PORT": str(port)}.items():
        os.environ.setdefault(name, value)
    init = torch.distributed.init_process_group
    parallel = torch.nn.parallel.DistributedDataParallel

    class OnCpu(parallel):
        def __init__(self, module: Any, device_ids: Any = None, **kwargs: Any) -> None:
            super().__init__(module, **kwargs)

    torch.distributed.init_process_group = lambda *args, **kwargs: init("gloo")
    torch.nn.parallel.DistributedDataParallel = OnCpu  # type: ignore[misc]


def share_lmdb_environments() -> None:
    """Give every reader of a path the same environment: lmdb ≥ 1.4 refuses to open one twice in a process."""
    import lmdb

    opened: dict[tuple[int, str], Any] = {}
    open_anew = lmdb.open

    class Shared:
        """An environment that stays open while another dataset object may still read it."""

        def __init__(self, environment: Any) -> None:
            self.environment = environment

        def __getattr__(self, name: str) -> Any:
            return getattr(self.environment, name)

        def close(self) -> None:
            """Left to the end of the process."""

    def open_once(path: Any, **kwargs: Any) -> Any:
        if not kwargs.get("readonly"):
            return open_anew(path, **kwargs)
        key = (os.getpid(), os.path.realpath(path))
        if key not in opened:
            opened[key] = Shared(open_anew(path, **kwargs))
        return opened[key]

    lmdb.open = open_once


def flush_logs_at_exit() -> None:
    """Its log listener is a daemon thread: without this the last lines would be lost."""
    import atexit

    start = logging.handlers.QueueListener.start

    def start_and_stop(self: Any) -> None:
        start(self)
        atexit.register(self.stop)

    logging.handlers.QueueListener.start = start_and_stop  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
