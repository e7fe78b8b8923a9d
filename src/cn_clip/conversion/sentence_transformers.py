"""A folder that sentence-transformers loads: `SentenceTransformer(folder).encode(texts or pictures)`.

Its own `Transformer` module runs transformers' `ChineseCLIPModel`, told by `sentence_bert_config.json` which
method encodes what; a `Normalize` module follows. No code goes with the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from cn_clip.config import CONTEXT_LENGTH, ModelConfig
from cn_clip.conversion.card import Card, sentence_transformers_card
from cn_clip.conversion.folder import MODULES
from cn_clip.conversion.huggingface import FILES, new_folder, write_model
from cn_clip.conversion.processor import write_json, write_tokenizer
from cn_clip.errors import UserError

SETTINGS, GENERAL, NORMALIZE = "sentence_bert_config.json", "config_sentence_transformers.json", "1_Normalize"
FOLDER_FILES = FILES | {MODULES, SETTINGS, GENERAL, NORMALIZE}


def save_sentence_transformers(
    folder: str | os.PathLike[str],
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    dtype: torch.dtype | None = None,
    card: Card | None = None,
    context_length: int = CONTEXT_LENGTH,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write a folder for sentence-transformers 5.4 or later, which transformers loads, too.

    Args:
        folder: what to write; one that exists may hold nothing but an earlier conversion.
        weights: tensors under the published names.
        config: their architecture.
        dtype: precision of the matrices; None leaves every tensor as it is.
        card: what the model card is to say.
        context_length: word pieces of a text that are read, [CLS] and [SEP] included.
        max_shard_size: bytes in a file of weights; more are split over several.

    Raises:
        UserError: as `save_huggingface`, or a context length that the text tower does not take.
    """
    longest = config.text.text_max_position_embeddings
    if not 3 <= context_length <= longest:
        raise UserError(f"context length {context_length}: this text tower takes 3 to {longest}")
    with new_folder(folder, FOLDER_FILES) as temporary:
        write_model(temporary, weights, config, dtype, max_shard_size)
        write_tokenizer(temporary, context_length)
        (temporary / NORMALIZE).mkdir()
        kind = "sentence_transformers.base.modules"
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": f"{kind}.transformer.Transformer"},
            {"idx": 1, "name": "1", "path": NORMALIZE, "type": f"{kind}.normalize.Normalize"},
        ]
        write_json(temporary / MODULES, modules)
        write_json(temporary / NORMALIZE / "config.json", {})
        method = {"method_output_name": "pooler_output"}
        settings = {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "get_text_features", **method},
                "image": {"method": "get_image_features", **method},
            },
            "module_output_name": "sentence_embedding",
            # Pillow resizes as in training; torchvision, the default, a little differently.
            "processor_kwargs": {"backend": "pil"},
        }
        write_json(temporary / SETTINGS, settings)
        general = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
        write_json(temporary / GENERAL, general)
        (temporary / "README.md").write_text(sentence_transformers_card(card or Card(), config), encoding="utf-8")
