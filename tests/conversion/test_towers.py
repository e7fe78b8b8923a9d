"""Towers of other origin to start from, against the libraries they come from: OpenAI CLIP and BERT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from others import (
    IDS,
    PIXELS,
    THEIR_BERT,
    THEIR_VISION,
    assert_same,
    bert_cls,
    berts,
    filled,
    own,
    their_clip,
    their_features,
)
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from cn_clip.clip import load, load_from_name
from cn_clip.config import ModelConfig
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.towers import join_towers, load_towers
from tiny import BERT, RESNET, save_ours, tiny_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")


# --- starting points: the image tower


def test_openai_clip_in_the_form_of_transformers(tmp_path: Path) -> None:
    theirs = their_clip()
    theirs.save_pretrained(tmp_path / "clip")
    model = own()
    report = load_towers(model, str(tmp_path / "clip"), None)
    count = len([name for name in model.state_dict() if name.startswith("visual.")]) + 1
    assert f"{tmp_path / 'clip'}: {count} of {count} tensors of visual; not used of it: text_model." in report
    assert "activation" not in report
    assert_same(model.eval().encode_image(PIXELS), their_features(theirs))
    assert torch.equal(model.logit_scale, theirs.logit_scale)
    single = own()
    load(single, "cpu", clip_path=str(tmp_path / "clip" / "model.safetensors"))
    assert_same(single.encode_image(PIXELS), their_features(theirs))


def test_vision_models_of_transformers_on_their_own(tmp_path: Path) -> None:
    whole = filled(CLIPVisionModelWithProjection(CLIPVisionConfig(**THEIR_VISION)))
    whole.save_pretrained(tmp_path / "whole")
    model = own()
    assert "not in the file: logit_scale" in load_towers(model, str(tmp_path / "whole"), None)
    with torch.no_grad():
        assert_same(model.eval().encode_image(PIXELS), whole(pixel_values=PIXELS).image_embeds)
    bare = filled(CLIPVisionModel(CLIPVisionConfig(**THEIR_VISION)))
    bare.save_pretrained(tmp_path / "bare")
    model = own()
    projection = model.visual.proj.detach().clone()  # type: ignore[union-attr]
    assert "not in the file: logit_scale, visual.proj" in load_towers(model, str(tmp_path / "bare"), None)
    with torch.no_grad():
        expected = bare(pixel_values=PIXELS).pooler_output @ projection
        assert_same(model.eval().encode_image(PIXELS), expected)
    with pytest.raises(UserError, match="bare: an image tower without its projection; take the whole CLIPModel"):
        join_towers(str(tmp_path / "bare"), str(save_ours(tiny_model(), tmp_path / "ours.pt")))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_openais_state_dict(suffix: str, tmp_path: Path) -> None:
    """Half precision, its text tower and its counters beside it."""
    from safetensors.torch import save_file

    source = tiny_model()
    weights = {
        k: v.half() for k, v in source.state_dict().items() if k.startswith("visual.") or k == "logit_scale"
    }
    weights |= {"input_resolution": torch.tensor(32), "ln_final.weight": torch.ones(4).half()}
    path = tmp_path / f"openai.{suffix}"
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    model = own()
    report = load_towers(model, str(path), None)
    assert "; not used of it: " in report
    assert "ln_final.weight" in report
    assert "the file does not say its activation, quick_gelu is taken" in report
    for name, tensor in model.state_dict().items():
        if name in weights:
            assert torch.equal(tensor, weights[name].float()), name


def test_another_resolution_is_interpolated(tmp_path: Path) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "openai.pt")
    model = own(image_resolution=48)
    load_towers(model, str(tmp_path / "openai.pt"), None)
    expected, _ = load_from_name(str(save_ours(tiny_model(), tmp_path / "ours.pt")), "cpu", input_resolution=48)
    torch.testing.assert_close(model.visual.positional_embedding, expected.visual.positional_embedding)  # type: ignore[union-attr]


def test_a_resnet(tmp_path: Path) -> None:
    torch.save(tiny_model(RESNET).state_dict(), tmp_path / "openai.pt")
    model = CLIP(ModelConfig.from_dict({**RESNET, **BERT}))
    assert "activation" not in load_towers(model, str(tmp_path / "openai.pt"), None)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval().encode_image(image), tiny_model(RESNET).encode_image(image))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "gelu"}, "its vision_hidden_act is gelu, this model's quick_gelu: give an architecture"),
        ({"num_attention_heads": 6}, "its vision_head_width is 8, this model's 16"),
        ({"hidden_size": 96}, "its vision_head_width is 32, this model's 16"),
        ({"patch_size": 16}, "cannot start the visual tower from this file: other shapes: visual."),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06; this package's towers have 1e-05"),
    ],
)
def test_another_image_tower_is_refused(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    their_clip(**values).save_pretrained(tmp_path / "clip")
    model = own()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=words) as caught:
        load_towers(model, str(tmp_path / "clip"), None)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_gelu_and_another_mlp_in_an_architecture_that_says_so(tmp_path: Path) -> None:
    theirs = their_clip(hidden_act="gelu", intermediate_size=100)
    theirs.save_pretrained(tmp_path / "clip")
    model = own(vision_hidden_act="gelu", vision_intermediate_size=100)
    load_towers(model, str(tmp_path / "clip"), None)
    assert_same(model.eval().encode_image(PIXELS), their_features(theirs))


# --- starting points: the text tower


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_any_bert_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = berts()[kind]
    theirs.save_pretrained(tmp_path / "bert")
    model = own()
    report = load_towers(model, None, str(tmp_path / "bert"))
    count = len([name for name in model.state_dict() if name.startswith("bert.")])
    assert f"{tmp_path / 'bert'}: {count} of {count} tensors of bert" in report
    assert ("text_pooler" in report) == (kind != "BertForMaskedLM")
    assert_same(model.eval().bert(IDS), bert_cls(theirs))


def test_an_old_bert_with_googles_names(tmp_path: Path) -> None:
    theirs = berts()["BertForPreTraining"]
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in theirs.state_dict().items()}
    old = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()}
    torch.save({**old, "bert.embeddings.position_ids": torch.arange(64)[None]}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(THEIR_BERT))  # as old ones: no model_type
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        model = own()
        load_towers(model, None, str(path))
        assert_same(model.eval().bert(IDS), bert_cls(theirs))


def test_other_text_towers_are_refused(tmp_path: Path) -> None:
    torch.save({"roberta.embeddings.word_embeddings.weight": torch.ones(4, 4)}, tmp_path / "roberta.bin")
    with pytest.raises(UserError, match=r"roberta.bin: RoBERTa's own layout .* a BERT is needed"):
        load_towers(own(), None, str(tmp_path / "roberta.bin"))
    berts()["BertModel"].save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="its text_num_attention_heads is 2, this model's 4"):
        load_towers(own(text_num_attention_heads=4), None, str(tmp_path / "bert"))
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "model_type": "xlm-roberta"}))
    with pytest.raises(UserError, match="a model of type xlm-roberta: expected bert or chinese_clip"):
        load_towers(own(), None, str(tmp_path / "bert"))
    with pytest.raises(UserError, match="nothing/of/that/name: no such file, folder or repository id"):
        load_towers(own(), None, "nothing/of/that/name")
