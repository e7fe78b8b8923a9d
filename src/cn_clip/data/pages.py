"""Where the values of an uncompressed column of bytes are in a Parquet file: each is then read by itself.

pyarrow reads a row group as a whole, which may be the whole file; this reads the headers of its pages (Thrift's
compact protocol) and the lengths of the values, as the Parquet format defines them:
https://parquet.apache.org/docs/file-format/data-pages/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Read = Callable[[int, int], bytes]  # (offset, size)
_READABLE = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"}
_HEADER = 1 << 16  # bytes read for a page's header, which may hold statistics
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _RLE = 0, 3
_DICTIONARY_ENCODINGS = (2, 8)


class Damaged(Exception):
    """The bytes are not what the format says."""


def is_addressable(column: Any) -> bool:
    """Whether `value_places` reads this column chunk (pyarrow's metadata of it)."""
    return column.compression == "UNCOMPRESSED" and set(column.encodings) <= _READABLE and not column.file_path


def value_places(read: Read, column: Any, max_level: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Offset (-1: null) and size of each value of a column chunk; values themselves are not read.

    Args:
        read: gives bytes of the file.
        column: pyarrow's metadata of the chunk; it is not in a list.
        max_level: the definition level of a value that is not null.

    Raises:
        Damaged: the chunk is not what the metadata says.
    """
    starts = [column.data_page_offset]
    if column.has_dictionary_page and column.dictionary_page_offset:
        starts.append(column.dictionary_page_offset)
    at, rows = min(starts), 0
    end = at + column.total_compressed_size
    dictionary: tuple[Any, Any] | None = None
    found: list[tuple[Any, Any]] = []
    while rows < column.num_values:
        if at >= end:
            raise Damaged(f"{rows} of {column.num_values} values")
        page, length = _page_header(read, at, end)
        data = at + length
        at = data + page[3]
        if not data <= at <= end:
            raise Damaged("a page is longer than its column")
        if page[1] == _DICTIONARY:
            dictionary = _plain(read, data, at, page[7][1])
        elif page[1] in (_DATA, _DATA_V2):
            places = _data_page(read, page, data, at, max_level, dictionary, column.num_values - rows)
            rows += len(places[0])
            found.append(places)
    if rows != column.num_values:
        raise Damaged(f"{rows} values in place of {column.num_values}")
    empty = (np.empty(0, np.int64), np.empty(0, np.uint32))
    offsets, sizes = zip(*found or [empty], strict=True)
    return np.concatenate(offsets), np.concatenate(sizes)


def _data_page(
    read: Read,
    page: dict[int, Any],
    data: int,
    end: int,
    max_level: int,
    dictionary: tuple[Any, Any] | None,
    most: int,
) -> tuple[Any, Any]:
    width = max_level.bit_length()
    count, encoding = (page[5][1], page[5][2]) if page[1] == _DATA else (page[8][1], page[8][4])
    if not 0 <= count <= most:
        raise Damaged(f"a page of {count} values, where {most} are left")
    if page[1] == _DATA:
        present = np.ones(count, bool)
        if max_level:
            if page[5][3] != _RLE:
                raise Damaged("levels in an encoding that nobody writes any more")
            size = int.from_bytes(_slice(read, data, 4, end), "little")
            levels = _slice(read, data + 4, size, end)
            present = hybrid(levels, width, count) == max_level
            data += 4 + size
    else:
        levels = _slice(read, data + page[8][6], page[8][5], end)
        present = hybrid(levels, width, count) == max_level if max_level else np.ones(count, bool)
        data += page[8][6] + page[8][5]
    values = int(present.sum())
    if encoding == _PLAIN:
        places, lengths = _plain(read, data, end, values)
    elif encoding in _DICTIONARY_ENCODINGS and dictionary is not None:
        content = _slice(read, data, end - data, end)
        indices = hybrid(content[1:], content[0], values) if values else np.empty(0, np.int64)
        if values and int(indices.max()) >= len(dictionary[0]):
            raise Damaged("a value is not in the dictionary")
        places, lengths = dictionary[0][indices], dictionary[1][indices]
    else:
        raise Damaged(f"a page of encoding {encoding}")
    offsets, sizes = np.full(count, -1, np.int64), np.zeros(count, np.uint32)
    offsets[present], sizes[present] = places, lengths
    return offsets, sizes


def _plain(read: Read, data: int, end: int, count: int) -> tuple[Any, Any]:
    if not 0 <= count <= (end - data) // 4:
        raise Damaged(f"{count} values in {end - data} bytes")
    offsets, sizes = np.empty(count, np.int64), np.empty(count, np.uint32)
    for i in range(count):
        size = int.from_bytes(_slice(read, data, 4, end), "little")
        offsets[i], sizes[i] = data + 4, size
        data += 4 + size
        if data > end:
            raise Damaged("a value is longer than its page")
    return offsets, sizes


def _slice(read: Read, offset: int, size: int, end: int) -> bytes:
    if size < 0 or offset + size > end:
        raise Damaged("a page is too short")
    return read(offset, size)


def hybrid(data: bytes, width: int, count: int) -> npt.NDArray[np.int64]:
    """`count` integers of `width` bits, in runs and packed groups of eight (the format's RLE/bit-packing hybrid).

    Raises:
        Damaged: there are fewer.
    """
    found: list[Any] = []
    at, have = 0, 0
    while have < count:
        header, at = _varint(data, at)
        if header & 1:
            size = (header >> 1) * width
            packed = np.frombuffer(data[at : at + size], np.uint8)
            if len(packed) < size:
                raise Damaged("packed values are cut short")
            bits = np.unpackbits(packed, bitorder="little").reshape(-1, width) if width else None
            values = bits @ (1 << np.arange(width)) if bits is not None else np.zeros((header >> 1) * 8, np.int64)
        else:
            size = (width + 7) // 8
            run = min(header >> 1, count - have)
            if run == 0 or at + size > len(data):
                raise Damaged("a run of values is cut short")
            values = np.full(run, int.from_bytes(data[at : at + size], "little"), np.int64)
        at += size
        found.append(values)
        have += len(values)
        if len(values) == 0:
            raise Damaged("an empty group of values")
    return np.concatenate(found)[:count] if found else np.empty(0, np.int64)


def _page_header(read: Read, at: int, end: int) -> tuple[dict[int, Any], int]:
    """The fields of a page's header by number, and its length in bytes."""
    for most in (_HEADER, 1 << 24):
        data = read(at, min(most, end - at))
        try:
            fields, length = _struct(data, 0)
        except IndexError:
            continue
        needed = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(fields.get(1, -1))
        if {1, 2, 3} <= set(fields) and fields[3] >= 0 and (needed is None or needed in fields):
            return fields, length
        break
    raise Damaged(f"no page header at byte {at}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    raise Damaged("a number is cut short") if data else Damaged("no values")


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    fields: dict[int, Any] = {}
    number = 0
    while True:
        byte = data[at]
        at += 1
        if byte == 0:
            return fields, at
        if byte >> 4:
            number += byte >> 4
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, byte & 15, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > 8:
        raise Damaged("a page header is nested too deep")
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _number(data, at)
        return data[at : at + size], at + size
    if kind in (9, 10):
        head = data[at]
        at += 1
        size = head >> 4
        if size == 15:
            size, at = _number(data, at)
        items = []
        for _ in range(size):
            item, at = _value(data, at, head & 15, depth + 1)
            items.append(item)
        return items, at
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise Damaged("a page header of unknown content")


def _number(data: bytes, at: int) -> tuple[int, int]:
    try:
        return _varint(data, at)
    except Damaged:
        raise IndexError from None  # more bytes may help


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _number(data, at)
    return (value >> 1) ^ -(value & 1), at
