"""What computes features: one file for each runtime, which all look like `Backend` to the encoder."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cn_clip.errors import UserError

# Name -> "module:class"; the class has `load(name_or_path, device, precision, **options) -> Backend`.
BACKENDS = {"torch": "cn_clip.backends.torch:TorchBackend"}


class Backend(Protocol):
    """Both towers, ready to run; any number of threads may call it at once.

    Attributes:
        name: of the runtime.
        size: pixels of the square image input.
        width: numbers in a vector.
        context_limit: word pieces that the text tower takes at most.
        device: where it runs.
        precision: what it computes in.
        logit_scale: the factor of cosines that was learnt (its exponential, 100 at most).
    """

    name: str
    size: int
    width: int
    context_limit: int
    device: str
    precision: str
    logit_scale: float

    def encode_images(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32 [N, 3, size, size], normalised pixels -> features [N, width], not normalised."""

    def encode_texts(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [N, L], padded with 0 -> features [N, width], not normalised."""

    def after_fork(self) -> None:
        """Called once in a process that was forked from the one that loaded it, before anything else."""


def load_backend(backend: str, name_or_path: str, device: str, precision: str, **options: Any) -> Backend:
    """The model of that name or file, in a runtime; `auto` takes torch.

    Raises:
        UserError: no such backend, model, device or precision.
    """
    name = "torch" if backend == "auto" else backend
    if name not in BACKENDS:
        raise UserError(f"no backend {backend}; choose one of auto, {', '.join(BACKENDS)}")
    module, kind = BACKENDS[name].split(":")
    loaded: Backend = getattr(import_module(module), kind).load(name_or_path, device, precision, **options)
    return loaded
