"""The fingerprint survives what keeps a picture's look, and tells other pictures apart; the search is exact."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from cn_clip.data import hamming
from cn_clip.data.formats import decode_base64, read_images
from cn_clip.data.hamming import near_pairs, plan, popcount
from cn_clip.data.phash import _cosines, fingerprint, flattened, tiny_difference
from cn_clip.transform import decode_image

EMOJI = Path(__file__).resolve().parents[2] / "datasets" / "emoji_cn" / "test_imgs.tsv"


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    rows = list(read_images(EMOJI))[::10]
    return [decode_image(decode_base64(row.base64, row.image_id)).convert("RGB") for row in rows]


def scene(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    """Large soft spots of colour, as a photograph out of focus."""
    spots = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


SAME_LOOK: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: saved(image, "JPEG", quality=60),
    "webp": lambda image: saved(image, "WEBP", quality=60),
    "png": lambda image: saved(image, "PNG"),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "double": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BILINEAR),
    "narrower": lambda image: image.resize((image.width, image.height * 9 // 10), Image.Resampling.LANCZOS),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.93),
    "saturation": lambda image: ImageEnhance.Color(image).enhance(0.95),
}


def far(left: Image.Image, right: Image.Image) -> tuple[int, int]:
    """(bits, colour) between two pictures."""
    (a, tiny_a), (b, tiny_b) = fingerprint(left), fingerprint(right)
    tinies = [np.frombuffer(tiny, np.uint8)[None] for tiny in (tiny_a, tiny_b)]
    return (a ^ b).bit_count(), int(tiny_difference(*tinies)[0])


@pytest.mark.parametrize("change", SAME_LOOK)
def test_survives_what_keeps_the_look(change: str, drawings: list[Image.Image]) -> None:
    images = [*drawings, *(scene(seed) for seed in range(20))]
    distances = [far(image, SAME_LOOK[change](image)) for image in images]
    found = [bits <= 6 and colour <= 16 for bits, colour in distances]
    assert sum(found) >= 0.96 * len(found), distances


def test_other_pictures_are_far(drawings: list[Image.Image]) -> None:
    images = [*(scene(seed) for seed in range(30)), *drawings]
    prints = [(hash, np.frombuffer(tiny, np.uint8)[None]) for hash, tiny in map(fingerprint, images)]
    for i, (left, left_tiny) in enumerate(prints):
        for right, right_tiny in prints[:i]:
            assert (left ^ right).bit_count() > 6 or tiny_difference(left_tiny, right_tiny)[0] > 16


def test_colour_is_in_the_tiny_copy_alone() -> None:
    grey = scene(1).convert("L")
    red = Image.merge("RGB", (grey, grey.point(lambda v: v // 2), grey.point(lambda v: v // 2)))
    blue = Image.merge("RGB", (grey.point(lambda v: v // 2), grey.point(lambda v: v // 2), grey))
    bits, colour = far(red, blue)
    assert bits <= 4
    assert colour > 60


def test_plain_pictures_have_no_hash() -> None:
    for colour in ("white", "black", "#88a"):
        assert fingerprint(Image.new("RGB", (50, 40), colour))[0] == 0
    assert fingerprint(scene(3))[0] != 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_and_any_size(mode: str) -> None:
    for size in ((1, 1), (3, 500), (64, 64)):
        hash, tiny = fingerprint(scene(2, size).convert(mode))
        assert 0 <= hash < 2**64
        assert len(tiny) == 192


def test_transparent_parts_are_white() -> None:
    picture = scene(4).convert("RGBA")
    hole = Image.new("L", picture.size, 255)
    hole.paste(0, (0, 0, 90, 90))
    picture.putalpha(hole)
    on_white = picture.convert("RGB")
    on_white.paste((255, 255, 255), (0, 0, 90, 90))
    assert np.array_equal(np.asarray(flattened(picture)), np.asarray(on_white))
    assert fingerprint(picture) == fingerprint(on_white)


def test_cosines_are_an_orthonormal_transform() -> None:
    rows = _cosines(32, 32)
    assert np.allclose(rows @ rows.T, np.eye(32))
    for k in range(32):  # term by term, as the DCT-II is defined
        norm = math.sqrt((1 if k == 0 else 2) / 32)
        assert np.allclose(rows[k], [norm * math.cos(math.pi * k * (i + 0.5) / 32) for i in range(32)])


# --- the search


def naive(hashes: np.ndarray, radius: int) -> dict[tuple[int, int], int]:
    found = {}
    values = hashes.tolist()
    for j, right in enumerate(values):
        for i in range(j):
            bits = (values[i] ^ right).bit_count()
            if bits <= radius:
                found[i, j] = bits
    return found


def searched(hashes: np.ndarray, radius: int) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for left, right, distance in near_pairs(hashes, radius):
        for pair in zip(left.tolist(), right.tolist(), distance.tolist(), strict=True):
            assert pair[:2] not in found, "a pair comes once"
            found[pair[:2]] = pair[2]
    return found


CLOSE = (
    st.builds(  # a few centres and few changed bits, so that many are near each other, and equal ones are there
        lambda centres, changes: np.array(
            [centres[c % len(centres)] ^ sum(1 << b for b in set(bits)) for c, bits in changes], dtype=np.uint64
        ),
        st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3),
        st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 63), max_size=9)), max_size=40),
    )
)


@settings(max_examples=25, deadline=None)
@given(CLOSE, st.sampled_from([0, 1, 2, 3, 5, 6, 7, 8, 10, 13]))
def test_search_equals_comparing_all_with_all(hashes: np.ndarray, radius: int) -> None:
    assert searched(hashes, radius) == naive(hashes, radius)


@pytest.mark.parametrize("count", [30, 300_000_000])  # as the plan would cut for few and for many
def test_every_plan_is_exact(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    base = random.integers(0, 2**63, 8, dtype=np.uint64)
    flips = np.zeros(160, dtype=np.uint64)
    for _ in range(8):
        flips ^= np.uint64(1) << random.integers(0, 64, 160).astype(np.uint64)
    hashes = np.repeat(base, 20) ^ np.where(np.arange(160) % 3 == 0, flips, flips & np.uint64(0xFF00FF))
    monkeypatch.setattr(hamming, "plan", lambda _, radius: plan(count, radius))
    for radius in (0, 4, 6, 9):
        assert searched(hashes, radius) == naive(hashes, radius)


@pytest.mark.parametrize("radius", range(17))
@pytest.mark.parametrize("count", [2, 1000, 10**6, 10**8])
def test_bands_share_the_radius(radius: int, count: int) -> None:
    shares = plan(count, radius)
    assert sum(shares) + len(shares) > radius  # pigeonhole: more than this in each band would be over the radius
    assert min(shares) >= 0


def test_many_equal_hashes_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_AT_ONCE", 1000)
    hashes = np.full(120, 12345, dtype=np.uint64)
    sizes = [len(left) for left, _, _ in near_pairs(hashes, 4)]
    assert sum(sizes) == 120 * 119 // 2
    assert max(sizes) <= 1000


def test_radius_is_checked() -> None:
    for radius in (-1, 64):
        with pytest.raises(ValueError, match="radius"):
            list(near_pairs(np.zeros(2, np.uint64), radius))
    assert list(near_pairs(np.zeros(1, np.uint64), 3)) == []


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_popcount_with_and_without_numpy_2(values: list[int]) -> None:
    array = np.array(values, dtype=np.uint64)
    expected = [value.bit_count() for value in values]
    assert popcount(array).tolist() == expected
    assert hamming.popcount_by_table(array).tolist() == expected
