"""Which pair an item of an epoch is: each pair once, or each image once with one of its texts drawn anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cn_clip.seeding import stable_hash


class EveryPair:
    """Item i of every epoch is pair i."""

    def __init__(self, num_pairs: int) -> None:
        self.num_items = num_pairs

    def pair(self, epoch: int, item: int) -> int:
        """The position of an item's pair."""
        return item


class EveryImage:
    """Item i of an epoch is the i-th image with one of its texts: a function of (seed, epoch, i).

    An epoch is then as long as there are images, however many texts some of them have; titles, which come
    first, need not drown among tags.

    Args:
        pairs: (image_id, text_id, text) of the whole split.
        first_text: probability of an image's first text; else any of its texts, each as likely.
        seed: of the draw.
    """

    def __init__(self, pairs: Iterable[tuple[Any, Any, str]], first_text: float, seed: int) -> None:
        places: dict[Any, int] = {}
        image = np.array([places.setdefault(image_id, len(places)) for image_id, _, _ in pairs], dtype=np.int64)
        self.order = np.argsort(image, kind="stable")  # pairs of image 0, of image 1, …
        self.start = np.searchsorted(image[self.order], np.arange(len(places) + 1))
        self.first_text, self.seed = first_text, seed
        self.num_items = len(places)

    def pair(self, epoch: int, item: int) -> int:
        """The position of the pair that an item is in this epoch."""
        start, end = self.start[item], self.start[item + 1]
        draw = stable_hash(self.seed, "text", epoch, item)
        if (draw % 2**20) / 2**20 < self.first_text:
            return int(self.order[start])
        return int(self.order[start + (draw >> 20) % (end - start)])
