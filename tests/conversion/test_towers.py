"""Towers of other origin against the libraries that they come from: OpenAI CLIP, open_clip, BERT, Taiyi-CLIP."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from filling import fill
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)

from cn_clip.checkpoint import load_model, read_checkpoint
from cn_clip.cli import main
from cn_clip.clip import load, load_from_name, tokenize
from cn_clip.config import ModelConfig
from cn_clip.conversion.architecture import from_open_clip
from cn_clip.conversion.huggingface import save_huggingface
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.towers import join_towers, load_towers
from tiny import BERT, RESNET, TEXTS, VIT, save_ours, tiny_model, write_json

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IDS = tokenize(TEXTS)
THEIR_VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}
THEIR_BERT: dict[str, Any] = {
    "vocab_size": 21128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
OPEN_CLIP_TEXT = {"context_length": 16, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}


def filled(model: PreTrainedModel | torch.nn.Module) -> Any:
    """Weights that leave nothing trivial, in eval mode."""
    fill(model.state_dict().items())
    return model.eval()


def their_clip(**vision: Any) -> CLIPModel:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    values = {**THEIR_VISION, **vision}
    return filled(CLIPModel(CLIPConfig(vision_config=values, text_config=text, projection_dim=24)))


def their_features(model: CLIPModel) -> Tensor:
    with torch.no_grad():
        return model.get_image_features(pixel_values=PIXELS).pooler_output


def own(**values: Any) -> CLIP:
    return CLIP(ModelConfig.from_dict({**VIT, **BERT, **values}))


def assert_same(found: Tensor, expected: Tensor) -> None:
    with torch.no_grad():
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


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


def berts() -> dict[str, PreTrainedModel]:
    config = BertConfig(**THEIR_BERT)
    classes = (BertModel, BertForMaskedLM, BertForPreTraining)
    return {kind.__name__: filled(kind(config)) for kind in classes}


def bert_cls(model: PreTrainedModel) -> Tensor:
    inner: Any = getattr(model, "bert", model)
    with torch.no_grad():
        return inner(input_ids=IDS, attention_mask=IDS.ne(0)).last_hidden_state[:, 0]


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


def open_clip_model(folder: Path, embed_dim: int = 24, config: bool = True, **values: Any) -> tuple[Any, Path]:
    """A model of open_clip, and the folder with it as the hub has them."""
    folder = folder / "open_clip"
    folder.mkdir(parents=True)
    quick = values.pop("quick_gelu", False)
    vision = {"image_size": 32, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8, **values}
    model = open_clip.CLIP(embed_dim, vision, OPEN_CLIP_TEXT, quick_gelu=quick)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.3)
    cfg = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": OPEN_CLIP_TEXT}
    cfg |= {"quick_gelu": True} if quick else {}
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    if config:
        preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}), "utf-8"
        )
    return model.eval(), folder


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
