"""What an encoder may be given: pictures of every kind and texts, each with its index; and what comes back.

read = PictureReader(224)
read((0, "cat.jpg"))        # uint8 [224, 224, 3], or the BadItem that says what is wrong with it
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import IO, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from cn_clip.errors import UserError
from cn_clip.transform import decode_image, load_image, normalise, resize

ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | npt.NDArray[np.uint8]"
)
Vectors: TypeAlias = npt.NDArray[np.float32]
T = TypeVar("T")


class BadItem(UserError):
    """An item that cannot be encoded; the message is one line with its index and the reason.

    Attributes:
        index: its place among the items, from 0.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return BadItem, (self.index, str(self))  # or it could not cross from a worker process


class Encoded(NamedTuple):
    """What became of some items when bad ones are skipped.

    Attributes:
        vectors: float32 [M, D], unit vectors of the good ones, in input order.
        indices: int64 [M]: which items they are.
        errors: the others.
    """

    vectors: Vectors
    indices: npt.NDArray[np.int64]
    errors: list[BadItem]


class PictureReader:
    """(index, picture) -> normalised pixels; many threads may use one.

    `fast` decodes JPEG at a smaller scale and resizes with torch's kernel for 8 bits: not quite the same pixels.
    """

    def __init__(self, size: int, fast: bool = False) -> None:
        self.size = size
        self.fast = fast
        self._decoding = threading.Lock()

    def after_fork(self) -> None:
        """Another thread of the old process may have held the lock, and does not exist here."""
        self._decoding = threading.Lock()

    def __call__(self, numbered: tuple[int, Any]) -> Vectors | BadItem:
        """float32 [3, size, size], or what is wrong with the picture.

        A function is called for the picture; what it raises as a UserError it has said in its own words.
        """
        index, item = numbered
        where = f"image {index}"
        try:
            image = self._opened(item() if callable(item) else item, where)
            return normalise(resize(image, self.size, self.fast))
        except UserError as error:
            return BadItem(index, str(error))
        except (OSError, ValueError) as error:  # a mode that Pillow cannot convert
            return BadItem(index, f"{where}: cannot make RGB pixels of it: {error}")

    def _opened(self, item: Any, where: str) -> Image.Image:
        at_least = self.size if self.fast else None
        if isinstance(item, Image.Image):
            with self._decoding:  # a picture that PIL has only opened may be in the list twice
                return load_image(item, where)
        if isinstance(item, np.ndarray):
            return load_image(_from_array(item, where), where)
        if hasattr(item, "read"):
            with self._decoding:
                item = item.read()
        if isinstance(item, (bytes, bytearray, memoryview)):
            return decode_image(bytes(item), where, at_least)
        if isinstance(item, (str, os.PathLike)):
            return decode_image(item, f"{where}: {os.fspath(item)}", at_least)
        kind = type(item).__name__
        hint = " (of a tensor, give its uint8 values as an array)" if kind == "Tensor" else ""
        raise UserError(f"{where}: expected a path, bytes, a file, a PIL picture or an array, got {kind}{hint}")


def _from_array(array: npt.NDArray[Any], where: str) -> Image.Image:
    """uint8 [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA) as a picture."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise UserError(
            f"{where}: expected uint8 [H, W, 3] (or 1 or 4 channels, or [H, W]), "
            f"got {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def several(items: Iterable[T]) -> Iterable[T]:
    """One text, path or picture alone is a list of one: its characters, bytes or rows are never what is meant."""
    alone = isinstance(items, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image))
    if isinstance(items, np.ndarray):
        alone = items.ndim == 2 or (items.ndim == 3 and items.shape[2] in (1, 3, 4))
    return [items] if alone else items  # type: ignore[list-item]


def check_text(index: int, text: Any) -> BadItem | None:
    """What is wrong with a text, if anything."""
    if isinstance(text, str):
        return None
    return BadItem(index, f"text {index}: expected a string, got {type(text).__name__}")
