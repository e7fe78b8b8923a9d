"""Vectors in input order, whatever the kinds, batches, threads and lengths."""

from __future__ import annotations

import io
import pickle
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cn_clip.clip import image_transform, tokenize
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from cn_clip.inputs import BadItem
from cn_clip.models.clip import CLIP
from tiny import BERT, RESNET, TEXTS, encoded, pictures, save_ours, tiny_model

CUT = "ignore:.* texts are longer than:UserWarning"
pytestmark = [pytest.mark.usefixtures("one_torch_thread"), pytest.mark.filterwarnings(CUT)]
MODEL = tiny_model()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(MODEL, workers=3)


def one_by_one(model: CLIP, images: list[Image.Image]) -> np.ndarray:
    """Each picture alone, in float64: no batches, no threads, nothing shared."""
    transform = image_transform(model.config.vision.image_resolution)
    return unit([model.encode_image(transform(image)[None]) for image in images])


def texts_one_by_one(model: CLIP, texts: list[str], context_length: int = 52) -> np.ndarray:
    return unit([model.encode_text(tokenize(text, context_length)) for text in texts])


def unit(rows: list[torch.Tensor]) -> np.ndarray:
    found = torch.cat(rows).detach().double()
    return (found / found.norm(dim=1, keepdim=True)).numpy()


def mixed(images: list[Image.Image], folder: Path) -> list[Any]:
    """The same pictures as paths, path objects, bytes, PIL pictures and arrays in turn."""
    found: list[Any] = []
    for i, image in enumerate(images):
        path = folder / f"{i}.png"
        image.save(path)
        data = path.read_bytes()
        kinds = (str(path), path, data, memoryview(data), Image.open(path), np.asarray(image))
        found.append(kinds[i % len(kinds)])
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_mixed_kinds_of_pictures_in_order(batch_size: int, encoder: Encoder, tmp_path: Path) -> None:
    images = pictures(14)
    vectors = encoder.encode_images(mixed(images, tmp_path), batch_size=batch_size)
    assert vectors.dtype == np.float32
    assert vectors.shape == (14, 24)
    np.testing.assert_allclose(vectors, one_by_one(encoder.model, images), atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert len(np.unique(vectors.round(3), axis=0)) == 14  # or the order would show nothing


def test_a_resnet(tmp_path: Path) -> None:
    encoder = Encoder(tiny_model(RESNET))
    images = pictures(7)
    vectors = encoder.encode_images(iter(images), batch_size=3)
    np.testing.assert_allclose(vectors, one_by_one(encoder.model, images), atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from("猫狗的在沙发上 🐶aA“”1②"), max_size=70).map("".join) | st.text(), st.data())
def test_any_texts_in_any_order(text: str, data: st.DataObject) -> None:
    encoder = Encoder(MODEL)
    texts = data.draw(st.permutations([text, *TEXTS]))
    vectors = encoder.encode_texts(texts, batch_size=data.draw(st.integers(1, 9)))
    np.testing.assert_allclose(vectors, texts_one_by_one(MODEL, texts), atol=1e-5, rtol=0)


def test_texts_of_every_length_in_random_order(encoder: Encoder) -> None:
    lengths = np.random.default_rng(1).permutation(60)
    texts = ["".join(chr(0x4E00 + (37 * i + n) % 2000) for i in range(n)) for n in lengths]
    vectors = encoder.encode_texts(texts, batch_size=7)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, texts_one_by_one(encoder.model, texts), atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    short = encoder.encode_texts(texts, batch_size=7, context_length=12)
    np.testing.assert_allclose(short, texts_one_by_one(encoder.model, texts, 12), atol=1e-5, rtol=0)


