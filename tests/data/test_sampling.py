"""An epoch of every image once, with one of its texts: against a plain list of what an image's texts are."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cn_clip.data.sampling import EveryImage, EveryPair


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 9))
def test_every_image_once_with_a_text_of_its_own(images: list[int], first_text: float, seed: int) -> None:
    pairs = [(image, i, f"text {i}") for i, image in enumerate(images)]
    sampling = EveryImage(pairs, first_text, seed)
    assert sampling.num_items == len(set(images))
    for epoch in range(3):
        chosen = [sampling.pair(epoch, item) for item in range(sampling.num_items)]
        assert sorted(pairs[i][0] for i in chosen) == sorted(set(images))
        assert chosen == [sampling.pair(epoch, item) for item in range(sampling.num_items)]


def test_first_text_is_as_likely_as_said() -> None:
    pairs = [(i % 50, i, "") for i in range(200)]  # four texts each, the first is pair i
    for wanted, share in ((1.0, 1.0), (0.5, 0.5 + 0.5 / 4), (0.0, 0.25)):
        sampling = EveryImage(pairs, wanted, seed=3)
        first = sum(sampling.pair(epoch, item) < 50 for epoch in range(40) for item in range(50))
        assert first / 2000 == pytest.approx(share, abs=0.04)
    drawn: dict[int, Counter[int]] = defaultdict(Counter)
    for epoch in range(60):
        drawn[0][EveryImage(pairs, 0.0, 3).pair(epoch, 0)] += 1
    assert set(drawn[0]) == {0, 50, 100, 150}  # every text has its turn


def test_every_pair_is_itself() -> None:
    sampling = EveryPair(7)
    assert [sampling.pair(2, i) for i in range(sampling.num_items)] == list(range(7))
