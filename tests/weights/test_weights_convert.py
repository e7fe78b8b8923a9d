"""`weights convert` and `weights diff`: nothing is lost on the way round, and a difference is told as it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights_inspect import said

from cn_clip.checkpoint import read_checkpoint, write_weights
from cn_clip.cli import main
from cn_clip.clip import load_from_name
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.weights import convert as convert_module
from cn_clip.weights.checksums import content_sha256
from cn_clip.weights.convert import convert
from cn_clip.weights.diff import compare
from tiny import BERT, RESNET, VIT, save_ours, tiny_model, write_json

Capture = pytest.CaptureFixture[str]
TARGETS = {"pt": "w.pt", "safetensors": "w.safetensors", "hf": "folder", "sentence-transformers": "folder"}


def training_checkpoint(model: CLIP, path: Path) -> Path:
    """With an optimizer, wrapped names and a position."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    content = {
        "epoch": 3,
        "step": 735,
        "name": "muge",
        "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_config": model.config.to_dict(),
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("to", TARGETS)
def test_every_target_holds_the_weights(to: Any, dtype: Any, tmp_path: Path, capsys: Capture) -> None:
    model = tiny_model()
    source = training_checkpoint(model, tmp_path / "epoch3.pt")
    output = tmp_path / TARGETS[to]
    said(capsys, "weights", "convert", str(source), str(output), "--to", to, "--dtype", dtype)
    found = read_checkpoint(output)
    assert found.architecture() == model.config
    assert "optimizer" not in found.rest
    kind = getattr(torch, dtype)
    for name, tensor in model.state_dict().items():
        own = found.state_dict[name]
        assert torch.equal(own, tensor.to(kind) if tensor.ndim else tensor), name
    loaded, _ = load_from_name(str(output), "cpu")  # no other argument
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["epoch3.pt", output.name])


def test_round_trips_lose_nothing(tmp_path: Path) -> None:
    model = tiny_model()
    source = str(training_checkpoint(model, tmp_path / "epoch3.pt"))
    hops = ["a.safetensors", "b", "c.pt", "d", "e.safetensors"]
    kinds: list[Any] = ["safetensors", "hf", "pt", "sentence-transformers", "safetensors"]
    for hop, kind in zip(hops, kinds, strict=True):
        convert(source, tmp_path / hop, to=kind)
        source = str(tmp_path / hop)
    assert content_sha256(read_checkpoint(source).state_dict) == content_sha256(model.state_dict())


def test_the_reference_layout(tmp_path: Path, capsys: Capture) -> None:
    model = tiny_model(RESNET)
    save_ours(model, tmp_path / "w.pt")
    said(capsys, "weights", "convert", str(tmp_path / "w.pt"), str(tmp_path / "ref.pt"), "--reference-layout")
    content = torch.load(tmp_path / "ref.pt", weights_only=True)
    # What its trainer looks up when it resumes with --reset-optimizer.
    assert (content["epoch"], content["step"]) == (0, 0)
    assert list(content["state_dict"]) == [f"module.{name}" for name in model.state_dict()]
    training_checkpoint(model, tmp_path / "epoch3.pt")
    convert(str(tmp_path / "epoch3.pt"), tmp_path / "ref.pt", reference_layout=True)
    content = torch.load(tmp_path / "ref.pt", weights_only=True)
    assert (content["epoch"], content["step"], content["name"]) == (3, 735, "muge")
    assert "optimizer" not in content


def test_a_checksum_beside_the_file(tmp_path: Path, capsys: Capture) -> None:
    source, output = save_ours(tiny_model(), tmp_path / "w.pt"), tmp_path / "w.safetensors"
    said(capsys, "weights", "convert", str(source), str(output), "--checksum")
    assert said(capsys, "weights", "verify", str(output)) == f"{output}: OK\n"


def test_a_file_that_does_not_describe_itself(tmp_path: Path, capsys: Capture) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "bare.pt")
    vision, text = write_json(tmp_path, vit=VIT, bert=BERT)
    command = ["weights", "convert", str(tmp_path / "bare.pt"), str(tmp_path / "w.safetensors")]
    assert "give vision_model_name and text_model_name" in said(capsys, *command, status=1)
    assert "together" in said(capsys, *command, "--vision-model", vision, status=1)
    said(capsys, *command, "--vision-model", vision, "--text-model", text)
    assert read_checkpoint(tmp_path / "w.safetensors").config == tiny_model().config


