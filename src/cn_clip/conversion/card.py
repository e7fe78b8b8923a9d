"""The model card of a folder for Hugging Face: `README.md` with the head that the hub reads."""

from __future__ import annotations

from dataclasses import dataclass

from cn_clip.config import ModelConfig

PAPER = "https://arxiv.org/abs/2211.01335"


@dataclass(frozen=True)
class Card:
    """What only the author of the weights knows; everything may be left empty.

    Attributes:
        name: heading of the card.
        base: repository id of the model that was finetuned.
        license: its name on the hub (`apache-2.0`, `mit`, …).
        notes: data, results, limits: Markdown, after the introduction.
    """

    name: str = ""
    base: str = ""
    license: str = ""
    notes: str = ""


def huggingface_card(card: Card, config: ModelConfig) -> str:
    """The card of a `ChineseCLIPModel` folder."""
    pixels = config.vision.image_resolution
    head = _head(card, "transformers", "zero-shot-image-classification", [])
    usage = f"""```python
import torch
from PIL import Image
from transformers import ChineseCLIPModel, ChineseCLIPProcessor

model = ChineseCLIPModel.from_pretrained("THIS_FOLDER").eval()
processor = ChineseCLIPProcessor.from_pretrained("THIS_FOLDER", backend="pil")


def picture(path):
    # Resized before it becomes RGB, as in training: see below.
    return Image.open(path).resize(({pixels}, {pixels}), Image.Resampling.BICUBIC).convert("RGB")


texts = ["一只猫", "一只狗"]
inputs = processor(text=texts, images=[picture("cat.jpg")], padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits_per_image.softmax(dim=-1))
```

Given a palette, 1-bit or transparent picture as it is, transformers' processor converts it to RGB before it
resizes (transparent parts become white), while this model was trained on pictures resized first and converted
then: do it yourself, as above, and the pixels are equal. Without `backend="pil"` transformers may resize with
torchvision, which differs from Pillow by some levels of 255 a pixel.

图片请像上面那样先缩放、再转成 RGB（训练时就是这样）：transformers 的处理器顺序相反，
透明图、调色板图和黑白二值图的结果会不同。"""
    return f"{head}\n{_introduction(card, config)}\n\n## Usage\n\n{usage}\n\n{_here()}\n"


def sentence_transformers_card(card: Card, config: ModelConfig) -> str:
    """The card of a sentence-transformers folder."""
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction"]
    head = _head(card, "sentence-transformers", "sentence-similarity", tags)
    usage = """```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("THIS_FOLDER")
texts = model.encode(["一只猫", "一只狗"])
images = model.encode([Image.open("cat.jpg").convert("RGB")])
print(model.similarity(images, texts))
```

Vectors are of length 1. Texts are cut after as many word pieces as the model was saved with (52 by default)."""
    return f"{head}\n{_introduction(card, config)}\n\n## Usage\n\n{usage}\n\n{_here()}\n"


def _head(card: Card, library: str, task: str, tags: list[str]) -> str:
    rows = ["---", "language: zh"]
    rows += [f"license: {card.license}"] if card.license else []
    rows += [f"base_model: {card.base}"] if card.base else []
    rows += [f"library_name: {library}", f"pipeline_tag: {task}", "tags:"]
    rows += [f"- {tag}" for tag in [*tags, "chinese-clip", "clip", "vision", "zh"]]
    return "\n".join([*rows, "---", ""])


def _introduction(card: Card, config: ModelConfig) -> str:
    vision, text = config.vision, config.text
    base = f", finetuned from [{card.base}](https://huggingface.co/{card.base})" if card.base else ""
    notes = f"\n\n{card.notes.strip()}" if card.notes.strip() else ""
    return (
        f"# {card.name or 'Chinese CLIP'}\n\n"
        f"A [Chinese CLIP]({PAPER}){base}: pictures and Chinese sentences become vectors of {vision.embed_dim} "
        f"numbers that can be compared.\n\n"
        "| part | |\n|---|---|\n"
        f"| image tower | ViT, patch {vision.vision_patch_size}, {vision.vision_layers} layers of "
        f"{vision.vision_width}, {vision.image_resolution} pixels |\n"
        f"| text tower | BERT, {text.text_num_hidden_layers} layers of {text.text_hidden_size}, "
        f"{text.vocab_size:,} word pieces |{notes}"
    )


def _here() -> str:
    return 'With the package `chinese-clip`: `cn_clip.clip.load_from_name("THIS_FOLDER")`.'
