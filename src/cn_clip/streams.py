"""Any number of pictures and texts -> unit vectors, a batch at a time, in constant memory.

    for vectors in encoder.image_vectors(a_generator): ...
    for vectors, tokens in encoder.text_vectors(a_generator): ...

Pictures are decoded in threads while the model runs. Texts are sorted by length, some thousands at a time, so that
a batch is no wider than its longest text, and holds as many as fill it: padding costs as much as words do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, Literal, TypeAlias

import numpy as np

from cn_clip.backends import Backend
from cn_clip.backends.torch import TorchBackend
from cn_clip.batching import batched, by_length
from cn_clip.config import CONTEXT_LENGTH
from cn_clip.errors import UserError
from cn_clip.inputs import BadItem, Encoded, PictureReader, Vectors, check_text, several
from cn_clip.models.clip import CLIP
from cn_clip.parallel import map_in_threads
from cn_clip.scores import unit
from cn_clip.tokenizer import TokenBatch, Tokenizer, default_tokenizer

OnError: TypeAlias = Literal["raise", "skip"]

TEXT_WINDOW = 8192  # texts sorted by length at a time


class Streams:
    """A backend with its tokenizer and its reader of pictures; what `Encoder` is made of."""

    def __init__(
        self,
        model: CLIP | Backend,
        tokenizer: Tokenizer | None = None,
        workers: int | None = None,
        fast_decode: bool = False,
    ) -> None:
        """`workers` is the number of decoding threads: one a processor core, at most 16, if None."""
        self.backend: Backend = TorchBackend(model) if isinstance(model, CLIP) else model
        self.size, self.width = self.backend.size, self.backend.width
        self.device, self.precision = self.backend.device, self.backend.precision
        self.workers = max(1, workers or min(16, os.cpu_count() or 1))
        self.tokenizer = tokenizer or default_tokenizer()
        self.fast_decode = fast_decode
        self._read = PictureReader(self.size, fast_decode)
        self._process = os.getpid()

    def image_vectors(self, images: Iterable[Any], batch_size: int = 32) -> Iterator[Vectors]:
        """Unit vectors a batch at a time, for any number of pictures in constant memory.

        An item may also be a function that returns one of the kinds of picture: it is called in a decoding thread.
        """
        return (batch.vectors for batch in self.image_batches(images, batch_size))

    def image_batches(
        self, images: Iterable[Any], batch_size: int = 32, on_error: OnError = "raise"
    ) -> Iterator[Encoded]:
        """The same, with the indices of `batch_size` pictures at a time, and what is wrong with skipped ones."""
        self.survive_fork()
        ahead = 2 * batch_size + self.workers
        first = 0
        with closing(map_in_threads(self._read, enumerate(several(images)), self.workers, ahead)) as read:
            for batch in batched(checked(read, on_error), batch_size):
                bad = [item for item in batch if isinstance(item, BadItem)]
                good = [i for i, item in enumerate(batch, first) if not isinstance(item, BadItem)]
                vectors = np.empty((0, self.width), np.float32)
                if good:
                    pixels = np.stack([item for item in batch if not isinstance(item, BadItem)])
                    vectors = unit(self.backend.encode_images(pixels))
                first += len(batch)
                yield Encoded(vectors, np.array(good, dtype=np.int64), bad)

    def text_vectors(
        self, texts: Iterable[str], batch_size: int = 64, context_length: int | None = None
    ) -> Iterator[tuple[Vectors, TokenBatch]]:
        """Unit vectors some thousands at a time, in constant memory, each time with the texts' tokens.

        `truncated` of them tells which texts were cut. Arguments and errors: see `encode_texts`.
        """
        for encoded, tokens in self.text_batches(texts, batch_size, context_length, "raise"):
            yield encoded.vectors, tokens

    def text_batches(
        self, texts: Iterable[Any], batch_size: int, context_length: int | None, on_error: OnError
    ) -> Iterator[tuple[Encoded, TokenBatch]]:
        self.survive_fork()
        length = self.context(context_length)
        for window in batched(enumerate(several(texts)), TEXT_WINDOW):
            rows = [(index, text, check_text(index, text)) for index, text in window]
            errors = list(checked((error for _, _, error in rows if error), on_error))
            good = [(index, text) for index, text, error in rows if not error]
            tokens = self.tokenizer.encode([text for _, text in good], length, pad_to_longest=True)
            vectors = self.encode_ids(tokens, batch_size * length)
            yield Encoded(vectors, np.array([index for index, _ in good], dtype=np.int64), errors), tokens

    def encode_ids(self, tokens: TokenBatch, budget: int) -> Vectors:
        vectors = np.empty((len(tokens.ids), self.width), dtype=np.float32)
        lengths = np.minimum(tokens.lengths, tokens.ids.shape[1])
        for rows in by_length(lengths, budget):
            vectors[rows] = unit(self.backend.encode_texts(tokens.ids[rows, : lengths[rows[-1]]]))
        return vectors

    def context(self, length: int | None) -> int:
        longest = self.backend.context_limit
        if length is None:
            return min(CONTEXT_LENGTH, longest)
        if length > longest:
            raise UserError(f"context length {length}: this text tower takes {longest} at most")
        return length

    def survive_fork(self) -> None:
        """In a forked process: no lock, and no thread of another library, that only the old process could free."""
        if self._process != os.getpid():
            self._process = os.getpid()
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            self._read.after_fork()
            self.backend.after_fork()


def checked(items: Iterable[Any], on_error: OnError) -> Iterator[Any]:
    """The items; the first bad one is raised, unless they are skipped."""
    if on_error not in ("raise", "skip"):
        raise UserError(f"on_error is raise or skip, not {on_error!r}")
    for item in items:
        if on_error == "raise" and isinstance(item, BadItem):
            raise item
        yield item