def spoil(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    projection = weights["text_projection"].clone()
    if kind == "nan":
        projection[0, 0] = math.nan
    if kind == "large":
        projection *= 1e7
    if kind == "missing":
        return {k: v for k, v in weights.items() if k != "visual.proj"}
    return {**weights, "text_projection": projection}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nan", "w.pt: text_projection has 1 numbers that are NaN or infinite; use an earlier checkpoint"),
        ("large", "too large for torch.float16: choose bfloat16"),
        ("missing", "weights of another architecture: missing (1): visual.proj"),
    ],
)
@pytest.mark.parametrize("to", TARGETS)
def test_weights_that_cannot_be_converted(
    to: str, kind: str, expected: str, tmp_path: Path, capsys: Capture
) -> None:
    model = tiny_model()
    content = {"state_dict": spoil(model.state_dict(), kind), "model_config": model.config.to_dict()}
    torch.save(content, tmp_path / "w.pt")
    command = ["weights", "convert", str(tmp_path / "w.pt"), str(tmp_path / f"new-{TARGETS[to]}"), "--to", to]
    assert expected in said(capsys, *command, "--dtype", "float16", status=1)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_what_does_not_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that changes a bit, and a precision that is not enough."""
    model = tiny_model()
    source, output = save_ours(model, tmp_path / "w.pt"), tmp_path / "w.safetensors"
    output.write_bytes(b"what was there before")

    def write_and_flip(path: Path, *args: Any) -> None:
        write_weights(path, *args)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    with monkeypatch.context() as broken:
        broken.setattr(convert_module, "write_weights", write_and_flip)
        with pytest.raises(UserError, match="is not what was written; is the disk sound"):
            convert(str(source), output)
    monkeypatch.setitem(convert_module.TOLERANCE, torch.bfloat16, 1e-9)
    with pytest.raises(UserError, match=r"in torch.bfloat16 the features differ by .*need a higher precision"):
        convert(str(source), output, dtype="bfloat16")
    assert output.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pt", "w.safetensors"]


def test_targets_that_cannot_be_written(tmp_path: Path, capsys: Capture) -> None:
    source = str(save_ours(tiny_model(), tmp_path / "w.pt"))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "diary.txt").touch()
    save_ours(tiny_model(RESNET), tmp_path / "rn.pt")

    def line(*args: str) -> str:
        return said(capsys, "weights", "convert", *args, status=1)

    assert "a part of the path is a file" in line(source, str(tmp_path / "file" / "w.pt"))
    assert "diary.txt" in line(source, str(tmp_path / "folder"), "--to", "hf")
    assert "Say it with --to" in line(source, str(tmp_path / "new"))
    assert "its ending says another kind" in line(source, str(tmp_path / "new.safetensors"), "--to", "pt")
    assert "its ending says another kind" in line(source, str(tmp_path / "new.pt"), "--to", "safetensors")
    assert "--reference-layout is a .pt" in line(source, str(tmp_path / "n.safetensors"), "--reference-layout")
    assert "--checksum is for one file" in line(source, str(tmp_path / "new"), "--to", "hf", "--checksum")
    assert "ResNet" in line(str(tmp_path / "rn.pt"), str(tmp_path / "new"), "--to", "hf")
    assert not (tmp_path / "new").exists()


# diff


def oracle(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Every number by its definition."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    zeros = not x.any() or not y.any()
    return {
        "max_abs": float(abs(x - y).max()),
        "mean_abs": float(abs(x - y).mean()),
        "relative": float(np.linalg.norm(x - y) / np.linalg.norm(x))
        if x.any()
        else (math.inf if y.any() else 0.0),
        "cosine": float(not x.any() and not y.any()) if zeros else float(x @ y / lengths),
    }


VALUES = st.floats(-100, 100, width=32, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 1e-6 else x)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.floats(0, 3))
def test_diff_counts_as_the_definition_does(data: Any, tolerance: float) -> None:
    a, b = {}, {}
    for name in ("visual.x", "bert.y", "text_projection"):
        size = data.draw(st.integers(1, 6))
        a[name] = torch.tensor(data.draw(st.lists(VALUES, min_size=size, max_size=size)))
        other = torch.tensor(data.draw(st.lists(VALUES, min_size=size, max_size=size)))
        b[name] = a[name].clone() if data.draw(st.booleans()) else other
    report = compare(a, b, tolerance)
    for row in report["tensors"]:
        expected = oracle(a[row["name"]].numpy(), b[row["name"]].numpy())
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, rel=1e-9, abs=1e-12), (row["name"], key)
        assert row["same"] == (expected["max_abs"] <= tolerance)
    text = oracle(*(np.concatenate([w["bert.y"].numpy(), w["text_projection"].numpy()]) for w in (a, b)))
    for key, value in text.items():
        assert report["towers"]["text"][key] == pytest.approx(value, rel=1e-9, abs=1e-12), key
    assert report["same"] == all((a[k] - b[k]).abs().double().max().item() <= tolerance for k in a)


def test_nan_is_nan_and_infinity_infinity() -> None:
    odd = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    assert compare({"bert.x": odd}, {"bert.x": odd.clone()})["same"]
    for place, value in ((0, 1.0), (1, -math.inf), (2, 0.0), (3, math.nan)):
        other = odd.clone()
        other[place] = value
        report = compare({"bert.x": odd}, {"bert.x": other}, tolerance=1e30)
        assert not report["same"], place


def test_diff_says_where_and_how_much(tmp_path: Path, capsys: Capture) -> None:
    model = tiny_model()
    a = save_ours(model, tmp_path / "a.pt")
    write_weights(tmp_path / "same.safetensors", model.state_dict(), model.config, prefix="")
    assert "the same: 99 tensors" in said(capsys, "weights", "diff", str(a), str(tmp_path / "same.safetensors"))
    with torch.no_grad():
        model.visual.proj[0, 0] += 0.5
        model.text_projection[0, 0] += 0.25
    b = save_ours(model, tmp_path / "b.pt")
    capsys.readouterr()
    assert main(["weights", "diff", str(a), str(b), "--top", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["image", "0.5"],
        ["text", "0.25"],
        ["scale", "0"],
        ["visual.proj", "0.5"],
    ]
    assert lines[5].startswith("… and 1 more")
    assert lines[6] == "different: 2 of 99 tensors that both have"
    assert main(["weights", "diff", str(a), str(b), "--tolerance", "0.4"]) == 1
    assert main(["weights", "diff", str(a), str(b), "--tolerance", "0.51"]) == 0
    capsys.readouterr()
    main(["weights", "diff", str(a), str(b), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in report["tensors"] if not row["same"]} == {"visual.proj", "text_projection"}


def test_diff_of_two_architectures(tmp_path: Path, capsys: Capture) -> None:
    a = save_ours(tiny_model(), tmp_path / "a.pt")
    b = save_ours(tiny_model({**VIT, "image_resolution": 40, "vision_layers": 2}), tmp_path / "b.pt")
    capsys.readouterr()
    assert main(["weights", "diff", str(a), str(b), "--top", "2"]) == 1
    text = capsys.readouterr().out
    assert f"only in {a}: 12 tensors: visual.transformer.resblocks.2." in text
    assert f"visual.positional_embedding: [17, 48] in {a}, [26, 48] in {b}" in text


def test_precision_alone_is_no_difference(tmp_path: Path, capsys: Capture) -> None:
    model = tiny_model()
    half = {k: v.half() for k, v in model.state_dict().items()}
    write_weights(tmp_path / "half.pt", half, model.config)
    write_weights(tmp_path / "full.pt", {k: v.float() for k, v in half.items()}, model.config)
    printed = said(capsys, "weights", "diff", str(tmp_path / "half.pt"), str(tmp_path / "full.pt"))
    assert printed == "the same: 99 tensors; 99 in another precision\n"


def test_diff_that_cannot_be_made_is_trouble(tmp_path: Path, capsys: Capture) -> None:
    a = save_ours(tiny_model(), tmp_path / "a.pt")
    (tmp_path / "cut.pt").write_bytes(a.read_bytes()[:-500])
    for other, expected in ((tmp_path / "none.pt", "no such file"), (tmp_path / "cut.pt", "truncated")):
        assert expected in said(capsys, "weights", "diff", str(a), str(other), status=2)
    assert "--tolerance" in said(capsys, "weights", "diff", str(a), str(a), "--tolerance", "-1", status=2)
