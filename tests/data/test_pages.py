"""Places of a Parquet column's values: against pyarrow's own reading, and with damaged bytes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cn_clip.data.pages import Damaged, hybrid, is_addressable, value_places
from cn_clip.data.readers import open_images
from cn_clip.errors import UserError

CELLS = st.lists(st.one_of(st.none(), st.binary(max_size=12), st.sampled_from([b"", b"same"])), max_size=60)
OPTIONS = st.fixed_dictionaries(
    {
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "data_page_size": st.sampled_from([1, 40, 1 << 20]),
        "write_batch_size": st.sampled_from([1, 3, 1024]),
        "row_group_size": st.sampled_from([5, 1000]),
        "dictionary_pagesize_limit": st.sampled_from([1, 30, 1 << 20]),
        "write_statistics": st.booleans(),
        "write_page_checksum": st.booleans(),
    }
)


def table(cells: list[bytes | None], shape: str) -> pa.Table:
    if shape == "required":
        kept = [cell or b"" for cell in cells]
        return pa.table({"n": [1] * len(kept), "x": kept}, schema=pa.schema({"n": pa.int64()}).append(_required()))
    if shape == "struct":
        structs = [None if cell == b"same" else {"bytes": cell, "path": "p"} for cell in cells]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.table({"x": pa.array(structs, kind)})
    return pa.table({"x": pa.array(cells, pa.large_binary() if shape == "large" else pa.binary())})


def _required() -> pa.Field:
    return pa.field("x", pa.binary(), nullable=False)


@given(cells=CELLS, options=OPTIONS, shape=st.sampled_from(["plain", "large", "required", "struct"]))
@settings(deadline=None, max_examples=250)
def test_values_are_where_it_says(cells: list[bytes | None], options: dict[str, Any], shape: str) -> None:
    file = io.BytesIO()
    pq.write_table(table(cells, shape), file, compression="none", **options)
    content, parquet = file.getvalue(), pq.ParquetFile(file)
    leaf = next(i for i in range(len(parquet.metadata.schema)) if parquet.metadata.schema.column(i).path[0] == "x")
    found: list[bytes | None] = []
    for group in range(parquet.metadata.num_row_groups):
        column = parquet.metadata.row_group(group).column(leaf)
        assert is_addressable(column)
        level = parquet.metadata.schema.column(leaf).max_definition_level
        offsets, sizes = value_places(lambda at, size: content[at : at + size], column, level)
        found += [
            None if o < 0 else content[o : o + s] for o, s in zip(offsets.tolist(), sizes.tolist(), strict=True)
        ]
    expected = parquet.read().column("x").to_pylist()
    assert found == ([cell and cell["bytes"] for cell in expected] if shape == "struct" else expected)


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_bytes_are_one_line_or_do_not_matter(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cells = data.draw(st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=40)), min_size=1, max_size=30))
    options = data.draw(OPTIONS)
    file = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), file, compression="none", **options)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path: Path = tmp_path_factory.mktemp("damaged") / "a.parquet"
    path.write_bytes(content)
    for message in refusals(path):
        assert message.startswith(str(path))
        assert "\n" not in message


def refusals(path: Path) -> list[str]:
    """What is said about a file and its images; any other error than these is a failure."""
    said = []
    try:
        images = open_images(path)
    except UserError as error:
        return [str(error)]
    for image_id in images.ids():
        try:
            images[image_id]
        except UserError as error:
            said.append(str(error))
    return said


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_tars_likewise(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=data.draw(st.sampled_from([0, 1, 2]))) as archive:
        for name in ("a.jpg", "a.txt", "猫" * 30 + ".jpg", "猫" * 30 + ".json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.integers(0, 12)) * 512
        content[block + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        header = content[block : block + 512]  # with a checksum that fits, damage gets further
        header[148:156] = b" " * 8
        content[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    path: Path = tmp_path_factory.mktemp("damaged") / "a.tar"
    path.write_bytes(content)
    for message in refusals(path):
        assert message.startswith(str(path))
        assert "\n" not in message


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(0, 4))
def test_a_hybrid_that_ends_too_soon_is_refused(data: list[int], width: int) -> None:
    try:
        values = hybrid(bytes(data), width, 50)
    except Damaged:
        return
    assert len(values) == 50


def test_packed_and_repeated_values() -> None:
    """The example of the format's documentation: 0 … 7 in three bits; then a run of 300 fives."""
    packed = bytes([0b11, 0b10001000, 0b11000110, 0b11111010])
    assert hybrid(packed, 3, 8).tolist() == list(range(8))
    run = bytes([0b11011000, 0b100, 5])
    assert hybrid(packed + run, 3, 308).tolist() == [*range(8), *[5] * 300]
