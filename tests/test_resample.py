"""The fast resize is Pillow's, bit for bit, wherever it is used; pictures it is not used for are Pillow's own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cn_clip import resample
from cn_clip.resample import bicubic_planes, pillow_weights, worth_it
from cn_clip.transform import decode_image, normalise, resize
from tiny import encoded

SIDES = st.integers(1, 900)
GRAIN = st.sampled_from(["noise", "extremes", "stripes", "gradient"])


def picture(width: int, height: int, grain: str, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if grain == "extremes":  # overshoot on every edge
        noise = (noise > 127).astype(np.uint8) * np.uint8(255)
    elif grain == "stripes":
        noise[:] = 255
        noise[::2, ::3] = 0
    elif grain == "gradient":
        noise[:] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    return Image.fromarray(noise)


def pillow(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, st.sampled_from([8, 9, 32, 64, 100, 224, 225, 336]), GRAIN)
def test_equal_to_pillow_at_any_size(width: int, height: int, size: int, grain: str) -> None:
    image = picture(width, height, grain)
    assert np.array_equal(resize(image, size), pillow(image, size))
    if width >= height:  # rows come first in every Pillow: the products are right, used or not
        assert np.array_equal(np.moveaxis(bicubic_planes(image, size), 0, -1), pillow(image, size))


@pytest.mark.parametrize("width", [640, 480, 1920])
@pytest.mark.parametrize("height", [480, 640, 641, 1080])
def test_usual_photographs(width: int, height: int) -> None:
    image = picture(width, height, "noise")
    assert np.array_equal(resize(image, 224), pillow(image, 224))


def test_it_is_used_for_photographs_and_nothing_else() -> None:
    assert worth_it(picture(640, 480, "noise"), 224)
    assert worth_it(picture(480, 640, "noise"), 224)
    assert worth_it(picture(1920, 1080, "noise"), 336)
    assert not worth_it(picture(640, 480, "noise").convert("RGBA"), 224)
    assert not worth_it(picture(640, 480, "noise").quantize(16), 224)
    assert not worth_it(picture(224, 640, "noise"), 224)  # a pass that Pillow leaves out
    assert not worth_it(picture(300, 900, "noise"), 224)  # columns first in Pillow 13
    assert not worth_it(picture(100, 100, "noise"), 64)
    assert not worth_it(picture(640, 480, "noise"), 4)


def test_another_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that resizes otherwise keeps its own results."""
    image = picture(640, 480, "noise")
    resample._as_pillow_does.cache_clear()
    monkeypatch.setattr(resample, "UNIT", 2.0**14)  # the same as a Pillow of other weights
    resample.products.cache_clear()
    try:
        assert not worth_it(image, 224)
        assert np.array_equal(resize(image, 224), pillow(image, 224))
    finally:
        resample._as_pillow_does.cache_clear()
        resample.products.cache_clear()


def test_weights_of_a_naive_sum() -> None:
    for source, target in ((640, 224), (100, 224), (37, 8)):
        first, weights = pillow_weights(source, target)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
        x, stretch = target // 2, max(source / target, 1)
        centre = (x + 0.5) * source / target
        expected = np.zeros(source)
        for i in range(source):
            t = abs((i + 0.5 - centre) / stretch)
            expected[i] = 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * (t**3 - 5 * t**2 + 8 * t - 4) * (t < 2)
        expected /= expected.sum()
        found = np.zeros(source)
        taps = min(weights.shape[1], source - first[x])
        found[first[x] : first[x] + taps] = weights[x, :taps]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fast_is_close_and_only_jpeg_is_decoded_smaller() -> None:
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = smooth.resize((640, 480), Image.Resampling.BICUBIC)
    jpeg, png = encoded(image, "JPEG", quality=95), encoded(image)
    assert decode_image(jpeg, at_least=224).size == (320, 240)
    assert decode_image(jpeg, at_least=240).size == (320, 240)
    assert decode_image(jpeg, at_least=241).size == (640, 480)
    assert decode_image(jpeg, at_least=32).size == (80, 60)
    assert decode_image(png, at_least=32).size == (640, 480)
    exact = resize(decode_image(png), 224).astype(int)
    assert np.abs(resize(decode_image(png), 224, fast=True) - exact).max() <= 2
    rough = resize(decode_image(jpeg, at_least=224), 224, fast=True)
    assert np.abs(rough - resize(decode_image(jpeg), 224).astype(int)).mean() < 2
    assert np.array_equal(decode_image(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))
    for mode in ("RGBA", "L", "P", "CMYK"):
        other = image.convert(mode)
        assert np.array_equal(resize(other, 64, fast=True), resize(other, 64))


def test_planes_and_pixels_normalise_alike() -> None:
    pixels = resize(picture(640, 480, "noise"), 224)  # planes in memory
    assert np.array_equal(normalise(pixels), normalise(np.ascontiguousarray(pixels)))
