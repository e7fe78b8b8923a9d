"""`weights interpolate` and `average`: the ends are the ends, and the table along the path is right."""

from __future__ import annotations

import base64
import copy
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_weights_inspect import said

from cn_clip.checkpoint import read_checkpoint, write_weights
from cn_clip.clip import load_from_name, tokenize
from cn_clip.config import ModelConfig
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.transform import ImageTransform
from cn_clip.weights.interpolate import parse_alphas
from cn_clip.weights.mixing import mix
from cn_clip.weights.picture import trade_off
from cn_clip.weights.tradeoff import Recall, Row, choose
from tiny import BERT, RESNET, VIT, encoded, save_ours, tiny_model

Capture = pytest.CaptureFixture[str]
Weights = dict[str, torch.Tensor]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


# The mean of weights


@st.composite
def states(draw: st.DrawFn, count: int) -> list[Weights]:
    """State dicts with the same names and shapes, whose dtypes may differ, with zeros of both signs."""
    shapes = draw(st.lists(st.lists(st.integers(1, 4), max_size=2), min_size=1, max_size=3))
    numbers = st.one_of(st.sampled_from([0.0, -0.0]), st.floats(-1000, 1000, width=16))
    found: list[Weights] = []
    for _ in range(count):
        state: Weights = {}
        for i, shape in enumerate(shapes):
            size = math.prod(shape)
            values = draw(st.lists(numbers, min_size=size, max_size=size))
            state[f"t{i}"] = torch.tensor(values, dtype=draw(st.sampled_from(DTYPES))).reshape(shape)
        state["num_batches_tracked"] = torch.tensor(draw(st.integers(0, 100)))
        found.append(state)
    return found


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=100, deadline=None)
@given(states(2))
def test_the_ends_of_the_path_are_the_ends_bit_for_bit(pair: list[Weights]) -> None:
    for alpha, end in ((0.0, pair[0]), (1.0, pair[1])):
        mixed = mix(pair, [1 - alpha, alpha])
        assert mixed.keys() == end.keys()
        for name, tensor in end.items():
            assert mixed[name].dtype == tensor.dtype
            assert mixed[name].shape == tensor.shape
            assert bits(mixed[name]) == bits(tensor)


