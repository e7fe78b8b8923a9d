"""All pairs of 64-bit hashes that differ in at most so many bits: exact, without comparing all with all.

    for left, right, distance in near_pairs(hashes, radius=8): ...

Multi-index hashing (Norouzi, Punjani, Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing", 2014):
the 64 bits are cut into m bands, and radius R is shared out as r_1 + … + r_m = R - m + 1. Two hashes within R
differ in at most r_k bits of some band k, or they would differ in more than R: it is enough to look, in the table
of each band, at the places up to r_k bits away.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import comb
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Pairs: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]
Candidates: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint64]]

_BITS = 64
_FEWEST, _MOST = 3, 8  # bands: the table of a band of 22 bits has 4 million places, one of 8 bits 256
_AT_ONCE = 1 << 20  # candidate pairs


def near_pairs(hashes: npt.NDArray[np.uint64], radius: int) -> Iterator[Pairs]:
    """Every pair of `hashes` (uint64 [N]) within `radius` bits, once, in arrays of some size, in no special order.

    Yields:
        (indices, larger indices, bits in which they differ): int64 [P], int64 [P], uint8 [P].

    Raises:
        ValueError: the radius is not in 0 … 63.
    """
    if not 0 <= radius < _BITS:
        raise ValueError(f"radius must be 0 to {_BITS - 1}, not {radius}")
    if len(hashes) < 2:
        return
    shares = plan(len(hashes), radius)
    widths = [_BITS * (k + 1) // len(shares) - _BITS * k // len(shares) for k in range(len(shares))]
    bands = [(sum(widths[:k]), width, share) for k, (width, share) in enumerate(zip(widths, shares, strict=True))]
    for k, band in enumerate(bands):
        for left, right, difference in _candidates(hashes, *band):
            distance = popcount(difference)
            new = distance <= radius
            for shift, width, share in bands[:k]:  # an earlier band gave the pair already
                new &= popcount((difference >> np.uint64(shift)) & np.uint64((1 << width) - 1)) > share
            if new.any():
                a, b = left[new], right[new]
                yield np.minimum(a, b), np.maximum(a, b), distance[new]


def plan(count: int, radius: int) -> list[int]:
    """The radius of each band: the number of bands that is cheapest for `count` hashes spread evenly."""
    best, cheapest = [0] * _FEWEST, float("inf")  # enough for a radius below the number of bands
    for bands in range(_FEWEST, min(radius + 1, _MOST) + 1):
        width, spare = _BITS / bands, radius - bands + 1
        shares = [spare // bands + (k < spare % bands) for k in range(bands)]
        looks = sum(comb(int(width), bits) for share in shares for bits in range(share + 1))
        cost = looks * (count + 2 * count * count / 2**width) + bands * 2**width
        if cost < cheapest:
            best, cheapest = shares, cost
    return best


def popcount(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """The number of bits that are set."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(values)
    return popcount_by_table(values)


def popcount_by_table(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """The same with any NumPy, slower."""
    counts = np.zeros(values.shape, dtype=np.uint8)
    for shift in (0, 16, 32, 48):
        counts += _POPCOUNT16[(values >> np.uint64(shift)) & np.uint64(0xFFFF)]
    return counts


_POPCOUNT16 = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


def _candidates(hashes: npt.NDArray[np.uint64], shift: int, width: int, share: int) -> Iterator[Candidates]:
    """Pairs that differ in at most `share` bits of one band: (index, index, the bits that differ as uint64)."""
    codes = ((hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)).astype(np.int64)
    order = np.argsort(codes, kind="stable")
    codes, ordered = codes[order], hashes[order]
    ends = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=1 << width))])
    positions = np.arange(len(codes))
    for flipped in _flips(width, share):
        others = codes ^ flipped
        first, last = ends[others], ends[others + 1]
        # Each pair from one side only: within a place those behind, else from the place with the smaller number.
        counts = last - positions - 1 if flipped == 0 else np.where(codes < others, last - first, 0)
        starts = positions + 1 if flipped == 0 else first
        rows = np.flatnonzero(counts)
        for left, right in _expand(rows, starts[rows], counts[rows]):
            yield order[left], order[right], ordered[left] ^ ordered[right]


def _flips(width: int, share: int) -> Iterator[int]:
    for bits in range(share + 1):
        for places in combinations(range(width), bits):
            yield sum(1 << place for place in places)


def _expand(
    rows: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(row, start), (row, start + 1), … count times for each row, in arrays of about `_AT_ONCE` pairs."""
    totals = np.cumsum(counts)
    begin = 0
    while begin < len(rows):
        done = totals[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(totals, done + _AT_ONCE, side="right")))
        some = counts[begin:end]
        left = np.repeat(rows[begin:end], some)
        within = np.arange(len(left)) - np.repeat(np.cumsum(some) - some, some)
        yield left, np.repeat(starts[begin:end], some) + within
        begin = end
