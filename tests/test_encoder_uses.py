"""What is done with vectors: cosines, zero-shot labels, queries of two kinds, long texts. Against naive loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cn_clip.batching import by_length, split_texts, windows
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from cn_clip.inputs import BadItem
from cn_clip.scores import similarity
from cn_clip.tokenizer import default_tokenizer
from tiny import pictures, tiny_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LABELS = ["猫", "狗", "一只鸟"]
TEMPLATES = ["一张{}的照片", "{}", lambda label: f"画着{label}。"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny_model(), workers=2)


def normalised(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector.astype(np.float64) ** 2).sum())


def test_similarity_is_the_cosine() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(5, 7)).astype(np.float32), generator.normal(size=(3, 7)).astype(np.float32)
    expected = [[float(normalised(x) @ normalised(y)) for y in b] for x in a]
    np.testing.assert_allclose(similarity(a, b), expected, atol=1e-6)
    with pytest.raises(UserError, match=r"expected vectors \[N, D\] and \[M, D\], got \[5, 7\] and \[3, 6\]"):
        similarity(a, b[:, :6])


@pytest.mark.parametrize("templates", [None, TEMPLATES])
def test_classify_against_a_loop(encoder: Encoder, templates: list | None) -> None:
    images = pictures(6)
    found = encoder.classify(images, LABELS, templates)
    assert found.probabilities.dtype == np.float32
    assert found.probabilities.shape == (6, 3)
    scale = float(encoder.model.logit_scale.detach().exp())
    classes = []
    for label in LABELS:
        sentences = [t.replace("{}", label) if isinstance(t, str) else t(label) for t in templates or ["{}"]]
        classes.append(normalised(np.mean([encoder.encode_texts([s])[0] for s in sentences], axis=0)))
    for row, image, order, best in zip(found.probabilities, images, found.order, found.best(2), strict=True):
        logits = torch.tensor([scale * float(c @ encoder.encode_images([image])[0]) for c in classes])
        expected = logits.softmax(dim=0).numpy()
        np.testing.assert_allclose(row, expected, atol=1e-5)
        assert order.tolist() == sorted(range(3), key=lambda i: -row[i])
        assert [label for label, _ in best] == [LABELS[i] for i in order[:2]]
        assert [p for _, p in best] == [float(row[i]) for i in order[:2]]
    again = encoder.classify(encoder.encode_images(images), LABELS, templates)
    assert np.array_equal(again.probabilities, found.probabilities)


def test_classify_refuses(encoder: Encoder) -> None:
    for labels, templates, message in (
        ([], None, "at least one label"),
        ("猫", None, "expected a list"),
        (LABELS, [], "at least one template"),
        (LABELS, ["一张照片"], "template '一张照片': no {} where the label goes"),
    ):
        with pytest.raises(UserError, match=message):
            encoder.classify(pictures(1), labels, templates)


def test_queries_of_a_picture_and_a_text(encoder: Encoder) -> None:
    a, b = pictures(2)
    texts = ["红色的", None, "一只猫"]
    found = encoder.encode_queries([a, b, None], texts, image_weight=0.25)
    (x, y), (t, u) = encoder.encode_images([a, b]), encoder.encode_texts(["红色的", "一只猫"])
    expected = [normalised(0.25 * x + 0.75 * t), y, u]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for images, words, weight, message in (
        ([a], ["x", "y"], 0.5, "1 pictures for 2 texts"),
        ([None, a], [None, "x"], 0.5, "query 0: neither a picture nor a text"),
        ([a], ["x"], 1.5, "image_weight 1.5: expected 0"),
    ):
        with pytest.raises(UserError, match=message):
            encoder.encode_queries(images, words, weight)


def test_long_texts_against_a_loop(encoder: Encoder) -> None:
    context, stride = 12, 5
    texts = ["".join(chr(0x4E00 + 7 * i + n) for i in range(n)) for n in (0, 1, 9, 10, 11, 15, 16, 40, 3)]
    found = encoder.encode_long_texts(texts, context_length=context, stride=stride)
    for text, vector in zip(texts, found, strict=True):
        pieces = default_tokenizer().encode([text], None).ids[0, 1:-1].tolist()
        starts = [0]
        while starts[-1] + context - 2 < len(pieces):
            starts.append(min(starts[-1] + stride, len(pieces) - context + 2))
        parts = []
        for start in starts:
            ids = [101, *pieces[start : start + context - 2], 102]
            parts.append(normalised(encoder.backend.encode_texts(np.array([ids]))[0]))
        np.testing.assert_allclose(vector, normalised(np.mean(parts, axis=0)), atol=1e-5)
    short = [text for text in texts if len(text) <= context - 2]
    np.testing.assert_allclose(
        encoder.encode_long_texts(short, context_length=context), encoder.encode_texts(short), atol=1e-6
    )
    cut = encoder.encode_long_texts(["猫" * 30 + "狗" * 30, "猫" * 30 + "鸟" * 30], context_length=context)
    assert np.abs(cut[0] - cut[1]).max() > 1e-3  # the end counts
    assert encoder.encode_long_texts([]).shape == (0, 24)


def test_long_texts_refuse(encoder: Encoder) -> None:
    for arguments, message in (
        ({"stride": 0}, "stride 0 of windows of 50 word pieces: expected 1 to 50"),
        ({"stride": 51}, "stride 51"),
        ({"context_length": 2}, "windows of 0 word pieces"),
        ({"context_length": 99}, "this text tower takes 64 at most"),
    ):
        with pytest.raises(UserError, match=message):
            encoder.encode_long_texts(["猫"], **arguments)  # type: ignore[arg-type]
    with pytest.raises(BadItem, match="text 1: expected a string"):
        encoder.encode_long_texts(["猫", 3])  # type: ignore[list-item]


@given(st.integers(0, 200), st.integers(1, 30), st.data())
def test_windows_cover_everything(length: int, room: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, room))
    starts = windows(length, room, stride)
    assert starts == sorted(set(starts))
    covered = {i for start in starts for i in range(start, min(start + room, length))}
    assert covered == set(range(length))
    assert starts[-1] + room == length or (length <= room and starts == [0])


def test_windows_of_several_texts() -> None:
    texts = [np.array([101, *range(1, n + 1), 102]) for n in (2, 5, 0)]
    ids, lengths, owners = split_texts(texts, 5, 2)
    assert ids.tolist() == [[101, 1, 2, 102, 0], [101, 1, 2, 3, 102], [101, 3, 4, 5, 102], [101, 102, 0, 0, 0]]
    assert lengths.tolist() == [4, 5, 5, 2]
    assert owners.tolist() == [0, 1, 1, 2]


@given(st.lists(st.integers(2, 52), max_size=60), st.integers(1, 300))
def test_batches_hold_no_more_than_the_budget(lengths: list[int], tokens: int) -> None:
    given_lengths = np.array(lengths, dtype=np.int64)
    batches = [rows.tolist() for rows in by_length(given_lengths, tokens)]
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    sizes = [len(rows) * max(lengths[row] for row in rows) for rows in batches]
    assert all(size <= tokens or len(rows) == 1 for size, rows in zip(sizes, batches, strict=True))
    for rows, following in pairwise(batches):  # no batch could have taken one more
        assert max(lengths[row] for row in rows) <= lengths[following[0]]
        assert (len(rows) + 1) * lengths[following[0]] > tokens
