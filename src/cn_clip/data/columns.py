"""Columns of Arrow tables (Parquet files, Hugging Face datasets): which hold pictures, captions and ids.

Pictures are bytes, or the struct {bytes, path} of Hugging Face's `Image`; captions a string or a list of strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cn_clip.errors import MissingExtra, UserError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes", "photo")
TEXT_NAMES = ("text", "caption", "captions", "texts", "txt", "title", "sentence", "sentences", "raw", "query")
IMAGE_ID_NAMES = ("image_id", "id", "key", "__key__")
TEXT_ID_NAMES = ("text_id", "text_ids", "caption_id")


class Columns(NamedTuple):
    """Names of columns; None: there is no such column."""

    image: str | None
    text: str | None
    image_id: str | None
    text_id: str | None


def arrow() -> Any:
    """The pyarrow package, with its Parquet part.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "reading Parquet and Arrow files") from None
    return pyarrow


def find_columns(schema: pa.Schema, where: str, wanted: dict[str, str] | None = None) -> Columns:
    """Choose the columns: those named in `wanted` (keys image, text, image_id, text_id), else by name and type.

    Names are tried in the order of the lists above, whatever their case; where no name fits, the only column of
    pictures is taken. Whether one that is missing is needed is for the caller to say.

    Raises:
        UserError: a column that was named is not there, or is of another type.
    """
    wanted = wanted or {}
    names = {name.lower(): name for name in reversed(schema.names)}
    checks = {"image": is_image, "text": is_text, "image_id": is_id, "text_id": is_text_id}
    lists = {"image": IMAGE_NAMES, "text": TEXT_NAMES, "image_id": IMAGE_ID_NAMES, "text_id": TEXT_ID_NAMES}
    expected = {
        "image": "bytes, or a struct of bytes and path",
        "text": "a string, or a list of strings",
        "image_id": "an integer or a string",
        "text_id": "an integer or a string, or a list of them",
    }
    found: dict[str, str | None] = {}
    for what, fits in checks.items():
        if name := wanted.get(what):
            if name not in schema.names:
                raise UserError(f"{where}: no column {name!r}; the columns are {describe(schema)}")
            kind = schema.field(name).type
            if not fits(kind):
                raise UserError(f"{where}: column {name!r} is {kind}, but the {what} must be {expected[what]}")
            found[what] = name
            continue
        candidates = [names[n] for n in lists[what] if n in names]
        found[what] = next((n for n in candidates if fits(schema.field(n).type)), None)
    if found["image"] is None:
        pictures = [field.name for field in schema if is_image(field.type)]
        found["image"] = pictures[0] if len(pictures) == 1 else None
    return Columns(**found)


def describe(schema: pa.Schema) -> str:
    """Names and types, for a message."""
    return ", ".join(f"{field.name} ({_short(field.type)})" for field in schema) or "none"


def is_image(kind: pa.DataType) -> bool:
    """Bytes, or a struct with a field `bytes` of them."""
    types = arrow().types
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_image(kind.field(index).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    """A string, or a list of strings."""
    types = arrow().types
    if _is_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_id(kind: pa.DataType) -> bool:
    """An integer or a string."""
    types = arrow().types
    return bool(types.is_integer(kind) or (is_text(kind) and not _is_list(kind)))


def is_text_id(kind: pa.DataType) -> bool:
    """An id, or a list of them (one a caption)."""
    return is_id(kind.value_type if _is_list(kind) else kind)


def image_bytes(column: pa.Array | pa.ChunkedArray) -> Iterator[bytes | None]:
    """The bytes of each picture; None where there are none (or only a path, see `image_paths`)."""
    if arrow().types.is_struct(column.type):
        column = _field(column, "bytes")
    return (cell.as_py() for cell in column)


def image_paths(column: pa.Array | pa.ChunkedArray) -> Iterator[str | None]:
    """The path in each picture's struct; None where there is none."""
    if not arrow().types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return (None for _ in range(len(column)))
    return (cell.as_py() for cell in _field(column, "path"))


def texts(value: Any) -> list[str]:
    """The captions in a cell: of None none, of a string one, of a list those that are not None."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [text for text in value if text is not None]


def _field(column: Any, name: str) -> Any:
    import pyarrow.compute as compute

    return compute.struct_field(column, name)  # keeps the struct's own nulls


def _is_list(kind: Any) -> bool:
    types = arrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _short(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 40 else text[:39] + "…"


def need(columns: Columns, what: Sequence[str], schema: pa.Schema, where: str) -> None:
    """Refuse a table without the columns `what` (of image, text).

    Raises:
        UserError: names what was looked for, and the columns there are.
    """
    kinds = {"image": ("pictures", IMAGE_NAMES), "text": ("captions", TEXT_NAMES)}
    for name in what:
        if getattr(columns, name) is None:
            kind, usual = kinds[name]
            raise UserError(
                f"{where}: no column of {kind} (named {', '.join(usual)}); name it with ?{name}=COLUMN; "
                f"the columns are {describe(schema)}"
            )
