"""Which split an item goes to: the source's own, or by a hash of its image, caption or group."""

from __future__ import annotations

from typing import Literal

from cn_clip.data.imports.rows import split_name
from cn_clip.errors import UserError
from cn_clip.seeding import stable_hash

SplitBy = Literal["image", "text", "group"]


class Splitter:
    """Assigns splits; the same seed and the same content give the same split, whatever else is imported.

    Attributes:
        weights: name -> share (adding up to 1) when splits are drawn; empty when the source tells them.
        by: what is hashed. The picture's bytes (so that copies of a picture are in one split), its first caption,
            or its group.
        names: the splits wanted of those that the source tells; empty: all.
    """

    def __init__(self, splits: str, by: SplitBy = "image", seed: int = 0) -> None:
        self.by, self.seed = by, seed
        self.weights: dict[str, float] = {}
        self.names: list[str] = []
        items = [item.strip() for item in splits.split(",") if item.strip()]
        for item in items:
            name, equals, share = item.partition("=")
            name = split_name(name)
            if name in self.weights or name in self.names:
                raise UserError(f"--splits: {name} stands there twice")
            if equals:
                self.weights[name] = _share(share, item)
            else:
                self.names.append(name)
        if self.weights and self.names:
            raise UserError(f"--splits {splits}: give all splits a share (train=0.9,valid=0.1), or none")
        total = sum(self.weights.values())
        self.weights = {name: share / total for name, share in self.weights.items()}

    def told(self, name: str) -> str | None:
        """The split of a row for which the source says `name` (empty: nothing); None: it is not wanted."""
        if not name:
            return self.names[0] if len(self.names) == 1 else "train" if not self.names else None
        return name if not self.names or name in self.names else None

    def image(self, digest: bytes, texts: list[tuple[str, str | None]], group: str) -> str:
        """The split drawn for an image."""
        if self.by == "text":
            return self.text(texts[0][0])
        return self._draw(f"group {group}" if self.by == "group" and group else digest.hex())

    def text(self, text: str) -> str:
        """The split drawn for a caption."""
        return self._draw(f"text {text}")

    def _draw(self, what: str) -> str:
        point = stable_hash(self.seed, what) / 2**63
        for name, share in self.weights.items():
            point -= share
            if point < 0:
                return name
        return name  # rounding


def _share(value: str, item: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1
    if not 0 < share < float("inf"):
        raise UserError(f"--splits: {item}: expected a share above 0, such as train=0.8")
    return share
