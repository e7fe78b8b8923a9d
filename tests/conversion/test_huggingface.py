"""Folders for transformers: written, loaded by its own classes, and read back, in every form they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, ChineseCLIPModel, ChineseCLIPProcessor
from transformers.utils import logging

from cn_clip.checkpoint import load_model, read_checkpoint
from cn_clip.clip import image_transform, load_from_name, tokenize
from cn_clip.conversion.architecture import from_transformers, to_transformers
from cn_clip.conversion.card import Card
from cn_clip.conversion.huggingface import save_huggingface
from cn_clip.conversion.keys import CHINESE_CLIP, to_ours, to_theirs
from cn_clip.conversion.processor import write_json
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from tiny import BERT, RESNET, TEXTS, VIT, features, pictures, tiny_model, transparent_pictures

pytestmark = pytest.mark.usefixtures("one_torch_thread")

WIDE = {**VIT, "vision_width": 160, "vision_head_width": 80, "vision_layers": 2}  # ViT-H/14's heads are 80 wide
GELU = {**VIT, "vision_hidden_act": "gelu", "vision_intermediate_size": 100}


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def save(model: CLIP, folder: Path, **options: Any) -> Path:
    save_huggingface(folder, model.state_dict(), model.config, **options)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model(), tmp_path_factory.mktemp("hf") / "tiny")


# --- what transformers makes of it


@pytest.mark.parametrize("vision", [VIT, WIDE, GELU], ids=["vit", "heads of 80", "gelu"])
def test_transformers_computes_the_same_features(vision: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(vision)
    save(model, tmp_path / "hf")
    theirs, told = ChineseCLIPModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] | told["unexpected_keys"] | told["mismatched_keys"]
    theirs.eval()
    processor = ChineseCLIPProcessor.from_pretrained(tmp_path / "hf", backend="pil")
    images = pictures(4)
    inputs = processor(text=TEXTS, images=images, padding=True, truncation=True, return_tensors="pt")
    pixels = torch.stack([image_transform(32)(image) for image in images])
    image, text = features(model, pixels, tokenize(TEXTS))
    with torch.no_grad():
        found = theirs(**inputs)
        torch.testing.assert_close(found.image_embeds, torch.nn.functional.normalize(image), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.text_embeds, torch.nn.functional.normalize(text), atol=1e-5, rtol=0)
        per_image, _ = model.get_similarity(pixels, tokenize(TEXTS))
        torch.testing.assert_close(found.logits_per_image, per_image, atol=1e-3, rtol=1e-5)
        raw = theirs.get_image_features(pixel_values=pixels).pooler_output
        assert (raw - image).abs().max() <= 1e-5 * image.abs().max()


def test_every_tensor_of_transformers_has_its_place() -> None:
    from transformers import ChineseCLIPConfig

    model = tiny_model(WIDE)
    theirs = ChineseCLIPModel(ChineseCLIPConfig(**to_transformers(model.config))).state_dict()
    converted = to_theirs(model.state_dict(), CHINESE_CLIP)
    assert converted.keys() == theirs.keys()
    assert all(tensor.shape == theirs[name].shape for name, tensor in converted.items())
    back, unknown = to_ours(converted, CHINESE_CLIP)
    assert not unknown
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_half_precision_is_what_transformers_loads(tmp_path: Path) -> None:
    model = tiny_model()
    save(model, tmp_path / "hf", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    theirs = ChineseCLIPModel.from_pretrained(tmp_path / "hf")
    assert theirs.visual_projection.weight.dtype == torch.bfloat16
    assert torch.equal(theirs.visual_projection.weight.t(), model.visual.proj.bfloat16())  # type: ignore[union-attr]


# --- reading


PADDING = "bert.embeddings.word_embeddings.weight"  # row 0: transformers makes it zero when it loads, we keep it


def assert_reads_as(path: Path, model: CLIP, padding: bool = True) -> None:
    loaded, preprocess = load_from_name(str(path), "cpu")
    assert loaded.config == model.config
    assert preprocess.size == model.config.vision.image_resolution
    assert not loaded.training
    own = model.state_dict()
    assert loaded.state_dict().keys() == own.keys()
    for name, tensor in loaded.state_dict().items():
        first = 1 if name == PADDING and not padding else 0
        assert torch.equal(tensor[first:], own[name][first:]) if tensor.ndim else torch.equal(tensor, own[name]), (
            name
        )


@pytest.mark.filterwarnings("error")
def test_there_and_back(folder: Path) -> None:
    assert_reads_as(folder, tiny_model())
    assert_reads_as(folder / "model.safetensors", tiny_model())
    vectors = Encoder.load(str(folder), device="cpu", precision="fp32").encode_texts(["猫"])
    np.testing.assert_array_equal(vectors, Encoder(tiny_model()).encode_texts(["猫"]))


def test_shards(tmp_path: Path) -> None:
    model = tiny_model()
    save(model, tmp_path / "hf", max_shard_size=200_000)
    shards = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert_reads_as(tmp_path / "hf", model)
    ChineseCLIPModel.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "theirs")
    assert_reads_as(tmp_path / "theirs", model, padding=False)
    (tmp_path / "hf" / shards[1]).unlink()
    line = f"{shards[1]}: missing: model.safetensors.index.json says that weights are in it; copy it here"
    with pytest.raises(UserError, match=line):
        read_checkpoint(tmp_path / "hf")


def test_an_old_folder(tmp_path: Path) -> None:
    """As transformers 4 wrote them: a pickle with counters in it, settings repeated, a pooler, no dtype."""
    model = tiny_model()
    save(model, tmp_path / "new")
    weights = to_theirs(model.state_dict(), CHINESE_CLIP)
    weights |= {f"{tower}_model.embeddings.position_ids": torch.arange(9)[None] for tower in ("text", "vision")}
    weights |= {
        "text_model.pooler.dense.weight": torch.ones(32, 32),
        "text_model.pooler.dense.bias": torch.ones(32),
    }
    old = tmp_path / "old"
    old.mkdir()
    torch.save(weights, old / "pytorch_model.bin")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    config["vision_config_dict"], config["vision_config"] = config["vision_config"], {"hidden_size": 1}
    config["text_config_dict"] = None
    write_json(old / "config.json", config)
    vocabulary = (tmp_path / "new" / "vocab.txt").read_bytes().replace(b"\n", b"\r\n")
    (old / "vocab.txt").write_bytes(vocabulary)
    assert_reads_as(old, model)
    assert_reads_as(old / "pytorch_model.bin", model)


def test_a_folder_that_transformers_saved_again(folder: Path, tmp_path: Path) -> None:
    ChineseCLIPModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert_reads_as(tmp_path / "again", tiny_model(), padding=False)


def test_published_sizes_through_both_configurations() -> None:
    from transformers import ChineseCLIPConfig

    from cn_clip.config import model_config

    for vision in ("ViT-B-16", "ViT-L-14-336", "ViT-H-14"):
        config = model_config(vision, "RoBERTa-wwm-ext-large-chinese")
        theirs = to_transformers(config)
        assert from_transformers(json.loads(json.dumps(theirs)), "config.json") == config
        assert from_transformers(ChineseCLIPConfig(**theirs).to_dict(), "config.json") == config
        heads = {"ViT-B-16": 12, "ViT-L-14-336": 16, "ViT-H-14": 16}
        assert theirs["vision_config"]["num_attention_heads"] == heads[vision]


def test_a_finetuned_size_keeps_its_resolution(folder: Path) -> None:
    model, preprocess = load_from_name(str(folder), "cpu", input_resolution=48)
    assert preprocess.size == model.config.vision.image_resolution == 48


# --- what differs is said, what cannot be is refused


def edited(folder: Path, target: Path, file: str, **values: Any) -> Path:
    """A copy of a folder with some values of a JSON file replaced; of `a.b`, the inner one."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((target / file).read_text())
    for name, value in values.items():
        *outer, inner = name.split("__")
        place = content[outer[0]] if outer else content
        place[inner] = value
    write_json(target / file, content)
    return target


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean is \[0.5, 0.5, 0.5\]; here it is"),
        ({"image_std": [0.5, 0.5, 0.5]}, r"image_std is \[0.5, 0.5, 0.5\]; here it is"),
        ({"resample": 2}, "resample is 2; here it is 3, as published"),
        ({"do_center_crop": True, "crop_size": 32}, "it cuts pictures to a square; here they are squeezed"),
        ({"size": {"shortest_edge": 32}}, "it cuts pictures to a square; here they are squeezed"),
        ({"do_normalize": False}, "do_normalize is false; here it is always done"),
    ],
)
def test_other_preprocessing_is_said(folder: Path, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    path = edited(folder, tmp_path / "hf", "preprocessor_config.json", **values)
    with pytest.warns(UserWarning, match=words):
        load_from_name(str(path), "cpu")


def test_another_vocabulary_is_said(folder: Path, tmp_path: Path) -> None:
    path = edited(folder, tmp_path / "hf", "tokenizer_config.json")
    pieces = (path / "vocab.txt").read_text("utf-8").split("\n")
    pieces[4344], pieces[4345] = pieces[4345], pieces[4344]
    (path / "vocab.txt").write_text("\n".join(pieces), "utf-8")
    with pytest.warns(UserWarning, match="not the published vocabulary"):
        load_from_name(str(path), "cpu")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"model_type": "clip"},
            "a model of type clip, not chinese_clip: it has no Chinese text tower; give",
        ),
        ({"model_type": "bert"}, "a model of type bert, not chinese_clip: a text tower alone; give it to"),
        ({"model_type": "siglip"}, "a model of type siglip, not chinese_clip$"),
        ({"vision_config__hidden_act": "relu"}, "vision_hidden_act must be quick_gelu or gelu, not relu"),
        ({"text_config__hidden_act": "relu"}, "text_hidden_act must be gelu, not relu"),
        ({"vision_config__layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06; this package's towers have 1e-05"),
        ({"vision_config__num_attention_heads": 5}, "an image tower of width 48 cannot have 5 heads"),
        ({"vision_config__image_size": [32, 64]}, r"expected a square of pixels, found \[32, 64\]"),
        ({"vision_config__num_hidden_layers": 2}, r"weights of another architecture: unexpected \(12\)"),
        ({"vision_config__num_hidden_layers": 4}, r"weights of another architecture: missing \(12\)"),
    ],
)
def test_other_models_are_refused(folder: Path, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    path = edited(folder, tmp_path / "hf", "config.json", **values)
    assert_refused(path, words)


def assert_refused(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_from_name(str(path), "cpu")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_pictures_of_another_size_than_the_model_are_refused(folder: Path, tmp_path: Path) -> None:
    path = edited(folder, tmp_path / "hf", "preprocessor_config.json", size={"height": 48, "width": 48})
    assert_refused(path, "preprocessor_config.json: pictures of 48 pixels, but the model takes 32")


def test_folders_with_something_missing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "no model of Hugging Face: no config.json")
    path = edited(folder, tmp_path / "hf", "config.json")
    (path / "model.safetensors").unlink()
    assert_refused(path, "no weights: expected one of model.safetensors, model.safetensors.index.json, pytorch_m")
    write_json(path / "model.safetensors.index.json", {"weight_map": {"logit_scale": "../secret.safetensors"}})
    assert_refused(path, "'../secret.safetensors' is not the name of a file in the same folder")
    (path / "config.json").write_text("{")
    assert_refused(path, "config.json: not a JSON file")


def test_tensors_too_many_too_few_or_of_openai(tmp_path: Path) -> None:
    model = tiny_model()
    save(model, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    theirs = to_theirs(model.state_dict(), CHINESE_CLIP)
    for change, words in (
        ({"extra.weight": torch.ones(1)}, "not the tensors of a ChineseCLIPModel: extra.weight"),
        ({"text_model.encoder.layers.0.mlp.fc1.bias": torch.ones(1)}, "OpenAI's CLIP, which has no Chinese text"),
    ):
        torch.save({**theirs, **change}, tmp_path / "hf" / "pytorch_model.bin")
        assert_refused(tmp_path / "hf", words)
    third = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
    torch.save({k: v for k, v in theirs.items() if k != third}, tmp_path / "hf" / "pytorch_model.bin")
    assert_refused(tmp_path / "hf", f"q_proj.weight is there, but {third} is missing")
    first = third.replace("k_proj", "q_proj")
    torch.save({k: v for k, v in theirs.items() if k != first}, tmp_path / "hf" / "pytorch_model.bin")
    assert_refused(tmp_path / "hf", f"proj.weight is there, but {first} is missing")


class Evil:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_an_old_folder_runs_nothing(folder: Path, tmp_path: Path) -> None:
    path = edited(folder, tmp_path / "hf", "config.json")
    (path / "model.safetensors").unlink()
    torch.save({"text_projection.weight": Evil(tmp_path / "ran")}, path / "pytorch_model.bin")
    assert_refused(path, "refused: the file holds more than weights")
    assert not (tmp_path / "ran").exists()


# --- writing


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for model, words in (
        (
            tiny_model(RESNET),
            "a ResNet image tower .RN50. cannot be written for transformers: its Chin",
        ),
        (tiny_model(VIT, {**BERT, "text_pooler": True}), "has a pooler or a bias after its projection"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            save(model, tmp_path / "hf")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"hf.*: weights of another architecture: no place for extra"):
        save_huggingface(tmp_path / "hf", {"extra": torch.ones(1)}, tiny_model().config)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    model = tiny_model()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "thesis.docx").touch()
    with pytest.raises(UserError, match=r"hf: holds other files \(thesis.docx\), which would be lost"):
        save(model, tmp_path / "hf")
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["thesis.docx"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: a file; give the name of a folder to write"):
        save(model, tmp_path / "file")
    save(model, tmp_path / "new", max_shard_size=200_000)
    save(model, tmp_path / "new")  # an earlier conversion, shards and all, is replaced
    assert [path.name for path in (tmp_path / "new").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        save(tiny_model(), small_disk / "hf")
    assert not list(small_disk.iterdir())


def test_the_same_weights_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_card(tmp_path: Path) -> None:
    card = Card("商品", "OFA-Sys/chinese-clip-vit-base-patch16", "apache-2.0", "用 **MUGE** 微调。")
    save(tiny_model(), tmp_path / "hf", card=card)
    text = (tmp_path / "hf" / "README.md").read_text("utf-8")
    from huggingface_hub import ModelCard

    data = ModelCard(text).data
    assert data.language == "zh"
    assert data.license == "apache-2.0"
    assert data.base_model == "OFA-Sys/chinese-clip-vit-base-patch16"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert "\n# 商品\n" in text
    assert "用 **MUGE** 微调。" in text


def test_the_cards_example_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "README.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    transparent_pictures()[2].save(tmp_path / "cat.png")
    code = code.replace("THIS_FOLDER", str(folder)).replace("cat.jpg", str(tmp_path / "cat.png"))
    exec(compile(code, "README.md", "exec"), {})
    probabilities = torch.tensor(json.loads(capsys.readouterr().out.split("tensor(")[1].rstrip(")\n")))
    model = tiny_model()
    image = image_transform(32)(transparent_pictures()[2])[None]
    with torch.no_grad():
        expected = model.get_similarity(image, tokenize(["一只猫", "一只狗"]))[0].softmax(dim=-1)
    torch.testing.assert_close(probabilities, expected, atol=1e-3, rtol=0)


def test_a_converted_folder_is_a_checkpoint(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.config == tiny_model().config
    assert checkpoint.rest == {}
    assert load_model(checkpoint).config == tiny_model().config
