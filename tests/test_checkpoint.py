"""Weights read and written: every layout met in the field, and every way a file can be wrong."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from cn_clip.checkpoint import (
    Checkpoint,
    load_model,
    load_weights,
    read_checkpoint,
    write_checkpoint,
    write_weights,
)
from cn_clip.clip import load_from_name, tokenize
from cn_clip.config import TEXT_MODELS, VISION_MODELS, ModelConfig, model_config
from cn_clip.containers import write_safetensors
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.towers import load_towers
from tiny import BERT, RESNET, TEXTS, VIT, save_ours, tiny_model, write_json

Weights = dict[str, torch.Tensor]


def as_flash_attention(weights: Weights, layers: int, blocks: int) -> Weights:
    """The names that the reference's model has with flash attention."""
    weights = dict(weights)
    for i in range(blocks):
        for kind in ("weight", "bias"):
            attention = f"visual.transformer.resblocks.{i}.attn"
            weights[f"{attention}.Wqkv.{kind}"] = weights.pop(f"{attention}.in_proj_{kind}")
    for i in range(layers):
        for kind in ("weight", "bias"):
            attention = f"bert.encoder.layer.{i}.attention"
            parts = [weights.pop(f"{attention}.self.{name}.{kind}") for name in ("query", "key", "value")]
            weights[f"{attention}.self.Wqkv.{kind}"] = torch.cat(parts)
            weights[f"{attention}.self.out_proj.{kind}"] = weights.pop(f"{attention}.output.dense.{kind}")
    return weights


