"""Two towers joined to a model: Taiyi-CLIP with its image towers, and open_clip's with a Chinese text tower."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from others import (
    IDS,
    PIXELS,
    THEIR_BERT,
    assert_same,
    bert_cls,
    berts,
    filled,
    open_clip_model,
    own,
    their_clip,
    their_features,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from cn_clip.checkpoint import load_model, read_checkpoint
from cn_clip.cli import main
from cn_clip.clip import load_from_name
from cn_clip.config import ModelConfig
from cn_clip.conversion.architecture import from_open_clip
from cn_clip.conversion.huggingface import save_huggingface
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.towers import join_towers, load_towers
from tiny import BERT, VIT, save_ours, tiny_model, write_json

pytestmark = pytest.mark.usefixtures("one_torch_thread")


# --- relatives: Taiyi-CLIP, which is a BERT with a classifier into OpenAI CLIP's space


def test_taiyi_with_openai_clip(tmp_path: Path) -> None:
    """Roberta-102M and Roberta-large-326M: BertForSequenceClassification, whose logits are the features."""
    taiyi = filled(BertForSequenceClassification(BertConfig(**THEIR_BERT, num_labels=24)))
    torch.save(taiyi.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(taiyi.config.to_json_string())
    clip = their_clip()
    clip.save_pretrained(tmp_path / "clip")
    output = tmp_path / "taiyi.safetensors"
    command = ["weights", "join", "--image", str(tmp_path / "clip"), "--text", str(tmp_path)]
    assert main([*command, "--output", str(output)]) == 0
    model, preprocess = load_from_name(str(output), "cpu")
    assert preprocess.size == 32
    assert model.config.text.text_pooler
    assert model.config.text.text_projection_bias
    with torch.no_grad():
        expected = taiyi(input_ids=IDS, attention_mask=IDS.ne(0)).logits
        assert_same(model.encode_text(IDS), expected)
        assert_same(model.encode_image(PIXELS), their_features(clip))
        assert torch.equal(model.logit_scale, clip.logit_scale)
    with pytest.raises(UserError, match="a model of type bert, not chinese_clip: a text tower alone"):
        load_from_name(str(tmp_path), "cpu")
    with pytest.raises(UserError, match="has a pooler or a bias after its projection"):
        save_huggingface(tmp_path / "hf", model.state_dict(), model.config)


def test_taiyi_with_open_clip(tmp_path: Path) -> None:
    """RoBERTa-102M-ViT-L and RoBERTa-326M-ViT-H: BertModel, whose pooler's output is the feature."""
    taiyi = filled(BertModel(BertConfig(**THEIR_BERT)))
    taiyi.save_pretrained(tmp_path / "text")
    theirs, folder = open_clip_model(tmp_path, embed_dim=32)
    with pytest.raises(UserError, match=r"text: a BERT without projection: give --head pooler .* or --head new"):
        join_towers(str(folder), str(tmp_path / "text"))
    model = load_model(join_towers(str(folder), str(tmp_path / "text"), head="pooler"))
    with torch.no_grad():
        assert_same(model.encode_text(IDS), taiyi(input_ids=IDS, attention_mask=IDS.ne(0)).pooler_output)
        assert_same(model.encode_image(PIXELS), theirs.encode_image(PIXELS))
    assert model.config.vision.vision_hidden_act == "gelu"
    _, narrow = open_clip_model(tmp_path / "narrow")
    with pytest.raises(UserError, match="BERT's pooler is 32 wide, the image tower's vectors have 24"):
        join_towers(str(narrow), str(tmp_path / "text"), head="pooler")


def test_a_classifier_of_something_else_is_no_projection(tmp_path: Path) -> None:
    sentiment = filled(BertForSequenceClassification(BertConfig(**THEIR_BERT, num_labels=2)))
    sentiment.save_pretrained(tmp_path / "text")
    their_clip().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="text: a projection to 2 numbers, but the image tower's vectors have 24"):
        join_towers(str(tmp_path / "clip"), str(tmp_path / "text"))


# --- relatives: open_clip's image towers


@pytest.mark.parametrize(
    "values",
    [{"quick_gelu": True}, {"quick_gelu": False}, {"mlp_ratio": 4.3637, "head_width": 24}],
    ids=["quick gelu", "gelu", "as ViT-g"],
)
def test_open_clip_with_a_chinese_text_tower(values: dict[str, Any], tmp_path: Path) -> None:
    theirs, folder = open_clip_model(tmp_path, **values)
    source = tiny_model()
    text = save_ours(source, tmp_path / "chinese.pt")
    model = load_model(join_towers(str(folder), str(text)))
    with torch.no_grad():
        assert_same(model.encode_image(PIXELS), theirs.encode_image(PIXELS))
        assert_same(model.encode_text(IDS), source.encode_text(IDS))
    assert torch.equal(model.logit_scale, theirs.logit_scale)
    # It is a Chinese CLIP that transformers can hold, too.
    save_huggingface(tmp_path / "hf", model.state_dict(), model.config)
    again, _ = load_from_name(str(tmp_path / "hf"), "cpu")
    with torch.no_grad():
        assert_same(again.encode_image(PIXELS), theirs.encode_image(PIXELS))


