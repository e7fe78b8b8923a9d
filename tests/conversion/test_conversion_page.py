"""docs/huggingface.md: its blocks run, on small models in the place of the reader's."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from transformers import BertConfig, BertForSequenceClassification, CLIPConfig, CLIPModel

from cn_clip.clip import load_from_name
from test_docs import ROOT, run_page
from tiny import save_ours, tiny_model


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """What the page asks the reader to bring."""
    save_ours(tiny_model(), tmp_path / "finetuned.pt")
    Image.effect_noise((64, 48), 40).convert("RGB").save(tmp_path / "cat.jpg")
    vision = {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).save_pretrained(
        tmp_path / "clip-vit-base-patch32"
    )
    bert = BertConfig(**text, vocab_size=21128, num_labels=24)
    BertForSequenceClassification(bert).save_pretrained(tmp_path / "Taiyi-CLIP-Roberta-102M-Chinese")
    return tmp_path


def test_the_page_runs(bench: Path) -> None:
    printed = run_page(ROOT / "docs" / "huggingface.md", bench)
    assert "tensor([[" in printed
    model, _ = load_from_name(str(bench / "taiyi.safetensors"), "cpu")
    assert model.config.text.text_pooler
    assert (bench / "my-sentences" / "modules.json").is_file()
