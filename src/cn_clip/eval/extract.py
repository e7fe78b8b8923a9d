"""`cn-clip extract`: the image and text features of a dataset.

cn-clip extract --extract-image-feats --extract-text-feats --image-data lmdb/test/imgs --text-data test_texts.jsonl
    --resume logs/train_clip/checkpoints/epoch_latest.pt
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from PIL.Image import Image

from cn_clip.config import CONTEXT_LENGTH, DEFAULT_TEXT_MODEL, DEFAULT_VISION_MODEL
from cn_clip.data.readers import find_source, open_images, read_captions
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from cn_clip.eval.features import FeatureWriter
from cn_clip.files import atomic_open
from cn_clip.inputs import BadItem
from cn_clip.progress import progress
from cn_clip.streams import OnError
from cn_clip.transform import decode_image


def extract(
    extract_image_feats: bool = False,
    extract_text_feats: bool = False,
    image_data: Path | None = None,
    text_data: Path | None = None,
    image_feat_output_path: Path | None = None,
    text_feat_output_path: Path | None = None,
    img_batch_size: int = 64,
    text_batch_size: int = 64,
    context_length: int = CONTEXT_LENGTH,
    resume: str | None = None,
    precision: Literal["amp", "auto", "fp32", "bf16", "fp16"] = "amp",
    vision_model: str | None = None,
    text_model: str | None = None,
    download_root: str | None = None,
    device: str = "auto",
    num_workers: int | None = None,
    fast_decode: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    debug: bool = False,
) -> None:
    """Write the unit vectors of a dataset's images and texts as JSONL.

    Args:
        extract_image_feats: encode the images of --image-data.
        extract_text_feats: encode the texts of --text-data.
        image_data: LMDB folder of images, such as lmdb/test/imgs; or DIR/test of the file test_imgs.tsv,
            WebDataset shards or Parquet files (a folder or a pattern).
        text_data: texts, such as test_texts.jsonl; or a split in any of these forms: the texts of its pairs.
        image_feat_output_path: {split}_imgs.img_feat.jsonl beside --text-data by default.
        text_feat_output_path: {split}_texts.txt_feat.jsonl beside --text-data by default.
        img_batch_size: images encoded at a time.
        text_batch_size: texts encoded at a time.
        context_length: word pieces kept of a text, [CLS] and [SEP] included.
        resume: checkpoint file, or a published model's name.
        precision: amp is float32, as it is in the reference's extraction; bf16 and fp16 convert the weights; auto
            is bf16 where the processor computes it itself, else float32.
        vision_model: image tower (a name or a JSON file) of a checkpoint that does not describe itself.
        text_model: its text tower.
        download_root: where a published model's weights are kept.
        device: auto takes a GPU where there is one.
        num_workers: decoding threads.
        fast_decode: decode JPEGs at a smaller scale, two to three times as fast; not quite the same vectors.
        on_error: raise stops at an image that cannot be decoded; skip leaves it out, and lists it in a file.
        debug: print all parameters.
    """
    if debug:
        print("\n".join(f"  {name}: {value}" for name, value in sorted(locals().items())))
    if not (extract_image_feats or extract_text_feats):
        raise UserError("nothing to do: give --extract-image-feats, --extract-text-feats, or both")
    if resume is None:
        raise UserError("--resume is missing: which checkpoint (a file, or a published model's name)?")
    if min(img_batch_size, text_batch_size) < 1:
        raise UserError("batch sizes must be 1 or more")
    if extract_image_feats and image_data is None:
        raise UserError("--image-data is missing: the LMDB folder of images, such as lmdb/test/imgs")
    if extract_text_feats and text_data is None:
        raise UserError("--text-data is missing: the texts, such as test_texts.jsonl")
    if num_workers is not None and num_workers < 1:
        raise UserError("--num-workers must be 1 or more")
    if extract_image_feats and image_feat_output_path is None and text_data is None:
        raise UserError("--image-feat-output-path is missing (its default lies beside --text-data)")
    if extract_text_feats and text_data is not None:
        text_feat_output_path = text_feat_output_path or _default("texts", text_data)
    if extract_image_feats and text_data is not None:
        image_feat_output_path = image_feat_output_path or _default("images", text_data)
    names = {}
    if vision_model or text_model:
        names["vision_model_name"] = vision_model or DEFAULT_VISION_MODEL
        names["text_model_name"] = text_model or DEFAULT_TEXT_MODEL
    encoder = Encoder.load(
        resume,
        device=device,
        precision="fp32" if precision == "amp" else precision,
        download_root=download_root,
        workers=num_workers,
        fast_decode=fast_decode,
        **names,
    )
    if extract_text_feats:
        assert text_data is not None
        assert text_feat_output_path is not None
        count = extract_texts(encoder, text_data, text_feat_output_path, text_batch_size, context_length)
        print(f"{count} text features are stored in {text_feat_output_path}")
    if extract_image_feats:
        assert image_data is not None
        assert image_feat_output_path is not None
        count = extract_images(encoder, image_data, image_feat_output_path, img_batch_size, on_error)
        print(f"{count} image features are stored in {image_feat_output_path}")


def extract_images(
    encoder: Encoder, image_data: Path, output: Path, batch_size: int = 64, on_error: OnError = "raise"
) -> int:
    """Encode a split's images (an LMDB's by key, others in file order) into a feature file; returns their number.

    With `on_error="skip"`, images that cannot be decoded are left out and listed in `{output}.skipped.jsonl`
    (`{"image_id": …, "error": …}` a line); that file is there only if there are any.

    Raises:
        UserError: nothing that `open_images` reads, or an image that cannot be decoded (the line has its id).
    """
    images = open_images(image_data)
    ids = images.ids()
    at_least = encoder.size if encoder.fast_decode else None

    def decode(image_id: int | str) -> Image:
        return decode_image(images[image_id], images.where(image_id), at_least)

    bad: list[BadItem] = []
    done = 0
    with FeatureWriter(output, "image_id") as writer, progress(total=len(ids), desc="images", unit="img") as bar:
        for batch in encoder.image_batches((partial(decode, i) for i in ids), batch_size, on_error):
            writer.write([ids[i] for i in batch.indices], batch.vectors)
            bad += batch.errors
            done += len(batch.vectors)
            bar.update(len(batch.vectors) + len(batch.errors))
    skipped = output.with_name(output.name.removesuffix(".jsonl") + ".skipped.jsonl")
    skipped.unlink(missing_ok=True)
    if bad:
        with atomic_open(skipped) as file:
            for error in bad:
                row = {"image_id": ids[error.index], "error": str(error)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{len(bad)} of {len(ids)} images were skipped; they are listed in {skipped}")
    return done


def extract_texts(
    encoder: Encoder, text_data: Path, output: Path, batch_size: int = 64, context_length: int = CONTEXT_LENGTH
) -> int:
    """Encode the texts of a JSONL file or a split, in its order, into a feature file; returns their number.

    Texts longer than `context_length` lose their end; how many, and the first one's id, is printed.

    Raises:
        UserError: a line that is not a text (file and line are named).
    """
    ids: list[int | str] = []

    def texts() -> Iterator[str]:
        for text_id, text in read_captions(text_data):
            ids.append(text_id)
            yield text

    done, cut, first = 0, 0, None
    with FeatureWriter(output, "text_id") as writer, progress(desc="texts", unit="text") as bar:
        for vectors, tokens in encoder.text_vectors(texts(), batch_size, context_length):
            window = ids[done : done + len(vectors)]
            writer.write(window, vectors)
            if tokens.truncated.any():
                first = window[int(tokens.truncated.argmax())] if cut == 0 else first
                cut += int(tokens.truncated.sum())
            done += len(vectors)
            bar.update(len(vectors))
    if cut:
        print(f"{cut} of {done} texts are longer than {context_length} tokens and were cut (first: {first})")
    return done


def _default(what: Literal["texts", "images"], text_data: Path) -> Path:
    """Where features are stored by default: beside the file of texts.

    Raises:
        UserError: the texts are not in such a file.
    """
    texts = text_data
    flag, end = ("text", ".txt_feat.jsonl") if what == "texts" else ("image", ".img_feat.jsonl")
    if not str(text_data).endswith(".jsonl"):
        source = find_source(text_data)
        if source.kind != "TSV":
            raise UserError(f"--{flag}-feat-output-path is missing (its default lies beside a file of texts)")
        texts = source.files[1]
    name = texts.name if what == "texts" else texts.name.replace("_texts.jsonl", "_imgs.jsonl")
    return texts.with_name(name.removesuffix(".jsonl") + end)