def published_layout(model: CLIP) -> dict[str, Any]:
    """What the reference's trainer leaves: wrapped names, a pooler, half precision, NumPy numbers."""
    weights = {f"module.{key}": value.clone() for key, value in model.state_dict().items()}
    for key in weights:
        if key.endswith(("conv1.weight", "dense.weight", "_projection")):
            weights[key] = weights[key].half()
    width = model.config.text.text_hidden_size
    weights["module.bert.pooler.dense.weight"] = torch.ones(width, width)
    weights["module.bert.pooler.dense.bias"] = torch.ones(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = np.float64(3e-5)  # its schedule computes with NumPy
    return {
        "epoch": 3,
        "step": np.int64(735),
        "name": "muge_finetune",
        "state_dict": weights,
        "optimizer": optimizer.state_dict(),
    }


def assert_same_weights(model: CLIP, expected: Weights) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        kind = torch.float32 if value.is_floating_point() else value.dtype
        assert found[key].dtype == kind
        assert torch.equal(found[key], value.to(kind)), key


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_published_layout(vision: dict[str, Any], zipped: bool, tmp_path: Path) -> None:
    model = tiny_model(vision)
    content = published_layout(model)
    torch.save(content, tmp_path / "epoch_latest.pt", _use_new_zipfile_serialization=zipped)
    names = write_json(tmp_path, vision=vision, text=BERT)
    loaded, transform = load_from_name(
        str(tmp_path / "epoch_latest.pt"), "cpu", vision_model_name=names[0], text_model_name=names[1]
    )
    expected = {
        key.removeprefix("module."): value for key, value in content["state_dict"].items() if "pooler" not in key
    }
    assert_same_weights(loaded, expected)
    assert transform.size == vision["image_resolution"]
    assert not any(part.training for part in loaded.modules())


def test_the_rest_of_a_training_checkpoint_can_be_read(tmp_path: Path) -> None:
    content = published_layout(tiny_model())
    torch.save(content, tmp_path / "epoch1.pt")
    rest = read_checkpoint(tmp_path / "epoch1.pt").rest
    assert (rest["epoch"], rest["step"], rest["name"]) == (3, 735, "muge_finetune")
    assert rest["optimizer"]["param_groups"][0]["lr"] == 3e-5
    assert len(rest["optimizer"]["state"]) == len(list(tiny_model().parameters()))


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_flash_attention_names_become_plain_ones(wrapped: str, tmp_path: Path) -> None:
    model = tiny_model()
    flash = as_flash_attention(model.state_dict(), layers=3, blocks=3)
    assert not any("in_proj" in key or "query" in key for key in flash)
    torch.save({"state_dict": {wrapped + key: value for key, value in flash.items()}}, tmp_path / "flash.pt")
    checkpoint = read_checkpoint(tmp_path / "flash.pt")
    assert_same_weights(load_model(checkpoint, model.config), model.state_dict())


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_ours_needs_nothing_but_its_path(vision: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(vision)
    loaded, transform = load_from_name(str(save_ours(model, tmp_path / "ours.pt")), "cpu")
    assert loaded.config == model.config
    assert_same_weights(loaded, model.state_dict())
    assert transform.size == vision["image_resolution"]


def test_bare_weights_and_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = tiny_model()
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    save_file({f"module.{k}": v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    for name in ("bare.pt", "w.safetensors"):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.config is None
        assert checkpoint.rest == {}
        assert_same_weights(load_model(checkpoint, model.config), model.state_dict())


SAVE_OVER = """
import sys, torch
from cn_clip.clip import load_from_name
model, _ = load_from_name(sys.argv[1], "cpu")
content = {"state_dict": model.state_dict(), "model_config": model.config.to_dict()}
torch.save(content, sys.argv[1])  # empties the file first, then reads the weights
print(float(sum(p.detach().double().abs().sum() for p in model.parameters())))
"""


def test_a_model_does_not_depend_on_its_file_any_more(tmp_path: Path) -> None:
    """In a process of its own: reading from a mapped file that was cut short kills it (SIGBUS)."""
    path = save_ours(tiny_model(), tmp_path / "ours.pt")
    done = subprocess.run([sys.executable, "-c", SAVE_OVER, path], capture_output=True, text=True)
    assert done.returncode == 0, done
    expected = float(sum(p.detach().double().abs().sum() for p in tiny_model().parameters()))
    assert float(done.stdout) == pytest.approx(expected)
    assert_same_weights(load_from_name(str(path), "cpu")[0], tiny_model().state_dict())


CUT_OFF = """
import sys
from cn_clip.clip import load_from_name
model, _ = load_from_name(sys.argv[1], "cpu")
open(sys.argv[1], "wb").close()  # as any program does that saves over a file
print(float(sum(p.detach().double().abs().sum() for p in model.parameters())))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_loses_its_content_takes_no_weights_along(
    suffix: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, path = tiny_model(), tmp_path / f"w{suffix}"
    write_weights(path, model.state_dict(), model.config, dtype)
    done = subprocess.run([sys.executable, "-c", CUT_OFF, path], capture_output=True, text=True)
    assert done.returncode == 0, done
    expected = sum(float(p.detach().to(dtype).double().abs().sum()) for p in model.parameters() if p.ndim)
    assert float(done.stdout) == pytest.approx(expected + float(model.logit_scale.detach().abs()))


def test_loading_leaves_the_number_of_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        load_from_name(str(save_ours(tiny_model(), tmp_path / "w.pt")), "cpu")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_eval_mode_gives_the_same_vectors_twice(tmp_path: Path) -> None:
    loaded, _ = load_from_name(str(save_ours(tiny_model(), tmp_path / "ours.pt")), "cpu")
    ids = tokenize(TEXTS)
    with torch.no_grad():
        first, second = loaded.encode_text(ids), loaded.encode_text(ids)
        assert torch.equal(first, second)
        loaded.train()
        assert not torch.equal(first, loaded.encode_text(ids))  # the dropout that must be off is there


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_another_precision_where_asked_for(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = str(save_ours(tiny_model(), tmp_path / "ours.pt"))
    loaded, _ = load_from_name(path, "cpu", precision=precision)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    with pytest.raises(UserError, match="no precision int4; choose one of auto, fp32, bf16, fp16"):
        load_from_name(path, "cpu", precision="int4")


def naive_positions(old: torch.Tensor, grid: int) -> torch.Tensor:
    side = round((len(old) - 1) ** 0.5)
    square = old[1:].T.reshape(1, -1, side, side)
    new = interpolate(square, (grid, grid), mode="bicubic", align_corners=True)
    return torch.cat([old[:1], new.reshape(-1, grid * grid).T])


@pytest.mark.parametrize("pixels", [24, 40, 64, 100])
def test_positions_of_a_vit_are_interpolated(pixels: int, tmp_path: Path) -> None:
    model = tiny_model()
    path = str(save_ours(model, tmp_path / "ours.pt"))
    loaded, transform = load_from_name(path, "cpu", input_resolution=pixels)
    expected = naive_positions(model.visual.positional_embedding.detach(), pixels // 8)
    torch.testing.assert_close(loaded.visual.positional_embedding.detach(), expected, rtol=0, atol=1e-6)
    assert transform.size == pixels
    assert loaded.encode_image(torch.zeros(1, 3, pixels, pixels)).shape == (1, 24)


@pytest.mark.parametrize("pixels", [32, 128])
def test_positions_of_a_resnet_are_interpolated(pixels: int, tmp_path: Path) -> None:
    model = tiny_model(RESNET)
    path = str(save_ours(model, tmp_path / "ours.pt"))
    loaded, _ = load_from_name(path, "cpu", input_resolution=pixels)
    expected = naive_positions(model.visual.attnpool.positional_embedding.detach(), pixels // 32)
    torch.testing.assert_close(loaded.visual.attnpool.positional_embedding.detach(), expected, rtol=0, atol=1e-6)
    assert loaded.encode_image(torch.zeros(1, 3, pixels, pixels)).shape == (1, 24)


def test_resolutions_that_cannot_be() -> None:
    with pytest.raises(UserError, match="input_resolution must be at least 8, not 7"):
        load_at(VIT, 7)
    with pytest.raises(UserError, match="input_resolution must be a multiple of 32, not 255"):
        load_at(RESNET, 255)


def load_at(vision: dict[str, Any], pixels: int) -> None:
    from cn_clip.clip import _at_resolution

    _at_resolution(ModelConfig.from_dict({**vision, **BERT}), pixels)


@pytest.mark.parametrize("text", TEXT_MODELS)
@pytest.mark.parametrize("vision", VISION_MODELS)
def test_the_architecture_is_told_from_the_shapes(vision: str, text: str) -> None:
    config = model_config(vision, text)
    with torch.device("meta"):
        weights = CLIP(config).state_dict()
    assert Checkpoint(Path("weights.pt"), weights, None, {}).architecture() == config


def test_an_architecture_that_shapes_do_not_tell(tmp_path: Path) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "bare.pt")
    assert "give vision_model_name and text_model_name" in refused(tmp_path / "bare.pt")


# What is wrong with a file


class Payload:
    """Pickled, it is a shell command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"echo owned > '{self.file}'",)


@pytest.mark.parametrize("where", ["beside the weights", "among the weights", "instead"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_refused_and_not_run(zipped: bool, where: str, tmp_path: Path) -> None:
    payload, weights = Payload(tmp_path / "owned"), tiny_model().state_dict()
    content = {
        "beside the weights": {"state_dict": weights, "args": payload},
        "among the weights": {"state_dict": {**weights, "logit_scale": payload}},
        "instead": payload,
    }[where]
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    message = refused(tmp_path / "evil.pt")
    assert "refused: the file holds more than weights, and reading the rest could run code" in message
    assert not (tmp_path / "owned").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # the trap does work
    assert (tmp_path / "owned").exists()


def test_a_plain_pickle_is_not_run_either(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    assert "not a checkpoint" in refused(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_anywhere_is_one_line(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / ("whole.safetensors" if kind == "safetensors" else "whole.pt")
    weights = {key: value for key, value in tiny_model().state_dict().items() if "word" not in key}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for size in {1, 2, 7, 8, 9, 64, 1000, *range(5000, len(whole), len(whole) // 12), len(whole) - 1}:
        path.write_bytes(whole[:size])
        assert re.search("truncated|damaged|not a checkpoint|refused", refused(path)), size


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_flipped_byte_is_never_a_traceback(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    content = {"state_dict": {"a": torch.ones(3), "b": torch.ones(2)}}
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(UserError):  # or no error: some bytes do not matter, or are numbers
            read_checkpoint(path)


def make_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no checkpoints, and what is to be said of each."""
    generator = np.random.default_rng(0)
    (folder / "empty.pt").touch()
    (folder / "random.pt").write_bytes(generator.bytes(10_000))
    (folder / "pickle.pt").write_bytes(b"\x80" + generator.bytes(10_000))
    (folder / "text.pt").write_text("这不是模型\n" * 100, encoding="utf-8")
    (folder / "text.safetensors").write_text("not this either\n" * 100)
    Image.new("RGB", (64, 64)).save(folder / "picture.png")
    (folder / "folder.pt").mkdir()
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    torch.save([torch.ones(2)], folder / "list.pt")
    torch.save({}, folder / "nothing.pt")
    torch.save({1: torch.ones(2)}, folder / "numbered.pt")
    torch.save({"state_dict": {"a": 3.0}}, folder / "numbers.pt")
    torch.save({"state_dict": [torch.ones(2)]}, folder / "listed.pt")
    torch.save({"epoch": 3, "optimizer": {}}, folder / "other.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    with torch.jit.optimized_execution(False):
        torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "script.pt")
    said = {
        "missing.pt": "no such checkpoint file",
        "empty.pt": "the file is empty (0 bytes)",
        "random.pt": "not a checkpoint: neither a .pt nor a .safetensors file",
        "pickle.pt": "not a checkpoint",
        "text.pt": "not a checkpoint: neither a .pt nor a .safetensors file",
        "text.safetensors": "not a safetensors file, or a damaged one",
        "picture.png": "not a checkpoint: neither a .pt nor a .safetensors file",
        "folder.pt": "a folder, not a checkpoint file",
        "other.zip": "a zip archive, but not a checkpoint",
        "list.pt": "not a checkpoint: expected a dictionary, found list",
        "nothing.pt": "not a checkpoint: expected a state_dict of tensors, found nothing",
        "numbered.pt": "not a checkpoint: expected a state_dict of tensors, found 1",
        "numbers.pt": "not a checkpoint: expected a state_dict of tensors, found state_dict",
        "listed.pt": "not a checkpoint: expected a state_dict of tensors, found state_dict",
        "other.pt": "not a checkpoint: expected a state_dict of tensors, found epoch, optimizer",
        "module.pt": "refused: the file holds more than weights",
        "script.pt": "a TorchScript archive is a program, not weights; use the same model's state dict",
    }
    return {name: (folder / name, text) for name, text in said.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_what_is_not_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    for path, text in make_files(tmp_path).values():
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert text in message, message
        assert "\n" not in message


def test_another_architecture_names_the_keys_that_differ(tmp_path: Path) -> None:
    torch.save({"state_dict": tiny_model().state_dict()}, tmp_path / "vit.pt")
    checkpoint = read_checkpoint(tmp_path / "vit.pt")
    wider = {**VIT, "vision_width": 64, "vision_layers": 2}
    with pytest.raises(UserError) as caught:
        load_model(checkpoint, ModelConfig.from_dict({**wider, **BERT, "text_num_hidden_layers": 4}))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'vit.pt'}: weights of another architecture: missing (16): ")
    assert "missing (16): bert.encoder.layer.3." in message
    assert "unexpected (12): visual.transformer.resblocks.2." in message
    assert "other shapes (" in message
    assert "visual.class_embedding is [48], not [64]" in message
    assert "\n" not in message
    assert len(message) < 1500
    with pytest.raises(UserError, match=r"missing \(\d+\): visual.bn1.weight"):
        load_model(checkpoint, ModelConfig.from_dict({**RESNET, **BERT}))


def test_weights_of_another_model_say_what_is_not_there(tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.embeddings.weight": torch.ones(3)}}, tmp_path / "other.pt")
    message = refused(tmp_path / "other.pt")
    assert "not a Chinese-CLIP checkpoint: no text_projection; it has model.embeddings" in message


ODD: dict[str, tuple[str, torch.Tensor]] = {
    "number": ("visual.positional_embedding", torch.tensor(1.0)),
    "empty": ("visual.positional_embedding", torch.empty(0, 48)),
    "not a square": ("visual.positional_embedding", torch.ones(8, 48)),
    "no dimensions": ("text_projection", torch.tensor(1.0)),
    "row": ("visual.conv1.weight", torch.ones(48)),
    "integers": ("visual.ln_post.weight", torch.ones(48, dtype=torch.int64)),
    "empty words": ("bert.embeddings.word_embeddings.weight", torch.empty(0, 0)),
    "fused of four": ("bert.encoder.layer.0.attention.self.Wqkv.weight", torch.ones(4, 32)),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_tensors_are_one_line(case: str, tmp_path: Path) -> None:
    """With the architecture given, described by the file, and told from the shapes."""
    name, tensor = ODD[case]
    model = tiny_model()
    weights = {**model.state_dict(), name: tensor}
    torch.save({"state_dict": weights}, tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt", *write_json(tmp_path, vision=VIT, text=BERT))
    torch.save({"state_dict": weights, "model_config": model.config.to_dict()}, tmp_path / "odd.pt")
    assert name in refused(tmp_path / "odd.pt")


@pytest.mark.parametrize("config", [{}, {"embed_dim": 3}, {1: 2}, {**VIT, **BERT, "text_num_attention_heads": 0}])
def test_a_wrong_description_in_a_file_is_one_line(config: dict[Any, Any], tmp_path: Path) -> None:
    torch.save({"state_dict": tiny_model().state_dict(), "model_config": config}, tmp_path / "ours.pt")
    refused(tmp_path / "ours.pt")


def refused(path: Path, vision: str | None = None, text: str | None = None) -> str:
    """The one line that a user gets for this file."""
    with pytest.raises(UserError) as caught:
        load_from_name(str(path), "cpu", vision_model_name=vision, text_model_name=text)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# Other weights to start from


def test_towers_start_from_openai_clip_and_bert(tmp_path: Path) -> None:
    source, target = tiny_model(), CLIP(ModelConfig.from_dict({**VIT, **BERT}))
    weights = source.state_dict()
    clip = {k: v.half() for k, v in weights.items() if k.startswith("visual.") or k == "logit_scale"}
    clip |= {"token_embedding.weight": torch.ones(9, 4), "ln_final.weight": torch.ones(4)}  # its text tower
    bert = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in weights.items()
        if k.startswith("bert.")
    }
    bert |= {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.predictions.bias": torch.ones(100)}
    torch.save(clip, tmp_path / "openai.pt")
    torch.save(bert, tmp_path / "bert.bin")
    projection = target.text_projection.detach().clone()
    report = load_towers(target, str(tmp_path / "openai.pt"), str(tmp_path / "bert.bin"))
    for key, value in target.state_dict().items():
        if key == "text_projection":
            assert torch.equal(value, projection)
        else:
            assert torch.equal(value, weights[key].half().float() if key in clip else weights[key]), key
    assert f"{tmp_path / 'openai.pt'}: {len(clip) - 2} of {len(clip) - 2} tensors of visual; " in report
    assert f"{tmp_path / 'bert.bin'}: {len(bert) - 2} of {len(bert) - 2} tensors of bert" in report


def test_a_tower_started_from_the_wrong_file(tmp_path: Path) -> None:
    model = CLIP(ModelConfig.from_dict({**VIT, **BERT}))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    torch.save(tiny_model({**VIT, "vision_width": 64}).state_dict(), tmp_path / "wider.pt")
    with pytest.raises(UserError, match=r"other.pt: no text tower: no tensor named bert"):
        load_towers(model, None, str(tmp_path / "other.pt"))
    with pytest.raises(UserError, match=r"wider.pt: cannot start the visual tower .* other shapes: visual.class"):
        load_towers(model, str(tmp_path / "wider.pt"), None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_absent_tensors_are_named(tmp_path: Path) -> None:
    weights = tiny_model().state_dict()
    torch.save({k: v for k, v in weights.items() if ".layer.2." not in k}, tmp_path / "short.pt")
    report = load_towers(tiny_model(), None, str(tmp_path / "short.pt"))
    assert "not in the file: bert.encoder.layer.2.attention.self.query.weight" in report


def test_weights_go_into_tensors_that_an_optimizer_holds() -> None:
    model = CLIP(ModelConfig.from_dict({**VIT, **BERT}))
    held = list(model.parameters())
    load_weights(model, tiny_model().state_dict(), "weights.pt")
    assert all(one is other for one, other in zip(held, model.parameters(), strict=True))
    assert_same_weights(model, tiny_model().state_dict())


# Writing


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    model = tiny_model()
    content = {"state_dict": model.state_dict(), "epoch": 3, "model_config": model.config.to_dict()}
    write_checkpoint(tmp_path / "logs" / "epoch3.pt", content)
    checkpoint = read_checkpoint(tmp_path / "logs" / "epoch3.pt")
    assert checkpoint.config == model.config
    assert checkpoint.rest["epoch"] == 3
    assert_same_weights(load_model(checkpoint), model.state_dict())
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["epoch3.pt"]


def test_a_full_disk_leaves_the_old_checkpoint(small_disk: Path) -> None:
    path = small_disk / "epoch_latest.pt"
    write_checkpoint(path, {"state_dict": {"a": torch.ones(3)}})
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        write_checkpoint(path, {"state_dict": {f"k{i}": torch.ones(20_000) for i in range(10)}})
    assert str(caught.value).startswith(f"{path}: cannot write")
    assert "full" in str(caught.value) or "limit" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in small_disk.iterdir()] == ["epoch_latest.pt"]


DTYPES = [None, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_describe_themselves(
    suffix: str, vision: dict[str, Any], dtype: torch.dtype | None, tmp_path: Path
) -> None:
    model = tiny_model(vision)
    path = tmp_path / f"weights{suffix}"
    write_weights(path, model.state_dict(), model.config, dtype, {"name": "tiny", "steps": 7})
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == model.config
    assert checkpoint.rest["name"] == "tiny"
    assert str(checkpoint.rest["steps"]) == "7"
    expected = {
        k: v.to(dtype) if dtype and v.is_floating_point() and v.ndim else v for k, v in model.state_dict().items()
    }
    for key, value in expected.items():
        assert checkpoint.state_dict[key].dtype == value.dtype
    loaded, _ = load_from_name(str(path), "cpu")
    assert_same_weights(loaded, expected)  # in float32, whatever the file has


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_same_weights_are_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    config = tiny_model().config
    for name in ("one", "another"):
        # The other order of metadata, and tensors that are views of something larger.
        weights = tiny_model().state_dict()
        metadata = {"a": "1", "b": "2"} if name == "one" else {"b": "2", "a": "1"}
        if name == "another":
            weights = {k: torch.stack([v, v])[1] for k, v in weights.items()}
        if suffix == ".pt":  # a pickle keeps the order of its dictionary
            metadata = dict(sorted(metadata.items()))
        write_weights(tmp_path / f"{name}{suffix}", weights, config, torch.float16, metadata)
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"another{suffix}").read_bytes()
    assert (tmp_path / f"one{suffix}").stat().st_size < 2.3 * sum(v.numel() for v in weights.values())


def test_the_library_reads_our_safetensors(tmp_path: Path) -> None:
    from safetensors import safe_open

    tensors = {
        "word": torch.arange(6.0).reshape(2, 3).t(),
        "empty": torch.ones(0, 4),
        "scale": torch.tensor(4.6),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "双": torch.ones(1, dtype=torch.float64),
    }
    write_safetensors(tmp_path / "w.safetensors", tensors, {"name": "一", "a": "b"})
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"name": "一", "a": "b"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert file.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(file.get_tensor(name), tensor)


def test_names_as_the_reference_trainer_has_them(tmp_path: Path) -> None:
    model = tiny_model()
    write_weights(tmp_path / "w.pt", model.state_dict(), model.config, prefix="module.")
    content = torch.load(tmp_path / "w.pt", weights_only=True)
    assert list(content["state_dict"]) == [f"module.{key}" for key in model.state_dict()]
    assert_same_weights(load_from_name(str(tmp_path / "w.pt"), "cpu")[0], model.state_dict())


def test_a_number_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    model = tiny_model()
    weights = {**model.state_dict(), "text_projection": model.text_projection.detach() * 1e6}
    with pytest.raises(UserError, match=r"w.pt: text_projection holds .*, too large for torch.float16: choose bf"):
        write_weights(tmp_path / "w.pt", weights, model.config, torch.float16)
    assert list(tmp_path.iterdir()) == []
    write_weights(tmp_path / "w.pt", weights, model.config, torch.bfloat16)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_leaves_the_old_weights(suffix: str, small_disk: Path) -> None:
    path, model = small_disk / f"w{suffix}", tiny_model()
    small = {"a": torch.ones(3)}
    write_weights(path, small, model.config)
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        write_weights(path, model.state_dict(), model.config)
    assert str(caught.value).startswith(f"{path}: cannot write")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in small_disk.iterdir()] == [path.name]


def test_an_architecture_in_a_header_that_is_none(tmp_path: Path) -> None:
    weights = tiny_model().state_dict()
    for text, said in (('{"embed_dim": 24}', "vision_layers must be"), ("{", "does not describe its own")):
        write_safetensors(tmp_path / "w.safetensors", weights, {"model_config": text})
        with pytest.raises(UserError, match=said):
            load_from_name(str(tmp_path / "w.safetensors"), "cpu")