def test_open_clips_own_configurations() -> None:
    """Every plain ViT that open_clip has: the fields make a tower of the same tensors."""
    read = {}
    for name in open_clip.list_models():
        with suppress(UserError):
            read[name] = from_open_clip(open_clip.get_model_config(name), name).vision
    assert {"ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"} <= set(read)
    assert not {"RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "convnext_base", "EVA02-B-16", "ViTamin-S"} & set(read)
    for name in ("ViT-B-32", "ViT-B-16-plus-240", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"):
        with torch.device("meta"):
            config = open_clip.get_model_config(name)
            vision = open_clip.model.CLIPVisionCfg(**config["vision_cfg"])
            theirs = open_clip.model._build_vision_tower(config["embed_dim"], vision).state_dict()
            ours = CLIP(ModelConfig.from_dict({**read[name], **BERT})).visual
        assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.items()}, name
        heads = config["vision_cfg"]["width"] // config["vision_cfg"].get("head_width", 64)
        assert ours.transformer.resblocks[0].attn.heads == heads  # type: ignore[union-attr,index]


def test_open_clip_to_start_a_training_from(tmp_path: Path) -> None:
    theirs, folder = open_clip_model(tmp_path)
    with pytest.raises(UserError, match="its vision_hidden_act is gelu, this model's quick_gelu"):
        load_towers(own(), str(folder), None)
    model = own(vision_hidden_act="gelu")
    load_towers(model, str(folder), None)
    with torch.no_grad():
        assert_same(model.eval().encode_image(PIXELS), theirs.encode_image(PIXELS))


def test_a_bare_file_needs_its_architecture(tmp_path: Path) -> None:
    theirs, folder = open_clip_model(tmp_path, config=False)
    text = str(save_ours(tiny_model(), tmp_path / "chinese.pt"))
    bare = str(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"not an image tower of a built-in width, .* give --vision-model"):
        join_towers(bare, text)
    (path,) = write_json(tmp_path, vit={**VIT, "vision_hidden_act": "gelu"})
    model = load_model(join_towers(bare, text, vision_model=path))
    with torch.no_grad():
        assert_same(model.encode_image(PIXELS), theirs.encode_image(PIXELS))


def test_towers_of_open_clip_that_are_refused(tmp_path: Path) -> None:
    torch.save({"visual.trunk.blocks.0.norm1.weight": torch.ones(2)}, tmp_path / "siglip.pt")
    with pytest.raises(UserError, match=r"siglip.pt: an image tower of timm .visual.trunk.…."):
        load_towers(own(), str(tmp_path / "siglip.pt"), None)
    _, folder = open_clip_model(tmp_path)
    values = json.loads((folder / "open_clip_config.json").read_text())
    values["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    joined = join_towers(str(folder), str(save_ours(tiny_model(), tmp_path / "chinese.pt")))
    (note,) = joined.rest["notes"]
    assert "its pictures are normalised with mean (0.5, 0.5, 0.5); here with (0.48145466" in note
    values["model_cfg"]["vision_cfg"]["attentional_pool"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"vision_cfg.attentional_pool True: only open_clip's plain ViT"):
        load_towers(own(), str(folder), None)
    with pytest.raises(UserError, match="an open_clip model: give it to --clip-weight-path"):
        load_from_name(str(folder), "cpu")


# --- joining in general


def test_a_new_projection_is_for_training(tmp_path: Path) -> None:
    berts()["BertModel"].save_pretrained(tmp_path / "text")
    their_clip().save_pretrained(tmp_path / "clip")
    one, two = (join_towers(str(tmp_path / "clip"), str(tmp_path / "text"), head="new") for _ in range(2))
    assert torch.equal(one.state_dict["text_projection"], two.state_dict["text_projection"])
    model = load_model(one)
    assert_same(model.encode_text(IDS), bert_cls(berts()["BertModel"]) @ model.text_projection)
    assert not model.config.text.text_pooler


def test_joining_by_command_reports_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = open_clip_model(tmp_path)
    text = str(save_ours(tiny_model(), tmp_path / "chinese.pt"))
    output = tmp_path / "joined.pt"
    assert main(["weights", "join", "--image", str(folder), "--text", text, "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: 99 tensors, 32 pixels, vectors of 24, gelu\n"
    assert read_checkpoint(output).architecture().vision.vision_hidden_act == "gelu"
    assert main(["weights", "join", "--image", "no/such/one", "--text", text, "--output", str(output)]) == 1
    line = capsys.readouterr().err
    assert line == "cn-clip: error: no/such/one: no such file, folder or repository id (owner/name)\n"
