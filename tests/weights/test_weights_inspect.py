"""`cn-clip models`, `weights inspect`, `weights verify`: what is said of a file is so."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cn_clip import zoo
from cn_clip.checkpoint import write_weights
from cn_clip.cli import main
from cn_clip.config import model_config
from cn_clip.conversion.huggingface import save_huggingface
from cn_clip.models.clip import CLIP
from cn_clip.weights.checksums import content_sha256
from tiny import RESNET, VIT, save_ours, tiny_model

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *args: str, status: int = 0) -> str:
    """What a command prints: on standard output, or for status 1 its one line of error."""
    capsys.readouterr()
    assert main(list(args)) == status
    printed = capsys.readouterr()
    if status == 0:
        return printed.out
    (line,) = printed.err.splitlines()
    return line.removeprefix("cn-clip: error: ")


def inspected(capsys: Capture, path: Path, *flags: str) -> dict[str, Any]:
    return json.loads(said(capsys, "weights", "inspect", str(path), "--json", *flags))


# models


def test_models_lists_towers_sizes_and_places(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "clip_cn_rn50.pt").write_bytes(b"x" * 3_000_000)
    (tmp_path / "clip_cn_rn50.pt.sha256").write_text(f"{'0a' * 32}  clip_cn_rn50.pt\n")
    rows = said(capsys, "models", "--download-root", str(tmp_path)).splitlines()
    table = {row.split()[0]: row.split()[1:] for row in rows[1:7]}
    assert list(table) == zoo.available_models()
    assert table["ViT-B-16"] == ["86,192,640", "102,070,272", "224", "512", "not", "here", "clip_cn_vit-b-16.pt"]
    assert table["RN50"] == ["38,316,896", "38,672,640", "224", "1,024", "3", "MB", "clip_cn_rn50.pt"]
    assert rows[-1] == f"weights are kept in {tmp_path}"
    found = {
        row["model"]: row for row in json.loads(said(capsys, "models", "--download-root", str(tmp_path), "--json"))
    }
    assert found["RN50"]["sha256"] == "0a" * 32
    assert found["RN50"]["here"] is True
    assert found["ViT-B-16"]["bytes"] is None
    assert found["ViT-H-14"]["repositories"]["Hugging Face"] == "OFA-Sys/chinese-clip-vit-huge-patch14"
    # The published numbers of parameters, in millions.
    published = {"ViT-B-16": 188, "ViT-L-14": 406, "ViT-L-14-336": 407, "ViT-H-14": 958, "RN50": 77}
    assert {name: round(found[name]["parameters"]["total"] / 1e6) for name in published} == published


def test_models_knows_the_bundled_one_from_its_file(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.resources, "files", lambda package: tmp_path)
    (tmp_path / "assets").mkdir()
    before = said(capsys, "models")
    assert "emoji-tiny: not in this installation" in before
    model = tiny_model()
    write_weights(tmp_path / "assets" / "emoji-tiny.safetensors", model.state_dict(), model.config)
    (row,) = [r for r in json.loads(said(capsys, "models", "--json")) if r["model"] == "emoji-tiny"]
    count = sum(p.numel() for p in model.parameters())
    assert row["parameters"]["total"] == count
    assert row["parameters"]["image"] == sum(p.numel() for p in model.visual.parameters())
    assert (row["resolution"], row["width"], row["here"]) == (32, 24, True)
    assert row["image_tower"] == "ViT/8 3×48"
    (tmp_path / "assets" / "emoji-tiny.safetensors").write_bytes(b"damaged")
    assert "ViT-B-16" in said(capsys, "models")


# inspect


def naive(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Statistics of each tensor by NumPy in float64, NaN and infinities left out."""
    found = {}
    for name, tensor in weights.items():
        values = tensor.detach().double().numpy().reshape(-1)
        good = values[np.isfinite(values)]
        found[name] = {
            "norm": float(np.sqrt((good**2).sum())),
            "mean": float(good.mean()),
            "std": float(good.std()),
            "min": float(good.min()),
            "max": float(good.max()),
            "nan": int(np.isnan(values).sum()),
            "inf": int(np.isinf(values).sum()),
        }
    return found


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_inspect_says_what_is_in_a_file(vision: dict[str, Any], tmp_path: Path, capsys: Capture) -> None:
    model = tiny_model(vision)
    with torch.no_grad():
        model.text_projection[0, 0] = math.nan
        model.text_projection[1, :2] = torch.tensor([math.inf, -math.inf])
    weights = model.state_dict()
    write_weights(tmp_path / "w.safetensors", weights, model.config)
    report = inspected(capsys, tmp_path / "w.safetensors", "--tensors", "--sha256")
    assert report["sha256"] == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert report["bytes"] == (tmp_path / "w.safetensors").stat().st_size
    assert report["layout"] == "weights of this package, self-describing"
    assert report["architecture"] == json.loads(json.dumps(model.config.to_dict()))
    assert (report["nan"], report["inf"]) == (1, 2)
    assert report["logit_scale"]["factor"] == pytest.approx(model.logit_scale.exp().item())
    rows = {row["name"]: row for row in report["tensors"]}
    for name, numbers in naive(weights).items():
        for key, value in numbers.items():
            assert rows[name][key] == pytest.approx(value, rel=1e-5, abs=1e-6), (name, key)
    towers = report["towers"]
    assert towers["image"]["parameters"] == sum(p.numel() for p in model.visual.parameters())
    assert towers["image"]["tensors"] == len(model.visual.state_dict())
    others = [
        p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"
    ]
    assert towers["text"]["parameters"] == sum(p.numel() for p in others)
    text = said(capsys, "weights", "inspect", str(tmp_path / "w.safetensors"))
    assert "numbers       1 NaN; 2 infinite!" in text