@settings(max_examples=100, deadline=None)
@given(states(3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_a_mixture_is_the_weighted_sum(several: list[Weights], factors: list[float]) -> None:
    factors = [factor / sum(factors) for factor in factors]
    mixed = mix(several, factors)
    for name, tensor in mixed.items():
        kinds = [state[name].dtype for state in several]
        if name == "num_batches_tracked":
            assert tensor == several[factors.index(max(factors))][name]
            continue
        expected = sum(f * state[name].double().numpy() for f, state in zip(factors, several, strict=True))
        precise = kinds[0]
        for kind in kinds:
            precise = torch.promote_types(precise, kind)
        assert tensor.dtype == precise
        rounding = 2 * torch.finfo(precise).eps
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=rounding, atol=1e-6 * (1 + rounding))


@settings(max_examples=50, deadline=None)
@given(states(1), st.floats(0, 1))
@example([{"t": torch.tensor([0.1, 1 / 3, -7e-5])}], 1 / 3)
def test_what_both_have_stays_as_it_is(one: list[Weights], alpha: float) -> None:
    """A tower that was frozen is in every model of the path."""
    mixed = mix([one[0], {k: v.clone() for k, v in one[0].items()}], [1 - alpha, alpha])
    for name, tensor in one[0].items():
        assert torch.equal(mixed[name], tensor), name


def test_alphas() -> None:
    assert parse_alphas(None, None) == [0.5]
    assert parse_alphas(0.3, None) == [0.3]
    assert parse_alphas(None, "0,0.1,…,1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert parse_alphas(None, "0.2, 0.5, ..., 0.8") == [0.2, 0.5, 0.8]
    assert parse_alphas(None, "1,0,0.5,1") == [1, 0, 0.5]
    for wrong in ("", "a", "0,0.3,…,1", "0,0,…,1", "1,0.5,…,0", "0,…,1", "0,0.1,…", "nan", "0,1e-9,…,1"):
        with pytest.raises(UserError, match="alphas"):
            parse_alphas(None, wrong)
    for outside in ("-0.1", "0,1.1", "inf"):
        with pytest.raises(UserError, match=r"alphas are numbers from 0 .* to 1"):
            parse_alphas(None, outside)
    with pytest.raises(UserError, match="not both"):
        parse_alphas(0.5, "0,1")


# WiSE-FT, on models that were trained


SIZE = VIT["image_resolution"]
COLOURS = {"红": (220, 30, 30), "绿": (30, 200, 40), "蓝": (40, 60, 230), "黄": (230, 220, 40)}
SHAPES = ("圆", "方块", "横条")
STRIPES = ("斜纹", "竖纹", "点")
Split = list[tuple[Image.Image, str]]


def drawing(colour: str, shape: str, seed: int) -> Image.Image:
    """A coloured shape, or pattern, on dark noise."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    inside = {
        "圆": x**2 + y**2 < 100,
        "方块": np.maximum(abs(x), abs(y)) < 10,
        "横条": abs(y) < 4,
        "斜纹": (x + y) % 8 < 3,
        "竖纹": x % 8 < 3,
        "点": (x % 8 < 3) & (y % 8 < 3),
    }[shape]
    pixels = np.random.default_rng(seed).integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[inside] = COLOURS[colour]
    return Image.fromarray(pixels)


def split(kinds: tuple[str, ...], seed: int) -> Split:
    """A picture of each colour and kind, with its name."""
    names = [(colour, kind) for kind in kinds for colour in COLOURS]
    return [(drawing(*name, seed + i), f"{name[0]}色的{name[1]}") for i, name in enumerate(names)]


def write_split(folder: Path, name: str, pairs: Split) -> Path:
    """As `{name}_imgs.tsv` and `{name}_texts.jsonl`; two pictures share the first text."""
    with open(folder / f"{name}_imgs.tsv", "w") as images, open(folder / f"{name}_texts.jsonl", "w") as texts:
        for i, (picture, text) in enumerate(pairs):
            images.write(f"{i}\t{base64.b64encode(encoded(picture)).decode()}\n")
            row = {"text_id": i, "text": text, "image_ids": [i]}
            texts.write(json.dumps(row) + "\n")
    return folder / name


def fit(model: CLIP, pairs: Split, steps: int, rate: float) -> None:
    """Contrastive steps on a few pairs."""
    pixels = torch.stack([ImageTransform(SIZE)(picture) for picture, _ in pairs])
    ids = tokenize([text for _, text in pairs], 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        image, text, scale = model(pixels, ids)
        logits, target = scale * image @ text.t(), torch.arange(len(pairs))
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Trained:
    """A pretrained model, its finetuned child, and a split of what each learnt."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        old, new = split(SHAPES, 0), split(STRIPES, 100)
        self.model = CLIP(ModelConfig.from_dict({**VIT, **BERT})).eval()  # no dropout: a few steps must do
        fit(self.model, old, 40, 1e-3)
        self.a = save_ours(copy.deepcopy(self.model), folder / "a.pt")
        fit(self.model, new, 40, 1e-3)
        self.b = save_ours(self.model, folder / "b.pt")
        # Measured on other noise, and with one picture more: a second right answer for the first text.
        self.sets = {
            "finetuning": [*split(STRIPES, 1000), (drawing("红", "斜纹", 2000), "红色的斜纹")],
            "retention": [*split(SHAPES, 3000), (drawing("红", "圆", 4000), "红色的圆")],
        }
        self.paths = {name: write_split(folder, name, pairs) for name, pairs in self.sets.items()}

    def recall(self, alpha: float, name: str) -> Recall:
        """By the definition: one picture and one text at a time, all scores sorted."""
        a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (self.a, self.b))
        model = CLIP(self.model.config).eval()
        model.load_state_dict({key: (1 - alpha) * a[key] + alpha * b[key] for key in a})
        pairs = self.sets[name]
        texts = list(dict.fromkeys(text for _, text in pairs))
        with torch.no_grad():
            images = [model.encode_image(ImageTransform(SIZE)(p)[None])[0] for p, _ in pairs]
            words = [model.encode_text(tokenize(text))[0] for text in texts]
        score = {
            (i, t): float(F.cosine_similarity(image, word, dim=0))
            for i, image in enumerate(images)
            for t, word in enumerate(words)
        }
        right = {(i, texts.index(text)) for i, (_, text) in enumerate(pairs)}
        found: Recall = {"t2i": {}, "i2t": {}}
        for k in (1, 5, 10):
            hits = 0
            for t in range(len(texts)):
                best = sorted(range(len(images)), key=lambda i, t=t: -score[i, t])[:k]
                hits += any((i, t) in right for i in best)
            found["t2i"][f"r{k}"] = 100 * hits / len(texts)
            hits = 0
            for i in range(len(images)):
                best = sorted(range(len(texts)), key=lambda t, i=i: -score[i, t])[:k]
                hits += any((i, t) in right for t in best)
            found["i2t"][f"r{k}"] = 100 * hits / len(images)
        for way in found.values():
            way["mean_recall"] = sum(way.values()) / 3
        return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Trained(tmp_path_factory.mktemp("trained"))
    torch.set_num_threads(before)
    return made


def mean(recall: Recall) -> float:
    return (recall["t2i"]["mean_recall"] + recall["i2t"]["mean_recall"]) / 2


def flat(recall: Recall) -> list[float]:
    return [recall[way][k] for way in ("t2i", "i2t") for k in ("r1", "r5", "r10", "mean_recall")]


ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def test_the_table_of_wise_ft_is_right(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    output, table, picture = tmp_path / "wise.safetensors", tmp_path / "t.json", tmp_path / "p.html"
    data = [
        "--finetuning-data",
        str(trained.paths["finetuning"]),
        "--retention-data",
        str(trained.paths["retention"]),
    ]
    files = ["--table", str(table), "--picture", str(picture)]
    command = ["weights", "interpolate", str(trained.a), str(trained.b), str(output), "--alphas", "0,0.25,…,1"]
    printed = said(capsys, *command, *data, *files)
    report = json.loads(table.read_text())
    assert [row["alpha"] for row in report["rows"]] == list(ALPHAS)
    truth = {alpha: {name: trained.recall(alpha, name) for name in trained.sets} for alpha in ALPHAS}
    for row in report["rows"]:
        for name in trained.sets:
            assert flat(row[name]) == pytest.approx(flat(truth[row["alpha"]][name])), (row["alpha"], name)
            assert row["mean_recall"][name] == pytest.approx(mean(truth[row["alpha"]][name]))
    # The finetuned model has learnt the one and forgotten of the other, and the line between them is worth going.
    both = {alpha: mean(truth[alpha]["finetuning"]) + mean(truth[alpha]["retention"]) for alpha in ALPHAS}
    assert mean(truth[1.0]["finetuning"]) > mean(truth[0.0]["finetuning"]) + 10
    assert mean(truth[1.0]["retention"]) < mean(truth[0.0]["retention"]) - 5
    best = max(ALPHAS, key=lambda alpha: (both[alpha], -alpha))
    assert 0 < best < 1
    assert report["chosen_alpha"] == best
    assert f"{output}: alpha {best:g}, the best by --choose balance" in printed
    for alpha in ALPHAS:
        (line,) = [line for line in printed.splitlines() if line.split()[:1] == [f"{alpha:g}"]]
        numbers = []
        for name in ("finetuning", "retention"):
            recall = truth[alpha][name]
            numbers += [recall[way][k] for way in ("t2i", "i2t") for k in ("r1", "r5", "r10")] + [mean(recall)]
        assert [float(number) for number in line.split()[1:]] == pytest.approx(numbers, abs=0.051)
    # What was written is that model.
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (trained.a, trained.b))
    for name, tensor in read_checkpoint(output).state_dict.items():
        torch.testing.assert_close(tensor, (1 - best) * a[name] + best * b[name], rtol=1e-6, atol=1e-7)
    assert load_from_name(str(output), "cpu")[0].config == trained.model.config
    page = picture.read_text("utf-8")
    assert not re.search(r'(href|src)="|@import|url\(', page)  # nothing from elsewhere
    svg = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    titles = [title.text or "" for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    for alpha, title in zip(ALPHAS, titles, strict=True):
        row = truth[alpha]
        assert (
            title
            == f"alpha {alpha:g}: finetuning {mean(row['finetuning']):.2f}, retention {mean(row['retention']):.2f}"
        )


def test_other_choices(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    data = {name: [f"--{name}-data", str(path)] for name, path in trained.paths.items()}
    command = ["weights", "interpolate", str(trained.a), str(trained.b), str(tmp_path / "w.pt"), "--alphas", "0,1"]
    assert "alpha 1, the best" in said(capsys, *command, *data["finetuning"], "--choose", "finetuning")
    assert "alpha 0, the best" in said(capsys, *command, *data["retention"], "--choose", "retention")
    limited = [*command, *data["finetuning"], *data["retention"], "--choose", "finetuning", "--max-loss"]
    assert "alpha 0, the best" in said(capsys, *limited, "1")
    assert "alpha 1, the best" in said(capsys, *limited, "100")
    (tmp_path / "w.pt").unlink()
    printed = said(capsys, *command, *data["finetuning"], "--choose", "all", "--checksum", "--dtype", "float16")
    assert "the best" not in printed
    names = ["w-0.pt", "w-0.pt.sha256", "w-1.pt", "w-1.pt.sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert read_checkpoint(tmp_path / "w-1.pt").state_dict["text_projection"].dtype == torch.float16


def recall_of(value: float) -> Recall:
    return {way: {"r1": value, "r5": value, "r10": value, "mean_recall": value} for way in ("t2i", "i2t")}


PERCENT = st.integers(0, 4).map(lambda x: 25.0 * x)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(PERCENT, PERCENT), min_size=1, max_size=5),
    st.sampled_from(["balance", "finetuning", "retention"]),
    st.one_of(st.none(), st.sampled_from([0.0, 25.0, 60.0])),
    st.randoms(use_true_random=False),
)
def test_the_rule_of_choice(values: list[tuple[float, float]], rule: Any, most: float | None, random: Any) -> None:
    rows = [Row(i / 10, recall_of(new), recall_of(old)) for i, (new, old) in enumerate(values)]
    allowed = [row for row in rows if most is None or mean(row.retention or {}) >= values[0][1] - most]
    score = {"balance": lambda v: v[0] + v[1], "finetuning": lambda v: v[0], "retention": lambda v: v[1]}[rule]
    highest = max(score(values[round(row.alpha * 10)]) for row in allowed)
    expected = next(row for row in allowed if score(values[round(row.alpha * 10)]) == highest)
    random.shuffle(rows)
    assert choose(rows, rule, most) is expected


def test_choices_that_cannot_be_made() -> None:
    one = [Row(0.0, recall_of(50)), Row(1.0, recall_of(60))]
    assert choose(one, "balance").alpha == 1  # of one set
    with pytest.raises(UserError, match="--choose retention needs --retention-data"):
        choose(one, "retention")
    with pytest.raises(UserError, match="--max-loss needs --retention-data and alpha 0"):
        choose(one, "finetuning", 1.0)
    with pytest.raises(UserError, match="--max-loss needs --retention-data and alpha 0"):
        choose([Row(0.5, recall_of(50), recall_of(50))], "finetuning", 1.0)


def test_a_picture_of_one_point_or_equal_ones() -> None:
    for rows in (
        [Row(0.5, recall_of(50), recall_of(50))],
        [Row(a, recall_of(0), recall_of(100)) for a in (0.0, 1.0)],
    ):
        svg = ET.fromstring(trade_off(rows, rows[0]))
        circles = list(svg.iter("{http://www.w3.org/2000/svg}circle"))
        assert len(circles) == len(rows)
        for circle in circles:
            assert 0 < float(circle.attrib["cx"]) < 520
            assert 0 < float(circle.attrib["cy"]) < 400


# Without data, and what is refused


def test_without_data_the_files_are_written(tmp_path: Path, capsys: Capture) -> None:
    one, other = tiny_model(RESNET), tiny_model(RESNET)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.mul_(3)
    a, b = save_ours(one, tmp_path / "a.pt"), save_ours(other, tmp_path / "b.pt")
    said(capsys, "weights", "interpolate", str(a), str(b), str(tmp_path / "w.pt"))
    half = read_checkpoint(tmp_path / "w.pt").state_dict
    for name, tensor in one.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(half[name], 2 * tensor, rtol=1e-6, atol=0)  # batch norm's statistics, too
        else:
            assert torch.equal(half[name], tensor)
    said(capsys, "weights", "interpolate", str(a), str(b), str(tmp_path / "e.safetensors"), "--alphas", "0,1")
    for name, end in (("e-0.safetensors", one), ("e-1.safetensors", other)):
        written = read_checkpoint(tmp_path / name).state_dict
        assert {k: bits(v) for k, v in written.items()} == {k: bits(v) for k, v in end.state_dict().items()}


def test_a_soup_is_the_mean(tmp_path: Path, capsys: Capture) -> None:
    models = []
    for factor in (1.0, 2.0, 6.0):
        model = tiny_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        models.append(str(save_ours(model, tmp_path / f"{factor}.pt")))
    output = tmp_path / "soup.safetensors"
    said(capsys, "weights", "average", *models, "--output", str(output), "--checksum")
    for name, tensor in tiny_model().state_dict().items():
        torch.testing.assert_close(read_checkpoint(output).state_dict[name], 3 * tensor, rtol=1e-6, atol=0)
    assert said(capsys, "weights", "verify", str(output)) == f"{output}: OK\n"
    line = said(capsys, "weights", "average", models[0], "--output", str(output), status=1)
    assert line == "an average needs at least two files"


def test_what_interpolate_refuses(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    model = tiny_model()
    other = save_ours(tiny_model({**VIT, "vision_layers": 2, "image_resolution": 40}), tmp_path / "other.pt")
    spoilt = {**model.state_dict(), "visual.proj": torch.full_like(model.visual.proj, math.nan)}
    write_weights(tmp_path / "nan.pt", spoilt, model.config)
    (tmp_path / "cut.pt").write_bytes(trained.a.read_bytes()[:-500])
    (tmp_path / "file").touch()
    output = str(tmp_path / "w.pt")

    def line(b: Path, *flags: str, to: str = output) -> str:
        return said(capsys, "weights", "interpolate", str(trained.a), str(b), to, *flags, status=1)

    assert "are of two architectures: image_resolution 32 and 40; vision_layers 3 and 2" in line(other)
    assert "nan.pt: visual.proj has 1152 numbers that are NaN or infinite" in line(tmp_path / "nan.pt")
    assert "truncated or damaged" in line(tmp_path / "cut.pt")
    assert "no such file" in line(tmp_path / "none.pt")
    assert "a part of the path is a file" in line(trained.b, to=str(tmp_path / "file" / "w.pt"))
    assert "--picture needs --finetuning-data and" in line(trained.b, "--picture", str(tmp_path / "p.svg"))
    assert "--table needs data" in line(trained.b, "--table", str(tmp_path / "t.json"))
    data = ["--finetuning-data", str(trained.paths["finetuning"])]
    assert "--choose retention needs --retention-data" in line(trained.b, *data, "--choose", "retention")
    assert "--max-loss is a number of points" in line(trained.b, *data, "--max-loss", "1")
    assert "--batch-size must be 1 or more" in line(trained.b, *data, "--batch-size", "0")
    more = [*data, "--retention-data", str(trained.paths["retention"])]
    assert "--picture is an .svg or an .html" in line(trained.b, *more, "--picture", str(tmp_path / "p.png"))
    assert "nowhere" in line(trained.b, "--finetuning-data", str(tmp_path / "nowhere"))
    assert not list(tmp_path.glob("w*"))
