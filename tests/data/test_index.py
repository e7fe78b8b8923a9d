"""Tables of ids against a dictionary, and the side file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cn_clip.data import index as index_module
from cn_clip.data.formats import parse_ids
from cn_clip.data.index import IdBuilder, IdTable, Index

KEYS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1).map(str), max_size=30),
    st.lists(st.sampled_from(["1", "2", "30", "-4", "007", "x", "图", "\udc80", "1.0"]), max_size=12),
    st.lists(st.text(min_size=1, max_size=4), max_size=30),
    st.integers(0, 50).map(lambda n: [str(i) for i in range(n)]),
)


def table_of(keys: list[str]) -> IdTable:
    builder = IdBuilder()
    for key in keys:
        builder.add(key)
    assert len(builder) == len(keys)
    return IdTable(Index(builder.arrays("ids"), {}), "ids")


@given(keys=KEYS, strangers=st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=5))
@settings(deadline=None)
def test_a_table_is_a_dictionary(keys: list[str], strangers: list[int | str]) -> None:
    table, first = table_of(keys), {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    assert table.all() == [table[row] for row in range(len(table))] == parse_ids(keys)
    for key in [*keys, *strangers]:
        assert table.find(key) == first.get(str(key))
    again = [(row, first[key]) for row, key in enumerate(keys) if first[key] != row]
    assert table.duplicate() == (again[0] if again else None)


def test_strings_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "stable_hash", lambda key: len(str(key)))
    table = table_of(["aa", "bb", "c", "dd", "bb"])
    assert [table.find(key) for key in ("aa", "bb", "c", "dd", "ee", "f")] == [0, 1, 2, 3, None, None]
    assert table.duplicate() == (4, 1)


@given(st.lists(st.sampled_from(["<i8", "<u4", "|u1", "<u8"]), max_size=5), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_a_side_file_holds_what_was_put_there(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], count: int
) -> None:
    path: Path = tmp_path_factory.mktemp("side") / "x.index"
    arrays = {f"a{i}": np.arange(count * i, dtype=kind) for i, kind in enumerate(kinds)}
    key = {"kind": "图", "files": [["a", 1, 2]], "options": {}}
    index_module._save(path, key, arrays, {"n": 3})
    found = index_module._load(path, key)
    assert found is not None
    assert found.meta == {"n": 3}
    assert found.arrays.keys() == arrays.keys()
    for name, values in arrays.items():
        assert found.arrays[name].dtype == values.dtype
        assert found.arrays[name].tolist() == values.tolist()
    assert index_module._load(path, {**key, "kind": "other"}) is None
