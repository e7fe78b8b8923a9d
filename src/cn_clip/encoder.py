"""Encoder: pictures and sentences in, unit vectors out, in input order.

    encoder = Encoder.load("ViT-B-16")
    images = encoder.encode_images(["cat.jpg", open("dog.png", "rb").read(), a_pil_image])
    texts = encoder.encode_texts(["一只猫", "一只狗"])
    similarity = texts @ images.T

Pictures are decoded in threads while the model runs. Texts are sorted by length, so that a batch is no wider than
its longest text: padding costs as much as words do.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from cn_clip.clip import load_from_name
from cn_clip.config import CONTEXT_LENGTH
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.tokenizer import TokenBatch, Tokenizer, default_tokenizer
from cn_clip.transform import decode_image, load_image, normalise, resize

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]"
Vectors: TypeAlias = npt.NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")

TEXT_WINDOW = 8192  # texts sorted by length at a time


class Encoder:
    """A model in eval mode, ready to encode.

    Attributes:
        model: the two towers.
        size: pixels of the square image input.
        width: numbers in a vector.
        device: where the model runs.
    """

    def __init__(self, model: CLIP, tokenizer: Tokenizer | None = None, workers: int | None = None) -> None:
        """`workers` is the number of decoding threads: one a processor core, at most 16, if None."""
        self.model = model.eval()
        self.size = model.config.vision.image_resolution
        self.width = model.config.vision.embed_dim
        self.device = next(model.parameters()).device
        self.workers = max(1, workers or min(16, os.cpu_count() or 1))
        self._decoding = threading.Lock()
        self.tokenizer = tokenizer or default_tokenizer()

    @classmethod
    def load(
        cls,
        name_or_path: str,
        device: str = "auto",
        precision: str = "fp32",
        download_root: str | None = None,
        workers: int | None = None,
        **names: Any,
    ) -> Encoder:
        """Load a published model by name, or a checkpoint by path.

        Args:
            name_or_path: as in `cn_clip.clip.load_from_name`.
            device: auto (a GPU where there is one), or a torch device.
            precision: fp32, bf16 or fp16.
            download_root: where published weights are kept.
            workers: decoding threads.
            **names: `vision_model_name`, `text_model_name`, `input_resolution`, `use_modelscope` of
                `load_from_name`.

        Raises:
            UserError: no such model, or a file that does not hold its weights.
        """
        where = None if device == "auto" else device
        model, _ = load_from_name(name_or_path, where, download_root, precision=precision, **names)
        return cls(model, workers=workers)

    def encode_images(self, images: Iterable[ImageInput], batch_size: int = 32) -> Vectors:
        """Unit vectors float32 [N, width] of pictures: paths, encoded bytes, PIL pictures or uint8 [H, W, 3].

        One picture alone is a list of one.

        Raises:
            UserError: a picture cannot be decoded; the line has its path or its index.
        """
        return _stack(self.image_vectors(images, batch_size), self.width)

    def encode_texts(
        self, texts: Iterable[str], batch_size: int = 64, context_length: int = CONTEXT_LENGTH
    ) -> Vectors:
        """Unit vectors float32 [N, width] of texts; of one longer than `context_length` pieces, its beginning.

        One text alone is a list of one.

        Raises:
            UserError: an item is not a string (its index is said), or the tower takes no texts of that length.
        """
        batches = (vectors for vectors, _ in self.text_vectors(texts, batch_size, context_length))
        return _stack(batches, self.width)

    def image_vectors(self, images: Iterable[Any], batch_size: int = 32) -> Iterator[Vectors]:
        """The same, a batch at a time, for any number of pictures in constant memory.

        An item may also be a function that returns one of the kinds of picture: it is called in a decoding thread.
        """
        numbered = enumerate(_several(images))
        ahead = 2 * batch_size + self.workers
        for batch in _batched(_in_threads(self._pixels, numbered, self.workers, ahead), batch_size):
            pixels = torch.from_numpy(np.stack(batch)).to(self.device)
            with torch.inference_mode():
                vectors = _unit(self.model.encode_image(pixels))
            yield vectors  # outside: the mode must not reach the caller

    def text_vectors(
        self, texts: Iterable[str], batch_size: int = 64, context_length: int = CONTEXT_LENGTH
    ) -> Iterator[tuple[Vectors, TokenBatch]]:
        """The same, some thousands at a time, each with its tokens: `truncated` tells which texts were cut."""
        longest = self.model.config.text.text_max_position_embeddings
        if context_length > longest:
            raise UserError(f"context length {context_length}: this text tower takes {longest} at most")
        for window in _batched(_strings(_several(texts)), TEXT_WINDOW):
            tokens = self.tokenizer.encode(window, context_length, pad_to_longest=True)
            vectors = np.empty((len(window), self.width), dtype=np.float32)
            order = np.argsort(tokens.lengths, kind="stable")
            for start in range(0, len(window), batch_size):
                rows = order[start : start + batch_size]
                ids = torch.from_numpy(tokens.ids[rows]).to(self.device)
                with torch.inference_mode():
                    vectors[rows] = _unit(self.model.encode_text(ids))
            yield vectors, tokens

    def _pixels(self, numbered: tuple[int, Any]) -> Vectors:
        index, image = numbered
        where = f"image {index}"
        if callable(image):
            image = image()
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(f"{where}: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
            image = load_image(Image.fromarray(image), where)
        elif isinstance(image, (bytes, bytearray, memoryview)):
            image = decode_image(bytes(image), where)
        elif isinstance(image, (str, os.PathLike)):
            image = decode_image(image)
        elif isinstance(image, Image.Image):
            with self._decoding:  # a picture that PIL has only opened may be in the list twice
                image = load_image(image, where)
        else:
            raise UserError(f"{where}: expected a path, bytes, PIL picture or array, got {type(image).__name__}")
        return normalise(resize(image, self.size))


def _several(items: Iterable[T]) -> Iterable[T]:
    """One text, path or picture alone is a list of one: its characters or bytes are never what is meant."""
    alone = isinstance(items, (str, bytes, bytearray, os.PathLike, Image.Image))
    return [items] if alone else items  # type: ignore[list-item]


def _strings(texts: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {index}: expected a string, got {type(text).__name__}")
        yield text


def _unit(features: torch.Tensor) -> Vectors:
    return F.normalize(features.float(), dim=-1).cpu().numpy()


def _stack(batches: Iterable[Vectors], width: int) -> Vectors:
    return np.concatenate([np.empty((0, width), np.float32), *batches])


def _batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _in_threads(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """`map` in threads, in order, never more than `ahead` items in front of the consumer."""
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
