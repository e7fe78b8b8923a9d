"""The documented Python API: `import cn_clip.clip as clip`.

model, preprocess = clip.load_from_name("ViT-B-16", device="cpu", download_root="./")
image = preprocess(Image.open("examples/pokemon.jpeg")).unsqueeze(0)
text = clip.tokenize(["杰尼龟", "妙蛙种子", "小火龙", "皮卡丘"])
with torch.no_grad():
    image_features = model.encode_image(image)
    text_features = model.encode_text(text)
    logits_per_image, logits_per_text = model.get_similarity(image, text)
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from cn_clip.checkpoint import load_model, read_checkpoint
from cn_clip.config import CONTEXT_LENGTH, ModelConfig, model_config
from cn_clip.devices import PRECISIONS, choose_precision, usable_device
from cn_clip.errors import UserError
from cn_clip.hub import is_repository, snapshot
from cn_clip.models.clip import CLIP
from cn_clip.tokenizer import default_tokenizer
from cn_clip.towers import load_towers
from cn_clip.transform import ImageTransform
from cn_clip.zoo import MODELS, available_models, weights_file

__all__ = ["available_models", "image_transform", "load", "load_from_name", "tokenize"]


def load_from_name(
    name: str,
    device: str | torch.device | None = None,
    download_root: str | None = None,
    vision_model_name: str | None = None,
    text_model_name: str | None = None,
    input_resolution: int | None = None,
    use_modelscope: bool = False,
    precision: str = "fp32",
) -> tuple[CLIP, ImageTransform]:
    """Load a model in eval mode, with its image preprocessing.

    Args:
        name: a published model's name, the path of a checkpoint (ours, or one in the published layout), or a
            folder or repository id of Hugging Face with a Chinese CLIP for transformers.
        device: `cuda` where there is one, else `cpu`, if None.
        download_root: where downloaded weights are kept; ~/.cache/clip for a published model and the hub's own
            cache for a repository if None.
        vision_model_name: image tower of a file that neither describes itself nor is a published size.
        text_model_name: its text tower.
        input_resolution: pixels of the square input; another than the model's own interpolates its position
            embeddings.
        use_modelscope: download from ModelScope instead of Hugging Face.
        precision: fp32, bf16 or fp16 weights and computation; auto is bf16 where the processor computes it itself.

    Raises:
        UserError: no such model, no connection, or a file that does not hold this model's weights.
    """
    target = usable_device(device)
    dtype = PRECISIONS[choose_precision(precision, target)]
    config = MODELS[name].config if name in MODELS else None
    source = Path(name)
    if name in available_models():
        source = weights_file(name, download_root, use_modelscope)
    elif is_repository(name):
        source = snapshot(name, download_root)
    elif not name or not source.exists():
        raise UserError(f"no model or file {name}; named models: {', '.join(available_models())}")
    checkpoint = read_checkpoint(source)
    for note in checkpoint.rest.get("notes", []):
        warnings.warn(note, stacklevel=2)
    if vision_model_name or text_model_name:
        if not (vision_model_name and text_model_name):
            raise UserError("give vision_model_name and text_model_name together")
        config = model_config(vision_model_name, text_model_name)
    config = config or checkpoint.architecture()
    if input_resolution:
        config = _at_resolution(config, input_resolution)
    model = load_model(checkpoint, config, dtype)
    return model.to(target), ImageTransform(config.vision.image_resolution)


def load(
    model: CLIP,
    device: str | torch.device | None = None,
    clip_path: str | None = None,
    bert_path: str | None = None,
    use_flash_attention: bool = False,
) -> CLIP:
    """Start a model's towers from OpenAI CLIP's image weights and BERT's weights; returns it in eval mode.

    Each is a file, a folder of Hugging Face or a repository's id. What was found in them and what was not, a line:
    `cn_clip.towers.load_towers`.

    `use_flash_attention` is accepted for the sake of old code: attention always takes PyTorch's fastest kernel.

    Raises:
        UserError: a file holds nothing for its tower.
    """
    load_towers(model, clip_path, bert_path)
    return model.to(usable_device(device)).eval()


def tokenize(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH) -> torch.Tensor:
    """Token ids of one or more texts: int64 [N, context_length], padded with 0.

    `cn_clip.tokenizer.default_tokenizer().encode` also tells which texts were cut.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    return torch.from_numpy(default_tokenizer().encode(texts, context_length).ids)


def image_transform(image_size: int = 224) -> ImageTransform:
    """The preprocessing of a picture: PIL image -> float32 tensor [3, image_size, image_size]."""
    return ImageTransform(image_size)


def _at_resolution(config: ModelConfig, pixels: int) -> ModelConfig:
    unit = 32 if config.vision.is_resnet else config.vision.vision_patch_size or 1
    if pixels < unit or (config.vision.is_resnet and pixels % unit):
        expected = f"a multiple of {unit}" if config.vision.is_resnet else f"at least {unit}"
        raise UserError(f"input_resolution must be {expected}, not {pixels}")
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_resolution=pixels))
