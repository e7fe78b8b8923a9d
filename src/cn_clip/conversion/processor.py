"""The preprocessing beside a model's weights: settings of its pictures, and the tokenizer's files.

Texts: transformers' tokenizer gets this package's clean-up (curly quotes, rare characters) in `tokenizer.json`.
Pictures: transformers resizes after converting to RGB, the published preprocessing before: docs/huggingface.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from cn_clip.config import CONTEXT_LENGTH
from cn_clip.conversion.folder import PREPROCESSOR, PROCESSOR, TOKENIZER, VOCABULARY, read_json
from cn_clip.errors import UserError
from cn_clip.tokenizer import MAX_WORD, as_python_sees_it, default_tokenizer, rare_characters
from cn_clip.transform import MEAN, STD

BICUBIC = 3  # of Pillow
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def image_settings(pixels: int) -> dict[str, Any]:
    """`preprocessor_config.json`: the picture is squeezed into a square, as published."""
    return {
        "image_processor_type": "ChineseCLIPImageProcessor",
        "processor_class": "ChineseCLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": pixels, "width": pixels},
        "resample": BICUBIC,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def write_tokenizer(folder: Path, context_length: int = CONTEXT_LENGTH) -> None:
    """`vocab.txt`, `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
    vocabulary = (resources.files("cn_clip") / "assets" / VOCABULARY).read_bytes()
    (folder / VOCABULARY).write_bytes(vocabulary)
    _rust_tokenizer().save(str(folder / TOKENIZER))
    settings = {
        # Reads tokenizer.json as it is; BertTokenizer would build its own, without the clean-up.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": True,
        "model_max_length": context_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        # A text that holds "[SEP]" is no command to the model.
        "split_special_tokens": True,
        **SPECIAL,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", SPECIAL)


def check_pictures(folder: Path, pixels: int) -> list[str]:
    """What a folder's `preprocessor_config.json` asks for that this package does not do, a line each.

    Raises:
        UserError: it makes pictures of another size than the model takes.
    """
    path = next((folder / name for name in (PREPROCESSOR, PROCESSOR) if (folder / name).is_file()), None)
    if path is None:
        return []
    values = read_json(path)
    values = values.get("image_processor", {}) if path.name == PROCESSOR else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: image_processor is no JSON object")
    expected = image_settings(pixels)
    size, crop = (_side(values.get(name)) for name in ("size", "crop_size"))
    crops = bool(values.get("do_center_crop"))
    side = crop if crops and crop else size
    if side and values.get("do_resize", True) and side != pixels:
        raise UserError(f"{path}: pictures of {side} pixels, but the model takes {pixels}")
    notes = []
    if crops or "shortest_edge" in str(values.get("size")):
        notes.append(f"{path}: it cuts pictures to a square; here they are squeezed, as published")
    for name in ("image_mean", "image_std", "resample"):
        own = values.get(name, expected[name])
        same = own == expected[name] if name == "resample" else close(own, expected[name])
        if not same:
            notes.append(f"{path}: {name} is {own}; here it is {expected[name]}, as published")
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not values.get(name, True):
            notes.append(f"{path}: {name} is false; here it is always done")
    return notes


def check_vocabulary(folder: Path, words: int) -> list[str]:
    """What a folder's vocabulary has other than the published one, a line each; `words` is the model's number."""
    path = folder / VOCABULARY
    if path.is_file():
        # Some published vocabularies end their lines as Windows does.
        pieces = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        vocabulary = {piece.strip(): i for i, piece in enumerate(pieces)}
    elif (folder / TOKENIZER).is_file():
        path = folder / TOKENIZER
        vocabulary = read_json(path).get("model", {}).get("vocab", {})
        if not isinstance(vocabulary, dict):
            raise UserError(f"{path}: not a WordPiece tokenizer: no vocabulary by pieces")
    else:
        return []
    published = default_tokenizer().vocab
    # Pieces may be added at the end; a model may also have fewer, of the same beginning.
    moved = next((p for p, i in published.items() if i < words and vocabulary.get(p, i) != i), None)
    lost = next((p for p, i in published.items() if i < words and p not in vocabulary), None)
    odd = moved or lost
    if odd is None:
        return []
    return [
        f"{path}: not the published vocabulary ({odd!r} is {vocabulary.get(odd, 'not in it')}, published "
        f"{published[odd]}): encode texts with cn_clip.tokenizer.Tokenizer of its vocab.txt"
    ]


def write_json(path: Path, values: dict[str, Any] | list[Any]) -> None:
    """A JSON file as the hub's are: two spaces, Chinese as it is."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def close(own: Any, expected: list[float]) -> bool:
    """Whether these are the same numbers but for the rounding of who wrote them."""
    return (
        isinstance(own, list)
        and len(own) == 3
        and all(abs(a - b) < 1e-4 for a, b in zip(own, expected, strict=True))
    )


def _rust_tokenizer() -> Any:
    """The whole text path as one tokenizer of the `tokenizers` package."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = default_tokenizer().vocab
    rust = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD))
    rare: dict[str, list[int]] = {}
    for code in rare_characters():
        seen = as_python_sees_it(chr(code))
        if seen != chr(code):
            rare.setdefault(seen, []).append(code)
    steps = [normalizers.Replace("“", '"'), normalizers.Replace("”", '"')]
    # Python lower-cases a sigma at a word's end to another letter than within it; Rust, here, does not.
    steps.append(normalizers.Replace(Regex(r"(?<=[\p{Lu}\p{Ll}\p{Lt}])Σ(?![\p{Lu}\p{Ll}\p{Lt}])"), "ς"))
    steps += [normalizers.Replace(Regex(f"[{_ranges(codes)}]"), seen) for seen, codes in rare.items()]
    bert = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    rust.normalizer = normalizers.Sequence([*steps, bert])
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece(prefix="##")
    rust.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIAL.values()])
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return rust


def _ranges(codes: Iterable[int]) -> str:
    """Sorted code points as the inside of a character class."""
    runs: list[list[int]] = []
    for code in codes:
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in runs)


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    return size if isinstance(size, int) else None
