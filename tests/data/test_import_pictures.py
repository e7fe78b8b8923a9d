"""What `data import` does to pictures: nothing, unless they lie on a side, or another size or quality is asked."""

from __future__ import annotations

import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from importing import images, opened, run
from PIL import Image, ImageOps

from cn_clip.data.imports.prepare import Prepared, Storing, prepare
from cn_clip.data.imports.rows import Slice
from cn_clip.errors import UserError
from cn_clip.transform import decode_image
from tiny import encoded, pictures

UPRIGHT = 1


def smooth(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture that lossy formats keep well, with four unlike corners."""
    corners = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 40]]], dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR).convert(mode)


def tagged(image: Image.Image, kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


def stored(data: bytes, **storing: Any) -> tuple[bytes, str]:
    done = prepare(data, Storing(**storing))
    assert done.problem is None
    return binascii.a2b_base64(done.line.removesuffix(b"\n"), strict_mode=True), done.change


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, UPRIGHT, 99])
def test_bytes_are_copied(kind: str, orientation: int | None) -> None:
    image = smooth("P" if kind == "GIF" else "RGB")
    data = encoded(image, kind) if orientation is None else tagged(image, kind, orientation)
    assert stored(data) == (data, "")
    assert stored(data, verify=False) == (data, "")
    assert stored(data, max_side=48) == (data, "")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 97, "subsampling": 0}),
        ("JPEG", "L", {"quality": 97}),
        ("JPEG", "CMYK", {"quality": 97}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 97}),
    ],
)
def test_pictures_are_turned_upright(
    kind: str, mode: str, options: dict[str, Any], orientation: int, verify: bool
) -> None:
    image = smooth("L").convert("I;16").point(lambda v: v * 200) if mode == "I;16" else smooth(mode)
    data = tagged(image, kind, orientation, **options)
    new, change = stored(data, verify=verify)
    assert change == "turned upright"
    expected = ImageOps.exif_transpose(opened(data))
    found = opened(new)
    assert found.size == expected.size
    assert found.format == kind
    assert found.getexif().get(0x0112) in (None, 1)
    lossy = kind == "JPEG" or (kind == "WEBP" and "quality" in options)
    if not lossy:
        assert found.mode == expected.mode
    kinds = (found, expected) if mode == "I;16" else (found.convert("RGB"), expected.convert("RGB"))
    difference = np.abs(np.asarray(kinds[0]).astype(int) - np.asarray(kinds[1]).astype(int))
    assert difference.mean() < (3 if lossy else 1e-9)


def test_every_decoder_turns_tiff() -> None:
    data = tagged(smooth(), "TIFF", 6)
    assert stored(data) == stored(data, verify=False) == (data, "")
    assert decode_image(data).size == (32, 48)


def test_the_orientation_is_seen_behind_the_pixels() -> None:
    data = tagged(smooth(), "PNG", 6)
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    moved = data.replace(chunk, b"").replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND")
    assert opened(stored(moved)[0]).size == (32, 48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("size", [(400, 100), (100, 400), (401, 399)])
def test_larger_pictures_are_made_smaller(kind: str, size: tuple[int, int]) -> None:
    image = smooth(size=size)
    data = encoded(image.quantize() if kind == "GIF" else image, kind)
    new, change = stored(data, max_side=64)
    assert change == "made smaller"
    found = opened(new)
    assert max(found.size) == 64
    assert abs(found.width / found.height - size[0] / size[1]) < 0.05 * size[0] / size[1]
    assert found.format == (kind if kind in ("JPEG", "WEBP") else "PNG")
    expected = np.asarray(opened(data).convert("RGB").resize(found.size, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(np.asarray(found.convert("RGB")) - expected).mean() < 4
    assert stored(data, max_side=400 if max(size) == 400 else 401) == (data, "")


def test_smaller_and_upright_at_once() -> None:
    data = tagged(smooth(size=(400, 100)), "JPEG", 8)
    found = opened(stored(data, max_side=64)[0])
    assert found.size == (16, 64)
    expected = ImageOps.exif_transpose(opened(data)).resize((16, 64))
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).mean() < 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_can_be_made_smaller(mode: str) -> None:
    image = smooth("RGB", (90, 60))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert("L" if mode == "F" else mode)
    data = encoded(image.convert("F") if mode == "F" else image, "TIFF" if mode in ("CMYK", "F") else "PNG")
    found = opened(stored(data, max_side=30)[0])
    assert found.size == (30, 20)
    decode_image(stored(data, max_side=30)[0])


def test_quality_rewrites_what_shrinks() -> None:
    noise = Image.effect_noise((120, 80), 60).convert("RGB")
    fine, coarse = encoded(noise, "JPEG", quality=95), encoded(noise, "JPEG", quality=20)
    new, change = stored(fine, quality=60)
    assert change == "re-encoded"
    assert len(new) < len(fine)
    assert stored(coarse, quality=90) == (coarse, "")  # it would only grow
    png = encoded(noise, "PNG")
    assert stored(png, quality=60) == (png, "")
    lossless = encoded(noise, "WEBP", lossless=True)
    assert stored(lossless, quality=60) == (lossless, "")
    assert stored(encoded(noise, "WEBP", quality=95), quality=40)[1] == "re-encoded"


def test_a_colour_profile_is_kept() -> None:
    profile = b"not a real profile, but kept as it is" * 4
    for kind in ("JPEG", "PNG", "WEBP"):
        new, _ = stored(tagged(smooth(), kind, 3, icc_profile=profile))
        assert opened(new).info.get("icc_profile") == profile


def test_a_slice_of_a_file(tmp_path: Path) -> None:
    data = encoded(smooth(), "PNG")
    (tmp_path / "all").write_bytes(b"before" + data + b"after")
    assert prepare(Slice(tmp_path / "all", 6, len(data)), Storing()) == prepare(data, Storing())


# --- the fast check of JPEGs finds what a full decoding finds


def refuses(data: bytes) -> bool:
    try:
        decode_image(data, "x")
    except UserError:
        return True
    return False


JPEGS = [
    encoded(pictures(1)[0].resize((90, 70)), "JPEG", quality=90),
    encoded(pictures(1)[0].resize((90, 70)), "JPEG", quality=80, progressive=True),
    encoded(Image.effect_noise((60, 60), 80), "JPEG", quality=95),
    encoded(smooth("CMYK"), "JPEG"),
    encoded(smooth(size=(70, 50)), "JPEG", restart_marker_blocks=2),
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(JPEGS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_verifying_a_jpeg_is_decoding_it(data: bytes, changes: list[tuple[float, int]], cut: float | None) -> None:
    broken = bytearray(data)
    for place, value in changes:
        broken[int(place * (len(data) - 1))] = value
    broken = broken[: int(cut * len(data))] if cut is not None else broken
    done = prepare(bytes(broken), Storing())
    assert (done.problem is not None) == (not broken or refuses(bytes(broken)))


@pytest.mark.parametrize("data", JPEGS)
def test_every_cut_of_a_jpeg_is_judged_as_by_decoding(data: bytes) -> None:
    for end in range(1, len(data), 7):
        assert (prepare(data[:end], Storing()).problem is not None) == refuses(data[:end]), end
    assert prepare(data, Storing()).problem is None


def test_what_cannot_be_stored() -> None:
    reasons = {b"": "empty image", b"\xff\xd8": "undecodable image", b"text": "undecodable image"}
    for data, reason in reasons.items():
        done = prepare(data, Storing())
        assert isinstance(done, Prepared)
        assert done.problem is not None
        assert done.problem.reason == reason
    huge = io.BytesIO()
    Image.new("1", (20_000, 9_000)).save(huge, "PNG")
    problem = prepare(huge.getvalue(), Storing(verify=False)).problem
    assert problem is not None
    assert "pixels" in problem.detail


def test_the_verb_counts_what_it_changed(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(tagged(smooth(), "JPEG", 6))
    (tmp_path / "p" / "b.png").write_bytes(encoded(smooth(size=(300, 200)), "PNG"))
    (tmp_path / "p" / "c.png").write_bytes(encoded(smooth(), "PNG"))
    (tmp_path / "p" / "t.csv").write_text("image,text\na.jpg,甲\nb.png,乙\nc.png,丙\n", "utf-8")
    summary = run(tmp_path / "p", tmp_path / "out", max_side=100)
    assert summary["changed"] == {"made smaller": 1, "turned upright": 1}
    sizes = [opened(data).size for data in images(tmp_path / "out").values()]
    assert sizes == [(32, 48), (100, 67), (48, 32)]
