"""The documented API, `cn_clip.clip`, against computations by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import cn_clip.clip as clip
from cn_clip.config import ModelConfig, model_config
from cn_clip.errors import UserError
from cn_clip.models.clip import CLIP
from cn_clip.models.vit import VisionTransformer
from cn_clip.tokenizer import default_tokenizer
from tiny import BERT, RESNET, TEXTS, VIT, pictures, tiny_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def rn50_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the smallest published model's file, as published: wrapped names, half precision."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    weights = CLIP(model_config("RN50", "RBT3-chinese")).state_dict()
    content = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in weights.items()}
    torch.save({"epoch": 15, "step": 1, "name": "clip", "state_dict": content}, root / "clip_cn_rn50.pt")
    return root


def test_the_readmes_example(rn50_root: Path, tmp_path: Path) -> None:
    from cn_clip.clip import available_models, load_from_name

    assert available_models() == ["ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50", "emoji-tiny"]
    pictures(1)[0].save(tmp_path / "pokemon.jpeg")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = load_from_name("RN50", device=device, download_root=str(rn50_root))
    assert not model.training
    model.eval()
    image = preprocess(Image.open(tmp_path / "pokemon.jpeg")).unsqueeze(0).to(device)
    text = clip.tokenize(["杰尼龟", "妙蛙种子", "小火龙", "皮卡丘"]).to(device)
    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        logits_per_image, logits_per_text = model.get_similarity(image, text)
        probs = logits_per_image.softmax(dim=-1).cpu().numpy()
    assert image_features.shape == (1, 1024)
    assert image_features.dtype == torch.float32
    assert probs.shape == (1, 4)
    assert probs.sum() == pytest.approx(1)
    expected = model.logit_scale.exp() * image_features @ text_features.T
    torch.testing.assert_close(logits_per_image, expected.detach())
    assert torch.equal(logits_per_text, logits_per_image.T)


def test_a_published_file_by_its_path_is_recognised(rn50_root: Path) -> None:
    model, preprocess = clip.load_from_name(str(rn50_root / "clip_cn_rn50.pt"), "cpu")
    assert model.config == model_config("RN50", "RBT3-chinese")
    assert preprocess.size == 224


def test_the_towers_must_be_given_together(rn50_root: Path) -> None:
    with pytest.raises(UserError, match="give vision_model_name and text_model_name together"):
        clip.load_from_name(str(rn50_root / "clip_cn_rn50.pt"), "cpu", vision_model_name="RN50")


@pytest.mark.parametrize("name", ["ViT-B-99", "no/such/file.pt", ""])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UserError) as caught:
        clip.load_from_name(name)
    assert str(caught.value) == (
        f"no model or file {name}; named models: ViT-B-16, ViT-L-14, ViT-L-14-336, ViT-H-14, RN50, emoji-tiny"
    )


# Tokens and pictures


def test_tokenize() -> None:
    ids = clip.tokenize(["猫", "一只猫"])
    assert ids.dtype == torch.int64
    assert ids.shape == (2, 52)
    vocab = default_tokenizer().vocab
    cls, sep, cat = vocab["[CLS]"], vocab["[SEP]"], vocab["猫"]
    assert ids[0].tolist() == [cls, cat, sep] + [0] * 49
    assert ids[1].tolist() == [cls, vocab["一"], vocab["只"], cat, sep] + [0] * 47
    assert torch.equal(clip.tokenize("猫"), ids[:1])
    assert clip.tokenize([]).shape == (0, 52)
    assert clip.tokenize("")[0].tolist() == [cls, sep] + [0] * 50
    assert clip.tokenize("一只猫", context_length=4).tolist() == [[cls, vocab["一"], vocab["只"], sep]]
    assert clip.tokenize(("猫",), context_length=20).shape == (1, 20)
    with pytest.raises(UserError, match="context length must be 3 or more"):
        clip.tokenize("猫", context_length=2)
    with pytest.raises(UserError, match="expected a text"):
        clip.tokenize([3])  # type: ignore[list-item]


def test_image_transform_by_hand() -> None:
    image = pictures(1)[0]
    tensor = clip.image_transform(32)(image)
    assert tensor.shape == (3, 32, 32)
    assert tensor.dtype == torch.float32
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")) / 255.0
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(tensor.numpy(), ((pixels - mean) / std).transpose(2, 0, 1), atol=1e-5)
    assert clip.image_transform()(image).shape == (3, 224, 224)


# The model's methods


def batch(vision: dict[str, Any] = VIT, count: int = 3) -> tuple[Tensor, Tensor]:
    transform = clip.image_transform(vision["image_resolution"])
    return torch.stack([transform(image) for image in pictures(count)]), clip.tokenize(TEXTS)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_similarity_and_forward_by_hand(vision: dict[str, Any]) -> None:
    model = tiny_model(vision)
    image, text = batch(vision)
    with torch.no_grad():
        a, b = model.encode_image(image), model.encode_text(text)
        unit_a, unit_b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        scale = model.logit_scale.exp()
        found = model(image, text)
        for one, other in zip(found, (unit_a, unit_b, scale), strict=True):
            torch.testing.assert_close(one, other)
        per_image, per_text = model.get_similarity(image, text)
        torch.testing.assert_close(per_image, scale * unit_a @ unit_b.T)
        assert torch.equal(per_text, per_image.T)
        torch.testing.assert_close(model(image, None), a)
        torch.testing.assert_close(model(None, text), b)
    assert per_image.shape == (3, len(TEXTS))
    with pytest.raises(ValueError, match="image and text cannot both be None"):
        model(None, None)


def test_a_new_model() -> None:
    model = CLIP(ModelConfig.from_dict({**VIT, **BERT}))
    assert model.training
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not any(k for k in model.state_dict() if k.split(".")[0] not in PUBLISHED_ROOTS)


PUBLISHED_ROOTS = ("visual", "bert", "text_projection", "logit_scale")


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_gradients_are_the_same_with_checkpointing(vision: dict[str, Any]) -> None:
    image, text = batch(vision, len(TEXTS))
    grads = []
    for enable in (False, True):
        model = tiny_model(vision, {**BERT, "text_hidden_dropout_prob": 0, "text_attention_probs_dropout_prob": 0})
        model.train()
        model.set_grad_checkpointing(enable)
        a, b, scale = model(image, text)
        F.cross_entropy(scale * a @ b.T, torch.arange(len(TEXTS))).backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() == dict(tiny_model(vision).named_parameters()).keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, msg=name)


def test_checkpointing_really_computes_again() -> None:
    model = tiny_model().train()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.visual.transformer.resblocks[0].register_forward_pre_hook(count)  # type: ignore[union-attr]
    for enable, expected in ((False, 1), (True, 2)):
        model.set_grad_checkpointing(enable)
        calls = 0
        model.encode_image(batch()[0]).sum().backward()
        assert calls == expected


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.7, 0.99])
def test_a_mask_keeps_its_share_of_the_patches(ratio: float) -> None:
    model = tiny_model().train()
    lengths = []
    model.visual.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))  # type: ignore[union-attr]
    image, _ = batch()
    torch.manual_seed(3)
    first = model.encode_image(image, mask_ratio=ratio)
    second = model.encode_image(image, mask_ratio=ratio)
    assert lengths == [1 + int(16 * (1 - ratio))] * 2
    assert torch.allclose(first, second, atol=1e-6) == (ratio in (0.0, 0.99))  # 0.99 leaves no patch to choose


def test_a_resnet_ignores_the_mask() -> None:
    model, (image, _) = tiny_model(RESNET), batch(RESNET)
    with torch.no_grad():
        assert torch.equal(model.encode_image(image, mask_ratio=0.5), model.encode_image(image))


def test_padding_never_changes_a_text() -> None:
    model = tiny_model()
    with torch.no_grad():
        together = model.encode_text(clip.tokenize(TEXTS))
        for row, text in zip(together, TEXTS, strict=True):
            ids = clip.tokenize(text)
            exact = ids[:, : int(ids.ne(0).sum())]
            torch.testing.assert_close(model.encode_text(exact)[0], row, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model.encode_text(ids)[0], row, atol=1e-5, rtol=1e-5)
        nothing = model.encode_text(torch.zeros(2, 52, dtype=torch.int64))
    assert torch.isfinite(nothing).all()


# Naive oracles: every token of every layer, attention by torch's own module


def naive_image(model: CLIP, image: Tensor) -> Tensor:
    """The ViT with all tokens computed to the end."""
    visual = model.visual
    assert isinstance(visual, VisionTransformer)
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        width, heads = x.shape[2], block.attn.heads
        attention = nn.MultiheadAttention(width, heads, batch_first=True).eval()
        attention.load_state_dict(block.attn.state_dict())
        y = block.ln_1(x)
        x = x + attention(y, y, y, need_weights=True)[0]
        y = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
    return visual.ln_post(x[:, 0]) @ visual.proj


def naive_text(model: CLIP, ids: Tensor) -> Tensor:
    """The BERT with all tokens, padding included, computed to the end."""
    embeddings = model.bert.embeddings
    x = embeddings.word_embeddings(ids) + embeddings.position_embeddings(torch.arange(ids.shape[1]))
    x = embeddings.LayerNorm(x + embeddings.token_type_embeddings(torch.zeros_like(ids)))
    for layer in model.bert.encoder.layer:
        parts, output = layer.attention.self, layer.attention.output
        attention = nn.MultiheadAttention(x.shape[2], parts.heads, batch_first=True).eval()
        three = (parts.query, parts.key, parts.value)
        with torch.no_grad():
            attention.in_proj_weight.copy_(torch.cat([p.weight for p in three]))
            attention.in_proj_bias.copy_(torch.cat([p.bias for p in three]))
            attention.out_proj.weight.copy_(output.dense.weight)
            attention.out_proj.bias.copy_(output.dense.bias)
        x = output.LayerNorm(x + attention(x, x, x, key_padding_mask=ids == 0, need_weights=True)[0])
        y = F.gelu(layer.intermediate.dense(x))
        x = layer.output.LayerNorm(x + layer.output.dense(y))
    return x[:, 0] @ model.text_projection


def odd_models() -> Iterator[CLIP]:
    yield tiny_model()
    yield tiny_model({**VIT, "vision_layers": 1, "vision_head_width": 48}, {**BERT, "text_num_hidden_layers": 1})


def test_the_last_layers_shortcut_changes_nothing() -> None:
    image, text = batch()
    for model in odd_models():
        with torch.no_grad():
            torch.testing.assert_close(model.encode_image(image), naive_image(model, image), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model.encode_text(text), naive_text(model, text), atol=1e-5, rtol=1e-5)


# clip.load


def test_load_starts_the_towers_and_leaves_the_rest(tmp_path: Path) -> None:
    source, model = tiny_model(), CLIP(ModelConfig.from_dict({**VIT, **BERT}))
    weights = source.state_dict()
    torch.save(
        {k: v for k, v in weights.items() if k.startswith("visual")} | {"logit_scale": torch.tensor(4.5)},
        tmp_path / "clip.pt",
    )
    renamed = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in weights.items()
        if k.startswith("bert.")
    }
    more = {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.predictions.bias": torch.ones(5)}
    torch.save({**renamed, **more}, tmp_path / "bert.bin")
    projection = model.text_projection.detach().clone()
    loaded = clip.load(
        model, "cpu", str(tmp_path / "clip.pt"), str(tmp_path / "bert.bin"), use_flash_attention=True
    )
    assert loaded is model
    assert not loaded.training
    image, text = batch()
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(image), source.encode_image(image))
        assert torch.equal(loaded.bert(text), source.bert(text))
    assert loaded.logit_scale.item() == 4.5
    assert torch.equal(loaded.text_projection, projection)


def test_load_of_nothing_changes_nothing() -> None:
    model = tiny_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not clip.load(model, "cpu").training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