def test_texts_come_in_windows_with_a_report_of_the_cut_ones(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cn_clip.streams.TEXT_WINDOW", 5)
    texts = TEXTS * 3
    parts = list(encoder.text_vectors(iter(texts), batch_size=2))
    assert [len(vectors) for vectors, _ in parts] == [5, 5, 5, 5, 1]
    np.testing.assert_allclose(
        np.concatenate([v for v, _ in parts]), texts_one_by_one(encoder.model, texts), atol=1e-5, rtol=0
    )
    cut = np.concatenate([tokens.truncated for _, tokens in parts])
    assert cut.tolist() == [text == TEXTS[5] for text in texts]


def test_nothing_in_nothing_out(encoder: Encoder) -> None:
    for vectors in (encoder.encode_images([]), encoder.encode_texts(iter([]))):
        assert vectors.shape == (0, 24)
        assert vectors.dtype == np.float32


def test_one_alone_is_a_list_of_one(encoder: Encoder, tmp_path: Path) -> None:
    image = pictures(1)[0]
    image.save(tmp_path / "a.png")
    expected = encoder.encode_images([image])
    for alone in (image, str(tmp_path / "a.png"), tmp_path / "a.png", encoded(image)):
        assert np.array_equal(encoder.encode_images(alone), expected)  # type: ignore[arg-type]
    assert np.array_equal(encoder.encode_texts("一只猫"), encoder.encode_texts(["一只猫"]))


def test_a_generator_is_read_only_a_little_ahead(encoder: Encoder) -> None:
    batch_size, read, vectors, furthest = 4, 0, 0, 0
    image = pictures(1)[0]

    def source() -> Iterator[Image.Image]:
        nonlocal read
        for _ in range(200):
            read += 1
            yield image

    for batch in encoder.image_vectors(source(), batch_size=batch_size):
        vectors += len(batch)
        furthest = max(furthest, read - vectors)
    assert (read, vectors) == (200, 200)
    assert furthest <= 2 * batch_size + encoder.workers
    read = 0
    next(iter(encoder.image_vectors(source(), batch_size=batch_size)))
    assert read < 20


def test_a_function_is_called_in_a_decoding_thread(encoder: Encoder) -> None:
    image, threads = pictures(1)[0], set()

    def decode() -> Image.Image:
        threads.add(threading.current_thread().name)
        return image

    (vectors,) = encoder.image_vectors([decode, decode], batch_size=2)
    assert np.array_equal(vectors, encoder.encode_images([image, image]))
    assert all(name.startswith("decode") for name in threads)


def test_the_caller_is_not_put_into_inference_mode(encoder: Encoder) -> None:
    """Between batches a caller may train, or walk away."""
    steps = encoder.image_vectors(pictures(6), batch_size=2)
    next(steps)
    assert not torch.is_inference_mode_enabled()
    other = encoder.text_vectors(TEXTS)
    next(other)
    del steps, other
    assert not torch.is_inference_mode_enabled()
    assert torch.ones(2, requires_grad=True).sum().requires_grad


def test_two_threads_at_once(encoder: Encoder, tmp_path: Path) -> None:
    items = mixed(pictures(12), tmp_path)
    expected = encoder.encode_images(items, batch_size=5), encoder.encode_texts(TEXTS, batch_size=2)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def work(number: int) -> None:
        for _ in range(3):
            found[number] = encoder.encode_images(items, 5), encoder.encode_texts(TEXTS, 2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        for one, other in zip(found[number], expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)


def test_one_lazily_opened_picture_many_times(encoder: Encoder, tmp_path: Path) -> None:
    """PIL decodes it when it is first used: by several threads at once, if nobody takes care."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    vectors = encoder.encode_images([Image.open(tmp_path / "noise.png")] * 8)
    np.testing.assert_allclose(vectors, vectors[:1].repeat(8, axis=0), atol=1e-6, rtol=0)


def test_bf16_is_close_in_cosine(tmp_path: Path) -> None:
    path = str(save_ours(tiny_model(), tmp_path / "ours.pt"))
    exact, rough = (Encoder.load(path, device="cpu", precision=name) for name in ("fp32", "bf16"))
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    images = pictures(9)
    for one, other in (
        (exact.encode_images(images), rough.encode_images(images)),
        (exact.encode_texts(TEXTS), rough.encode_texts(TEXTS)),
    ):
        assert other.dtype == np.float32
        cosines = (one * other).sum(axis=1)
        assert cosines.min() > 0.99
        assert not np.array_equal(one, other)


def test_loading_passes_the_names_on(tmp_path: Path) -> None:
    path = str(save_ours(tiny_model(), tmp_path / "ours.pt"))
    encoder = Encoder.load(path, input_resolution=64, workers=1)
    assert (encoder.size, encoder.width, encoder.workers) == (64, 24, 1)
    assert encoder.encode_images(pictures(2)).shape == (2, 24)
    assert not encoder.model.training


@pytest.mark.parametrize("device", ["cuda:99", "nowhere", "meta:x"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    path = str(save_ours(tiny_model(), tmp_path / "ours.pt"))
    assert message_of(lambda: Encoder.load(path, device=device)).startswith(f"device {device}: ")


def test_a_bad_picture_is_named(encoder: Encoder, tmp_path: Path) -> None:
    good = pictures(5)
    half = encoded(good[0])
    half = half[: len(half) // 2]
    (tmp_path / "half.png").write_bytes(half)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    for bad, start in (
        (half, "image 5: cannot decode the image"),
        (b"", "image 5: the image is empty (0 bytes)"),
        (b"hello", "image 5: not an image in a known format"),
        (Image.open(tmp_path / "half.png"), "image 5: cannot decode the image"),
        (tmp_path / "half.png", f"image 5: {tmp_path / 'half.png'}: cannot decode the image"),
        (tmp_path / "empty.jpg", f"image 5: {tmp_path / 'empty.jpg'}: the image is empty (0 bytes)"),
        (str(tmp_path / "text.jpg"), f"image 5: {tmp_path / 'text.jpg'}: not an image in a known format"),
        (tmp_path / "missing.jpg", f"image 5: {tmp_path / 'missing.jpg'}: cannot read the image: No such file"),
        (tmp_path, f"image 5: {tmp_path}: cannot read the image: "),
        (np.zeros((4, 4, 2), np.uint8), "image 5: expected uint8 [H, W, 3] (or 1 or 4 channels, or [H, W]), got"),
        (np.zeros((4, 4, 3)), "image 5: expected uint8 [H, W, 3] (or 1 or 4 channels, or [H, W]), got float64"),
        (
            np.zeros(7, np.uint8),
            "image 5: expected uint8 [H, W, 3] (or 1 or 4 channels, or [H, W]), got uint8 [7]",
        ),
        (
            torch.zeros(3, 4, 4),
            "image 5: expected a path, bytes, a file, a PIL picture or an array, got Tensor (of a",
        ),
        (np.zeros((0, 4, 3), np.uint8), "image 5: 4×0 pixels: expected 1 to"),
        (Image.new("La", (4, 4)), "image 5: a picture of mode La"),
        (None, "image 5: expected a path, bytes, a file, a PIL picture or an array, got NoneType"),
        (3, "image 5: expected a path, bytes, a file, a PIL picture or an array, got int"),
    ):
        items: list[Any] = [*good, bad, *good]
        with pytest.raises(UserError) as caught:
            encoder.encode_images(items, batch_size=3)
        message = str(caught.value)
        assert message.startswith(start), message
        assert "\n" not in message
        assert isinstance(caught.value, BadItem)
        assert caught.value.index == 5


def test_a_bad_text_is_named(encoder: Encoder) -> None:
    for bad, kind in ((None, "NoneType"), (3, "int"), (b"bytes", "bytes"), (["猫"], "list")):
        message = message_of(lambda bad=bad: encoder.encode_texts(["猫", "狗", bad]))
        assert message == f"text 2: expected a string, got {kind}"


def test_context_lengths_that_cannot_be(encoder: Encoder) -> None:
    assert "context length must be 3 or more" in message_of(lambda: encoder.encode_texts(["猫"], context_length=2))
    message = message_of(lambda: encoder.encode_texts(["猫"], context_length=65))
    assert message == "context length 65: this text tower takes 64 at most"
    assert BERT["text_max_position_embeddings"] == 64
    assert encoder.encode_texts(["猫" * 80], context_length=64).shape == (1, 24)


def test_what_was_cut_is_warned_of(encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match=r"2 texts are longer than 52 word pieces and were cut \(first: text 1\)"):
        encoder.encode_texts(["猫", "猫" * 51, "猫" * 50, "狗" * 99])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_texts(["猫", "猫" * 50])


def test_bad_pictures_are_skipped_and_reported(encoder: Encoder, tmp_path: Path) -> None:
    images = pictures(9)
    items: list[Any] = mixed(images, tmp_path)
    for place, bad in ((0, b""), (4, None), (5, tmp_path / "missing.jpg"), (12, b"hello")):
        items.insert(place, bad)
    for batch_size in (1, 3, 4, 50):
        found = encoder.encode_images(items, batch_size, on_error="skip")
        assert found.indices.tolist() == [1, 2, 3, 6, 7, 8, 9, 10, 11]
        np.testing.assert_allclose(found.vectors, one_by_one(encoder.model, images), atol=1e-5, rtol=0)
        assert [error.index for error in found.errors] == [0, 4, 5, 12]
        assert [str(error).split(":")[0] for error in found.errors] == [f"image {i}" for i in (0, 4, 5, 12)]
        assert found.vectors.dtype == np.float32
    nothing = encoder.encode_images([b"", None], on_error="skip")  # type: ignore[list-item]
    assert (nothing.vectors.shape, len(nothing.errors)) == ((0, 24), 2)
    assert pickle.loads(pickle.dumps(nothing.errors[1])).index == 1


def test_bad_texts_are_skipped_and_reported(encoder: Encoder) -> None:
    found = encoder.encode_texts(["猫", 3, "一只狗", None], on_error="skip")  # type: ignore[list-item]
    assert found.indices.tolist() == [0, 2]
    assert np.array_equal(found.vectors, encoder.encode_texts(["猫", "一只狗"]))
    assert [str(error) for error in found.errors] == [
        "text 1: expected a string, got int",
        "text 3: expected a string, got NoneType",
    ]
    assert message_of(lambda: encoder.encode_texts(["猫"], on_error="ignore")).startswith(
        "on_error is raise or skip"
    )


def test_arrays_and_files_of_every_kind(encoder: Encoder, tmp_path: Path) -> None:
    image = pictures(1)[0]
    rgba = image.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(image.size))
    grey = image.convert("L")
    for kind, same in (
        (np.asarray(rgba), rgba),
        (np.asarray(grey), grey),
        (np.asarray(grey)[:, :, None], grey),
        (np.asarray(image)[:, ::-1], image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        (io.BytesIO(encoded(image)), image),
        (bytearray(encoded(image)), image),
    ):
        expected = encoder.encode_images([same])
        assert np.array_equal(encoder.encode_images([kind]), expected)
        if isinstance(kind, np.ndarray):
            assert np.array_equal(encoder.encode_images(kind), expected)  # alone


def test_no_thread_stays_behind(encoder: Encoder) -> None:
    before = threading.active_count()
    steps = encoder.image_vectors(pictures(40), batch_size=2)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    message_of(lambda: encoder.encode_images([b""] * 30))
    assert threading.active_count() == before


def message_of(action: Any) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message
