"""Threads give what `map` gives, in order, no further ahead than allowed, and stop when asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cn_clip.parallel import map_in_threads, threads_or_default


@given(st.lists(st.integers(), max_size=40), st.integers(1, 4), st.integers(1, 9))
def test_same_as_map(items: list[int], workers: int, ahead: int) -> None:
    assert list(map_in_threads(lambda x: x * 2, items, workers, ahead)) == [x * 2 for x in items]


def test_order_does_not_depend_on_who_is_done_first() -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))
        return number

    assert list(map_in_threads(slow_when_even, range(20), 4, 8)) == list(range(20))


@pytest.mark.parametrize("ahead", [1, 3, 7])
def test_never_further_ahead_than_allowed(ahead: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(30):
            drawn += 1
            yield number

    taken = 0
    for _ in map_in_threads(abs, items(), 2, ahead):
        assert drawn - taken <= ahead
        taken += 1
    assert taken == 30


def test_work_is_done_in_that_many_threads() -> None:
    meeting = threading.Barrier(3, timeout=10)  # passes only when three are there at once
    assert len(list(map_in_threads(lambda _: meeting.wait(), range(3), 3, 3))) == 3


def test_error_comes_where_its_result_would_have() -> None:
    results = map_in_threads(lambda x: 1 // x, [1, 1, 0, 1], 2, 4)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_has_not_begun_is_not_done_after_a_stop() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.02)
        done.append(number)
        return number

    results = map_in_threads(work, range(100), 1, 50)
    next(results)
    results.close()
    count = len(done)
    assert count < 50
    time.sleep(0.1)
    assert len(done) == count


def test_default_is_one_a_core() -> None:
    assert threads_or_default(3) == 3
    assert threads_or_default(0) == threads_or_default(-1) >= 1
