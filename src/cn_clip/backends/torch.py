"""PyTorch: runs every model, on a CPU or a GPU.

bf16 converts the weights once: measured on a CPU, autocast converts activations back and forth, and is no faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cn_clip.clip import load_from_name
from cn_clip.devices import PRECISIONS, choose_precision, usable_device
from cn_clip.models.clip import CLIP


class TorchBackend:
    """A `CLIP` model in eval mode; see `Backend` for the attributes."""

    name = "torch"

    def __init__(self, model: CLIP) -> None:
        self.model = model.eval()
        self.size = model.config.vision.image_resolution
        self.width = model.config.vision.embed_dim
        self.context_limit = model.config.text.text_max_position_embeddings
        self.place = next(model.parameters()).device
        self.device = str(self.place)
        self.precision = next(name for name, dtype in PRECISIONS.items() if dtype == model.dtype)
        self.logit_scale = float(model.logit_scale.detach().float().exp())

    @classmethod
    def load(cls, name_or_path: str, device: str, precision: str, **options: Any) -> TorchBackend:
        """Load a model; `options` are further arguments of `cn_clip.clip.load_from_name`.

        Raises:
            UserError: no such model, device or precision.
        """
        place = usable_device(device)
        model, _ = load_from_name(name_or_path, place, precision=choose_precision(precision, place), **options)
        return cls(model)

    def encode_images(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """As `Backend.encode_images`."""
        with torch.inference_mode():
            return self.model.encode_image(torch.from_numpy(pixels).to(self.place)).float().cpu().numpy()

    def encode_texts(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """As `Backend.encode_texts`."""
        with torch.inference_mode():
            return self.model.encode_text(torch.from_numpy(ids).to(self.place)).float().cpu().numpy()

    def after_fork(self) -> None:
        """One thread: those that torch had started are not in a forked process, and it would wait for them."""
        torch.set_num_threads(1)
