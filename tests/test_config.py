"""Architectures: the published ones, a user's JSON files, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cn_clip.config import TEXT_MODELS, VISION_MODELS, ModelConfig, model_config, vision_config
from cn_clip.errors import UserError
from tiny import BERT, RESNET, VIT, write_json

PUBLISHED = Path(__file__).parents[1] / ".reference" / "cn_clip" / "clip" / "model_configs"


def published(name: str) -> dict[str, Any]:
    path = PUBLISHED / f"{name}.json"
    assert path.is_file(), f"{path} is missing; run: make test"
    values: dict[str, Any] = json.loads(path.read_text())
    if isinstance(values.get("vision_layers"), str):
        values["vision_layers"] = json.loads(values["vision_layers"])
    return values


@pytest.mark.parametrize("text", TEXT_MODELS)
@pytest.mark.parametrize("vision", VISION_MODELS)
def test_built_in_architectures_are_the_published_files(vision: str, text: str) -> None:
    ours = model_config(vision, text).to_dict()
    theirs = {"vision_patch_size": None, "vision_head_width": 64, **published(vision), **published(text)}
    assert ours == theirs


def test_every_published_file_is_built_in() -> None:
    assert {path.stem for path in PUBLISHED.glob("*.json")} == set(VISION_MODELS) | set(TEXT_MODELS)


def test_a_published_file_by_its_path_equals_its_name() -> None:
    paths = (str(PUBLISHED / "RN50.json"), str(PUBLISHED / "RBT3-chinese.json"))
    assert model_config(*paths) == model_config("RN50", "RBT3-chinese")
    assert vision_config("ViT-L/14") == vision_config("ViT-L-14")


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_users_files_and_the_way_through_a_dictionary(vision: dict[str, Any], tmp_path: Path) -> None:
    config = model_config(*write_json(tmp_path, vision=vision, text=BERT))
    assert config.to_dict() | {**vision, **BERT} == config.to_dict()
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.vision.is_resnet == (vision is RESNET)
    assert config.vision.heads == (4 if vision is RESNET else 3)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "vit.json").write_text(json.dumps(VIT), encoding="utf-8-sig")
    assert vision_config(str(tmp_path / "vit.json")).vision_width == 48


WRONG_VISION: list[tuple[dict[str, Any], str]] = [
    ({"vision_width": None}, "vision_width must be a whole number of 1 or more, not None"),
    ({"vision_width": "48"}, "vision_width must be a whole number of 1 or more, not '48'"),
    ({"vision_width": 48.0}, "vision_width must be a whole number of 1 or more, not 48.0"),
    ({"vision_width": True}, "vision_width must be a whole number of 1 or more, not True"),
    ({"vision_width": 0}, "vision_width must be a whole number"),
    ({"embed_dim": -3}, "embed_dim must be a whole number"),
    ({"vision_head_width": 0}, "vision_head_width must be a whole number"),
    ({"vision_head_width": 10}, "vision_head_width 10 does not divide the tower's width"),
    ({"vision_layers": "three"}, "vision_layers must be a number (ViT) or a list of four (ResNet)"),
    ({"vision_layers": [1, 2]}, "vision_layers must be"),
    ({"vision_layers": [1, 2, 0, 1]}, "vision_layers must be"),
    ({"vision_layers": 0}, "vision_layers must be"),
    ({"vision_layers": True}, "vision_layers must be"),
    ({"vision_layers": "__import__('os').system('true')"}, "vision_layers must be"),
    ({"vision_patch_size": None}, "a ViT needs vision_patch_size"),
    ({"vision_patch_size": 64}, "a ViT needs vision_patch_size, at most its image_resolution"),
    ({"vision_depth": 3}, "unknown field vision_depth; known: embed_dim"),
    ({"vision_layers": [1, 1, 1, 1], "image_resolution": 50}, "resolution divisible by 32"),
]
WRONG_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"text_num_attention_heads": 3}, "text_hidden_size must be a multiple of text_num_attention_heads"),
    ({"text_num_attention_heads": 0}, "text_num_attention_heads must be a whole number"),
    ({"text_hidden_act": "relu"}, "text_hidden_act must be gelu, not relu"),
    ({"text_hidden_dropout_prob": 1.5}, "text_hidden_dropout_prob must be a number from 0 to 1, not 1.5"),
    ({"text_hidden_dropout_prob": float("nan")}, "text_hidden_dropout_prob must be a number from 0 to 1, not nan"),
    ({"embed_dim": 512}, "unknown field embed_dim"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_VISION)
def test_a_wrong_vision_file_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    vision, text = write_json(tmp_path, vision={**VIT, **change}, text=BERT)
    assert_refused(vision, text, f"{vision}: ", message)


@pytest.mark.parametrize(("change", "message"), WRONG_TEXT)
def test_a_wrong_text_file_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    vision, text = write_json(tmp_path, vision=VIT, text={**BERT, **change})
    assert_refused(vision, text, f"{text}: ", message)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    values = {name: value for name, value in VIT.items() if name != "embed_dim"}
    vision, text = write_json(tmp_path, vision=values, text=BERT)
    assert_refused(vision, text, f"{vision}: ", "embed_dim")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b"{", "not a JSON file"),
        (b"\xff\xfe{\x00}", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"[1, 2]", "expected one JSON object"),
        (b'"ViT"', "expected one JSON object"),
    ],
)
def test_what_is_not_a_json_object_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    vision, text = write_json(tmp_path, vision=VIT, text=BERT)
    Path(vision).write_bytes(content)
    assert_refused(vision, text, f"{vision}: ", message)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    for vision, text, start in (
        ("ViT-X", "RBT3-chinese", "--vision-model ViT-X: no such architecture or JSON file; built in: ViT-B-32"),
        (str(tmp_path), "RBT3-chinese", f"--vision-model {tmp_path}: no such"),
        ("RN50", "", "--text-model : no such architecture or JSON file; built in: RoBERTa-wwm-ext-base-chinese"),
    ):
        assert_refused(vision, text, start, "")


def assert_refused(vision: str, text: str, start: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        model_config(vision, text)
    line = str(caught.value)
    assert line.startswith(start)
    assert message in line
    assert "\n" not in line


# Fields of ours, for towers of other origin


def test_our_fields_are_written_only_where_they_say_something() -> None:
    plain = ModelConfig.from_dict({**VIT, **BERT})
    assert set(plain.to_dict()) == {*VIT, *BERT}
    assert plain.vision.mlp_width == 192
    flat = {**VIT, **BERT, "vision_hidden_act": "gelu", "vision_intermediate_size": 100}
    flat |= {"text_pooler": True, "text_projection_bias": True}
    config = ModelConfig.from_dict(flat)
    assert config.to_dict() == flat
    assert config.vision.mlp_width == 100


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ({"vision_hidden_act": "relu"}, "vision_hidden_act must be quick_gelu or gelu, not relu"),
        ({"vision_intermediate_size": 0}, "vision_intermediate_size must be a whole number of 1 or more, not 0"),
        ({"text_pooler": 1}, "text_pooler must be true or false, not 1"),
        (
            {**RESNET, "vision_hidden_act": "gelu"},
            "a ResNet has no vision_hidden_act and no vision_intermediate_size",
        ),
    ],
)
def test_wrong_fields_of_ours(field: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        ModelConfig.from_dict({**VIT, **BERT, **field}, "vit.json")
    assert str(caught.value) == f"vit.json: {line}"