def layouts(folder: Path) -> dict[str, str]:
    """A file of every layout, and the name it should be given."""
    model = tiny_model()
    plain = model.state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in plain.items()}
    optimizer = torch.optim.AdamW(model.parameters())
    model.logit_scale.sum().backward()
    optimizer.step()
    position = {"epoch": 3, "step": np.int64(735), "name": "muge"}
    training = {**position, "state_dict": wrapped, "optimizer": optimizer.state_dict()}
    clip = {k: v for k, v in plain.items() if k.startswith("visual.")}
    bert = {k: v for k, v in plain.items() if k.startswith("bert.")}
    save_huggingface(folder / "hf", plain, model.config)
    files = {
        "theirs.pt": (training, "training checkpoint of the reference"),
        "ours.pt": ({**training, "model_config": model.config.to_dict()}, "training checkpoint of this package"),
        "published.pt": (
            {**position, "state_dict": wrapped},
            "published layout (weights of a training checkpoint)",
        ),
        "bare.pt": (plain, "Chinese CLIP's weights alone"),
        "wrapped.pt": (wrapped, "Chinese CLIP's weights alone, names with module."),
        "openai.pt": (
            {**clip, "token_embedding.weight": torch.ones(3, 2)},
            "OpenAI CLIP (or open_clip), both towers",
        ),
        "visual.pt": (clip, "an image tower under OpenAI CLIP's names"),
        "bert.bin": ({**bert, "cls.predictions.bias": torch.ones(4)}, "BERT, with its pretraining head"),
        "model.bin": ({"embeddings.word_embeddings.weight": torch.ones(4, 2)}, "BERT"),
        "roberta.bin": ({"roberta.embeddings.weight": torch.ones(4)}, "RoBERTa's own layout"),
        "clipmodel.bin": (
            {"text_model.encoder.layers.0.a": torch.ones(1), "vision_model.b": torch.ones(1)},
            "OpenAI CLIP for transformers (CLIPModel)",
        ),
        "timm.bin": (
            {"visual.trunk.blocks.0.a": torch.ones(1)},
            "an open_clip model with an image tower of timm",
        ),
        "other.pt": ({"conv.weight": torch.ones(2)}, "tensors of something else"),
    }
    for name, (content, _) in files.items():
        torch.save(content, folder / name)
    return {"hf": "Chinese CLIP for transformers (ChineseCLIPModel)", **{k: v for k, (_, v) in files.items()}}


def test_inspect_recognises_layouts(tmp_path: Path, capsys: Capture) -> None:
    for name, expected in layouts(tmp_path).items():
        report = inspected(capsys, tmp_path / name)
        assert report["layout"] == expected, name
        assert report["optimizer"] == (name in ("theirs.pt", "ours.pt")), name
        if name in ("theirs.pt", "ours.pt", "published.pt"):
            assert (report["epoch"], report["step"], report["name"]) == (3, 735, "muge")
    assert "--bert-weight-path" in inspected(capsys, tmp_path / "bert.bin")["use"]
    text = said(capsys, "weights", "inspect", str(tmp_path / "bare.pt"))
    assert "architecture  not known: not a built-in architecture" in text


def test_inspect_tells_a_published_architecture_from_shapes(tmp_path: Path, capsys: Capture) -> None:
    config = model_config("RN50", "RBT3-chinese")
    with torch.device("meta"):
        weights = CLIP(config).state_dict()
    torch.save({k: torch.zeros(v.shape, dtype=torch.float16) for k, v in weights.items()}, tmp_path / "w.pt")
    report = inspected(capsys, tmp_path / "w.pt")
    assert report["architecture"] == json.loads(json.dumps(config.to_dict()))
    assert report["architecture_from"] == "the tensors' shapes"


def test_inspect_refuses_in_one_line(tmp_path: Path, capsys: Capture) -> None:
    path = save_ours(tiny_model(), tmp_path / "w.pt")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated or damaged" in said(capsys, "weights", "inspect", str(path), status=1)
    torch.save({"epoch": 3}, path)
    assert "expected tensors with names, found epoch" in said(capsys, "weights", "inspect", str(path), status=1)
    torch.save({}, path)
    assert "found nothing" in said(capsys, "weights", "inspect", str(path), status=1)
    assert "no such file, folder or repo" in said(capsys, "weights", "inspect", str(tmp_path / "none"), status=1)


