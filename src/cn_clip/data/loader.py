"""Batches of image-text pairs for training, and the distinct images and texts of a validation split.

The order is the documented one: pairs are padded to whole global batches with the first ones, then shuffled
by `DistributedSampler` with (seed + epoch). What augmentation does to a pair is a function of (seed, epoch,
index), so neither the number of workers nor a restart changes a batch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from cn_clip.augment import LightAugment, flip, timm_augment
from cn_clip.augment_drawing import DrawingAugment
from cn_clip.data.readers import SplitReader, open_split
from cn_clip.data.sampling import EveryImage, EveryPair
from cn_clip.errors import UserError
from cn_clip.seeding import stable_hash
from cn_clip.tokenizer import default_tokenizer
from cn_clip.transform import decode_image, normalise, resize

Augment = Literal["none", "timm", "light", "drawing", "flip"]
_ODD = 0x1F123BB5159A55E5  # mixes two 63-bit keys into one


@dataclass(frozen=True)
class Batch:
    """N image-text pairs.

    Attributes:
        images: float32 [N, 3, R, R], normalised.
        texts: int64 [N, L], padded with 0.
        image_keys, text_keys: int64 [N]: equal where image ids, or texts, are.
        indices: int64 [N]: which pairs of the split they are.
    """

    images: Tensor
    texts: Tensor
    image_keys: Tensor
    text_keys: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (asked by the data loader)."""
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


class ImageSource:
    """Images of a split by id, decoded and resized; as many of them kept as `cache_bytes` hold."""

    def __init__(self, reader: SplitReader, size: int, cache_bytes: int = 0) -> None:
        self.reader = reader
        self.size = size
        self.room = cache_bytes // (size * size * 3)
        self.cache: dict[Any, npt.NDArray[np.uint8]] = {}

    def decode(self, image_id: int | str) -> Any:
        """The PIL picture of an id.

        Raises:
            UserError: no such image, or one that cannot be decoded; names the id.
        """
        return decode_image(self.reader.images[image_id], self.reader.images.where(image_id))

    def pixels(self, image_id: int | str) -> npt.NDArray[np.uint8]:
        """uint8 [size, size, 3]; raises as `decode`."""
        pixels = self.cache.get(image_id)
        if pixels is None:
            pixels = resize(self.decode(image_id), self.size)
            if len(self.cache) < self.room:
                self.cache[image_id] = pixels
        return pixels


class PairDataset(Dataset[Any]):
    """The pairs of a split, fetched a batch at a time by (epoch, index); indices wrap around."""

    def __init__(
        self,
        path: Path,
        size: int,
        context_length: int,
        augment: Augment = "none",
        seed: int = 0,
        cache_bytes: int = 0,
        first_text: float | None = None,
    ) -> None:
        """`first_text` None makes an epoch of every pair, a number one of every image (`sampling.EveryImage`)."""
        self.reader = open_split(path)
        self.num_pairs = len(self.reader.pairs)
        self.images = ImageSource(self.reader, size, cache_bytes)
        self.context_length = context_length
        self.augment = augment
        self.seed = seed
        self._timm: Any = None
        if self.num_pairs == 0:
            raise UserError(f"{path}: no image-text pairs in this split")
        self.sampling: EveryPair | EveryImage = EveryPair(self.num_pairs)
        if first_text is not None:
            self.sampling = EveryImage(self.reader.pairs, first_text, seed)
        self.num_items = self.sampling.num_items

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch | UserError:
        """The batch, or what is wrong with it: an error cannot cross from a worker as one line otherwise."""
        try:
            return self.batch(items)
        except UserError as error:
            return UserError(str(error))

    def batch(self, items: list[tuple[int, int]]) -> Batch:
        """The pairs of some (epoch, index).

        Raises:
            UserError: an image is missing or cannot be decoded; names its id.
        """
        chosen = [self.sampling.pair(epoch, index % self.num_items) for epoch, index in items]
        pairs = [self.reader.pairs[i] for i in chosen]
        image_ids, _, texts = zip(*pairs, strict=True)
        seeds = [stable_hash(self.seed, epoch, index) for epoch, index in items]
        return Batch(
            self._pictures(image_ids, seeds),
            torch.from_numpy(default_tokenizer().encode(texts, self.context_length).ids),
            torch.tensor([stable_hash(i) for i in image_ids]),
            torch.tensor([stable_hash(t) for t in texts]),
            torch.tensor(chosen),
        )

    def _pictures(self, image_ids: tuple[int | str, ...], seeds: list[int]) -> Tensor:
        if self.augment == "timm":
            if self._timm is None:
                self._timm = timm_augment(self.images.size)
            pictures = [self._timm(self.images.decode(i), seed) for i, seed in zip(image_ids, seeds, strict=True)]
            return torch.stack(pictures)
        pixels = np.stack([self.images.pixels(i) for i in image_ids])
        if self.augment == "light":
            return LightAugment()(pixels, seeds)
        if self.augment == "drawing":
            return DrawingAugment()(pixels, seeds)
        if self.augment == "flip":
            pixels = flip(pixels, seeds)
        return torch.from_numpy(normalise(pixels))

    def known_pairs(self) -> Tensor:
        """The keys (`pair_keys`) of all pairs, int64, sorted: what makes a pair known to be right."""
        keys = [(stable_hash(image_id), stable_hash(text)) for image_id, _, text in self.reader.pairs]
        table = torch.tensor(keys)
        return pair_keys(table[:, 0], table[:, 1]).unique()


