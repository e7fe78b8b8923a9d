"""The image transform equals the reference's bit for bit, for every kind of picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from oracle import run_reference
from PIL import Image

from cn_clip.clip import image_transform
from cn_clip.transform import decode_image

SIZES = (64, 224, 336)
SHAPES = {"small": (40, 31), "large": (300, 451), "wide": (700, 9), "tall": (3, 500), "one pixel": (1, 1)}
MODES = ("RGB", "RGBA", "P", "L", "LA", "1")


def pictures() -> Iterator[tuple[str, Image.Image, dict[str, object]]]:
    """File name, picture and how to save it."""
    generator = np.random.default_rng(7)
    for shape, size in SHAPES.items():
        noise = generator.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        rgba = Image.fromarray(noise, "RGBA")
        rgb = rgba.convert("RGB")
        for mode in MODES:
            yield f"{shape} {mode}.png", rgba if mode == "RGBA" else rgb.convert(mode), {}
        yield f"{shape} one transparent colour.png", rgb, {"transparency": rgb.getpixel((0, 0))}
        yield f"{shape} one transparent grey.png", rgb.convert("L"), {"transparency": 128}
        palette = rgb.quantize(200)
        yield f"{shape} palette, one transparent.png", palette, {"transparency": 3}
        yield f"{shape} palette, alpha each.png", palette, {"transparency": bytes(range(200))}
        yield f"{shape} 16 colours.png", rgb.quantize(16), {"bits": 4}
        yield f"{shape} quality 85.jpg", rgb, {"quality": 85}
        yield f"{shape} no subsampling.jpg", rgb, {"quality": 97, "subsampling": 0}
        yield f"{shape} grey progressive.jpg", rgb.convert("L"), {"progressive": True}
        yield f"{shape} CMYK.jpg", rgb.convert("CMYK"), {}
        yield f"{shape} CMYK.tif", rgb.convert("CMYK"), {}
        yield f"{shape} LAB.tif", Image.fromarray(noise[..., :3].copy(), "LAB"), {}
        yield f"{shape} lossy.webp", rgb, {"quality": 70}
        yield f"{shape} lossless with alpha.webp", rgba, {"lossless": True, "exact": True}
        yield f"{shape} still.gif", rgb, {}
        yield f"{shape} transparent.gif", palette, {"transparency": 3}
        yield f"{shape} animated.gif", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}
        yield f"{shape} animated.webp", rgba, {"save_all": True, "append_images": [rgba.rotate(180)]}
        yield f"{shape} plain.bmp", rgb, {}
        # Turned by a camera: the reference does not turn it back.
        exif = Image.Exif()
        exif[0x0112] = 6
        yield f"{shape} turned.jpg", rgb, {"exif": exif}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, picture, options in pictures():
        picture.save(folder / name, **options)
    return folder


def test_equals_the_reference_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).parent / "reference" / "transform_images.py"
    run_reference(script, folder, ",".join(map(str, SIZES)), tmp_path / "theirs.npz")
    theirs = np.load(tmp_path / "theirs.npz")
    files = sorted(folder.iterdir())
    assert len(theirs) == len(SIZES) * len(files) == len(SIZES) * len(list(pictures()))
    different = []
    for size in SIZES:
        transform = image_transform(size)
        for path in files:
            ours, other = transform(decode_image(path)).numpy(), theirs[f"{path.name} {size}"]
            assert ours.dtype == other.dtype == np.float32
            assert ours.shape == other.shape == (3, size, size)
            if not np.array_equal(ours, other):
                different.append(f"{path.name} {size}: {np.abs(ours - other).max()}")
    assert not different


def test_pictures_open_in_the_modes_they_stand_for(folder: Path) -> None:
    """The comparison would prove little if saving had made plain RGB of them all."""
    modes = {Image.open(path).mode for path in folder.iterdir()}
    assert modes >= {"RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "LAB"}
    assert sum("transparency" in Image.open(path).info for path in folder.iterdir()) >= 4 * len(SHAPES)