# content checksums


def test_the_content_has_one_checksum_in_every_container(tmp_path: Path, capsys: Capture) -> None:
    model = tiny_model()
    weights = model.state_dict()
    write_weights(tmp_path / "a.pt", weights, model.config, metadata={"epoch": 3})
    write_weights(tmp_path / "b.pt", dict(reversed(weights.items())), model.config, prefix="module.")
    write_weights(tmp_path / "c.safetensors", weights, model.config)
    torch.save(weights, tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    save_huggingface(tmp_path / "e", weights, model.config, max_shard_size=500_000)
    names = ["a.pt", "b.pt", "c.safetensors", "d.pt", "e"]
    found = {inspected(capsys, tmp_path / name)["content_sha256"] for name in names}
    assert found == {content_sha256(weights)}
    write_weights(tmp_path / "half.pt", weights, model.config, torch.float16)
    assert inspected(capsys, tmp_path / "half.pt")["content_sha256"] not in found


NUMBERS = st.floats(width=32, allow_nan=False)
STATES = st.dictionaries(st.text(max_size=5), st.lists(NUMBERS, min_size=1, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(STATES, st.data())
def test_the_content_checksum_sees_every_number_name_and_shape(state: dict[str, list[float]], data: Any) -> None:
    weights = {name: torch.tensor(values) for name, values in state.items()}
    checksum = content_sha256(weights)
    assert content_sha256({k: v.clone() for k, v in reversed(weights.items())}) == checksum
    name = data.draw(st.sampled_from(sorted(weights)))
    place = data.draw(st.integers(0, len(weights[name]) - 1))
    changed = weights[name].clone()
    changed[place] = changed[place] + 1 if abs(changed[place]) < 1e6 else 0
    assert content_sha256({**weights, name: changed}) != checksum
    assert content_sha256({**weights, name: weights[name][None]}) != checksum
    assert content_sha256({**weights, name: weights[name].double()}) != checksum
    assert content_sha256({**weights, name + "'": weights[name]}) != checksum


# verify


def test_verify_writes_what_sha256sum_checks(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "clip 中文.pt"
    file.write_bytes(b"weights" * 1_000_000)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert said(capsys, "weights", "verify", str(file), "--sha256", expected.upper()) == f"{file}: OK\n"
    said(capsys, "weights", "verify", str(file), "--write")
    assert (tmp_path / "clip 中文.pt.sha256").read_text() == f"{expected}  {file.name}\n"
    assert said(capsys, "weights", "verify", str(file)) == f"{file}: OK\n"
    assert said(capsys, "weights", "verify", f"{file}.sha256") == f"{file}: OK\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", f"{file.name}.sha256"], cwd=tmp_path, check=True, capture_output=True)
        made = subprocess.run(["sha256sum", file.name], cwd=tmp_path, check=True, capture_output=True).stdout
        (tmp_path / "checksums.txt").write_bytes(made)
        assert said(capsys, "weights", "verify", str(tmp_path / "checksums.txt")) == f"{file}: OK\n"
    file.write_bytes(b"Weights" + file.read_bytes()[7:])
    line = said(capsys, "weights", "verify", str(file), status=1)
    assert line.startswith(
        f"{file}: its SHA-256 is {hashlib.sha256(file.read_bytes()).hexdigest()}, not {expected}"
    )
    assert "download it again" in line


def test_verify_says_what_it_needs(tmp_path: Path, capsys: Capture) -> None:
    file, digits = tmp_path / "w.pt", "0" * 64
    file.write_bytes(b"x")

    def line(*args: str) -> str:
        return said(capsys, "weights", "verify", *args, status=1)

    assert line(str(file)) == f"{file}.sha256: no such file; give --sha256, or --write to make it"
    assert line(str(file), "--sha256", "12") == "--sha256 takes 64 hexadecimal digits, not '12'"
    assert line(str(tmp_path / "none.pt"), "--write") == f"{tmp_path}/none.pt: no such file"
    (tmp_path / "w.pt.sha256").write_text(f"{digits}  other.pt\n")
    assert line(str(file)) == f"{file}.sha256: has no line for w.pt"
    assert line(f"{file}.sha256") == f"{tmp_path}/other.pt: no such file"
    (tmp_path / "w.pt.sha256").write_text(f"{digits}  w.pt\nnonsense\n")
    assert line(str(file)).startswith(f"{file}.sha256:2: expected 64 hexadecimal digits")
    (tmp_path / "w.pt.sha256").write_bytes(b"\xff\xfe")
    assert "not a file of checksums" in line(str(file))
    (tmp_path / "w.pt.sha256").write_text("")
    assert line(str(file)).endswith("holds no checksum")
    (tmp_path / "SHA256SUMS").write_text(f"{digits}  w.pt\n{digits}  x.pt\n")
    assert "(and 1 more)" in line(str(tmp_path / "SHA256SUMS"))
    assert "--sha256 and --write are for one file" in line(str(tmp_path / "SHA256SUMS"), "--write")
