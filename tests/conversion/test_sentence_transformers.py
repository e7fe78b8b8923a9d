"""The folder for sentence-transformers, loaded by the real package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import ChineseCLIPModel

from cn_clip.checkpoint import read_checkpoint
from cn_clip.clip import load_from_name
from cn_clip.conversion.sentence_transformers import save_sentence_transformers
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from tiny import RESNET, TEXTS, VIT, pictures, tiny_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")
HEADS_OF_80 = {**VIT, "vision_width": 160, "vision_head_width": 80}


@pytest.mark.parametrize("vision", [VIT, HEADS_OF_80], ids=["vit", "heads of 80"])
def test_it_encodes_what_this_package_encodes(vision: dict[str, int], tmp_path: Path) -> None:
    model = tiny_model(vision)
    save_sentence_transformers(tmp_path / "st", model.state_dict(), model.config)
    encoder, theirs = Encoder(model), SentenceTransformer(str(tmp_path / "st"), device="cpu")
    assert theirs.max_seq_length == 52
    assert theirs.get_embedding_dimension() == 24
    texts = [*TEXTS, "“引号” [SEP]", "ÀΑΣ"]
    np.testing.assert_allclose(theirs.encode(texts), encoder.encode_texts(texts), atol=1e-6)
    images = [*pictures(4), pictures(1)[0].convert("L")]
    np.testing.assert_allclose(theirs.encode(images), encoder.encode_images(images), atol=1e-6)
    similarity = theirs.similarity(theirs.encode(images), theirs.encode(texts)).numpy()
    np.testing.assert_allclose(
        similarity, encoder.encode_images(images) @ encoder.encode_texts(texts).T, atol=1e-5
    )


def test_it_is_a_folder_for_transformers_and_for_us_too(tmp_path: Path) -> None:
    model = tiny_model()
    save_sentence_transformers(tmp_path / "st", model.state_dict(), model.config)
    assert ChineseCLIPModel.from_pretrained(tmp_path / "st").config.projection_dim == 24
    loaded, _ = load_from_name(str(tmp_path / "st"), "cpu")
    assert torch.equal(loaded.text_projection, model.text_projection)
    # As sentence-transformers of old laid them out: the model in a folder of its own.
    inner = tmp_path / "old" / "0_Transformer"
    inner.parent.mkdir()
    (tmp_path / "st").rename(inner)
    modules = json.loads((inner / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    assert read_checkpoint(tmp_path / "old").config == model.config
    (tmp_path / "old" / "modules.json").write_text("[]")
    with pytest.raises(UserError, match=r"modules.json: names no folder with a config.json"):
        read_checkpoint(tmp_path / "old")


def test_what_sentence_transformers_saves_is_read(tmp_path: Path) -> None:
    model = tiny_model()
    save_sentence_transformers(tmp_path / "st", model.state_dict(), model.config, context_length=20)
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    assert theirs.max_seq_length == 20
    np.testing.assert_allclose(
        theirs.encode(TEXTS), Encoder(model).encode_texts(TEXTS, context_length=20), atol=1e-6
    )
    theirs.save(str(tmp_path / "again"))
    loaded, preprocess = load_from_name(str(tmp_path / "again"), "cpu")
    assert loaded.config == model.config
    assert preprocess.size == 32
    np.testing.assert_allclose(Encoder(loaded).encode_texts(TEXTS), Encoder(model).encode_texts(TEXTS), atol=1e-6)


def test_the_card_says_what_the_hub_reads(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    model = tiny_model()
    save_sentence_transformers(tmp_path / "st", model.state_dict(), model.config)
    data = ModelCard((tmp_path / "st" / "README.md").read_text("utf-8")).data
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert "sentence-transformers" in data.tags


def test_what_cannot_be_written(tmp_path: Path) -> None:
    model = tiny_model(RESNET)
    with pytest.raises(UserError, match="a ResNet image tower"):
        save_sentence_transformers(tmp_path / "st", model.state_dict(), model.config)
    model = tiny_model()
    for length in (2, 65):
        with pytest.raises(UserError, match=f"context length {length}: this text tower takes 3 to 64"):
            save_sentence_transformers(tmp_path / "st", model.state_dict(), model.config, context_length=length)
    assert not list(tmp_path.iterdir())