def pair_keys(image_keys: Tensor, text_keys: Tensor) -> Tensor:
    """One int64 key of each (image, text), broadcasting; overflow wraps around, as in any hash."""
    return image_keys * _ODD + text_keys


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """(epoch, index) lists of all batches from batch `skip` of epoch `first` to the end of epoch `last` - 1.

    All epochs are one sequence, so that workers already read the next epoch while the model validates.
    """

    def __init__(
        self, sampler: DistributedSampler[Any], batch_size: int, used: int, first: int, skip: int, last: int
    ) -> None:
        self.sampler, self.batch_size, self.used = sampler, batch_size, used
        self.first, self.skip, self.last = first, skip, last

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.first, self.last):
            self.sampler.set_epoch(epoch)
            order = list(self.sampler)
            for i in range(self.skip if epoch == self.first else 0, self.used):
                yield [(epoch, index) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]


class TrainLoader:
    """Training batches of one process.

    Attributes:
        num_samples: pairs of an epoch over all processes, padded to whole global batches.
        num_batches: batches of an epoch of this process.
    """

    def __init__(
        self,
        dataset: PairDataset,
        batch_size: int,
        num_workers: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.num_samples = padded(dataset.num_items, batch_size * world_size)
        self.num_batches = self.num_samples // (batch_size * world_size)
        self.pin_memory = pin_memory
        self.sampler = shuffled(self.num_samples, seed, rank, world_size)

    def batches(self, first_epoch: int, skip: int, last_epoch: int, used: int) -> Iterator[Batch]:
        """The first `used` batches of each epoch, from batch `skip` of `first_epoch` on.

        Raises:
            UserError: a pair cannot be read, or a worker died.
        """
        order = BatchOrder(self.sampler, self.batch_size, used, first_epoch, skip, last_epoch)
        yield from load(self.dataset, order, self.num_workers, self.pin_memory)


class ValidationData:
    """A validation split: its distinct images and texts, and which of them are pairs.

    Attributes:
        image_ids, texts: the distinct ones, in the order in which they first occur.
        pairs: int64 [P, 2]: for every pair, the positions of its image and its text in those lists.
    """

    def __init__(self, path: Path, size: int, context_length: int, batch_size: int, workers: int) -> None:
        self.reader = open_split(path)
        if len(self.reader.pairs) == 0:
            raise UserError(f"{path}: no image-text pairs in this split")
        images: dict[int | str, int] = {}
        texts: dict[str, int] = {}
        rows = []
        for image_id, _, text in self.reader.pairs:
            rows.append((images.setdefault(image_id, len(images)), texts.setdefault(text, len(texts))))
        self.image_ids, self.texts = list(images), list(texts)
        self.pairs = np.array(rows, dtype=np.int64)
        self.size, self.context_length = size, context_length
        self.batch_size, self.workers = batch_size, workers

    def image_batches(self) -> Iterator[Tensor]:
        """float32 [N, 3, R, R], all distinct images in order; raises UserError as `ImageSource.decode`."""
        dataset = _Images(ImageSource(self.reader, self.size), self.image_ids)
        blocks = np.array_split(np.arange(len(self.image_ids)), ceil(len(self.image_ids) / self.batch_size))
        yield from load(dataset, [block.tolist() for block in blocks], self.workers, False)

    def text_batches(self) -> Iterator[Tensor]:
        """int64 [N, L], all distinct texts in order."""
        for start in range(0, len(self.texts), self.batch_size):
            block = self.texts[start : start + self.batch_size]
            yield torch.from_numpy(default_tokenizer().encode(block, self.context_length, True).ids)


class _Images(Dataset[Any]):
    def __init__(self, source: ImageSource, ids: list[int | str]) -> None:
        self.source, self.ids = source, ids

    def __getitems__(self, indices: list[int]) -> Tensor | UserError:
        try:
            pixels = np.stack([self.source.pixels(self.ids[i]) for i in indices])
        except UserError as error:
            return UserError(str(error))
        return torch.from_numpy(normalise(pixels))


def padded(samples: int, multiple: int) -> int:
    """`samples` rounded up to whole batches."""
    return ceil(samples / multiple) * multiple


def shuffled(samples: int, seed: int, rank: int = 0, world_size: int = 1) -> DistributedSampler[Any]:
    """The documented order of `samples` indices for one process; `set_epoch` chooses the epoch."""
    return DistributedSampler(range(samples), world_size, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]


def load(dataset: Any, batches: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    """What `dataset` makes of each list of items in `batches`, read ahead by worker processes.

    Raises:
        UserError: one that the dataset returned, or a worker died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_quiet_worker,
        pin_memory=pin_memory,
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            f"a data worker was killed ({str(error).splitlines()[0]}); out of memory? try fewer --num-workers"
        ) from None


def _identity(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    """Ctrl-C is for the main process to handle; the tokenizer must not start threads in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
